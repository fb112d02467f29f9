"""What would go wrong, here or on a cluster: a finding a line, and what to do about each that is not well."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from sweeps.clusters.findings import Finding
from sweeps.clusters.machine import gpus_here, has_model
from sweeps.config import SweepConfig, installed_versions
from sweeps.execution.ray_token import open_token_file, ray_token, where_the_token_is
from sweeps.plan import check_sweep
from sweeps.space import corners_of
from sweeps.wording import bytes_text, failure_text
from training.errors import UserError

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
"""Of a clone; an installed wheel has none."""
ROOM_BYTES = 10_000_000_000
"""Free disk that a sweep of which nothing is known should find."""
SLOW_DRIVER_HINT = "a driver that is older than torch's CUDA is the usual cause: update it, or install a torch for it"


def look_here(config: SweepConfig | None, *, ask_hub: bool) -> Iterator[Finding]:
    """This machine.

    Args:
        config: a sweep to look at besides.
        ask_hub: also ask whether the hub answers.
    """
    yield of_python(platform.python_version())
    yield from of_requirements(requires("dreamsweep") or [], dict(_installed(requires("dreamsweep") or [])))
    if CONSTRAINTS.is_file():
        yield of_constraints(CONSTRAINTS.read_text(encoding="utf-8"))
    yield of_torch()
    yield from of_token(os.environ)
    plan_bytes = ROOM_BYTES
    if config is not None:
        findings, needed = of_sweep(config)
        yield from findings
        plan_bytes = needed or plan_bytes
    yield of_disk(shutil.disk_usage(Path.cwd()).free, plan_bytes)
    if ask_hub:
        yield of_hub()


def of_python(running: str) -> Finding:
    """Its version."""
    is_well = tuple(map(int, running.split(".")[:2])) >= (3, 11)
    return Finding(is_well, "python", f"{running} ({sys.executable}){'' if is_well else '; 3.11 or newer is needed'}")


def of_requirements(required: Sequence[str], installed: Mapping[str, str]) -> Iterator[Finding]:
    """Whether all packages that dreamsweep names are there, and new enough."""
    num_well = 0
    for text in required:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        its = installed.get(requirement.name)
        if its is None:
            yield Finding(False, "packages", f"{requirement.name} is missing; pip install '{requirement}'")
        elif not requirement.specifier.contains(its, prereleases=True):
            yield Finding(False, "packages", f"{requirement.name} is {its}; pip install '{requirement}'")
        else:
            num_well += 1
    if num_well:
        yield Finding(True, "packages", f"{num_well} as dreamsweep needs them")


def _installed(required: Sequence[str]) -> Iterator[tuple[str, str]]:
    for text in required:
        name = Requirement(text).name
        with suppress(PackageNotFoundError):
            yield name, version(name)


def of_constraints(text: str) -> Finding:
    """How far the packages are from those that the tests run with: to know, not to mend."""
    pinned = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE))
    others = []
    for name, its in pinned.items():
        with suppress(PackageNotFoundError):
            if version(name).partition("+")[0] != its.partition("+")[0]:
                others.append(f"{name} {version(name)} (tested with {its})")
    said = f"{len(others)} differ: {', '.join(others[:5])}{' ...' if len(others) > 5 else ''}"
    return Finding(True, "constraints", said if others else "the versions that the tests run with")


def of_torch() -> Finding:
    """Whether it sees the GPUs that the driver has."""
    gpus = gpus_here()
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return Finding(False, "torch", f"cannot be imported: {failure_text(error)}")
    built = (
        f"torch {torch.__version__} for CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"torch {torch.__version__}"
    )
    if torch.cuda.is_available():
        return Finding(True, "gpu", f"{built} sees {torch.cuda.device_count()}: {torch.cuda.get_device_name(0)}")
    if gpus:
        what = f"{gpus[0].name} with driver {gpus[0].driver}"
        return Finding(False, "gpu", f"{built} does not see {what}; {SLOW_DRIVER_HINT}")
    return Finding(True, "gpu", f"none; {built} trains on the CPU here")


def of_token(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether a cluster that asks for a token would be told one."""
    mode = environment.get("RAY_AUTH_MODE", "")
    try:
        token = ray_token(environment)
    except UserError as error:
        yield Finding(False, "token", str(error))
        return
    if token is None:
        yield Finding(True, "token", "none here; a cluster's own is made by: ray get-auth-token --generate")
    elif remark := open_token_file(environment):
        yield Finding(False, "token", remark)
    else:
        yield Finding(True, "token", f"{where_the_token_is(environment)}, RAY_AUTH_MODE={mode or 'not set'}")


def of_sweep(config: SweepConfig) -> tuple[list[Finding], int | None]:
    """What `check` says of it, and the weights that it names; bytes of disk that it needs."""
    try:
        plan = check_sweep(config)
    except UserError as error:
        return [Finding(False, "sweep", str(error))], None
    findings = [
        Finding(True, "sweep", f"{config.name}: {len(plan.trials)} trials, about {bytes_text(plan.disk_bytes)}")
    ]
    if any(True in corners_of(space.get("use_8bit_adam", False)) for space in config.methods.values()):
        has_it = find_spec("bitsandbytes") is not None
        said = (
            "bitsandbytes is there"
            if has_it
            else "use_8bit_adam needs bitsandbytes: pip install 'dreamsweep[adam8bit]'"
        )
        findings.append(Finding(has_it, "8-bit Adam", said))
    for model in models_of(config):
        said = "is here" if has_model(model) else "is not in the hub's cache here; the first run fetches it"
        findings.append(Finding(True, "models", f"{model} {said}"))
    return findings, plan.disk_bytes


def models_of(config: SweepConfig) -> list[str]:
    """Hub ids and paths of base model and ControlNet; the judges' weights are asked for by `run`, which names them."""
    render = config.render
    return [config.base_model, *([render.controlnet] if render is not None and render.references else [])]


def of_disk(free: int, needed: int) -> Finding:
    """Whether the runs fit here."""
    enough = free >= needed
    said = f"{bytes_text(free)} free in {Path.cwd()}"
    return Finding(enough, "disk", said if enough else f"{said}, and about {bytes_text(needed)} are needed")


def of_hub() -> Finding:
    """Whether weights can be fetched."""
    from evaluation.hub import hub_answers

    if hub_answers():
        return Finding(True, "hub", "answers")
    return Finding(False, "hub", "does not answer, or HF_HUB_OFFLINE is set: only what is in the cache can be used")


def look_at_cluster(address: str, out: str, config: SweepConfig | None) -> Iterator[Finding]:
    """A cluster, through its dashboard and with a small job on it.

    Args:
        address: from `dashboard_address`.
        out: the folder of runs there.
        config: a sweep whose storage and models are looked for.

    Raises:
        UserError: the dashboard does not answer, or does not take our token.
    """
    from sweeps.clusters.dashboard import Dashboard, exit_code, start_there

    dashboard = Dashboard(address)
    yield Finding(True, "ray", f"{dashboard.ray_version} answers at {address}")
    if dashboard.answers_without_token():
        yield Finding(
            False,
            "token",
            "asked for by nobody: whoever reaches the dashboard runs what they like; RAY_AUTH_MODE=token",
        )
    else:
        yield Finding(True, "token", "asked for, and ours is taken")
    job = f"dreamsweep-doctor-{secrets.token_hex(8)}"
    asked = {
        "versions": {name: its for name, its in installed_versions().items() if name != "dreamsweep"},
        "out": out,
        "storage": config.storage if config else None,
        "models": models_of(config) if config else [],
    }
    try:
        with tempfile.TemporaryDirectory(prefix="dreamsweep-") as folder:
            start_there(dashboard, job, "checks", asked, Path(folder), {})
        details = dashboard.wait(job)
        log = dashboard.log(job)
        findings = list(findings_in(log))
        yield from findings
        if exit_code(details) or not findings:
            lines = [line for line in log.splitlines() if line.strip()]
            yield Finding(False, "job", f"could not look: {lines[-1] if lines else details.message}")
    finally:
        with suppress(UserError, RuntimeError):
            dashboard.stop_and_forget(job)


def findings_in(log: str) -> Iterator[Finding]:
    """What `there.checks` has said among other lines."""
    for line in log.splitlines():
        if line.startswith('{"is_well"'):
            with suppress(ValueError, TypeError):
                yield Finding(**json.loads(line))
