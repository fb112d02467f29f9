"""The verdict: who wins by the rule, by how much, how sure that is, and what to do next.

A search names a first look: the best of many, each trained once. Its finalists' trainings with fresh seeds name the
champion, and where these cannot tell two settings apart, the cheaper one is the choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sweeps.results.confirmed import Confirmations, Confirmed, Repeated, standing_of
from sweeps.results.intervals import MIN_UNITS, Difference, Family
from sweeps.results.leaderboard import Row, Standing, base_row, best_first
from sweeps.results.rule import ChampionRule


@dataclass(frozen=True)
class Champion:
    """The rule's answer: the winning row, or None and the reason.

    Differences are paired over pictures; their intervals hold for all that are compared together, since the champion
    was chosen among them.
    """

    row: Row | None
    rule: str
    reason: str
    """One sentence: why this row, or why none."""
    confirmed: Confirmed | None = None
    """Its trainings with fresh seeds; None where it is named by the search's first look alone."""
    standing: Standing = "borderline"
    """How sure it is that it follows its prompts."""
    runner_up: Row | None = None
    """The best qualifying checkpoint of another trial."""
    runner_up_confirmed: Confirmed | None = None
    versus_base: Difference | None = None
    """Face similarity of the champion minus the base model's."""
    versus_runner_up: Difference | None = None
    """Face similarity of the champion minus the runner-up's."""
    equals: tuple[Row, ...] = ()
    """Whoever cannot be told from it: other finalists, or without these other trials' best checkpoints."""
    caveats: tuple[str, ...] = ()
    """What a reader must know before believing it, most damaging first."""
    is_finding: bool = False
    """Whether the champion is measurably more like the person than the untouched base model."""

    @property
    def is_sure(self) -> bool:
        """Would other training seeds name it again: is it told from every other finalist?"""
        is_told_apart = self.is_finding and self.confirmed is not None and not self.equals
        return is_told_apart and self.standing == "follows" and not self.caveats


def champion(rows: Iterable[Row], rule: ChampionRule, confirmations: Confirmations | None = None) -> Champion:
    """Name the champion by the rule, and mark it; the base model and an earlier sweep's trials never are one.

    Args:
        rows: of the search.
        rule: the sweep file's.
        confirmations: of its finalists; they name the champion once all of their trainings have ended.
    """
    ordered = best_first((row for row in rows if not row.earlier), rule)
    base = base_row(ordered)
    trained = [row for row in ordered if not row.is_base]
    in_full = [row for row in trained if not row.screened] or trained  # a first look has too few pictures to compare
    family = Family([row.face_similarities for row in [*([base] if base else []), *in_full]])
    caveats = _no_face_anywhere(trained) or _caveats_of_all(in_full, base, family)
    if not trained:
        return _nobody("no trained checkpoint has been scored yet", rule, caveats)
    if base is None or rule.limit is None:
        return _nobody("the base model has not been scored, so the rule cannot be applied", rule, caveats)
    if confirmations is not None and confirmations.finalists and confirmations.is_whole:
        return _confirmed_champion(confirmations, rule, _no_face_anywhere(trained))
    able = [row for row in trained if rule.qualifies(row)]
    if not able:
        highest = max(row.prompt_alignment for row in trained)
        return _nobody(
            f"the rule needs a prompt alignment of at least {rule.limit:.3f} and the highest is {highest:.3f}",
            rule,
            caveats,
        )
    winner = able[0].model_copy(update={"champion": True})
    best: dict[str, Row] = {}
    for row in able:
        best.setdefault(row.trial, row)
    others = [row for row in best.values() if row.trial != winner.trial]
    runner_up = others[0] if others else None
    versus_base = family.compare(winner.face_similarities, base.face_similarities)
    if any(row.num_faces for row in trained):
        caveats += _caveats_against_base(winner.face_similarity, base.face_similarity, versus_base)
    is_finding = not caveats and versus_base.verdict == "higher"
    caveats += copying(winner)
    over_base = Repeated([winner.prompt_alignments]).minus(Repeated([base.prompt_alignments]))
    return Champion(
        row=winner,
        rule=rule.text,
        reason=_reason(winner, able, trained, rule, base),
        standing=standing_of(over_base.interval, rule.margin),
        runner_up=runner_up,
        versus_base=versus_base,
        versus_runner_up=family.compare(winner.face_similarities, runner_up.face_similarities) if runner_up else None,
        equals=tuple(
            row
            for row in others
            if family.compare(winner.face_similarities, row.face_similarities).verdict in ("tie", "unknown")
        ),
        caveats=tuple(caveats),
        is_finding=is_finding,
    )


def _confirmed_champion(confirmations: Confirmations, rule: ChampionRule, caveats: list[str]) -> Champion:
    """The champion of the second stage."""
    base = confirmations.base
    assert base is not None, "it is scored before any finalist"
    able = sorted(
        (each for each in confirmations.finalists if each.standing != "off prompt"),
        key=lambda each: -each.face_similarity.mean,
    )
    if not able:
        nearest = max(confirmations.finalists, key=lambda each: each.alignment_over_base.mean or -math.inf)
        return _nobody(
            f"trained again, all {len(confirmations.finalists)} finalists fall short of the rule: the nearest, "
            f"{nearest.row.trial}, has a prompt alignment {_signed(nearest.alignment_over_base)} from the base model's",
            rule,
            caveats,
        )
    best = able[0]
    tied = [each for each in able[1:] if confirmations.difference(best, each).verdict == "tie"]
    winner = min((best, *(each for each in tied if _as_good(each, best, rule))), key=_cost)
    other_finalists = [each for each in able if each is not winner]
    equals = [each for each in other_finalists if confirmations.difference(winner, each).verdict == "tie"]
    rival = other_finalists[0] if other_finalists else None
    versus_base = confirmations.over_base(winner)
    caveats = caveats + _caveats_against_base(winner.face_similarity.mean, base.face_similarity, versus_base)
    if winner.num_failed:
        caveats.append(f"{winner.num_failed} of its {winner.num_wanted} trainings with fresh seeds failed")
    is_finding = not caveats and versus_base.verdict == "higher"
    caveats += copying(winner.row)
    return Champion(
        row=winner.row.model_copy(update={"champion": True}),
        rule=rule.text,
        reason=_confirmed_reason(winner, best, able, rule),
        confirmed=winner,
        standing=winner.standing,
        runner_up=rival.row if rival else None,
        runner_up_confirmed=rival,
        versus_base=versus_base,
        versus_runner_up=confirmations.difference(winner, rival) if rival else None,
        equals=tuple(each.row for each in equals),
        caveats=tuple(caveats),
        is_finding=is_finding,
    )


def _as_good(each: Confirmed, best: Confirmed, rule: ChampionRule) -> bool:
    """Is what it falls short by too little to pay for?"""
    return best.face_similarity.mean - each.face_similarity.mean <= rule.tie_margin


def _cost(each: Confirmed) -> tuple[int, float]:
    """Fewer steps first, then the smaller file."""
    return (each.row.step, math.inf if each.row.rank is None else each.row.rank)


def _signed(difference: Difference) -> str:
    interval = difference.interval
    mean = "unknown" if difference.mean is None else f"{difference.mean:+.3f}"
    return f"{mean} [{interval.low:+.3f}, {interval.high:+.3f}]" if interval else mean


def _confirmed_reason(winner: Confirmed, best: Confirmed, able: Sequence[Confirmed], rule: ChampionRule) -> str:
    number, of = len(winner.trainings), len(able)
    again = (
        f"trained again {number} times with other seeds, on other noise and held-back prompts, its face similarity is "
        f"{winner.face_similarity.mean:.3f}"
    )
    among = f"the {of} finalists that are not off prompt" if of > 1 else "the only finalist that is not off prompt"
    if winner is best:
        return f"{again}, the highest of {among}" if of > 1 else f"{again}; it is {among}"
    shortfall = best.face_similarity.mean - winner.face_similarity.mean
    return (
        f"{again}, {shortfall:.3f} below the highest ({best.row.trial}), from which it cannot be told; of what is that "
        f"near ({rule.tie_margin:g}) the cheapest is the choice"
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


def _no_face_anywhere(trained: Sequence[Row]) -> list[str]:
    if not trained or any(row.num_faces for row in trained):
        return []
    return [
        "no checkpoint has a face in any picture: every one counts as a stranger's, so an order by face similarity is "
        "not a finding"
    ]


def _caveats_of_all(trained: Sequence[Row], base: Row | None, family: Family) -> list[str]:
    """Reasons why no checkpoint's likeness means anything, whichever the rule picks."""
    if not trained or base is None:
        return []
    is_known = False
    for row in trained:  # the best first: where there is a finding, the first of thousands shows it
        verdict = family.compare(row.face_similarities, base.face_similarities).verdict
        if verdict == "higher":
            return []
        is_known |= verdict != "unknown"
    if not is_known:
        return [
            f"too few pictures (a verdict needs {MIN_UNITS} a checkpoint): whether any checkpoint "
            "differs from the base model is not known"
        ]
    return [
        "no checkpoint is measurably more like the person than the base model (the interval of every difference "
        "covers 0 or lies below it): these scores do not rank the settings"
    ]


def _caveats_against_base(winner: float, base: float, versus_base: Difference) -> list[str]:
    """Reasons why a champion of this face similarity is no better than what one had before training."""
    if base >= winner:
        return [
            f"the base model's face similarity ({base:.3f}) is at least the champion's "
            f"({winner:.3f}): training has not made the pictures more like the person"
        ]
    if versus_base.verdict == "unknown":
        return [
            f"too few pictures (a verdict needs {MIN_UNITS}): whether the champion differs from the base model is not "
            "known"
        ]
    if versus_base.verdict == "tie":
        return ["champion and base model are a tie in face similarity: the interval of their difference covers 0"]
    return []


def copying(winner: Row) -> list[str]:
    """That a checkpoint has learnt photos by heart, which its likeness to other photos does not tell; empty if not."""
    copies = winner.examination and winner.examination.copies
    if not copies or not copies.is_copying:
        return []
    return [
        f"it copies its training photos, in {copies.num_copies} of {len(copies.nearest)} pictures of the bare instance "
        "prompt; fewer steps or a lower learning rate copy less"
    ]


def compare_prompt_alignment(a: Row, b: Row) -> Difference:
    """Prompt alignment of a minus b, paired over the pictures that both made."""
    return Repeated([a.prompt_alignments]).minus(Repeated([b.prompt_alignments]))
