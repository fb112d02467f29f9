"""How sure a mean over pictures is: bootstrap intervals, paired where two checkpoints are compared.

The unit is one picture, that is one (prompt, seed). All trials of a sweep make the same prompts from the same starting
noise, so two checkpoints are compared picture by picture: what a hard prompt does to both cancels out. The intervals
are percentile intervals (Efron & Tibshirani 1993, chapter 13), expanded for small samples as in Hesterberg 2015, "What
Teachers Should Know About the Bootstrap": plain ones of a dozen pictures are too narrow. They know nothing of the noise
of another training seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
MIN_PICTURES_FOR_VERDICT = 6
"""With five pictures even a unanimous sign comes about by chance in 1 of 16 cases, more often than 1 of 20."""
MAX_KNOWN_INTERVALS = 20_000
"""That are kept, some 2 KB each: a run that is read again and again while it grows has mostly the same ones."""

Verdict = Literal["higher", "lower", "tie", "unknown"]


@dataclass(frozen=True)
class Interval:
    """A mean in the score's own unit, and the bounds that hold 95 % (or more) of its bootstrap resamples."""

    mean: float
    low: float
    high: float

    def covers(self, value: float) -> bool:
        """Whether `value` lies within the bounds, the bounds included."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over the pictures that both have; `interval` is None with fewer than two of them."""

    num_pictures: int
    mean: float | None
    interval: Interval | None

    @property
    def verdict(self) -> Verdict:
        """`higher` or `lower`: what a is; `tie` where the interval covers 0; `unknown` with too few pictures."""
        if self.interval is None or self.num_pictures < MIN_PICTURES_FOR_VERDICT:
            return "unknown"
        if self.interval.covers(0.0):
            return "tie"
        return "higher" if self.interval.low > 0 else "lower"


@lru_cache(maxsize=16)
def _resampled_indices(num_pictures: int) -> npt.NDArray[np.int64]:
    """One fixed draw for each count of pictures: the same run folder gives the same digits every time."""
    return np.random.default_rng(0).integers(0, num_pictures, size=(NUM_RESAMPLES, num_pictures))


def bootstrap_interval(values: Sequence[float], num_comparisons: int = 1) -> Interval | None:
    """The mean of `values` (one a picture) with its interval; None for fewer than two values.

    Args:
        values: one number a picture.
        num_comparisons: how many such intervals the reader chooses from. The 95 % hold for all of them together
            (Bonferroni), because the best of many noisy numbers looks better than it is.
    """
    return _interval(tuple(values), num_comparisons) if len(values) >= 2 else None


@lru_cache(maxsize=MAX_KNOWN_INTERVALS)
def _interval(values: tuple[float, ...], num_comparisons: int) -> Interval:
    array = np.asarray(values, dtype=np.float64)
    means = array[_resampled_indices(len(array))].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2 / num_comparisons
    mean = float(array.mean())
    means.sort()
    expansion = _expansion(len(array), tail)
    low, high = (mean + expansion * (quantile_of_sorted(means, share) - mean) for share in (tail, 1 - tail))
    return Interval(mean=mean, low=low, high=high)


def quantile_of_sorted(values: npt.NDArray[np.float64], share: float) -> float:
    """`np.quantile(values, share)` to the last bit, in a tenth of its time: a large sweep has 100,000 intervals.

    Args:
        values: in rising order.
        share: in [0, 1].
    """
    place = share * (len(values) - 1)
    i = min(math.floor(place), len(values) - 2)
    low, high, part = float(values[i]), float(values[i + 1]), place - i
    return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)


@lru_cache(maxsize=256)
def _expansion(num_pictures: int, tail: float) -> float:
    """By how much a percentile interval of so few pictures is too narrow.

    Resampling divides by n instead of n - 1, and has normal instead of Student's tails.
    """
    dof = num_pictures - 1
    return float(math.sqrt(num_pictures / dof) * stdtrit(dof, tail) / ndtri(tail))


def paired_difference(a: Mapping[str, float], b: Mapping[str, float], num_comparisons: int = 1) -> Difference:
    """Mean of a - b over the pictures (keys) that both hold, with its interval."""
    differences = [a[key] - b[key] for key in a if key in b]
    mean = float(np.mean(differences)) if differences else None
    return Difference(len(differences), mean, bootstrap_interval(differences, num_comparisons))
