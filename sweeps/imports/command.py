"""A trainer's command as a sweep file: which script it starts, by which launcher, with which settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeps.imports.arguments import parse
from sweeps.imports.config_file import dataset_of, flattened, kohya_settings, read_file
from sweeps.imports.diffusers import diffusers_run
from sweeps.imports.flags import (
    DIFFUSERS,
    DIFFUSERS_SCRIPTS,
    KOHYA,
    KOHYA_SCRIPTS,
    LAUNCHER,
    LAUNCHER_SHORT,
    flags_of,
)
from sweeps.imports.kohya import kohya_run
from sweeps.imports.launch import Launch
from sweeps.imports.run import Notes
from sweeps.imports.shell import commands_of
from sweeps.imports.write import Imported, imported
from sweeps.wording import shorten
from training.errors import UserError

_SCRIPTS = (*DIFFUSERS_SCRIPTS, *KOHYA_SCRIPTS)
_LAUNCHERS = frozenset({"launch", "accelerate-launch", "accelerate.commands.launch", "torchrun"})
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


@dataclass(frozen=True)
class _Started:
    """A command taken apart."""

    script: str
    before: tuple[str, ...]
    after: tuple[str, ...]


def import_command(words: Sequence[str]) -> Imported:
    """The sweep file whose one trial is the run that a command starts.

    Args:
        words: the command's words, or all of it as one text in the shell's spelling.

    Raises:
        UserError: there is no one known script in it, or the sweep would not be that run: all reasons in one line.
    """
    commands = commands_of(words[0]) if len(words) == 1 else [list(words)]
    started = _the_one(commands)
    notes = Notes()
    launch = _launch(started, notes)
    if started.script in DIFFUSERS_SCRIPTS:
        given = parse(started.after, flags_of(DIFFUSERS, started.script), notes)
        run = diffusers_run(started.script, given, launch, notes)
    else:
        given = parse(started.after, flags_of(KOHYA, started.script), notes)
        file = given.pop("config_file", None)
        if file:
            given = {**kohya_settings(started.script, flattened(read_file(_toml(file))), notes), **given}
        run = kohya_run(started.script, given, launch, notes, dataset_of(given, None, Path()))
    notes.refuse(f"{started.script}.py")
    return imported(run)


def _toml(file: str) -> Path:
    """Kohya adds the suffix where it is left out."""
    path = Path(file).expanduser()
    return path if path.suffix == ".toml" else Path(f"{path}.toml")


def _the_one(commands: Sequence[Sequence[str]]) -> _Started:
    started = [found for command in commands if (found := _started(command))]
    if len(started) == 1:
        return started[0]
    known = ", ".join(f"{script}.py" for script in _SCRIPTS)
    if started:
        raise UserError(f"one command at a time becomes a sweep, got {len(started)}: {started[0].script}.py first")
    scripts = [word for command in commands for word in command if word.endswith(".py")]
    got = shorten(scripts[0] if scripts else " ".join(word for command in commands for word in command))
    raise UserError(f"the command must start {known}; got {got}")


def _started(command: Sequence[str]) -> _Started | None:
    for at, word in enumerate(command):
        file = re.split(r"[/\\]", word)[-1]
        script = file.removesuffix(".py") if file.endswith(".py") else word.rpartition(".")[2]
        names_a_module = not file.endswith(".py") and at > 0 and command[at - 1] in ("-m", "--module")
        if script in _SCRIPTS and (file.endswith(".py") or names_a_module):
            return _Started(script, tuple(command[:at]), tuple(command[at + 1 :]))
    return None


def _launch(started: _Started, notes: Notes) -> Launch:
    environment = dict(word.split("=", 1) for word in started.before if _ASSIGNMENT.match(word))
    precision = environment.pop("ACCELERATE_MIXED_PRECISION", None)
    notes.unneeded.update(dict.fromkeys(environment, "the environment"))
    launchers = [at for at, word in enumerate(started.before) if re.split(r"[/\\]", word)[-1] in _LAUNCHERS]
    if not launchers:
        return Launch(1, precision)
    flags = flags_of(LAUNCHER, "launch")
    words = [_underscored(word) for word in started.before[launchers[0] + 1 :]]
    given = parse(words, flags, notes, LAUNCHER_SHORT)
    for name, value in given.items():
        notes.fate(flags[name], value, f"the launcher's {name}")
    processes = given.get("num_processes") or given.get("nproc_per_node")
    if processes is None:
        if given.get("multi_gpu"):
            notes.problem("the launcher's --num_processes must be given with --multi_gpu: the batch grows by it")
        notes.minded.append("num_processes is not given: 1 is taken, and accelerate may have used more GPUs")
    precision = given.get("mixed_precision") or precision
    if started.script in KOHYA_SCRIPTS:
        if precision is not None:
            notes.unneeded["the launcher's mixed_precision"] = (
                "the script's own word, no if it says nothing, goes first"
            )
    elif precision is None and "mixed_precision" not in _names(started.after):
        notes.minded.append(
            "mixed_precision is not given: no is taken; accelerate's own config file may have said otherwise"
        )
    return Launch(max(1, processes or 1), precision)


def _underscored(word: str) -> str:
    """The launcher takes `--num-processes` for `--num_processes`."""
    name, equals, value = word.partition("=")
    return f"{name.replace('-', '_').replace('__', '--', 1)}{equals}{value}" if word.startswith("--") else word


def _names(words: Sequence[str]) -> set[str]:
    return {word.lstrip("-").partition("=")[0] for word in words if word.startswith("--")}
