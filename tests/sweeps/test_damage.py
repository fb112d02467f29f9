"""Every file of a run folder, cut short, emptied or garbled: no verb answers with anything but words.

pytest tests/sweeps/test_damage.py     about 40 seconds
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.references import References
from sweeps.execution.preparation import prepare_subject
from sweeps.ledger.folder import RunFolder
from sweeps.results.results import read_results
from tests.sweeps.command import Command
from tests.sweeps.test_older_runs import PLACEHOLDER, REPOSITORY, RUNS
from training.checkpoint import latest_checkpoint, open_checkpoint
from training.class_images import keep_only_pictures_of
from training.config import SubjectConfig
from training.dataset import encode_dataset, load_dataset, load_prepared_photos
from training.errors import UserError
from training.preparation import prepare_photos
from training.stats import STATS_FILE, read_stats

CHAMPION = "lora_r1_lr1e-3_1c277f"
CUT = "lora_r1_lr5e-4_8c5be8"
FILES = (
    "sweep.yaml",
    "identity.json",
    "results.csv",
    "renders/renders.json",
    "renders/sheet.png",
    "dataset/dataset.json",
    "dataset/latents.safetensors",
    "dataset/reference_embedding.safetensors",
    "trials/base/trial.json",
    "trials/base/images-0/000-0.png",
    f"trials/{CHAMPION}/trial.json",
    f"trials/{CHAMPION}/images-4/000-0.png",
    f"trials/{CHAMPION}/checkpoint-4/MANIFEST.json",
    f"trials/{CHAMPION}/checkpoint-4/checkpoint.json",
    f"trials/{CHAMPION}/checkpoint-4/pytorch_lora_weights.safetensors",
    f"trials/{CUT}/trial.json",
    f"trials/{CUT}/checkpoint-2/training_state.safetensors",
)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(1, len(content))]


def flip(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def empty(content: bytes, rng: random.Random) -> bytes:
    return b""


def zeroes(content: bytes, rng: random.Random) -> bytes:
    return bytes(len(content))


def another_kind(content: bytes, rng: random.Random) -> bytes:
    return b"[1, 2]"


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "empty": empty,
    "cut": cut,
    "flip": flip,
    "zeroes": zeroes,
    "another kind": another_kind,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the run that 0.1.0 wrote."""
    copy = shutil.copytree(RUNS / "v0.1" / "ada", tmp_path / "ada")
    for name in ("sweep.yaml", "renders/renders.json"):
        text = (copy / name).read_text(encoding="utf-8")
        (copy / name).write_text(text.replace(PLACEHOLDER, str(REPOSITORY)), encoding="utf-8")
    return copy


@pytest.mark.parametrize("damage", ["cut", "flip", "another kind"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_met_with_words(dreamsweep: Command, run: Path, name: str, damage: str) -> None:
    """`show`, `report` and `export` end well or refuse by name; what they show is what is left."""
    if not (run / name).is_file():
        pytest.skip(f"this run has no {name}")
    (run / name).write_bytes(DAMAGES[damage]((run / name).read_bytes(), random.Random(name + damage)))
    for verb in (
        ("show", run),
        ("report", run),
        ("export", run, run.parent / "export", "--trial", CHAMPION, "--format", "lora"),
    ):
        outcome = dreamsweep(*verb)
        assert outcome.code in (0, 2), outcome
        assert "Traceback" not in outcome.err
        if outcome.code == 2:
            assert str(run) in outcome.err
    if name.endswith(("trial.json", "sweep.yaml")) and damage != "flip":
        assert any(name in warning for warning in read_results(run).warnings)


@pytest.mark.parametrize("damage", ["empty", "cut", "zeroes", "another kind"])
def test_a_damaged_identity_is_named_with_the_way_out(run: Path, damage: str) -> None:
    """What the scores depend on is not guessed; without the file it is claimed again."""
    file = RunFolder(run).identity_file
    file.write_bytes(DAMAGES[damage](file.read_bytes(), random.Random(7)))
    with pytest.raises(UserError, match=r"identity\.json: must be whole|whole identity.json.*delete this file") as told:
        RunFolder(run).claim("photos", "key")
    assert str(file) in str(told.value)
    file.unlink()
    RunFolder(run).claim("photos", "key")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_derived_from_the_photos_is_made_anew(
    dataset: tuple[SubjectConfig, str, Path], tmp_path: Path, damage: str, seed: int
) -> None:
    """Record, squares and latents: no damage, however small, is trained on; the next run mends it to equal bytes."""
    subject, base, made = dataset
    folder = shutil.copytree(made, tmp_path / "dataset")
    rng = random.Random(seed)
    file = rng.choice([file for file in sorted(folder.rglob("*")) if file.is_file()])
    whole = file.read_bytes()
    damaged = DAMAGES[damage](whole, rng)
    file.write_bytes(damaged)
    prepare_photos(subject, folder)
    encode_dataset(folder, base, device="cpu")
    after = load_dataset(folder)
    before = load_dataset(made)
    assert np.array_equal(after.latents.mean.numpy(), before.latents.mean.numpy())
    assert after.prompts == before.prompts
    assert [photo.image.tobytes() for photo in load_prepared_photos(folder)] == [
        photo.image.tobytes() for photo in load_prepared_photos(made)
    ]


@pytest.fixture(scope="module")
def dataset(photos: Path, tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[SubjectConfig, str, Path]:
    """A subject prepared and encoded by the small model."""
    folder = tmp_path_factory.mktemp("prepared") / "dataset"
    subject = SubjectConfig(photos=photos, instance_prompt="a photo of sks woman", resolution=64)
    prepare_photos(subject, folder)
    encode_dataset(folder, tiny_base, device="cpu")
    return subject, tiny_base, folder


@pytest.mark.parametrize("seed", range(20))
def test_damaged_latents_are_never_trained_on(
    dataset: tuple[SubjectConfig, str, Path], tmp_path: Path, seed: int
) -> None:
    """One bit anywhere in the tensors is noticed, by name."""
    folder = shutil.copytree(dataset[2], tmp_path / "dataset")
    file = folder / "latents.safetensors"
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    file.write_bytes(content[:header] + flip(content[header:], random.Random(seed)))
    with pytest.raises(UserError, match=r"latents\.safetensors"):
        load_dataset(folder)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("seed", range(8))
def test_damaged_references_are_named_and_made_anew(tmp_path: Path, damage: str, seed: int) -> None:
    """No score is measured against numbers that have changed."""
    file = tmp_path / "reference_embedding.safetensors"
    References("judge", np.eye(2, 4, dtype=np.float32), ("a", "b"), ("c", "d")).save(file)
    file.write_bytes(DAMAGES[damage](file.read_bytes(), random.Random(seed)))
    with pytest.raises(UserError, match=r"reference_embedding\.safetensors: not a whole file"):
        References.load(file)


def test_the_run_embeds_damaged_references_anew(
    tiny_mapping: dict[str, dict[str, object]], tiny_sweep: Callable, tmp_path: Path
) -> None:
    """The next run does not refuse for good what it can make itself."""
    config, folder = tiny_sweep(), RunFolder(tmp_path / "run")
    prepare_subject(config, folder)
    whole = References.load(folder.reference_file)
    folder.reference_file.write_bytes(folder.reference_file.read_bytes()[:-3])
    prepare_subject(config, folder)
    anew = References.load(folder.reference_file)
    assert (anew.embeddings == whole.embeddings).all()
    assert anew.digests == whole.digests


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_never_opened(run: Path, damage: str) -> None:
    """Manifest, record, weights and training state: refused with the folder's name, and not gone on from."""
    folder = run / "trials" / CUT / "checkpoint-2"
    whole = {file: file.read_bytes() for file in folder.iterdir()}
    for seed, file in enumerate(sorted(whole)):
        damaged = DAMAGES[damage](whole[file], random.Random(seed))
        file.write_bytes(damaged)
        assert latest_checkpoint(folder.parent) is None or file.name == "MANIFEST.json"
        if file.name not in ("training_state.safetensors", "MANIFEST.json"):
            with pytest.raises(UserError, match="checkpoint-2 is not whole"):
                open_checkpoint(folder)
        file.write_bytes(whole[file])
    assert latest_checkpoint(folder.parent) is not None


@pytest.mark.parametrize("damage", DAMAGES)
def test_class_pictures_of_unknown_origin_are_drawn_anew(tiny_base: str, tmp_path: Path, damage: str) -> None:
    """A damaged class_images.json says nothing of the pictures beside it."""
    folder = tmp_path / "class_images"
    keep_only_pictures_of(folder, tiny_base, "a woman")
    Image.new("RGB", (8, 8)).save(folder / "00000.png")
    record = folder / "class_images.json"
    whole = record.read_bytes()
    record.write_bytes(DAMAGES[damage](whole, random.Random(3)))
    keep_only_pictures_of(folder, tiny_base, "a woman")
    assert record.read_bytes() == whole
    assert not (folder / "00000.png").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_steps_behind_a_damaged_line_are_left_out(run: Path, damage: str) -> None:
    """Stats are read up to the first line that is not whole."""
    file = run / STATS_FILE
    line = (
        b'{"step": %d, "loss": 0.5, "learning_rate": 1e-4, "gradient_norm": 1, "seconds": 1, "peak_memory_bytes": 1}\n'
    )
    lines = [line % step for step in (1, 2, 3)]
    file.write_bytes(b"".join([*lines[:2], DAMAGES[damage](lines[2], random.Random(1))]))
    assert [stats.step for stats in read_stats(file)][:2] == [1, 2]
