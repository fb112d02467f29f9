"""What a sweep does before its trials and after them, as the driver asks the trials' servers for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ray.exceptions import RayError

from sweeps.config import SweepConfig
from sweeps.execution.cluster import TrialResources
from sweeps.execution.controls import send_controls
from sweeps.execution.examinations import due_examinations
from sweeps.execution.full_scores import FullScores, batches_of
from sweeps.execution.jobs import do_jobs
from sweeps.execution.preparation import Preparation, prepare_subject
from sweeps.execution.second_stage import SecondStage
from sweeps.execution.servers import TrialServers
from sweeps.execution.task import Job, Scoring
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import BASE_TRIAL
from sweeps.renders import due_renders
from sweeps.results.leaderboard import Row
from sweeps.results.results import Results, read_results
from sweeps.results.screening import due_full_scores
from sweeps.results.work import account_of, seconds_by_stage
from sweeps.results.work_file import read_work, work_file, write_work
from sweeps.wording import failure_text
from training.errors import UserError
from training.passes import Pass
from training.share import Share

STAGES = "sweeps.execution.stages"
SCORE_IN_FULL = "sweeps.execution.score_in_full:score_in_full"
Measure = Callable[[Collection[Pass]], Mapping[Pass, int] | None]
"""Tells the FLOPs of a sample of each kind."""


@dataclass(frozen=True)
class AroundTrials:
    """The once-a-sweep work of one run."""

    config: SweepConfig
    folder: RunFolder
    servers: TrialServers
    resources: TrialResources
    """Of a job."""
    say: Callable[[str], None]
    """Tells the user."""

    def prepare(self) -> None:
        """Photos here, everything that needs the base model where trials run.

        Raises:
            UserError: a photo, a model or a text cannot be used.
        """
        config, folder = self.config, self.folder
        self.say("preparing the photos")
        for remark in prepare_subject(config, folder):
            self.say(f"mind: {remark}")
        folder.push(folder.identity_file, folder.dataset_dir)
        asked = replace(
            Preparation.of(config, folder, self.resources.device, self.resources.cpus),
            render=send_controls(config.render, folder),
        )
        num_processes = min(self.servers.room, asked.num_class_images)
        shares = [Share(rank, num_processes) for rank in range(num_processes)]
        self._have_done([Job(f"{STAGES}:check_models_and_encode_photos", (asked,))])
        self._have_done([Job(f"{STAGES}:draw_share_of_class_images", (asked, share)) for share in shares])
        self._have_done([Job(f"{STAGES}:finish_preparation", (asked,))])
        folder.pull(folder.identity_file, folder.dataset_dir, folder.trial_dir(BASE_TRIAL))

    def score_base_for(self, stage: SecondStage) -> None:
        """The base model's scores of the finalists' pictures, as far as they are not there."""
        config, folder = stage.with_pictures(stage.most_images_per_prompt), self.folder.confirm
        folder.pull(folder.trial_dir(BASE_TRIAL))
        base = folder.base()
        if base is None or base.checkpoints[0].num_images < config.evaluation.num_images:
            self.say("scoring the base model on the held-back prompts")
            asked = FullScores(str(folder.dir), config.storage, Scoring.of(config), self.resources, folder.ledger)
            self._have_done([Job(f"{STAGES}:score_base_again", (asked,))])
            folder.pull(folder.trial_dir(BASE_TRIAL))

    def examine_finalists(self) -> None:
        """Whether their own checkpoints copy photos; a failure here loses nothing."""
        asked = due_examinations(self.config, self.folder, self.resources)
        if asked is None:
            return
        try:
            self._have_done([Job("sweeps.execution.examine:examine", (asked,))])
        except RayError as error:
            self.say(f"not examined for copies: {_reason(error)}")
        finally:
            self.folder.pull(self.folder.trials_dir, ending="trial.json")

    def draw_more_for(self, stage: SecondStage) -> None:
        """Pictures that the finalists' trainings are to have and lack; a failure here loses nothing."""
        folder = self.folder.confirm
        for images_per_prompt, rows in stage.lacking(folder):
            self.say(f"drawing more pictures of {len(rows)} trainings")
            if not self._score_in_full(stage.with_pictures(images_per_prompt), folder, rows):
                return

    def score_best_in_full(self) -> None:
        """Where checkpoints are screened, all pictures of those that could still win; a failure here loses nothing.

        Raises:
            UserError: a checkpoint is damaged.
        """
        while due := due_full_scores(read_results(self.folder.dir), self.config.evaluation):
            self.say(f"scoring the best {len(due)} checkpoints in full")
            if not self._score_in_full(self.config, self.folder, due):
                return

    def _score_in_full(self, config: SweepConfig, folder: RunFolder, rows: Sequence[Row]) -> bool:
        """Have checkpoints scored by all pictures of the config; False where machines did not let it."""
        asked = FullScores(str(folder.dir), config.storage, Scoring.of(config), self.resources, folder.ledger)
        batches = batches_of(rows, folder, self.servers.room, config.resources.pack_size)
        try:
            self._have_done([Job(SCORE_IN_FULL, (asked, each)) for each in batches])
        except RayError as error:
            self.say(f"not all are scored in full: {_reason(error)}")
            return False
        finally:
            folder.pull(folder.trials_dir, ending="trial.json")
        return True

    def render_best(self) -> None:
        """Renders where trials run; a failure here leaves the trained and scored trials as good as they are."""
        folder, asked = self.folder, due_renders(self.config, self.folder)
        if asked is None:
            return
        asked = replace(asked, render=send_controls(asked.render, folder) or asked.render)
        try:
            self._have_done([Job(f"{STAGES}:render_where_trials_run", (asked, str(folder.dir), self.config.storage))])
            folder.pull(folder.renders_dir)
        except (RayError, UserError) as error:
            self.say(f"no renders: {_reason(error)}; repeat them with: dreamsweep render {folder.dir}")

    def count_work(self) -> None:
        """Write down what was computed, measured where the base model's code is loaded already."""

        def measure(kinds: Collection[Pass]) -> Mapping[Pass, int] | None:
            job = Job(f"{STAGES}:measure_costs", (kinds, self.config.base))
            (costs,) = do_jobs([job], self.servers, self.resources)
            return costs  # type: ignore[no-any-return]

        with suppress(RayError):  # it is then measured by the driver
            write_work_of(read_results(self.folder.dir), measure)

    def _have_done(self, jobs: Sequence[Job]) -> None:
        for said in do_jobs(jobs, self.servers, self.resources):
            self.say(said)


def write_work_of(results: Results, measure: Measure) -> Path:
    """Write down what was computed, and what it would have taken otherwise; what was measured before is kept."""
    account, written = account_of(results), read_work(results.folder)
    known = {} if written is None else {cost.kind: cost.flops for cost in written.costs}
    unknown = account.kinds - known.keys()
    measured = measure(unknown) if unknown else {}
    costs = None if measured is None else {**known, **measured}
    return write_work(results.folder, work_file(account, costs, seconds_by_stage(results)))


def measure_here(kinds: Collection[Pass], base_model: str) -> Mapping[Pass, int] | None:
    """By this process, which must load the base model's code for it."""
    from training.flops import flops_of  # heavy

    return flops_of(kinds, base_model)


def _reason(error: Exception) -> str:
    return failure_text(getattr(error, "cause", None) or error)
