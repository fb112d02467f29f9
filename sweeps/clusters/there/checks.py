"""A cluster looked at from its head, with a task on every machine; a line of JSON a finding."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.clusters.findings import Finding
from sweeps.clusters.machine import Machine, look_at_machine
from sweeps.clusters.there.sweep import keep_here
from sweeps.execution.launcher import Growth, growth_of_cluster
from sweeps.ledger.storage import Storage
from sweeps.wording import bytes_text, failure_text
from training.errors import UserError

SECONDS_TO_LOOK = 120.0
"""What a machine may take: the first task on it starts a process."""
SKEW_SECONDS = 5.0
"""Between two clocks; more makes times in reports and logs hard to read. No lease depends on it."""
SMALL_DISK = 10_000_000_000
"""Bytes; less hardly holds three full checkpoints."""
ON_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Seen:
    """One machine of the cluster and what it said."""

    address: str
    num_cpus: float
    num_gpus: float
    machine: Machine | None
    """None where it has not answered."""
    asked_at: float
    answered_at: float
    """By the head's clock, in seconds since 1970."""


def check_from_head(asked: Mapping[str, Any], folder: Path) -> int:
    """Look, and say what was found.

    Args:
        asked: `versions` (of the one who asks), `out`, `storage` (or None), `models`.
        folder: the job's working directory.
    """
    del folder
    keep_here(os.environ)
    context = ray.init(address="auto", logging_level="critical", log_to_driver=False)
    try:
        out = Path(asked["out"])
        with_probe = _Probe(out)
        try:
            seen = look_everywhere(list(asked["versions"]), str(out), with_probe.name, asked["models"])
        finally:
            with_probe.remove()
        for finding in (
            *of_dashboard(context.dashboard_url),
            *of_nodes(seen),
            *of_versions(seen, asked["versions"]),
            *of_gpus(seen),
            *of_folder(seen, asked["out"], with_probe.text, asked["storage"]),
            *of_storage(asked["storage"]),
            *of_models(seen, asked["models"]),
            *of_clocks(seen),
            *of_metrics([(n["NodeManagerAddress"], n.get("MetricsExportPort")) for n in ray.nodes() if n["Alive"]]),
            *of_growth(),
        ):
            sys.stdout.write(json.dumps(asdict(finding)) + "\n")
        sys.stdout.flush()
    finally:
        ray.shutdown()
    return 0


class _Probe:
    """A file in the folder of runs with a text that nobody else has; none where it cannot be written."""

    def __init__(self, folder: Path) -> None:
        self.text = uuid.uuid4().hex
        self.name = f".probe-{self.text}.txt"
        self._file = folder / self.name
        self._made = [each for each in (folder, *folder.parents) if not each.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file.write_text(self.text)
        except OSError:
            self.name = ""

    def remove(self) -> None:
        """Leave everything as it was."""
        if self.name:
            self._file.unlink(missing_ok=True)
        for folder in self._made:
            with suppress(OSError):  # by now somebody else has put something there
                folder.rmdir()


def look_everywhere(packages: Sequence[str], out: str, probe: str, models: Sequence[str]) -> list[Seen]:
    """Every machine that is up, looked at from itself."""
    look = ray.remote(num_cpus=0, max_retries=0)(look_at_machine)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    seen = []
    for node in nodes:  # one after another: how long each took is how well its clock is known
        pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        machine: Machine | None = None
        asked_at = time.time()
        try:
            task = look.options(scheduling_strategy=pinned)
            ray.get(task.remote([], "/", "", []), timeout=SECONDS_TO_LOOK)  # its process is there from now on
            asked_at = time.time()
            machine = ray.get(task.remote(packages, out, probe, models), timeout=SECONDS_TO_LOOK)
        except RayError:
            pass
        resources = node["Resources"]
        answered_at = time.time()
        cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
        seen.append(Seen(node["NodeManagerAddress"], cpus, gpus, machine, asked_at, answered_at))
    return seen


def of_dashboard(url: str) -> Iterator[Finding]:
    """Where it listens."""
    host = urlsplit(f"http://{url}").hostname
    if host in ON_LOOPBACK:
        yield Finding(True, "dashboard", f"listens at {url} alone: reached through a tunnel")
    else:
        yield Finding(
            False,
            "dashboard",
            f"listens at {url}, for whoever reaches the head; start Ray with --dashboard-host=127.0.0.1",
        )


def of_nodes(seen: Sequence[Seen]) -> Iterator[Finding]:
    """Who answers."""
    silent = [each.address for each in seen if each.machine is None]
    if silent:
        yield Finding(
            False, "machines", f"no task ran within {SECONDS_TO_LOOK:g} s on {', '.join(silent)}; see its logs"
        )
    else:
        cpus = sum(each.num_cpus for each in seen)
        trials = f"{cpus:g} CPUs for trials" if cpus else "none for trials yet: start some, unless an autoscaler does"
        yield Finding(True, "machines", f"{len(seen)} up, {trials}, all answer")


def of_versions(seen: Sequence[Seen], ours: Mapping[str, str]) -> Iterator[Finding]:
    """Whether all machines have the same, and what the one who asks has."""
    machines = [(each.address, each.machine) for each in seen if each.machine is not None]
    pythons = {machine.python for _, machine in machines}
    if len(pythons) > 1:
        yield Finding(False, "python", f"differs: {_by_machine((a, m.python) for a, m in machines)}; Ray wants one")
    elif pythons:
        yield Finding(True, "python", next(iter(pythons)))
    lacking = {a: [name for name in ours if name not in m.versions] for a, m in machines}
    for address, names in lacking.items():
        if names:
            yield Finding(False, "packages", f"{address} lacks {', '.join(names)}; install dreamsweep there")
    differing = False
    for name in ours:
        there = {m.versions[name] for _, m in machines if name in m.versions}
        if len(there) > 1:
            differing = True
            said = _by_machine((a, m.versions.get(name, "none")) for a, m in machines)
            yield Finding(False, "packages", f"{name} differs: {said}; trials would not be comparable")
        elif there - {ours[name]}:
            differing = True
            what = f"{name} {next(iter(there))} there, {ours[name]} where this was asked"
            yield Finding(name != "ray", "packages", what if name != "ray" else f"{what}; jobs may not be taken")
    if machines and not differing and not any(lacking.values()):
        yield Finding(True, "packages", f"{', '.join(f'{name} {its}' for name, its in ours.items())}, as here")


def of_gpus(seen: Sequence[Seen]) -> Iterator[Finding]:
    """What they are, and whether Ray knows of all."""
    kinds: Counter[str] = Counter()
    for each in seen:
        gpus = each.machine.gpus if each.machine else ()
        kinds.update(f"{gpu.name} ({gpu.memory_mib / 1024:.0f} GiB, driver {gpu.driver})" for gpu in gpus)
        if len(gpus) != each.num_gpus and each.machine is not None:
            yield Finding(
                False,
                "gpus",
                f"{each.address} has {len(gpus)} by its driver and {each.num_gpus:g} by Ray; look at `nvidia-smi` and "
                "at --num-gpus there",
            )
        busy = [gpu for gpu in gpus if gpu.used_mib > gpu.memory_mib / 2]
        if busy:
            yield Finding(False, "gpus", f"{each.address}: {busy[0].name} has half its memory in use by somebody else")
    if kinds:
        yield Finding(True, "gpus", ", ".join(f"{number} x {kind}" for kind, number in kinds.items()))
    else:
        yield Finding(True, "gpus", "none is up: trials train on CPUs, unless machines with GPUs come")


def of_folder(seen: Sequence[Seen], out: str, text: str, storage: str | None) -> Iterator[Finding]:
    """Whether all machines see and write the folder of runs, and how much is free."""
    machines = [(each.address, each.machine) for each in seen if each.machine is not None]
    closed = [(address, machine.writes) for address, machine in machines if machine.writes]
    if closed:
        yield Finding(
            False, "runs", f"{out} cannot be written: {_by_machine(closed)}; mount it, or chown it to Ray's user"
        )
    blind = [address for address, machine in machines if machine.probe != text]
    if blind and not closed and storage is None:
        yield Finding(
            False, "runs", f"{out} is another folder on {', '.join(blind)}; mount one that all see, or use storage:"
        )
    elif not closed and machines:
        free = min(machine.free_bytes or 0 for _, machine in machines)
        enough = free >= SMALL_DISK
        said = (
            f"{out}: all write it, {bytes_text(free)} free" if blind else f"{out}: all see it, {bytes_text(free)} free"
        )
        yield Finding(enough, "runs", said if enough else f"{said}; full checkpoints have 3.4 GB a scoring point")


def of_storage(storage: str | None) -> Iterator[Finding]:
    """Whether the head may write it."""
    if storage is None:
        return
    name = f"probe-{uuid.uuid4().hex}"
    try:
        place = Storage(storage, name)
        place.write("probe", b"probe")
        is_read = place.read("probe") == {"probe": b"probe"}
        place.remove("probe")
    except UserError as error:
        yield Finding(False, "storage", str(error))
    except (OSError, ValueError) as error:
        yield Finding(False, "storage", f"{storage} must be writable: {failure_text(error)}")
    else:
        said = "written and read by the head" if is_read else "what is written is not read again"
        yield Finding(is_read, "storage", f"{storage}: {said}")


def of_models(seen: Sequence[Seen], models: Sequence[str]) -> Iterator[Finding]:
    """Which machines have them."""
    workers = [each for each in seen if each.machine is not None and each.num_cpus]
    for model in models:
        lacking = [each.address for each in workers if each.machine and not each.machine.models[model]]
        is_path = model.startswith("/")
        if not lacking:
            yield Finding(True, "models", f"{model} is on all {len(workers)} machines that train")
        elif is_path:
            yield Finding(
                False, "models", f"{model} must lie on every machine that trains, {', '.join(lacking)} lacks it"
            )
        else:
            yield Finding(
                True, "models", f"{model} is not in the cache of {', '.join(lacking)}, which asks the hub for it"
            )


def of_clocks(seen: Sequence[Seen]) -> Iterator[Finding]:
    """How far they are from the head's at the least: an answer was given between the question and its arrival."""
    far = []
    for each in seen:
        if each.machine is not None:
            skew = max(each.asked_at - each.machine.clock, each.machine.clock - each.answered_at, 0.0)
            if skew > SKEW_SECONDS:
                far.append((each.address, f"{skew:.0f} s"))
    if far:
        yield Finding(False, "clocks", f"away from the head's: {_by_machine(far)}; set them by NTP")
    else:
        widest = max((each.answered_at - each.asked_at for each in seen), default=0)
        yield Finding(True, "clocks", f"within {SKEW_SECONDS:g} s of the head's (answers took up to {widest:.1f} s)")


def of_metrics(ports: Sequence[tuple[str, int | None]]) -> Iterator[Finding]:
    """Which ports tell numbers to anybody."""
    known = [f"{address}:{port}" for address, port in ports if port]
    if known:
        yield Finding(
            True, "metrics", f"{', '.join(known)} answer without a token (Ray's own way): let no stranger reach them"
        )


def of_growth() -> Iterator[Finding]:
    """What the cluster may start."""
    try:
        growth = growth_of_cluster(autoscaling=False)
    except UserError as error:
        yield Finding(False, "growth", str(error))
        return
    if growth is None:
        yield Finding(True, "growth", "does not start machines by itself, as far as the head knows")
    else:
        yield Finding(growth.is_known, "growth", _growth_text(growth))


def _growth_text(growth: Growth) -> str:
    kinds = [
        f"up to {kind.max_workers} {kind.name} ({', '.join(f'{n} {v:g}' for n, v in (kind.resources or {}).items())})"
        for kind in growth.node_types
    ]
    if growth.is_known:
        return f"starts {'; '.join(kinds)}, {growth.max_workers} in all"
    return "the launcher's file does not say what its machines have; say resources.gpus_per_trial in the sweep file"


def _by_machine(said: Any) -> str:
    return ", ".join(f"{address} {what}" for address, what in said)
