"""Photos to train on: refused by name, cut to squares."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny_models import draw_photos
from training.captions import caption_files, read_caption, stray_captions
from training.config import SubjectConfig
from training.photos import check_photos, crop_square, find_photos


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    """A copy of the six drawn photos, to be spoilt."""
    return shutil.copytree(photos, tmp_path / "photos")


def subject_of(folder: Path, resolution: int = 64) -> SubjectConfig:
    return SubjectConfig(photos=folder, instance_prompt="a photo of sks woman", resolution=resolution)


def picture(width: int = 96, height: int = 80, seed: int = 9) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def test_photos_come_sorted_by_name(folder: Path) -> None:
    """The order is the names', not the folder's: every machine sees the same data."""
    (folder / "photo_0.jpg").rename(folder / "zz.jpg")
    assert [path.name for path in find_photos(folder)] == [
        "photo_1.png",
        "photo_2.jpg",
        "photo_3.png",
        "photo_4.jpg",
        "photo_5.png",
        "zz.jpg",
    ]
    assert check_photos(subject_of(folder)) == find_photos(folder)


def test_a_sidecar_text_is_the_caption(folder: Path) -> None:
    """Line ends and a byte order mark are no words; an empty file is no caption."""
    photo = folder / "photo_1.png"
    assert read_caption(photo) is None
    photo.with_suffix(".txt").write_bytes(b"\xef\xbb\xbfsks woman\r\nin a garden\n")
    assert read_caption(photo) == "sks woman in a garden"
    photo.with_suffix(".txt").write_text(" \n")
    assert read_caption(photo) is None
    photo.with_suffix(".txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"photo_1\.txt"):
        check_photos(subject_of(folder))


@pytest.mark.parametrize("suffix", [".caption", ".CAPTION", ".TXT"])
def test_kohyas_captions_are_captions(folder: Path, suffix: str) -> None:
    """Whatever the case of the suffix."""
    photo = find_photos(folder)[0]
    photo.with_suffix(suffix).write_text("sks woman in a garden")
    assert read_caption(photo) == "sks woman in a garden"
    assert caption_files(photo) == [photo.with_suffix(suffix)]


def test_two_captions_must_say_the_same(folder: Path) -> None:
    """Which of two texts is meant is not guessed."""
    photo = find_photos(folder)[0]
    photo.with_suffix(".txt").write_text("sks woman")
    photo.with_suffix(".caption").write_text(" sks  woman\n")
    assert read_caption(photo) == "sks woman"
    photo.with_suffix(".caption").write_text("a woman")
    with pytest.raises(ValueError, match=r"two that differ: .*\.caption and .*\.txt"):
        read_caption(photo)


def test_captions_of_no_photo_are_found(folder: Path) -> None:
    """Beside photos and in kohya's subfolders; a photo's own caption is none of them."""
    photos = find_photos(folder)
    photos[0].with_suffix(".txt").write_text("sks woman")
    (folder / f"{photos[1].name}.txt").write_text("named as some tools do")
    (folder / ".hidden.txt").write_text("")
    assert stray_captions(photos) == [folder / f"{photos[1].name}.txt"]


# --- refusals: each names the law and the file -------------------------------------------------------------------


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _save(name: str, image: Image.Image, **options: object) -> Callable[[Path], None]:
    return lambda folder: image.save(folder / name, **options)  # type: ignore[arg-type]


def _cut_short(folder: Path) -> None:
    image = folder / "photo_1.png"
    (folder / "cut.png").write_bytes(image.read_bytes()[:-200])


def _copy(folder: Path) -> None:
    shutil.copy(folder / "photo_2.jpg", folder / "same.jpg")


def _saved_again(folder: Path) -> None:
    portrait = picture(64, 48).resize((640, 480), Image.Resampling.BICUBIC)
    portrait.save(folder / "portrait.png")
    portrait.resize((480, 360)).save(folder / "sent by mail.jpg", quality=60)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_write("words.jpg", b"I am no picture"), r"no picture by its content.*words\.jpg"),
        (_write("empty.png", b""), r"empty file.*empty\.png"),
        (_cut_short, r"broken picture.*cut\.png"),
        (_write("phone.heic", b"x"), r"no picture by its content.*phone\.heic"),
        (_write("layers.psd", b"8BPS\0"), r"layers\.psd is a Photoshop picture, which is not read"),
        (_write("negative.nef", b"II*\0"), r"negative\.nef is a camera raw picture, which is not read"),
        (_save("tiny.png", picture(96, 24)), r"at least 32 px.*96x24 px in.*tiny\.png"),
        (_copy, r"photo_2\.jpg and .*same\.jpg are two copies"),
        (_saved_again, r"portrait\.png and .*sent by mail\.jpg are two copies"),
    ],
)
def test_a_bad_file_is_refused_by_name(spoil: Callable[[Path], None], message: str, folder: Path) -> None:
    """The law, the value and the file, on one line."""
    spoil(folder)
    with pytest.raises(ValueError, match=message) as refusal:
        check_photos(subject_of(folder))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("count", "found"), [(0, "got 0"), (4, "got 4"), (51, "got 51")])
def test_five_to_fifty_photos_are_needed(count: int, found: str, tmp_path: Path) -> None:
    """Too few and too many are counted in the message."""
    draw_photos(tmp_path / "photos", count)
    with pytest.raises(ValueError, match=f"need 5 to 50 pictures, {found}"):
        check_photos(subject_of(tmp_path / "photos"))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """No such folder is not the same as no photos."""
    with pytest.raises(ValueError, match=r"no such folder: .*nowhere"):
        check_photos(subject_of(tmp_path / "nowhere"))


def test_the_smallest_side_grows_with_the_resolution(folder: Path) -> None:
    """80 px are enough for training at 320 px and too little for 512."""
    check_photos(subject_of(folder, resolution=320))
    with pytest.raises(ValueError, match="at least 128 px at resolution 512, got 96x80 px"):
        check_photos(subject_of(folder, resolution=512))


# --- squares -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (500, 500), (70, 900)])
@pytest.mark.parametrize(
    "face", [None, (10.0, 20.0, 60.0, 90.0), (400.0, 300.0, 640.0, 480.0), (-30.0, -30.0, 20.0, 20.0)]
)
def test_a_crop_is_a_square_inside_the_photo(
    size: tuple[int, int], face: tuple[float, float, float, float] | None
) -> None:
    """Wherever the face is said to be, no pixel from outside the photo gets in."""
    inside = crop_square(Image.new("RGB", size, "white"), face, 64)
    assert inside.size == (64, 64)
    assert np.asarray(inside).min() == 255


def test_a_face_crop_has_the_face_in_its_middle_and_a_centre_crop_has_not() -> None:
    """A square of two and a half face sides around the face."""
    photo = Image.new("RGB", (1600, 600), "black")
    face = (1300.0, 200.0, 1400.0, 300.0)
    photo.paste("white", tuple(int(edge) for edge in face))
    around = np.asarray(crop_square(photo, face, 100).convert("L"))
    bright = np.argwhere(around > 128)
    assert around.shape == (100, 100)
    assert np.abs(bright.mean(axis=0) - 49.5).max() < 1
    assert abs(len(bright) - 1600) < 100  # (100 / 2.5)^2
    assert np.asarray(crop_square(photo, None, 100)).max() == 0


def test_real_photos_of_one_person_are_no_copies(shared_data: Path) -> None:
    """Five portraits of a public figure pass, two of them of the same session."""
    assert len(check_photos(subject_of(shared_data / "people" / "obama", resolution=512))) == 5
