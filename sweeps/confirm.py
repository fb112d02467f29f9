"""The second stage of a sweep, as far as the sweep file says: how many finalists and seeds, and on what pictures.

Which trials are the finalists is in `sweeps/results/finalists.py`, what came of it in `sweeps/results/confirmed.py`.
"""

from __future__ import annotations

from evaluation.config import ApartEvaluationConfig, EvaluationConfig
from sweeps.asked import num_planned
from sweeps.config import ConfirmConfig, SweepConfig
from training.config import MethodConfig

BY_DEFAULT = ((3, 3), (3, 2), (2, 2))
"""Finalists and seeds, the first that the budget allows."""
MAX_SHARE = 0.5
"""Of the search's trainings."""

FRESH_TRAINING_SEEDS = 1000
"""Beyond the finalist's own: no search has as many seeds."""
FRESH_NOISE_SEEDS = 1_000_000
"""Beyond the search's: no prompt has as many pictures there."""

SITUATIONS = (
    "in the snow",
    "at the beach at sunset",
    "in a busy city street at night",
    "in a library, smiling",
    "wearing a suit and tie",
    "wearing sunglasses and a hat",
    "as an astronaut in space",
    "as an oil painting",
)
"""What the held-back prompts ask for where the sweep file has none: places, clothes and styles of few words."""


def confirm_of(config: SweepConfig) -> ConfirmConfig | None:
    """What the second stage is to be; None where there is none.

    Where the sweep file does not say, it is as much as costs at most half of the search's trainings.
    """
    if config.confirm is not None:
        return config.confirm if config.confirm.finalists else None
    budget = MAX_SHARE * num_planned(config)
    fitting = [(finalists, seeds) for finalists, seeds in BY_DEFAULT if finalists * seeds <= budget]
    return ConfirmConfig(finalists=fitting[0][0], seeds=fitting[0][1]) if fitting else None


def held_back_prompts(config: SweepConfig, confirm: ConfirmConfig) -> list[str]:
    """The prompts that the search has not seen."""
    if confirm.prompts:
        return confirm.prompts
    return [f"{config.subject.instance_prompt} {situation}" for situation in SITUATIONS]


def confirm_evaluation(
    config: SweepConfig, confirm: ConfirmConfig, images_per_prompt: int | None = None
) -> EvaluationConfig:
    """The pictures of a finalist's every training: the search's prompts and those held back, from other noise.

    Args:
        config: the sweep.
        confirm: its second stage.
        images_per_prompt: other than the sweep file's, where somebody has asked for more.
    """
    evaluation = config.evaluation
    changes = {
        "prompts": [*evaluation.prompts, *held_back_prompts(config, confirm)],
        "images_per_prompt": images_per_prompt or confirm.images_per_prompt,
        "seed": (evaluation.seed + FRESH_NOISE_SEEDS) % 2**31,
        "screening": None,
    }
    return ApartEvaluationConfig.model_construct(**{**dict(evaluation), **changes})


def fresh_trainings(config: MethodConfig, step: int, seeds: int) -> list[MethodConfig]:
    """Other trainings of a finalist, up to the step of its checkpoint.

    A checkpoint before a run's end is only ever scored under a schedule that does not know the horizon, so a run that
    ends there is the same.
    """
    changes = [
        {"seed": (config.seed + FRESH_TRAINING_SEEDS + number) % 2**32, "max_train_steps": step}
        for number in range(seeds)
    ]
    return [config.model_copy(update=change) for change in changes]
