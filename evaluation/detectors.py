"""controlnet-aux's detectors, by their names: a picture to the condition that a ControlNet sees of it.

controlnet-aux is imported where a detector other than `canny` is named, and torch comes with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from evaluation.hub import hub_answers
from training.errors import UserError

WITHOUT_DOWNLOAD = ("canny", "shuffle", "lineart_standard")
NOT_RUNNING = ("mediapipe_face", "dwpose")
"""Detectors of controlnet-aux that need packages which do not install beside the others."""
ANNOTATORS = "lllyasviel/Annotators"
"""Hub repository of the detectors' weights, controlnet-aux's own choice."""


def canny(image: Image.Image, low_threshold: int, high_threshold: int) -> Image.Image:
    """White edges on black. controlnet-aux's CannyDetector does the same, but on sides rounded to 64 px."""
    import cv2

    edges = cv2.Canny(np.asarray(image), low_threshold, high_threshold)
    return Image.fromarray(np.repeat(edges[:, :, None], 3, axis=2))


def detector_by_name(name: str) -> tuple[Any, dict[str, Any]]:
    """controlnet-aux's class for a detector's name, and the arguments that make it that detector.

    Raises:
        UserError: it has none of this name that runs here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing it warns of every optional package and registered model
        from controlnet_aux import LineartStandardDetector
        from controlnet_aux.processor import MODEL_PARAMS, MODELS

    known = {key: (entry["class"], MODEL_PARAMS[key]) for key, entry in MODELS.items() if key not in NOT_RUNNING}
    known["lineart_standard"] = (LineartStandardDetector, {})
    if name not in known:
        raise UserError(f"render.detector: need one of {', '.join(sorted(known))}, got {name!r}")
    return known[name]


@cache
def load_detector(name: str) -> Callable[[Image.Image, int], Image.Image]:
    """A detector: a picture and the length of the short side to work on in pixels, to the condition. Once per process.

    Raises:
        UserError: there is none of this name, or its weights are neither here nor to be downloaded.
    """
    detector_class, arguments = detector_by_name(name)
    if name not in WITHOUT_DOWNLOAD:
        hub_answers()  # settles whether it may be asked
    try:
        detector = detector_class() if name in WITHOUT_DOWNLOAD else detector_class.from_pretrained(ANNOTATORS)
    except (OSError, ValueError) as error:
        raise UserError(f"render.detector: {name} has to be downloaded and cannot be ({error!s:.200})") from error

    def detect(image: Image.Image, short_side: int) -> Image.Image:
        sizes = {"detect_resolution": short_side, "image_resolution": short_side}
        if name == "lineart_standard":  # gives back the size it got
            del sizes["image_resolution"]
        condition: Image.Image = detector(image, **arguments, **sizes)
        return condition

    return detect
