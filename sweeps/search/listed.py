"""What comes next where it is decided beforehand, and what every search is asked and told. Without Optuna or Ray."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sweeps.config import SweepConfig
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import config_hash
from sweeps.ledger.records import ScoredCheckpoint, TrialRecord
from sweeps.results.rule import ChampionRule
from sweeps.space import Scalar, draw, grid, num_distinct, random_chooser
from training.config import MethodConfig

DEFAULT_NUM_TRIALS = 16
MAX_REPEATS = 500
"""Known configs in a row after which the space counts as used up."""

FLOOR_FACE_SIMILARITY = 0.0
FLOOR_PROMPT_ALIGNMENT = -1.0
"""Scores of a trial that failed by its own settings: finite, and below any that trained."""


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

    def tell(self, number: int, scores: ScoredCheckpoint | None) -> None:
        """The best checkpoint of the trial that answers question `number`; None where nothing can be learnt."""


def listed_trials(config: SweepConfig) -> list[MethodConfig]:
    """All trials of a grid or random search, in order; the same seed gives the same list, and more trials extend it."""
    at_steps = config.evaluation.at_steps
    if config.search.sampler == "grid":
        return list(_distinct(grid(config.methods, at_steps)))
    rng = random.Random(config.search.seed)
    draws = (draw(config.methods, at_steps, random_chooser(rng)) for _ in itertools.count())
    return list(itertools.islice(_distinct(draws), num_planned(config)))


def _distinct(configs: Iterator[MethodConfig]) -> Iterator[MethodConfig]:
    seen: set[str] = set()
    repeats = 0
    for config in configs:
        key = config_hash(config)
        repeats = repeats + 1 if key in seen else 0
        if repeats == 0:
            seen.add(key)
            yield config
        elif repeats > MAX_REPEATS:
            return


def num_planned(config: SweepConfig) -> int:
    """How many trials the sweep will have: as many as were asked for, if the space holds them."""
    if config.search.sampler == "grid":
        return len(listed_trials(config))
    wanted = config.search.num_trials or DEFAULT_NUM_TRIALS
    return num_distinct(config.methods, config.evaluation.at_steps, wanted)


class ListSearch:
    """Grid and random search: what comes next depends on nothing that was found."""

    def __init__(self, configs: Sequence[MethodConfig]) -> None:
        self._questions = (Question(number, config) for number, config in enumerate(configs))

    def ask(self) -> Question | None:
        """The next of the list."""
        return next(self._questions, None)

    def replay(self, record: TrialRecord, scores: ScoredCheckpoint | None) -> None:
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
        face_similarity=FLOOR_FACE_SIMILARITY,
        prompt_alignment=FLOOR_PROMPT_ALIGNMENT,
        num_images=0,
        num_faces=0,
    )


def is_complete(config: SweepConfig, folder: RunFolder) -> bool:
    """Has the ledger all trials that the sweep asks for, every one ended?"""
    records = folder.trials()
    return all(record.is_over for record in records) and len(records) >= num_planned(config)
