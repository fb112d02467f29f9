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

from training.captions import caption_shown
from training.config import TrainConfig
from training.dataset import Dataset
from training.stable_diffusion import load_base_model


class Stream(IntEnum):
    """What random numbers are for; two streams of one micro-step have nothing to do with each other."""

    BATCH = 0
    DROPOUT = 1
    NOISE_OFFSET = 2
    CAPTIONS = 3


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
    cell_weights: Tensor | None = None
    """float32 [B, 1, h, w], what each cell's loss counts, on average 1 in every picture; None where all count alike."""


def draw_batch(config: TrainConfig, dataset: Dataset, micro_step: int, num_train_timesteps: int) -> Batch:
    """The batch number `micro_step` (from 0) of a run: a function of its arguments and nothing else.

    Flips, latents, noise and timesteps are drawn in this order, on the CPU, so that they are the same on any device.
    What an option needs besides it draws from a stream of its own: the rest stays what it is without the option.

    With `prior_from: base_model` the class's pictures are the subject's photos, under the class prompt.

    Args:
        config: the run's.
        dataset: the run's.
        micro_step: number of the forward pass, counted over the whole run.
        num_train_timesteps: noise levels of the base model's schedule; 1000 for Stable Diffusion 1.5.
    """
    generator = torch.Generator().manual_seed(seed_at(config.seed, micro_step, Stream.BATCH))
    items = [photo for photo, repeats in enumerate(dataset.repeats) for _ in range(repeats)]
    has_prior = config.with_prior_preservation
    class_latents = dataset.class_latents if has_prior and config.prior_from == "class_images" else None
    epoch_length = len(items) if class_latents is None else max(len(items), config.num_class_images)
    first = micro_step * config.train_batch_size
    order = [
        picture_at(position, epoch_length, config.seed) for position in range(first, first + config.train_batch_size)
    ]
    photos = [items[index % len(items)] for index in order]
    captions = np.random.default_rng(seed_at(config.seed, micro_step, Stream.CAPTIONS))
    prompts = [caption_shown(dataset.prompts[photo], config, captions) for photo in photos]
    flip = _flips(dataset, len(photos), generator)
    mean, std = _instance_latents(dataset, photos, flip)
    if has_prior:
        assert dataset.class_prompt is not None
        pictures = [index % config.num_class_images for index in order]
        class_mean, class_std = (mean, std) if class_latents is None else class_latents.of(pictures)
        mean, std = torch.cat([mean, class_mean]), torch.cat([std, class_std])
        prompts += [dataset.class_prompt] * len(photos)
    latents = mean + std * torch.randn(mean.shape, generator=generator)
    noise = torch.randn(mean.shape, generator=generator)
    timesteps = torch.randint(0, num_train_timesteps, (len(mean),), generator=generator)
    return Batch(
        latents,
        noise + _noise_offset(config, micro_step, noise) if config.noise_offset else noise,
        timesteps,
        prompts,
        _cell_weights(config, dataset, photos, flip, len(mean)),
    )


def _noise_offset(config: TrainConfig, micro_step: int, noise: Tensor) -> Tensor:
    """[B, 4, 1, 1], of all cells of a channel: Guttenberg 2023, "Diffusion with Offset Noise"."""
    generator = torch.Generator().manual_seed(seed_at(config.seed, micro_step, Stream.NOISE_OFFSET))
    return config.noise_offset * torch.randn(*noise.shape[:2], 1, 1, generator=generator)


def _cell_weights(
    config: TrainConfig, dataset: Dataset, photos: list[int], flip: Tensor | None, num_rows: int
) -> Tensor | None:
    """Of the subject's rows by `face_loss_weight`; of the class's 1 everywhere."""
    if config.face_loss_weight == 1:
        return None
    assert dataset.face_coverage is not None, "the dataset was held against the config"
    coverage = dataset.face_coverage[photos]
    if flip is not None:
        coverage = torch.where(flip[:, :, 0], coverage.flip(-1), coverage)
    weights = 1 + (config.face_loss_weight - 1) * coverage
    weights = weights / weights.mean(dim=(1, 2), keepdim=True)
    of_class = weights.new_ones(num_rows - len(photos), *weights.shape[1:])
    return torch.cat([weights, of_class])[:, None]


def picture_at(position: int, epoch_length: int, seed: int) -> int:
    """Index in [0, epoch_length) of the picture at a position of the endless stream: each epoch its own shuffle."""
    epoch, place = divmod(position, epoch_length)
    return int(np.random.default_rng((seed, epoch)).permutation(epoch_length)[place])


MAX_EMBEDDINGS = 512
"""That are kept: captions that are put into another order each time would fill the memory. 0.1 GB for SD1.5."""


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
        self._has_trained = False
        self._device = device
        self._embeddings: dict[str, Tensor] = {}

    @property
    def is_frozen(self) -> bool:
        """Does every prompt have one and the same conditioning from now on?"""
        return self._trained is None

    def freeze(self) -> None:
        """The text encoder has trained enough: from now on it reads as it does now, without dropout."""
        if self._trained is not None:
            self._frozen, self._trained, self._has_trained = self._trained.eval(), None, True

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Float [B, 77, d] on the training device, with gradients to the text encoder where it trains."""
        if self._trained is not None:
            return _encode(self._trained, self._tokens(prompts).to(self._device))
        for prompt in prompts:
            if prompt not in self._embeddings:
                self._embeddings[prompt] = self._encode_frozen(prompt)
        stacked = torch.stack([self._embeddings[prompt] for prompt in prompts])
        while len(self._embeddings) > MAX_EMBEDDINGS:
            del self._embeddings[next(iter(self._embeddings))]
        return stacked

    def _encode_frozen(self, prompt: str) -> Tensor:
        """The base model's own reading is in float32, whoever trains in whatever precision."""
        with torch.no_grad(), torch.autocast("cpu", enabled=self._has_trained):
            return _encode(self._frozen, self._tokens([prompt]).to(self._frozen.device))[0].to(self._device)

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


def _flips(dataset: Dataset, num_photos: int, generator: torch.Generator) -> Tensor | None:
    """Which photos are shown mirrored: bool [B, 1, 1, 1]; None where none ever is."""
    if dataset.flipped_latents is None:
        return None
    return (torch.rand(num_photos, generator=generator) < 0.5)[:, None, None, None]


def _instance_latents(dataset: Dataset, photos: list[int], flip: Tensor | None) -> tuple[Tensor, Tensor]:
    mean, std = dataset.latents.of(photos)
    if flip is None or dataset.flipped_latents is None:
        return mean, std
    mirrored_mean, mirrored_std = dataset.flipped_latents.of(photos)
    return torch.where(flip, mirrored_mean, mean), torch.where(flip, mirrored_std, std)
