"""The champion rule, one object: all that asks it gets one answer.

pytest tests/sweeps/results/test_rule.py     a second
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.config import ChampionConfig
from sweeps.ledger.records import ScoredCheckpoint
from sweeps.results.rule import ChampionRule
from tests.sweeps.ledger_entries import entry, record

RULE = ChampionRule(margin=0.02, base_prompt_alignment=0.30, tie_margin=ChampionConfig().face_similarity_margin)

cosines = st.floats(-1, 1)
checkpoints = st.builds(entry, st.integers(1, 9), cosines, cosines)


def test_the_best_of_a_series_is_the_most_alike_that_still_follows_its_prompts() -> None:
    """Where none does, the one nearest to following them."""
    series = [entry(100, 0.2, 0.30), entry(200, 0.6, 0.29), entry(300, 0.9, 0.2)]
    assert RULE.best(series).step == 200
    assert ChampionRule(0.02, 0.50).best(series).step == 100
    assert ChampionRule(0.02).best(series).step == 300
    with pytest.raises(ValueError, match="at least one scored checkpoint"):
        RULE.best([])


def test_of_equals_the_one_with_fewer_steps_is_better() -> None:
    """Less training for the same scores."""
    assert RULE.best([entry(400, 0.5), entry(200, 0.5)]) == entry(200, 0.5)


@given(st.lists(checkpoints, min_size=1, max_size=6))
def test_order_best_number_and_constraint_agree(series: list[ScoredCheckpoint]) -> None:
    """What a leaderboard, a trial, a scheduler and a search make of the rule is one order."""
    ordered = sorted(series, key=RULE.order)
    assert RULE.order(ordered[0]) == RULE.order(RULE.best(series))
    numbers = [RULE.number(scores) for scores in ordered]
    assert numbers == sorted(numbers, reverse=True)
    feasible = [RULE.slack(scores) <= 0 for scores in ordered]
    assert feasible == [RULE.qualifies(scores) for scores in ordered]
    assert feasible == sorted(feasible, reverse=True), "whoever qualifies stands before whoever does not"


@given(checkpoints, checkpoints)
def test_what_does_not_qualify_is_ordered_by_how_far_it_is_from_it(a: ScoredCheckpoint, b: ScoredCheckpoint) -> None:
    """However alike it is: likeness bought with the prompt counts nothing."""
    for better, worse in itertools.permutations((a, b)):
        if not RULE.qualifies(better) and better.prompt_alignment > worse.prompt_alignment + 1e-9:
            assert RULE.number(better) > RULE.number(worse)


@pytest.mark.parametrize(("base", "alignment", "qualifies"), [(0.26, 0.24, True), (0.26, 0.2399, False)])
def test_the_margin_is_inclusive(base: float, alignment: float, qualifies: bool) -> None:
    """Exactly the base model's alignment minus the margin qualifies; 0.26 - 0.02 > 0.24 in binary. The search's too."""
    rule = ChampionRule(0.02, base)
    assert rule.qualifies(entry(1, 0.5, alignment)) is qualifies
    assert (rule.slack(entry(1, 0.5, alignment)) <= 0) is qualifies


def test_without_the_base_models_score_everything_qualifies() -> None:
    """Nothing is known yet that could disqualify a checkpoint."""
    rule = ChampionRule.of(ChampionConfig(prompt_alignment_margin=0.02), None)
    assert rule.limit is None
    assert rule.qualifies(entry(1, 0.5, -1.0))


def test_the_rule_is_measured_from_the_base_models_record() -> None:
    """A record, a scored checkpoint and a row of the base model give the same rule, and its text names the margin."""
    config = ChampionConfig(prompt_alignment_margin=0.02)
    base = entry(0, 0.1, 0.30)
    assert ChampionRule.of(config, base) == ChampionRule.of(config, record("base", base)) == RULE
    assert "minus 0.02" in RULE.text
