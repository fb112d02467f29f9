"""What the detectors of real faces have in common: the size of picture they want, and boxes that end at its edge."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image

from training.pictures import Box

DETECTION_SHORT_SIDE = 256
DETECTION_LONG_SIDE = 1024
"""Pictures are brought into these bounds, aspect kept, before a detector sees them: the detectors' smallest face is
a number of pixels, so a 64 px picture has no face for them, and a 12 megapixel photo takes ten seconds."""


def detection_copy(image: Image.Image) -> tuple[Image.Image, float]:
    """The picture with its sides in the detector's bounds, and the scale that brought them there."""
    short, long = sorted(image.size)
    scale = min(max(1.0, DETECTION_SHORT_SIDE / short), DETECTION_LONG_SIDE / long)
    if scale == 1.0:
        return image, scale
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC), scale


def box_inside(box: Float[np.ndarray, " 4"], size: tuple[int, int]) -> Box | None:
    """The part of a box inside the picture, None where less than a pixel is left of it."""
    x0, x1 = np.clip(box[[0, 2]], 0, size[0]).tolist()
    y0, y1 = np.clip(box[[1, 3]], 0, size[1]).tolist()
    return (x0, y0, x1, y1) if int(x1) > int(x0) and int(y1) > int(y0) else None
