"""How sure a mean over pictures is, and of what: the noise that pictures start from, the prompts, the training seed.

Pictures of one prompt are alike (intra-class correlation 0.57 for face similarity on the demo), so that they are not so
many independent draws: the unit is the prompt, whose pictures are averaged first. Another training seed moves all of a
checkpoint's pictures together, which no interval over its pictures can know: that noise is measured by repeating
trainings, and pooled over the sweep's settings because each has few repeats.

Intervals are Student's, their degrees of freedom Welch's and Satterthwaite's where variances add up (Satterthwaite
1946). Comparisons of many checkpoints hold for all of them together by a max-T test (Westfall & Young 1993) whose null
distribution is had by flipping the signs of paired differences, unit by unit and for all comparisons at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

CONFIDENCE = 0.95
MIN_UNITS = 6
"""With five units even a unanimous sign comes about by chance in 1 of 16 cases, more often than 1 of 20."""
NUM_FLIPS = 2048
"""Patterns of signs; all there are where they are fewer."""
MAX_COMPARED = 200
"""Checkpoints whose pairs are one family: 20,000 comparisons, half a second."""

Verdict = Literal["higher", "lower", "tie", "unknown"]
Source = Literal["noise", "prompts", "training seeds"]


@dataclass(frozen=True)
class Interval:
    """A mean in the score's own unit, and bounds that hold the true one in 95 of 100 cases."""

    mean: float
    low: float
    high: float
    sources: tuple[Source, ...] = ("noise",)
    """What is drawn anew in those cases."""

    def covers(self, value: float) -> bool:
        """Whether `value` lies within the bounds, the bounds included."""
        return self.low <= value <= self.high

    def within(self, low: float, high: float) -> Interval:
        """The part of it that a score can have: a cosine lies in [-1, 1]."""
        return Interval(self.mean, max(low, self.low), min(high, self.high), self.sources)


@dataclass(frozen=True)
class Uncertainty:
    """The variance of a mean, and on how much the knowledge of it rests."""

    variance: float
    dof: float
    """Degrees of freedom."""
    sources: tuple[Source, ...]

    def __add__(self, other: Uncertainty) -> Uncertainty:
        """Of a sum of independent parts."""
        variance = self.variance + other.variance
        weights = self.variance**2 / self.dof + other.variance**2 / other.dof
        dof = variance**2 / weights if weights > 0 else min(self.dof, other.dof)
        return Uncertainty(variance, dof, tuple(dict.fromkeys((*self.sources, *other.sources))))

    def around(self, mean: float, num_comparisons: int = 1) -> Interval:
        """The interval of a mean that is so uncertain.

        Args:
            mean: in the score's own unit.
            num_comparisons: such intervals that the reader chooses from; the 95 % hold for all of them (Bonferroni).
        """
        tail = (1 - CONFIDENCE) / 2 / num_comparisons
        half_width = math.sqrt(self.variance) * -float(stdtrit(self.dof, tail))
        return Interval(mean, mean - half_width, mean + half_width, self.sources)


def prompt_of(key: str) -> str:
    """The prompt of a picture by its key: the file name's first part, the prompt's place among all."""
    return key.partition("-")[0]


def by_prompt(values: Mapping[str, float]) -> dict[str, float]:
    """Means of pictures (key -> value) over each prompt."""
    groups: dict[str, list[float]] = {}
    for key, value in values.items():
        groups.setdefault(prompt_of(key), []).append(value)
    return {prompt: sum(group) / len(group) for prompt, group in groups.items()}


def uncertainty_over_pictures(values: Mapping[str, float]) -> Uncertainty | None:
    """Of the mean of pictures (key -> value) over other prompts like these; with one prompt, over other noise.

    None for fewer than two pictures.
    """
    prompts = list(by_prompt(values).values())
    if len(prompts) >= 2:
        return _uncertainty(tuple(prompts), ("noise", "prompts"))
    return _uncertainty(tuple(values.values()), ("noise",)) if len(values) >= 2 else None


def interval_over_pictures(values: Mapping[str, float], seeds: Uncertainty | None = None) -> Interval | None:
    """The mean of pictures (key -> value) with its interval; None for fewer than two.

    Args:
        values: one number a picture.
        seeds: of one training's mean over other training seeds, where that is known.
    """
    pictures = uncertainty_over_pictures(values)
    if pictures is None:
        return None
    mean = sum(values.values()) / len(values)
    return (pictures if seeds is None else pictures + seeds).around(mean)


def _uncertainty(values: tuple[float, ...], sources: tuple[Source, ...]) -> Uncertainty:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Uncertainty(variance / len(values), len(values) - 1, sources)


def seed_noise(repeats: Sequence[Sequence[float]]) -> Uncertainty | None:
    """Of one training's mean over other training seeds, pooled over settings; None without repeats.

    Args:
        repeats: for each setting, the mean score of each of its trainings over the same pictures.
    """
    dof = sum(len(means) - 1 for means in repeats if means)
    if dof < 1:
        return None
    squares = sum((mean - sum(means) / len(means)) ** 2 for means in repeats for mean in means)
    return Uncertainty(squares / dof, dof, ("training seeds",))


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over the pictures that both have; `interval` is None with too few of them."""

    num_pictures: int
    mean: float | None
    interval: Interval | None

    @property
    def verdict(self) -> Verdict:
        """`higher` or `lower`: what a is; `tie` where the interval covers 0; `unknown` with too few pictures."""
        if self.interval is None:
            return "unknown"
        if self.interval.covers(0.0):
            return "tie"
        return "higher" if self.interval.low > 0 else "lower"


class Family:
    """Checkpoints that are compared with each other: what is said of any of their pairs holds for all pairs together.

    The champion is the best of many noisy ones, so the family is of pairs and not only of what it is compared with.
    The units whose signs are flipped are prompts where all have `MIN_UNITS` of them, and else pictures: then the
    verdicts are about these very prompts.

    Args:
        scores: of each checkpoint, one number a picture (key -> value).
    """

    def __init__(self, scores: Sequence[Mapping[str, float]]) -> None:
        compared = scores[:MAX_COMPARED]
        common = set(compared[0]).intersection(*compared[1:]) if compared else set()
        self.is_over_prompts = len({prompt_of(key) for key in common}) >= MIN_UNITS
        units = [self._units({key: score[key] for key in score if key in common}) for score in compared]
        keys = sorted(units[0]) if units else []
        table = np.array([[unit[key] for key in keys] for unit in units], dtype=np.float64)
        self._criterion = _criterion(table) if len(compared) > 1 and len(keys) >= MIN_UNITS else None

    def compare(self, a: Mapping[str, float], b: Mapping[str, float]) -> Difference:
        """The mean of a - b over the pictures that both hold, with an interval that holds for all pairs together."""
        differences = {key: a[key] - b[key] for key in a if key in b}
        if not differences:
            return Difference(0, None, None)
        mean = sum(differences.values()) / len(differences)
        units = tuple(self._units(differences).values())
        if self._criterion is None or len(units) < MIN_UNITS:
            return Difference(len(differences), mean, None)
        half_width = self._criterion.half_width(float(np.var(units)))
        sources: tuple[Source, ...] = ("noise", "prompts") if self.is_over_prompts else ("noise",)
        return Difference(len(differences), mean, Interval(mean, mean - half_width, mean + half_width, sources))

    def _units(self, values: Mapping[str, float]) -> Mapping[str, float]:
        return by_prompt(values) if self.is_over_prompts else values


@dataclass(frozen=True)
class _Criterion:
    """What the test statistic of all pairs stays below in 95 % of the patterns of signs.

    The statistic is mean^2 / (mean of squares + `usual`). By itself a pair's variance over a dozen units is so
    uncertain that the greatest of thousands would be one that is small by chance; so the usual one is added to each
    (Tusher, Tibshirani & Chu 2001).
    """

    share: float
    usual: float
    """Median variance of a pair's differences."""

    def half_width(self, variance: float) -> float:
        """Of the interval of a mean difference: the shifts of it that the test would not refuse."""
        return math.sqrt(self.share / (1 - self.share) * (variance + self.usual)) if self.share < 1 else math.inf


def _criterion(table: npt.NDArray[np.float64]) -> _Criterion:
    """Of the pairs of checkpoints.

    Args:
        table: [checkpoints, units].
    """
    num_units = table.shape[1]
    first, second = np.triu_indices(len(table), 1)
    squares, sums = np.zeros(len(first)), np.zeros(len(first))
    for unit in table.T:  # one at a time: all differences of all pairs are many
        difference = unit[first] - unit[second]
        squares += difference**2 / num_units
        sums += difference / num_units
    usual = float(np.median(squares - sums**2))
    scale = squares + usual
    is_told = scale > 0  # equal pictures give no sign to flip
    first, second, scale = first[is_told], second[is_told], scale[is_told]
    if not len(first):
        return _Criterion(0.0, usual)
    greatest = [
        np.max((means[first] - means[second]) ** 2 / scale) for means in _signs(num_units) @ table.T / num_units
    ]
    return _Criterion(float(np.quantile(greatest, CONFIDENCE, method="higher")), usual)


@lru_cache(maxsize=16)
def _signs(num_units: int) -> npt.NDArray[np.float64]:
    """[patterns, units] of -1 and 1; one fixed draw for each number: the same run gives the same digits every time.

    A pattern and its mirror image have equal |t|: the first unit keeps its sign.
    """
    if 2 ** (num_units - 1) <= NUM_FLIPS:
        numbers = np.arange(2 ** (num_units - 1))
        bits = (numbers[:, None] >> np.arange(num_units)) & 1
    else:
        bits = np.random.default_rng(0).integers(0, 2, size=(NUM_FLIPS, num_units))
    return (1 - 2 * bits).astype(np.float64)
