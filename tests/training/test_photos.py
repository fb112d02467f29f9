"""Photos as people have them: read safely, refused by name, rid of what is not theirs to pass on."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny_models import draw_photos
from training import photos as photos_module
from training.config import SubjectConfig
from training.photos import check_photos, crop_square, find_photos, load_photo, num_repeats, read_caption


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


def test_kohyas_folders_are_read_with_their_repeats(folder: Path) -> None:
    """`10_sks woman/a.png` is shown ten times an epoch; other subfolders are not looked into."""
    (folder / "10_sks woman").mkdir()
    (folder / "crops").mkdir()
    (folder / "photo_1.png").rename(folder / "10_sks woman" / "a.png")
    (folder / "photo_3.png").rename(folder / "crops" / "b.png")
    found = {path.name: num_repeats(path) for path in find_photos(folder)}
    assert found == {"a.png": 10, "photo_0.jpg": 1, "photo_2.jpg": 1, "photo_4.jpg": 1, "photo_5.png": 1}


def test_what_is_no_picture_is_named_and_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Notes are warned about; captions and hidden files pass in silence."""
    for name in ("notes.pdf", ".DS_Store", "photo_1.txt"):
        (folder / name).write_text("words")
    with caplog.at_level(logging.WARNING):
        assert len(find_photos(folder)) == 6
    assert "notes.pdf" in caplog.text
    assert ".DS_Store" not in caplog.text
    assert "photo_1.txt" not in caplog.text


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


def _gif_in_disguise(folder: Path) -> None:
    picture().save(folder / "disguised.jpg", format="GIF")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_write("words.jpg", b"I am no picture"), r"not a jpg, png or webp picture.*words\.jpg"),
        (_write("empty.png", b""), r"not a jpg, png or webp picture.*empty\.png"),
        (_gif_in_disguise, r"not a jpg, png or webp picture.*disguised\.jpg"),
        (_cut_short, r"broken picture.*cut\.png"),
        (_write("phone.heic", b"x"), r"only jpg, png and webp.*phone\.heic"),
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


def test_an_enormous_picture_is_refused_before_it_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 x 6,000 px in a file of a few kB: its header is enough."""
    Image.new("1", (10_000, 6_000)).save(folder / "bomb.png")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"50 megapixels, got 10000x6000 px in .*bomb\.png"):
        load_photo(folder / "bomb.png")


def test_a_large_file_is_refused_before_it_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size on disk has a limit too."""
    monkeypatch.setattr(photos_module, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"photo_0\.jpg"):
        load_photo(folder / "photo_0.jpg")


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


def test_mutated_files_are_read_or_refused_and_never_crash(tmp_path: Path) -> None:
    """Three hundred files with flipped bytes: an RGB picture or a ValueError, nothing else."""
    chance = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for number in range(300):
        stream = BytesIO()
        kind = ("JPEG", "PNG", "WEBP")[number % 3]
        picture(seed=number % 7).save(stream, format=kind, exif=Image.Exif().tobytes())
        content = bytearray(stream.getvalue())
        for _ in range(chance.choice((1, 3, 20))):
            content[chance.randrange(len(content))] = chance.randrange(256)
        file = tmp_path / "mutant.jpg"
        file.write_bytes(bytes(content[: chance.choice((len(content), len(content) // 2))]))
        try:
            assert load_photo(file).mode == "RGB"
            outcomes["read"] += 1
        except ValueError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes


# --- pixels ------------------------------------------------------------------------------------------------------


def test_exif_turns_a_photo_upright_and_goes_no_further(tmp_path: Path) -> None:
    """Orientation 6 is applied; place, camera and comment are in neither the picture nor what is saved from it."""
    image = picture(96, 80)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825)[1] = "N"
    image.save(tmp_path / "a.png", exif=exif)
    photo = load_photo(tmp_path / "a.png")
    assert photo.size == (80, 96)
    assert np.array_equal(np.asarray(photo), np.rot90(np.asarray(image), -1))
    assert dict(photo.getexif()) == {}
    assert photo.info == {}
    photo.save(tmp_path / "b.png")
    assert b"SecretCamera" in (tmp_path / "a.png").read_bytes()
    assert b"SecretCamera" not in (tmp_path / "b.png").read_bytes()
    assert b"eXIf" not in (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_colour_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    """Grey, palette, print and 16-bit pictures keep their brightness, near enough."""
    grey = picture().convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = grey.convert("RGB").convert(mode)
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(file)
    photo = load_photo(file)
    assert photo.mode == "RGB"
    assert abs(float(np.asarray(photo).mean()) - float(np.asarray(grey).mean())) < 4


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    """What hides under full transparency is not seen in training."""
    Image.new("RGBA", (40, 40), (200, 0, 0, 0)).save(tmp_path / "a.webp", lossless=True)
    assert np.asarray(load_photo(tmp_path / "a.webp")).min() == 255


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
