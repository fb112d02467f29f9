"""A config file of many sections, of which a few settings are read and every other one is accounted for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sweeps.imports.run import Notes, as_number
from sweeps.wording import shorten
from training.errors import UserError

MAX_DEPTH = 10


class Nested:
    """Settings by dotted names; whatever was not read is looked at in the end."""

    def __init__(self, raw: Mapping[str, Any], notes: Notes) -> None:
        self._left = dict(_leaves(raw))
        self._notes = notes

    def take(self, name: str, default: Any = None) -> Any:
        """The setting, or the trainer's default where it is left out or null; read from here on."""
        value = self._left.pop(name, None)
        return default if value is None else value

    def text(self, name: str, default: str) -> str:
        """As `take`, a text: a problem, and the default, where it is none."""
        value = self.take(name, default)
        if not isinstance(value, str):
            self._notes.problem(f"{name} must be text, got {shorten(value)}")
            return default
        return value

    def number(self, name: str, default: float | None, kind: type = float) -> Any:
        """As `take`, a number: a problem, and the default, where it is none."""
        value = self.take(name, default)
        if kind is int and isinstance(value, str):
            value = as_number(value, float, name, self._notes)  # 1e3, as text
        if value is None:
            return default
        number = as_number(value, kind, name, self._notes)
        return default if number is None else number

    def account(self, unneeded: Mapping[str, str], neutral: Mapping[str, Any], prefix: str = "") -> None:
        """Name what was not read: what trains the same without it, and, as a problem, what does not.

        Args:
            unneeded: a setting or a whole section -> why.
            neutral: values, by name, that switch nothing on; else only nothing, zero and false do.
            prefix: goes before names in texts.
        """
        for name, value in self._left.items():
            reason = _reason(name, unneeded)
            if reason is not None:
                self._notes.unneeded[f"{prefix}{name}"] = reason
            elif value in (None, False, 0, "", [], {}) or (name in neutral and value == neutral[name]):
                continue  # says what is done in any case; a whole config file has hundreds of these
            else:
                self._notes.problem(f"{prefix}{name} {shorten(value)} (there is no such setting)")
        self._left = {}


def _leaves(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    if prefix.count(".") > MAX_DEPTH:
        raise UserError(f"{prefix.split('.')[0]}: sections must be nested at most {MAX_DEPTH} deep")
    for name, value in raw.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _reason(name: str, unneeded: Mapping[str, str]) -> str | None:
    parts = name.split(".")
    sections = (".".join(parts[:number]) for number in range(len(parts), 0, -1))
    return next((unneeded[section] for section in sections if section in unneeded), None)
