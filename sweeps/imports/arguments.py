"""Words of a command as the settings that a trainer's parser would make of them."""

from __future__ import annotations

import argparse
import dataclasses
import re
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
    namespace, rest = _parsed(parser, list(words), notes)
    for word in rest:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("--"):
            notes.problem(f"--{name}: {unknown_key(name, list(flags))}")
        elif not _belongs_to_an_unknown(word, words, rest):
            notes.problem(f"{shorten(word)}: a word that belongs to no setting")
    return {name: typed(flags[name], text, notes) for name, text in vars(namespace).items()}


def _parsed(parser: _Parser, words: list[str], notes: Notes) -> tuple[argparse.Namespace, list[str]]:
    """What the parser makes of the words, each option that it will not take left out and noted."""
    while True:
        try:
            return parser.parse_known_args(words)
        except _NotParsedError as error:
            text = str(error).removeprefix("argument ")
            notes.problem(text)
            at = _place_of(text, words)
            if at is None:
                return argparse.Namespace(), []
            end = next((end for end in range(at + 1, len(words)) if words[end].startswith("--")), len(words))
            words = words[:at] + words[end:]


def _place_of(refusal: str, words: Sequence[str]) -> int | None:
    """Where the option stands that a refusal names, by its whole name or shortened."""
    named = re.search(r"--[\w-]+", refusal)
    if named is None:
        return None
    options = [(at, word.partition("=")[0]) for at, word in enumerate(words) if word.startswith("--")]
    exact = [at for at, option in options if option == named.group()]
    shortened = [at for at, option in options if named.group().startswith(option) and option != "--"]
    return next(reversed(exact or shortened), None)


def _belongs_to_an_unknown(word: str, words: Sequence[str], rest: Sequence[str]) -> bool:
    """Is it the value of a setting that is refused already?"""
    before = words[list(words).index(word) - 1] if word in words else ""
    return before.startswith("--") and "=" not in before and before in rest


def typed(flag: Flag, text: Any, notes: Notes) -> Any:
    """A setting's value as its parser types it; its default, and a problem, where that cannot be."""
    if flag.kind is bool and not isinstance(text, bool):
        notes.problem(f"{flag.name} must be true or false, got {shorten(text)}")
        return flag.default
    if flag.kind is str and not flag.many and flag.name != "resolution":  # which may be a pair
        if isinstance(text, dict | list | bool):
            notes.problem(f"{flag.name} must be text, got {shorten(text)}")
            return flag.default
        return text if isinstance(text, str) else str(text)
    if flag.many:
        each_alone = dataclasses.replace(flag, many=False)
        return [typed(each_alone, each, notes) for each in (text if isinstance(text, list) else [text])]
    if flag.kind in (int, float) and text is not None:
        number = as_number(text, flag.kind, flag.name, notes)
        return flag.default if number is None else number
    return text
