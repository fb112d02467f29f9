"""The champion rule: the one place that says which of two scored checkpoints is better.

It is stated in the sweep file (`champion:`) and printed wherever a champion is named. The leaderboard's order, a
trial's best checkpoint, early stopping, the search's constraint and what a page marks as admitted all ask this
object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sweeps.config import ChampionConfig
from sweeps.ledger.records import ScoredCheckpoint, TrialRecord

TOLERANCE = 1e-12
"""Keeps "minus 0.02" inclusive: 0.30 - 0.02 is 0.27999... in binary."""

ScoredT = TypeVar("ScoredT", bound=ScoredCheckpoint)


@dataclass(frozen=True)
class ChampionRule:
    """The highest face similarity among checkpoints that still follow their prompts.

    Those that do not stand behind all that do, the nearest to following them first. Of those that do, the ones that
    were scored by a first look alone stand behind those that were scored in full.
    """

    margin: float
    """How far below the base model's prompt alignment a checkpoint may lie and still follow its prompts."""
    base_prompt_alignment: float | None = None
    """None before the base model has been scored: then nothing is known to disqualify a checkpoint."""
    tie_margin: float = 0.0
    """Of finalists that cannot be told apart, how far below the highest a cheaper one may lie and be the choice."""
    base_by_picture: Mapping[str, float] = field(default_factory=dict, repr=False)
    """The same, a picture: a first look is measured from the base model's score of the same pictures."""

    @classmethod
    def of(cls, config: ChampionConfig, base: ScoredCheckpoint | TrialRecord | None) -> ChampionRule:
        """The sweep file's rule, measured from the base model's score."""
        entry = base.checkpoints[0] if isinstance(base, TrialRecord) else base
        if entry is None:
            return cls(config.prompt_alignment_margin, tie_margin=config.face_similarity_margin)
        known = {each.key: each.prompt_alignment for each in entry.image_scores if each.prompt_alignment is not None}
        return cls(config.prompt_alignment_margin, entry.prompt_alignment, config.face_similarity_margin, known)

    @property
    def limit(self) -> float | None:
        """The lowest prompt alignment that still follows the prompts."""
        return None if self.base_prompt_alignment is None else self.base_prompt_alignment - self.margin

    def slack(self, scores: ScoredCheckpoint) -> float:
        """How far `scores` lie below the limit; 0 or less where they qualify, as a search's constraint wants it."""
        limit = self._limit_of_first_look(scores) if scores.screened else self.limit
        return 0.0 if limit is None else limit - TOLERANCE - scores.prompt_alignment

    def _limit_of_first_look(self, scores: ScoredCheckpoint) -> float | None:
        same = [self.base_by_picture[image.key] for image in scores.image_scores if image.key in self.base_by_picture]
        return sum(same) / len(same) - self.margin if same else self.limit

    def qualifies(self, scores: ScoredCheckpoint) -> bool:
        """Does the checkpoint still follow its prompts?"""
        return self.slack(scores) <= 0

    def number(self, scores: ScoredCheckpoint) -> float:
        """The rule as one number, higher is better: what a scheduler compares.

        The face similarity, in [-1, 1], of what qualifies; below -1, by the slack, what does not.
        """
        return scores.face_similarity if self.qualifies(scores) else -1 - self.slack(scores)

    def order(self, scores: ScoredCheckpoint) -> tuple[int, float, int]:
        """Sort key, best first; of equals the one with fewer steps."""
        standing = (1 if scores.screened else 0) if self.qualifies(scores) else 2
        return (standing, -self.number(scores), scores.step)

    def best(self, series: Sequence[ScoredT]) -> ScoredT:
        """The best of a series, such as one trial's checkpoints.

        Raises:
            ValueError: the series is empty.
        """
        if not series:
            raise ValueError("a trial needs at least one scored checkpoint to have a best one, got none")
        return min(series, key=self.order)

    @property
    def text(self) -> str:
        """The rule in words."""
        return (
            "the highest face similarity among checkpoints whose prompt alignment is at least "
            f"the base model's minus {self.margin:g}"
        )
