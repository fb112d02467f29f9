"""Scoring in two tiers, with real tiny models: what is drawn when, and that it comes to the same scores.

pytest tests/sweeps/execution/test_full_scores.py     the last one is a sweep on Ray, run three times
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sweeps.execution.score_in_full
from sweeps.config import SweepConfig, load_sweep, resolved_yaml
from sweeps.execution.full_scores import FullScores, Wanted, batches_of
from sweeps.execution.score_in_full import score_in_full
from sweeps.execution.task import Scoring
from sweeps.execution.trial import SweepTrial
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import trial_id
from sweeps.ledger.records import TrialRecord
from sweeps.results.results import read_results
from tests.sweeps.execution.conftest import task_in
from tests.sweeps.files import times
from tests.sweeps.ledger_entries import entry
from tests.sweeps.tiny_sweep import ONE_CPU
from training.config import DreamBoothConfig, LoraConfig, MethodConfig
from training.finite_pictures import NonFinitePictureError

COMMON: dict[str, Any] = {"max_train_steps": 4, "train_batch_size": 1}
CONFIGS: list[MethodConfig] = [
    LoraConfig(rank=1, learning_rate=1e-3, **COMMON),
    LoraConfig(rank=2, learning_rate=1e-3, **COMMON),
    LoraConfig(rank=2, learning_rate=0.1, optimizer="adafactor", **COMMON),
    DreamBoothConfig(learning_rate=1e-5, **COMMON),
]
NAMES = [trial_id(config) for config in CONFIGS]
SCREENING = {"images_per_prompt": 1, "keep": 0.25}
RAY_CPUS = 1


@pytest.fixture(scope="module")
def scored(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, RunFolder]:
    """Four trials, each alone: of one run all pictures were drawn at once, of the other a first look."""
    runs = {}
    for name, overrides in (("whole", []), ("screened", [f"evaluation.screening={SCREENING}"])):
        shutil.copytree(prepared, tmp_path_factory.mktemp(name) / "run", dirs_exist_ok=True)
        folder = runs[name] = RunFolder(tmp_path_factory.getbasetemp() / f"{name}0" / "run")
        folder.write_sweep(resolved_yaml(load_sweep(folder.sweep_file, overrides)))
        for trial, config in zip(NAMES, CONFIGS, strict=True):
            dumped = config.model_dump(mode="json")
            folder.write(TrialRecord(trial=trial, method=config.method, status="running", config=dumped))
            worker = SweepTrial({"trial": trial, "task": task_in(folder)})
            while not worker.step()["done"]:
                pass
    return runs


@pytest.fixture
def screened(scored: Mapping[str, RunFolder], tmp_path: Path) -> RunFolder:
    """A copy of the run of which a first look was taken."""
    shutil.copytree(scored["screened"].dir, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def asked_in(folder: RunFolder) -> FullScores:
    return FullScores(str(folder.dir), None, Scoring.of(load_sweep(folder.sweep_file)), ONE_CPU["lora"])


def read(folder: RunFolder, trial: str) -> TrialRecord:
    record = folder.read(trial)
    assert record is not None
    return record


@pytest.mark.parametrize("batch", [NAMES[:3], NAMES[3:]], ids=["LoRAs together", "DreamBooth alone"])
def test_a_first_look_and_the_rest_are_a_full_score(
    scored: Mapping[str, RunFolder], screened: RunFolder, batch: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No picture is drawn twice, and the scores are those of a run that drew all at once, each trial alone."""
    make, together = sweeps.execution.score_in_full.make_packed_pictures, []

    def make_and_note(scoring: Any, folder: Any, points: Any, device: str) -> dict[Any, Exception]:
        together.append([trial for trial, _ in points])
        return make(scoring, folder, points, device)

    monkeypatch.setattr(sweeps.execution.score_in_full, "make_packed_pictures", make_and_note)
    first_look = times(screened.trials_dir)
    for name in batch:
        assert [(point.screened, point.num_images) for point in read(screened, name).checkpoints] == [(True, 1)] * 2
    said = list(score_in_full(asked_in(screened), [Wanted(name, step) for name in batch for step in (2, 4)]))
    assert len(said) == 2 * len(batch)
    assert together == ([] if len(batch) == 1 else [[name for name in batch for _ in (2, 4)]])
    for path, time in first_look.items():
        assert times(screened.trials_dir)[path] == time or Path(path).name == "trial.json"
    for name in batch:
        ours, theirs = read(screened, name), read(scored["whole"], name)
        assert ours.seconds > read(scored["screened"], name).seconds
        for mine, other in zip(ours.checkpoints, theirs.checkpoints, strict=True):
            assert not mine.screened
            assert (mine.step, mine.num_images, mine.checkpoint) == (other.step, 2, other.checkpoint)
            assert mine.loss == other.loss
            assert [image.file for image in mine.image_scores] == [image.file for image in other.image_scores]
            assert mine.face_similarity == pytest.approx(other.face_similarity, abs=0.01)
            assert mine.prompt_alignment == pytest.approx(other.prompt_alignment, abs=0.01)
            drawn, alone = (pictures(run, name, mine.step) for run in (screened, scored["whole"]))
            assert np.abs(drawn - alone).max() <= 1, "levels of 255"


def pictures(folder: RunFolder, trial: str, step: int) -> np.ndarray:
    """All of a checkpoint's, in the order of their names."""
    files = sorted(folder.images_dir(trial, step).glob("*.png"))
    return np.stack([np.asarray(Image.open(file), dtype=int) for file in files])


def test_a_batch_that_was_cut_off_goes_on(screened: RunFolder) -> None:
    """What a process had scored before it was lost is not scored again."""
    asked, wanted = asked_in(screened), [Wanted(name, 4) for name in NAMES[:2]]
    assert len(list(score_in_full(asked, wanted[:1]))) == 1
    before = read(screened, NAMES[0])
    assert [said.split()[0] for said in score_in_full(asked, wanted)] == [NAMES[1]]
    assert read(screened, NAMES[0]) == before
    assert list(score_in_full(asked, wanted)) == []


def test_one_whose_pictures_overflow_fails_alone(screened: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would have at its scoring point; it keeps its first look."""
    make = sweeps.execution.score_in_full.make_packed_pictures

    def overflow(scoring: Any, folder: Any, points: Any, device: str) -> dict[Any, Exception]:
        failed = make(scoring, folder, points, device)
        return failed | {point: NonFinitePictureError("prompt 0, seed 1") for point in points if point[0] == NAMES[0]}

    monkeypatch.setattr(sweeps.execution.score_in_full, "make_packed_pictures", overflow)
    list(score_in_full(asked_in(screened), [Wanted(NAMES[0], 2), Wanted(NAMES[1], 2)]))
    first, second = read(screened, NAMES[0]), read(screened, NAMES[1])
    assert (first.status, first.fault) == ("failed", "trial")
    assert first.reason == "NonFinitePictureError: prompt 0, seed 1"
    assert [point.screened for point in first.checkpoints] == [True, True]
    assert second.status == "finished"
    assert [point.screened for point in second.checkpoints] == [False, True]


@pytest.mark.parametrize("num_processes", [1, 2, 5])
def test_all_of_a_trial_is_in_one_batch(folder: RunFolder, num_processes: int) -> None:
    """It has one record, and two processes must not write it; all LoRAs of a batch train the same modules."""
    configs = [LoraConfig(rank=rank, train_text_encoder=rank > 3) for rank in range(1, 6)]
    for config in [*configs, CONFIGS[-1]]:
        folder.write(
            TrialRecord(
                trial=trial_id(config),
                method=config.method,
                status="finished",
                config=config.model_dump(mode="json"),
                checkpoints=(entry(2), entry(4)),
            )
        )
    rows = [row for row in read_results(folder.dir).rows if not row.is_base]
    batches = batches_of(rows, folder, num_processes, pack_size=4)
    assert sorted(each for batch in batches for each in batch) == sorted((row.trial, row.step) for row in rows)
    for trial in {row.trial for row in rows}:
        assert sum(any(each.trial == trial for each in batch) for batch in batches) == 1
    for batch in batches:
        configs_of = [read(folder, trial).method_config for trial, _ in batch]
        assert len({(config.method, config.train_text_encoder) for config in configs_of}) == 1
        assert len(batch) <= 4


def test_loras_are_drawn_together_however_they_were_trained(folder: RunFolder) -> None:
    """What the adapters are decides: plain ones, in the same layers of attention."""
    plain = [
        LoraConfig(rank=1),
        LoraConfig(rank=2, optimizer="adafactor"),
        LoraConfig(rank=3, optimizer="prodigy"),
        LoraConfig(rank=4, use_8bit_adam=True),
        LoraConfig(rank=5, compile=True),
        LoraConfig(rank=6, with_prior_preservation=True, prior_from="base_model"),
    ]
    others = [
        LoraConfig(rank=7, use_dora=True),
        LoraConfig(rank=8, adapter="loha"),
        LoraConfig(rank=9, target_modules="attention+ff"),
        LoraConfig(rank=10, train_text_encoder=True, stop_text_encoder_training=3),
        LoraConfig(rank=11, target_blocks="up"),
    ]
    for config in [*plain, *others]:
        dumped = config.model_dump(mode="json")
        trial = trial_id(config)
        record = TrialRecord(
            trial=trial, method=config.method, status="finished", config=dumped, checkpoints=(entry(2),)
        )
        folder.write(record)
    rows = [row for row in read_results(folder.dir).rows if not row.is_base]
    batches = [{trial for trial, _ in batch} for batch in batches_of(rows, folder, num_processes=1, pack_size=16)]
    assert len(batches) == 1 + len(others)
    assert {trial_id(config) for config in plain} in batches


@pytest.mark.ray
@pytest.mark.slow
def test_a_screened_sweep_scores_its_best_in_full_and_without_screening_all(
    ray_session: None, tiny_sweep: Callable[..., SweepConfig], tmp_path: Path
) -> None:
    """The champion is one of those; a run whose screening is taken out comes to the scores that it would have had."""
    from sweeps.execution.run import run_sweep

    config = tiny_sweep(champion={"prompt_alignment_margin": 2})
    evaluation = config.evaluation.model_validate({**config.evaluation.model_dump(), "screening": SCREENING})
    screening = config.model_copy(update={"evaluation": evaluation})
    run_dir = run_sweep(screening, tmp_path / "screened")
    results = read_results(run_dir)
    trained = [row for row in results.rows if not row.is_base]
    assert sum(not row.screened for row in trained) == 2, "a quarter of eight"
    assert results.champion.row is not None
    assert not results.champion.row.screened
    before = times(run_dir / "trials")
    run_sweep(screening, tmp_path / "screened")
    assert times(run_dir / "trials") == before

    run_sweep(config, tmp_path / "screened")
    ours = {row.key: row for row in read_results(run_dir).rows}
    theirs = {row.key: row for row in read_results(run_sweep(config, tmp_path / "whole")).rows}
    assert ours.keys() == theirs.keys()
    for key, row in ours.items():
        assert not row.screened
        assert row.num_images == theirs[key].num_images
        assert row.face_similarity == pytest.approx(theirs[key].face_similarity, abs=0.01)
        assert row.prompt_alignment == pytest.approx(theirs[key].prompt_alignment, abs=0.01)
