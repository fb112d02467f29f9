"""What could not be loaded later is refused now, before anything is trained: the CLIP model and the renders.

`face_encoders.check_face_encoder` does the same for the face encoder. Nothing heavy is imported here for what can be
known from names and files alone: open_clip only to look up a name other than the default, controlnet-aux for a detector
other than `canny`, diffusers and torch where weights are to be present.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from evaluation.config import HF_HUB, LOCAL_DIR, ClipConfig, RenderConfig
from evaluation.detectors import WITHOUT_DOWNLOAD, detector_by_name, load_detector
from evaluation.hub import hub_answers
from training.errors import UserError
from training.pictures import read_picture

CLIP_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
"""What open_clip looks for in a model's folder."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


# --- CLIP


def check_clip(config: ClipConfig, *, weights_present: bool = True) -> None:
    """Refuse a model that could not be loaded, or one without weights, without loading it.

    open_clip starts a model without weights at random and only logs it: every score would be noise.

    Args:
        config: The model.
        weights_present: Also ask for weights that come from the hub, and fetch them if there is a network. False: a
            sweep for another machine is checked here.

    Raises:
        UserError: what is missing.
    """
    if config.model.startswith(LOCAL_DIR):
        _check_local_dir(Path(config.model.removeprefix(LOCAL_DIR)))
    elif config.model.startswith(HF_HUB):
        if weights_present:
            _fetch({"hf_hub": config.model.removeprefix(HF_HUB) + "/"}, config)
    elif weights_present or config != ClipConfig():  # the default is known to be one of open_clip's
        _check_named(config, weights_present)


def weights_in(folder: Path) -> list[Path]:
    """Files of weights in a `local-dir:` model's folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in CLIP_WEIGHT_SUFFIXES)


def _check_local_dir(folder: Path) -> None:
    if not (folder / "open_clip_config.json").is_file():
        raise UserError(f"CLIP model: need a folder with open_clip_config.json, got {folder}")
    if not weights_in(folder):
        raise UserError(
            f"CLIP model: no weights in {folder}, need open_clip_model.safetensors; without them scores are noise"
        )


def _check_named(config: ClipConfig, weights_present: bool) -> None:
    import open_clip

    models = open_clip.list_models()
    if config.model not in models:
        nearest = ", ".join(get_close_matches(config.model, models)) or "ViT-B-32"
        raise UserError(
            f"CLIP model: need one of open_clip's or local-dir:FOLDER, got {config.model!r} (near: {nearest})"
        )
    if not config.pretrained:
        raise UserError(
            f"CLIP model {config.model}: needs `pretrained`, a tag or a path; without weights scores are noise"
        )
    if Path(config.pretrained).is_file():
        return
    tags = open_clip.list_pretrained_tags_by_model(config.model)
    if config.pretrained not in tags:
        nearest = ", ".join(get_close_matches(config.pretrained, tags, cutoff=0.3) or tags[:3])
        raise UserError(
            f"CLIP pretrained: need a file or a tag of {config.model}, got {config.pretrained!r} (near: {nearest})"
        )
    if weights_present:
        _fetch(open_clip.get_pretrained_cfg(config.model, config.pretrained), config)


def _fetch(source: dict[str, Any], config: ClipConfig) -> None:
    """Let open_clip download the weights, if they are not in its cache."""
    from open_clip.pretrained import download_pretrained

    hub_answers()  # settles whether it may be asked
    try:
        download_pretrained(source)
    except OSError as error:
        raise UserError(
            f"CLIP {config.model}:{config.pretrained}: weights are not in the hub's cache and cannot be downloaded; "
            "fetch them once with a network, or give a path as `pretrained`"
        ) from error


# --- renders


def check_render(config: RenderConfig, *, weights_present: bool = True) -> None:
    """Refuse renders that could not be made, before anything is trained.

    Args:
        config: The renders.
        weights_present: Also ask for a ControlNet of the hub, and fetch it if there is a network. False: a sweep for
            another machine is checked here.

    Raises:
        UserError: what is missing or unknown.
    """
    if config.low_threshold > config.high_threshold:
        raise UserError(
            f"render: need low_threshold <= high_threshold, got {config.low_threshold} > {config.high_threshold}"
        )
    if config.detector != "canny":
        detector_by_name(config.detector)
    for reference in config.references:
        read_picture(reference)
    if not config.references:
        return
    _check_controlnet(config.controlnet, weights_present)
    if weights_present and config.detector not in WITHOUT_DOWNLOAD:
        load_detector(config.detector)


def _check_controlnet(controlnet: str, weights_present: bool) -> None:
    if Path(controlnet).is_dir():
        if not (Path(controlnet) / "config.json").is_file():
            raise UserError(f"render.controlnet: need a diffusers folder with config.json, got {controlnet}")
    elif not HUB_ID.fullmatch(controlnet):
        raise UserError(f"render.controlnet: need a folder or a hub id owner/name, got {controlnet!r}")
    elif weights_present:
        import torch

        from evaluation.render import load_controlnet

        load_controlnet(controlnet, "cpu", torch.float32)
