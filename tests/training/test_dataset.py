"""The prepared subject: a cache that equals a fresh computation, made once and only when something changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import v2

from training import class_images
from training.config import LoraConfig, SubjectConfig
from training.dataset import (
    Dataset,
    begin_class_images,
    draw_class_images,
    encode_dataset,
    encode_image,
    load_dataset,
    load_prepared_photos,
    num_class_images_missing,
)
from training.errors import DivergedError
from training.photos import crop_remarks, square_around
from training.pictures import read_picture
from training.preparation import prepare_photos
from training.share import Share
from training.stable_diffusion import base_pipeline, load_base_model
from training.train import train


def mtimes(folder: Path) -> dict[str, int]:
    return {
        file.relative_to(folder).as_posix(): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()
    }


@pytest.fixture
def own_subject(subject: SubjectConfig, tmp_path: Path) -> SubjectConfig:
    """The subject with a photos folder that a test may change."""
    folder = shutil.copytree(subject.photos, tmp_path / "photos")
    return subject.model_copy(update={"photos": folder, "random_flip": False})


def test_cached_latents_equal_a_fresh_encode(dataset: Dataset, tiny_base: str) -> None:
    """Mean and deviation of every photo and its mirror image, by torchvision's transforms and a VAE loaded anew."""
    vae = AutoencoderKL.from_pretrained(tiny_base, subfolder="vae")
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    assert dataset.flipped_latents is not None
    for number, photo in enumerate(load_prepared_photos(dataset.dir)):
        pixels = transform(photo.image)[None]
        for latents, picture in ((dataset.latents, pixels), (dataset.flipped_latents, pixels.flip(-1))):
            with torch.no_grad():
                fresh = vae.encode(picture).latent_dist
            torch.testing.assert_close(latents.mean[number], fresh.mean[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(latents.std[number], fresh.std[0], rtol=0, atol=1e-5)


def test_class_pictures_are_encoded_too(dataset: Dataset) -> None:
    """As many as were asked for, of the photos' size, all different."""
    assert dataset.class_latents is not None
    assert dataset.class_latents.mean.shape == (4, 4, 8, 8)
    assert len({tuple(mean.flatten().tolist()) for mean in dataset.class_latents.mean}) == 4


def test_preparing_again_does_nothing(own_subject: SubjectConfig, tiny_base: str, tmp_path: Path) -> None:
    """No file of the dataset is touched by a second call."""
    out = tmp_path / "dataset"
    for _ in range(2):
        before = mtimes(out) if out.exists() else None
        prepare_photos(own_subject, out)
        encode_dataset(out, tiny_base, class_images=2, device="cpu")
    assert mtimes(out) == before


def test_a_changed_subject_is_prepared_anew(own_subject: SubjectConfig, tiny_base: str, tmp_path: Path) -> None:
    """A new caption, another photo or another size: the cache follows, and nothing stale is loaded."""
    out = tmp_path / "dataset"
    prepare_photos(own_subject, out)
    encode_dataset(out, tiny_base, device="cpu")
    latents = load_file(out / "latents.safetensors")

    (own_subject.photos / "photo_1.txt").write_text("sks woman in a garden")
    prepare_photos(own_subject, out)
    encode_dataset(out, tiny_base, device="cpu")
    assert load_dataset(out).prompts[:2] == ("a photo of sks woman", "sks woman in a garden")
    assert torch.equal(load_file(out / "latents.safetensors")["mean"], latents["mean"])

    (own_subject.photos / "photo_0.jpg").unlink()
    prepare_photos(own_subject, out)
    assert len(list((out / "photos").iterdir())) == 5
    with pytest.raises(ValueError, match="other photos"):
        load_dataset(out)
    encode_dataset(out, tiny_base, device="cpu")
    assert torch.equal(load_dataset(out).latents.mean, latents["mean"][1:])


def test_missing_class_pictures_alone_are_drawn(own_subject: SubjectConfig, tiny_base: str, tmp_path: Path) -> None:
    """After a kill, or when a trial wants more of them, what is there stays."""
    out = tmp_path / "dataset"
    prepare_photos(own_subject, out)
    seen: list[tuple[int, int]] = []
    encode_dataset(out, tiny_base, class_images=3, device="cpu")
    before = mtimes(out / "class_images")
    (out / "class_images" / "00001.png").unlink()
    encode_dataset(out, tiny_base, class_images=4, device="cpu", progress=lambda *done: seen.append(done))
    after = mtimes(out / "class_images")
    assert {name for name in after if after[name] != before.get(name)} == {"00001.png", "00003.png"}
    assert seen == [(4, 4)]
    latents = load_dataset(out).class_latents
    assert latents is not None
    assert len(latents.mean) == 4


def test_class_pictures_are_the_pipelines_own(tiny_base: str, tmp_path: Path) -> None:
    """The look at whether they are finite changes no pixel."""
    (file,) = class_images.make_class_images(tmp_path, tiny_base, "a woman", 1, device=torch.device("cpu"))
    pipeline = base_pipeline(tiny_base, torch.device("cpu"), torch.float32)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    plain = pipeline(["a woman"], num_inference_steps=25, generator=[torch.Generator().manual_seed(0)]).images[0]
    assert np.array_equal(np.asarray(read_picture(file)), np.asarray(plain))


def test_class_pictures_that_overflow_are_refused(
    tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half precision some base models' VAE gives black pictures, which prior preservation would hold on to."""

    def overflowing(base_model: str, device: torch.device, dtype: torch.dtype, **_: object) -> object:
        pipeline = base_pipeline(base_model, device, dtype)
        torch.nn.init.constant_(pipeline.vae.decoder.conv_out.weight, float("inf"))
        return pipeline

    monkeypatch.setattr(class_images, "base_pipeline", overflowing)
    with pytest.raises(DivergedError, match="class picture 0 on: pixels are not finite"):
        class_images.make_class_images(tmp_path, tiny_base, "a woman", 1, device=torch.device("cpu"))
    assert not list(tmp_path.glob("*.png"))


def test_only_what_is_missing_is_announced(own_subject: SubjectConfig, tiny_base: str, tmp_path: Path) -> None:
    """All, some, none; none where none are wanted, and all again once the prompt is another."""
    out = tmp_path / "dataset"
    prepare_photos(own_subject, out)
    assert num_class_images_missing(out, 0) == 0
    assert num_class_images_missing(out, 2) == 2
    encode_dataset(out, tiny_base, class_images=2, device="cpu")
    begin_class_images(out, tiny_base)
    assert num_class_images_missing(out, 3) == 1
    assert num_class_images_missing(out, 2) == 0
    prepare_photos(own_subject.model_copy(update={"class_prompt": "a drawing of a woman"}), out)
    begin_class_images(out, tiny_base)
    assert num_class_images_missing(out, 2) == 2


def test_several_processes_draw_what_one_draws(own_subject: SubjectConfig, tiny_base: str, tmp_path: Path) -> None:
    """Each its own batches, which are the same for any number of processes: so the pictures are, to the bit."""
    for name, num_processes in (("alone", 1), ("together", 3)):
        out = tmp_path / name
        prepare_photos(own_subject, out)
        begin_class_images(out, tiny_base)
        shares = [Share(rank, num_processes) for rank in range(num_processes)]
        missing = [num_class_images_missing(out, 10, share) for share in shares]
        assert missing == ([10] if num_processes == 1 else [4, 4, 2])
        for share in reversed(shares):
            draw_class_images(out, tiny_base, 10, device="cpu", share=share)
            assert num_class_images_missing(out, 10, share) == 0
    before = mtimes(out / "class_images")
    encode_dataset(out, tiny_base, class_images=10, device="cpu")
    assert mtimes(out / "class_images") == before, "what is there is not drawn again"
    for number in range(10):
        one, other = (tmp_path / name / "class_images" / f"{number:05d}.png" for name in ("alone", "together"))
        assert one.read_bytes() == other.read_bytes()


def test_a_kill_while_drawing_class_pictures_loses_one_batch(
    own_subject: SubjectConfig, tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures are kept as they are made, and the rest are the pictures an undisturbed call makes."""
    monkeypatch.setattr(class_images, "BATCH_SIZE", 1)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    for name in ("killed", "undisturbed"):
        prepare_photos(own_subject, tmp_path / name)
    with pytest.raises(KeyboardInterrupt):
        encode_dataset(tmp_path / "killed", tiny_base, class_images=3, device="cpu", progress=interrupt)
    kept = mtimes(tmp_path / "killed" / "class_images")
    assert len(kept) == 3  # two pictures and their record
    for name in ("killed", "undisturbed"):
        encode_dataset(tmp_path / name, tiny_base, class_images=3, device="cpu")
    assert kept.items() <= mtimes(tmp_path / "killed" / "class_images").items()
    for picture in ("00000.png", "00001.png", "00002.png"):
        first, second = (
            (tmp_path / name / "class_images" / picture).read_bytes() for name in ("killed", "undisturbed")
        )
        assert first == second


def test_class_pictures_of_another_prompt_are_not_used(
    own_subject: SubjectConfig, tiny_base: str, tmp_path: Path
) -> None:
    """They belong to one class prompt and one base model; without a class prompt there are none."""
    out = tmp_path / "dataset"
    pictures = []
    for class_prompt in ("a photo of a woman", "a drawing of a man"):
        prepare_photos(own_subject.model_copy(update={"class_prompt": class_prompt}), out)
        encode_dataset(out, tiny_base, class_images=1, device="cpu")
        pictures.append((out / "class_images" / "00000.png").read_bytes())
    assert pictures[0] != pictures[1]
    prepare_photos(own_subject.model_copy(update={"class_prompt": None}), out)
    with pytest.raises(ValueError, match=r"subject\.class_prompt"):
        encode_dataset(out, tiny_base, class_images=1, device="cpu")


def test_faces_are_cut_out_where_they_are_found(own_subject: SubjectConfig, tmp_path: Path) -> None:
    """The injected finder sees upright photos; `crop: center` does not ask it."""
    seen = []

    def find_faces(image: Image.Image) -> list[tuple[float, float, float, float]]:
        seen.append(image.size)
        return [(0.0, 0.0, 20.0, 20.0), (60.0, 60.0, 70.0, 70.0)][: len(seen) % 3]

    small = own_subject.model_copy(update={"resolution": 32})
    prepare_photos(small, tmp_path / "face", find_faces)
    assert seen == [(96, 80)] * 6
    prepare_photos(small, tmp_path / "none")
    prepare_photos(small.model_copy(update={"crop": "center"}), tmp_path / "center", find_faces)
    assert len(seen) == 6
    squares = {
        name: [np.asarray(photo.image) for photo in load_prepared_photos(tmp_path / name)]
        for name in ("face", "none", "center")
    }
    for number, (face, none, center) in enumerate(zip(*squares.values(), strict=True)):
        assert np.array_equal(none, center)
        assert np.array_equal(face, none) == (number in (2, 5))
    assert crop_remarks(tmp_path / "face") == [
        "photos without a face, cut around their middle instead: photo_2.jpg, photo_5.png",
        "photos with several faces, cut around the largest: photo_1.png, photo_4.jpg",
    ]
    assert [crop_remarks(tmp_path / name) for name in ("none", "center", "nowhere")] == [[], [], []]


def test_photos_that_an_earlier_release_prepared_say_where_no_face_was_found(
    own_subject: SubjectConfig, tmp_path: Path
) -> None:
    """0.1.0 wrote the box of a face or none, and neither number nor digest."""
    prepare_photos(own_subject, tmp_path / "dataset", lambda _: [])
    record = json.loads((tmp_path / "dataset" / "dataset.json").read_text())
    for photo in record["photos"]:
        del photo["num_faces"]
    del record["digest"]
    record["photos"][0]["face"] = [0, 0, 9, 9]
    (tmp_path / "dataset" / "dataset.json").write_text(json.dumps(record))
    (remark,) = crop_remarks(tmp_path / "dataset")
    assert "without a face" in remark
    assert remark.count("photo_") == 5


def test_what_is_not_prepared_is_refused(own_subject: SubjectConfig, tmp_path: Path) -> None:
    """Each missing stage is named with the function that makes it."""
    with pytest.raises(ValueError, match="prepare_photos"):
        load_dataset(tmp_path)
    prepare_photos(own_subject, tmp_path / "dataset")
    with pytest.raises(ValueError, match="encode_dataset"):
        load_dataset(tmp_path / "dataset")


def test_the_base_may_lie_elsewhere_on_this_machine(dataset: Dataset) -> None:
    """A dataset remembers the base it was encoded with, and a path given here wins."""
    assert load_dataset(dataset.dir).base_model == dataset.base_model
    assert load_dataset(dataset.dir, "/models/base").base_model == "/models/base"


def test_ones_own_class_pictures_come_first(own_subject: SubjectConfig, tiny_base: str, tmp_path: Path) -> None:
    """Cut as the photos are; the base model draws what they lack, with the seeds that it would have had anyway."""
    folder = tmp_path / "women"
    (folder / "3_woman").mkdir(parents=True)
    for number in range(3):
        picture_of(number).save(folder / ("3_woman" if number else "") / f"{number}.png")
    given = own_subject.model_copy(update={"class_images": folder})
    seen: list[tuple[int, int]] = []
    out, plain = tmp_path / "own", tmp_path / "plain"
    prepare_photos(given, out)
    encode_dataset(out, tiny_base, class_images=5, device="cpu", progress=lambda *done: seen.append(done))
    prepare_photos(own_subject, plain)
    encode_dataset(plain, tiny_base, class_images=5, device="cpu")
    assert seen == [(5, 5)]
    assert sorted(file.name for file in (out / "class_images").glob("*.png")) == ["00003.png", "00004.png"]
    for name in ("00003.png", "00004.png"):  # to a level or two: how a batch is rounded depends on its size
        drawn = [np.asarray(read_picture(folder / "class_images" / name), dtype=int) for folder in (out, plain)]
        assert np.abs(drawn[0] - drawn[1]).max() <= 2
    own = load_dataset(out).class_latents
    assert own is not None
    vae = load_base_model(tiny_base).vae
    squares = [read_picture(file) for file in sorted((out / "class_photos").glob("*.png"))]
    assert [square.size for square in squares] == [(64, 64)] * 3
    for place, square in enumerate(squares):
        torch.testing.assert_close(own.mean[place], encode_image(vae, square)[0], rtol=0, atol=1e-5)
    assert num_class_images_missing(out, 3) == 0
    encode_dataset(out, tiny_base, class_images=2, device="cpu")
    fewer = load_dataset(out).class_latents
    assert fewer is not None
    assert torch.equal(fewer.mean, own.mean[:2])


def test_other_class_pictures_are_another_dataset(own_subject: SubjectConfig, tmp_path: Path) -> None:
    """By content: a folder that moved is the same, a picture more is not; an empty one is refused."""
    folder = tmp_path / "women"
    folder.mkdir()
    picture_of(0).save(folder / "0.png")
    given = own_subject.model_copy(update={"class_images": folder})
    prepare_photos(given, tmp_path / "dataset")
    before = mtimes(tmp_path / "dataset")
    moved = folder.rename(tmp_path / "elsewhere")
    prepare_photos(given.model_copy(update={"class_images": moved}), tmp_path / "dataset")
    assert mtimes(tmp_path / "dataset") == before
    picture_of(1).save(moved / "1.png")
    prepare_photos(given.model_copy(update={"class_images": moved}), tmp_path / "dataset")
    assert len(list((tmp_path / "dataset" / "class_photos").iterdir())) == 2
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"subject\.class_images: need 1 or more pictures, got 0"):
        prepare_photos(given.model_copy(update={"class_images": tmp_path / "none"}), tmp_path / "dataset")


def picture_of(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (80, 96, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_face_is_where_it_is_in_the_square(own_subject: SubjectConfig, tiny_base: str, tmp_path: Path) -> None:
    """Its box covers as many latent cells as it has of the square's area; without a face none; unasked, not known."""
    box = (30.0, 20.0, 50.0, 50.0)
    small = own_subject.model_copy(update={"resolution": 32})
    for name, find_faces in (("found", lambda _: [box]), ("none", lambda _: []), ("unasked", None)):
        prepare_photos(small, tmp_path / name, find_faces)
        encode_dataset(tmp_path / name, tiny_base, device="cpu")
    left, top, side = square_around((96, 80), box, 32)
    coverage = load_dataset(tmp_path / "found").face_coverage
    assert coverage is not None
    assert coverage.shape == (6, 4, 4)
    expected = (box[2] - box[0]) * (box[3] - box[1]) / side**2
    assert coverage.mean(dim=(1, 2)).tolist() == pytest.approx([expected] * 6, abs=1e-3)
    middle = (torch.arange(4) + 0.5) / 4
    assert (coverage[0].sum(0) @ middle / coverage[0].sum()).item() == pytest.approx((40 - left) / side, abs=0.07)
    assert (coverage[0].sum(1) @ middle / coverage[0].sum()).item() == pytest.approx((35 - top) / side, abs=0.07)
    none = load_dataset(tmp_path / "none").face_coverage
    assert none is not None
    assert not none.any()
    assert load_dataset(tmp_path / "unasked").face_coverage is None
    config = LoraConfig(face_loss_weight=2.0, max_train_steps=1)
    with pytest.raises(ValueError, match="face_loss_weight: where the faces are is not known"):
        train(config, load_dataset(tmp_path / "unasked"), [], out_dir=tmp_path / "run", device="cpu")


def test_photos_that_an_earlier_release_prepared_stay_as_they_are(
    own_subject: SubjectConfig, tiny_base: str, tmp_path: Path
) -> None:
    """Nobody looks for faces again, and no pixel is cut anew; where the faces are in the squares is not known."""
    out = tmp_path / "dataset"
    prepare_photos(own_subject, out, lambda _: [(30.0, 20.0, 50.0, 50.0)])
    record = json.loads((out / "dataset.json").read_text())
    for photo in record["photos"]:
        del photo["face_in_square"]
    del record["digest"]
    (out / "dataset.json").write_text(json.dumps(record))
    before = mtimes(out)
    prepare_photos(own_subject, out, lambda _: pytest.fail("looked for faces"), rare_token="sks")  # noqa: S106
    assert mtimes(out) == before
    encode_dataset(out, tiny_base, device="cpu")
    assert load_dataset(out).face_coverage is None
