"""A run as the text of a sweep file: one trial, that run, with what may be opened around it in comments."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from evaluation.rare_token import guess_rare_token, has_rare_token, without_rare_token
from sweeps.config import NAME_LAW, SweepConfig, parse_sweep
from sweeps.imports.run import Run
from sweeps.space import grid
from training.config import HORIZON_FREE_SCHEDULES, METHODS, DreamBoothConfig, LoraConfig
from training.errors import UserError

WIDTH = 120
MOST_SCORING_POINTS = 8
IDEAS = ("{}, in a garden", "{}, in a suit, in an office", "{} as an oil painting")
"""Prompts that are offered beside the run's own: a place, clothes, a style."""

_PLAIN = re.compile(r"[A-Za-z][\w./-]*")
_WORDS_OF_YAML = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n", "inf", "nan"})


@dataclass(frozen=True)
class Imported:
    """A sweep file's text, and what is to be minded of it."""

    text: str
    remarks: tuple[str, ...]


def imported(run: Run) -> Imported:
    """As `sweep_text`, with its remarks."""
    text = sweep_text(run)
    return Imported(text, tuple(remarks_of(run)))


def sweep_text(run: Run) -> str:
    """The sweep file whose one trial is the run.

    Raises:
        UserError: the run breaks a law of ours; the text names place, law and value.
    """
    raw = _sections(run)
    config = parse_sweep(raw, f"the sweep made of this {run.trainer} run")
    trials = list(grid(config.methods, config.evaluation.at_steps))
    assert trials == [METHODS[run.method].model_validate(run.settings)]
    return "\n".join([*_remarks(run), *_body(run, config, raw), ""])


def lawful_name(text: str | None, default: str) -> str:
    """A name that a sweep may have, as near as possible to a path's last part."""
    last = re.split(r"[/\\]", (text or "").rstrip("/\\"))[-1]
    for candidate in (last, default):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", candidate).lstrip("._-")[:64].rstrip("-")
        if NAME_LAW.fullmatch(name):
            return name
    return "imported"


def remarks_of(run: Run) -> list[str]:
    """What is to be minded of the import, a line each: arithmetic, differences, what was taken for granted."""
    notes = run.notes
    return [*notes.arithmetic, *(f"differs: {each}" for each in notes.differs), *notes.minded]


# --- sections ---------------------------------------------------------------------------------------------------------


def _sections(run: Run) -> dict[str, Any]:
    subject = {key: value for key, value in run.subject.items() if value is not None}
    _name_the_person(run, subject)
    steps = int(run.settings["max_train_steps"])
    evaluation: dict[str, Any] = {"prompts": _prompts(run, subject), "at_steps": _at_steps(run, steps)}
    if run.images_per_prompt is not None:
        evaluation["images_per_prompt"] = run.images_per_prompt
    return {
        "name": run.name,
        "base_model": run.base_model,
        **run.top,
        "subject": subject,
        "methods": {run.method: run.settings},
        "search": {"sampler": "grid"},
        "evaluation": evaluation,
    }


def _name_the_person(run: Run, subject: dict[str, Any]) -> None:
    if subject.get("rare_token"):
        return
    try:
        guess_rare_token(str(subject["instance_prompt"]), subject.get("class_prompt"))
    except UserError:
        run.notes.minded.append(
            f"which words of {str(subject['instance_prompt'])!r} name the person is not certain: give "
            "subject.rare_token"
        )


def _token(subject: Mapping[str, Any]) -> str | None:
    try:
        return subject.get("rare_token") or guess_rare_token(
            str(subject["instance_prompt"]), subject.get("class_prompt")
        )
    except UserError:
        return None


def _prompts(run: Run, subject: Mapping[str, Any]) -> list[str]:
    """The run's own that name the person; else the instance prompt, in words that CLIP can read."""
    token = _token(subject)
    instance_prompt = str(subject["instance_prompt"])
    own = list(dict.fromkeys(prompt for prompt in run.prompts if prompt.strip()))
    unnamed = [prompt for prompt in own if token is not None and not has_rare_token(prompt, token)]
    run.notes.minded += [f"prompt {prompt!r} does not name the person: left out" for prompt in unnamed]
    named = [prompt for prompt in own if prompt not in unnamed]
    if named:
        return named
    try:
        without_rare_token(instance_prompt, token or instance_prompt)
    except UserError:
        return [f"a photo of {instance_prompt}"]
    return [instance_prompt]


def _at_steps(run: Run, steps: int) -> list[int]:
    """Where the run kept checkpoints; under a schedule that knows its end each point would be a run of its own."""
    scheduler = run.settings.get("lr_scheduler", "constant")
    setting, every = run.score_every or ("", 0)
    if every <= 0:
        return [steps]
    points = range(every, steps, every)
    if every >= steps:
        reason = "the run is over before"
    elif scheduler not in HORIZON_FREE_SCHEDULES:
        reason = f"under {scheduler} only the run's end is the end of a run of its length"
    elif steps > every * MOST_SCORING_POINTS:
        reason = f"evaluation.at_steps would have more than {MOST_SCORING_POINTS} points to score"
    else:
        return [*points, steps]
    if setting:
        run.notes.unneeded[f"{setting} {every}"] = reason
    return [steps]


# --- text -------------------------------------------------------------------------------------------------------------


def _remarks(run: Run) -> Iterator[str]:
    yield from _comment(
        f"A {run.trainer} run as a sweep of one trial, which is that run. Relative paths are as they were given."
    )
    for line in remarks_of(run):
        yield from _comment(line)
    if run.notes.unneeded:
        named = ", ".join(f"{name} ({why})" for name, why in run.notes.unneeded.items())
        yield from _comment(f"not needed here: {named}")


def _comment(text: str) -> list[str]:
    """Never a line that could be read as anything but a comment, whatever the foreign text holds."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    return textwrap.wrap(clean, WIDTH, initial_indent="# ", subsequent_indent="#   ", break_long_words=False)


def _body(run: Run, config: SweepConfig, raw: Mapping[str, Any]) -> Iterator[str]:
    yield f"name: {scalar(raw['name'])}"
    yield f"base_model: {scalar(raw['base_model'])}"
    yield from (f"{key}: {scalar(value)}" for key, value in run.top.items())
    yield "subject:"
    for key, value in raw["subject"].items():
        why = "  # all photos train, as there; a quarter is kept back else" if key == "held_out_photos" else ""
        yield f"  {key}: {scalar(value)}{why}"
    if "rare_token" not in raw["subject"] and _token(raw["subject"]) is None:
        yield "  # rare_token: the words of instance_prompt that name the person"
    yield "methods:"
    yield f"  {run.method}:"
    opened = suggestions(run)
    for key, value in raw["methods"][run.method].items():
        yield f"    {key}: {scalar(value)}"
        if key in opened:
            choices = ", ".join(scalar(choice) for choice in opened[key])
            yield f"    # {key}: {{choices: [{choices}]}}  # instead of the line above: a search around it"
    yield "search: {sampler: grid}"
    evaluation = raw["evaluation"]
    yield "evaluation:"
    yield "  prompts:"
    yield from (f"    - {scalar(prompt)}" for prompt in evaluation["prompts"])
    yield from (f"    # - {scalar(prompt)}" for prompt in _ideas(raw["subject"], evaluation["prompts"]))
    yield f"  at_steps: [{', '.join(str(step) for step in config.evaluation.at_steps)}]"
    if "images_per_prompt" in evaluation:
        yield f"  images_per_prompt: {evaluation['images_per_prompt']}"


def _ideas(subject: Mapping[str, Any], prompts: list[str]) -> list[str]:
    instance_prompt = " ".join(str(subject["instance_prompt"]).split())
    return [idea for each in IDEAS if (idea := each.format(instance_prompt)) not in prompts]


def suggestions(run: Run) -> dict[str, list[int | float]]:
    """Rank, learning rate and steps, half and twice what the run has: choices that hold the run."""
    model = METHODS[run.method]
    config: LoraConfig | DreamBoothConfig = model.model_validate(run.settings)
    steps = config.max_train_steps
    opened: dict[str, list[int | float]] = {
        "max_train_steps": sorted({max(1, round(steps / 2)), steps, round(steps * 1.5)}),
    }
    if config.optimizer != "prodigy":
        rate = config.learning_rate
        opened["learning_rate"] = [float(f"{rate / 2:.3g}"), rate, min(1.0, float(f"{rate * 2:.3g}"))]
    if isinstance(config, LoraConfig):
        opened["rank"] = sorted({max(1, config.rank // 2), config.rank, config.rank * 2})
    return {key: list(dict.fromkeys(values)) for key, values in opened.items()}


def scalar(value: object) -> str:
    """A value as YAML that is read as that value by 1.1 and 1.2 alike."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        mantissa, e, exponent = repr(value).partition("e")
        point = mantissa if "." in mantissa else f"{mantissa}.0"
        return f"{point}e{int(exponent):+d}" if e else mantissa
    text = str(value)
    if _PLAIN.fullmatch(text) and text.casefold() not in _WORDS_OF_YAML:
        return text
    dumped: str = yaml.dump(text, Dumper=yaml.SafeDumper, default_style='"', width=float("inf"), allow_unicode=True)
    return dumped.strip()
