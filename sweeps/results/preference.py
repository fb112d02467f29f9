"""What people prefer: votes on pairs of pictures turned into a ranking of checkpoints, and set beside the scores.

A checkpoint has a strength on the log-odds scale, and a is preferred to b with probability 1 / (1 + exp(b - a))
(Bradley & Terry 1952, "Rank Analysis of Incomplete Block Designs: I. The Method of Paired Comparisons"). A vote for
neither counts as half a vote for each. Intervals take votes for independent of one another, as those of one person
about one prompt are not quite; where there are votes for neither they are wider than they need be, since half a win
varies less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, log_expit, ndtri

from sweeps.ledger.votes import Vote
from sweeps.results.leaderboard import Row

Key = tuple[str, int]
"""Trial and step."""
Matrix = npt.NDArray[np.float64]

CONFIDENCE = 0.95
QUANTILE = float(ndtri((1 + CONFIDENCE) / 2))
PRIOR_STANDARD_DEVIATION = 3.0
"""Of a strength, in log-odds, about 0: who won all of a few votes is not infinitely strong. Odds of 20 to 1 are nothing
unusual under it, and it moves the log-odds of a pair with 20 votes by less than a tenth of their standard error."""


@dataclass(frozen=True)
class Estimate:
    """A number with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Strength:
    """What votes say of one checkpoint."""

    key: Key
    strength: Estimate
    """In log-odds against an average one of those that were compared: their mean is 0."""
    num_won: int
    num_tied: int
    num_lost: int

    @property
    def num_votes(self) -> int:
        """In which it stood on a side."""
        return self.num_won + self.num_tied + self.num_lost


@dataclass(frozen=True, eq=False)
class Ranking:
    """The checkpoints that were compared, the most preferred first."""

    strengths: tuple[Strength, ...]
    covariance: Matrix
    """(n, n), of the strengths in their order."""

    def win_probability(self, a: Key, b: Key) -> Estimate:
        """How often a's picture would be preferred to b's, in [0, 1], a vote for neither being half of one for each.

        Raises:
            KeyError: one of them is not ranked.
        """
        place = {each.key: i for i, each in enumerate(self.strengths)}
        i, j = place[a], place[b]
        difference = self.strengths[i].strength.value - self.strengths[j].strength.value
        variance = self.covariance[i, i] + self.covariance[j, j] - 2 * self.covariance[i, j]
        reach = QUANTILE * math.sqrt(max(0.0, float(variance)))
        value, low, high = (float(expit(difference + part)) for part in (0.0, -reach, reach))
        return Estimate(value, low, high)


@dataclass(frozen=True)
class Agreement:
    """How often a score prefers what people preferred."""

    num_agreeing: int
    num_votes: int
    """Decided ones between two that the score tells apart."""

    @property
    def share(self) -> Estimate | None:
        """In [0, 1], 0.5 by chance, with Wilson's interval (1927); None without a vote."""
        n = self.num_votes
        if n == 0:
            return None
        share, z = self.num_agreeing / n, QUANTILE
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        return Estimate(share, max(0.0, centre - reach), min(1.0, centre + reach))


@dataclass(frozen=True)
class ScoreAgreement:
    """How often one score agrees with people, looked at in two ways."""

    by_picture: Agreement
    """The two pictures' own scores: does it measure what people see?"""
    by_checkpoint: Agreement
    """The means of the checkpoints they are of: does it pick what people would?"""


@dataclass(frozen=True)
class Preference:
    """What the votes of a run say."""

    ranking: Ranking
    num_votes: int
    num_undecided: int
    """Of them, for neither."""
    face_similarity: ScoreAgreement
    prompt_alignment: ScoreAgreement


def preference_of(votes: Iterable[Vote], rows: Sequence[Row]) -> Preference | None:
    """What the votes say of these checkpoints; None where there is no vote between two of them.

    Args:
        votes: of the run; those on a checkpoint that is not among `rows` are passed over.
        rows: scored checkpoints.
    """
    known = {row.key for row in rows}
    counted = [vote for vote in votes if {vote.left.key, vote.right.key} <= known]
    if not counted:
        return None
    faces = {(*row.key, key): similarity for row in rows for key, similarity in row.face_similarities.items()}
    prompts = {(*row.key, key): alignment for row in rows for key, alignment in row.prompt_alignments.items()}
    return Preference(
        ranking=bradley_terry(counted),
        num_votes=len(counted),
        num_undecided=sum(vote.choice == "neither" for vote in counted),
        face_similarity=ScoreAgreement(
            by_picture=agreement_by_picture(counted, faces),
            by_checkpoint=agreement(counted, {row.key: row.face_similarity for row in rows}),
        ),
        prompt_alignment=ScoreAgreement(
            by_picture=agreement_by_picture(counted, prompts),
            by_checkpoint=agreement(counted, {row.key: row.prompt_alignment for row in rows}),
        ),
    )


def bradley_terry(votes: Iterable[Vote], prior_standard_deviation: float = PRIOR_STANDARD_DEVIATION) -> Ranking:
    """The strengths that make the votes most likely, under a weak prior, with their 95 % Wald intervals.

    Of two with the same strength the one of the earlier name stands first.

    Args:
        votes: in any order. One between a checkpoint and itself says nothing and is passed over.
        prior_standard_deviation: of a strength, above 0.
    """
    counted = [vote for vote in votes if vote.left.key != vote.right.key]
    keys = sorted({side.key for vote in counted for side in (vote.left, vote.right)})
    wins, tied = _counts(counted, keys)
    theta, precision = _most_likely(wins + tied / 2, prior_standard_deviation)
    covariance = _centred_inverse(precision)
    reach = QUANTILE * np.sqrt(np.maximum(np.diag(covariance), 0.0))
    order = sorted(range(len(keys)), key=lambda i: (-round(float(theta[i]), 9), keys[i]))
    strengths = tuple(
        Strength(
            key=keys[i],
            strength=Estimate(float(theta[i]), float(theta[i] - reach[i]), float(theta[i] + reach[i])),
            num_won=int(wins[i].sum()),
            num_tied=int(tied[i].sum()),
            num_lost=int(wins[:, i].sum()),
        )
        for i in order
    )
    return Ranking(strengths, covariance[np.ix_(order, order)])


def agreement(votes: Iterable[Vote], scores: Mapping[Key, float]) -> Agreement:
    """Of the decided votes, those for the side whose checkpoint has the higher score.

    Args:
        votes: in any order.
        scores: trial and step -> score. A vote on a checkpoint without one, or on two with the same, does not count.
    """
    return _agreement(votes, lambda _, key: scores.get(key))


def agreement_by_picture(votes: Iterable[Vote], scores: Mapping[tuple[str, int, str], float]) -> Agreement:
    """Of the decided votes, those for the picture with the higher score.

    Args:
        votes: in any order.
        scores: trial, step and the picture's file name -> score. A vote on a picture without one, or on two with the
            same, does not count.
    """
    return _agreement(votes, lambda vote, key: scores.get((*key, vote.picture)))


def _agreement(votes: Iterable[Vote], score: Callable[[Vote, Key], float | None]) -> Agreement:
    num_agreeing = num_votes = 0
    for vote in votes:
        left, right = score(vote, vote.left.key), score(vote, vote.right.key)
        if vote.choice == "neither" or left is None or right is None or left == right:
            continue
        num_votes += 1
        num_agreeing += vote.choice == ("left" if left > right else "right")
    return Agreement(num_agreeing, num_votes)


def _counts(votes: Sequence[Vote], keys: Sequence[Key]) -> tuple[Matrix, Matrix]:
    """How often the checkpoint of a row was preferred to that of a column, and how often neither was; (n, n) both."""
    place = {key: i for i, key in enumerate(keys)}
    wins, tied = np.zeros((len(keys), len(keys))), np.zeros((len(keys), len(keys)))
    for vote in votes:
        left, right = place[vote.left.key], place[vote.right.key]
        if vote.choice == "left":
            wins[left, right] += 1
        elif vote.choice == "right":
            wins[right, left] += 1
        else:
            tied[left, right] += 1
            tied[right, left] += 1
    return wins, tied


def _centred_inverse(precision: Matrix) -> Matrix:
    """Covariance of strengths about their mean, from the precision (n, n) of strengths of which all rows sum alike.

    How surely their mean is known is the prior's alone and has no part in it: it is fixed before and taken away after.
    """
    n = max(1, len(precision))
    inverse: Matrix = np.linalg.inv(precision + 1) - 1 / (n * (precision.sum() / n + n))
    return inverse


def _most_likely(wins: Matrix, prior_standard_deviation: float) -> tuple[Matrix, Matrix]:
    """Strengths (n,), and the negative Hessian (n, n) there; the prior brings their mean to 0."""
    precision_of_prior = 1 / prior_standard_deviation**2

    def loss(at: Matrix) -> float:
        return float(precision_of_prior / 2 * (at**2).sum() - (wins * log_expit(at[:, None] - at)).sum())

    def gradient(at: Matrix) -> Matrix:
        probability = expit(at[:, None] - at)
        of_votes: Matrix = (wins.T * probability).sum(axis=1) - (wins * (1 - probability)).sum(axis=1)
        return of_votes + precision_of_prior * at

    def curvature(at: Matrix) -> Matrix:
        probability = expit(at[:, None] - at)
        of_pairs: Matrix = (wins + wins.T) * probability * (1 - probability)
        hessian: Matrix = np.diag(of_pairs.sum(axis=1) + precision_of_prior) - of_pairs
        return hessian

    start = np.zeros(len(wins))
    if not len(wins):
        return start, curvature(start)
    options = {"gtol": 1e-9}
    found = minimize(loss, start, jac=gradient, hess=curvature, method="trust-exact", options=options)
    return found.x, curvature(found.x)
