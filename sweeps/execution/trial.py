"""One trial: train, generate, score, report. The one place where the rooms meet.

It works in the run folder, so that a worker that takes over from a dead one finds everything there. The ledger is
written before Ray hears of a scoring point: what Ray knows may be lost, what the ledger knows may not.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.result import DONE

from sweeps.config import ChampionConfig, SweepConfig
from sweeps.execution.cluster import TrialResources
from sweeps.execution.failures import TRACEBACK_FILE, keep_traceback
from sweeps.execution.lines import scores_text, step_text
from sweeps.execution.machines import elsewhere, this_machine
from sweeps.execution.same_models import check_same_models, check_seen
from sweeps.execution.scoring import Scoring, score_checkpoint, use_threads
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import trial_name
from sweeps.ledger.mirror import open_run
from sweeps.ledger.records import BASE_TRIAL, TrialRecord
from sweeps.results.rule import ChampionRule
from sweeps.search.listed import lesson
from sweeps.space import scoring_points
from sweeps.wording import bytes_text, failure_text
from training.checkpoint import Checkpoint, latest_checkpoint, open_checkpoint
from training.dataset import load_dataset
from training.errors import DivergedError, UserError
from training.layout import STATE_FILE
from training.stats import STATS_FILE, read_stats
from training.train import train

LOG = logging.getLogger(__name__)
SHARE_OF_OTHERS = 0.05
"""Of a GPU's memory that may be in other hands (the desktop, the driver itself) for a trial to count as alone on it."""


@dataclass(frozen=True)
class TrialTask:
    """What every trial of a sweep is given by the driver, besides its own hyperparameters."""

    run_dir: str
    storage: str | None
    cpus: float
    gpus: float
    scoring: Scoring
    champion: ChampionConfig

    @classmethod
    def of(cls, config: SweepConfig, folder: RunFolder, resources: TrialResources) -> TrialTask:
        """As the sweep file says, on these resources."""
        return cls(
            run_dir=str(folder.dir),
            storage=config.storage,
            cpus=resources.cpus,
            gpus=resources.gpus,
            scoring=Scoring.of(config),
            champion=config.champion,
        )


class SweepTrial(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """A trial as Ray Tune runs it: one `step()` a scoring point, named by its `repr` on the dashboard.

    Its config holds `trial`, the trial's own `config`, the sweep's `task`, a `TrialTask`, and `avoid`, Ray's names of
    machines that it must not be started on.

    What the settings themselves cause is written down and reported as a result. Any other exception leaves `step`: the
    driver retries it elsewhere.

    Its worker's log, which the dashboard keeps with the dead actor, has a line a scoring point and one for how it
    ended. No text of the user's is in it.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """One bundle of the trial's CPUs and GPUs."""
        task: TrialTask = config["task"]
        selectors = {"bundle_label_selector": [elsewhere(config["avoid"])]} if config["avoid"] else {}
        return tune.PlacementGroupFactory([{"CPU": task.cpus, "GPU": task.gpus}], **selectors)

    def setup(self, config: dict[str, Any]) -> None:
        """Find the trial in the ledger; nothing heavy yet, since an error here would count as the machine's."""
        _log_to_stderr()
        self._task: TrialTask = config["task"]
        self._folder = open_run(self._task.run_dir, self._task.storage)
        self._folder.pull(self._folder.dataset_dir, self._folder.trial_file(BASE_TRIAL))
        self._folder.pull(self._folder.trial_dir(config["trial"]), without=("images-*",))
        self._device = "cuda" if self._task.gpus else "cpu"
        self._folder.pull(self._folder.identity_file)
        check_seen(self._folder)
        record = self._folder.read(config["trial"])
        assert record is not None, "the searcher writes a trial before Ray starts it"
        self._record = record
        self._hyperparameters = record.method_config
        self._name = trial_name(self._hyperparameters)
        if record.spares_memory:
            self._spare_memory()
        self._since = time.monotonic()
        self._points: Iterator[Checkpoint] | None = None
        base = self._folder.base()
        assert base is not None, "the base model is scored before trials start"
        self._rule = ChampionRule.of(self._task.champion, base)
        if record.is_over:
            return  # an earlier driver's worker ended it after this driver had read the ledger
        began_before = record.started is not None
        self._write(
            status="running",
            reason=None,
            fault=None,
            started=record.started or datetime.now(UTC).isoformat(timespec="seconds"),
            num_restarts=record.num_restarts + began_before,
            **this_machine(),
        )

    def __repr__(self) -> str:
        """`lora_r16_lr1e-4`: Ray shows it for the actor, its tasks and its log lines."""
        return getattr(self, "_name", "trial")

    def step(self) -> dict[str, Any]:
        """Train up to the next scoring point, score it, write it down, then report it."""
        if not self._record.is_over:
            try:
                self._score_next_or_fail()
            except Exception as error:  # whatever it is: it is noted and goes on its way
                kind = type(error).__name__  # not its text, which may name files of the user's
                self._log(f"failed on this machine: {kind}; {TRACEBACK_FILE} in its folder says more")
                raise
        return report_of(self._record, self._rule)

    def _score_next_or_fail(self) -> None:
        """Score the next point, or write down that the trial's own settings do not let it."""
        try:
            self._score_next_sparing_memory()
        except DivergedError as error:
            self._fail(error)
        except torch.OutOfMemoryError as error:
            _check_alone_on_gpu(self._task.gpus, error)
            self._fail(error)

    def _score_next_sparing_memory(self) -> None:
        """Score the next point; where GPU memory runs out, once more with gradient checkpointing."""
        try:
            self._score_next()
        except torch.OutOfMemoryError:
            if self._hyperparameters.gradient_checkpointing:
                raise
            self._write(spares_memory=True)
        else:
            return
        self._spare_memory()
        self._score_next()

    def _spare_memory(self) -> None:
        self._hyperparameters = self._hyperparameters.model_copy(update={"gradient_checkpointing": True})
        self._let_go()

    def _fail(self, error: Exception) -> None:
        """The same settings would meet it again: written down for good."""
        self._folder.drop_training_state(self._record.trial)
        text = "".join(traceback.format_exception(error))
        keep_traceback(self._folder, self._record.trial, self._record.machine, text)
        self._folder.push(self._folder.trial_dir(self._record.trial))
        self._write(status="failed", fault="trial", reason=failure_text(error))
        self._log_outcome(self._record)

    def _score_next(self) -> None:
        if self._points is None:
            use_threads(self._task.cpus)
            check_same_models(self._folder, self._task.scoring.base_model, self._task.scoring.evaluation)
            self._points = self._unscored_checkpoints()
        checkpoint = next(self._points)
        self._folder.check_there()
        scored = score_checkpoint(self._task.scoring, self._folder, self._record.trial, checkpoint, self._device)
        is_last = checkpoint.step == self._scoring_points[-1]
        without = (STATE_FILE,) if is_last else ()  # which nothing will go on from
        self._folder.push(self._folder.trial_dir(self._record.trial), without=without)  # before the ledger speaks of it
        self._write(
            checkpoints=(*self._record.checkpoints, scored.model_copy(update=self._progress(checkpoint.step))),
            status="finished" if is_last else "running",
        )
        self._log(f"{step_text(checkpoint.step, self._hyperparameters.max_train_steps)}  {scores_text(scored)}")
        if is_last:  # only now: until the ledger has its score, a worker that takes over would have to begin anew
            self._folder.drop_training_state(self._record.trial)
            self._log_outcome(self._record)

    def _progress(self, step: int) -> dict[str, float | None]:
        """Seconds of the trial's life so far and the mean loss since the scoring point before, whoever trained it."""
        before = self._record.checkpoints[-1].step if self._record.checkpoints else 0
        stats = read_stats(self._folder.trial_dir(self._record.trial) / STATS_FILE)
        losses = [taken.loss for taken in stats if before < taken.step <= step]
        return {"seconds": self._seconds(), "loss": sum(losses) / len(losses) if losses else None}

    @property
    def _scoring_points(self) -> list[int]:
        return scoring_points(self._hyperparameters, self._task.scoring.evaluation.at_steps)

    def _unscored_checkpoints(self) -> Iterator[Checkpoint]:
        """The trial's checkpoints still to be scored: those that a dead worker left, then those still to be trained.

        Points before the newest scored one are passed over, asked for too late: a scored checkpoint is never written
        again, and the ledger stays in the order of steps.
        """
        trial_dir, base_model = self._folder.trial_dir(self._record.trial), self._task.scoring.base_model
        reached = self._record.checkpoints[-1].step if self._record.checkpoints else 0
        due = [step for step in self._scoring_points if step > reached]
        left = list(whole_checkpoints(trial_dir, due, base_model))
        yield from left
        due = due[len(left) :]
        if due:
            latest = latest_checkpoint(trial_dir, base_model)
            # One that lies beyond what is due is no help: the first point is then reached from the start, equally.
            resume_from = latest if latest is not None and latest.step < due[0] else None
            self._folder.check_there()
            yield from self._train(trial_dir, due, resume_from)

    def _train(self, trial_dir: Path, due: Sequence[int], resume_from: Checkpoint | None) -> Iterator[Checkpoint]:
        dataset = load_dataset(self._folder.dataset_dir, self._task.scoring.base_model)
        return train(self._hyperparameters, dataset, due, resume_from, out_dir=trial_dir, device=self._device)

    def _write(self, **changes: Any) -> None:
        self._record = self._record.model_copy(update={**changes, "seconds": self._seconds()})
        self._since = time.monotonic()
        self._folder.write(self._record)

    def _seconds(self) -> float:
        return self._record.seconds + time.monotonic() - self._since

    def _log(self, text: str) -> None:
        LOG.info("%s  %s", self._record.trial, text)

    def _log_outcome(self, record: TrialRecord) -> None:
        reason = f": {record.reason}" if record.reason else ""
        best = self._rule.best(record.checkpoints) if record.checkpoints else None
        self._log(f"{record.status}{reason}" + (f"  best step {best.step}  {scores_text(best)}" if best else ""))

    def cleanup(self) -> None:
        """Let go of the models; the last that a worker hears.

        The driver writes a trial that early stopping ends into the ledger before Tune lets its worker go.
        """
        if not self._record.is_over:
            record = self._folder.read(self._record.trial)
            if record is not None and record.status == "stopped":
                self._log_outcome(record)
            else:
                self._log("let go of by the driver before its end")
        self._let_go()

    def _let_go(self) -> None:
        self._points = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A pointer: weights and optimizer lie in the run folder."""
        (Path(checkpoint_dir) / "trial.txt").write_text(self._record.trial)

    def load_checkpoint(self, checkpoint: object) -> None:
        """Nothing to load: `setup` found everything in the run folder."""


def _log_to_stderr() -> None:
    """Let this file's lines through: a worker of Ray has no handler for them, and every library's are too many."""
    if not LOG.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
        LOG.addHandler(handler)
        LOG.setLevel(logging.INFO)
        LOG.propagate = False


def whole_checkpoints(trial_dir: Path, steps: Sequence[int], base_model: str) -> Iterator[Checkpoint]:
    """The checkpoints of these steps, up to the first that is not there or not whole."""
    for step in steps:
        try:
            yield open_checkpoint(trial_dir / f"checkpoint-{step}", base_model)
        except UserError:
            return


def _check_alone_on_gpu(gpus: float, error: torch.OutOfMemoryError) -> None:
    """Let pass a lack of memory that is the trial's own: it had the whole GPU to itself.

    Raises:
        RuntimeError: others hold a part of the GPU, so the same settings may have room elsewhere.
    """
    free, total = torch.cuda.mem_get_info()
    others = total - free - torch.cuda.memory_reserved()
    if gpus >= 1 and others <= SHARE_OF_OTHERS * total:
        return
    raise RuntimeError(
        f"out of GPU memory, of which others hold {bytes_text(max(0, others))} of {bytes_text(total)}; "
        "resources.gpus_per_trial: 1 gives every trial a GPU of its own"
    ) from error


def report_of(record: TrialRecord, rule: ChampionRule) -> dict[str, Any]:
    """A trial's metrics for Ray: of its newest checkpoint while it runs, of its best one (`best_step`) at its end.

    Every metric is there and finite, always.
    """
    newest = record.checkpoints[-1] if record.checkpoints else None
    best = rule.best(record.checkpoints) if record.checkpoints else None
    shown = lesson(record, rule) if record.is_over else newest
    assert shown is not None, "a trial reports when it has a score or has failed"
    return {
        "trial": record.trial,
        "step": newest.step if newest else 0,
        "best_step": best.step if best else 0,
        "face_similarity": shown.face_similarity,
        "prompt_alignment": shown.prompt_alignment,
        "champion_score": rule.number(shown),
        "num_images": shown.num_images,
        "num_faces": shown.num_faces,
        "failed": record.status == "failed",
        DONE: record.is_over,
    }
