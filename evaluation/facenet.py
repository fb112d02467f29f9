"""facenet-pytorch's encoder of real faces: MTCNN finds and crops them, InceptionResnetV1 embeds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from facenet_pytorch import MTCNN, InceptionResnetV1, extract_face, fixed_image_standardization
from jaxtyping import Float
from PIL import Image

from evaluation.detection import DETECTION_LONG_SIDE, DETECTION_SHORT_SIDE, box_inside, detection_copy
from evaluation.face import Embedding, Face, largest_first, unit_norm
from evaluation.facenet_weights import NUM_FEATURES, head_width, read_state_dict, shapes_of
from training.errors import UserError
from training.pictures import Box

MTCNN_CROP_SIZE = 160
MTCNN_MIN_PROBABILITY = 0.9
"""facenet-pytorch's own bound for a face worth keeping. MTCNN returns boxes from 0.7 up; those between are mostly
hands and folds of cloth."""
EMBEDDING_BATCH_SIZE = 16


class FacenetEncoder:
    """facenet-pytorch: MTCNN finds and crops faces (160 px, margin 0), InceptionResnetV1 embeds them."""

    stranger_similarity = 0.10
    """Measured on 40 people of the AT&T faces against the mean of five photos each (`benchmarks/face_crops.py`)."""

    def __init__(self, weights: Path, weights_name: str, device: str | torch.device = "cpu") -> None:
        self.name = (
            f"{weights_name} (InceptionResnetV1; MTCNN crop {MTCNN_CROP_SIZE} px, margin 0, "
            f"probability {MTCNN_MIN_PROBABILITY} up, sides {DETECTION_SHORT_SIDE}-{DETECTION_LONG_SIDE} px)"
        )
        self.device = torch.device(device)
        self.detector = MTCNN(MTCNN_CROP_SIZE, margin=0, keep_all=True, device=self.device).eval()
        self.network = _inception_resnet(weights).to(self.device)

    def find_faces(self, images: Sequence[Image.Image]) -> list[list[Face]]:
        """All faces of each picture, largest first."""
        images = [image.convert("RGB") for image in images]
        found = [self._detect(image) for image in images]
        crops = [_facenet_crop(image, box) for image, boxes in zip(images, found, strict=True) for box, _ in boxes]
        embeddings = iter(self._embed(crops))
        faces = [[Face(box, probability, next(embeddings)) for box, probability in boxes] for boxes in found]
        return [largest_first(of_one, image.size) for of_one, image in zip(faces, images, strict=True)]

    def _detect(self, image: Image.Image) -> list[tuple[Box, float]]:
        small, scale = detection_copy(image)
        if min(small.size) < self.detector.min_face_size:
            return []  # a strip thinner than the smallest face, on which MTCNN's pyramid of sizes is empty
        boxes, probabilities = self.detector.detect(small)
        if boxes is None:
            return []
        inside = [box_inside(np.asarray(box, dtype=np.float64) / scale, image.size) for box in boxes]
        pairs = zip(inside, probabilities, strict=True)
        return [(box, float(p)) for box, p in pairs if p >= MTCNN_MIN_PROBABILITY and box is not None]

    @torch.inference_mode()
    def _embed(self, crops: Sequence[Float[torch.Tensor, "3 160 160"]]) -> list[Embedding]:
        """Crops [3, 160, 160] in [-1, 1] to unit-norm embeddings [d]."""
        embeddings: list[Embedding] = []
        for start in range(0, len(crops), EMBEDDING_BATCH_SIZE):
            batch = torch.stack(list(crops[start : start + EMBEDDING_BATCH_SIZE])).to(self.device)
            embeddings += [unit_norm(embedding) for embedding in self.network(batch).float().cpu().numpy()]
        return embeddings


def _facenet_crop(image: Image.Image, box: Box) -> Float[torch.Tensor, "3 160 160"]:
    """The face at full resolution, as InceptionResnetV1 was trained to see it: [3, 160, 160] in [-1, 1]."""
    crop: torch.Tensor = fixed_image_standardization(extract_face(image, np.array(box), MTCNN_CROP_SIZE, 0))
    return crop


def _inception_resnet(path: Path) -> torch.nn.Module:
    """facenet-pytorch's network with the weights of a file and the head width that they have, frozen."""
    state_dict = read_state_dict(path)
    width = head_width(shapes_of(state_dict), path)
    network: torch.nn.Module = InceptionResnetV1()
    network.last_linear = torch.nn.Linear(NUM_FEATURES, width, bias=False)
    network.last_bn = torch.nn.BatchNorm1d(width, eps=0.001)
    without_classifier = {key: value.float() for key, value in state_dict.items() if not key.startswith("logits.")}
    try:
        network.load_state_dict(without_classifier)
    except RuntimeError as error:
        raise UserError(f"face encoder: {path} does not fit InceptionResnetV1 ({str(error)[:200]})") from error
    return network.eval().requires_grad_(False)
