"""Laws of scores, with a judge whose faces are colours. `pytest tests/evaluation/test_score.py`, ten seconds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.config import ClipConfig
from evaluation.face import FaceEncoder
from evaluation.face_encoders import load_face_encoder
from evaluation.prompt import load_clip
from evaluation.references import embed_references
from evaluation.score import PictureFile, read_prompts, score_folder, score_images
from evaluation.scores import Score
from tests.evaluation.colour_faces import ColourEncoder, colour_photos
from training.errors import UserError

RED, GREEN, BLACK, GREY = (200, 0, 0), (0, 200, 0), (0, 0, 0), (90, 90, 90)


def pictures(*colours: tuple[int, int, int], prompt: str | None = None) -> list[PictureFile]:
    return [PictureFile(f"{i}.png", Image.new("RGB", (10, 10), c), prompt, i) for i, c in enumerate(colours)]


DEMO = Path(__file__).parents[2] / "examples" / "demo"


@pytest.fixture(scope="module")
def demo_encoder() -> FaceEncoder:
    """The demo's judge of drawn faces."""
    return load_face_encoder(str(DEMO / "family" / "face_encoder"), "cpu")


@pytest.fixture(scope="module")
def red_photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return colour_photos(tmp_path_factory.mktemp("red"), RED, (180, 0, 0))


def test_the_mean_counts_pictures_without_a_face_as_zero(red_photos: list[Path]) -> None:
    """They lower the mean, stay in the count of pictures, and have no similarity of their own."""
    judge = ColourEncoder()
    score = score_images(pictures(RED, BLACK, GREEN, BLACK), embed_references(red_photos, judge), judge)
    assert [image.face_similarity for image in score.images] == [pytest.approx(1), None, pytest.approx(0), None]
    assert score.face_similarity == pytest.approx(0.25)
    assert (score.num_images, score.num_faces) == (4, 2)
    assert [image.num_faces for image in score.images] == [1, 0, 1, 0]
    assert score.prompt_alignment is None
    assert score.clip is None


def test_the_largest_face_counts(red_photos: list[Path]) -> None:
    """In a picture with several faces the first of the encoder's order is compared; their number is recorded."""
    judge = ColourEncoder()
    score = score_images(pictures((255, 255, 255)), embed_references(red_photos, judge), judge)
    assert score.images[0].num_faces == 2
    assert score.images[0].face_similarity == pytest.approx(3**-0.5)
    assert score.num_faces == 1


def test_the_order_of_pictures_does_not_matter(red_photos: list[Path]) -> None:
    """The same pictures in another order get the same scores."""
    judge = ColourEncoder()
    references = embed_references(red_photos, judge)
    some = pictures(*[(10 * i, 200 - 10 * i, 0) for i in range(20)])
    forth, back = score_images(some, references, judge), score_images(some[::-1], references, judge)
    assert forth.images == back.images[::-1]
    assert forth.face_similarity == pytest.approx(back.face_similarity, abs=1e-12)


def test_alignment_is_the_same_with_and_without_the_rare_token(red_photos: list[Path], tiny_clip: str) -> None:
    """CLIP never sees the word that names the person; other words it does see."""
    judge, clip = ColourEncoder(), load_clip(ClipConfig(model=tiny_clip, pretrained=None), "cpu")
    references = embed_references(red_photos, judge)

    def alignment(prompt: str, *rare_token: str | None) -> float | None:
        return score_images(pictures(RED, prompt=prompt), references, judge, clip, *rare_token).prompt_alignment

    plain = alignment("a photo of woman in a garden")
    assert alignment("a photo of sks woman in a garden") == plain
    assert alignment("a photo of zwx woman in a garden", "zwx") == plain
    assert alignment("a photo of sks woman in a garden", None) != plain
    assert alignment("a photo of sks man in a garden") != plain


def test_the_mean_alignment_is_of_each_picture_with_its_own_prompt(red_photos: list[Path], tiny_clip: str) -> None:
    """Each picture is judged by its own prompt; the record keeps the prompt as it was written."""
    judge, clip = ColourEncoder(), load_clip(ClipConfig(model=tiny_clip, pretrained=None), "cpu")
    some = [*pictures(RED, prompt="sks woman"), *pictures(GREEN, prompt="a garden")]
    score = score_images(some, embed_references(red_photos, judge), judge, clip)
    expected = clip.prompt_alignment([picture.image for picture in some], ["woman", "a garden"])
    assert [image.prompt_alignment for image in score.images] == pytest.approx(expected, abs=1e-6)
    assert score.prompt_alignment == pytest.approx(sum(expected) / 2, abs=1e-6)
    assert [image.prompt for image in score.images] == ["sks woman", "a garden"]
    assert score.clip == clip.name


def test_what_cannot_be_scored_is_refused(red_photos: list[Path], tiny_clip: str) -> None:
    """No pictures, a picture without its prompt, references of another encoder."""
    judge, clip = ColourEncoder(), load_clip(ClipConfig(model=tiny_clip, pretrained=None), "cpu")
    references = embed_references(red_photos, judge)
    with pytest.raises(ValueError, match="1 or more"):
        score_images([], references, judge)
    with pytest.raises(ValueError, match=r"0\.png: has no prompt"):
        score_images(pictures(RED), references, judge, clip)
    other = ColourEncoder()
    other.name = "another judge"
    with pytest.raises(ValueError, match="another judge"):
        score_images(pictures(RED), references, other)


def test_a_score_survives_json(red_photos: list[Path]) -> None:
    """Written as JSON (no NaN in it) and read back it is the same, with the fields that scripts rely on."""
    judge = ColourEncoder()
    score = score_images(pictures(RED, BLACK), embed_references(red_photos, judge), judge)
    text = json.dumps(score.model_dump(), allow_nan=False)
    assert Score.model_validate_json(text) == score
    assert {"face_similarity", "prompt_alignment", "num_images", "num_faces", "face_encoder", "images"} <= set(
        json.loads(text)
    )
    assert {"file", "face_similarity", "prompt_alignment"} <= set(json.loads(text)["images"][1])


def test_a_folder_scored_against_itself_leaves_each_photo_out(tmp_path: Path) -> None:
    """It says how alike real photos are, not that each photo is like itself; one photo alone is like itself."""
    colour_photos(tmp_path, RED, GREEN)
    score = score_folder(tmp_path, tmp_path, ColourEncoder())
    assert [(image.face_similarity, image.left_out) for image in score.images] == [(pytest.approx(0), True)] * 2
    (tmp_path / "alone").mkdir()
    (photo,) = colour_photos(tmp_path / "alone", RED)
    alone = score_folder(tmp_path / "alone", [photo], ColourEncoder())
    assert (alone.face_similarity, alone.images[0].left_out) == (pytest.approx(1), False)


def test_photos_in_kohyas_subfolders_are_references_too(tmp_path: Path) -> None:
    """`10_sks woman` counts as its photos do beside it; the pictures to score are only those of the folder itself."""
    flat, kohya, images = tmp_path / "flat", tmp_path / "kohya", tmp_path / "images"
    for folder, colours in (
        (flat, (RED, GREEN)),
        (kohya, (RED,)),
        (kohya / "10_sks woman", (GREEN,)),
        (images, (GREY,)),
        (images / "10_sks woman", (RED,)),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        colour_photos(folder, *colours)
    score = score_folder(images, kohya, ColourEncoder())
    assert score == score_folder(images, flat, ColourEncoder())
    assert score != score_folder(images, kohya / "10_sks woman", ColourEncoder())
    assert score.num_images == 1


def save_16_bit_grey(grey: Image.Image, path: Path) -> None:
    """A grey picture with 16 bits a pixel, the way scanners write it."""
    Image.fromarray(np.asarray(grey.convert("L"), dtype=np.uint16) * 257).save(path)


def save_cut_out(picture: Image.Image, path: Path) -> None:
    """A picture whose white parts are transparent, with another colour in them that nobody sees."""
    pixels = np.asarray(picture)
    white = (pixels == 255).all(axis=2, keepdims=True)
    hidden = np.where(white, np.uint8([0, 90, 30]), pixels)
    Image.fromarray(np.concatenate([hidden, np.where(white, 0, 255).astype(np.uint8)], axis=2)).save(path)


@pytest.mark.parametrize(
    ("mode", "save"), [("L", save_16_bit_grey), ("RGB", save_cut_out)], ids=["16-bit grey", "cut out"]
)
def test_a_file_format_changes_no_score(
    tmp_path: Path, mode: str, save: Callable[[Image.Image, Path], None], demo_encoder: FaceEncoder
) -> None:
    """Photos and pictures are read alike: what looks the same in another kind of file scores the same in either place.

    And it is known to be the same photo, so that it is not compared with itself.
    """
    for name, numbers in (("photos", (0, 1, 2)), ("pictures", (4, 5))):
        for folder in ("plain", "other"):
            (tmp_path / folder / name).mkdir(parents=True)
        for number in numbers:
            picture = Image.open(DEMO / "photos" / f"{number:03d}.png").convert(mode).convert("RGB")
            picture.paste("white", (0, 0, picture.width, 40))
            picture.save(tmp_path / "plain" / name / f"{number}.png")
            save(picture, tmp_path / "other" / name / f"{number}.png")
    plain = score_folder(tmp_path / "plain" / "pictures", tmp_path / "plain" / "photos", demo_encoder)
    assert plain.num_faces == 2
    for pictures_as, photos_as in (("plain", "other"), ("other", "plain"), ("other", "other")):
        other = score_folder(tmp_path / pictures_as / "pictures", tmp_path / photos_as / "photos", demo_encoder)
        assert other == plain, (pictures_as, photos_as)
    themselves = score_folder(tmp_path / "other" / "photos", tmp_path / "plain" / "photos", demo_encoder)
    assert all(image.left_out for image in themselves.images)


def test_prompts_reach_the_pictures_of_a_folder(tmp_path: Path, red_photos: list[Path], tiny_clip: str) -> None:
    """Names of generated pictures carry the index of their prompt and their seed."""
    clip = load_clip(ClipConfig(model=tiny_clip, pretrained=None), "cpu")
    for name in ("000-7.png", "000-8.png", "001-7.png"):
        Image.new("RGB", (10, 10), GREY).save(tmp_path / name)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("sks woman\n\nsks woman in a garden\n")
    score = score_folder(tmp_path, red_photos, ColourEncoder(), prompts, clip)
    assert [(i.prompt, i.seed) for i in score.images] == [
        ("sks woman", 7),
        ("sks woman", 8),
        ("sks woman in a garden", 7),
    ]
    assert score_folder(tmp_path, red_photos, ColourEncoder(), None, clip).prompt_alignment is None
    with pytest.raises(ValueError, match="needs a CLIP model"):
        score_folder(tmp_path, red_photos, ColourEncoder(), prompts)


@pytest.mark.parametrize(
    ("lines", "names", "prompts"),
    [
        ("one", ["a.png", "b.png"], ["one", "one"]),
        ("one\ntwo", ["a.png", "b.png"], ["one", "two"]),
        ("one\r\ntwo\r\n", ["a.png", "b.png"], ["one", "two"]),
        ("one\ntwo\nthree", ["000-1.png", "002-1.png"], ["one", "three"]),
        ("one\ntwo", ["001-1.png", "001-2.png"], ["two", "two"]),
        ("one\ntwo", ["000-1.png", "b.png"], ["one", "two"]),
    ],
)
def test_prompts_are_given_to_pictures(tmp_path: Path, lines: str, names: list[str], prompts: list[str]) -> None:
    """One for all, one each in order, or by the index in the name."""
    file = tmp_path / "prompts.txt"
    file.write_bytes(lines.encode())
    assert read_prompts(file, names) == prompts


@pytest.mark.parametrize(
    ("lines", "names", "message"),
    [
        (b"one\ntwo", ["a.png"] * 3, "1 line or 3 .*got 2"),
        (b"", ["a.png"], "got 0"),
        (b"one\ntwo", ["000-1.png", "004-1.png", "001-1.png"], "1 line or 5 and more .*got 2"),
        (b"\xff\xfe\x00bad", ["a.png"], "cannot be read"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(tmp_path: Path, lines: bytes, names: list[str], message: str) -> None:
    """No picture is ever judged by another's prompt."""
    file = tmp_path / "prompts.txt"
    file.write_bytes(lines)
    with pytest.raises(ValueError, match=message):
        read_prompts(file, names)
    with pytest.raises(ValueError, match="nowhere"):
        read_prompts(tmp_path / "nowhere.txt", names)


# --- nothing is left out in silence ----------------------------------------------------------------------------------


def test_a_score_names_what_it_passed_over(tmp_path: Path) -> None:
    """Files and subfolders of the pictures, and what is special about the photos; all of it in the JSON too."""
    images, photos = tmp_path / "images", tmp_path / "photos"
    for folder in (images / "more", photos):
        folder.mkdir(parents=True)
    colour_photos(images, RED, GREEN, GREY)
    colour_photos(images / "more", RED)
    (images / "notes.pdf").write_bytes(b"%PDF")
    colour_photos(photos, RED, (0, 0, 0), (255, 255, 255))
    (photos / "film.mov").write_bytes(b"film")
    score = score_folder(images, photos, ColourEncoder())
    assert score.passed_over == ("notes.pdf", "more/ (1 picture)")
    assert score.references is not None
    assert (score.references.without_face, score.references.several_faces) == (("1.png",), ("2.png",))
    said = json.loads(score.model_dump_json())
    assert said["passed_over"] == ["notes.pdf", "more/ (1 picture)"]
    assert [remark.split(":")[0] for remark in said["remarks"]] == [
        f"passed over in {images}",
        f"passed over in {photos}",
        "reference photos without a face, left out of the mean",
        "reference photos with several faces, the largest counts",
    ]


@pytest.mark.parametrize("name", ["a.heic", "a.jxl", "a.cr2", "a.jpg"])
def test_a_picture_that_cannot_be_read_ends_the_scoring(tmp_path: Path, name: str) -> None:
    """By its name, before a face is looked for: a mean of the others would not be of the folder."""
    colour_photos(tmp_path, RED, GREEN)
    (tmp_path / name).write_bytes(b"II*\0 and more")
    if name == "a.jpg":
        (tmp_path / name).write_bytes(b"words")
    with pytest.raises(UserError, match=re.escape(name)):
        score_folder(tmp_path, colour_photos(tmp_path, RED), ColourEncoder())


@pytest.mark.parametrize(
    "name", ["a [b].png", "quo\"te's.png", "line\nend.png", "=1+1.png", "Жанна.png", "caf\udce9.png"]
)
def test_a_score_keeps_the_files_name(tmp_path: Path, name: str) -> None:
    """As it is, in the record and back from JSON; only bytes that are no UTF-8 are escaped."""
    colour_photos(tmp_path, RED)[0].rename(tmp_path / name)
    score = score_folder(tmp_path, tmp_path, ColourEncoder())
    assert score.images[0].file == name.replace("\udce9", r"\xe9")
    assert Score.model_validate_json(score.model_dump_json()) == score
