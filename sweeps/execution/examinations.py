"""What the driver asks for when finalists' own checkpoints are examined. It needs no torch; `examine.py` does it."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.config import EvaluationConfig
from sweeps.config import SweepConfig
from sweeps.execution.cluster import TrialResources
from sweeps.execution.task import Scoring
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.mirror import open_run
from sweeps.ledger.records import BASE_TRIAL
from sweeps.results.results import Results, read_results

PICTURES = 6
"""Of the bare instance prompt, and as many of the class prompt."""
NOISE_SEEDS = 2_000_000
"""Beyond the search's: neither it nor the second stage has these pictures."""


@dataclass(frozen=True)
class Examinations:
    """Checkpoints to examine, and with what."""

    run_dir: str
    storage: str | None
    scoring: Scoring
    """Its prompts are the instance prompt and, where there is one, the class prompt."""
    resources: TrialResources
    wanted: tuple[tuple[str, int], ...]
    """Trial and step; the base model's is 0."""

    def open_run(self) -> RunFolder:
        """The run folder as this machine has it."""
        return open_run(self.run_dir, self.storage)


def unexamined(results: Results) -> tuple[tuple[str, int], ...]:
    """Trial and step of the finalists' checkpoints and of the base model, as far as nobody has looked at them."""
    rows = {row.key: row for row in results.search_rows}
    finalists = [(finalist.trial, finalist.step) for finalist in results.finalists]
    keys = [(BASE_TRIAL, 0), *finalists] if finalists else []
    return tuple(key for key in keys if key in rows and rows[key].examination is None)


def due_examinations(config: SweepConfig, folder: RunFolder, resources: TrialResources) -> Examinations | None:
    """What is still to be examined: the finalists' checkpoints, and the base model beside them."""
    wanted = unexamined(read_results(folder.dir))
    if not wanted:
        return None
    prompts = [config.subject.instance_prompt, *([config.subject.class_prompt] if config.subject.class_prompt else [])]
    seed = (config.evaluation.seed + NOISE_SEEDS) % 2**31
    changes = {"prompts": prompts, "images_per_prompt": PICTURES, "seed": seed, "screening": None}
    evaluation: EvaluationConfig = config.evaluation.model_copy(update=changes)
    scoring = Scoring(config.base, evaluation, Scoring.of(config).rare_token)
    return Examinations(str(folder.dir), config.storage, scoring, resources, wanted)
