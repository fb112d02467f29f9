"""One trial: train, generate, score, report. The one place where the rooms meet.

It works in the run folder, so that a worker that takes over from a dead one finds everything there. The ledger is
written before Ray hears of a scoring point: what Ray knows may be lost, what the ledger knows may not.
"""

from __future__ import annotations

import logging
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.result import DONE

from sweeps.execution.cluster import TrialResources
from sweeps.execution.ends import OutOfGpuMemory, Preempted, heeding_sigterm
from sweeps.execution.failures import TRACEBACK_FILE, keep_traceback
from sweeps.execution.lines import scores_text, step_text
from sweeps.execution.machines import MachineError, check_seen, elsewhere, this_machine
from sweeps.execution.server import Seat, ServerAddress
from sweeps.execution.task import TrialTask, WorkerRecipe
from sweeps.ledger.identity import trial_name
from sweeps.ledger.records import BASE_TRIAL, TrialRecord
from sweeps.ledger.storage import StorageError
from sweeps.results.rule import ChampionRule
from sweeps.search.listed import lesson
from sweeps.wording import failure_text
from training.errors import DivergedError, UserError
from training.layout import STATE_FILE
from training.share import ALONE
from training.stats import STATS_FILE, read_stats

if TYPE_CHECKING:
    from sweeps.execution.worker import TrialWorker
    from sweeps.execution.workers import TrialWorkers

LOG = logging.getLogger(__name__)
BESIDE_A_SERVER = 0.001
"""Of Ray's resource that stands for a machine, of which each has 1: so many trials may be there at one time."""


class SweepTrial(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """A trial as Ray Tune runs it: one `step()` a scoring point, named by its `repr` on the dashboard.

    Its config holds `trial`, the trial's own `config`, the sweep's `task`, a `TrialTask`, and `avoid`, Ray's names of
    machines that it must not be started on. Where a trial server computes for it, `server` is its address and `pack`
    the trials that it trains with; it is then a light process beside the server.

    What the settings themselves cause is written down and reported as a result. Any other exception leaves `step`: the
    driver retries it elsewhere. So does `Preempted`, when SIGTERM announces that the machine goes; training since the
    last scoring point is then in a checkpoint, from which the next worker goes on.

    Its worker's log, which the dashboard keeps with the dead actor, has a line a scoring point and one for how it
    ended. No text of the user's is in it.
    """

    worker_class = "sweeps.execution.worker:TrialWorker"
    """Opened where the trial is computed, and imported nowhere else: it is heavy."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """A bundle for each of its workers, on one machine; of several workers none is the trial's own process.

        A trial server has what it computes with: beside it a trial takes next to nothing, of what that machine has.
        """
        if (server := config.get("server")) is not None:
            return tune.PlacementGroupFactory(
                [{f"node:{server.machine}": BESIDE_A_SERVER}],
                bundle_label_selector=[{"ray.io/node-id": server.node_id}],
            )
        task: TrialTask = config["task"]
        resources = task.resources[config["config"]["method"]]
        each = resources.of_a_worker
        bundles = [{"CPU": each.cpus, "GPU": each.gpus}] * resources.workers
        selectors = {"bundle_label_selector": [elsewhere(config["avoid"])] * len(bundles)} if config["avoid"] else {}
        of_the_trial: list[dict[str, float]] = [{}] if resources.workers > 1 else []
        return tune.PlacementGroupFactory([*of_the_trial, *bundles], strategy="STRICT_PACK", **selectors)

    def setup(self, config: dict[str, Any]) -> None:
        """Find the trial in the ledger; nothing heavy yet."""
        _log_to_stderr()
        self._task: TrialTask = config["task"]
        self._trial: str = config["trial"]
        self._server: ServerAddress | None = config.get("server")
        self._pack: tuple[str, ...] = config.get("pack", ())
        self._worker: TrialWorker | TrialWorkers | Seat | None = None
        self._could_not_begin: Exception | None = None
        try:
            self._begin(config)
        except Exception as error:  # `step` raises it: of a worker that fails here Ray says neither where nor why
            self._could_not_begin = error

    def _begin(self, config: dict[str, Any]) -> None:
        self._folder = self._task.open_run()
        self._folder.pull(self._folder.dataset_dir, self._folder.trial_file(BASE_TRIAL))
        self._folder.pull(self._folder.trial_dir(config["trial"]), without=("images-*",))
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
        try:
            if self._could_not_begin is not None:
                raise self._could_not_begin
            if not self._record.is_over:
                with heeding_sigterm(self._stop):
                    self._score_next_or_fail()
        except Preempted as end:
            self._folder.push(self._folder.trial_dir(self._record.trial))
            self._log(str(end))
            raise
        except Exception as error:  # whatever it is: it is noted and goes on its way
            kind = type(error).__name__  # not its text, which may name files of the user's
            self._log(f"failed on this machine: {kind}; {TRACEBACK_FILE} in its folder says more")
            is_unfit = isinstance(error, UserError) and type(error) is not StorageError  # which may come back
            if not is_unfit and self._could_not_begin is None:
                raise
            text = str(error) if is_unfit else failure_text(error)
            raise MachineError(text, **this_machine(), is_unfit=is_unfit) from error
        return report_of(self._record, self._rule)

    def _stop(self) -> None:
        if self._worker is None:
            raise Preempted("told to end before it had begun")
        self._worker.stop()

    def _score_next_or_fail(self) -> None:
        """Score the next point, or write down that the trial's own settings do not let it."""
        try:
            self._score_next_sparing_memory()
        except DivergedError as error:
            self._fail(error)
        except OutOfGpuMemory as error:
            if not (self._resources.gpus >= 1 and error.is_the_trials_own):
                raise RuntimeError(
                    f"{error.reason}; resources.gpus_per_trial: 1 gives every trial a GPU of its own"
                ) from error
            self._fail(error)

    def _score_next_sparing_memory(self) -> None:
        """Score the next point; where GPU memory runs out, once more with gradient checkpointing."""
        try:
            self._score_next()
        except OutOfGpuMemory:
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
        if self._worker is None:
            self._worker = self._open_worker()
        scored = self._worker.score_next()
        step, last_step = scored.step, self._hyperparameters.max_train_steps
        without = (STATE_FILE,) if step == last_step else ()  # which nothing will go on from
        self._folder.push(self._folder.trial_dir(self._record.trial), without=without)  # before the ledger speaks of it
        self._write(
            checkpoints=(*self._record.checkpoints, scored.model_copy(update=self._progress(step))),
            status="finished" if step == last_step else "running",
        )
        self._log(f"{step_text(step, last_step)}  {scores_text(scored)}")
        if step == last_step:  # only now: until the ledger has its score, a worker that takes over would begin anew
            self._folder.drop_training_state(self._record.trial)
            self._log_outcome(self._record)
        self._folder.drop_passed_checkpoints(self._record)

    def _open_worker(self) -> TrialWorker | TrialWorkers | Seat:
        reached = self._record.checkpoints[-1].step if self._record.checkpoints else 0
        recipe = WorkerRecipe(self.worker_class, self._task, self._record.trial, self._hyperparameters, reached)
        if self._server is not None:
            return Seat(self._server, self._pack, recipe)
        if self._resources.workers == 1:
            return recipe.open(ALONE)
        from sweeps.execution.workers import TrialWorkers  # heavy

        return TrialWorkers(recipe.open, self._resources, self._name)

    @property
    def _resources(self) -> TrialResources:
        return self._task.resources[self._hyperparameters.method]

    def _progress(self, step: int) -> dict[str, float | None]:
        """Seconds of the trial's life so far and the mean loss since the scoring point before, whoever trained it."""
        before = self._record.checkpoints[-1].step if self._record.checkpoints else 0
        stats = read_stats(self._folder.trial_dir(self._record.trial) / STATS_FILE)
        losses = [taken.loss for taken in stats if before < taken.step <= step]
        return {"seconds": self._seconds(), "loss": sum(losses) / len(losses) if losses else None}

    def _write(self, **changes: Any) -> None:
        self._record = self._record.model_copy(update={**changes, "seconds": self._seconds()})
        self._since = time.monotonic()
        self._folder.write(self._record)

    def _seconds(self) -> float:
        """Of a pack's time each of its trials counts its part."""
        return self._record.seconds + (time.monotonic() - self._since) / max(1, len(self._pack))

    def _log(self, text: str) -> None:
        LOG.info("%s  %s", self._trial, text)

    def _log_outcome(self, record: TrialRecord) -> None:
        reason = f": {record.reason}" if record.reason else ""
        best = self._rule.best(record.checkpoints) if record.checkpoints else None
        self._log(f"{record.status}{reason}" + (f"  best step {best.step}  {scores_text(best)}" if best else ""))

    def cleanup(self) -> None:
        """Let go of the models; the last that a worker hears.

        The driver writes a trial that early stopping ends into the ledger before Tune lets its worker go.
        """
        if self._could_not_begin is None and not self._record.is_over:
            record = self._folder.read(self._record.trial)
            if record is not None and record.status == "stopped":
                self._log_outcome(record)
            else:
                self._log("let go of by the driver before its end")
        self._let_go()

    def _let_go(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

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
