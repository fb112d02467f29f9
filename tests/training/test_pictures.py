"""The one reader of pictures: found in order, read safely, refused by name, rid of what is not theirs to pass on."""

from __future__ import annotations

import random
import shutil
import struct
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from training import pictures
from training.errors import UserError
from training.photos import num_repeats
from training.pictures import find_photos, find_pictures, look_into, pixel_digest, read_picture


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    """A copy of the six drawn photos, to be spoilt."""
    return shutil.copytree(photos, tmp_path / "photos")


def picture(width: int = 96, height: int = 80, seed: int = 9) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    """In levels of 255."""
    return float(np.abs(np.asarray(one, dtype=np.int16) - np.asarray(other.convert("RGB"), dtype=np.int16)).mean())


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


def test_what_is_no_picture_is_named_and_left_out(folder: Path) -> None:
    """Notes are named; captions, hidden files and the system's own pass in silence."""
    for name in ("notes.pdf", ".DS_Store", "Thumbs.db", "photo_1.txt", "photo_2.caption"):
        (folder / name).write_text("words")
    found = look_into(folder, kohya=True)
    assert (len(found.pictures), found.passed_over) == (6, ("notes.pdf",))
    assert found.remarks() == [f"passed over in {folder}: notes.pdf"]


def test_subfolders_that_are_not_looked_into_are_named(folder: Path) -> None:
    """With the pictures in them, however deep; those of an earlier run are what a sweep made, and no mistake."""
    for place in ("crops/old", "10_sks woman", "runs/ada/trials"):
        (folder / place).mkdir(parents=True)
        shutil.copy(folder / "photo_1.png", folder / place / "again.png")
    (folder / "runs" / "ada" / "sweep.yaml").touch()
    assert look_into(folder).passed_over == ("10_sks woman/ (1 picture)", "crops/ (1 picture)")
    assert look_into(folder, kohya=True).passed_over == ("crops/ (1 picture)",)


@pytest.mark.parametrize("find", [find_pictures, find_photos])
def test_a_folder_most_of_which_is_passed_over_is_refused(folder: Path, find: Callable[[Path], list[Path]]) -> None:
    """Six pictures and seven in a subfolder: it is another folder that was meant. What belongs to a picture is none."""
    (folder / "best").mkdir()
    for number in range(7):
        (folder / f"photo_{number % 6}.npz").write_bytes(b"cache")
        (folder / "best" / f"{number}.JPG").write_bytes(b"picture")
    (folder / "best" / "6.JPG").rename(folder / "best" / "6")
    assert len(find(folder)) == 6
    (folder / "best" / "6").rename(folder / "best" / "6.JPG")
    with pytest.raises(UserError, match=r"most of .*photos would be passed over: 6 pictures to read, 7 other.*best/"):
        find(folder)


def test_pictures_are_known_by_their_content(tmp_path: Path) -> None:
    """JPEG under any of its names, a download without one, and a PNG that calls itself HEIC."""
    image = picture()
    names = ("a.jfif", "b.jpe", "c.pjpeg", "d.jpg_large", "e", "f.heic", "g.jpg", "h.tif")
    for name, kind in zip(names, ("JPEG", "JPEG", "JPEG", "JPEG", "WEBP", "PNG", "GIF", "BMP"), strict=True):
        image.save(tmp_path / name, format=kind)
    assert tuple(path.name for path in find_pictures(tmp_path)) == names
    for name in names:
        assert mean_difference(read_picture(tmp_path / name), image) < 12


def test_every_picture_that_cannot_be_read_is_named_before_one_is_read(folder: Path) -> None:
    """With the first one's reason."""
    (folder / "a.jxl").write_bytes(b"\xff\x0a rest")
    (folder / "b.png").write_bytes(b"")
    (folder / "c.svg").write_text("<svg/>")
    with pytest.raises(UserError, match=r"a\.jxl is a JPEG XL picture, which is not read.*neither are b\.png, c\.svg"):
        find_photos(folder)


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
        kind = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "AVIF")[number % 6]
        picture(seed=number % 7).save(stream, format=kind, icc_profile=icc_profile(*DISPLAY_P3))
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


def test_frames_after_the_first_are_named(tmp_path: Path) -> None:
    """Of animations and pages the first counts, and one is told so."""
    first, second = picture(seed=1), picture(seed=2)
    for name in ("a.gif", "b.webp", "c.tif", "d.png"):
        first.save(
            tmp_path / name, save_all=True, append_images=[second], **({"lossless": True} if "w" in name else {})
        )
    first.save(tmp_path / "e.gif")
    found = look_into(tmp_path)
    assert found.animated == ("a.gif", "b.webp", "c.tif", "d.png")
    assert found.remarks() == ["several frames or pages, of which the first counts: a.gif, b.webp, c.tif, d.png"]
    for path in found.pictures:
        assert mean_difference(read_picture(path), first) < 12


def test_a_name_of_any_bytes_is_shown_and_its_picture_read(tmp_path: Path) -> None:
    """Brackets as they are; a line end, an escape sequence and a byte that is no UTF-8 as escapes."""
    names = ("a [b].png", "line\nend.png", "red\x1b[31m.png", "caf\udce9.png")
    for name in names:
        picture().save(tmp_path / name)
        (tmp_path / f"{name}.pdf").write_bytes(b"%PDF-1")
    found = look_into(tmp_path)
    assert {path.name for path in found.pictures} == set(names)
    remark = found.remarks()[0]
    for text in ("a [b].png.pdf", r"line\nend.png.pdf", r"red\x1b[31m.png.pdf", r"caf\xe9.png.pdf"):
        assert text in remark
    assert all(read_picture(path).size == (96, 80) for path in found.pictures)
    (tmp_path / "caf\udce9.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"caf\\xe9\.png"):
        read_picture(tmp_path / "caf\udce9.png")
    assert "\n" not in remark


# --- PNGs with more beside their pixels than in them -----------------------------------------------------------------


def test_a_png_with_large_texts_and_a_large_profile_is_read(tmp_path: Path) -> None:
    """Whatever Pillow thinks of their size, before the pixels or after them."""
    image, texts = picture(), PngImagePlugin.PngInfo()
    texts.add_text("history", "x" * 3_000_000, zip=True)
    texts.add_itxt("more", "y" * 9_000_000, zip=True)
    texts.add(b"tEXt", b"plain\0" + b"z" * 2_000_000, after_idat=True)
    for number in range(90):
        texts.add_text(f"edit {number}", "w" * 900_000, zip=True)
    image.save(tmp_path / "a.png", pnginfo=texts, icc_profile=bytes(100_000_000))
    assert read_picture(tmp_path / "a.png").tobytes() == image.tobytes()


def test_a_large_profile_still_counts(tmp_path: Path) -> None:
    """The colours of a large profile are the same as the small one's."""
    profile = icc_profile(*DISPLAY_P3)
    picture().save(tmp_path / "small.png", icc_profile=profile)
    picture().save(tmp_path / "large.png", icc_profile=profile + bytes(2_000_000))
    small = read_picture(tmp_path / "small.png")
    assert small.tobytes() == read_picture(tmp_path / "large.png").tobytes()
    assert mean_difference(small, picture()) > 3


# --- colours ---------------------------------------------------------------------------------------------------------

DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7139))
"""X, Y, Z of red, green and blue under the profiles' white."""


def icc_profile(*primaries: tuple[float, float, float]) -> bytes:
    """A display's ICC profile, version 2.1, with sRGB's curve in 1024 points."""

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))

    x = np.linspace(0, 1, 1024)
    curve = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    curv = b"curv" + bytes(4) + struct.pack(">I1024H", 1024, *np.rint(curve * 65535).astype(int).tolist())
    white = xyz((0.9642, 1.0, 0.8249))
    tags = {b"wtpt": white, **{name: xyz(v) for name, v in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curv)
    table, data, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">2I", at + len(data), len(content))
        data += content
    header = struct.pack(">I4xI4s4s4s12x4s", at + len(data), 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp").ljust(
        68, b"\0"
    )
    header += struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + data


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp", "a.avif"])
def test_a_wide_gamut_is_brought_to_srgb(name: str, tmp_path: Path) -> None:
    """A phone's Display P3, as ImageCms converts it; the same picture called sRGB keeps every bit."""
    image = Image.new("RGB", (64, 64), (200, 60, 40))
    options = {"quality": 100} if name != "a.png" else {}
    image.save(tmp_path / name, icc_profile=icc_profile(*DISPLAY_P3), **options)
    linear = [((value / 255 + 0.055) / 1.055) ** 2.4 for value in (200, 60, 40)]
    expected = np.linalg.inv(np.transpose(SRGB)) @ np.transpose(DISPLAY_P3) @ linear
    expected = 255 * (1.055 * expected ** (1 / 2.4) - 0.055)
    assert np.abs(np.asarray(read_picture(tmp_path / name))[32, 32] - expected).max() <= 4
    assert np.abs(expected - (200, 60, 40)).max() > 15
    image.save(tmp_path / name, icc_profile=icc_profile(*SRGB), **options)
    with_profile = read_picture(tmp_path / name)
    image.save(tmp_path / name, **options)
    assert with_profile.tobytes() == read_picture(tmp_path / name).tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "CMYK", "1"])
def test_a_profile_of_sRGB_or_of_nothing_changes_no_bit(mode: str, tmp_path: Path) -> None:  # noqa: N802
    """The library's sRGB and another one, a profile cut short, and one for another kind of picture."""
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image = picture().convert(mode)
    image.save(file)
    plain = read_picture(file)
    known = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey_or_ink = [] if mode in ("RGB", "RGBA", "P") else [icc_profile(*DISPLAY_P3)]
    for profile in (known, icc_profile(*SRGB), known[:200], bytes(1000), b"x", *grey_or_ink):
        image.save(file, icc_profile=profile)
        assert read_picture(file).tobytes() == plain.tobytes()


def test_transparency_and_a_profile_go_together(tmp_path: Path) -> None:
    """Colours are converted before they are laid on white."""
    image = picture().convert("RGBA")
    image.paste((0, 200, 0, 0), (0, 0, 96, 20))
    image.save(tmp_path / "a.png", icc_profile=icc_profile(*DISPLAY_P3))
    picture().save(tmp_path / "b.png", icc_profile=icc_profile(*DISPLAY_P3))
    cut_out, whole = (np.asarray(read_picture(tmp_path / name)) for name in ("a.png", "b.png"))
    assert cut_out[:20].min() == 255
    assert np.array_equal(cut_out[20:], whole[20:])


def test_lab_is_read(tmp_path: Path) -> None:
    """Photoshop's other way to save a TIFF."""
    image = Image.new("RGB", (40, 40), (180, 90, 60))
    image.paste((30, 60, 90), (0, 0, 40, 10))
    lab = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    lab.save(tmp_path / "a.tif")
    assert mean_difference(read_picture(tmp_path / "a.tif"), image) < 2


def test_the_scale_of_a_scan_is_the_files(tmp_path: Path) -> None:
    """Sixteen bits and twelve, white as zero, a colour that is transparent; fractions have no white and are refused."""
    grey = np.asarray(picture().convert("L"))
    deep = grey.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    Image.fromarray(65535 - deep).save(tmp_path / "ink.tif", tiffinfo={262: 0})
    Image.fromarray(deep).save(tmp_path / "deep.png", transparency=int(deep[0, 0]))
    for name in ("deep.tif", "ink.tif"):
        assert np.array_equal(np.asarray(read_picture(tmp_path / name))[:, :, 0], grey), name
    expected = np.where(deep == deep[0, 0], 255, grey)
    assert np.array_equal(np.asarray(read_picture(tmp_path / "deep.png"))[:, :, 0], expected)
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "f.tif")
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "i.tif")
    for name in ("f.tif", "i.tif"):
        with pytest.raises(UserError, match=rf"{name}.*white is not known; save it with 8 or 16 bits"):
            read_picture(tmp_path / name)


def test_heic_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With it, a phone's photo is read upright; without it, the message names it."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra heif")
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "a.heic", exif=exif.tobytes())
    turned = picture().transpose(Image.Transpose.ROTATE_270)
    assert mean_difference(read_picture(tmp_path / "a.heic"), turned) < 8
    (tmp_path / "cut.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:700])
    with pytest.raises(UserError, match=r"broken picture.*cut\.heic"):
        read_picture(tmp_path / "cut.heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UserError, match=r"a\.heic is a HEIC picture, which needs the extra `heif`"):
        read_picture(tmp_path / "a.heic")
