"""The face encoders: which there are, whether one could be loaded here, and the loading.

Torch comes with the encoder that needs it: knowing and checking them takes none.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.dlib_face import DlibEncoder, dlib_models_dir
from evaluation.face import FaceEncoder
from evaluation.facenet_weights import PRETRAINED_FILES, check_weights, pretrained_file, pretrained_path
from training.errors import UserError
from training.files import sha256_of

if TYPE_CHECKING:
    import torch

ENCODERS = (*PRETRAINED_FILES, "dlib")
"""Known by name; a weights file or an encoder folder is known by its path."""


def check_face_encoder(encoder: str, *, weights_present: bool = True) -> None:
    """Refuse an encoder that could not be loaded, without loading it.

    Args:
        encoder: `vggface2`, `casia-webface`, `dlib`, a weights file of InceptionResnetV1, or an encoder folder.
        weights_present: Also ask for the weights that facenet-pytorch downloads on first use, and fetch them if
            there is a network. False: a sweep for another machine is checked here.

    Raises:
        UserError: what is missing, and where to put it.
    """
    if encoder in PRETRAINED_FILES:
        if weights_present:
            pretrained_file(encoder)
    elif encoder == "dlib":
        dlib_models_dir()
    elif Path(encoder).is_dir():
        _check_folder(Path(encoder))
    elif Path(encoder).is_file():
        check_weights(Path(encoder))
    else:
        raise UserError(f"face encoder: need one of {', '.join(ENCODERS)}, a weights file or a folder, got {encoder!r}")


def _check_folder(folder: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).is_file():
            raise UserError(f"face encoder: need config.json and model.safetensors in a folder, {folder} has no {file}")


def is_here(encoder: str) -> bool:
    """Are its weights here, so that nothing would be fetched? Whether they can be loaded says `check_face_encoder`."""
    if encoder in PRETRAINED_FILES:
        return pretrained_path(encoder).is_file()
    return encoder == "dlib" or Path(encoder).exists()


def load_face_encoder(encoder: str, device: str | torch.device | None = None) -> FaceEncoder:
    """Load a face encoder once per process.

    Args:
        encoder: `vggface2` or `casia-webface` (facenet-pytorch's weights), `dlib` (the extra), a file with a state
            dict of InceptionResnetV1 of any head width (.safetensors or .pt), or an encoder folder.
        device: Default: the GPU if there is one. dlib runs on the CPU.

    Raises:
        UserError: see `check_face_encoder`.
    """
    if device is None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return _load_face_encoder(encoder, str(device))


@cache
def _load_face_encoder(encoder: str, device: str) -> FaceEncoder:
    check_face_encoder(encoder)
    if encoder == "dlib":
        return DlibEncoder()
    if encoder not in PRETRAINED_FILES and Path(encoder).is_dir():
        from evaluation.drawn_face import DrawnFaceEncoder

        return DrawnFaceEncoder.from_folder(encoder, device)
    from evaluation.facenet import FacenetEncoder

    if encoder in PRETRAINED_FILES:
        return FacenetEncoder(pretrained_file(encoder), encoder, device)
    return FacenetEncoder(Path(encoder), f"{Path(encoder).stem} {sha256_of(Path(encoder))[:8]}", device)
