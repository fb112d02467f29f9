"""What a connected Ray cluster holds, and whether all of it sees the run folder."""

from __future__ import annotations

import math
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from evaluation.config import LOCAL_DIR, ClipConfig
from sweeps.config import AskedResources, ResourcesConfig, SweepConfig
from sweeps.execution.launcher import Growth, growth_of_cluster
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.mirror import open_run
from sweeps.ledger.storage import StorageError
from training.errors import UserError


@dataclass(frozen=True)
class TrialResources:
    """What one trial occupies, on one machine, every default filled in."""

    cpus: float
    """Of all its workers together."""
    gpus: float
    """A part of one, or one for each worker."""
    workers: int = 1
    """Processes that share it."""

    @property
    def device(self) -> str:
        """Where a trial computes."""
        return "cuda" if self.gpus else "cpu"

    @property
    def of_a_worker(self) -> TrialResources:
        """What each of its workers has."""
        return TrialResources(self.cpus / self.workers, self.gpus / self.workers)


Machine = Mapping[str, float]
"""What Ray says that a machine has: `CPU`, `GPU`, ..."""


def check_cluster(asked: ResourcesConfig, methods: Iterable[str]) -> dict[str, TrialResources]:
    """Refuse what the connected Ray cluster does not have and will not get; Tune itself would wait for ever.

    Returns:
        What one trial of each method occupies.

    Raises:
        UserError: names what was asked and the most that any machine has, or what the sweep file must say.
    """
    growth = growth_of_cluster(asked.autoscaling)
    machines = _alive()
    to_come = [] if growth is None else [kind.resources for kind in growth.node_types if kind.resources is not None]
    resources = {method: _filled_in(asked.of(method), machines, growth) for method in methods}
    for method, trial in resources.items():
        fits_somewhere = any(_room(machine, trial) for machine in [*machines, *to_come])
        if not fits_somewhere and (growth is None or growth.is_known):
            raise UserError(_refusal([*machines, *to_come], trial, method))
    if len({trial.device for trial in resources.values()}) > 1:
        said = ", ".join(f"{trial.gpus:g} for {method}" for method, trial in resources.items())
        raise UserError(
            f"resources.gpus_per_trial: must be 0 for all methods or for none, got {said}: pictures are made in half "
            "precision on a GPU, and their scores could not be compared"
        )
    return resources


def trials_at_once(
    autoscaling: bool,
    resources: Collection[TrialResources],
    max_concurrent_trials: int | None,
    num_trials: int,
) -> int:
    """Trials that the cluster, as it is now or as it may grow, holds at one time: 1 or more, `num_trials` or fewer.

    Asked again while the sweep runs, it counts the machines that have joined. Where trials differ, it is the number of
    the smallest; a larger one waits until Ray finds its place.
    """
    growth = growth_of_cluster(autoscaling)

    def fits(machine: Machine) -> int:
        return max(_room(machine, trial) for trial in resources)

    room = sum(map(fits, _alive()))
    if growth is not None:
        to_come = growth.room(fits)
        room = num_trials if to_come is None else max(room, to_come)
    return max(1, min(room, num_trials, max_concurrent_trials or num_trials))


def stage_resources(resources: Iterable[TrialResources]) -> TrialResources:
    """What a task needs that works for all trials, in one process: the most that a worker of any trial has."""
    workers = [trial.of_a_worker for trial in resources]
    return TrialResources(max(worker.cpus for worker in workers), max(worker.gpus for worker in workers))


def _alive() -> list[Machine]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _filled_in(asked: AskedResources, machines: Sequence[Machine], growth: Growth | None) -> TrialResources:
    gpus = asked.gpus
    if gpus is None:
        gpus = asked.num_workers if _has_gpus(machines, growth) else 0
    workers = int(asked.workers or max(1, gpus))
    return TrialResources(workers if asked.cpus is None else asked.cpus, gpus, workers)


def _has_gpus(machines: Sequence[Machine], growth: Growth | None) -> bool:
    if any(machine.get("GPU", 0) >= 1 for machine in machines):
        return True
    if growth is None or growth.most("GPU") >= 1:
        return growth is not None
    if not growth.is_known:
        raise UserError(
            "resources.gpus_per_trial: must be given here, 1 to train on GPUs or 0 on CPUs: this cluster starts its "
            "machines on demand, and neither a machine that is up nor its launcher's file says whether they have GPUs"
        )
    return False


def _room(machine: Machine, trial: TrialResources) -> int:
    """Trials that fit on a machine at one time."""
    by_cpu = math.floor(machine.get("CPU", 0) / trial.cpus + 1e-6)
    if not trial.gpus:
        return by_cpu
    num_gpus = machine.get("GPU", 0)
    if trial.gpus >= 1:
        return min(by_cpu, math.floor(num_gpus / trial.gpus + 1e-6))
    per_gpu = math.floor(1 / trial.gpus + 1e-6)  # parts of one trial never lie on two GPUs
    return min(by_cpu, math.floor(num_gpus * per_gpu + 1e-6))


def _refusal(machines: Sequence[Machine], trial: TrialResources, method: str) -> str:
    for place, resource, asked in (("gpus_per_trial", "GPU", trial.gpus), ("cpus_per_trial", "CPU", trial.cpus)):
        most = max((machine.get(resource, 0) for machine in machines), default=0)
        if asked > most:
            each = f" ({trial.workers} workers of {asked / trial.workers:g})" if trial.workers > 1 else ""
            return (
                f"resources.{place}: a trial of {method} needs {asked:g} {resource}{each}, "
                f"the most on one machine here is {most:g}"
            )
    return (
        f"resources: a trial of {method} needs {trial.cpus:g} CPU and {trial.gpus:g} GPU on one machine, and no "
        "machine has both"
    )


def named_models(config: SweepConfig) -> dict[str, str]:
    """Models that the sweep file names by hub id or path: their place in it, and the name."""
    evaluation, second = config.evaluation, config.evaluation.second_opinion
    named = {
        "base_model": config.base_model,
        "evaluation.face.encoder": evaluation.face.encoder,
        **_named_clip("evaluation.clip", evaluation.clip),
        "evaluation.second_opinion.face.encoder": second.face.encoder if second and second.face else "",
        **(_named_clip("evaluation.second_opinion.clip", second.clip) if second and second.clip else {}),
        "render.controlnet": config.render.controlnet if config.render and config.render.references else "",
    }
    return {place: name for place, name in named.items() if name}


def _named_clip(place: str, clip: ClipConfig) -> dict[str, str]:
    return {
        f"{place}.model": clip.model.removeprefix(LOCAL_DIR) if clip.model.startswith(LOCAL_DIR) else "",
        f"{place}.pretrained": clip.pretrained or "",
    }


def local_models(config: SweepConfig) -> dict[str, str]:
    """Models that lie on this machine's disk and are too large to be sent: their place in the sweep file and path."""
    return {
        place: path for place, path in named_models(config).items() if Path(path).is_absolute() and Path(path).exists()
    }


def check_shared(folder: RunFolder, storage: str | None, models: Mapping[str, str]) -> None:
    """Refuse a run folder, a storage in its place, or a model, that some machine of the cluster does not see.

    Machines that join later are asked by `same_models`.

    Raises:
        UserError: names the machines, or says why the folder or the storage cannot be written.
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
    except StorageError:
        raise
    except OSError as error:
        raise UserError(f"storage: {storage} must be writable: {error}") from None
    finally:
        probe.unlink(missing_ok=True)
    folder.push(probe)  # which takes it away there too
    for node, (_, _, problem) in zip(nodes, answers, strict=True):
        if problem:
            raise UserError(f"machine {node['NodeManagerAddress']}: {problem}")
    found = [(node, (read, lacks)) for node, (read, lacks, _) in zip(nodes, answers, strict=True)]
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


def _look_around(
    run_dir: str, storage: str | None, name: str, models: Mapping[str, str]
) -> tuple[str, list[str], str | None]:
    """What the probe says on this machine, the places of models that are not on it, and why it could not be tried."""
    lacks = [place for place, path in models.items() if not Path(path).exists()]
    text = ""
    try:
        folder = open_run(run_dir, storage)
        file, own = folder.dir / name, folder.dir / f"probe-{uuid.uuid4().hex}.txt"
        folder.pull(file)
        if file.is_file():
            text = file.read_text()
            folder.forget(file)
            own.write_text(text)
            folder.push(own)
            own.unlink()
            folder.push(own)  # which takes it away there too
    except (UserError, OSError) as error:
        return text, lacks, str(error)
    return text, lacks, None
