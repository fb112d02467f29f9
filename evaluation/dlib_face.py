"""dlib's encoder of real faces, the extra `dlib`: on the CPU, with weights that come in a package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.detection import DETECTION_LONG_SIDE, DETECTION_SHORT_SIDE, box_inside, detection_copy
from evaluation.face import Face, largest_first, unit_norm
from training.errors import UserError

DLIB_MIN_SCORE = 0.25
"""Bound on the score of dlib's detector (a distance to the margin, without upper end). dlib's own is 0; what lies just
above it are false alarms of a face's size, and the largest face counts."""


class DlibEncoder:
    """dlib: its frontal detector and 128-d ResNet. Weights come in the package, so it works with no download.

    Cosines of its embeddings are squeezed together: about 0.96 for one person, 0.82 for two.
    """

    stranger_similarity = 0.86
    """Measured on 40 people of the AT&T faces against the mean of five photos each (`benchmarks/face_crops.py`)."""

    name = (
        f"dlib (ResNet 128-d; frontal detector upsampled once, score {DLIB_MIN_SCORE} up, 5 landmarks, chip 150 px, "
        f"sides {DETECTION_SHORT_SIDE}-{DETECTION_LONG_SIDE} px)"
    )

    def __init__(self) -> None:
        import dlib

        models = dlib_models_dir()
        self.detector = dlib.get_frontal_face_detector()
        self.landmarks = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
        self.network = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))

    def find_faces(self, images: Sequence[Image.Image]) -> list[list[Face]]:
        """All faces of each picture, largest first. `probability` is the logistic function of dlib's score."""
        return [largest_first(self._faces(image.convert("RGB")), image.size) for image in images]

    def _faces(self, image: Image.Image) -> list[Face]:
        small, scale = detection_copy(image)
        pixels = np.asarray(small)
        faces = []
        for rectangle, score in zip(*self.detector.run(pixels, 1, DLIB_MIN_SCORE)[:2], strict=True):
            corners = np.array([rectangle.left(), rectangle.top(), rectangle.right() + 1, rectangle.bottom() + 1])
            box = box_inside(corners / scale, image.size)
            if box is not None:
                descriptor = self.network.compute_face_descriptor(pixels, self.landmarks(pixels, rectangle))
                faces.append(Face(box, float(1 / (1 + np.exp(-score))), unit_norm(np.array(descriptor))))
        return faces


def dlib_models_dir() -> Path:
    """Folder of dlib's weights. The package cannot be imported (it wants pkg_resources), so it is only looked up."""
    if find_spec("dlib") is None or (package := find_spec("face_recognition_models")) is None:
        raise UserError("face encoder dlib: needs the extra, `pip install 'dreamsweep[dlib]'`")
    return Path(next(iter(package.submodule_search_locations or []))) / "models"
