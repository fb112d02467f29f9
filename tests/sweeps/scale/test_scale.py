"""The simulation of large sweeps, small.

pytest tests/sweeps/scale     half a minute
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.asked import listed_trials
from sweeps.ledger.folder import RunFolder
from sweeps.report.learning_curves import learning_curves
from sweeps.report.page import render_report
from sweeps.results.results import read_results
from tests.sweeps.logged_trial import read_log
from tests.sweeps.scale.driver import drive
from tests.sweeps.scale.fake_trial import new_run, write_trial
from tests.sweeps.scale.meter import Meter, seconds_between


def test_a_run_that_is_written_by_code_is_whole_to_its_readers(tmp_path: Path) -> None:
    """Scores, stats and pictures are found; nothing is warned of but the weights, which fake trials leave out."""
    config = new_run(tmp_path / "run", "random", num_trials=4, at_once=2, num_points=3)
    folder = RunFolder(tmp_path / "run")
    for number, trial in enumerate(listed_trials(config)):
        write_trial(folder, number, trial, config.evaluation.at_steps)
    results = read_results(folder.dir)
    assert (len(results.rows), results.num_by_status, results.warnings) == (4 * 3 + 1, {"finished": 4}, ())
    assert learning_curves(folder, (trial.trial for trial in results.present_trials)).keys() == {
        trial.trial for trial in results.present_trials
    }
    assert "no picture" not in render_report(results)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_trial_costs_the_driver_the_same_files_however_many_there_are(tmp_path: Path) -> None:
    """Twice the trials, twice the ledger entries read and written; each place is taken again when it is free."""
    at_once, opened = 4, {}
    for num_trials in (10, 20):
        run_dir = tmp_path / f"run{num_trials}"
        config = new_run(run_dir, "tpe", num_trials, at_once, num_points=2)
        meter, ended = Meter(run_dir), []
        drive(config, run_dir, at_once, 0.02, ended.append)
        meter.sample(num_trials)
        meter.is_on = False
        opened[num_trials] = meter.samples[0].opened
        assert ended[-1] == num_trials
        assert read_results(run_dir).num_by_status == {"finished": num_trials}
        assert len(seconds_between(read_log(run_dir), at_once)) == num_trials - at_once
    for kind in ("trial.json reads", "trial.json writes"):
        assert 0 < opened[20][kind] <= 2 * opened[10][kind]
