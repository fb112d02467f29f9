"""A shell's text as the words that a program would be given: quotes, continued lines, variables that it sets."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sweeps.wording import shorten
from training.errors import UserError

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
_SETTERS = frozenset({"export", "set", "%env", "declare"})
_SEPARATORS = "\n;&|"
_REDIRECTION = re.compile(r"(?:\d?>>?|&>>?|\d?<)[ \t]*(?:&\d|[^\s;&|<>]+)")


def commands_of(text: str) -> list[list[str]]:
    """The commands of a text, each as its words, as a POSIX shell would read them.

    Variables that the text itself sets (`export NAME=value`, `NAME=value`, a notebook's `%env NAME=value`) are put in
    where they are used. A notebook's `!` before a command is taken off. A line that begins with a dash goes on with the
    command before it, for pasting loses the backslash at a line's end.

    Raises:
        UserError: a quote that is not closed, a variable that the text does not set, a command within the command.
    """
    variables: dict[str, str] = {}
    commands: list[list[str]] = []
    for words in _Words(text.replace("\r\n", "\n"), variables).commands():
        if words[0].startswith("-") and commands:
            commands[-1] += words
            continue
        words[0] = words[0].removeprefix("!")
        words = words if words[0] else words[1:]
        if not words:
            continue
        setting = words[1:] if words[0] in _SETTERS else words
        if all(_ASSIGNMENT.match(word) for word in setting):
            variables.update({name: value for name, _, value in (word.partition("=") for word in setting)})
        else:
            commands.append(words)
    return commands


class _Words:
    """The text, read once from its beginning to its end; variables are looked up as they are met."""

    def __init__(self, text: str, variables: dict[str, str]) -> None:
        self.text = text
        self.variables = variables
        self.at = 0

    def commands(self) -> Iterator[list[str]]:
        """Yields the words of each command, before what follows is read."""
        words: list[str] = []
        while self.at < len(self.text):
            character = self.text[self.at]
            if redirection := _REDIRECTION.match(self.text, self.at):
                self.at = redirection.end()
            elif character in _SEPARATORS:
                self.at += 1
                if words:
                    yield words
                words = []
            elif character.isspace() or self.text.startswith("\\\n", self.at):
                self.at += 2 if character == "\\" else 1
            elif character == "#":  # at the beginning of a word only: a comment
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                words.append(self._word())
        if words:
            yield words

    def _word(self) -> str:
        parts: list[str] = []
        while self.at < len(self.text):
            character = self.text[self.at]
            if character.isspace() or character in _SEPARATORS:
                break
            if character == "'":
                parts.append(self._until("'"))
            elif character == '"':
                parts.append(self._double_quoted())
            elif character == "\\":
                if not self.text.startswith("\\\n", self.at):
                    parts.append(self.text[self.at + 1 : self.at + 2])
                self.at += 2
            else:
                parts.append(self._plain())
        return "".join(parts)

    def _until(self, quote: str) -> str:
        end = self.text.find(quote, self.at + 1)
        if end < 0:
            raise UserError(f"a quote must be closed, got {shorten(self.text[self.at :])}")
        inside = self.text[self.at + 1 : end]
        self.at = end + 1
        return inside

    def _double_quoted(self) -> str:
        begin = self.at
        self.at += 1
        parts: list[str] = []
        while self.at < len(self.text):
            character = self.text[self.at]
            if character == '"':
                self.at += 1
                return "".join(parts)
            if character == "\\" and self.text[self.at + 1 : self.at + 2] in tuple('"\\$`\n'):
                parts.append(self.text[self.at + 1].replace("\n", ""))
                self.at += 2
            else:
                parts.append(self._plain())
        raise UserError(f"a quote must be closed, got {shorten(self.text[begin:])}")

    def _plain(self) -> str:
        """One character, or what stands for a variable."""
        character = self.text[self.at]
        if character == "`" or self.text.startswith("$(", self.at):
            raise UserError(f"a command within the command is not run, got {shorten(self.text[self.at :])}")
        variable = _VARIABLE.match(self.text, self.at)
        if variable is None:
            self.at += 1
            return character
        name = variable[1] or variable[2]
        if name not in self.variables:
            raise UserError(f"${name} must be set in the text (export {name}=...), or written out")
        self.at = variable.end()
        return self.variables[name]
