"""A search led by scores: an Optuna study in memory, replayed from the ledger.

Every question to a sampler has its own seed, made of the sweep's seed and the question's number, so that a search cut
anywhere asks what it would have asked uncut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna

from sweeps.asked import MAX_REPEATS, num_planned
from sweeps.config import SweepConfig
from sweeps.ledger.records import ScoredCheckpoint, TrialRecord
from sweeps.results.rule import ChampionRule
from sweeps.search.listed import Question
from sweeps.space import Choices, Range, Scalar, choices_made, contains, draw, holds
from training.config import MethodConfig

REPEATS_BEFORE_RANDOM = 20
"""Known configs in a row after which a sampler that has converged is helped by random draws."""
FIXED = "fixed_params"
"""Where Optuna notes the values that a trial was given."""
MAX_REMEMBERED = 1250
"""Answers that TPE looks at: its time a question grows with them, to a fifth of a second at 10,000."""
REMEMBERED_BEST, REMEMBERED_OTHERS = 250, 750
"""What is kept of more. TPE compares its 25 best answers with the density of all others; the former are all among the
best kept, the latter is as well known from 750."""


class StudySearch:
    """An Optuna study in memory.

    `tpe` maximises face similarity under the champion's condition on prompt alignment, as an Optuna constraint;
    `nsga2` maximises both scores.

    Args:
        config: the sweep.
        rule: the champion's, measured from the base model's score.
        starts: values that the first questions have, whatever the sampler would ask; question i those of place i.
    """

    def __init__(self, config: SweepConfig, rule: ChampionRule, starts: Sequence[Mapping[str, Scalar]] = ()) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._config = config
        self._rule = rule
        self._starts = starts
        self._both = config.search.sampler == "nsga2"
        self._num_planned = num_planned(config)
        self._study = self._new_study()
        self._num_answers = 0
        """That the study remembers."""
        self._asked: dict[int, optuna.Trial] = {}
        self._number = 0
        self._repeats = 0
        """Questions in a row, up to now, whose answers were known already."""
        self._passed_over: int | None = None
        """The last of them."""

    def ask(self) -> Question | None:
        """Ask the sampler; with a seed of its own, so that the answer depends on the history alone."""
        number = self._number
        self._number += 1
        if self._passed_over != number - 1:
            self._repeats = 0
        if self._repeats > MAX_REPEATS:
            return None
        self._forget_if_too_many()
        self._study.sampler = self._sampler(number, at_random=self._repeats > REPEATS_BEFORE_RANDOM)
        if number < len(self._starts):  # by its number, so that a cut search goes on with those that are left
            self._study.enqueue_trial(dict(self._starts[number]))
        trial = self._asked[number] = self._study.ask()
        config = self._draw(trial)
        attributes = self._study.get_trials(deepcopy=False)[trial.number].system_attrs
        notes = {name: value for name, value in attributes.items() if name != FIXED}
        return Question(number, config, drawn=trial.params, notes=notes)

    def replay(self, record: TrialRecord, scores: ScoredCheckpoint | None) -> None:
        """Ask the question again with its answer fixed."""
        self._number = max(self._number, record.number + 1)
        if not holds(self._config.methods, self._config.evaluation.at_steps, record.method_config):
            return  # of a space that the sweep file has no longer
        made = choices_made(record.method_config)
        chosen: dict[str, Scalar] = {}

        def choose(name: str, value: Choices | Range) -> Scalar:
            chosen[name] = made(name, value)
            return chosen[name]

        draw(self._config.methods, self._config.evaluation.at_steps, choose)
        self._forget_if_too_many()
        self._ask_with(record.number, {**self._still_possible(record.drawn), **chosen}, record.sampler_notes)
        if record.is_over:
            self.tell(record.number, scores)

    def _ask_with(self, number: int, fixed: Mapping[str, Scalar], notes: Mapping[str, Any]) -> None:
        """Open question `number` with these values, as `enqueue_trial` does, which takes no notes."""
        attributes = {**notes, FIXED: dict(fixed)}
        waiting = optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING, system_attrs=attributes)
        self._study.add_trial(waiting)
        self._study.sampler = self._sampler(number, at_random=True)  # only for values that are not given
        trial = self._asked[number] = self._study.ask()
        self._draw(trial)

    def _forget_if_too_many(self) -> None:
        """Begin a study with the best answers and an even choice of the others, the open questions opened again.

        NSGA-II looks at its last generation, whose parents are in the history, so its study keeps everything.
        """
        if self._both or self._num_answers <= MAX_REMEMBERED:
            return
        before, open_questions = self._study, self._asked
        answers = before.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        kept = _worth_remembering(answers)
        self._study, self._num_answers, self._asked = self._new_study(), len(kept), {}
        self._study.add_trials(kept)
        known = before.get_trials(deepcopy=False)
        for number, trial in open_questions.items():
            self._ask_with(number, trial.params, known[trial.number].system_attrs)

    def _new_study(self) -> optuna.Study:
        return optuna.create_study(directions=["maximize"] * (2 if self._both else 1))

    def _still_possible(self, drawn: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Those of the values drawn that the space holds."""
        methods = self._config.methods
        open_values = {f"{m}/{f}": v for m, space in methods.items() for f, v in space.items()}
        return {
            name: value
            for name, value in drawn.items()
            if isinstance(space := open_values.get(name), Choices | Range) and contains(space, value)
        }

    def pass_over(self, number: int) -> None:
        """Close the question without an answer: its config is known already."""
        self._repeats += 1
        self._passed_over = number
        self.tell(number, None)

    def tell(self, number: int, scores: ScoredCheckpoint | None) -> None:
        """Close the question: with finite scores, or as failed. None stays open in the study."""
        trial = self._asked.pop(number, None)
        if trial is None:
            return
        if scores is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        self._num_answers += 1
        if self._both:
            self._study.tell(trial, [scores.face_similarity, scores.prompt_alignment])
            return
        trial.set_constraint("prompt_alignment", self._rule.slack(scores))
        self._study.tell(trial, scores.face_similarity)

    @property
    def study(self) -> optuna.Study:
        """For reading."""
        return self._study

    def _draw(self, trial: optuna.Trial) -> MethodConfig:
        suggest = _suggesting(trial)
        if self._both:  # genes cross only where all trials have them, so the other method's are drawn along, unused
            for method, space in self._config.methods.items():
                for field, value in space.items():
                    if isinstance(value, Choices | Range):
                        suggest(f"{method}/{field}", value)
        return draw(self._config.methods, self._config.evaluation.at_steps, suggest)

    def _sampler(self, number: int, *, at_random: bool) -> optuna.samplers.BaseSampler:
        seed = int.from_bytes(hashlib.sha256(f"{self._config.search.seed}/{number}".encode()).digest()[:4], "big")
        if at_random:
            return optuna.samplers.RandomSampler(seed=seed)
        num_trials = self._num_planned
        if self._both:  # Optuna's 50 a generation would make a sweep of 24 trials a random search
            return optuna.samplers.NSGAIISampler(population_size=min(max(4, num_trials // 4), 50), seed=seed)
        num_random = min(max(4, num_trials // 4), 10)  # beside what is given: starts lie close together
        return optuna.samplers.TPESampler(n_startup_trials=len(self._starts) + num_random, seed=seed)


def _worth_remembering(answers: Sequence[optuna.trial.FrozenTrial]) -> list[optuna.trial.FrozenTrial]:
    """The best, by TPE's own order, and of the others an even choice over time; oldest first."""

    def order(answer: optuna.trial.FrozenTrial) -> tuple[float, float]:
        slack = sum(value for value in answer.constraints.values() if value > 0)
        return (slack, -(answer.value or 0.0) if slack <= 0 else 0.0)

    best = {answer.number for answer in sorted(answers, key=order)[:REMEMBERED_BEST]}
    others = [answer.number for answer in answers if answer.number not in best]
    chosen = {others[i * len(others) // REMEMBERED_OTHERS] for i in range(REMEMBERED_OTHERS)}
    return [answer for answer in answers if answer.number in best | chosen]


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
