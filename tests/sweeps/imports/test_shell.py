"""Laws of reading a shell's text: the words are those that a POSIX shell would give to the program."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.imports.shell import commands_of
from training.errors import UserError

WORDS = st.lists(st.text(st.characters(blacklist_categories=["Cs", "Cc"])), min_size=1, max_size=6)


@given(WORDS)
def test_quoted_words_come_back(words: list[str]) -> None:
    """Whatever stands in quotes is the word, empty ones included."""
    assert commands_of(shlex.join(["run", *words])) == [["run", *words]]


@given(st.text("ab -=\\\"' \t", max_size=30))
def test_it_reads_as_shlex_does(text: str) -> None:
    """Quotes and backslashes within words mean what they mean to Python's reader of POSIX shells."""
    try:
        expected = shlex.split(f"run x{text}")
    except ValueError:
        return
    if text.endswith("\\"):
        return  # shlex refuses most of these, and a shell would wait for more
    assert commands_of(f"run x{text}") == [expected]


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("run --a=\\\n3", [["run", "--a=3"]]),
        ("run --a \\\n  --b", [["run", "--a", "--b"]]),
        ("run --a \\\r\n  --b", [["run", "--a", "--b"]]),
        ('run "a \\\nb"', [["run", "a b"]]),
        ("run --a\n--b 2", [["run", "--a", "--b", "2"]]),
        ("run a#b # c", [["run", "a#b"]]),
        ("# x\n\nrun\n# y", [["run"]]),
        ("run '$A' \"\\$A\" \\$A", [["run", "$A", "$A", "$A"]]),
        ('A=1; export B="$A 2" C=3\nrun $A ${B}x "$C"', [["run", "1", "1 2x", "3"]]),
        ("%env A=1\n!run $A", [["run", "1"]]),
        ("! run", [["run"]]),
        ("A=1 run", [["A=1", "run"]]),
        ("cd x && run a; other", [["cd", "x"], ["run", "a"], ["other"]]),
        ("run a 2>&1 | tee log.txt", [["run", "a"], ["tee", "log.txt"]]),
        ("run a > log.txt 2> err.txt b", [["run", "a", "b"]]),
        ("", []),
        (" \n ", []),
    ],
)
def test_what_a_shell_makes_of_a_text(text: str, commands: list[list[str]]) -> None:
    """Continued lines, comments, variables, separators and redirections, as in a shell or a notebook."""
    assert commands_of(text) == commands


@pytest.mark.parametrize("text", ["run 'a", 'run "a', "run $A", 'run "$A"', "run `date`", "run $(date)"])
def test_what_cannot_be_known_is_refused(text: str) -> None:
    """A quote without an end, a variable that nothing sets, and a command's output."""
    with pytest.raises(UserError):
        commands_of(text)
