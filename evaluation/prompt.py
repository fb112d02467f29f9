"""Prompt alignment: the raw cosine between CLIP's vector of a picture and of the prompt that made it.

Raw cosines of real text-to-image models lie at about 0.2 to 0.35, and CLIP models differ in scale: a number means
something only beside the model's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from evaluation.checks import check_clip, weights_in
from evaluation.config import HF_HUB, LOCAL_DIR, ClipConfig
from training.errors import UserError
from training.files import sha256_of
from training.reading import TextReader

IMAGE_BATCH_SIZE = 16
LONG_CONTEXT = 8
"""Times the model's own context: room for any prompt, to see whether it was cut."""


def prompt_alignment(
    image_embeddings: Float[np.ndarray, "n d"], text_embeddings: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, " n"]:
    """Cosine of each picture with its own text: [n, d] and [n, d] to [n], in [-1, 1], higher fits better."""
    images = _unit_rows(image_embeddings)
    texts = _unit_rows(text_embeddings)
    cosines: Float[np.ndarray, " n"] = np.clip((images * texts).sum(axis=1), -1.0, 1.0)
    return cosines


def _unit_rows(embeddings: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    rows = embeddings.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise UserError("CLIP embedding: need a finite norm above 0; the weights are broken")
    return np.asarray(rows / norms)


class ClipScorer:
    """One CLIP model with its own preprocessing and tokenizer."""

    def __init__(
        self,
        name: str,
        model: torch.nn.Module,
        preprocess: Callable[[Image.Image], torch.Tensor],
        tokenizer: Callable[[list[str]], torch.Tensor],
        device: torch.device,
        reader: TextReader,
    ) -> None:
        self.name = name
        """Model and weights in words; equal names mean comparable alignments."""
        self.reader = reader
        """How much of a prompt the model reads."""
        self._model = model
        self._preprocess = preprocess
        self._tokenizer = tokenizer
        self._device = device
        self._text_embeddings: dict[str, Float[np.ndarray, " d"]] = {}

    def prompt_alignment(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """Raw cosine of each picture with its own prompt, in [-1, 1]; higher fits better.

        Raises:
            UserError: a prompt is longer than what the model reads.
            ValueError: not one prompt a picture.
        """
        if len(images) != len(prompts):
            raise ValueError(f"prompts: need one a picture, got {len(prompts)} for {len(images)}")
        if not images:
            return []
        texts = np.stack([self._embed_text(prompt) for prompt in prompts])
        return [float(cosine) for cosine in prompt_alignment(self._embed_images(images), texts)]

    @torch.inference_mode()
    def _embed_images(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "n d"]:
        batches = []
        for start in range(0, len(images), IMAGE_BATCH_SIZE):
            batch = [self._preprocess(image.convert("RGB")) for image in images[start : start + IMAGE_BATCH_SIZE]]
            batches.append(self._model.encode_image(torch.stack(batch).to(self._device)).float().cpu().numpy())  # type: ignore[operator]
        return np.concatenate(batches)

    @torch.inference_mode()
    def _embed_text(self, prompt: str) -> Float[np.ndarray, " d"]:
        """Embedding [d] of a prompt, computed once: a sweep scores thousands of pictures of a few prompts."""
        if prompt not in self._text_embeddings:
            if refusal := self.reader.refusal(prompt):
                raise UserError(f"prompt {prompt!r}: {refusal}")
            tokens = self._tokenizer([prompt]).to(self._device)
            self._text_embeddings[prompt] = self._model.encode_text(tokens)[0].float().cpu().numpy()  # type: ignore[operator]
        return self._text_embeddings[prompt]


def parse_clip(text: str) -> ClipConfig:
    """Read `MODEL:PRETRAINED`, where PRETRAINED is a tag or a path, or `local-dir:FOLDER`, or `hf-hub:OWNER/NAME`.

    Raises:
        UserError: the weights are not named.
    """
    if text.startswith((LOCAL_DIR, HF_HUB)):
        return ClipConfig(model=text, pretrained=None)
    model, _, pretrained = text.partition(":")
    if not model or not pretrained:
        raise UserError(f"CLIP: need MODEL:PRETRAINED or local-dir:FOLDER, got {text!r}")
    return ClipConfig(model=model, pretrained=pretrained)


def load_clip(config: ClipConfig, device: str | torch.device | None = None) -> ClipScorer:
    """Load a CLIP model once per process, in float32.

    Args:
        config: The model.
        device: Default: the GPU if there is one.

    Raises:
        UserError: see `checks.check_clip`, or the weights do not fit the model.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return _load_clip(config, str(device))


@cache
def _load_clip(config: ClipConfig, device: str) -> ClipScorer:
    import open_clip

    check_clip(config)
    brings_weights = config.model.startswith((LOCAL_DIR, HF_HUB))
    pretrained = None if brings_weights else config.pretrained
    tag = open_clip.get_pretrained_cfg(config.model, pretrained or "")
    try:
        model, preprocess = open_clip.create_model_from_pretrained(
            config.model,
            pretrained,
            device=device,
            # OpenAI's and some other weights were trained with another GELU than their model's file says. open_clip
            # only warns; the cosines would be wrong.
            force_quick_gelu=bool(tag.get("quick_gelu", False)),
        )
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"CLIP {config.model}:{config.pretrained}: weights cannot be loaded ({error!s:.300})"
        ) from error
    model.eval().requires_grad_(False)
    tokenizer = open_clip.get_tokenizer(config.model)
    return ClipScorer(
        clip_name(config), model, preprocess, tokenizer, torch.device(device), _reader_of(tokenizer, config)
    )


def _reader_of(tokenizer: Any, config: ClipConfig) -> TextReader:
    """By any of open_clip's tokenizers: a text was cut if with more room it begins otherwise."""
    limit: int = tokenizer.context_length

    def reads_whole(text: str) -> bool:
        return bool((tokenizer([text])[0] == tokenizer([text], LONG_CONTEXT * limit)[0][:limit]).all())

    return TextReader(f"the CLIP model {config.model}", limit, reads_whole)


def clip_name(config: ClipConfig) -> str:
    """`ViT-B-32:laion2b_s34b_b79k`; weights on disk are told by their content, not by this machine's folders."""
    if config.model.startswith(LOCAL_DIR):
        folder = Path(config.model.removeprefix(LOCAL_DIR))
        return f"{LOCAL_DIR}{folder.name} {_digest(weights_in(folder))}"
    if config.pretrained and Path(config.pretrained).is_file():
        return f"{config.model}:{Path(config.pretrained).name} {_digest([Path(config.pretrained)])}"
    return f"{config.model}:{config.pretrained}" if config.pretrained else config.model


def _digest(files: Sequence[Path]) -> str:
    digests = b"".join(bytes.fromhex(sha256_of(path)) for path in files)
    return hashlib.sha256(digests).hexdigest()[:8]
