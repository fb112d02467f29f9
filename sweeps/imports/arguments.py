"""Words of a command as the settings that a trainer's parser would make of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from sweeps.imports.flags import Flag
from sweeps.imports.run import Notes, as_number
from sweeps.wording import shorten, unknown_key


class _NotParsedError(Exception):
    """The trainer's own parser would not take the command either."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _NotParsedError(message)


def parse(
    words: Sequence[str], flags: Mapping[str, Flag], notes: Notes, short: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Setting -> value of all that the words say, abbreviations included; what is unknown becomes a problem.

    Args:
        words: of the command, after the program's name.
        flags: the parser's settings by name.
        notes: takes the problems.
        short: options of one dash and the setting that each is.
    """
    parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS, usage="")
    shorts = {name: option for option, name in (short or {}).items()}
    for name, flag in flags.items():
        options = [f"--{name}", *([shorts[name]] if name in shorts else [])]
        if flag.kind is bool:
            parser.add_argument(*options, action="store_true", dest=name)
        else:
            parser.add_argument(*options, dest=name, **({"nargs": "*"} if flag.many else {}))  # type: ignore[arg-type]
    try:
        namespace, rest = parser.parse_known_args(list(words))
    except _NotParsedError as error:
        notes.problem(str(error).removeprefix("argument "))
        return {}
    for word in rest:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("--"):
            notes.problem(f"--{name}: {unknown_key(name, list(flags))}")
        elif not _belongs_to_an_unknown(word, words, rest):
            notes.problem(f"{shorten(word)}: a word that belongs to no setting")
    return {name: typed(flags[name], text, notes) for name, text in vars(namespace).items()}


def _belongs_to_an_unknown(word: str, words: Sequence[str], rest: Sequence[str]) -> bool:
    """Is it the value of a setting that is refused already?"""
    before = words[list(words).index(word) - 1] if word in words else ""
    return before.startswith("--") and "=" not in before and before in rest


def typed(flag: Flag, text: Any, notes: Notes) -> Any:
    """A setting's value as its parser types it."""
    if flag.kind is bool and not isinstance(text, bool):
        notes.problem(f"{flag.name} must be true or false, got {shorten(text)}")
        return flag.default
    if flag.many and isinstance(text, list):
        return [as_number(each, float, flag.name, notes) if flag.kind is float else each for each in text]
    if flag.kind in (int, float) and text is not None:
        return as_number(text, flag.kind, flag.name, notes)
    return text
