"""Laws of reading pictures and laying them out. `pytest tests/evaluation/test_pictures.py`, a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.pictures import find_pictures, grid, read_picture


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


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_enormous_picture_is_refused_from_its_header(tmp_path: Path) -> None:
    """A small file can claim a size that would fill the memory."""
    Image.new("1", (12_000, 12_000)).save(tmp_path / "vast.png")
    with pytest.raises(ValueError, match=r"vast\.png.*(100 megapixels|exceeds)"):
        read_picture(tmp_path / "vast.png")


def test_a_grid_holds_every_cell() -> None:
    """Each picture stands in its row and column, none over another, with room for the labels."""
    colours = [["red", "lime"], ["blue", "yellow"], ["magenta", "cyan"]]
    rows = [[Image.new("RGB", (32, 16), colour) for colour in row] for row in colours]
    sheet = np.asarray(grid(rows, ["one", "two", "three"], ["left", "right"], cell_size=64))
    corners = {}
    for row in colours:
        for colour in row:
            ys, xs = np.nonzero((sheet == np.asarray(Image.new("RGB", (1, 1), colour))[0, 0]).all(axis=2))
            assert (np.ptp(ys) + 1, np.ptp(xs) + 1) == (32, 64)
            assert len(ys) == 32 * 64
            corners[colour] = (ys.min(), xs.min())
    assert corners["red"][0] == corners["lime"][0] < corners["blue"][0] < corners["magenta"][0]
    assert corners["red"][1] == corners["blue"][1] < corners["yellow"][1]
    assert sheet[:, : corners["red"][1]].min() < 100, "the row labels are drawn"


def test_labels_must_fit_the_grid() -> None:
    """A grid with a label too few would show a picture under another's name."""
    with pytest.raises(ValueError, match="label"):
        grid([[Image.new("RGB", (8, 8))] * 2], ["row"], ["only one"])
    with pytest.raises(ValueError, match="1 or more"):
        grid([], [], [])


def test_long_labels_stay_inside_the_sheet() -> None:
    """A label of any length or script leaves the size of the sheet alone."""
    image = Image.new("RGB", (64, 64))
    short = grid([[image]], ["a"], ["a"], cell_size=128)
    long = grid([[image]], ["a"], ["word " * 40 + "x" * 400], cell_size=128)
    assert long.width == short.width
    assert long.height < short.height + 100
    grid([[image]], ["Жанна"], ["ジャンヌ"], cell_size=128)
