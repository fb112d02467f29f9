"""What a cluster holds: what no machine has is refused, the rest is counted machine by machine.

pytest tests/sweeps/execution/test_cluster.py     a few seconds, no Ray session
"""

from __future__ import annotations

from typing import Any

import pytest
import ray

from sweeps.config import ResourcesConfig
from sweeps.execution.cluster import check_cluster


def cluster_of(monkeypatch: pytest.MonkeyPatch, *machines: dict[str, float]) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": machine} for machine in machines])


@pytest.mark.parametrize(
    ("resources", "law"),
    [
        ({"gpus_per_trial": 1}, "a trial needs 1 GPU, the most on one machine here is 0"),
        ({"cpus_per_trial": 9}, "a trial needs 9 CPU, the most on one machine here is 8"),
    ],
)
def test_an_impossible_request_is_refused(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], law: str
) -> None:
    """What no machine has is said at once, where Tune would wait for ever."""
    cluster_of(monkeypatch, {"CPU": 8}, {"CPU": 4})
    with pytest.raises(ValueError, match=law):
        check_cluster(ResourcesConfig(**resources), None)


def test_resources_must_lie_on_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs here and a GPU there do not make a trial."""
    cluster_of(monkeypatch, {"CPU": 8}, {"CPU": 1, "GPU": 1})
    with pytest.raises(ValueError, match="no machine has both"):
        check_cluster(ResourcesConfig(cpus_per_trial=4, gpus_per_trial=1), None)


@pytest.mark.parametrize(
    ("resources", "machines", "gpus", "at_once"),
    [
        ({}, [{"CPU": 2}], 0, 2),
        ({}, [{}, {"CPU": 1}, {"CPU": 1}], 0, 2),
        ({"cpus_per_trial": 2}, [{"CPU": 5}, {"CPU": 3}], 0, 3),
        ({}, [{"CPU": 16, "GPU": 4}], 1, 4),
        ({"gpus_per_trial": 0.5}, [{"CPU": 16, "GPU": 2}], 0.5, 4),
        ({"gpus_per_trial": 0.4}, [{"CPU": 16, "GPU": 2}], 0.4, 4),
        ({"gpus_per_trial": 2}, [{"CPU": 16, "GPU": 3}], 2, 1),
        ({"gpus_per_trial": 0}, [{"CPU": 3, "GPU": 1}], 0, 3),
        ({"gpus_per_trial": 1, "autoscaling": True}, [{"CPU": 2}], 1, 8),
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
    found = check_cluster(ResourcesConfig(**resources), None)
    assert (found.gpus, found.at_once) == (gpus, at_once)
    limited = check_cluster(ResourcesConfig(**resources), max_concurrent_trials=1)
    assert limited.at_once == 1
