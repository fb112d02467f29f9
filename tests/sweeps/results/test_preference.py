"""Laws of the ranking by votes: it finds the strengths that made them, and knows how sure it is.

pytest tests/sweeps/results/test_preference.py     some ten seconds
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.ledger.records import parse_record
from sweeps.ledger.votes import Choice, Side, Vote
from sweeps.results.leaderboard import Row, rows_of
from sweeps.results.preference import (
    Agreement,
    Ranking,
    agreement,
    agreement_by_picture,
    bradley_terry,
    preference_of,
)

NAMES = ("a", "b", "c", "d", "e")


def vote(left: str, right: str, choice: Choice, picture: str = "000-0.png") -> Vote:
    return Vote(
        prompt="a prompt",
        picture=picture,
        left=Side(trial=left, step=1),
        right=Side(trial=right, step=1),
        choice=choice,
    )


votes_strategy = st.lists(
    st.builds(
        lambda pair, choice: vote(*pair, choice),
        st.sampled_from(list(itertools.permutations(NAMES[:4], 2))),
        st.sampled_from(["left", "right", "neither"]),
    ),
    max_size=40,
)


def swapped(each: Vote) -> Vote:
    """The same said of the same two, standing the other way round."""
    other: dict[Choice, Choice] = {"left": "right", "right": "left", "neither": "neither"}
    return each.model_copy(update={"left": each.right, "right": each.left, "choice": other[each.choice]})


def simulated(
    strengths: Sequence[float], votes_a_pair: int, rng: np.random.Generator, share_of_ties: float = 0.0
) -> list[Vote]:
    """Votes of somebody who prefers by these strengths, each pair as often, sides by chance."""
    votes = []
    for i, j in itertools.combinations(range(len(strengths)), 2):
        for _ in range(votes_a_pair):
            left, right = (i, j) if rng.random() < 0.5 else (j, i)
            prefers_left = rng.random() < 1 / (1 + math.exp(strengths[right] - strengths[left]))
            choice: Choice = "neither" if rng.random() < share_of_ties else "left" if prefers_left else "right"
            votes.append(vote(NAMES[left], NAMES[right], choice))
    return votes


def by_name(ranking: Ranking) -> dict[str, float]:
    return {each.key[0]: each.strength.value for each in ranking.strengths}


def test_many_votes_give_the_strengths_that_made_them() -> None:
    """To a few hundredths of a log-odd, most preferred first, with their mean at 0."""
    strengths = [1.2, 0.5, 0.0, -0.4, -1.3]
    ranking = bradley_terry(simulated(strengths, 4000, np.random.default_rng(0)))
    assert [each.key[0] for each in ranking.strengths] == list(NAMES)
    found = [each.strength.value for each in ranking.strengths]
    assert found == pytest.approx(strengths, abs=0.05)
    assert sum(found) == pytest.approx(0, abs=1e-9)
    assert ranking.win_probability(("a", 1), ("e", 1)).value == pytest.approx(1 / (1 + math.exp(-2.5)), abs=0.01)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """95 % of them, of strengths and of win probabilities: 3.3 % to 7.5 % of misses, a factor of 1.5, would show.

    2500 repetitions have four standard errors of 1.7 % of misses even if all five intervals of one were the same.
    """
    strengths, rng = [0.9, 0.3, 0.0, -0.3, -0.9], np.random.default_rng(1)
    truth = dict(zip(NAMES, strengths, strict=True))
    num_missed = num_pairs_missed = num_looked_at = 0
    for _ in range(2500):
        ranking = bradley_terry(simulated(strengths, 12, rng))
        for each in ranking.strengths:
            num_missed += not each.strength.low <= truth[each.key[0]] <= each.strength.high
            num_looked_at += 1
        for a, b in itertools.pairwise(NAMES):
            chance = ranking.win_probability((a, 1), (b, 1))
            num_pairs_missed += not chance.low <= 1 / (1 + math.exp(truth[b] - truth[a])) <= chance.high
    assert num_looked_at == 2500 * 5
    assert 0.05 / 1.5 < num_missed / num_looked_at < 0.05 * 1.5
    assert 0.05 / 1.5 < num_pairs_missed / (2500 * 4) < 0.05 * 1.5


def test_two_checkpoints_have_the_strengths_that_one_can_work_out() -> None:
    """Without a prior the log-odds of the wins, half each way, and the standard error of a logit."""
    ranking = bradley_terry([*[vote("a", "b", "left")] * 30, *[vote("b", "a", "left")] * 10], 1e4)
    first, second = ranking.strengths
    assert first.strength.value == pytest.approx(math.log(3) / 2, abs=1e-6)
    assert first.strength.high - first.strength.value == pytest.approx(
        1.959964 * math.sqrt(1 / 30 + 1 / 10) / 2, abs=1e-5
    )
    assert second.strength.value == pytest.approx(-first.strength.value)
    assert ranking.win_probability(("a", 1), ("b", 1)).value == pytest.approx(0.75, abs=1e-6)
    assert (first.num_won, first.num_tied, first.num_lost, second.num_votes) == (30, 0, 10, 40)


@given(votes_strategy)
@settings(deadline=None)
def test_the_side_on_which_a_picture_stood_does_not_matter(votes: list[Vote]) -> None:
    """Nor the order of the votes; and both sides of a probability sum to 1."""
    ranking = bradley_terry(votes)
    other = bradley_terry([swapped(each) for each in reversed(votes)])
    assert [each.key for each in ranking.strengths] == [each.key for each in other.strengths]
    np.testing.assert_allclose(
        [each.strength.value for each in ranking.strengths], [each.strength.value for each in other.strengths]
    )
    for a, b in itertools.combinations([each.key for each in ranking.strengths], 2):
        there, back = ranking.win_probability(a, b), ranking.win_probability(b, a)
        assert there.value + back.value == pytest.approx(1)
        assert there.low + back.high == pytest.approx(1)
        assert 0 <= there.low <= there.value <= there.high <= 1


@given(votes_strategy)
@settings(deadline=None)
def test_no_vote_makes_its_winner_weaker(votes: list[Vote]) -> None:
    """One more for a raises a, and what a gains on b."""
    some = [*votes, vote("a", "b", "neither")]
    before, after = bradley_terry(some), bradley_terry([*some, vote("a", "b", "left")])
    assert by_name(after)["a"] > by_name(before)["a"]
    a, b = ("a", 1), ("b", 1)
    assert after.win_probability(a, b).value > before.win_probability(a, b).value


def test_a_vote_for_neither_is_half_a_vote_for_each() -> None:
    """Two of them move nothing that one for either side would not, and they alone leave all equal."""
    ties = bradley_terry([vote("a", "b", "neither")] * 6 + [vote("b", "c", "left")] * 2)
    halves = bradley_terry([*[vote("a", "b", "left"), vote("a", "b", "right")] * 3, *[vote("b", "c", "left")] * 2])
    assert by_name(ties) == pytest.approx(by_name(halves))
    assert {each.key[0]: each.num_tied for each in ties.strengths} == {"a": 6, "b": 6, "c": 0}
    assert set(by_name(bradley_terry([vote("a", "b", "neither")])).values()) == {0.0}


def test_intervals_are_rather_too_wide_than_too_narrow_where_many_are_undecided() -> None:
    """With half of the votes for neither, no more than 5 % miss the strengths that such votes show in the long run."""
    strengths, rng = [0.6, 0.0, -0.6], np.random.default_rng(2)
    in_the_long_run = by_name(bradley_terry(simulated(strengths, 20_000, rng, share_of_ties=0.5)))
    missed = [
        not each.strength.low <= in_the_long_run[each.key[0]] <= each.strength.high
        for _ in range(500)
        for each in bradley_terry(simulated(strengths, 20, rng, share_of_ties=0.5)).strengths
    ]
    assert np.mean(missed) < 0.05


@pytest.mark.parametrize("num_votes", [1, 10, 100_000])
def test_who_won_everything_has_a_finite_strength_and_an_interval_that_says_how_little_is_known(num_votes: int) -> None:
    """More wins make it stronger and never infinite."""
    ranking = bradley_terry([vote("a", "b", "left")] * num_votes)
    first = ranking.strengths[0]
    assert first.key == ("a", 1)
    assert 0 < first.strength.value < 10
    assert -10 < first.strength.low < first.strength.high < 15
    assert 0.5 < ranking.win_probability(("a", 1), ("b", 1)).value < 1
    weaker = bradley_terry([vote("a", "b", "left")] * (num_votes - 1) + [vote("a", "b", "neither")])
    assert by_name(weaker)["a"] < first.strength.value


def test_checkpoints_that_no_vote_joins_are_not_told_apart() -> None:
    """A beat b and c beat d: whether a is better than c is not known, and its interval says so."""
    ranking = bradley_terry([*[vote("a", "b", "left")] * 50, *[vote("c", "d", "left")] * 50])
    chance = ranking.win_probability(("a", 1), ("c", 1))
    assert chance.value == pytest.approx(0.5)
    assert chance.low < 0.01
    assert chance.high > 0.99


def test_no_votes_rank_nothing() -> None:
    """Nor does a vote between a checkpoint and itself."""
    assert bradley_terry([]).strengths == ()
    assert bradley_terry([vote("a", "a", "left")]).strengths == ()
    with pytest.raises(KeyError):
        bradley_terry([vote("a", "b", "left")]).win_probability(("a", 1), ("c", 1))


# --- agreement with scores


def test_a_score_that_is_the_preference_agrees_always_and_its_opposite_never() -> None:
    """Undecided votes, equal scores and missing ones are not counted."""
    votes = [vote("a", "b", "left"), vote("b", "a", "right"), vote("c", "a", "right"), vote("a", "b", "neither")]
    assert agreement(votes, {("a", 1): 0.9, ("b", 1): 0.5, ("c", 1): 0.1}) == Agreement(3, 3)
    assert agreement(votes, {("a", 1): 0.1, ("b", 1): 0.5, ("c", 1): 0.9}) == Agreement(0, 3)
    assert agreement(votes, {("a", 1): 0.5, ("b", 1): 0.5}) == Agreement(0, 0)
    assert Agreement(0, 0).share is None


def test_pictures_are_compared_by_their_own_scores() -> None:
    """A's checkpoint may be better while this picture of it is worse."""
    scores = {("a", 1, "0.png"): 0.1, ("b", 1, "0.png"): 0.2, ("a", 1, "1.png"): 0.9, ("b", 1, "1.png"): 0.2}
    votes = [vote("a", "b", "right", "0.png"), vote("b", "a", "right", "1.png"), vote("a", "b", "left", "2.png")]
    assert agreement_by_picture(votes, scores) == Agreement(2, 2)


def test_the_interval_of_a_share_is_wilson_s() -> None:
    """Against numbers worked out by hand, and against the equation that its bounds solve."""
    share = Agreement(8, 10).share
    assert share is not None
    assert (share.value, share.low, share.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    for bound in (share.low, share.high):
        assert abs(0.8 - bound) / math.sqrt(bound * (1 - bound) / 10) == pytest.approx(1.959964, abs=1e-5)
    everything, nothing = Agreement(10, 10).share, Agreement(0, 10).share
    assert everything is not None
    assert nothing is not None
    assert everything.high == pytest.approx(1)
    assert nothing.low == pytest.approx(0)
    assert everything.low == pytest.approx(1 - nothing.high)


def scored(trial: str, faces: Sequence[float], alignment: float = 0.3) -> Row:
    """A row of a trial with a picture a score."""
    images = [
        {"file": f"000-{i}.png", "prompt": "p", "seed": i, "face_similarity": face, "num_faces": 1}
        for i, face in enumerate(faces)
    ]
    entry = {"step": 1, "checkpoint": None, "images": None, "face_similarity": float(np.mean(faces))}
    entry |= {"prompt_alignment": alignment, "num_images": len(faces), "num_faces": 1, "image_scores": images}
    record = {"trial": trial, "method": "base", "status": "finished", "config": {}, "checkpoints": [entry]}
    return rows_of(parse_record(str(record).replace("'", '"').replace("None", "null").encode()))[0]


def test_the_votes_of_a_run_are_set_beside_its_scores() -> None:
    """Votes on what is no row of the run are passed over; without any other there is nothing to say."""
    rows = [scored("a", [0.9, 0.2]), scored("b", [0.5, 0.4])]
    votes = [
        vote("a", "b", "left", "000-0.png"),  # as both pictures' scores and both checkpoints'
        vote("a", "b", "left", "000-1.png"),  # as the checkpoints' alone
        vote("b", "a", "neither", "000-1.png"),
        vote("a", "gone", "left", "000-0.png"),
    ]
    found = preference_of(votes, rows)
    assert found is not None
    assert (found.num_votes, found.num_undecided) == (3, 1)
    assert [each.key for each in found.ranking.strengths] == [("a", 1), ("b", 1)]
    assert found.face_similarity.by_picture == Agreement(1, 2)
    assert found.face_similarity.by_checkpoint == Agreement(2, 2)
    assert found.prompt_alignment.by_checkpoint == Agreement(0, 0), "both have the same"
    assert preference_of(votes[-1:], rows) is None
    assert preference_of([], rows) is None
