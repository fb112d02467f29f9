"""The one reader of pictures: found in order, read safely, refused by name, rid of what is not theirs to pass on."""

from __future__ import annotations

import logging
import random
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import pictures
from training.photos import num_repeats
from training.pictures import find_photos, find_pictures, pixel_digest, read_picture


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    """A copy of the six drawn photos, to be spoilt."""
    return shutil.copytree(photos, tmp_path / "photos")


def picture(width: int = 96, height: int = 80, seed: int = 9) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def test_pictures_are_found_sorted_by_name_and_other_files_left(tmp_path: Path) -> None:
    """jpg, png and webp in any case, by name; captions, hidden files and folders are no pictures."""
    for name in ("b.PNG", "a.webp", "c.jpeg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("a caption")
    (tmp_path / ".000-1.png.unfinished").write_bytes(b"half")
    (tmp_path / "folder.png.d").mkdir()
    assert [path.name for path in find_pictures(tmp_path)] == ["a.webp", "b.PNG", "c.jpeg"]


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_a_folder_without_pictures_is_refused(tmp_path: Path, name: str) -> None:
    """Nothing to look at is a mistake, told with the folder's name."""
    with pytest.raises(ValueError, match=str(tmp_path / name)):
        find_pictures(tmp_path / name)


def test_a_picture_is_read_upright(tmp_path: Path) -> None:
    """A camera's turned picture comes as a viewer shows it."""
    image = Image.new("RGB", (6, 4), "red")
    exif = image.getexif()
    exif[274] = 6  # orientation: turned a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").size == (4, 6)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_broken_picture_is_named(tmp_path: Path, content: bytes) -> None:
    """A file that is no picture is refused by its name."""
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png"):
        read_picture(path)


def test_a_cut_picture_is_named(tmp_path: Path) -> None:
    """A picture that ends too early is refused, not filled with grey."""
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((64, 64), 50).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"cut\.jpg"):
        read_picture(tmp_path / "cut.jpg")


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


def test_an_enormous_picture_is_refused_before_it_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 x 6,000 px in a file of a few kB: its header is enough."""
    Image.new("1", (10_000, 6_000)).save(folder / "bomb.png")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"50 megapixels, got 10000x6000 px in .*bomb\.png"):
        read_picture(folder / "bomb.png")


def test_a_large_file_is_refused_before_it_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size on disk has a limit too."""
    monkeypatch.setattr(pictures, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"photo_0\.jpg"):
        read_picture(folder / "photo_0.jpg")


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
            assert read_picture(file).mode == "RGB"
            outcomes["read"] += 1
        except ValueError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes


def test_exif_turns_a_photo_upright_and_goes_no_further(tmp_path: Path) -> None:
    """Orientation 6 is applied; place, camera and comment are in neither the picture nor what is saved from it."""
    image = picture(96, 80)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825)[1] = "N"
    image.save(tmp_path / "a.png", exif=exif)
    photo = read_picture(tmp_path / "a.png")
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
    photo = read_picture(file)
    assert photo.mode == "RGB"
    assert abs(float(np.asarray(photo).mean()) - float(np.asarray(grey).mean())) < 4


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    """What hides under full transparency is not seen in training."""
    Image.new("RGBA", (40, 40), (200, 0, 0, 0)).save(tmp_path / "a.webp", lossless=True)
    assert np.asarray(read_picture(tmp_path / "a.webp")).min() == 255


def test_a_picture_in_16_bits_is_the_same_picture_in_8(tmp_path: Path) -> None:
    """Scanners write 16 bits of grey; nothing of it is clipped."""
    grey = np.asarray(picture().convert("L"))
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    assert pixel_digest(read_picture(tmp_path / "16.png")) == pixel_digest(read_picture(tmp_path / "8.png"))
