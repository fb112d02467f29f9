"""Scoring in two tiers: which checkpoints are scored in full, and how a first look is judged. No torch, no Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.config import EvaluationConfig, ScreeningConfig
from evaluation.scores import mean_face_similarity, mean_prompt_alignment
from sweeps.config import ChampionConfig
from sweeps.ledger.folder import RunFolder
from sweeps.results.champion import champion
from sweeps.results.results import Results, read_results
from sweeps.results.rule import ChampionRule
from sweeps.results.screening import due_full_scores, kept_by_first_look
from tests.sweeps.fake_run import build_run

NUM_TRIALS, KEEP = 6, 0.25
CHECKPOINTS = NUM_TRIALS * 3
DRAWN: dict[str, Any] = {"num_trials": NUM_TRIALS, "size": 8, "with_renders": False}


@pytest.fixture
def in_full(tmp_path: Path) -> Results:
    """A run of which every checkpoint was scored by four pictures of each prompt."""
    return read_results(build_run(tmp_path / "full", **DRAWN))


@pytest.fixture
def screened(tmp_path: Path) -> Path:
    """The same run, of which only a first look was taken."""
    folder = RunFolder(build_run(tmp_path / "screened", **DRAWN))
    for trial in folder.trials():
        if not trial.is_base:
            rewrite(folder, trial.trial, cut)
    return folder.dir


def evaluation_of(results: Results, screening: ScreeningConfig | None = None) -> EvaluationConfig:
    assert results.config is not None
    return results.config.evaluation.model_copy(update={"screening": screening})


BY_ONE = ScreeningConfig(images_per_prompt=1, keep=KEEP)


def rewrite(folder: RunFolder, trial: str, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder.trial_file(trial)
    record = json.loads(path.read_text())
    record["checkpoints"] = [change(entry) or entry for entry in record["checkpoints"]]
    path.write_text(json.dumps(record))


def cut(entry: dict[str, Any]) -> dict[str, Any]:
    """What a first look by one picture of each prompt would have written."""
    first_seed = min(image["seed"] for image in entry["image_scores"])
    images = [image for image in entry["image_scores"] if image["seed"] == first_seed]
    return {
        **entry,
        "screened": True,
        "image_scores": images,
        "num_images": len(images),
        "face_similarity": sum(image["face_similarity"] or 0.0 for image in images) / len(images),
        "prompt_alignment": sum(image["prompt_alignment"] for image in images) / len(images),
    }


def scored_in_full(run_dir: Path, full: Results, rows: list[Any]) -> Results:
    """The run after these rows have been scored in full."""
    folder = RunFolder(run_dir)
    for row in rows:
        whole = next(other for other in full.rows if other.key == row.key)
        entry = json.loads(super(type(whole), whole).model_dump_json())
        rewrite(folder, row.trial, lambda each, entry=entry: entry if each["step"] == entry["step"] else None)
    return read_results(run_dir)


def test_the_best_part_by_the_first_look_is_scored_in_full(screened: Path, in_full: Results) -> None:
    """Best first; when they have been, nothing is left to do, although their order may be another now."""
    results = read_results(screened)
    evaluation = evaluation_of(results, BY_ONE)
    due = due_full_scores(results, evaluation)
    assert len(due) == round(KEEP * CHECKPOINTS + 0.5)
    ranked = [row for row in results.rows if not row.is_base]
    assert [row.key for row in due] == [row.key for row in ranked[: len(due)]]
    after = scored_in_full(screened, in_full, due)
    assert due_full_scores(after, evaluation) == []
    assert sum(not row.screened for row in after.rows) == len(due) + 1, "the base model has all pictures"


def test_a_run_in_full_tells_what_a_first_look_would_have_kept(screened: Path, in_full: Results) -> None:
    evaluation = evaluation_of(in_full, BY_ONE)
    kept = kept_by_first_look([row for row in in_full.rows if not row.is_base], evaluation, in_full.rule)
    assert [row.key for row in kept] == [row.key for row in due_full_scores(read_results(screened), evaluation)]
    assert all(len(row.image_scores) == 12 for row in kept), "they come back as they are"


def test_more_are_scored_where_none_follows_its_prompts(screened: Path, in_full: Results) -> None:
    """Until one does, or none is left."""
    strict = ChampionConfig(prompt_alignment_margin=0)
    rounds, results = 0, read_results(screened)
    assert results.base is not None
    impossible = replace(ChampionRule.of(strict, results.base), margin=-1.0)
    while due := due_full_scores(replace(results, rule=impossible), evaluation_of(results, BY_ONE)):
        results = scored_in_full(screened, in_full, due)
        rounds += 1
    assert rounds == round(1 / KEEP)
    assert not any(row.screened for row in results.rows)


def test_without_screening_all_that_was_screened_is_due(screened: Path, in_full: Results) -> None:
    results = read_results(screened)
    assert len(due_full_scores(results, evaluation_of(results))) == CHECKPOINTS
    assert due_full_scores(in_full, evaluation_of(in_full)) == []
    assert due_full_scores(in_full, evaluation_of(in_full, BY_ONE)) == []


def test_a_trial_whose_pictures_overflowed_is_not_asked_again(screened: Path) -> None:
    results = read_results(screened)
    (first, *_) = due_full_scores(results, evaluation_of(results, BY_ONE))
    path = RunFolder(screened).trial_file(first.trial)
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "failed", "fault": "trial"}))
    results = read_results(screened)
    assert first.trial not in {row.trial for row in due_full_scores(results, evaluation_of(results, BY_ONE))}


def test_a_first_look_is_measured_from_the_base_models_same_pictures(screened: Path) -> None:
    """Prompts are not alike: the base model's mean over all pictures is another."""
    results = read_results(screened)
    assert results.base is not None
    rule = ChampionRule.of(ChampionConfig(prompt_alignment_margin=0.02), results.base)
    row = next(row for row in results.rows if row.screened)
    keys = {image.key for image in row.image_scores}
    same = [image for image in results.base.image_scores if image.key in keys]
    of_same = mean_prompt_alignment(same)
    assert len(same) == 3
    assert of_same is not None
    assert of_same != results.base.prompt_alignment
    assert rule.qualifies(row.model_copy(update={"prompt_alignment": of_same - 0.02}))
    assert not rule.qualifies(row.model_copy(update={"prompt_alignment": of_same - 0.0201}))


def test_what_was_scored_in_full_stands_before_any_first_look(screened: Path, in_full: Results) -> None:
    """However high that one is; and behind stands what does not follow its prompts."""
    results = scored_in_full(screened, in_full, due_full_scores(read_results(screened), evaluation_of(in_full, BY_ONE)))
    high = results.rows[-1].model_copy(update={"face_similarity": 1.0, "prompt_alignment": 1.0})
    assert high.screened
    named = champion([*results.rows[:-1], high], results.rule)
    assert named.row is not None
    assert not named.row.screened
    num_full = sum(not row.screened for row in results.rows) - 1
    assert f"(of {num_full} scored in full, {CHECKPOINTS} in all)" in named.reason
    assert mean_face_similarity(named.row.image_scores, named.row.no_face_similarity) == pytest.approx(
        named.row.face_similarity
    )


def test_the_base_model_stands_below_the_first_looks_that_beat_it(screened: Path, in_full: Results) -> None:
    """It has all of its pictures, and would stand before all of them."""
    results = scored_in_full(screened, in_full, due_full_scores(read_results(screened), evaluation_of(in_full, BY_ONE)))
    assert results.base is not None
    before = results.rows[: results.rows.index(results.base)]
    better = [
        row
        for row in results.rows
        if results.rule.qualifies(row) and row.face_similarity > results.base.face_similarity
    ]
    assert any(row.screened for row in better)
    assert {row.key for row in better} == {row.key for row in before}


def test_while_a_sweep_runs_the_champion_is_one_of_a_first_look_and_says_so(screened: Path) -> None:
    named = read_results(screened).champion
    assert named.row is not None
    assert named.row.screened
    assert named.reason.startswith("by a first look at a part of its pictures, its face similarity of")
    assert f"(of {CHECKPOINTS})" in named.reason
