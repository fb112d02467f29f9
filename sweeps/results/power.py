"""What a sweep can see: the smallest difference that it tells from none, and what more pictures or seeds would buy."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scipy.special import stdtrit

from sweeps.results.intervals import CONFIDENCE, by_prompt
from sweeps.results.leaderboard import Row

POWER = 0.8
"""How often a difference of the stated size is seen."""
MAX_SEEDS = 24
"""Of a setting: whoever would need more had better take the two for equal."""
IMAGE_FACTORS = (1, 2, 4)


@dataclass(frozen=True)
class Noise:
    """Standard deviations of a face similarity, or of another score."""

    seed: float
    """Of a training's mean over training seeds."""
    prompt: float
    """Of the paired difference of two settings over prompts."""
    picture: float
    """Of the paired difference over noise, within a prompt."""


TYPICAL = Noise(seed=0.07, prompt=0.13, picture=0.12)
"""Of the demo's world, where it was measured (docs/log.md): real faces' is not known before a sweep."""


@dataclass(frozen=True)
class Design:
    """How much a setting is tried."""

    seeds: int
    prompts: int
    images_per_prompt: int
    num_settings: int = 2
    """Over which the noise of training seeds is pooled."""


def noise_of_base(base: Row) -> Noise:
    """As the base model's own pictures have it; of training seeds it knows nothing.

    A paired difference has twice the variance of one picture where the two move apart freely.
    """
    by_key = base.face_similarities
    means = by_prompt(by_key)
    if len(means) < 2 or len(by_key) == len(means):
        return TYPICAL
    within = [value - means[key.partition("-")[0]] for key, value in by_key.items()]
    picture = sum(each**2 for each in within) / (len(within) - len(means))
    grand = sum(means.values()) / len(means)
    between = sum((mean - grand) ** 2 for mean in means.values()) / (len(means) - 1)
    prompt = max(0.0, between - picture * len(means) / len(by_key))
    return Noise(TYPICAL.seed, math.sqrt(2 * prompt), math.sqrt(2 * picture))


def half_width(noise: Noise, design: Design, num_comparisons: int = 1) -> float:
    """Of the interval of a difference between two settings that were tried so."""
    variance, dof = _variance(noise, design)
    return _quantile(dof, (1 + CONFIDENCE) / 2, num_comparisons) * math.sqrt(variance)


def smallest_visible(noise: Noise, design: Design, num_comparisons: int = 1) -> float:
    """The true difference between two settings that is told from none in `POWER` of all cases."""
    variance, dof = _variance(noise, design)
    quantiles = _quantile(dof, (1 + CONFIDENCE) / 2, num_comparisons) + float(stdtrit(dof, POWER))
    return quantiles * math.sqrt(variance)


def design_to_tell(difference: float, noise: Noise, design: Design, num_comparisons: int = 1) -> Design | None:
    """The cheapest larger design whose interval would leave 0 out, were the difference as it seems; None: too large."""
    larger = [
        replace(design, seeds=seeds, images_per_prompt=factor * design.images_per_prompt)
        for seeds in range(design.seeds, MAX_SEEDS + 1)
        for factor in IMAGE_FACTORS
    ]
    enough = [each for each in larger if half_width(noise, each, num_comparisons) < abs(difference)]
    # a training costs more than its pictures
    return min(enough, key=lambda each: (each.seeds, each.images_per_prompt), default=None)


def _variance(noise: Noise, design: Design) -> tuple[float, float]:
    """Of a difference of means, with its degrees of freedom."""
    seeds = 2 * noise.seed**2 / design.seeds if design.seeds > 1 else 0.0
    per_prompt = noise.prompt**2 + noise.picture**2 / (design.images_per_prompt * design.seeds)
    prompts = per_prompt / design.prompts
    of_seeds = design.num_settings * (design.seeds - 1)
    parts = [(prompts, design.prompts - 1), *([(seeds, of_seeds)] if of_seeds else [])]
    variance = sum(part for part, _ in parts)
    weights = sum(part**2 / max(1, dof) for part, dof in parts)
    return variance, variance**2 / weights if weights else 1.0


def _quantile(dof: float, share: float, num_comparisons: int) -> float:
    return float(stdtrit(dof, 1 - (1 - share) / num_comparisons))
