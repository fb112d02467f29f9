"""How a face is best cut for its encoder: how well people are told apart, crop by crop, on photos of real people.

    python benchmarks/face_crops.py PEOPLE --weights FILE [--number 40]      PEOPLE has a folder of photos a person

The first five photos of a person are the reference, as a sweep's photos are; the others are held against the reference
of every person. AUC is the chance that a person's own photo scores above a stranger's; the separation is the distance
of the two means in pooled standard deviations, which still tells crops apart where the AUC is 1. Of dlib, which cuts
for itself, the same is told where it is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from facenet_pytorch import extract_face, fixed_image_standardization
from PIL import Image
from scipy.stats import rankdata

from benchmarks.alternating import table
from evaluation.detection import detection_copy
from evaluation.dlib_face import DlibEncoder
from evaluation.face import Embedding, face_similarity, mean_embedding
from evaluation.facenet import MTCNN_CROP_SIZE, FacenetEncoder
from training.errors import UserError

NUM_REFERENCES = 5
MARGINS = (0, 16, 32, 48)
"""Of facenet-pytorch, in pixels of the crop of 160: its networks were trained with 14 of 182."""
HEADER = ("crop", "AUC", "separation", "same person", "strangers: mean, 95 %, most", "no face")

Embed = Callable[[Image.Image], Embedding | None]


def cut_with_margin(encoder: FacenetEncoder, margin: int) -> Embed:
    """The product's own detection, and a crop that is wider by a margin."""

    def embed(image: Image.Image) -> Embedding | None:
        found = encoder._detect(image)
        if not found:
            return None
        box = max((box for box, _ in found), key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
        crop = fixed_image_standardization(extract_face(image, np.array(box), MTCNN_CROP_SIZE, margin))
        return encoder._embed([crop])[0]

    return embed


def cut_aligned(encoder: FacenetEncoder) -> Embed:
    """Turned until the eyes are level, by MTCNN's landmarks, then cut without a margin."""

    def embed(image: Image.Image) -> Embedding | None:
        small, scale = detection_copy(image)
        boxes, _, landmarks = encoder.detector.detect(small, landmarks=True)
        if boxes is None:
            return None
        box, points = np.asarray(boxes[0]) / scale, np.asarray(landmarks[0]) / scale
        right, left = points[0], points[1]
        angle = float(np.degrees(np.arctan2(left[1] - right[1], left[0] - right[0])))
        centre = (float((box[0] + box[2]) / 2), float((box[1] + box[3]) / 2))
        level = image.rotate(angle, Image.Resampling.BICUBIC, center=centre)
        crop = fixed_image_standardization(extract_face(level, box, MTCNN_CROP_SIZE, 0))
        return encoder._embed([crop])[0]

    return embed


def find_with_dlib() -> Embed:
    """Dlib's own chips, aligned by five landmarks."""
    encoder = DlibEncoder()

    def embed(image: Image.Image) -> Embedding | None:
        faces = encoder.find_faces([image])[0]
        return faces[0].embedding if faces else None

    return embed


def measured(name: str, embed: Embed, people: Sequence[Sequence[Image.Image]]) -> list[str]:
    """A row of the table."""
    embedded = [[embed(photo) for photo in photos] for photos in people]
    num_missed = sum(each is None for photos in embedded for each in photos)
    references = [mean_embedding([e for e in photos[:NUM_REFERENCES] if e is not None]) for photos in embedded]
    same: list[float] = []
    strangers: list[float] = []
    for person, photos in enumerate(embedded):
        for embedding in photos[NUM_REFERENCES:]:
            if embedding is not None:
                for other, reference in enumerate(references):
                    (same if other == person else strangers).append(face_similarity(embedding, reference))
    ranks = rankdata([*same, *strangers])[: len(same)]
    auc = (ranks.sum() - len(same) * (len(same) + 1) / 2) / (len(same) * len(strangers))
    spread = np.sqrt((np.var(same) + np.var(strangers)) / 2)
    return [
        name,
        f"{auc:.5f}",
        f"{(np.mean(same) - np.mean(strangers)) / spread:.2f}",
        f"{np.mean(same):.3f}",
        f"{np.mean(strangers):.3f}, {np.quantile(strangers, 0.95):.3f}, {np.max(strangers):.3f}",
        f"{num_missed} of {sum(map(len, embedded))}",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--number", type=int, default=40, help="of people, by name")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folders = sorted(folder for folder in asked.people.iterdir() if folder.is_dir())[: asked.number]
    people = [[Image.open(path).convert("RGB") for path in sorted(folder.iterdir())] for folder in folders]
    encoder = FacenetEncoder(asked.weights, asked.weights.stem)
    crops = {f"facenet, margin {margin}": cut_with_margin(encoder, margin) for margin in MARGINS}
    crops["facenet, eyes level, margin 0"] = cut_aligned(encoder)
    try:
        crops["dlib, its own"] = find_with_dlib()
    except UserError as error:
        print(error)
    print(table(HEADER, [measured(name, embed, people) for name, embed in crops.items()]))


if __name__ == "__main__":
    main()
