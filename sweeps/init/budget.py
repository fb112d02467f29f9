"""How much of a sweep fits into a time: sizes in order, each with more of something and less of nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sweeps.config import SweepConfig, class_images_needed
from sweeps.init.speed import Speed
from sweeps.plan import Plan, plan_of
from sweeps.wording import duration_text
from training.errors import UserError

OVERHEAD = 1.1
"""Loading, faces and files beside steps and pictures: a tenth, a guess."""
_UNITS = {"d": 86_400, "h": 3600, "m": 60}
_BUDGET = re.compile(r"(?:(?P<d>\d+(?:\.\d+)?)d)?(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m(?:in)?)?")
_HOURS = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Size:
    """How large a sweep is."""

    num_trials: int
    part_of_steps: float
    """Of the steps that suit the photos."""
    num_prompts: int
    dreambooth: bool
    """With full DreamBooth beside LoRA: one such trial takes as long as two and a half of the others."""


SIZES = (
    Size(4, 0.5, 4, dreambooth=False),
    Size(6, 0.5, 4, dreambooth=False),
    Size(8, 0.5, 4, dreambooth=False),
    Size(8, 1, 4, dreambooth=False),
    Size(12, 1, 4, dreambooth=False),
    Size(12, 1, 4, dreambooth=True),
    Size(16, 1, 6, dreambooth=True),
    Size(24, 1, 6, dreambooth=True),
    Size(32, 1, 8, dreambooth=True),
    Size(48, 1, 8, dreambooth=True),
)
"""From the least that is still a sweep."""
USUAL = SIZES[6]
"""Without a budget."""


def parse_budget(text: str) -> float:
    """Seconds of `2h`, `90m`, `1h30m`, `1d`; a plain number is hours.

    Raises:
        UserError: it is no such text, or no time.
    """
    bare = text.strip().lower().replace(" ", "")
    if _HOURS.fullmatch(bare):
        seconds = 3600 * float(bare)
    else:
        match = _BUDGET.fullmatch(bare)
        seconds = sum(_UNITS[unit] * float(match[unit] or 0) for unit in _UNITS) if match and bare else 0
    if seconds <= 0:
        raise UserError(f"--budget: must be a time such as 2h, 90m or 1h30m (a plain number is hours), got {text!r}")
    return seconds


@dataclass(frozen=True)
class Estimate:
    """What a sweep is taken to need."""

    seconds: float
    plan: Plan


def estimate(config: SweepConfig, speed: Speed, num_gpus: int) -> Estimate:
    """Of a sweep whose trials all have the same number of steps and scoring points.

    Which method a search will try more often nobody knows: a trial is taken to be the mean of the methods. The second
    stage is taken to be of the dearer one. Early ends and shared passes of a pack are not counted: they make it less.

    Args:
        config: the sweep.
        speed: of one GPU.
        num_gpus: that share the trials evenly.
    """
    plan = plan_of(config)
    methods = list(config.methods)
    per_step = [speed.step(method) for method in methods]
    seconds = plan.num_steps * sum(per_step) / len(methods) + plan.num_images * speed.picture
    if plan.second_stage is not None:
        seconds += plan.second_stage.num_steps * max(per_step) + plan.second_stage.num_images * speed.picture
    drawn_once = class_images_needed(config) * speed.picture  # by one GPU
    return Estimate(OVERHEAD * (seconds / num_gpus + drawn_once), plan)


def largest_that_fits(
    build: Callable[[Size], SweepConfig], speed: Speed, num_gpus: int, budget: float, sizes: Sequence[Size] = SIZES
) -> tuple[Size, SweepConfig, Estimate]:
    """The last size up to which all fit, so that a larger budget never gives less.

    Args:
        build: the sweep of a size.
        speed: see `estimate`.
        num_gpus: see `estimate`.
        budget: seconds.
        sizes: from the least.

    Raises:
        UserError: not even the least fits; says what it needs.
    """
    fitting = None
    for size in sizes:
        config = build(size)
        needed = estimate(config, speed, num_gpus)
        if needed.seconds > budget:
            if fitting is None:
                raise UserError(
                    f"--budget: the least sweep of these photos takes about {duration_text(needed.seconds)} by "
                    f"{speed.text}; got {duration_text(budget)}"
                )
            break
        fitting = (size, config, needed)
    assert fitting is not None
    return fitting


def steps_for(num_photos: int) -> int:
    """Training steps that suit so many photos, in hundreds.

    A hundred a photo lies between fast-DreamBooth's 50 and 200 and EasyPhoto's 200 at most; 400 to 1200 in all are the
    steps within which published runs on faces lie (Hugging Face's study 800 to 1200, the reference experiment 500 and
    800).
    """
    return min(1200, max(400, 100 * num_photos))


def scoring_points(steps: int) -> list[int]:
    """A quarter, a half and all of the steps: likeness is reported best as early as 250."""
    return [steps // 4, steps // 2, steps]
