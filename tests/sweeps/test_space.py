"""The search space: every sampled config is valid, and a trial's name is a function of its config.

pytest tests/sweeps/test_space.py     a few seconds
"""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.ledger.identity import config_hash
from sweeps.space import (
    Choices,
    MisplacedError,
    Range,
    choices_made,
    contains,
    draw,
    grid,
    holds,
    num_distinct,
    parse_space,
    random_chooser,
    scoring_points,
)
from training.config import METHODS, LoraConfig

AT_STEPS = [200, 400, 800]


def number_ranges(low: float, high: float) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(st.floats(low, high), st.floats(low, high), st.booleans()).map(
        lambda ends: {"low": min(ends[:2]), "high": max(ends[:2]), "log": ends[2]}
    )


LORA_SPACES = st.fixed_dictionaries(
    {},
    optional={
        "rank": st.lists(st.integers(1, 256), min_size=1, max_size=4, unique=True).map(lambda c: {"choices": c}),
        "learning_rate": number_ranges(1e-7, 1.0),
        "max_train_steps": st.integers(1, 900).map(lambda n: {"low": n, "high": n + 50, "step": 10}),
        "seed": st.integers(0, 99).map(lambda n: {"low": 0, "high": n}),
        "lr_scheduler": st.sampled_from(["constant", "cosine"]),
        "train_text_encoder": st.just({"choices": [True, False]}),
        "snr_gamma": st.just({"choices": [None, 5.0]}),
    },
)


@given(space=LORA_SPACES, seed=st.integers(0, 1000))
def test_every_drawn_config_validates_and_can_be_drawn_again(space: dict[str, Any], seed: int) -> None:
    """Whatever is drawn from a space that was read, the method's own model accepts, and `choices_made` leads back."""
    methods = {"lora": parse_space("lora", space), "dreambooth": parse_space("dreambooth", None)}
    config = draw(methods, AT_STEPS, random_chooser(random.Random(seed)))
    assert METHODS[config.method].model_validate(config.model_dump()) == config
    assert draw(methods, AT_STEPS, choices_made(config)) == config


@given(space=LORA_SPACES, seed=st.integers(0, 1000))
def test_a_drawn_value_lies_in_its_range(space: dict[str, Any], seed: int) -> None:
    """Both ends are included and nothing lies outside."""
    methods = {"lora": parse_space("lora", space)}
    config = draw(methods, AT_STEPS, random_chooser(random.Random(seed)))
    for field, value in methods["lora"].items():
        drawn = getattr(config, field)
        if isinstance(value, Range):
            assert value.low <= drawn <= value.high
        elif isinstance(value, Choices):
            assert drawn in value.choices


@given(corner=st.sampled_from(["low", "high"]), learning_rate=st.floats(max_value=0.0) | st.floats(min_value=1.01))
def test_a_corner_outside_the_fields_own_law_is_refused(corner: str, learning_rate: float) -> None:
    """A range is judged at both ends by the field that it fills; there is no second schema."""
    space = {"learning_rate": {"low": 1e-4, "high": 1e-3, corner: learning_rate}}
    with pytest.raises(MisplacedError, match="learning_rate"):
        parse_space("lora", space)


def test_a_grid_is_complete_and_without_repeats() -> None:
    """Every combination of choices and stepped ranges, once."""
    methods = {
        "lora": parse_space(
            "lora", {"rank": {"choices": [2, 16, 128]}, "seed": {"low": 0, "high": 4, "step": 2}, "learning_rate": 1e-4}
        ),
        "dreambooth": parse_space("dreambooth", {"learning_rate": {"choices": [1e-6, 5e-6]}}),
    }
    configs = list(grid(methods, AT_STEPS))
    assert len(configs) == 3 * 3 + 2
    assert len({config_hash(config) for config in configs}) == len(configs)
    assert {(c.rank, c.seed) for c in configs if isinstance(c, LoraConfig)} == {
        (rank, seed) for rank in (2, 16, 128) for seed in (0, 2, 4)
    }


def test_a_schedule_that_knows_its_end_gets_a_run_for_each_scoring_point() -> None:
    """One constant run serves all scoring points; a cosine run only its own end, so each point is a run."""
    constant = {"lora": parse_space("lora", {"max_train_steps": 800})}
    cosine = {"lora": parse_space("lora", {"max_train_steps": 800, "lr_scheduler": "cosine"})}
    searched = {
        "lora": parse_space("lora", {"max_train_steps": {"choices": [300, 600]}, "lr_scheduler": "cosine"}),
    }
    (one,) = grid(constant, AT_STEPS)
    assert scoring_points(one, AT_STEPS) == [200, 400, 800]
    assert [c.max_train_steps for c in grid(cosine, AT_STEPS)] == [200, 400, 800]
    assert all(scoring_points(c, AT_STEPS) == [c.max_train_steps] for c in grid(cosine, AT_STEPS))
    assert [c.max_train_steps for c in grid(searched, AT_STEPS)] == [300, 600]


def test_scoring_points_end_with_the_last_step() -> None:
    """Steps beyond a trial's end fall away and its last step is added."""
    assert scoring_points(LoraConfig(max_train_steps=500), AT_STEPS) == [200, 400, 500]
    assert scoring_points(LoraConfig(max_train_steps=100), AT_STEPS) == [100]


def test_a_space_of_choices_is_counted_and_a_range_is_endless() -> None:
    """The plan's number of trials is what the space can give."""
    closed = {"lora": parse_space("lora", {"rank": {"choices": [1, 2, 3]}, "seed": {"low": 5, "high": 5}})}
    assert num_distinct(closed, AT_STEPS, limit=100) == 3
    assert num_distinct(closed, AT_STEPS, limit=2) == 2
    ranged = {"lora": parse_space("lora", {"learning_rate": {"low": 1e-5, "high": 1e-3}})}
    assert num_distinct(ranged, AT_STEPS, limit=100) == 100


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["0.1", "0.05", "0.25", "1e-5", "3e-5"]))
def test_stepped_ranges_hold_the_decimals_that_one_would_write(first: int, more: int, step: str) -> None:
    """`{low: 0.1, high: 0.3, step: 0.1}` ends at 0.3, not at 0.30000000000000004, and holds all of its points."""
    decimals = [float(Decimal(step) * i) for i in range(first, first + more + 1)]
    value = Range(low=decimals[0], high=decimals[-1], step=float(step))
    assert value.points() == decimals
    assert all(contains(value, point) for point in decimals)
    assert contains(value, decimals[0] + more * float(step)), "nor does a sum of steps fall out by its rounding"
    assert not contains(value, decimals[0] + float(step) / 2)


@given(space=LORA_SPACES, other=LORA_SPACES, seed=st.integers(0, 1000))
def test_a_space_holds_what_can_be_drawn_from_it(space: dict[str, Any], other: dict[str, Any], seed: int) -> None:
    """All that it drew, and of another space just what it could have drawn too."""
    methods, others = {"lora": parse_space("lora", space)}, {"lora": parse_space("lora", other)}
    mine = draw(methods, AT_STEPS, random_chooser(random.Random(seed)))
    foreign = draw(others, AT_STEPS, random_chooser(random.Random(seed)))
    assert holds(methods, AT_STEPS, mine)
    assert not holds({"dreambooth": {}}, AT_STEPS, mine)
    try:
        drawn_alike = draw(methods, AT_STEPS, choices_made(foreign)) == foreign
    except LookupError:
        drawn_alike = False
    assert holds(methods, AT_STEPS, foreign) == drawn_alike


def test_a_law_between_fields_is_found_among_any_number_of_open_values() -> None:
    """However many combinations of other fields there are."""
    others = ("seed", "rank", "train_batch_size", "lr_num_cycles")
    many = {name: {"choices": [1, 2, 3, 4, 5, 6, 7, 8]} for name in others}
    bound = {"lr_scheduler": "polynomial", "lr_warmup_steps": {"choices": [0, 900]}, "max_train_steps": 800}
    with pytest.raises(MisplacedError, match="fewer than max_train_steps"):
        parse_space("lora", {**many, **bound})
