"""What a connected Ray cluster holds, and whether all of it sees the run folder."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from evaluation.config import LOCAL_DIR
from sweeps.config import ResourcesConfig, SweepConfig
from sweeps.execution.launcher import Growth, growth_of_cluster
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.mirror import open_run
from training.errors import UserError


@dataclass(frozen=True)
class TrialResources:
    """What one trial occupies, every default filled in."""

    cpus: float
    gpus: float
    at_once: int
    """Trials that run at one time."""

    @property
    def device(self) -> str:
        """Where a trial computes."""
        return "cuda" if self.gpus else "cpu"


def check_cluster(asked: ResourcesConfig, max_concurrent_trials: int | None, num_trials: int) -> TrialResources:
    """Refuse what the connected Ray cluster does not have and will not get; Tune itself would wait for ever.

    Raises:
        UserError: names what was asked and the most that any machine has, or what the sweep file must say.
    """
    growth = growth_of_cluster(asked.autoscaling)
    machines = _alive()
    cpus, gpus = asked.cpus_per_trial, _gpus_per_trial(asked, machines, growth)
    to_come = [] if growth is None else [kind.resources for kind in growth.node_types if kind.resources is not None]
    fits_somewhere = any(_room(machine, cpus, gpus) for machine in [*machines, *to_come])
    if not fits_somewhere and (growth is None or growth.is_known):
        raise UserError(_refusal([*machines, *to_come], cpus, gpus))
    return TrialResources(cpus, gpus, trials_at_once(asked, cpus, gpus, max_concurrent_trials, num_trials))


def trials_at_once(
    asked: ResourcesConfig, cpus: float, gpus: float, max_concurrent_trials: int | None, num_trials: int
) -> int:
    """Trials that the cluster, as it is now or as it may grow, holds at one time: 1 or more, `num_trials` or fewer.

    Asked again while the sweep runs, it counts the machines that have joined.
    """
    growth = growth_of_cluster(asked.autoscaling)
    room = sum(_room(machine, cpus, gpus) for machine in _alive())
    if growth is not None:
        to_come = growth.room(lambda machine: _room(machine, cpus, gpus))
        room = num_trials if to_come is None else max(room, to_come)
    return max(1, min(room, num_trials, max_concurrent_trials or num_trials))


def _alive() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _gpus_per_trial(asked: ResourcesConfig, machines: Sequence[Mapping[str, float]], growth: Growth | None) -> float:
    """What the sweep file says, else a GPU where there is or will be one."""
    if asked.gpus_per_trial is not None:
        return asked.gpus_per_trial
    if any(machine.get("GPU", 0) >= 1 for machine in machines):
        return 1
    if growth is None:
        return 0
    if growth.most("GPU") >= 1:
        return 1
    if not growth.is_known:
        raise UserError(
            "resources.gpus_per_trial: must be given here, 1 to train on GPUs or 0 on CPUs: this cluster starts its "
            "machines on demand, and neither a machine that is up nor its launcher's file says whether they have GPUs"
        )
    return 0


def _room(machine: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Trials that fit on a machine at one time."""
    by_cpu = math.floor(machine.get("CPU", 0) / cpus + 1e-6)
    if not gpus:
        return by_cpu
    per_gpu = math.floor(1 / gpus + 1e-6)  # parts of one trial never lie on two GPUs
    return min(by_cpu, math.floor(machine.get("GPU", 0) * per_gpu + 1e-6))


def _refusal(machines: Sequence[Mapping[str, float]], cpus: float, gpus: float) -> str:
    for place, resource, asked in (("gpus_per_trial", "GPU", gpus), ("cpus_per_trial", "CPU", cpus)):
        most = max((machine.get(resource, 0) for machine in machines), default=0)
        if asked > most:
            return f"resources.{place}: a trial needs {asked:g} {resource}, the most on one machine here is {most:g}"
    return f"resources: a trial needs {cpus:g} CPU and {gpus:g} GPU on one machine, and no machine has both"


def local_models(config: SweepConfig) -> dict[str, str]:
    """Models that lie on this machine's disk and are too large to be sent: their place in the sweep file and path."""
    clip = config.evaluation.clip
    named = {
        "base_model": config.base_model,
        "evaluation.face.encoder": config.evaluation.face.encoder,
        "evaluation.clip.model": clip.model.removeprefix(LOCAL_DIR) if clip.model.startswith(LOCAL_DIR) else "",
        "evaluation.clip.pretrained": clip.pretrained or "",
        "render.controlnet": config.render.controlnet if config.render and config.render.references else "",
    }
    return {place: path for place, path in named.items() if Path(path).is_absolute() and Path(path).exists()}


def check_shared(folder: RunFolder, storage: str | None, models: Mapping[str, str]) -> None:
    """Refuse a run folder, a storage in its place, or a model, that some machine of the cluster does not see.

    Machines that join later are asked by `same_models`.

    Raises:
        UserError: names the machines, or says why the storage cannot be written.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2 and storage is None:
        return
    text = uuid.uuid4().hex
    probe = folder.dir / f"probe-{text}.txt"
    probe.write_text(text)
    look = ray.remote(num_cpus=0, max_retries=0)(_look_around)
    try:
        folder.push(probe)
        answers = ray.get(
            [
                look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                    str(folder.dir), storage, probe.name, models
                )
                for node in nodes
            ]
        )
    except OSError as error:
        raise UserError(f"storage: {storage} must be writable: {error}") from None
    finally:
        probe.unlink(missing_ok=True)
    folder.push(probe)  # which takes it away there too
    found = list(zip(nodes, answers, strict=True))
    blind = [node["NodeManagerAddress"] for node, (read, _) in found if read != text]
    if blind:
        place = folder.dir if storage is None else storage
        raise UserError(
            f"{place}: must be seen by every machine of the cluster, and {', '.join(blind)} does not see it"
        )
    _check_models(models, {n["NodeManagerAddress"]: lacks for n, (_, lacks) in found if n["Resources"].get("CPU", 0)})


def _check_models(models: Mapping[str, str], lacking: Mapping[str, Sequence[str]]) -> None:
    for place, path in models.items():
        machines = [machine for machine, places in lacking.items() if place in places]
        if machines:
            raise UserError(
                f"{place}: must lie on every machine that trains, and {', '.join(machines)} does not have {path}; copy "
                "it there, or put it where all machines see it"
            )


def _look_around(run_dir: str, storage: str | None, name: str, models: Mapping[str, str]) -> tuple[str, list[str]]:
    """What the probe says on this machine, and the places of the models that are not on it."""
    folder = open_run(run_dir, storage)
    folder.pull(folder.dir / name)
    file = folder.dir / name
    text = file.read_text() if file.is_file() else ""
    folder.forget(file)
    return text, [place for place, path in models.items() if not Path(path).exists()]
