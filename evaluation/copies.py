"""Whether a checkpoint has learnt its training photos by heart: pictures that are nearer to one than they should be.

Likeness cannot tell: a copied photo shows the person as well as a new picture does, and an unseen photo is nearly as
like it. So whole pictures are compared, coarsely, and what is near is judged by how near pictures of the same person
come that were not trained on. It shows on the bare instance prompt, which asks for nothing but the photos.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from evaluation.scores import CopyCheck, NearestPhoto

SIDE = 32
"""Pixels to which pictures are reduced: where things are and in what colours, not grain."""
COPY = 0.3
"""A picture is a copy of a trained photo below this part of its distance to the nearest unseen one. On the demo's world
trainings overfit on purpose have a picture below 0.25 among six, LoRAs none below 0.5; new photos of real people have
none below 0.4 (docs/log.md)."""


def check_copies(
    pictures: Sequence[tuple[str, Image.Image]],
    trained: Sequence[tuple[str, Image.Image]],
    unseen: Sequence[Image.Image],
) -> CopyCheck:
    """Hold pictures of the bare instance prompt against the photos, and against these mirrored.

    Two pictures are compared without what a change of light would do: each channel's mean is taken off and the contrast
    is made equal. Their distance is the root mean square of what is left: 0 for copies, about 1.4 for pictures that
    have nothing to do with each other.

    Args:
        pictures: file names and pictures.
        trained: names of the photos that were trained on, and these as they were cut for it.
        unseen: other photos of the person, cut alike; without any, a picture's distance is measured by how far the
            trained photos are from each other.

    Raises:
        ValueError: no pictures, or fewer than two photos.
    """
    if not pictures or len(trained) < 2:
        raise ValueError(f"copies: need pictures and 2 or more photos, got {len(pictures)} and {len(trained)}")
    layouts = _layouts([image for _, image in pictures])
    photos = _layouts([image for _, image in trained])
    distances = _distances_either_way(layouts, photos)
    nearest = distances.argmin(axis=1)
    others = _layouts(unseen) if unseen else None
    usual = _usual_distance(photos, nearest) if others is None else _distances_either_way(layouts, others).min(axis=1)
    found = tuple(
        NearestPhoto(
            file=file,
            photo=trained[int(place)][0],
            distance=float(distances[row, place]),
            ratio=float(distances[row, place] / max(float(usual[row]), 1e-6)),
        )
        for row, ((file, _), place) in enumerate(zip(pictures, nearest, strict=True))
    )
    num_copies = sum(each.ratio < COPY for each in found)
    return CopyCheck(nearest=found, num_copies=num_copies, num_unseen=len(unseen))


def diversity(pictures: Sequence[tuple[str, Image.Image]]) -> float | None:
    """How far pictures of the same prompt are from each other, in [0, 1]: a collapsed model always draws one picture.

    Root mean square of the pixels' differences of coarse copies, the mean over all pairs of one prompt.

    Args:
        pictures: prompts and pictures.

    Returns:
        None where no prompt has two pictures.
    """
    by_prompt: dict[str, list[Image.Image]] = {}
    for prompt, image in pictures:
        by_prompt.setdefault(prompt, []).append(image)
    distances = []
    for images in by_prompt.values():
        between = _distances(thumbnails := _thumbnails(images), thumbnails)
        distances += between[np.triu_indices(len(images), 1)].tolist()
    return sum(distances) / len(distances) if distances else None


def _thumbnails(images: Sequence[Image.Image]) -> Float[np.ndarray, "n s s 3"]:
    """In [0, 1]."""
    small = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(each, dtype=np.float64) / 255 for each in small])


def _layouts(images: Sequence[Image.Image]) -> Float[np.ndarray, "n s s 3"]:
    """Coarse copies that are the same under any light."""
    small = _thumbnails(images)
    centred = small - small.mean(axis=(1, 2), keepdims=True)
    contrast = centred.std(axis=(1, 2, 3), keepdims=True)
    layouts: np.ndarray = centred / np.maximum(contrast, 1e-6)  # an empty picture has none
    return layouts


def _distances_either_way(a: Float[np.ndarray, "n s s 3"], b: Float[np.ndarray, "m s s 3"]) -> Float[np.ndarray, "n m"]:
    """To each of b or to its mirror image, whichever is nearer: a training may have seen both (`random_flip`)."""
    nearer: np.ndarray = np.minimum(_distances(a, b), _distances(a, b[:, :, ::-1]))
    return nearer


def _distances(a: Float[np.ndarray, "n s s 3"], b: Float[np.ndarray, "m s s 3"]) -> Float[np.ndarray, "n m"]:
    """Root mean square of the differences."""
    distances: np.ndarray = np.sqrt(((a[:, None] - b[None]) ** 2).mean(axis=(2, 3, 4)))
    return distances


def _usual_distance(photos: Float[np.ndarray, "m s s 3"], nearest: np.ndarray) -> Float[np.ndarray, " n"]:
    """Of each picture's nearest photo to the photo that is nearest to it."""
    between = _distances_either_way(photos, photos)
    np.fill_diagonal(between, np.inf)
    usual: np.ndarray = between.min(axis=1)[nearest]
    return usual
