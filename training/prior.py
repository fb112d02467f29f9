"""Prior preservation without pictures of the class: the untouched base model says what it would have answered."""

from __future__ import annotations

import torch
from torch import Tensor

from training.batches import frozen_prompt_encoder
from training.config import TrainConfig
from training.methods import FROZEN_DTYPES
from training.stable_diffusion import frozen_module


class BaseModelPrior:
    """What the base model predicts of noisy photos under the class prompt, which the trained model is held to.

    Pictures of the class teach what the base model makes of its own words; this teaches it without drawing any, at the
    price of a forward pass a step. It is the distillation loss of Li & Hoiem 2016 (Learning without Forgetting,
    section 3) at the place of equation 2's second term in Ruiz et al. 2022.

    Args:
        config: the run's.
        base_model: whose answers.
        class_prompt: under which it is asked.
        device: where the run trains. For a LoRA the frozen UNet is there anyway; for DreamBooth it comes besides.
    """

    def __init__(self, config: TrainConfig, base_model: str, class_prompt: str, device: torch.device) -> None:
        self._unet = frozen_module(base_model, "unet", device, FROZEN_DTYPES[config.mixed_precision])
        self._conditioning = frozen_prompt_encoder(base_model, device)([class_prompt])

    def __call__(self, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        """Float [B, 4, h, w] and int64 [B] to float32 [B, 4, h, w]; call it in the run's precision."""
        with torch.no_grad():
            answer = self._unet(noisy_latents, timesteps, self._conditioning.expand(len(timesteps), -1, -1)).sample
        of_class: Tensor = answer.float()
        return of_class
