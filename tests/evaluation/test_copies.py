"""Laws of the check for copies: a photo is found again however it was saved, another picture is not it."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from evaluation.copies import check_copies, diversity


def picture(seed: int, side: int = 96) -> Image.Image:
    """A soft picture of its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


PHOTOS = [(f"{seed}.jpg", picture(seed)) for seed in range(12)]
UNSEEN = [picture(seed) for seed in range(100, 103)]
NEW = [(f"{seed:03d}-0.png", picture(seed)) for seed in range(200, 206)]


def saved_again(image: Image.Image) -> Image.Image:
    """As JPEG of low quality, smaller and softer."""
    buffer = io.BytesIO()
    image.resize((64, 64)).filter(ImageFilter.GaussianBlur(1)).save(buffer, "JPEG", quality=40)
    return Image.open(buffer)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved again": saved_again,
    "mirrored": lambda image: saved_again(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "in other light": lambda image: saved_again(image.point(lambda level: 0.5 * level + 60)),
}


@pytest.mark.parametrize("change", COPIES)
@pytest.mark.parametrize("unseen", [UNSEEN, []], ids=["by unseen photos", "by the photos themselves"])
def test_a_copy_is_found_and_names_its_photo(unseen: list[Image.Image], change: str) -> None:
    """Softer, smaller and saved again, mirrored too, as `random_flip` trains, or darker; one among many is enough."""
    check = check_copies([*NEW, ("copy.png", COPIES[change](PHOTOS[7][1]))], PHOTOS, unseen)
    assert check.num_copies == 1
    assert check.is_copying
    copy = min(check.nearest, key=lambda each: each.ratio)
    assert (copy.file, copy.photo) == ("copy.png", "7.jpg")


@pytest.mark.parametrize("unseen", [UNSEEN, []], ids=["by unseen photos", "by the photos themselves"])
def test_new_pictures_are_no_copies(unseen: list[Image.Image]) -> None:
    """Of the same kind as the photos, and none of them."""
    check = check_copies(NEW, PHOTOS, unseen)
    assert not check.is_copying
    assert min(each.ratio for each in check.nearest) > 0.5


def test_a_copy_of_an_unseen_photo_is_none() -> None:
    """What was not trained on cannot have been learnt by heart."""
    check = check_copies([("x.png", saved_again(UNSEEN[0]))], PHOTOS, UNSEEN)
    assert not check.is_copying
    assert check.nearest[0].ratio > 1


def test_an_empty_picture_is_no_copy() -> None:
    """What a diverged model draws has no contrast to be made equal."""
    (flat,) = check_copies([("flat.png", Image.new("RGB", (96, 96)))], PHOTOS, UNSEEN).nearest
    assert 0.9 < flat.ratio < 1.1


def test_nothing_to_compare_is_a_mistake() -> None:
    """Without pictures, or with a single photo, there is no answer."""
    with pytest.raises(ValueError, match="need pictures and 2 or more photos"):
        check_copies([], PHOTOS, UNSEEN)
    with pytest.raises(ValueError, match="got 6 and 1"):
        check_copies(NEW, PHOTOS[:1], UNSEEN)


def test_diversity_is_of_pictures_of_one_prompt() -> None:
    """None at all where a model draws one picture; prompts that differ do not count."""
    same = [("a", picture(1)), ("a", picture(1)), ("b", picture(2)), ("b", picture(2))]
    assert diversity(same) == pytest.approx(0.0)
    varied = diversity([("a", picture(1)), ("a", picture(2))])
    assert varied is not None
    assert 0 < varied <= 1
    assert diversity([("a", picture(1)), ("b", picture(2))]) is None
