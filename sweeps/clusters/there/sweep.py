"""A sweep that was sent, run where it arrived: its models put where all machines see them, its photos deleted after."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

from sweeps.clusters.there.folder import empty
from training.errors import UserError
from training.files import whole_folder

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What Ray's jobs hand to their driver: the job's runtime environment, which all workers would get too."""
SWEEP_FILE = "sweep.yaml"


def run_sweep_there(asked: Mapping[str, Any], folder: Path) -> int:
    """Run it to its end.

    Args:
        asked: `out`, `models`, `versions`.
        folder: what was sent.

    Returns:
        The run's exit code.
    """
    for remark in differing_versions(asked["versions"]):
        _say(f"mind: {remark}")
    out = Path(asked["out"])
    for sent, there in asked["models"].items():
        place_model(folder / sent, Path(there), out)
    for remark in _remarks_on_hub(folder / SWEEP_FILE):
        _say(f"mind: {remark}")
    command = [sys.executable, "-m", "sweeps", "run", SWEEP_FILE, "--out", str(out), "--address", "auto"]
    environment = dict(os.environ)
    keep_here(environment, ("working_dir", "py_modules", "excludes"))  # the driver sends our code itself
    return _run(command, environment, folder)


def _run(command: list[str], environment: Mapping[str, str], folder: Path) -> int:
    driver = subprocess.Popen(command, env=environment)  # noqa: S603 -- our own

    def end(number: int, _frame: FrameType | None) -> None:
        empty(folder)  # Ray kills a job three seconds after it has told it to end
        driver.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    code = driver.wait()
    return code if code in (0, 2) else 1


def keep_here(environment: MutableMapping[str, str], names: Sequence[str] = ("working_dir",)) -> None:
    """Let no worker have these parts of the job's environment: what was sent need be where the driver is alone."""
    config = json.loads(environment.get(JOB_CONFIG, "{}"))
    runtime_env = config.get("runtime_env", {})
    for name in names:
        runtime_env.pop(name, None)
    if config:
        environment[JOB_CONFIG] = json.dumps(config)


def place_model(sent: Path, there: Path, out: Path) -> None:
    """Put a model where all machines see it, unless it is there; its folder is named by its content.

    Raises:
        UserError: the folder of runs cannot be written.
    """
    if there.exists():
        return
    try:
        there.parent.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(there.parent) as part:
            if sent.is_dir():
                shutil.copytree(sent, part / there.name, copy_function=shutil.copyfile)
            else:
                shutil.copyfile(sent, part / there.name)
    except OSError as error:
        raise UserError(f"--out {out}: must be writable on the cluster: {error.strerror}") from None


def differing_versions(theirs: Mapping[str, str]) -> Iterator[str]:
    """What this machine has otherwise than the one that sent the sweep, in sentences."""
    if theirs["python"].split(".")[:2] != platform.python_version().split(".")[:2]:
        yield f"the cluster has Python {platform.python_version()}, the sweep came from {theirs['python']}"
    for package, its_version in theirs.items():
        if package in ("python", "dreamsweep"):  # our own code was sent
            continue
        try:
            ours = version(package)
        except PackageNotFoundError:
            raise UserError(f"the cluster lacks {package}, which dreamsweep needs; install it there") from None
        if ours != its_version:
            yield f"the cluster has {package} {ours}, the sweep came from {its_version}"


def _remarks_on_hub(sweep_file: Path) -> Iterator[str]:
    from huggingface_hub import get_token, try_to_load_from_cache

    from sweeps.config import load_sweep

    base_model = load_sweep(sweep_file).base_model
    if Path(base_model).is_absolute() or isinstance(try_to_load_from_cache(base_model, "model_index.json"), str):
        return
    if get_token() is None:
        yield (
            f"{base_model} is not in this machine's cache, and no HF_TOKEN is set here: if the model asks for one, "
            "set it in the environment in which Ray is started on each machine, never with the job, which shows it"
        )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
