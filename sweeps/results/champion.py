"""The verdict: who wins by the rule, by how much, and whether to believe it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sweeps.results.intervals import MIN_PICTURES_FOR_VERDICT, Difference, paired_difference
from sweeps.results.leaderboard import Row, base_row, best_first
from sweeps.results.rule import ChampionRule


@dataclass(frozen=True)
class Champion:
    """The rule's answer: the winning row, or None and the reason.

    Differences are paired over pictures; their intervals hold for all checkpoints together, since the champion was
    chosen among them.
    """

    row: Row | None
    rule: str
    reason: str
    """One sentence: why this row, or why none."""
    runner_up: Row | None = None
    """The best qualifying checkpoint of another trial."""
    versus_base: Difference | None = None
    """Face similarity of the champion minus the base model's."""
    versus_runner_up: Difference | None = None
    """Face similarity of the champion minus the runner-up's."""
    caveats: tuple[str, ...] = ()
    """What a reader must know before believing it, most damaging first."""
    is_finding: bool = False
    """Whether the champion is measurably more like the person than the untouched base model."""


def champion(rows: Iterable[Row], rule: ChampionRule) -> Champion:
    """Name the champion by the rule, and mark it; the base model and an earlier sweep's trials never are one."""
    ordered = best_first((row for row in rows if not row.earlier), rule)
    base = base_row(ordered)
    trained = [row for row in ordered if not row.is_base]
    caveats = _caveats_of_all(trained, base)
    if not trained:
        return _nobody("no trained checkpoint has been scored yet", rule, caveats)
    if base is None or rule.limit is None:
        return _nobody("the base model has not been scored, so the rule cannot be applied", rule, caveats)
    able = [row for row in trained if rule.qualifies(row)]
    if not able:
        highest = max(row.prompt_alignment for row in trained)
        return _nobody(
            f"the rule needs a prompt alignment of at least {rule.limit:.3f} and the highest is {highest:.3f}",
            rule,
            caveats,
        )
    winner = able[0].model_copy(update={"champion": True})
    runner_up = next((row for row in able if row.trial != winner.trial), None)
    versus_base = compare_face_similarity(winner, base, len(trained))
    if any(row.num_faces for row in trained):
        caveats += _caveats_against_base(winner, base, versus_base)
    return Champion(
        row=winner,
        rule=rule.text,
        reason=_reason(winner, able, trained, rule, base),
        runner_up=runner_up,
        versus_base=versus_base,
        versus_runner_up=compare_face_similarity(winner, runner_up, len(trained)) if runner_up else None,
        caveats=tuple(caveats),
        is_finding=not caveats and versus_base.verdict == "higher",
    )


def _reason(winner: Row, able: Sequence[Row], trained: Sequence[Row], rule: ChampionRule, base: Row) -> str:
    compared = [row for row in able if row.screened == winner.screened]
    in_full = sum(not row.screened for row in trained)
    is_mixed = not winner.screened and in_full < len(trained)
    of_how_many = f"{in_full} scored in full, {len(trained)} in all" if is_mixed else f"{len(trained)}"
    first_look = "by a first look at a part of its pictures, " if winner.screened else ""
    return (
        f"{first_look}its face similarity of {winner.face_similarity:.3f} is the highest of the {len(compared)} "
        f"checkpoints (of {of_how_many}) whose prompt alignment is at least {rule.limit:.3f}, the base model's "
        f"{base.prompt_alignment:.3f} minus {rule.margin:g}"
    )


def _nobody(reason: str, rule: ChampionRule, caveats: Sequence[str]) -> Champion:
    return Champion(row=None, rule=rule.text, reason=f"no champion: {reason}", caveats=tuple(caveats))


def _caveats_of_all(trained: Sequence[Row], base: Row | None) -> list[str]:
    """Reasons why no checkpoint's likeness means anything, whichever the rule picks."""
    if trained and not any(row.num_faces for row in trained):
        return [
            "no checkpoint has a face in any picture: face similarity is 0 by the rule, "
            "so an order by face similarity is not a finding"
        ]
    if not trained or base is None:
        return []
    is_known = False
    for row in trained:  # the best first: where there is a finding, the first of thousands shows it
        verdict = compare_face_similarity(row, base, len(trained)).verdict
        if verdict == "higher":
            return []
        is_known |= verdict != "unknown"
    if not is_known:
        return [
            f"too few pictures (a verdict needs {MIN_PICTURES_FOR_VERDICT} a checkpoint): whether any checkpoint "
            "differs from the base model is not known"
        ]
    return [
        "no checkpoint is measurably more like the person than the base model (the interval of every difference "
        "covers 0 or lies below it): these scores do not rank the settings"
    ]


def _caveats_against_base(winner: Row, base: Row, versus_base: Difference) -> list[str]:
    """Reasons why this champion is no better than what one had before training."""
    if base.face_similarity >= winner.face_similarity:
        return [
            f"the base model's face similarity ({base.face_similarity:.3f}) is at least the champion's "
            f"({winner.face_similarity:.3f}): training has not made the pictures more like the person"
        ]
    if versus_base.verdict == "tie":
        return ["champion and base model are a tie in face similarity: the interval of their difference covers 0"]
    return []


def compare_face_similarity(a: Row, b: Row, num_comparisons: int = 1) -> Difference:
    """Face similarity of a minus b, paired over the pictures that both made; a picture without a face counts 0.0."""
    return paired_difference(_face_similarities(a), _face_similarities(b), num_comparisons)


def compare_prompt_alignment(a: Row, b: Row) -> Difference:
    """Prompt alignment of a minus b, paired over the pictures that both made."""
    return paired_difference(_prompt_alignments(a), _prompt_alignments(b))


def _face_similarities(row: Row) -> dict[str, float]:
    return {image.key: image.counted for image in row.image_scores}


def _prompt_alignments(row: Row) -> dict[str, float]:
    return {image.key: image.prompt_alignment for image in row.image_scores if image.prompt_alignment is not None}
