"""Another trainer's run in our words, and what is to be said of the way from its settings to ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.imports.flags import Flag
from sweeps.wording import shorten
from training.config import METHODS
from training.errors import UserError
from training.pictures import find_photos, find_pictures

LARGEST = 10**12
"""Whole numbers above this are no settings; products of two stay below what a float holds."""
MOST_PROBLEMS = 12
"""So many are listed; two lines hold no more."""


@dataclass
class Notes:
    """What became of foreign settings, in the order in which it was found."""

    arithmetic: list[str] = field(default_factory=list)
    """How a number of theirs became one of ours."""
    differs: list[str] = field(default_factory=list)
    """What comes out a little otherwise than there, on purpose."""
    minded: list[str] = field(default_factory=list)
    """What had to be taken for granted."""
    unneeded: dict[str, str] = field(default_factory=dict)
    """Setting -> why the trained result is the same without it."""
    problems: list[str] = field(default_factory=list)
    """Why the result would not be that run."""

    def problem(self, text: str) -> None:
        """One more reason to refuse, named once, on one line whatever the foreign text holds."""
        text = "".join(character if character.isprintable() else " " for character in text)
        if text not in self.problems:
            self.problems.append(text)

    def refuse(self, what: str) -> None:
        """Raise if there was a problem.

        Raises:
            UserError: all of them, in one line.
        """
        if not self.problems:
            return
        listed = "; ".join(self.problems[:MOST_PROBLEMS])
        more = f"; and {len(self.problems) - MOST_PROBLEMS} more" if len(self.problems) > MOST_PROBLEMS else ""
        raise UserError(f"{what}: a sweep would not be that run: {listed}{more}")

    def fate(self, flag: Flag, value: object, name: str | None = None) -> None:
        """Say what became of a setting that was given and has no key."""
        name = name or flag.name
        if flag.fate == "key":
            return
        if flag.fate == "absent":
            self.unneeded[name] = flag.text
        elif value == flag.default or value in (None, False, "", []):
            self.unneeded[name] = "it is at its default"
        elif flag.fate == "differs":
            self.differs.append(f"{name} {shorten(value)}: {flag.text}")
        else:
            self.problem(f"{name} {shorten(value)} ({flag.text})")


@dataclass
class Run:
    """One training of another trainer, in the sweep file's keys."""

    trainer: str
    """Whose it is, as people call it."""
    method: str
    name: str
    base_model: str
    subject: dict[str, Any]
    settings: dict[str, Any]
    """Of the method; what is not there has our default."""
    notes: Notes
    top: dict[str, Any] = field(default_factory=dict)
    """Keys beside the sections."""
    prompts: list[str] = field(default_factory=list)
    """Those that its own pictures were made of; may be none."""
    images_per_prompt: int | None = None
    score_every: tuple[str, int] | None = None
    """The setting by which it kept checkpoints, and the steps between them; None: only the last."""


def number_of(what: str, count: Callable[[], int], notes: Notes) -> int | None:
    """What `count` finds on disk; None, and a problem, where it does not."""
    try:
        found = count()
    except (UserError, OSError) as error:
        notes.problem(f"{what}: {error}")
        return None
    if not found:
        notes.problem(f"{what}: there are none")
        return None
    return found


def count_pictures(folder: str) -> int:
    """Pictures directly in a folder."""
    return len(find_pictures(Path(folder).expanduser()))


def count_photos(folder: str) -> int:
    """Pictures in a folder and in its subfolders that are named as kohya's."""
    return len(find_photos(Path(folder).expanduser()))


def has_pictures(folder: str) -> bool:
    """Is the folder here, with pictures in it?"""
    try:
        return bool(find_pictures(Path(folder).expanduser()))
    except (UserError, OSError):
        return False


def beside(picture: Path, ending: str) -> Path:
    """The file of the same name with another ending."""
    return Path(f"{picture.with_suffix('')}{ending}")


def as_number(text: object, kind: type, what: str, notes: Notes) -> Any:
    """`text` as a whole number or a finite decimal; None, and a problem, where it is neither."""
    try:
        number = kind(text)
        if isinstance(text, bool) or not math.isfinite(number) or (kind is int and number != _exact(text)):
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        notes.problem(f"{what} must be a {'whole ' if kind is int else ''}number, got {shorten(text)}")
        return None
    if kind is int and abs(number) > LARGEST:
        notes.problem(f"{what} must be a number of at most {len(str(LARGEST)) - 1} digits, got {shorten(text)}")
        return None
    return number


def _exact(text: object) -> object:
    """The number that a whole one must equal: 3.5 is none, though `int` would make 3 of it."""
    return text if isinstance(text, float) else int(str(text))


FIRST = ("rank", "learning_rate", "max_train_steps")
"""Settings that are always written, and before the others: what a sweep searches."""


def written(settings: dict[str, Any], given: set[str], method: str) -> dict[str, Any]:
    """The settings that belong into the file: what the run said, and what is not our default."""
    fields = METHODS[method].model_fields
    names = [name for name in FIRST if name in settings] + [name for name in settings if name not in FIRST]
    return {
        name: settings[name]
        for name in names
        if name in FIRST or name in given or settings[name] != fields[name].default
    }


def say_of_seed(seed: int | None, notes: Notes) -> int:
    """The run's seed, or ours."""
    if seed is None:
        notes.minded.append("seed: the run had none, so nobody can repeat its very numbers; here it is 0")
    return seed or 0


def keys_beside(flags: Mapping[str, Flag], values: Mapping[str, Any]) -> dict[str, Any]:
    """The run's keys that stand beside the sweep file's sections, other than its name and base model."""
    beside = {flag.key: values[name] for name, flag in flags.items() if flag.key and "." not in flag.key}
    return {key: value for key, value in beside.items() if key not in ("name", "base_model") and value is not None}
