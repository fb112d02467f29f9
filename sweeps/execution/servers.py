"""The driver's trial servers: how many there are, which is free, and which trials go to it together.

A server holds what one trial of a method occupies, for as long as the sweep has work for it. Ray finds its place, or
has the cluster grow until there is one. A trial is handed to Tune once its server is up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from sweeps.execution.cluster import TrialResources
from sweeps.execution.machines import elsewhere
from sweeps.execution.server import ServerAddress, TrialServer
from sweeps.ledger.records import TrialRecord
from sweeps.search.places import Place
from training.config import is_packable

SECONDS_TO_ANSWER = 10.0
"""In which a server that nobody uses says that it is there."""


@dataclass
class _Server:
    """A server, up or on its way."""

    handle: Any
    resources: TrialResources
    avoided: frozenset[str]
    """Ray's names of machines that it was not to be put on."""
    says_where: Any
    """Ray's reference to its first answer."""
    address: ServerAddress | None = None
    """None until it is up."""
    trials: set[str] = field(default_factory=set)
    """Those that it computes for; or the name of what it does that is no trial."""


class TrialServers:
    """Keeps as many servers as trials of one process each have room.

    Args:
        resources: of one trial of each method.
        at_once: how many trials, each alone, the cluster holds at one time; asked each time.
        to_avoid: Ray's names of machines that a trial must not be computed on.
        pack_size: the most trials of a pack.
    """

    def __init__(
        self,
        resources: Mapping[str, TrialResources],
        at_once: Callable[[], int],
        to_avoid: Callable[[str], Sequence[str]],
        pack_size: int,
    ) -> None:
        self._resources, self._at_once, self._to_avoid, self._pack_size = resources, at_once, to_avoid, pack_size
        self._servers: list[_Server] = []
        self._elsewhere: set[str] = set()
        """Trials that several workers of their own compute."""

    @property
    def room(self) -> int:
        """Servers that there may be at one time."""
        return self._at_once()

    def have_room(self) -> bool:
        """As `Places`."""
        return self._num_busy() < self._at_once()

    def find(self, record: TrialRecord, num_left: int) -> Place | None:
        """As `Places`: a server that is up and has nothing else to do."""
        resources = self._resources[record.method]
        avoid = self._to_avoid(record.trial)
        if resources.workers > 1:
            return self._place_elsewhere(avoid)
        seats = self._pack_size if is_packable(record.method_config) else 1
        server = self._free(resources, frozenset(avoid), -(-num_left // seats))
        if server is None:
            return None

        def take(trials: Sequence[str]) -> None:
            server.trials.update(trials)

        return Place({"avoid": avoid, "server": server.address}, seats, take)

    def left(self, trial: str) -> None:
        """A trial has ended, or must be served anew."""
        self._elsewhere.discard(trial)
        for server in self._servers:
            if trial in server.trials:
                server.trials.discard(trial)
                server.handle.leave.remote(trial)
        if self._elsewhere:  # one of them may wait for what a server holds that nobody may ask for any more
            self._end_idle(lambda _: True)

    def lend(self, name: str, resources: TrialResources, num_wanted: int) -> Any:
        """Ray's handle of a server for a piece of work that is no trial, of so many that wait; None while it must.

        Args:
            name: of the work, which is no trial's.
            resources: what it needs.
            num_wanted: pieces of work that have no server yet.
        """
        server = self._free(resources, frozenset(self._to_avoid(name)), num_wanted)
        if server is None:
            return None
        server.trials.add(name)
        return server.handle

    def take_back(self, name: str) -> None:
        """The piece of work is done, or its server was lost."""
        for server in self._servers:
            server.trials.discard(name)

    def coming(self) -> list[Any]:
        """Ray's references, one a server that is on its way."""
        return [server.says_where for server in self._servers if server.address is None]

    def close(self) -> None:
        """End all."""
        for server in list(self._servers):
            self._end(server)

    def _place_elsewhere(self, avoid: Sequence[str]) -> Place | None:
        """Of a trial of several workers: servers that nobody uses would be in its way."""
        self._end_idle(lambda _: True)
        if self._num_busy() >= self._at_once():
            return None
        return Place({"avoid": avoid}, 1, lambda trials: self._elsewhere.update(trials))

    def _free(self, resources: TrialResources, avoided: frozenset[str], num_wanted: int) -> _Server | None:
        """A server that is up and has nothing to do; as many are started as are wanted and have room."""
        for server in list(self._servers):
            if server.trials or server.resources != resources:
                continue
            if server.address is None and server.avoided != avoided:
                self._end(server)  # it may wait for a machine that this trial must not have
            elif self._is_up(server) and server.address is not None and server.address.node_id not in avoided:
                return server
        self._end_idle(lambda server: server.resources != resources)  # what it holds may be what this one waits for
        num_coming = sum(server.address is None and server.resources == resources for server in self._servers)
        if not num_coming and not self._num_free():
            self._end_idle(lambda _: True)  # where this trial must not be
        for _ in range(min(self._num_free(), num_wanted - num_coming)):
            self._start(resources, avoided)
        return None

    def _num_free(self) -> int:
        """Servers that there is still room for."""
        return self._at_once() - len(self._servers) - len(self._elsewhere)

    def _start(self, resources: TrialResources, avoided: frozenset[str]) -> None:
        handle = (
            ray.remote(TrialServer)
            .options(
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
                max_restarts=0,
                label_selector=elsewhere(sorted(avoided)) if avoided else None,
            )
            .remote()
        )
        self._servers.append(_Server(handle, resources, avoided, handle.address.remote()))

    def _is_up(self, server: _Server) -> bool:
        """Does it answer? One that was lost, or whose machine goes, is let go of."""
        try:
            if server.address is None:
                ready, _ = ray.wait([server.says_where], timeout=0)
                if not ready:
                    return False
                server.address = ServerAddress(server.handle, *ray.get(server.says_where))
            else:
                ray.get(server.handle.address.remote(), timeout=SECONDS_TO_ANSWER)
        except GetTimeoutError:
            return False
        except RayError:
            self._end(server)
            return False
        return True

    def _end_idle(self, which: Callable[[_Server], bool]) -> None:
        for server in list(self._servers):
            if not server.trials and which(server):
                self._end(server)

    def _end(self, server: _Server) -> None:
        self._servers.remove(server)
        ray.kill(server.handle)

    def _num_busy(self) -> int:
        return len(self._elsewhere) + sum(bool(server.trials) for server in self._servers)
