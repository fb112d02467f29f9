"""What a training step looks at: which pictures, which noise, which words.

Every random number is a function of its position, that is of the run's seed and the number of the micro-step, as in
EDM2's training loop (Karras et al. 2024), which seeds anew at every step. So there is no generator to be saved: a run
that is resumed, moved to another device, or trained beside others draws the numbers that it would have drawn anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTextModel

from training.config import TrainConfig
from training.dataset import Dataset, Latents
from training.stable_diffusion import load_base_model


class Stream(IntEnum):
    """What random numbers are for; two streams of one micro-step have nothing to do with each other."""

    BATCH = 0
    DROPOUT = 1


def seed_at(seed: int, micro_step: int, stream: Stream) -> int:
    """The seed of one stream of random numbers at one micro-step (from 0) of the run with this `seed`; 64 bits."""
    sequence = np.random.SeedSequence(seed, spawn_key=(micro_step, stream))
    return int(sequence.generate_state(1, np.uint64)[0])


@dataclass(frozen=True, eq=False)
class Batch:
    """B pictures, or with prior preservation 2B: B of the subject, then B of the class. Tensors on the CPU."""

    latents: Tensor
    """float32 [B, 4, h, w], one draw from each picture's distribution, not yet scaled."""
    noise: Tensor
    """float32 [B, 4, h, w], standard normal."""
    timesteps: Tensor
    """int64 [B] in [0, num_train_timesteps), each picture its own."""
    prompts: list[str]


def draw_batch(config: TrainConfig, dataset: Dataset, micro_step: int, num_train_timesteps: int) -> Batch:
    """The batch number `micro_step` (from 0) of a run: a function of its arguments and nothing else.

    Flips, latents, noise and timesteps are drawn in this order, on the CPU, so that they are the same on any device.

    Args:
        config: the run's.
        dataset: the run's.
        micro_step: number of the forward pass, counted over the whole run.
        num_train_timesteps: noise levels of the base model's schedule; 1000 for Stable Diffusion 1.5.
    """
    generator = torch.Generator().manual_seed(seed_at(config.seed, micro_step, Stream.BATCH))
    items = [photo for photo, repeats in enumerate(dataset.repeats) for _ in range(repeats)]
    class_latents = dataset.class_latents if config.with_prior_preservation else None
    epoch_length = len(items) if class_latents is None else max(len(items), config.num_class_images)
    first = micro_step * config.train_batch_size
    order = [
        picture_at(position, epoch_length, config.seed) for position in range(first, first + config.train_batch_size)
    ]
    photos = [items[index % len(items)] for index in order]
    prompts = [dataset.prompts[photo] for photo in photos]
    mean, std = _instance_latents(dataset, photos, generator)
    if class_latents is not None:
        assert dataset.class_prompt is not None
        pictures = [index % config.num_class_images for index in order]
        mean = torch.cat([mean, class_latents.mean[pictures]])
        std = torch.cat([std, class_latents.std[pictures]])
        prompts += [dataset.class_prompt] * len(pictures)
    latents = mean + std * torch.randn(mean.shape, generator=generator)
    noise = torch.randn(mean.shape, generator=generator)
    timesteps = torch.randint(0, num_train_timesteps, (len(mean),), generator=generator)
    return Batch(latents, noise, timesteps, prompts)


def picture_at(position: int, epoch_length: int, seed: int) -> int:
    """Index in [0, epoch_length) of the picture at a position of the endless stream: each epoch its own shuffle."""
    epoch, place = divmod(position, epoch_length)
    return int(np.random.default_rng((seed, epoch)).permutation(epoch_length)[place])


class PromptEncoder:
    """Prompts to the UNet's conditioning; computed once a prompt where the text encoder is frozen.

    Args:
        base: the base model.
        trained: the text encoder that trains, on `device`; None where it stays frozen.
        device: where the conditioning is wanted.
    """

    def __init__(self, base: StableDiffusionPipeline, trained: CLIPTextModel | None, device: torch.device) -> None:
        self._tokenizer = base.tokenizer
        self._frozen: CLIPTextModel = base.text_encoder
        self._trained = trained
        self._device = device
        self._embeddings: dict[str, Tensor] = {}

    @property
    def is_frozen(self) -> bool:
        """Does every prompt have one and the same conditioning throughout training?"""
        return self._trained is None

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Float [B, 77, d] on the training device, with gradients to the text encoder where it trains."""
        if self._trained is not None:
            return _encode(self._trained, self._tokens(prompts).to(self._device))
        for prompt in prompts:
            if prompt not in self._embeddings:
                with torch.no_grad(), torch.autocast("cpu", enabled=False):  # whoever trains in whatever precision
                    self._embeddings[prompt] = _encode(self._frozen, self._tokens([prompt]))[0].to(self._device)
        return torch.stack([self._embeddings[prompt] for prompt in prompts])

    def _tokens(self, prompts: Sequence[str]) -> Tensor:
        tokens: Tensor = self._tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return tokens


@functools.cache
def frozen_prompt_encoder(base_model: str, device: torch.device) -> PromptEncoder:
    """The base model's own reading of prompts, shared by all runs of this process."""
    return PromptEncoder(load_base_model(base_model), None, device)


def _encode(text_encoder: CLIPTextModel, tokens: Tensor) -> Tensor:
    hidden_states: Tensor = text_encoder(tokens).last_hidden_state
    return hidden_states


def _instance_latents(dataset: Dataset, photos: list[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    upright: Latents = dataset.latents
    if dataset.flipped_latents is None:
        return upright.mean[photos], upright.std[photos]
    flip = (torch.rand(len(photos), generator=generator) < 0.5)[:, None, None, None]
    mirrored = dataset.flipped_latents
    return (
        torch.where(flip, mirrored.mean[photos], upright.mean[photos]),
        torch.where(flip, mirrored.std[photos], upright.std[photos]),
    )
