"""Laws of laying pictures out. `pytest tests/evaluation/test_pictures.py`, a second."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from evaluation.pictures import grid


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
    grid([[image]], ["caf\udce9.png"], ["line\nend \x1b[31m"], cell_size=128)
