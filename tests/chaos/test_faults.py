"""Four faults in one sweep through Ray: a worker dies, then the driver; a checkpoint and a record are damaged.

    pytest -m ray tests/chaos/test_faults.py     about two minutes on two idle cores

The whole table is made by `python -m tests.chaos`.
"""

from __future__ import annotations

import os
import random
import signal

import pytest

from tests.chaos.faults import cut_record, flip_newest_weights, kill_midway, newest_running
from tests.chaos.judge import Outcome, judge, steps_repeated
from tests.chaos.stage import AT_STEPS, Stage, entries
from tests.sweeps.files import times

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_sweep_that_four_faults_strike_ends_as_if_none_had(stage: Stage, undisturbed: Outcome) -> None:
    """Nothing that ended is lost, only a damaged checkpoint costs more than its interval, the champion is the same."""
    case = stage.case("four", "dreamsweep")
    rng = random.Random(0)
    try:
        driver = case.start()
        case.wait_for(lambda log: bool(entries(log, "scored")), driver)
        os.kill(newest_running(case)["pid"], signal.SIGKILL)
        case.wait_for(lambda log: len({e["pid"] for e in entries(log, "step")}) > 2, driver)
        kill_midway(case, rng, driver)
        cut = cut_record(case, rng)
        damaged, _ = flip_newest_weights(case, rng)
        whole = {entry["trial"] for entry in entries(case.log(), "ended")} - {cut}
        before = {trial: times(case.run_dir / "trials" / trial) for trial in whole}
        second = case.start()
        assert second.end() == 0, second.last_words
        assert before == {trial: times(case.run_dir / "trials" / trial) for trial in whole}
        log, outcome = case.log(), case.outcome()
    finally:
        case.clear_away()

    verdict = judge(log, outcome, undisturbed)
    assert whole
    assert (verdict.lost, verdict.unfinished, verdict.champion_changed) == (0, 0, False)
    beyond = {entry["trial"] for entry, last_scored in steps_repeated(log) if entry["step"] <= last_scored}
    assert beyond <= {damaged}
    assert verdict.repeated_beyond <= AT_STEPS[-2]
