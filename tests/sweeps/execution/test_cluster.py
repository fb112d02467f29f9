"""What a cluster holds: what no machine has is refused, the rest is counted machine by machine.

pytest tests/sweeps/execution/test_cluster.py     a few seconds, no Ray session
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from sweeps.config import ResourcesConfig
from sweeps.execution import launcher
from sweeps.execution.cluster import TrialResources, check_cluster, stage_resources, trials_at_once

CLUSTER = Path(__file__).parents[3] / "cluster.yaml"
HEAD = {"CPU": 0.0}
MANY = 1000
"""Trials, when their number is not what is asked about."""


@pytest.fixture(autouse=True)
def bootstrap_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the launcher's file would lie; there is none yet."""
    path = tmp_path / "ray_bootstrap_config.yaml"
    monkeypatch.setattr(launcher, "BOOTSTRAP_CONFIG", path)
    return path


def node_types(**kinds: dict[str, Any]) -> str:
    """A launcher's file with a head and these workers."""
    head = {"resources": {"CPU": 0}}
    return yaml.safe_dump(
        {"max_workers": 10, "head_node_type": "head", "available_node_types": {"head": head, **kinds}}
    )


def found(resources: ResourcesConfig) -> TrialResources:
    """What is found for a LoRA."""
    return check_cluster(resources, ["lora"])["lora"]


def at_once_of(resources: ResourcesConfig, limit: int | None = None, num_trials: int = MANY) -> int:
    return trials_at_once(resources.autoscaling, [found(resources)], limit, num_trials)


def cluster_of(monkeypatch: pytest.MonkeyPatch, *machines: dict[str, float]) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": machine} for machine in machines])


@pytest.mark.parametrize(
    ("resources", "law"),
    [
        ({"gpus_per_trial": 1}, "a trial of lora needs 1 GPU, the most on one machine here is 0"),
        ({"cpus_per_trial": 9}, "a trial of lora needs 9 CPU, the most on one machine here is 8"),
    ],
)
def test_an_impossible_request_is_refused(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], law: str
) -> None:
    """What no machine has is said at once, where Tune would wait for ever."""
    cluster_of(monkeypatch, {"CPU": 8}, {"CPU": 4})
    with pytest.raises(ValueError, match=law):
        found(ResourcesConfig(**resources))


def test_resources_must_lie_on_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs here and a GPU there do not make a trial."""
    cluster_of(monkeypatch, {"CPU": 8}, {"CPU": 1, "GPU": 1})
    with pytest.raises(ValueError, match="no machine has both"):
        found(ResourcesConfig(cpus_per_trial=4, gpus_per_trial=1))


@pytest.mark.parametrize(
    ("resources", "machines", "gpus", "at_once"),
    [
        ({}, [{"CPU": 2}], 0, 2),
        ({}, [{}, {"CPU": 1}, {"CPU": 1}], 0, 2),
        ({"cpus_per_trial": 2}, [{"CPU": 5}, {"CPU": 3}], 0, 3),
        ({}, [{"CPU": 16, "GPU": 4}], 1, 4),
        ({"gpus_per_trial": 0.5}, [{"CPU": 16, "GPU": 2}], 0.5, 4),
        ({"gpus_per_trial": 0.4}, [{"CPU": 16, "GPU": 2}], 0.4, 4),
        ({"gpus_per_trial": 0}, [{"CPU": 3, "GPU": 1}], 0, 3),
        ({"gpus_per_trial": 1, "autoscaling": True}, [{"CPU": 2}], 1, MANY),
        ({"gpus_per_trial": 0, "autoscaling": True}, [HEAD], 0, MANY),
        ({"autoscaling": True}, [HEAD, {"CPU": 4, "GPU": 1}], 1, MANY),
    ],
)
def test_as_many_trials_at_once_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
    resources: dict[str, Any],
    machines: list[dict[str, float]],
    gpus: float,
    at_once: int,
) -> None:
    """Room is counted machine by machine; a GPU is taken where there is one, unless the file says otherwise."""
    cluster_of(monkeypatch, *machines)
    asked = ResourcesConfig(**resources)
    assert (found(asked).gpus, at_once_of(asked)) == (gpus, at_once)
    assert at_once_of(asked, limit=1) == 1


def test_the_projects_own_cluster_trains_on_its_gpus(monkeypatch: pytest.MonkeyPatch, bootstrap_config: Path) -> None:
    """`ray up cluster.yaml`, no worker up yet, a sweep file without `resources:`: a GPU a trial, on all workers."""
    bootstrap_config.write_text(CLUSTER.read_text())
    cluster_of(monkeypatch, HEAD)
    trial = found(ResourcesConfig())
    assert (trial.gpus, trial.device, at_once_of(ResourcesConfig())) == (1, "cuda", 8)


@pytest.mark.parametrize(
    ("kinds", "gpus"),
    [
        ({"cpu": {"resources": {"CPU": 8}}}, 0),
        ({"cpu": {"resources": {"CPU": 8}}, "gpu": {"resources": {"CPU": 4, "GPU": 1}}}, 1),
        ({"unknown": {"node_config": {}}, "gpu": {"resources": {"CPU": 4, "GPU": 1}}}, 1),
        ({"unknown": {"node_config": {}, "resources": {}}}, None),
        ({"cpu": {"resources": {"CPU": 8}}, "unknown": {"node_config": {}}}, None),
        ({"cpu": {"resources": {"CPU": 8}}, "never": {"resources": {"GPU": 1}, "max_workers": 0}}, 0),
    ],
)
def test_the_node_types_decide_whether_trials_get_a_gpu(
    monkeypatch: pytest.MonkeyPatch, bootstrap_config: Path, kinds: dict[str, Any], gpus: float | None
) -> None:
    """Where they do not say, the sweep file must; what it says is then taken."""
    bootstrap_config.write_text(node_types(**kinds))
    cluster_of(monkeypatch, HEAD)
    if gpus is not None:
        assert found(ResourcesConfig()).gpus == gpus
        return
    with pytest.raises(ValueError, match=r"resources\.gpus_per_trial: must be given here, 1 .* or 0 "):
        found(ResourcesConfig())
    for said in (0, 1):
        assert found(ResourcesConfig(gpus_per_trial=said)).gpus == said


def test_a_cluster_that_grows_without_a_file_must_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """KubeRay leaves none: with `autoscaling: true` and no GPU up, none is guessed."""
    cluster_of(monkeypatch, HEAD)
    with pytest.raises(ValueError, match="must be given here"):
        found(ResourcesConfig(autoscaling=True))


@pytest.mark.parametrize(
    ("resources", "law"),
    [
        ({"gpus_per_trial": 1}, "a trial of lora needs 1 GPU, the most on one machine here is 0"),
        ({"cpus_per_trial": 9}, "a trial of lora needs 9 CPU, the most on one machine here is 8"),
    ],
)
def test_what_no_node_type_has_is_refused(
    monkeypatch: pytest.MonkeyPatch, bootstrap_config: Path, resources: dict[str, Any], law: str
) -> None:
    """The autoscaler would wait for ever."""
    bootstrap_config.write_text(node_types(cpu={"resources": {"CPU": 8}}))
    cluster_of(monkeypatch, HEAD)
    with pytest.raises(ValueError, match=law):
        found(ResourcesConfig(**resources))


@pytest.mark.parametrize(
    ("kinds", "limit", "num_trials", "at_once"),
    [
        ({"gpu": {"resources": {"CPU": 4, "GPU": 1}}}, None, MANY, 10),
        ({"gpu": {"resources": {"CPU": 16, "GPU": 4}, "max_workers": 5}}, None, MANY, 20),
        (
            {"big": {"resources": {"CPU": 16, "GPU": 4}, "max_workers": 2}, "gpu": {"resources": {"CPU": 4, "GPU": 1}}},
            None,
            MANY,
            16,
        ),
        ({"gpu": {"resources": {"CPU": 4, "GPU": 1}}}, 7, MANY, 7),
        ({"gpu": {"resources": {"CPU": 4, "GPU": 1}}}, None, 3, 3),
    ],
)
def test_as_many_trials_at_once_as_the_cluster_can_grow_to(
    monkeypatch: pytest.MonkeyPatch,
    bootstrap_config: Path,
    kinds: dict[str, Any],
    limit: int | None,
    num_trials: int,
    at_once: int,
) -> None:
    """What `max_workers` of the types and of the whole allow: no guess of eight."""
    bootstrap_config.write_text(node_types(**kinds))
    cluster_of(monkeypatch, HEAD)
    assert at_once_of(ResourcesConfig(), limit, num_trials) == at_once


def test_machines_that_join_later_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without autoscaling: the searcher asks anew each time; a cluster that lost all machines waits for one."""
    for machines, at_once in (([{"CPU": 2}], 2), ([{"CPU": 2}, {"CPU": 4}], 6), ([HEAD], 1)):
        cluster_of(monkeypatch, *machines)
        assert trials_at_once(False, [TrialResources(1, 0)], None, MANY) == at_once


def test_a_file_that_is_no_launchers_is_named(monkeypatch: pytest.MonkeyPatch, bootstrap_config: Path) -> None:
    """Neither a traceback nor a guess."""
    cluster_of(monkeypatch, HEAD)
    for text in ("[", "- a\n- b\n", "available_node_types: {a: 3}\n"):
        bootstrap_config.write_text(text)
        with pytest.raises(ValueError, match="ray_bootstrap_config"):
            found(ResourcesConfig())


@pytest.mark.parametrize(
    ("resources", "machine", "lora", "dreambooth", "at_once"),
    [
        ({"gpus_per_trial": 2}, {"CPU": 16, "GPU": 8}, (2, 2, 2), (2, 2, 2), 4),
        ({"gpus_per_trial": 4, "cpus_per_trial": 8}, {"CPU": 16, "GPU": 8}, (8, 4, 4), (8, 4, 4), 2),
        ({"gpus_per_trial": {"lora": 0.5, "dreambooth": 4}}, {"CPU": 16, "GPU": 4}, (1, 0.5, 1), (4, 4, 4), 8),
        ({"gpus_per_trial": {"dreambooth": 2}}, {"CPU": 16, "GPU": 4}, (1, 1, 1), (2, 2, 2), 4),
        ({"workers_per_trial": {"dreambooth": 2}}, {"CPU": 16, "GPU": 4}, (1, 1, 1), (2, 2, 2), 4),
        ({"workers_per_trial": 2}, {"CPU": 16}, (2, 0, 2), (2, 0, 2), 8),
        ({"workers_per_trial": 2, "cpus_per_trial": 1, "gpus_per_trial": 0}, {"CPU": 3, "GPU": 4}, *[(1, 0, 2)] * 2, 3),
    ],
)
def test_parts_of_a_gpu_one_and_several_mix(
    monkeypatch: pytest.MonkeyPatch,
    resources: dict[str, Any],
    machine: dict[str, float],
    lora: tuple[float, float, int],
    dreambooth: tuple[float, float, int],
    at_once: int,
) -> None:
    """CPUs, GPUs and workers of a trial: a worker a GPU, a CPU a worker, unless the file says otherwise."""
    cluster_of(monkeypatch, machine)
    config = ResourcesConfig(**resources)
    trials = check_cluster(config, ["lora", "dreambooth"])
    assert trials == {"lora": TrialResources(*lora), "dreambooth": TrialResources(*dreambooth)}
    assert trials_at_once(False, trials.values(), None, MANY) == at_once
    each = stage_resources(trials.values())
    assert each.gpus == min(1, max(lora[1], dreambooth[1]))


@pytest.mark.parametrize(
    ("resources", "law"),
    [
        ({"gpus_per_trial": 4}, r"gpus_per_trial: .* lora needs 4 GPU \(4 workers of 1\), the most .* here is 2"),
        ({"gpus_per_trial": {"dreambooth": 3}}, r"a trial of dreambooth needs 3 GPU \(3 workers of 1\), .* is 2"),
        ({"gpus_per_trial": 2, "cpus_per_trial": 9}, r"cpus_per_trial: .* needs 9 CPU \(2 workers of 4.5\), .* is 8"),
        (
            {"gpus_per_trial": {"lora": 0, "dreambooth": 1}},
            "0 for all methods or for none, got 0 for lora, 1 for",
        ),
    ],
)
def test_what_does_not_fit_on_one_machine_is_refused_with_the_arithmetic(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, Any], law: str
) -> None:
    """A trial's workers lie on one machine; two machines with two GPUs each do not make four."""
    cluster_of(monkeypatch, {"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2})
    with pytest.raises(ValueError, match=law):
        check_cluster(ResourcesConfig(**resources), ["lora", "dreambooth"])
