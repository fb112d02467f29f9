"""Laws of the held-out photos: nobody trains on what pictures are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evaluation.references import References
from sweeps.config import SweepConfig, parse_sweep
from sweeps.execution.preparation import prepare_subject
from sweeps.held_out import claim_held_out, held_out_photos, num_held_out
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import BASE_TRIAL
from tests.sweeps.ledger_entries import entry, record
from training.errors import UserError
from training.photos import prepared_record
from training.preparation import load_unseen


def sweep(folder: Path, drawn_faces: Path, num_photos: int, seed: int = 0, **subject: Any) -> SweepConfig:
    """Of so many photos, each of another colour."""
    photos = folder / "photos"
    if not photos.exists():
        photos.mkdir(parents=True)
        for i in range(num_photos):
            image = Image.linear_gradient("L").resize((64, 64)).rotate(360 * i / num_photos).convert("RGB")
            image.save(photos / f"{i:02d}.png")
    return parse_sweep(
        {
            "name": "ada",
            "base_model": "owner/model",
            "subject": {
                "photos": str(photos),
                "instance_prompt": "a photo of sks woman",
                "class_prompt": "a photo of a woman",
                "resolution": 64,
                **subject,
            },
            "methods": {"lora": {"max_train_steps": 30}},
            "search": {"seed": seed},
            "evaluation": {
                "prompts": ["sks woman in a garden"],
                "at_steps": [30],
                "face": {"encoder": str(drawn_faces)},
            },
        }
    )


@pytest.mark.parametrize(("num_photos", "expected"), [(5, 0), (9, 0), (10, 2), (12, 3), (20, 5)])
def test_a_quarter_of_ten_or_more_is_held_out(
    tmp_path: Path, drawn_faces: Path, num_photos: int, expected: int
) -> None:
    """Never fewer than two, and none where training needs all or other photos are named."""
    config = sweep(tmp_path, drawn_faces, num_photos)
    assert len(held_out_photos(config)) == num_held_out(config, num_photos) == expected
    face = config.evaluation.face.model_copy(update={"references": tmp_path / "photos"})
    named = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"face": face})})
    assert held_out_photos(named) == []


def test_what_is_asked_for_is_held_out_if_training_can_spare_it(tmp_path: Path, drawn_faces: Path) -> None:
    """0 is none; more than leaves five is refused."""
    assert held_out_photos(sweep(tmp_path, drawn_faces, 12, held_out_photos=0)) == []
    assert len(held_out_photos(sweep(tmp_path, drawn_faces, 12, held_out_photos=7))) == 7
    with pytest.raises(UserError, match=r"subject\.held_out_photos: must leave 5 or more photos .* got 8 of 12"):
        held_out_photos(sweep(tmp_path, drawn_faces, 12, held_out_photos=8))


def test_another_seed_holds_out_others(tmp_path: Path, drawn_faces: Path) -> None:
    """Over enough seeds each photo has its turn, and the same seed is the same choice."""
    chosen = [held_out_photos(sweep(tmp_path, drawn_faces, 12, seed=seed)) for seed in range(12)]
    assert all(len(photos) == 3 for photos in chosen)
    assert {photo for photos in chosen for photo in photos} == set((tmp_path / "photos").iterdir())
    assert chosen[0] == held_out_photos(sweep(tmp_path, drawn_faces, 12))
    assert chosen[0] != chosen[1]


def test_nobody_trains_on_what_pictures_are_compared_with(tmp_path: Path, drawn_faces: Path) -> None:
    """The prepared photos and the references have none in common; the trained faces are told beside."""
    config, folder = sweep(tmp_path, drawn_faces, 12), RunFolder(tmp_path / "run")
    (tmp_path / "run").mkdir()
    said = prepare_subject(config, folder)
    trained = {photo["source"] for photo in prepared_record(folder.dataset_dir)["photos"]}
    compared = set(References.load(folder.reference_file).used)
    assert len(trained) == 9
    assert len(compared) == 3
    assert not trained & compared
    assert set(References.load(folder.trained_file).used) == trained
    assert len(load_unseen(folder.dataset_dir)) == 3
    assert any("held out, not trained on" in line for line in said)
    before = {path: path.stat().st_mtime_ns for path in folder.dataset_dir.rglob("*") if path.is_file()}
    prepare_subject(config, folder)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_run_keeps_the_photos_that_it_began_with(tmp_path: Path, drawn_faces: Path) -> None:
    """Whatever the seed is by now; and one that was begun before photos were held out trains on all of them."""
    folder = RunFolder(tmp_path / "run")
    (tmp_path / "run").mkdir()
    first = claim_held_out(sweep(tmp_path, drawn_faces, 12), folder)
    assert claim_held_out(sweep(tmp_path, drawn_faces, 12, seed=1), folder) == first != []
    older = RunFolder(tmp_path / "older")
    (tmp_path / "older").mkdir()
    older.write(record(BASE_TRIAL, entry(0)))
    assert claim_held_out(sweep(tmp_path, drawn_faces, 12), older) == []
