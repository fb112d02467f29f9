"""What comes next where it is decided beforehand, and what every search is asked and told. Without Optuna or Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sweeps.asked import asked_for, num_planned
from sweeps.config import SweepConfig
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import ScoredCheckpoint, TrialRecord
from sweeps.results.rule import ChampionRule
from sweeps.space import Scalar
from training.config import MethodConfig

FLOOR = -2.0
"""Both scores of a trial that failed by its own settings: finite, and below the cosines, in [-1, 1], of all others."""


@dataclass(frozen=True)
class Question:
    """What a search wants to know: how `config` (perhaps one already known) does."""

    number: int
    config: MethodConfig
    drawn: Mapping[str, Scalar] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Everything the sampler drew, and what it keeps of it: by these it takes the question up again."""


class Search(Protocol):
    """Proposes configs and hears how they did."""

    def ask(self) -> Question | None:
        """The next question, or None when there are no more."""

    def replay(self, record: TrialRecord, scores: ScoredCheckpoint | None) -> None:
        """Take up a trial of an earlier driver: its scores if it has ended, None if it will end later or had none."""

    def pass_over(self, number: int) -> None:
        """Question `number` has an answer already, from another question."""

    def tell(self, number: int, scores: ScoredCheckpoint | None) -> None:
        """The best checkpoint of the trial that answers question `number`; None where nothing can be learnt."""


class ListSearch:
    """Grid and random search: what comes next depends on nothing that was found."""

    def __init__(self, configs: Sequence[MethodConfig]) -> None:
        self._questions = (Question(number, config) for number, config in enumerate(configs))

    def ask(self) -> Question | None:
        """The next of the list."""
        return next(self._questions, None)

    def replay(self, record: TrialRecord, scores: ScoredCheckpoint | None) -> None:
        """Nothing to learn."""

    def pass_over(self, number: int) -> None:
        """Nothing to learn."""

    def tell(self, number: int, scores: ScoredCheckpoint | None) -> None:
        """Nothing to learn."""


def lesson(record: TrialRecord, rule: ChampionRule) -> ScoredCheckpoint | None:
    """What a search learns from an ended trial: its best scores, or the floor if its own settings made it fail."""
    if record.checkpoints:
        return rule.best(record.checkpoints)
    if record.fault != "trial":
        return None
    return ScoredCheckpoint(
        step=0,
        checkpoint=None,
        images=None,
        face_similarity=FLOOR,
        prompt_alignment=FLOOR,
        num_images=0,
        num_faces=0,
    )


def trials_asked_for(config: SweepConfig, folder: RunFolder) -> list[TrialRecord]:
    """Those of the ledger's trials that the sweep file asks for as it is now, oldest first."""
    is_asked_for = asked_for(config)
    return [record for record in folder.trials() if is_asked_for(record.method_config)]


def is_complete(config: SweepConfig, folder: RunFolder) -> bool:
    """Has the ledger all trials that the sweep asks for, every one ended? Trials of another space do not count."""
    return have_ended(trials_asked_for(config, folder), num_planned(config))


def have_ended(records: Sequence[TrialRecord], num_planned: int) -> bool:
    """Are these all planned trials, every one ended?"""
    return all(record.is_over for record in records) and len(records) >= num_planned
