"""What became of the finalists: each one's trainings with fresh seeds, and how sure their means are.

The interval of a finalist's mean answers "would I get this again?": with another training seed, other prompts like
these and other noise. Seeds are few for each finalist, so their noise is pooled over all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from evaluation.scores import SecondOpinion
from sweeps.ledger.identity import trial_id
from sweeps.ledger.records import TrialRecord
from sweeps.results.finalists import Finalist, trainings_of
from sweeps.results.intervals import (
    Difference,
    Interval,
    Uncertainty,
    prompt_of,
    seed_noise,
    uncertainty_over_pictures,
)
from sweeps.results.leaderboard import NO_SEED_NOISE, Row, SeedNoise, Standing, base_row, rows_of

Trainings = Sequence[Mapping[str, float]]
"""One number a picture (key -> value), for each training."""


def mean_over_trainings(trainings: Trainings) -> dict[str, float]:
    """Of each picture that all trainings made."""
    common = set(trainings[0]).intersection(*trainings[1:])
    return {key: sum(each[key] for each in trainings) / len(trainings) for key in trainings[0] if key in common}


@dataclass(frozen=True)
class Repeated:
    """One score of a setting over its trainings; of the base model, which has none, over its pictures.

    Args:
        trainings: one number a picture, for each training.
        seeds: of one training's mean over other training seeds; None where there are none or nothing is known.
    """

    trainings: Trainings
    seeds: Uncertainty | None = None

    @cached_property
    def by_picture(self) -> dict[str, float]:
        """Means over the trainings."""
        return mean_over_trainings(self.trainings)

    @property
    def mean(self) -> float:
        """Over trainings and pictures."""
        return sum(self.by_picture.values()) / len(self.by_picture)

    @cached_property
    def interval(self) -> Interval | None:
        """Of the mean, over everything that would be drawn anew. None for a single picture.

        What a seed and a prompt do together is counted with both, so it is rather too wide than too narrow.
        """
        pictures = uncertainty_over_pictures(self.by_picture)
        if pictures is None:
            return None
        return _sum_of(pictures, self._seeds_of_mean).around(self.mean).within(-1.0, 1.0)

    @property
    def _seeds_of_mean(self) -> Uncertainty | None:
        seeds, number = self.seeds, len(self.trainings)
        return seeds and Uncertainty(seeds.variance / number, seeds.dof, seeds.sources)

    def minus(self, other: Repeated, num_comparisons: int = 1) -> Difference:
        """The difference of the means over the pictures that all trainings of both made.

        Args:
            other: what is compared with.
            num_comparisons: that the reader chooses from; the interval holds for all of them (Bonferroni: a Student's
                interval has every quantile that is asked for).
        """
        differences = {key: a - other.by_picture[key] for key, a in self.by_picture.items() if key in other.by_picture}
        pictures = uncertainty_over_pictures(differences)
        if pictures is None:
            return Difference(len(differences), next(iter(differences.values()), None), None)
        mean = sum(differences.values()) / len(differences)
        mine, theirs = self._seeds_of_mean, other._seeds_of_mean
        if mine is not None and theirs is not None:  # pooled: one estimate, not two independent ones
            mine = Uncertainty(mine.variance + theirs.variance, mine.dof, mine.sources)
        interval = _sum_of(pictures, mine or theirs).around(mean, num_comparisons)
        return Difference(len(differences), mean, interval)


def _sum_of(pictures: Uncertainty, seeds: Uncertainty | None) -> Uncertainty:
    return pictures if seeds is None else pictures + seeds


@dataclass(frozen=True)
class Confirmed:
    """A finalist and what its trainings with fresh seeds came to."""

    row: Row
    """Its checkpoint in the search: a first look, by one training that was chosen for its score."""
    num_wanted: int
    """Trainings that it is to have."""
    trainings: tuple[Row, ...]
    """Those that have been scored, in the order of their seeds."""
    num_failed: int
    """Trainings that the settings themselves made fail."""
    face_similarity: Repeated
    prompt_alignment: Repeated
    alignment_over_base: Difference
    standing: Standing

    @property
    def second_opinion(self) -> SecondOpinion:
        """Means over the trainings by other judges; without any score where none was asked."""
        opinions = [training.second_opinion for training in self.trainings if training.second_opinion is not None]
        return SecondOpinion(
            face_similarity=_mean_of(each.face_similarity for each in opinions),
            face_encoder=opinions[0].face_encoder if opinions else None,
            prompt_alignment=_mean_of(each.prompt_alignment for each in opinions),
            clip=opinions[0].clip if opinions else None,
        )

    def on_leaderboard(self) -> dict[str, object]:
        """What the search's row says of it, by the row's fields."""
        interval = self.face_similarity.interval
        return {
            "finalist": True,
            "standing": self.standing,
            "confirmed_face_similarity": self.face_similarity.mean,
            "confirmed_face_similarity_low": interval and interval.low,
            "confirmed_face_similarity_high": interval and interval.high,
            "confirmed_prompt_alignment": self.prompt_alignment.mean,
            "num_trainings": len(self.trainings),
        }


def _mean_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class Confirmations:
    """The second stage of a sweep, as far as it has come."""

    base: Row | None = None
    """The base model's scores of the same pictures."""
    finalists: tuple[Confirmed, ...] = ()
    """Those with a scored training, in the search's order."""
    is_whole: bool = False
    """Has every finalist all of its trainings and pictures?"""
    seed_noise: SeedNoise = NO_SEED_NOISE

    def of(self, row: Row) -> Confirmed | None:
        """What a checkpoint of the search came to."""
        return next((each for each in self.finalists if each.row.key == row.key), None)

    def second_opinions(self, winner: Confirmed) -> list[str]:
        """Whether judges that had no part in the search agree, in sentences."""
        said = []
        mine = winner.second_opinion
        others = [(each.second_opinion.face_similarity or -1.0, each) for each in self.finalists]
        best, preferred = max(others, key=lambda pair: pair[0])
        if mine.face_similarity is not None:
            said.append(
                f"a second face encoder agrees, {mine.face_similarity:.3f}"
                if preferred is winner
                else f"a second face encoder prefers {preferred.row.trial} at step {preferred.row.step}, {best:.3f} to "
                f"{mine.face_similarity:.3f}"
            )
        of_base = self.base.second_opinion if self.base is not None else None
        below = of_base.prompt_alignment if of_base is not None else None
        if mine.prompt_alignment is not None and below is not None and mine.prompt_alignment < below:
            said.append(
                f"a second CLIP model finds it less true to its prompts than the base model, "
                f"{mine.prompt_alignment:.3f} to {below:.3f}"
            )
        return said

    def difference(self, a: Confirmed, b: Confirmed) -> Difference:
        """Face similarity of a minus b; the interval holds for all pairs of finalists together."""
        number = len(self.finalists)
        return a.face_similarity.minus(b.face_similarity, max(1, number * (number - 1) // 2))

    def over_base(self, each: Confirmed) -> Difference:
        """Face similarity of a finalist minus the base model's; the interval holds for all finalists together."""
        assert self.base is not None, "it is scored before any finalist"
        return each.face_similarity.minus(Repeated([self.base.face_similarities]), max(1, len(self.finalists)))


NOT_CONFIRMED = Confirmations()
"""Of a run without a second stage."""


def confirmations_of(
    finalists: Sequence[Finalist],
    search: Mapping[tuple[str, int], Row],
    trials: Mapping[str, TrialRecord],
    again: Iterable[TrialRecord],
    margin: float,
) -> Confirmations:
    """Put the second stage's rows together.

    Args:
        finalists: who is trained again.
        search: the search's checkpoints by trial and step.
        trials: the search's, by name.
        again: the second stage's trainings, and the base model beside them.
        margin: the rule's.
    """
    again = list(again)
    failed = {record.trial for record in again if record.status == "failed" and record.fault == "trial"}
    rows = [row for record in again for row in rows_of(record)]
    by_trial = {row.trial: row for row in rows if not row.is_base}
    base = base_row(rows)
    if base is None:
        return NOT_CONFIRMED
    found: list[tuple[Finalist, list[Row], int, int]] = []
    for finalist in finalists:
        names = [trial_id(each) for each in trainings_of(finalist, trials)]
        scored = [by_trial[name] for name in names if name in by_trial]
        found.append((finalist, scored, sum(name in failed for name in names), len(names)))
    noise = SeedNoise(
        seed_noise([_means([row.face_similarities for row in scored]) for _, scored, _, _ in found]),
        seed_noise([_means([row.prompt_alignments for row in scored]) for _, scored, _, _ in found]),
    )
    confirmed = []
    for finalist, scored, num_failed, num_wanted in found:
        if scored:
            likeness = Repeated([row.face_similarities for row in scored], noise.face_similarity)
            alignment = Repeated([row.prompt_alignments for row in scored], noise.prompt_alignment)
            over_base = alignment.minus(Repeated([base.prompt_alignments]))
            confirmed.append(
                Confirmed(
                    row=search[finalist.trial, finalist.step],
                    num_wanted=num_wanted,
                    trainings=tuple(scored),
                    num_failed=num_failed,
                    face_similarity=likeness,
                    prompt_alignment=alignment,
                    alignment_over_base=over_base,
                    standing=standing_of(over_base.interval, margin),
                )
            )
    is_whole = bool(found) and all(
        len(scored) + num_failed >= num_wanted and all(_has_pictures(row, base, finalist) for row in scored)
        for finalist, scored, num_failed, num_wanted in found
    )
    return Confirmations(base, tuple(confirmed), is_whole, noise)


def _has_pictures(row: Row, base: Row, finalist: Finalist) -> bool:
    num_prompts = len({prompt_of(image.key) for image in row.image_scores})
    wanted = num_prompts * finalist.images_per_prompt
    return row.num_images >= wanted and base.num_images >= wanted


def _means(trainings: Trainings) -> list[float]:
    """Of each training over the pictures that all of them made."""
    if not trainings:
        return []
    common = mean_over_trainings(trainings)
    return [sum(training[key] for key in common) / len(common) for training in trainings]


def standing_of(over_base: Interval | None, margin: float) -> Standing:
    """How a prompt alignment stands to the rule's line.

    Args:
        over_base: of its difference to the base model's; without one nothing is sure.
        margin: how far below the base model's it may lie.
    """
    if over_base is None or (over_base.low < -margin <= over_base.high):
        return "borderline"
    return "follows" if over_base.low >= -margin else "off prompt"
