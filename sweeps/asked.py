"""Which trials the sweep file asks for: the list where it is decided beforehand, the space where it is not.

A run folder may hold others too, of an earlier state of the file. They stay where they are, but never stand for one
that is asked for.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

from sweeps.config import ListedSweep, SweepConfig
from sweeps.ledger.identity import config_hash
from sweeps.space import draw, grid, holds, num_distinct, random_chooser
from training.config import MethodConfig

DEFAULT_NUM_TRIALS = 16
MAX_REPEATS = 500
"""Known configs in a row after which the space counts as used up."""


def is_listed(config: SweepConfig) -> bool:
    """Are the trials decided beforehand, whatever is found?"""
    return isinstance(config, ListedSweep) or config.search.sampler in ("grid", "random")


def listed_trials(config: SweepConfig) -> list[MethodConfig]:
    """All trials of a grid or random search, in order; the same seed gives the same list, and more trials extend it."""
    return list(_listed(config).values())


def _listed(config: SweepConfig) -> dict[str, MethodConfig]:
    """The same, by their hashes."""
    if isinstance(config, ListedSweep):
        return dict(_distinct(iter(config.trainings)))
    at_steps = config.evaluation.at_steps
    if config.search.sampler == "grid":
        return dict(_distinct(grid(config.methods, at_steps)))
    rng = random.Random(config.search.seed)
    draws = (draw(config.methods, at_steps, random_chooser(rng)) for _ in itertools.count())
    return dict(itertools.islice(_distinct(draws), num_planned(config)))


def _distinct(configs: Iterator[MethodConfig]) -> Iterator[tuple[str, MethodConfig]]:
    """The configs by their hashes, in order, each once; it ends where nothing new comes any more."""
    seen: set[str] = set()
    repeats = 0
    for config in configs:
        key = config_hash(config)
        repeats = repeats + 1 if key in seen else 0
        if repeats == 0:
            seen.add(key)
            yield key, config
        elif repeats > MAX_REPEATS:
            return


def num_planned(config: SweepConfig) -> int:
    """How many trials the sweep will have: as many as were asked for, if the space holds them."""
    if isinstance(config, ListedSweep) or config.search.sampler == "grid":
        return len(listed_trials(config))
    wanted = config.search.num_trials or DEFAULT_NUM_TRIALS
    return num_distinct(config.methods, config.evaluation.at_steps, wanted)


def asked_for(config: SweepConfig) -> Callable[[MethodConfig], bool]:
    """Whether a trial is one that the sweep file asks for.

    Of a grid or random search: it is in the list. Of `tpe` and `nsga2`, whose trials follow from scores: the space
    holds it, fixed values included, whichever seed or sampler proposed it.
    """
    if is_listed(config):
        listed = frozenset(_listed(config))
        return lambda trial: config_hash(trial) in listed
    return lambda trial: holds(config.methods, config.evaluation.at_steps, trial)
