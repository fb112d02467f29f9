"""How sure a mean over pictures is: percentile bootstrap intervals, paired where two checkpoints are compared.

The unit is one picture, that is one (prompt, seed). All trials of a sweep make the same prompts from the same starting
noise, so two checkpoints are compared picture by picture: what a hard prompt does to both cancels out. Method: Efron &
Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3. With a handful of pictures such intervals are too
narrow, and they know nothing of the noise of another training seed: they are the least, not the most, one should doubt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95

Verdict = Literal["higher", "lower", "tie", "unknown"]


@dataclass(frozen=True)
class Interval:
    """A mean in the score's own unit, and the bounds that hold 95 % of its bootstrap resamples."""

    mean: float
    low: float
    high: float

    def covers(self, value: float) -> bool:
        """Whether `value` lies within the bounds, the bounds included."""
        return self.low <= value <= self.high

    def overlaps(self, other: Interval) -> bool:
        """Whether the two ranges share a point."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over the pictures that both have; `interval` is None with fewer than two of them."""

    num_pictures: int
    mean: float | None
    interval: Interval | None

    @property
    def verdict(self) -> Verdict:
        """`higher` or `lower`: what a is; `tie` where the interval covers 0; `unknown` without an interval."""
        if self.interval is None:
            return "unknown"
        if self.interval.covers(0.0):
            return "tie"
        return "higher" if self.interval.low > 0 else "lower"


@lru_cache(maxsize=16)
def _resampled_indices(num_pictures: int) -> npt.NDArray[np.int64]:
    """One fixed draw for each count of pictures: the same run folder gives the same digits every time."""
    return np.random.default_rng(0).integers(0, num_pictures, size=(NUM_RESAMPLES, num_pictures))


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """The mean of `values` (one a picture) with its 95 % percentile interval; None for fewer than two values."""
    if len(values) < 2:
        return None
    array = np.asarray(values, dtype=np.float64)
    means = array[_resampled_indices(len(array))].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean=float(array.mean()), low=float(low), high=float(high))


def paired_difference(a: Mapping[object, float], b: Mapping[object, float]) -> Difference:
    """Mean of a - b over the pictures (keys) that both hold, with its interval."""
    differences = [a[key] - b[key] for key in a if key in b]
    mean = float(np.mean(differences)) if differences else None
    return Difference(num_pictures=len(differences), mean=mean, interval=bootstrap_interval(differences))
