"""Which trials a sweep file asks for, after it was changed.

pytest tests/sweeps/test_asked.py     a second
"""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.asked import asked_for, listed_trials, num_planned
from sweeps.config import SweepConfig
from tests.sweeps.search.test_search import sweep
from training.config import LoraConfig, MethodConfig

ALL = ["grid", "random", "tpe", "nsga2"]


def changed(config: SweepConfig, **search: Any) -> SweepConfig:
    return config.model_copy(update={"search": config.search.model_copy(update=search)})


def lora(**fields: Any) -> LoraConfig:
    return LoraConfig(max_train_steps=4, **fields)


def space(sampler: str, num_trials: int | None = None, **fields: Any) -> SweepConfig:
    return sweep(sampler, num_trials, lora={"max_train_steps": 4, **fields})


def asked(config: SweepConfig, *trials: MethodConfig) -> list[bool]:
    is_asked_for = asked_for(config)
    return [is_asked_for(trial) for trial in trials]


@pytest.mark.parametrize("sampler", ALL)
def test_a_value_that_is_gone_from_the_file_is_not_asked_for(sampler: str) -> None:
    """Neither a choice that was taken out, nor a fixed value that is another now, nor another method."""
    ranks = space(sampler, rank={"choices": [2, 4]})
    assert asked(ranks, lora(rank=2), lora(rank=8)) == [True, False]
    assert asked(space(sampler, rank=8), lora(rank=8), lora(rank=4)) == [True, False]
    assert asked(space(sampler, rank=2, train_batch_size=1), lora(rank=2, train_batch_size=1), lora(rank=2)) == [
        True,
        False,
    ]
    other_method = sweep(sampler, None, dreambooth={"learning_rate": {"choices": [1e-5, 1e-6]}})
    assert asked(other_method, lora(rank=2)) == [False]


def test_a_listed_search_asks_for_its_list_alone() -> None:
    """The space of a random search holds endlessly many trials; those that the seed drew are asked for."""
    config = space("random", 5, learning_rate={"low": 1e-5, "high": 1e-3, "log": True})
    listed = listed_trials(config)
    assert all(asked(config, *listed))
    assert not any(asked(changed(config, seed=config.search.seed + 1), *listed))
    assert asked(changed(config, num_trials=3), *listed) == [True, True, True, False, False]


def test_a_search_led_by_scores_asks_for_its_space() -> None:
    """What follows from scores is not known beforehand: any trial of the space is an answer, whatever the seed."""
    config = space("tpe", 5, learning_rate={"low": 1e-5, "high": 1e-3, "log": True})
    assert asked(changed(config, seed=9), lora(learning_rate=1e-4), lora(learning_rate=1e-2)) == [True, False]


def test_scoring_points_that_are_runs_of_their_own_are_part_of_the_space() -> None:
    """Under a schedule that looks at its end a run of 3 steps is asked for only where 3 is a scoring point."""
    cosine = space("tpe", None, lr_scheduler="cosine")
    two, three = (LoraConfig(lr_scheduler="cosine", max_train_steps=steps) for steps in (2, 3))
    assert asked(cosine, two, three) == [True, False]


@pytest.mark.parametrize(
    ("rank", "count"),
    [
        ({"low": 2, "high": 4}, 3),
        ({"low": 2, "high": 9, "log": True}, 8),
        ({"low": 2, "high": 9, "step": 3}, 3),
        ({"low": 5, "high": 5}, 1),
    ],
)
@pytest.mark.parametrize("sampler", ALL)
def test_ranges_of_whole_numbers_are_finite(sampler: str, rank: dict[str, Any], count: int) -> None:
    """A sweep over them has so many trials, however many are asked for."""
    config = space(sampler, None if sampler == "grid" else 100, rank=rank)
    assert num_planned(config) == count
    if sampler in ("grid", "random"):
        assert len({trial.rank for trial in listed_trials(config) if isinstance(trial, LoraConfig)}) == count
