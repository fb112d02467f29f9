"""What a fault cost, from the judge's log and from what the product says at the end. No Ray, no torch, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.chaos.log import Entry

SAME_SCORE = 1e-5
"""Cosines that differ by less are equal: on a CPU the alignment of memory alone moves them by up to 6e-7."""


@dataclass(frozen=True)
class Champion:
    """The checkpoint that a product calls the best of a sweep."""

    trial: str
    step: int
    face: float
    prompt: float

    def equals(self, other: Champion | None) -> bool:
        """The same checkpoint with the same scores."""
        return (
            other is not None
            and (self.trial, self.step) == (other.trial, other.step)
            and max(abs(self.face - other.face), abs(self.prompt - other.prompt)) < SAME_SCORE
        )


@dataclass(frozen=True)
class Outcome:
    """What the product says when all runs have ended."""

    finished: tuple[str, ...]
    champion: Champion | None

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Outcome:
        """From a file."""
        return cls(tuple(raw["finished"]), Champion(**raw["champion"]) if raw["champion"] else None)


@dataclass(frozen=True)
class Verdict:
    """What a fault cost a sweep."""

    lost: int
    """Trials that had ended and are missing, unfinished or trained again at the end."""
    repeated: int
    """Optimizer steps taken more than once."""
    repeated_beyond: int
    """Those of them at or below the trial's last scored point when they were repeated."""
    champion_changed: bool
    unfinished: int
    """Trials of the sweep that are not finished at the end."""


def judge(log: Sequence[Entry], outcome: Outcome, undisturbed: Outcome) -> Verdict:
    """Compare what happened with what must not, and the end with the end of a sweep that nothing disturbed."""
    ended = {entry["trial"] for entry in log if entry["event"] == "ended"}
    repeated = list(steps_repeated(log))
    champion = undisturbed.champion
    assert champion is not None, "an undisturbed sweep has a champion"
    return Verdict(
        lost=len((ended - set(outcome.finished)) | trained_after_the_end(log)),
        repeated=len(repeated),
        repeated_beyond=sum(entry["step"] <= last_scored for entry, last_scored in repeated),
        champion_changed=not champion.equals(outcome.champion),
        unfinished=len(set(undisturbed.finished) - set(outcome.finished)),
    )


def steps_repeated(log: Sequence[Entry]) -> Iterator[tuple[Entry, int]]:
    """Every step that had been taken before, with the trial's last scored point at that moment."""
    taken: set[tuple[str, int]] = set()
    last_scored: dict[str, int] = {}
    for entry in log:
        if entry["event"] == "scored":
            last_scored[entry["trial"]] = max(entry["step"], last_scored.get(entry["trial"], 0))
        elif entry["event"] == "step":
            if (entry["trial"], entry["step"]) in taken:
                yield entry, last_scored.get(entry["trial"], 0)
            taken.add((entry["trial"], entry["step"]))


def trained_after_the_end(log: Sequence[Entry]) -> set[str]:
    """Trials that took a step after they had ended."""
    ended: set[str] = set()
    again: set[str] = set()
    for entry in log:
        if entry["event"] == "ended":
            ended.add(entry["trial"])
        elif entry["event"] == "step" and entry["trial"] in ended:
            again.add(entry["trial"])
    return again
