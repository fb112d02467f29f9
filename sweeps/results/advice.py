"""The verdict in words: the sentence, how sure it is and why, and what to do next, as a command where there is one."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from sweeps.results.champion import Champion, copying
from sweeps.results.confirmed import Confirmations, Confirmed
from sweeps.results.intervals import Difference, Interval, by_prompt
from sweeps.results.leaderboard import Row
from sweeps.results.power import TYPICAL, Design, Noise, design_to_tell
from sweeps.results.results import Results
from sweeps.wording import learning_rate_text, score_text, signed_text


@dataclass(frozen=True)
class NextStep:
    """What to do next."""

    text: str
    command: str | None = None


@dataclass(frozen=True)
class Advice:
    """What the first screen says."""

    sentence: str
    """The settings, and how like the person they make the pictures."""
    how_sure: str
    """In a few words: whether to bet on it."""
    why: str
    """What that rests on."""
    next_steps: tuple[NextStep, ...]


def settings_text(row: Row) -> str:
    """`LoRA of rank 16, learning rate 1e-3, 120 steps`, and what else is its own."""
    method = "LoRA" if row.method == "lora" else "Full DreamBooth"
    rank = f" of rank {row.rank}" if row.rank else ""
    options = f", {row.options}" if row.options else ""
    return f"{method}{rank}, learning rate {learning_rate_text(row.learning_rate)}{options}, {row.step} steps"


def advice_of(results: Results, run: str | None = None) -> Advice:
    """What a run comes to so far.

    Args:
        results: the run.
        run: what its folder is called in commands; default: its last two parts, since a page goes to people whom the
            rest of the path does not concern.
    """
    run = run or "/".join(results.folder.dir.parts[-2:])
    champion = results.champion
    if champion.row is None:
        is_running = bool(results.num_by_status.get("running"))
        text, how_sure = ("No champion yet", "not ended yet") if is_running else ("No champion", "nothing to bet on")
        return Advice(text, how_sure, champion.reason.removeprefix("no champion: "), ())
    if champion.confirmed is None:
        return _of_first_look(results, champion, champion.row, run)
    return _of_confirmed(results, champion, champion.row, champion.confirmed, run)


def _of_first_look(results: Results, champion: Champion, row: Row, run: str) -> Advice:
    likeness = f"face similarity {score_text(row.face_similarity)}{_interval(row.face_similarity_interval)}"
    num_equals = len(champion.equals)
    trials = "another trial" if num_equals == 1 else f"{num_equals} other trials"
    others = f", and {trials} cannot be told from it" if num_equals else ""
    why = (
        f"one training each: another training seed may move a score by {TYPICAL.seed:.2g} and more, and the best of "
        f"many is a lucky one{others}"
    )
    if results.num_by_status.get("running"):
        return Advice(f"So far {settings_text(row)}: {likeness}", "a first look while trials run", why, ())
    if not champion.is_finding:
        return Advice(f"{settings_text(row)}: {likeness}, not a finding", "not a finding", champion.caveats[0], ())
    steps: tuple[NextStep, ...] = (
        NextStep(
            "train the best again with other seeds, and name the champion from that",
            shlex.join(["dreamsweep", "confirm", run]),
        ),
    )
    wanted = sum(finalist.seeds for finalist in results.finalists)
    ended = sum(len(each.trainings) + each.num_failed for each in results.confirmations.finalists)
    if ended:
        why = f"{ended} of {wanted} trainings of the finalists with other seeds have ended; until all have, {why}"
    return Advice(f"{settings_text(row)}: {likeness}", "a first look, not a finding to bet on", why, steps)


def _of_confirmed(results: Results, champion: Champion, row: Row, confirmed: Confirmed, run: str) -> Advice:
    interval = confirmed.face_similarity.interval
    sentence = (
        f"{settings_text(row)}: face similarity {score_text(confirmed.face_similarity.mean)}{_interval(interval)} "
        f"over {len(confirmed.trainings)} trainings"
    )
    export = NextStep("export it", shlex.join(["dreamsweep", "export", run, "DEST"]))
    if not champion.is_finding:
        return Advice(f"{sentence}, not a finding", "not a finding", champion.caveats[0], ())
    parts = results.confirmations.second_opinions(confirmed)
    if champion.standing == "borderline":
        parts.append(
            f"whether it follows its prompts is not sure (prompt alignment {_difference(confirmed)} to the base "
            f"model's, the rule's line is at {signed_text(-results.rule.margin)})"
        )
        sure_ones = [each for each in results.confirmations.finalists if each.standing == "follows"]
        if sure_ones:
            best = max(sure_ones, key=lambda each: each.face_similarity.mean)
            likeness = score_text(best.face_similarity.mean)
            parts.append(f"{settings_text(best.row)} surely does, with a face similarity of {likeness}")
    steps = [export, *_without_copies(results, row, run)]
    but = ", but it copies photos" if copying(row) else ""
    if not champion.equals:
        parts.insert(0, "it is higher than every other finalist, over training seeds, prompts and noise")
        sure = "sure" if champion.standing == "follows" else "sure of likeness, not of the prompts"
        return Advice(sentence, f"{sure}{but}", "; ".join(parts), tuple(steps))
    rival = champion.runner_up_confirmed
    assert rival is not None, "whoever it cannot be told from is a finalist"
    names = " and ".join(settings_text(each) for each in champion.equals)
    between = champion.versus_runner_up
    difference = "" if between is None or between.mean is None else f" by {signed_text(between.mean)}"
    parts.insert(0, f"it cannot be told from {names}: it differs from the best of these{difference}{_signed(between)}")
    return Advice(sentence, f"a tie{but}", "; ".join(parts), (_to_break(results, confirmed, rival, run), *steps))


def _without_copies(results: Results, row: Row, run: str) -> list[NextStep]:
    """Where the champion copies photos, the best finalist that does not."""
    if not copying(row):
        return []
    honest = [each for each in results.confirmations.finalists if not copying(each.row) and each.row.key != row.key]
    if not honest:
        return []
    best = max(honest, key=lambda each: each.face_similarity.mean)
    command = shlex.join(["dreamsweep", "export", run, "DEST", "--trial", best.row.trial])
    return [NextStep(f"or the best that copies none, {settings_text(best.row)}", command)]


def _to_break(results: Results, confirmed: Confirmed, rival: Confirmed, run: str) -> NextStep:
    """What it would take to tell the two apart."""
    confirmations = results.confirmations
    difference = confirmed.face_similarity.mean - rival.face_similarity.mean
    design = design_of(confirmed, rival, len(confirmations.finalists))
    number = len(confirmations.finalists)
    noise = noise_between(confirmations, confirmed, rival)
    wanted = design_to_tell(difference, noise, design, number * (number - 1) // 2)
    if wanted is None:
        return NextStep(
            f"they differ by {abs(difference):.3f} or so, which no reasonable number of trainings would tell from "
            "nothing: take the choice"
        )
    more = wanted.seeds - min(len(confirmed.trainings), len(rival.trainings))
    images = wanted.prompts * wanted.images_per_prompt
    what = f"{2 * more} more trainings" if more else "more pictures of what is trained"
    command = ["dreamsweep", "confirm", run, "--trials", confirmed.row.trial]
    command += ["--trials", rival.row.trial, "--seeds", str(wanted.seeds), "--images", str(images)]
    return NextStep(f"to break the tie, if the difference is as it seems: {what}", shlex.join(command))


def design_of(a: Confirmed, b: Confirmed, num_settings: int) -> Design:
    """By how much two of so many finalists have been tried, the less of both."""
    seeds = min(len(a.trainings), len(b.trainings))
    num_prompts = len(by_prompt(a.face_similarity.by_picture))
    num_images = min(len(each.face_similarity.by_picture) for each in (a, b))
    return Design(seeds, num_prompts, max(1, num_images // num_prompts), num_settings)


def noise_between(confirmations: Confirmations, a: Confirmed, b: Confirmed) -> Noise:
    """As their own pictures have it; prompts and noise are told apart by the proportion that is typical."""
    design = design_of(a, b, len(confirmations.finalists))
    theirs = b.face_similarity.by_picture
    prompts = by_prompt(
        {key: value - theirs[key] for key, value in a.face_similarity.by_picture.items() if key in theirs}
    )
    mean = sum(prompts.values()) / len(prompts)
    variance = sum((value - mean) ** 2 for value in prompts.values()) / max(1, len(prompts) - 1)
    per_prompt = TYPICAL.prompt**2 + TYPICAL.picture**2 / (design.seeds * design.images_per_prompt)
    scale = math.sqrt(variance / per_prompt)
    seeds = confirmations.seed_noise.face_similarity
    return Noise(math.sqrt(seeds.variance) if seeds else TYPICAL.seed, scale * TYPICAL.prompt, scale * TYPICAL.picture)


def _interval(interval: Interval | None) -> str:
    return f" [{score_text(interval.low)}, {score_text(interval.high)}]" if interval else ""


def _signed(difference: Difference | None) -> str:
    interval = None if difference is None else difference.interval
    return f" [{signed_text(interval.low)}, {signed_text(interval.high)}]" if interval else ""


def _difference(confirmed: Confirmed) -> str:
    mean = confirmed.alignment_over_base.mean
    return f"{signed_text(mean) if mean is not None else '?'}{_signed(confirmed.alignment_over_base)}"
