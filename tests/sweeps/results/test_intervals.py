"""Laws of the intervals: they hold what they say as often as they say, and comparisons of many hold together.

Every share is measured over enough repetitions that a rate of error half as large again, or a third less, is seen.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.results.confirmed import Repeated, standing_of
from sweeps.results.intervals import Family, Interval, Uncertainty, interval_over_pictures, seed_noise

BETWEEN_PROMPTS, WITHIN, BETWEEN_SEEDS = 0.13, 0.12, 0.07
"""Standard deviations, as the demo has them: pictures of one prompt are strongly alike, and so are a training's."""
TOO_OFTEN, TOO_SELDOM = 0.05 * 1.5, 0.05 / 1.5


def trainings(
    rng: np.random.Generator, num_prompts: int, each: int = 1, num_seeds: int = 1, mean: float = 0.4
) -> list[dict[str, float]]:
    """Scores of a setting's trainings, which share what it makes of a prompt and differ in a shift each."""
    of_prompts = mean + rng.normal(0, BETWEEN_PROMPTS, num_prompts)
    return [
        {
            f"{prompt:03d}-{noise}.png": float(of_prompts[prompt] + shift + rng.normal(0, WITHIN))
            for prompt in range(num_prompts)
            for noise in range(each)
        }
        for shift in (rng.normal(0, BETWEEN_SEEDS, num_seeds) if num_seeds > 1 else [0.0])
    ]


def mean_of(training: dict[str, float]) -> float:
    return float(np.mean([*training.values()]))


@pytest.mark.parametrize(("num_prompts", "each"), [(4, 3), (12, 1), (12, 4)])
def test_an_interval_holds_the_mean_over_other_prompts_as_often_as_it_says(num_prompts: int, each: int) -> None:
    """Pictures of one prompt are no independent draws: prompts are the unit."""
    rng = np.random.default_rng(1)
    intervals = [interval_over_pictures(trainings(rng, num_prompts, each)[0]) for _ in range(2000)]
    missed = np.mean([interval is not None and not interval.covers(0.4) for interval in intervals])
    assert TOO_SELDOM <= missed <= TOO_OFTEN


@pytest.mark.parametrize("num_seeds", [2, 3])
def test_a_mean_over_trainings_holds_what_other_seeds_and_prompts_give(num_seeds: int) -> None:
    """Seeds, prompts and noise are all drawn anew; what few seeds a setting has is pooled over three settings."""
    rng = np.random.default_rng(2)
    missed = 0
    for _ in range(1500):
        arms = [trainings(rng, 12, num_seeds=num_seeds) for _ in range(3)]
        noise = seed_noise([[mean_of(training) for training in arm] for arm in arms])
        interval = Repeated(arms[0], noise).interval
        assert interval is not None
        assert interval.sources == ("noise", "prompts", "training seeds")
        missed += not interval.covers(0.4)
    assert missed / 1500 <= TOO_OFTEN, "what a seed and a prompt do together counts twice, so it may miss less often"


def test_an_interval_over_pictures_alone_does_not_hold_other_seeds() -> None:
    """Which is why finalists are trained again: one training's pictures say nothing of another's."""
    rng = np.random.default_rng(3)
    missed = 0
    for _ in range(500):
        (one, *_) = trainings(rng, 12, each=4, num_seeds=2)
        interval = interval_over_pictures(one)
        noise = Uncertainty(BETWEEN_SEEDS**2, 1000, ("training seeds",))
        with_seeds = interval_over_pictures(one, noise)
        assert interval is not None
        assert with_seeds is not None
        assert with_seeds.low <= interval.low
        missed += not interval.covers(0.4)
    assert missed / 500 > 2 * 0.05


@pytest.mark.parametrize(("num_prompts", "each", "number"), [(12, 1, 8), (4, 3, 8), (12, 2, 24)])
def test_the_best_of_equals_is_told_from_none_of_them(num_prompts: int, each: int, number: int) -> None:
    """Family-wise: whichever of many equal checkpoints looks best, it is called higher in 5 of 100 sweeps at most."""
    rng = np.random.default_rng(4)
    false = 0
    for _ in range(400):
        keys = trainings(rng, num_prompts, each)[0]
        scores = [{key: float(rng.normal(0.4, WITHIN)) for key in keys} for _ in range(number)]
        family = Family(scores)
        best = max(scores, key=mean_of)
        false += any(family.compare(best, other).verdict != "tie" for other in scores if other is not best)
    assert false / 400 <= TOO_OFTEN


def test_a_family_of_hundreds_still_tells_a_clear_difference() -> None:
    """A dozen prompts and 200 checkpoints: a real lead of eight standard errors is seen, and chance is not."""
    rng = np.random.default_rng(5)
    scores = [{f"{p:03d}-0.png": float(rng.normal(0.4, WITHIN)) for p in range(12)} for _ in range(199)]
    leader = {key: value + 0.4 for key, value in scores[0].items()}
    family = Family([leader, *scores])
    assert np.mean([family.compare(leader, other).verdict == "higher" for other in scores]) > 0.9
    others = [(a, b) for a in scores[:30] for b in scores[:30] if a is not b]
    assert np.mean([family.compare(a, b).verdict != "tie" for a, b in others]) < 0.01


def test_pairing_sees_what_the_separate_intervals_hide() -> None:
    """A small constant lead over prompts of very different difficulty is `higher`; noise of that size is a `tie`."""
    hard = {f"{i:03d}-0.png": 0.1 * i for i in range(10)}
    easier = {key: value + 0.01 + 0.001 * (place % 2) for place, (key, value) in enumerate(hard.items())}
    assert Family([easier, hard]).compare(easier, hard).verdict == "higher"
    assert Family([easier, hard]).compare(hard, easier).verdict == "lower"
    noise = {key: value + (0.05 if place % 2 else -0.05) for place, (key, value) in enumerate(hard.items())}
    assert Family([noise, hard]).compare(noise, hard).verdict == "tie"
    few = [f"{i}.png" for i in range(5)]
    high, low = dict.fromkeys(few, 1.0), dict.fromkeys(few, 0.5)
    assert Family([high, low]).compare(high, low).verdict == "unknown"
    assert Family([high, low]).compare(high, {"b": 0.5}).mean is None


def test_a_family_is_about_prompts_where_there_are_enough_of_them() -> None:
    """Else about these very prompts; the interval says which."""
    rng = np.random.default_rng(6)
    for num_prompts, sources in ((4, ("noise",)), (6, ("noise", "prompts"))):
        a, b = (trainings(rng, num_prompts, 3)[0] for _ in range(2))
        interval = Family([a, b]).compare(a, b).interval
        assert interval is not None
        assert interval.sources == sources


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(-0.5, 0.5))
def test_intervals_move_with_their_values_and_repeat_themselves(values: list[float], shift: float) -> None:
    """The same run folder gives the same digits every time."""
    named = {f"{place:03d}-0.png": value for place, value in enumerate(values)}
    interval, moved = (interval_over_pictures({key: v + by for key, v in named.items()}) for by in (0.0, shift))
    assert interval is not None
    assert moved is not None
    assert interval == interval_over_pictures(dict(named))
    assert moved.low == pytest.approx(interval.low + shift, abs=1e-9)
    assert moved.high - moved.low == pytest.approx(interval.high - interval.low, abs=1e-9)
    assert interval_over_pictures({"000-0.png": 0.5}) is None


def test_sums_of_uncertainties_have_variances_that_add_and_freedom_between() -> None:
    """Welch and Satterthwaite: the sum knows at least as much as its worse part and at most as both."""
    a, b = Uncertainty(0.01, 3, ("noise",)), Uncertainty(0.04, 7, ("training seeds",))
    total = a + b
    assert total.variance == pytest.approx(0.05)
    assert 3 <= total.dof <= 10
    assert total.sources == ("noise", "training seeds")
    assert (a + Uncertainty(0.0, 1, ())).dof == pytest.approx(3)


def test_more_comparisons_widen_and_more_trainings_narrow() -> None:
    """A difference between finalists holds for all of their pairs, and is told better by more trainings."""
    rng = np.random.default_rng(7)
    noise = Uncertainty(BETWEEN_SEEDS**2, 6, ("training seeds",))
    a, b = trainings(rng, 12, num_seeds=6), trainings(rng, 12, num_seeds=6)
    widths = {}
    for seeds, pairs in ((2, 1), (2, 3), (6, 1)):
        interval = Repeated(a[:seeds], noise).minus(Repeated(b[:seeds], noise), pairs).interval
        assert interval is not None
        widths[seeds, pairs] = interval.high - interval.low
    assert widths[6, 1] < widths[2, 1] < widths[2, 3]
    one_way, other_way = Repeated(a, noise).minus(Repeated(b, noise)), Repeated(b, noise).minus(Repeated(a, noise))
    assert one_way.mean == pytest.approx(-(other_way.mean or 0.0))


def test_seed_noise_is_pooled_within_settings() -> None:
    """What differs between settings is no noise; a setting trained once tells nothing."""
    noise = seed_noise([[0.1, 0.2], [0.8, 0.9], [0.5]])
    assert noise is not None
    assert (noise.variance, noise.dof) == (pytest.approx(0.005), 2)
    assert seed_noise([[0.5], []]) is None


@pytest.mark.parametrize(
    ("low", "high", "standing"),
    [(-0.01, 0.05, "follows"), (-0.02, 0.05, "follows"), (-0.03, 0.01, "borderline"), (-0.09, -0.03, "off prompt")],
)
def test_following_the_prompts_is_decided_with_its_uncertainty(low: float, high: float, standing: str) -> None:
    """Surely above the line, not sure, surely below; a point just below the line decides nothing."""
    assert standing_of(Interval((low + high) / 2, low, high), 0.02) == standing
    assert standing_of(None, 0.02) == "borderline"
