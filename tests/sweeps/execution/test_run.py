"""Sweeps through Ray with real tiny models: they end, they survive, they repeat nothing.

The judge is a log of its own that the trials append to (`logged_trial`), and the files' own times.

    pytest -m ray tests/sweeps/execution/test_run.py     about 90 seconds on two idle cores
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler

from deploy import preemption
from sweeps.config import SweepConfig
from sweeps.ledger.folder import RunFolder
from sweeps.results.results import read_results
from sweeps.results.rule import ChampionRule
from tests.sweeps.files import times
from tests.sweeps.ledger_entries import entry, record
from tests.sweeps.logged_trial import LoggedTrial, read_log
from training.errors import UserError

pytestmark = [pytest.mark.ray, pytest.mark.slow]
RAY_CPUS = 1

FAILING = {"learning_rate": 1.0, "max_train_steps": 30, "train_batch_size": 1, "adam_beta2": 0.0}
"""DreamBooth settings under which the weights run away."""


def test_a_sweep_ends_with_every_trial_accounted_for(
    ray_session: None, tiny_sweep: Callable[..., SweepConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure by settings is recorded, a trial whose worker is killed goes on where it was, and none repeats.

    What became of each stands in its workers' logs too, where the dashboard has them of dead actors.
    """
    from sweeps.asked import listed_trials
    from sweeps.execution.run import run_sweep
    from sweeps.ledger.identity import trial_id

    monkeypatch.setattr("sweeps.execution.run.SweepTrial", LoggedTrial)
    lora = {"rank": {"choices": [1, 2]}, "max_train_steps": 4, "train_batch_size": 1}
    config = tiny_sweep(methods={"lora": lora, "dreambooth": FAILING})
    trials = [trial_id(trial) for trial in listed_trials(config)]
    (tmp_path / "tiny.kill").write_text(trials[0])
    run_dir = run_sweep(config, tmp_path)

    records = {record.trial: record for record in RunFolder(run_dir).trials()}
    assert [records[trial].status for trial in trials] == ["finished", "finished", "failed"]
    assert [records[trial].num_restarts for trial in trials] == [1, 0, 0]
    assert records[trials[2]].fault == "trial"
    assert records[trials[2]].reason
    scored = [(entry["trial"], step) for entry in read_log(run_dir) for step in entry["scored"]]
    assert sorted(scored) == sorted((trial, step) for trial in trials[:2] for step in (2, 4))
    results = read_results(run_dir)
    assert results.num_by_status == {"finished": 2, "failed": 1}
    assert results.base is not None
    assert (run_dir / "results.csv").is_file()
    for trial in trials[:2]:
        *points, outcome = worker_lines(trial)
        assert [line.split("  ")[0] for line in points] == ["step 2/4", "step 4/4"]
        best = results.best_of_trial(trial)
        scores = f"face {best.face_similarity:.3f}  prompt {best.prompt_alignment:.3f}"
        assert outcome == f"finished  best step {best.step}  {scores}"
    assert worker_lines(trials[2])[-1].startswith(f"failed: {records[trials[2]].reason}")

    before = times(run_dir / "trials")
    assert run_sweep(config, tmp_path) == run_dir
    assert times(run_dir / "trials") == before


class StopAtOnce(FIFOScheduler):  # type: ignore[misc]
    """Lets no trial past its first scoring point; looks whether a machine that is taken away would find it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bool] = []

    def on_trial_result(self, _controller: Any, _trial: Any, result: dict[str, Any]) -> str:
        """Enough of it."""
        self.found.append(result["pid"] in preemption.trials())
        return str(self.STOP)


def test_a_dead_workers_log_says_that_early_stopping_ended_its_trial(
    ray_session: None, tiny_sweep: Callable[..., SweepConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which it cannot know itself, and finds in the ledger when Tune lets it go; no text of the user's is in it."""
    from sweeps.execution.run import run_sweep

    scheduler = StopAtOnce()
    monkeypatch.setattr("sweeps.execution.run.make_scheduler", lambda *_: scheduler)
    config = tiny_sweep(methods={"lora": {"rank": {"choices": [4]}, "max_train_steps": 4, "train_batch_size": 1}})
    (stopped,) = RunFolder(run_sweep(config, tmp_path)).trials()
    assert stopped.status == "stopped"
    assert scheduler.found == [True], "by the title of its process"
    wait_for(lambda: len(worker_lines(stopped.trial)) == 2)
    scored, outcome = worker_lines(stopped.trial)
    assert scored.startswith("step 2/4  face ")
    assert re.fullmatch(rf"stopped: {stopped.reason}  best step 2  face -?[\d.]+  prompt -?[\d.]+", outcome)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_trial_whose_last_machine_goes_is_served_anew(
    ray_session: None,
    tiny_sweep: Callable[..., SweepConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    comes_back: bool,
) -> None:
    """Ray would look for ever for a machine that it may run on; where all are set aside, the sweep says so and ends."""
    from sweeps.execution.machines import Machines, NoMachineLeft, alive_machines
    from sweeps.execution.run import run_sweep

    served: list[str] = []

    def to_avoid(machines: Machines, trial: str) -> list[str]:
        if trial.startswith("job "):  # the preparation
            return []
        served.append(trial)
        if not comes_back:
            machines.set_aside.update(dict.fromkeys(alive_machines(), "no disk"))
        return sorted(alive_machines()) if len(served) == 1 else []

    monkeypatch.setattr(Machines, "to_avoid", to_avoid)
    config = tiny_sweep(methods={"lora": {"rank": 1, "max_train_steps": 4, "train_batch_size": 1}})
    if comes_back:
        run_sweep(config, tmp_path)
    else:
        with pytest.raises(NoMachineLeft, match="no disk"):
            run_sweep(config, tmp_path)
    (record,) = RunFolder(tmp_path / config.name).trials()
    assert (record.status, record.num_restarts) == ("finished" if comes_back else "running", 0)
    assert set(served) == {record.trial}
    assert (len(served) > 1) == comes_back, "asked again until there is a place for it"


def worker_lines(trial: str) -> list[str]:
    """What the workers that had a trial wrote into their logs about it, in order and without the times."""
    from ray._private.worker import _global_node

    logs = Path(_global_node.get_logs_dir_path()).glob("worker-*.err")
    lines = (line.partition(f"  {trial}  ") for log in logs for line in log.read_text().splitlines())
    return [text for _, found, text in sorted(lines, key=lambda line: line[0]) if found]


def test_what_the_driver_finds_wrong_comes_out_of_tune_as_it_was(ray_session: None, tmp_path: Path) -> None:
    """A full disk and a run folder that is gone are met in a callback, which Tune's own errors would hide."""
    from ray import tune

    from sweeps.execution.failures import out_of_tune

    class Failing(tune.Trainable):  # type: ignore[misc]
        def step(self) -> dict[str, Any]:
            raise RuntimeError("the worker met it")

    class Keeper(tune.Callback):  # type: ignore[misc]
        def on_trial_error(self, **_: Any) -> None:
            raise UserError("the driver names it")

    with pytest.raises(UserError, match=r"^the driver names it$"), out_of_tune():
        tune.run(Failing, storage_path=str(tmp_path), callbacks=[Keeper()], raise_on_failed_trial=False, verbose=0)


def test_a_sweep_with_a_storage_leaves_all_of_it_there(
    ray_session: None, tiny_sweep: Callable[..., SweepConfig], tiny_controlnet: str, photos: Path, tmp_path: Path
) -> None:
    """Another head, its disk empty, gives the same command: it trains nothing and has table, pictures and weights."""
    from sweeps.execution.run import run_sweep
    from sweeps.ledger.mirror import open_run

    storage = f"file://{tmp_path / 'there'}"
    reference = min(photos.glob("*.png"))
    render = {"references": [str(reference)], "controlnet": tiny_controlnet, "num_inference_steps": 2, "resolution": 64}
    methods = {"lora": {"rank": {"choices": [1]}, "max_train_steps": 4, "train_batch_size": 1}}
    config = tiny_sweep(methods=methods, storage=storage, render=render)
    first = run_sweep(config, tmp_path / "first")
    before = times(tmp_path / "there")
    second = run_sweep(config, tmp_path / "second")
    changed = {name for name, time in times(tmp_path / "there").items() if before.get(name) != time}
    assert {Path(name).name for name in changed} == {"sweep.yaml", "results.csv", "work.json"}
    for derived in ("results.csv", "work.json"):
        assert (second / derived).read_bytes() == (first / derived).read_bytes()
    results = read_results(second)
    assert all((second / image).is_dir() for row in results.rows if (image := row.images))
    assert (second / "renders" / "sheet.png").is_file()
    if results.champion.row is not None:
        assert (second / str(results.champion.row.checkpoint)).is_dir()
    assert open_run(second, storage).lease_place.read() is None, "and nobody holds it"


def test_what_the_cluster_lacks_is_refused_at_once(
    ray_session: None, tiny_sweep: Callable[..., SweepConfig], tmp_path: Path
) -> None:
    """A GPU or more CPUs than there are: a message in seconds, where Tune alone would wait for ever."""
    from sweeps.execution.run import run_sweep

    for resources, law in [({"gpus_per_trial": 1}, "needs 1 GPU"), ({"cpus_per_trial": 64}, "needs 64 CPU")]:
        start = time.monotonic()
        with pytest.raises(ValueError, match=law):
            run_sweep(tiny_sweep(resources=resources), tmp_path)
        assert time.monotonic() - start < 10
        assert not list(tmp_path.glob("*/trials/*"))


def test_a_model_that_lies_on_the_drivers_machine_alone_is_refused(
    ray_session: None, tiny_sweep: Callable[..., SweepConfig], tmp_path: Path
) -> None:
    """Before the start, with its place in the sweep file and the machine that lacks it; what all have is let pass."""
    from sweeps.execution.cluster import check_shared, local_models
    from sweeps.ledger.mirror import open_run

    storage = f"file://{tmp_path / 'there'}"
    (tmp_path / "run").mkdir()
    folder = open_run(tmp_path / "run", storage)
    models = local_models(tiny_sweep())
    assert set(models) == {"base_model", "evaluation.face.encoder", "evaluation.clip.model"}
    check_shared(folder, storage, models)
    with pytest.raises(ValueError, match=r"base_model: must lie on every machine .* [\d.]+ does not have /gone"):
        check_shared(folder, storage, {**models, "base_model": "/gone"})
    assert not list(tmp_path.rglob("probe-*"))


def test_a_model_that_is_missing_where_trials_run_is_the_users_to_mend(
    ray_session: None, tiny_sweep: Callable[..., SweepConfig], tmp_path: Path
) -> None:
    """What a worker finds wrong before the first trial reaches the user as a plain message."""
    from sweeps.execution.run import run_sweep

    methods = {"lora": {"mixed_precision": "fp16", "max_train_steps": 4}}
    with pytest.raises(ValueError, match=r"methods\.lora\.mixed_precision: fp16 needs a GPU") as refused:
        run_sweep(tiny_sweep(methods=methods), tmp_path)
    assert "Traceback" not in str(refused.value)


def wait_for(happened: Callable[[], bool], seconds: float = 180) -> None:
    """Until something has happened, which is progress and not time."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_early_stopping_remembers_the_trials_of_earlier_drivers(
    tiny_sweep: Callable[..., SweepConfig],
) -> None:
    """A newcomer is measured against what the ledger holds, although this Tune experiment never saw it."""
    from sweeps.execution.stopping import make_scheduler
    from sweeps.execution.trial import report_of

    config = tiny_sweep(search={"sampler": "grid", "early_stopping": "asha"})
    rule = ChampionRule.of(config.champion, entry(0, 0.1))
    known = [record(trial, entry(2, likeness)) for trial, likeness in [("a", 0.7), ("b", 0.8), ("c", 0.9)]]
    scheduler = make_scheduler(config, known, rule)
    assert scheduler.set_search_properties(None, None)
    decisions = []
    for likeness, alignment in [(0.2, 0.25), (0.95, 0.25), (0.95, 0.1)]:
        newcomer = SimpleNamespace(trial_id=f"new {likeness} {alignment}")
        scheduler.on_trial_add(None, newcomer)
        so_far = report_of(record("new", entry(2, likeness, alignment)), rule)
        decisions.append(scheduler.on_trial_result(None, newcomer, so_far))
    assert decisions == ["STOP", "CONTINUE", "STOP"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_sweep_with_what_to_do_next(tmp_path: Path, number: signal.Signals) -> None:
    """A preemption or Ctrl-C is an interruption that says so, and the process's own handlers come back after it."""
    from sweeps.execution.session import SweepInterrupted, ending_on_signals

    before = signal.getsignal(number)
    with pytest.raises(SweepInterrupted, match="the same command again"), ending_on_signals(RunFolder(tmp_path)):
        signal.raise_signal(number)
    assert signal.getsignal(number) is before
