"""Run a sweep on Ray: once-a-sweep stages, then the trials under Ray Tune; and again, from where it ended.

Every call is a fresh Tune experiment over what the ledger lacks. Tune's own restore is not used: it repeats finished
trials after a killed driver, starts silently afresh from a damaged state file, and unpickles what it finds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

from rich.console import Console

# Read by Ray when it is imported. Its files, bars and tables are not ours; state snapshots are never read back.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")

import ray
from ray import tune
from ray.exceptions import RayError, RayTaskError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

import evaluation
import sweeps
import training
from evaluation.scores import EVALUATOR_VERSION
from sweeps.config import SweepConfig, load_sweep, resolved_yaml
from sweeps.live import Board, Display, Gauges, fill_board, leaderboard_file
from sweeps.mirror import open_run
from sweeps.preflight import (
    TrialResources,
    check_cluster,
    check_disk,
    check_shared,
    check_sweep,
)
from sweeps.renders import renders_are_due
from sweeps.results import read_results, write_results_csv
from sweeps.search import LedgerSearcher, is_complete, num_planned
from sweeps.space import config_hash, largest
from sweeps.store import BASE_TRIAL, RunFolder, TrialRecord
from sweeps.trial import (
    SweepTrial,
    drop_training_state,
    explain_failure,
    prepare_run,
    prepare_subject,
    render_best,
    report_of,
)
from training.checkpoint import STATE_FILE
from training.files import sha256_of
from training.photos import read_caption
from training.pictures import find_photos

MAX_MACHINE_FAILURES = 3
"""How often Ray starts a trial again whose worker or machine was lost."""
INIT_ATTEMPTS = 3
"""A loaded machine may miss Ray's own deadline for starting up."""
OBJECT_STORE_BYTES = 150_000_000
"""Almost nothing passes through Ray's object store: pictures and weights go through the run folder."""


class SweepInterrupted(RuntimeError):  # noqa: N818 -- it says what happened, not that something is wrong
    """The sweep was told to end before it was done."""


def run_sweep(
    config: SweepConfig, out_dir: Path | str, address: str | None = None, console: Console | None = None
) -> Path:
    """Run a sweep to its end, going on from whatever the run folder holds.

    Args:
        config: the sweep.
        out_dir: the run folder is `out_dir/<name>`.
        address: a Ray cluster (`auto`, `host:port`); None is the surrounding job's, or else this machine.
        console: where to show progress; None shows nothing.

    Returns:
        The run folder.

    Raises:
        ValueError: something that the user can mend, found before the first trial.
        SweepInterrupted: a signal ended it; the same call goes on.
    """
    plan = check_sweep(config)
    folder = open_run(Path(out_dir) / config.name, config.storage)
    with folder.lock():
        folder.pull(folder.sweep_file, folder.identity_file, folder.dataset_dir, folder.renders_dir)
        folder.pull(folder.trials_dir, without=STATE_FILE)
        folder.claim("photos", photos_key(config))
        folder.claim("evaluation", evaluation_key(config))
        check_disk(plan, folder)
        if not (is_complete(config, folder) and _same_models(config, folder)) or renders_are_due(folder.dir):
            _run_on_ray(config, folder, address, console)
        folder.write_sweep(resolved_yaml(config))
        folder.push(folder.sweep_file, write_results_csv(read_results(folder.dir)))
    return folder.dir


def _same_models(config: SweepConfig, folder: RunFolder) -> bool:
    """Do the models have the names that they had in the last run? If not, their content must be looked at."""
    last = load_sweep(folder.sweep_file)
    return (last.base_model, last.evaluation.face, last.evaluation.clip) == (
        config.base_model,
        config.evaluation.face,
        config.evaluation.clip,
    )


def _run_on_ray(config: SweepConfig, folder: RunFolder, address: str | None, console: Console | None) -> None:
    with _ray_session(address, console), _ending_on_signals(folder):
        resources = check_cluster(config)
        check_shared(folder, config.storage)
        if not folder.sweep_file.exists():
            folder.write_sweep(resolved_yaml(config))
        _prepare(config, folder, resources, console)
        folder.write_sweep(resolved_yaml(config))  # only now: what it replaces may be of a sweep that this one is not
        folder.push(folder.sweep_file)
        _run_trials(config, folder, resources, console)
        _render_best(config, folder, resources, console)


def photos_key(config: SweepConfig) -> str:
    """Hash of the photos' names, bytes and captions, of how they are cut and called, and of those compared with."""
    digest = hashlib.sha256(config.subject.model_dump_json(exclude={"photos"}).encode())
    folders = {"photos": config.subject.photos}
    if config.evaluation.face.references is not None:
        folders["references"] = config.evaluation.face.references
    for role, folder in folders.items():
        for path in find_photos(folder):
            entry = [role, path.relative_to(folder).as_posix(), sha256_of(path)]
            digest.update(json.dumps([*entry, read_caption(path)]).encode())
    return digest.hexdigest()


def evaluation_key(config: SweepConfig) -> str:
    """Hash of everything in the evaluation that changes a picture or its scores."""
    neutral = {"batch_size", "at_steps", "face", "clip"}  # the judges are known by their names, weights included
    return hashlib.sha256(
        f"{EVALUATOR_VERSION} {config.evaluation.model_dump_json(exclude=neutral)}".encode()
    ).hexdigest()


# --- Ray ------------------------------------------------------------------------------------------------------------


@contextmanager
def _ray_session(address: str | None, console: Console | None) -> Iterator[None]:
    """Ray, connected; left as it was found."""
    if ray.is_initialized():
        yield
        return
    _connect(address, console)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str | None, console: Console | None) -> None:
    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False, "configure_logging": True}
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    if address and address != "local":
        context = _init_ray(address=address, runtime_env={"py_modules": our_packages()}, **quiet)
    else:
        context = _init_ray(address="local", include_dashboard=True, object_store_memory=OBJECT_STORE_BYTES, **quiet)
    if console is not None and context.dashboard_url:
        console.print(f"dashboard http://{context.dashboard_url}", highlight=False)


def our_packages() -> list[str]:
    """Folders of the three packages, to be sent to the workers; photos, weights and runs lie outside of them."""
    return [str(Path(str(package.__file__)).parent) for package in (sweeps, evaluation, training)]


def _init_ray(**options: Any) -> Any:
    for attempt in range(1, INIT_ATTEMPTS + 1):
        try:
            return ray.init(**options)
        except (ConnectionError, TimeoutError, RuntimeError) as error:
            ray.shutdown()
            if attempt == INIT_ATTEMPTS:
                where = options["address"]
                raise ValueError(f"--address {where}: Ray must answer there: {explain_failure(error)}") from None
            time.sleep(attempt)
    raise AssertionError("unreachable")


@contextmanager
def _ending_on_signals(folder: RunFolder) -> Iterator[None]:
    """End at once on SIGTERM and SIGINT: everything that matters is on disk at any moment."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, signal.SIGINT)} if in_main_thread else {}
    try:
        yield
    except KeyboardInterrupt:
        raise SweepInterrupted(f"{folder.dir}: interrupted; the same command again goes on from here") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- stages ---------------------------------------------------------------------------------------------------------


def _prepare(config: SweepConfig, folder: RunFolder, resources: TrialResources, console: Console | None) -> None:
    """Once a sweep: photos here, everything that needs the base model where trials run."""
    _say(console, "preparing the photos")
    prepare_subject(config, folder)
    folder.push(folder.identity_file, folder.dataset_dir)
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_calls=1)(prepare_run)
    try:
        for stage in task.remote(config, str(folder.dir), resources.device):
            _say(console, ray.get(stage))
    except RayTaskError as error:
        raise error.cause from None if isinstance(error.cause, ValueError) else error
    folder.pull(folder.identity_file, folder.dataset_dir, folder.trial_dir(BASE_TRIAL))


def _say(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, highlight=False)


def _render_best(config: SweepConfig, folder: RunFolder, resources: TrialResources, console: Console | None) -> None:
    """Renders where trials run; a failure here leaves the trained and scored trials as good as they are."""
    if not renders_are_due(folder.dir):
        return
    _say(console, "rendering the best trials")
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_calls=1, max_retries=1)(render_best)
    try:
        ray.get(task.remote(str(folder.dir), config.storage))
        folder.pull(folder.renders_dir)
    except RayError as error:
        reason = explain_failure(getattr(error, "cause", None) or error)
        _say(console, f"no renders: {reason}; repeat them with: dreamsweep render {folder.dir}")


# --- trials ---------------------------------------------------------------------------------------------------------


def _run_trials(config: SweepConfig, folder: RunFolder, resources: TrialResources, console: Console | None) -> None:
    if is_complete(config, folder):
        return
    board = Board(config.name, config.champion, num_planned(config))
    fill_board(board, folder)
    display = Display(board, console, leaderboard_file(config.name))
    searcher = LedgerSearcher(
        config,
        folder,
        key=lambda trial: folder.identity_key(config_hash(trial)),
        extra={
            "run_dir": str(folder.dir),
            "storage": config.storage,
            "cpus": resources.cpus,
            "gpus": resources.gpus,
        },
        at_once=resources.at_once,
        changed=board.put,
    )
    shutil.rmtree(folder.ray_dir, ignore_errors=True)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(resources.at_once)  # else workers start up one after another
    with display.shown():
        tune.run(
            SweepTrial,
            name="tune",
            storage_path=str(folder.ray_dir),
            num_samples=-1,
            search_alg=searcher,
            scheduler=_scheduler(config, folder),
            max_failures=MAX_MACHINE_FAILURES,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
            callbacks=[LedgerKeeper(folder, display, board, Gauges(config.name))],
            raise_on_failed_trial=False,
            verbose=0,
        )


def _trial_name(trial: Any) -> str:
    return str(trial.config["trial"])


def _scheduler(config: SweepConfig, folder: RunFolder) -> TrialScheduler:
    """None of it, or asynchronous halving: at each rung the better half goes on, earlier drivers' trials counted."""
    if config.search.early_stopping == "none":
        return FIFOScheduler()
    longest = max(largest(space, method, "max_train_steps") for method, space in config.methods.items())
    scheduler = ASHAScheduler(
        time_attr="step",
        metric="champion_score",
        mode="max",
        grace_period=min(config.evaluation.at_steps),
        max_t=longest,
        reduction_factor=2,
    )
    for record in folder.trials():
        known = SimpleNamespace(trial_id=record.trial)
        scheduler.on_trial_add(None, known)
        for count in range(1, len(record.checkpoints) + 1):
            so_far = record.model_copy(update={"checkpoints": record.checkpoints[:count], "status": "running"})
            scheduler.on_trial_result(None, known, report_of(so_far, folder))
    return scheduler


class LedgerKeeper(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """The driver's hand in the ledger: trials that Ray stopped or gave up; and what is shown of all."""

    def __init__(self, folder: RunFolder, display: Display, board: Board, gauges: Gauges) -> None:
        self._folder, self._display, self._board, self._gauges = folder, display, board, gauges

    def on_trial_start(self, trial: Any, **_: Any) -> None:
        """A worker has it."""
        self._board.running.add(_trial_name(trial))
        self._display.changed(self._read(trial))

    def on_trial_result(self, trial: Any, **_: Any) -> None:
        """A scoring point."""
        record = self._read(trial)
        self._gauges.set(record)
        if not record.is_over:
            self._display.changed(record)

    def on_trial_complete(self, trial: Any, **_: Any) -> None:
        """It ended by itself, or early stopping ended it, which the worker cannot know."""
        self._board.running.discard(_trial_name(trial))
        record = self._read(trial)
        if not record.is_over:
            record = self._write(record, status="stopped", reason="early stopping: other trials were better by then")
            drop_training_state(self._folder, record.trial)
            self._folder.push(self._folder.trial_dir(record.trial))
        self._display.changed(record)

    def on_trial_recover(self, trial: Any, **_: Any) -> None:
        """Its worker was lost; it waits for another."""
        self._board.running.discard(_trial_name(trial))
        self._display.changed(self._read(trial))

    def on_trial_error(self, trial: Any, **_: Any) -> None:
        """Ray has given it up."""
        self._board.running.discard(_trial_name(trial))
        error = trial.get_pickled_error() or trial.get_error()
        cause = getattr(error, "cause", None) or error
        reason = "its worker was lost" if cause is None else explain_failure(cause)
        self._display.changed(self._write(self._read(trial), status="failed", fault="machine", reason=reason))

    def on_step_end(self, **_: Any) -> None:
        """Tune's loop went round."""
        self._display.tick()

    def _read(self, trial: Any) -> TrialRecord:
        record = self._folder.read(_trial_name(trial))
        assert record is not None, "the searcher writes a trial before Ray starts it"
        return record

    def _write(self, record: TrialRecord, **changes: Any) -> TrialRecord:
        record = record.model_copy(update=changes)
        self._folder.write(record)
        return record
