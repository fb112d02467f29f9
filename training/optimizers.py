"""The optimizers that a training may take its steps with, each by the library that its users know it from."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import torch
from torch import nn

from training.config import TrainConfig


def make_optimizer(
    config: TrainConfig, groups: Sequence[Sequence[nn.Parameter]], *, fused: bool = False
) -> torch.optim.Optimizer:
    """The config's optimizer over the UNet's weights and, where they train, the text encoder's.

    Args:
        config: `optimizer`, its rates and `adam_*`.
        groups: the UNet's weights, then the text encoder's.
        fused: AdamW takes a step in one kernel a parameter.
    """
    rates = (config.learning_rate, config.text_encoder_learning_rate or config.learning_rate)
    rated = [{"params": list(group), "lr": rate} for group, rate in zip(groups, rates, strict=False)]
    if config.optimizer == "prodigy":
        return _prodigy(config, rated)
    if config.optimizer == "adafactor":
        return _adafactor(config, rated)
    if config.use_8bit_adam:
        from bitsandbytes.optim import AdamW8bit as AdamW  # an optional extra
    else:
        from torch.optim import AdamW
    optimizer: torch.optim.Optimizer = AdamW(
        rated,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
        **({"fused": True} if fused else {}),
    )
    return optimizer


def rate_of(group: dict[str, float]) -> float:
    """The rate at which a group's next step is taken: Prodigy's own estimate, `d`, times what the config says."""
    return float(group["lr"]) * float(group.get("d", 1.0))


def _prodigy(config: TrainConfig, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    """As diffusers' advanced scripts set it up: Mishchenko & Defazio 2023, algorithm 4, with bias correction."""
    from prodigyopt import Prodigy

    with contextlib.redirect_stdout(io.StringIO()):  # it prints that weight decay is decoupled
        optimizer: torch.optim.Optimizer = Prodigy(
            groups,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
            eps=config.adam_epsilon,
            decouple=True,
            use_bias_correction=True,
            safeguard_warmup=True,
        )
    return optimizer


def _adafactor(config: TrainConfig, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    """At the config's rate, as kohya's trainers advise: Shazeer & Stern 2018, algorithm 4, without relative steps."""
    from transformers.optimization import Adafactor

    optimizer: torch.optim.Optimizer = Adafactor(
        groups,
        lr=config.learning_rate,
        weight_decay=config.adam_weight_decay,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )
    return optimizer
