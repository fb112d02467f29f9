"""The second stage on Ray, with real tiny models: who is trained again, and that nothing is done twice.

pytest tests/sweeps/execution/test_confirm.py     one sweep, gone on with twice
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.config import SweepConfig
from sweeps.confirm import FRESH_TRAINING_SEEDS
from sweeps.execution import run
from sweeps.execution.confirm_run import confirm_run
from sweeps.execution.gauges import Gauges
from sweeps.execution.live import Board
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import TrialRecord
from sweeps.results.results import read_results
from tests.sweeps.files import times
from training.errors import UserError

CONFIRM = {"finalists": 2, "seeds": 2, "prompts": ["sks woman in the snow", "sks woman at the beach"]}
NUM_PROMPTS = 3
RAY_CPUS = 1


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What Ray's metrics are told of trials planned, by the sweep's id there."""
    told: dict[str, int] = {}

    class Told(Gauges):
        def set_sweep(self, board: Board) -> None:
            told[self._tags["sweep"]] = board.num_planned
            super().set_sweep(board)

    monkeypatch.setattr(run, "Gauges", Told)
    return told


@pytest.mark.ray
@pytest.mark.slow
def test_finalists_are_trained_again_and_more_is_added_to_what_is_there(
    ray_session: None, tiny_sweep: Callable[..., SweepConfig], planned: dict[str, int], tmp_path: Path
) -> None:
    """Two settings with two fresh seeds; then for one of them a third seed and a second picture a prompt."""
    lora = {"rank": {"choices": [1, 2]}, "learning_rate": 1e-3, "max_train_steps": 4, "train_batch_size": 1}
    config = tiny_sweep(methods={"lora": lora}, confirm=CONFIRM, champion={"prompt_alignment_margin": 2})
    run_dir = run.run_sweep(config, tmp_path)
    folder = RunFolder(run_dir)
    results = read_results(run_dir)
    assert results.confirmations.is_whole
    assert results.champion.confirmed is not None
    assert {record.trial for record in folder.trials()} == {row.trial for row in results.rows if not row.is_base}
    again = folder.confirm.trials()
    assert sorted(_settings(record) for record in again) == [
        (rank, FRESH_TRAINING_SEEDS + seed) for rank in (1, 2) for seed in (0, 1)
    ]
    in_search, of_finalists = sorted(planned, key=len)
    assert of_finalists == f"{in_search}-finalists"
    assert (planned[in_search], planned[of_finalists]) == (2, 4), "neither counts the other's"
    assert all(record.checkpoints[0].num_images == NUM_PROMPTS for record in again)
    for row in results.rows:
        if row.is_base or row.finalist:
            assert row.examination is not None
            assert (row.examination.copies is None) == row.is_base
            assert row.examination.class_similarity is not None

    places = [run_dir / name for name in ("trials", "confirm", "dataset")]
    before = [times(place) for place in places]
    assert run.run_sweep(config, tmp_path) == run_dir
    assert [times(place) for place in places] == before, "the same command again does nothing"

    chosen = results.finalists[0].trial
    confirm_run(run_dir, [chosen], images=2 * NUM_PROMPTS, seeds=3)
    grown = read_results(run_dir).confirmations
    assert grown.is_whole
    numbers = {each.row.trial: (len(each.trainings), each.trainings[0].num_images) for each in grown.finalists}
    (other,) = [finalist.trial for finalist in results.finalists if finalist.trial != chosen]
    assert numbers == {chosen: (3, 2 * NUM_PROMPTS), other: (2, NUM_PROMPTS)}
    assert grown.base is not None
    assert grown.base.num_images == 2 * NUM_PROMPTS
    made = {path: time for path, time in before[1].items() if path.endswith((".png", ".safetensors"))}
    assert made
    now = times(run_dir / "confirm")
    assert {path: now[path] for path in made} == made, "nothing is drawn or trained twice"

    with pytest.raises(UserError, match="must be trained trials"):
        confirm_run(run_dir, ["base"], None, None)
    with pytest.raises(UserError, match="not in this run"):
        confirm_run(run_dir, ["nobody"], None, None)


def _settings(record: TrialRecord) -> tuple[int, int]:
    return record.config["rank"], record.config["seed"]
