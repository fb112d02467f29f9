"""The second stage as the driver runs it: a sweep of listed trainings, with a ledger of its own in the run folder.

Trials, packs, servers, retries and going on are the search's; what differs is who is trained and what is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sweeps.config import ConfirmConfig, ListedSweep, SweepConfig
from sweeps.confirm import confirm_evaluation, confirm_of
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import trial_id
from sweeps.results.finalists import Finalist, read_asked, trainings_of
from sweeps.results.leaderboard import Row, rows_of
from sweeps.results.results import Results, read_results
from training.config import MethodConfig


@dataclass(frozen=True)
class SecondStage:
    """What is still to be done for the finalists."""

    sweep: SweepConfig
    finalists: tuple[Finalist, ...]
    trainings: tuple[tuple[Finalist, MethodConfig], ...]
    """Of each finalist, the first seed of all before the second of any."""

    @property
    def _confirm(self) -> ConfirmConfig:
        return confirm_of(self.sweep) or ConfirmConfig()

    @property
    def config(self) -> ListedSweep:
        """The trainings as a sweep; each is scored at its end, by the pictures that all of them have."""
        fewest = min(finalist.images_per_prompt for finalist in self.finalists)
        evaluation = confirm_evaluation(self.sweep, self._confirm, fewest)
        at_steps = [max(finalist.step for finalist in self.finalists)]
        changes = {
            "name": f"{self.sweep.name}-finalists",
            "search": self.sweep.search.model_copy(update={"early_stopping": "none"}),
            "evaluation": evaluation.model_copy(update={"at_steps": at_steps}),
            "trainings": tuple(training for _, training in self.trainings),
        }
        return ListedSweep.model_construct(**{**dict(self.sweep), **changes})

    def with_pictures(self, images_per_prompt: int) -> SweepConfig:
        """The sweep as it is scored by so many pictures of each prompt."""
        evaluation = confirm_evaluation(self.sweep, self._confirm, images_per_prompt)
        return self.config.model_copy(update={"evaluation": evaluation})

    @property
    def most_images_per_prompt(self) -> int:
        """Of any finalist: the base model has as many."""
        return max(finalist.images_per_prompt for finalist in self.finalists)

    def lacking(self, folder: RunFolder) -> Iterator[tuple[int, list[Row]]]:
        """Scored trainings that lack pictures, by the number for each prompt that they are to have."""
        wanted = {trial_id(training): finalist.images_per_prompt for finalist, training in self.trainings}
        num_prompts = len(self.config.evaluation.prompts)
        rows = [row for record in folder.trials() if record.trial in wanted for row in rows_of(record)]
        for images_per_prompt in sorted(set(wanted.values())):
            lacking = [
                row
                for row in rows
                if wanted[row.trial] == images_per_prompt and row.num_images < images_per_prompt * num_prompts
            ]
            if lacking:
                yield images_per_prompt, lacking


def due_stage(config: SweepConfig, folder: RunFolder) -> SecondStage | None:
    """The second stage, unless there is none or all of it is there.

    Raises:
        UserError: what `dreamsweep confirm` was asked for cannot be read.
    """
    read_asked(folder)
    results = read_results(folder.dir)
    return None if not results.finalists or results.confirmations.is_whole else stage_of(config, results)


def stage_of(config: SweepConfig, results: Results) -> SecondStage:
    """The second stage of a run as it stands."""
    trials = {trial.trial: trial for trial in results.trials}
    each = [[(finalist, training) for training in trainings_of(finalist, trials)] for finalist in results.finalists]
    in_turn = [trainings[place] for place in range(max(map(len, each))) for trainings in each if trainings[place:]]
    return SecondStage(config, results.finalists, tuple(in_turn))
