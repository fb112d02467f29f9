"""No input leads to a traceback, a hang, or a file beside the run folder. A few hundred of each kind; see `count`."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.fuzz.laws import KINDS, Tally, World, fuzz, plans
from tests.fuzz.world import build_world

EXAMPLES = {
    "photos": 300,
    "ledger entries": 40,
    "names of sweeps": 300,
    "names of runs and trials": 40,
    "sweep files, values": 40,
}


HUGE: dict[str, Any] = {
    "methods.lora.rank": 10**18,
    "methods.lora.max_train_steps": 10**18,
    "methods.lora.num_class_images": 10**18,
    "methods.lora.train_batch_size": 10**400,
    "methods.lora.learning_rate": {"low": 1e-320, "high": 1.0, "log": True},
    "search.num_trials": 10**18,
    "search.max_concurrent_trials": 10**18,
    "evaluation.at_steps": [10**9],
    "evaluation.images_per_prompt": 10**9,
    "evaluation.batch_size": 10**18,
    "evaluation.width": 8 * 10**17,
    "evaluation.prompts": ["sks woman in a garden"] * 5_000,
    "subject.resolution": 8 * 10**9,
    "resources.cpus_per_trial": 1e308,
    "champion.prompt_alignment_margin": 1e308,
    "render": {"resolution": 8 * 10**9, "top": 10**18},
}
SPACES: dict[str, Any] = {
    "whole numbers": {"low": 1, "high": 10**12},
    "whole numbers, logarithmic": {"low": 1, "high": 10**12, "log": True},
    "small steps": {"low": 1, "high": 10**12, "step": 1},
    "numbers beyond any float": {"low": 1, "high": 10**400},
    "many choices": {"choices": list(range(1, 3_000))},
}


def with_value(sweep: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    sweep = copy.deepcopy(sweep)
    *sections, key = place.split(".")
    section = sweep
    for name in sections:
        section = section.setdefault(name, {})
    section[key] = value
    return sweep


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
@pytest.mark.parametrize("place", HUGE)
def test_a_huge_number_is_planned_or_refused_at_once(world: World, place: str, sampler: str) -> None:
    """Neither a hang nor memory for what nobody can run."""
    plans(world, Tally(), with_value(with_value(world.sweep, "search.sampler", sampler), place, HUGE[place]))


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe", "nsga2"])
@pytest.mark.parametrize("space", SPACES)
def test_an_enormous_space_is_planned_or_refused_at_once(world: World, space: str, sampler: str) -> None:
    """Three ranges of a million million values each have more combinations than can be counted one by one."""
    sweep = with_value(world.sweep, "search.sampler", sampler)
    for field in ("rank", "max_train_steps", "gradient_accumulation_steps"):
        sweep = with_value(sweep, f"methods.lora.{field}", SPACES[space])
    plans(world, Tally(), sweep)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_input_breaks_its_law(world: World, kind: str) -> None:
    """Answered or refused in words, soon, in little memory; both happen, so the inputs reach both sides."""
    tally = fuzz(kind, world, EXAMPLES.get(kind, 80))
    assert tally.refused
    assert tally.answered or kind in ("sweep files, text", "names of runs and trials")
