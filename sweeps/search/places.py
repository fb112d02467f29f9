"""Where trials may run, as the searcher asks for it: it hands out as many as there are places for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sweeps.ledger.records import TrialRecord


@dataclass(frozen=True)
class Place:
    """Where a trial may run now."""

    extra: Mapping[str, Any]
    """What the trial is told of it."""
    seats: int
    """Trials that may train together there, this one included."""
    take: Callable[[Sequence[str]], None]
    """Called with the trials that go there."""


class Places(Protocol):
    """All of them."""

    def have_room(self) -> bool:
        """May there be a place for another trial? If not, the search is not asked for one."""

    def find(self, record: TrialRecord, num_left: int) -> Place | None:
        """A place for a trial, of so many that have none yet; None while it must wait."""

    def left(self, trial: str) -> None:
        """A trial has ended, or will be served again."""


class Anywhere:
    """Trials run wherever Ray puts them, each alone."""

    def have_room(self) -> bool:
        """Always."""
        return True

    def find(self, _record: TrialRecord, _num_left: int) -> Place:
        """Anywhere."""
        return Place({"avoid": ()}, 1, lambda _trials: None)

    def left(self, trial: str) -> None:
        """Nothing to note."""
