"""Which trial comes next: a list decided beforehand, or an Optuna study; and the thin searcher that Ray Tune asks.

The ledger is the memory. A new driver rebuilds the search from `trials/*/trial.json`: it replays the trials in the
order they were asked for, serves those that have not ended, then goes on asking. Every question to a sampler has its
own seed, made of the sweep's seed and the question's number, so that a search cut anywhere asks what it would have
asked uncut.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna
from ray.tune.search import Searcher

from sweeps.config import SweepConfig
from sweeps.results import best_checkpoint_entry
from sweeps.space import (
    METHODS,
    Choices,
    Range,
    Scalar,
    TrialConfig,
    choices_made,
    config_hash,
    contains,
    draw,
    grid,
    num_distinct,
    random_chooser,
    trial_id,
)
from sweeps.store import RunFolder, ScoredCheckpoint, TrialRecord

DEFAULT_NUM_TRIALS = 16
MAX_REPEATS = 500
"""Known configs in a row after which the space counts as used up."""
REPEATS_BEFORE_RANDOM = 20
"""Known configs in a row after which a sampler that has converged is helped by random draws."""

FLOOR_FACE_SIMILARITY = 0.0
FLOOR_PROMPT_ALIGNMENT = -1.0
"""Scores of a trial that failed by its own settings: finite, and below any that trained."""


@dataclass(frozen=True)
class Question:
    """What a search wants to know: how `config` (perhaps one already known) does."""

    number: int
    config: TrialConfig
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


# --- decided beforehand ---------------------------------------------------------------------------------------------


def listed_trials(config: SweepConfig) -> list[TrialConfig]:
    """All trials of a grid or random search, in order; the same seed gives the same list, and more trials extend it."""
    at_steps = config.evaluation.at_steps
    if config.search.sampler == "grid":
        return list(_distinct(grid(config.methods, at_steps)))
    rng = random.Random(config.search.seed)
    draws = (draw(config.methods, at_steps, random_chooser(rng)) for _ in itertools.count())
    return list(itertools.islice(_distinct(draws), num_planned(config)))


def _distinct(configs: Iterator[TrialConfig]) -> Iterator[TrialConfig]:
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

    def __init__(self, configs: Sequence[TrialConfig]) -> None:
        self._questions = (Question(number, config) for number, config in enumerate(configs))

    def ask(self) -> Question | None:
        """The next of the list."""
        return next(self._questions, None)

    def replay(self, record: TrialRecord, scores: ScoredCheckpoint | None) -> None:
        """Nothing to learn."""

    def tell(self, number: int, scores: ScoredCheckpoint | None) -> None:
        """Nothing to learn."""


# --- led by scores --------------------------------------------------------------------------------------------------


class StudySearch:
    """An Optuna study in memory.

    `tpe` maximises face similarity under the champion's condition on prompt alignment, as an Optuna constraint;
    `nsga2` maximises both scores.

    Args:
        config: the sweep.
        base_prompt_alignment: the base model's, from which the champion's condition follows.
    """

    def __init__(self, config: SweepConfig, base_prompt_alignment: float) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._config = config
        self._min_prompt_alignment = base_prompt_alignment - config.champion.prompt_alignment_margin
        self._both = config.search.sampler == "nsga2"
        self._study = optuna.create_study(directions=["maximize"] * (2 if self._both else 1))
        self._asked: dict[int, optuna.Trial] = {}
        self._number = 0

    def ask(self) -> Question | None:
        """Ask the sampler; with a seed of its own, so that the answer depends on the history alone."""
        number = self._number
        self._number += 1
        repeats = self._repeats()
        if repeats > MAX_REPEATS:
            return None
        self._study.sampler = self._sampler(number, at_random=repeats > REPEATS_BEFORE_RANDOM)
        trial = self._asked[number] = self._study.ask()
        config = self._draw(trial)
        notes = self._study.get_trials(deepcopy=False)[trial.number].system_attrs
        return Question(number, config, drawn=trial.params, notes=notes)

    def replay(self, record: TrialRecord, scores: ScoredCheckpoint | None) -> None:
        """Ask the question again with its answer fixed."""
        self._number = max(self._number, record.number + 1)
        made = choices_made(read_config(record))
        chosen: dict[str, Scalar] = {}

        def choose(name: str, value: Choices | Range) -> Scalar:
            chosen[name] = made(name, value)
            return chosen[name]

        try:
            draw(self._config.methods, self._config.evaluation.at_steps, choose)
        except LookupError:
            return  # the sweep file's space has changed since; the trial counts but teaches nothing
        fixed = {**self._still_possible(record.drawn), **chosen}
        attributes = {**record.sampler_notes, "fixed_params": fixed}  # as `enqueue_trial` does, which takes no notes
        waiting = optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING, system_attrs=attributes)
        self._study.add_trial(waiting)
        self._study.sampler = self._sampler(record.number, at_random=True)  # only for values the record lacks
        trial = self._asked[record.number] = self._study.ask()
        self._draw(trial)
        if record.is_over:
            self.tell(record.number, scores)

    def _still_possible(self, drawn: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Those of the values drawn that the space holds."""
        methods = self._config.methods
        open_values = {f"{m}/{f}": v for m, space in methods.items() for f, v in space.items()}
        return {
            name: value
            for name, value in drawn.items()
            if isinstance(space := open_values.get(name), Choices | Range) and contains(space, value)
        }

    def tell(self, number: int, scores: ScoredCheckpoint | None) -> None:
        """Close the question: with finite scores, or as failed. None stays open in the study."""
        trial = self._asked.pop(number, None)
        if trial is None:
            return
        if scores is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        if self._both:
            self._study.tell(trial, [scores.face_similarity, scores.prompt_alignment])
            return
        trial.set_constraint("prompt_alignment", self._min_prompt_alignment - scores.prompt_alignment)
        self._study.tell(trial, scores.face_similarity)

    @property
    def study(self) -> optuna.Study:
        """For reading."""
        return self._study

    def _draw(self, trial: optuna.Trial) -> TrialConfig:
        suggest = _suggesting(trial)
        if self._both:  # genes cross only where all trials have them, so the other method's are drawn along, unused
            for method, space in self._config.methods.items():
                for field, value in space.items():
                    if isinstance(value, Choices | Range):
                        suggest(f"{method}/{field}", value)
        return draw(self._config.methods, self._config.evaluation.at_steps, suggest)

    def _repeats(self) -> int:
        """Questions in a row, up to now, whose answers were known already: those closed as failed."""
        states = (trial.state for trial in reversed(self._study.get_trials(deepcopy=False)))
        return sum(1 for _ in itertools.takewhile(lambda state: state == optuna.trial.TrialState.FAIL, states))

    def _sampler(self, number: int, *, at_random: bool) -> optuna.samplers.BaseSampler:
        seed = int.from_bytes(hashlib.sha256(f"{self._config.search.seed}/{number}".encode()).digest()[:4], "big")
        if at_random:
            return optuna.samplers.RandomSampler(seed=seed)
        num_trials = num_planned(self._config)
        if self._both:  # Optuna's 50 a generation would make a sweep of 24 trials a random search
            return optuna.samplers.NSGAIISampler(population_size=min(max(4, num_trials // 4), 50), seed=seed)
        return optuna.samplers.TPESampler(n_startup_trials=min(max(4, num_trials // 4), 10), seed=seed)


def _suggesting(trial: optuna.Trial) -> Callable[[str, Choices | Range], Scalar]:
    def suggest(name: str, value: Choices | Range) -> Scalar:
        if isinstance(value, Choices):
            chosen: Scalar = trial.suggest_categorical(name, value.choices)
            return chosen
        if value.is_int:
            step = 1 if value.step is None else int(value.step)
            return int(trial.suggest_int(name, int(value.low), int(value.high), step=step, log=value.log))
        return float(trial.suggest_float(name, value.low, value.high, step=value.step, log=value.log))

    return suggest


def make_search(config: SweepConfig, base_prompt_alignment: float) -> Search:
    """The search that the sweep file names."""
    if config.search.sampler in ("grid", "random"):
        return ListSearch(listed_trials(config))
    return StudySearch(config, base_prompt_alignment)


# --- the ledger's side ----------------------------------------------------------------------------------------------


def read_config(record: TrialRecord) -> TrialConfig:
    """The trial's config as its own model.

    Raises:
        ValueError: the ledger holds a config that this version does not know.
    """
    return METHODS[record.method].model_validate(record.config)


def best_checkpoint(record: TrialRecord, config: SweepConfig, base_prompt_alignment: float) -> ScoredCheckpoint | None:
    """The trial's checkpoint that the champion rule prefers, or None where none was scored."""
    if not record.checkpoints:
        return None
    return best_checkpoint_entry(record.checkpoints, config.champion, base_prompt_alignment)


def lesson(record: TrialRecord, config: SweepConfig, base_prompt_alignment: float) -> ScoredCheckpoint | None:
    """What a search learns from an ended trial: its best scores, or the floor if its own settings made it fail."""
    best = best_checkpoint(record, config, base_prompt_alignment)
    if best is None and record.fault == "trial":
        return ScoredCheckpoint(
            step=0,
            checkpoint=None,
            images="",
            face_similarity=FLOOR_FACE_SIMILARITY,
            prompt_alignment=FLOOR_PROMPT_ALIGNMENT,
            num_images=0,
            num_faces=0,
        )
    return best


def is_complete(config: SweepConfig, folder: RunFolder) -> bool:
    """Has the ledger all trials that the sweep asks for, every one ended?"""
    records = folder.trials()
    return all(record.is_over for record in records) and len(records) >= num_planned(config)


class LedgerSearcher(Searcher):  # type: ignore[misc]  # Ray ships no types
    """Ray Tune's searcher: first the ledger's trials that have not ended, then new ones up to the sweep's number.

    Args:
        config: the sweep.
        folder: its run folder, base model's row included.
        key: what makes two trials of one config the same: see `TrialRecord.key`.
        extra: put beside `trial` and `config` into what the Trainable gets.
        at_once: trials to have with Ray at one time; more would be asked for before there are scores to learn from.
        changed: called with each record this writes.
    """

    def __init__(
        self,
        config: SweepConfig,
        folder: RunFolder,
        key: Callable[[TrialConfig], str],
        extra: dict[str, Any],
        at_once: int,
        changed: Callable[[TrialRecord], None],
    ) -> None:
        super().__init__(metric="face_similarity", mode="max")
        self._config, self._folder, self._key, self._extra = config, folder, key, extra
        self._at_once, self._changed = at_once, changed
        base = folder.base()
        assert base is not None, "the base model is scored before trials are chosen"
        self._base_prompt_alignment = base.checkpoints[0].prompt_alignment
        self.search = make_search(config, self._base_prompt_alignment)
        records = sorted(folder.trials(), key=lambda record: record.number)
        for record in records:
            self.search.replay(record, self._lesson(record))
        self._known = {record.trial for record in records}
        self._unfinished = [record for record in records if not record.is_over]
        self._num_planned = num_planned(config)
        self._numbers = {record.trial: record.number for record in records}
        self._running: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A trial for Tune's `trial_id`; None when it must wait, `FINISHED` when there are no more."""
        if len(self._running) >= self._at_once:
            return None
        record = self._unfinished.pop(0) if self._unfinished else self._new_trial()
        if record is None:
            return str(Searcher.FINISHED)
        self._running[trial_id] = record.trial
        return {"trial": record.trial, "config": record.config, **self._extra}

    def _new_trial(self) -> TrialRecord | None:
        while len(self._known) < self._num_planned:
            question = self.search.ask()
            if question is None:
                break
            trial = trial_id(question.config)
            if trial in self._known:  # the ledger has its answer already, and the search knows it
                self.search.tell(question.number, None)
                continue
            record = TrialRecord(
                trial=trial,
                method=question.config.method,
                status="running",
                config=question.config.model_dump(mode="json"),
                key=self._key(question.config),
                number=question.number,
                drawn=dict(question.drawn),
                sampler_notes=dict(question.notes),
            )
            self._folder.write(record)
            self._changed(record)
            self._known.add(trial)
            self._numbers[trial] = question.number
            return record
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A search learns from ends only."""

    def on_trial_complete(self, trial_id: str, **_: Any) -> None:
        """Tell the search what the ledger knows of the trial; Ray's own copy of the result is not consulted."""
        trial = self._running.pop(trial_id)
        record = self._folder.read(trial)
        self.search.tell(self._numbers[trial], None if record is None else self._lesson(record))

    def _lesson(self, record: TrialRecord) -> ScoredCheckpoint | None:
        return lesson(record, self._config, self._base_prompt_alignment)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the memory."""
