"""Whose machine it is: failures that are no fault of the trial's are tried again elsewhere, but not for ever.

A machine that fails several trials in a row would otherwise eat a whole sweep, because it fails fastest. One that
says itself what it lacks (the run folder, the storage, a model) gets no second trial.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import ray

from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import TrialRecord
from training.errors import UserError

T = TypeVar("T")
MAX_FAILURES = 4
"""Failures of a trial without a scoring point between them, after which this run gives it up; the next tries again."""
TRIALS_TO_SET_ASIDE = 3
"""Different trials that fail on a machine in a row, after which it gets no more; a pack that is lost counts as one."""


class NoMachineLeft(RuntimeError):  # noqa: N818 -- it says what happened
    """Every machine of the cluster has been set aside."""


class MachineError(UserError):
    """A trial failed on a machine through no fault of its own; the machine says so itself.

    Args:
        text: what was wrong.
        machine: its address.
        node_id: Ray's name of it.
        is_unfit: whether it lacks what every trial needs.
    """

    def __init__(self, text: str, machine: str | None, node_id: str | None, is_unfit: bool) -> None:
        super().__init__(text, machine, node_id, is_unfit)  # as `args`, they survive the way to the driver
        self.machine, self.node_id, self.is_unfit = machine, node_id, is_unfit

    def __str__(self) -> str:
        """What was wrong."""
        return str(self.args[0])


def this_machine() -> dict[str, str | None]:
    """Address and Ray's name of the machine that this runs on, as a trial's record has them."""
    if not ray.is_initialized():
        return {"machine": socket.gethostname(), "node_id": None}
    return {"machine": ray.util.get_node_ip_address(), "node_id": ray.get_runtime_context().get_node_id()}


def check_seen(folder: RunFolder) -> None:
    """Refuse a machine that does not have the driver's run folder, which one that joined later may not.

    Raises:
        UserError: names machine and folder.
    """
    if not folder.identity_file.is_file():
        raise UserError(
            f"{folder.dir}: must be seen by every machine of the cluster, and machine {this_machine()['machine']} does "
            "not see it; mount it there, or name a storage in the sweep file"
        )


def elsewhere(node_ids: Sequence[str]) -> dict[str, str]:
    """Ray's label selector for any machine but these."""
    return {"ray.io/node-id": f"!in({','.join(node_ids)})"}


def alive_machines() -> dict[str, str]:
    """Ray's names of the cluster's machines that could hold a trial, and their addresses."""
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) > 0
    }


def asked_once_a_second(ask: Callable[[], T], now: Callable[[], float] = time.monotonic) -> Callable[[], T]:
    """What costs a call to Ray's head, for a loop that goes round a hundred times a second.

    Args:
        ask: what is asked.
        now: seconds by a clock that is never set back.
    """
    answer: list[tuple[float, T]] = []

    def answered() -> T:
        if not answer or now() - answer[0][0] >= 1:
            answer[:] = [(now(), ask())]
        return answer[0][1]

    return answered


def node_at(address: str | None, record: TrialRecord) -> str | None:
    """Ray's name of the machine at an address; None where that is not certain.

    Args:
        address: where the trial failed.
        record: the trial's, which names an earlier machine if the failure came before it could name this one.
    """
    if address == record.machine:
        return record.node_id
    there = [node_id for node_id, its_address in alive_machines().items() if its_address == address]
    return there[0] if len(there) == 1 else None


@dataclass
class Machines:
    """What is known of the machines of a cluster from the trials that failed on them.

    Args:
        alive: gives names and addresses of those that could be used.
    """

    alive: Callable[[], Mapping[str, str]]
    set_aside: dict[str, str] = field(default_factory=dict)
    """Name -> why it gets no more trials."""
    _failed_in_a_row: dict[str, set[str | tuple[str, ...]]] = field(default_factory=dict)
    """Name -> trials and packs that failed there since something last succeeded."""
    _failures: dict[str, int] = field(default_factory=dict)
    """Trial -> failures since its last scoring point."""
    _failed_on: dict[str, set[str]] = field(default_factory=dict)
    """Trial -> machines that it failed on since its last scoring point."""

    def succeeded(self, trial: str, node_id: str | None) -> None:
        """The trial reached a scoring point there."""
        self._failures.pop(trial, None)
        self._failed_on.pop(trial, None)
        self._failed_in_a_row.pop(node_id or "", None)

    def failed(
        self, trial: str, node_id: str | None, reason: str, *, pack: tuple[str, ...] = (), is_unfit: bool = False
    ) -> bool:
        """The trial failed there by no fault of its own; is the machine set aside for it?

        Args:
            trial: our name of it.
            node_id: Ray's name of the machine; None where it is not known.
            reason: what it failed with.
            pack: the trials that it trains with, which may all fail of one cause.
            is_unfit: whether the machine lacks what every trial needs, so that none need be lost on finding out.
        """
        self._failures[trial] = self._failures.get(trial, 0) + 1
        if node_id is None or node_id in self.set_aside:
            return False
        self._failed_on.setdefault(trial, set()).add(node_id)
        in_a_row = self._failed_in_a_row.setdefault(node_id, set())
        in_a_row.add(pack or trial)
        if len(in_a_row) < TRIALS_TO_SET_ASIDE and not is_unfit:
            return False
        self.set_aside[node_id] = reason
        return True

    def leaves(self, trial: str, node_id: str | None) -> None:
        """The machine told the trial to end, since it goes itself: no failure, but no place to come back to."""
        if node_id is not None:
            self._failed_on.setdefault(trial, set()).add(node_id)

    def is_worth_another_try(self, trial: str) -> bool:
        """Has it failed fewer times than is enough?"""
        return self._failures.get(trial, 0) < MAX_FAILURES

    def to_avoid(self, trial: str) -> list[str]:
        """Machines that must not have it: those set aside, and where there are others those that it failed on."""
        alive = self.alive()
        aside = {node_id for node_id in self.set_aside if node_id in alive}
        tried = self._failed_on.get(trial, set()) & alive.keys()
        return sorted(aside | tried if alive.keys() - aside - tried else aside)

    def has_no_place(self, avoided: Collection[str]) -> bool:
        """Would a trial that must not run on these machines wait for ever, since there are no others any more?"""
        alive = self.alive()
        return bool(alive) and alive.keys() <= set(avoided)

    @property
    def none_left(self) -> bool:
        """Has every machine been set aside?"""
        return self.has_no_place(self.set_aside)
