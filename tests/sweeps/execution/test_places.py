"""Which server a trial gets, and which servers there are, without Ray: a cluster of pretended actors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

import sweeps.execution.servers
from sweeps.execution.cluster import TrialResources
from sweeps.execution.servers import TrialServers
from sweeps.ledger.records import TrialRecord
from training.config import DreamBoothConfig, LoraConfig

SMALL, LARGE, SHARED = TrialResources(1, 0), TrialResources(2, 0), TrialResources(2, 0, workers=2)


class Handle:
    """A pretended server: `up` once its machine has room."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options, self.left = options, []
        self.is_up, self.is_lost = True, False
        self.address = SimpleNamespace(remote=lambda: self)
        self.leave = SimpleNamespace(remote=self.left.append)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    """All that are alive, in the order in which they were started."""
    alive: list[Handle] = []

    def remote(_: type) -> Any:
        def start(**options: Any) -> Any:
            return SimpleNamespace(remote=lambda: alive.append(Handle(options)) or alive[-1])

        return SimpleNamespace(options=start)

    def wait(handles: list[Handle], timeout: float) -> tuple[list[Handle], list[Handle]]:
        assert timeout == 0
        return (handles, []) if handles[0].is_up else ([], handles)

    def get(handle: Handle, timeout: float | None = None) -> tuple[int, str, str]:
        if handle.is_lost:
            raise RayActorError
        return 1, "10.0.0.1", "node"

    pretended = SimpleNamespace(
        remote=remote,
        get=get,
        wait=wait,
        kill=alive.remove,
    )
    monkeypatch.setattr(sweeps.execution.servers, "ray", pretended)
    return alive


def servers_for(
    at_once: int,
    lora: TrialResources = SMALL,
    dreambooth: TrialResources = SMALL,
    avoid: Callable[[str], Any] = lambda _: (),
) -> TrialServers:
    return TrialServers({"lora": lora, "dreambooth": dreambooth}, lambda: at_once, avoid, pack_size=8)


def record(method: str, name: str = "trial") -> TrialRecord:
    config = LoraConfig() if method == "lora" else DreamBoothConfig()
    return TrialRecord(trial=name, method=method, status="running", config=config.model_dump(mode="json"))


def settled(servers: TrialServers, wanted: TrialRecord, num_left: int = 1) -> Any:
    """Asked until there is a place, as Tune's loop does."""
    return servers.find(wanted, num_left) or servers.find(wanted, num_left)


def test_as_many_servers_as_there_is_work_and_room_for(started: list[Handle]) -> None:
    """A pack's trials need one, not one each; a machine's room is not exceeded."""
    assert servers_for(4).find(record("lora"), num_left=9) is None
    assert len(started) == 2
    started.clear()
    servers_for(4).find(record("dreambooth"), num_left=9)
    assert len(started) == 4


def test_a_server_that_is_free_is_used_again(started: list[Handle]) -> None:
    """Once all of its trials have left, and each has told it so."""
    servers = servers_for(1)
    place = settled(servers, record("lora"))
    assert place.seats == 8
    place.take(["a", "b"])
    assert not servers.have_room()
    assert servers.find(record("lora"), 1) is None
    servers.left("a")
    assert servers.find(record("lora"), 1) is None
    servers.left("b")
    assert servers.have_room()
    assert servers.find(record("dreambooth"), 1).extra["server"].handle is started[0]
    assert (len(started), started[0].left) == (1, ["a", "b"])


def test_an_idle_server_is_in_nobodys_way(started: list[Handle]) -> None:
    """A trial that occupies more waits for what it holds, even if its own server was asked for long before."""
    servers = servers_for(2, lora=SMALL, dreambooth=LARGE)
    settled(servers, record("lora")).take(["a"])
    servers.find(record("dreambooth"), 1)
    _, large = started
    large.is_up = False
    assert servers.find(record("dreambooth"), 1) is None
    servers.left("a")
    servers.find(record("dreambooth"), 1)
    assert started == [large], "the small one was ended"
    large.is_up = True
    assert servers.find(record("dreambooth"), 1) is not None


def test_a_trial_of_several_workers_waits_for_no_server(started: list[Handle]) -> None:
    """Nor for one that becomes free when there are no more trials to look for a place."""
    servers = servers_for(2, dreambooth=SHARED)
    settled(servers, record("lora")).take(["a"])
    place = servers.find(record("dreambooth"), 1)
    assert "server" not in place.extra
    place.take(["b"])
    assert len(started) == 1
    servers.left("a")
    assert not started
    servers.left("b")


def test_a_lost_server_is_replaced(started: list[Handle]) -> None:
    """It does not answer when it is looked at."""
    servers = servers_for(1)
    settled(servers, record("lora")).take(["a"])
    (lost,) = started
    lost.is_lost = True
    servers.left("a")
    assert servers.find(record("lora"), 1) is None
    assert len(started) == 1
    assert started[0] is not lost
    assert servers.find(record("lora"), 1) is not None


def test_a_trial_is_kept_from_the_machines_that_it_must_avoid(started: list[Handle]) -> None:
    """The only server is there: it makes way for one that is put elsewhere."""
    avoided: list[str] = []
    servers = servers_for(1, avoid=lambda _: avoided)
    settled(servers, record("lora")).take(["a"])
    (there,) = started
    servers.left("a")
    avoided.append("node")
    assert servers.find(record("lora"), 1) is None
    assert started != [there]
    assert started[0].options["label_selector"] == {"ray.io/node-id": "!in(node)"}
    servers.close()
    assert not started
