"""What every input must lead to: an answer or a refusal in words, soon, in little memory, and no file beside."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sweeps.asked import is_listed
from sweeps.cli import main
from sweeps.config import load_sweep, parse_sweep
from sweeps.ledger.folder import RunFolder
from sweeps.plan import plan_of
from sweeps.report.page import render_report
from sweeps.results.results import read_results
from sweeps.search.listed import trials_asked_for
from tests.fuzz import inputs
from training.errors import UserError
from training.pictures import read_picture

MAX_SECONDS = 5.0
"""Of processor time."""
MAX_BYTES = 300_000_000
REPORT_EVERY = 100
"""A report takes a third of a second, so only some entries are written into one."""


class TooLongError(BaseException):
    """Beyond `MAX_SECONDS`; no `except Exception` takes it for something else."""


@dataclass
class Tally:
    """What became of the inputs of one kind."""

    answered: int = 0
    refused: int = 0
    slowest: float = 0.0
    peak_bytes: int = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Time and memory of one input; a UserError counts as refused, and anything else leaves."""
        before, start = _peak_bytes(), time.process_time()
        old = signal.signal(signal.SIGPROF, _too_long)
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # of this process's own: others may keep the machine busy
        try:
            yield
            self.answered += 1
        except UserError as error:
            self.refuse(str(error))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, old)
            self.slowest = max(self.slowest, time.process_time() - start)
            self.peak_bytes = max(self.peak_bytes, _peak_bytes() - before)
        assert self.peak_bytes < MAX_BYTES, f"{self.peak_bytes} bytes more than before"

    def refuse(self, message: str) -> None:
        """Count a refusal."""
        assert message.strip(), "a refusal has words"
        self.refused += 1


def _too_long(_signal: int, _frame: object) -> None:
    raise TooLongError(f"more than {MAX_SECONDS} s")


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def dreamsweep(*arguments: str) -> tuple[int, str, str]:
    """The command in this process: its exit code, and what it says."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["dreamsweep", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


def told(tally: Tally, *arguments: str) -> None:
    """The command answers, or refuses with exit 2 and no traceback."""
    code, _, err = dreamsweep(*arguments)
    assert code in (0, 2), (code, err)
    assert "Traceback" not in err, err
    if code == 2:
        raise UserError(err)


def files_of(folder: Path) -> dict[str, int]:
    """Everything below a folder, with its size."""
    return {str(path): path.lstat().st_size for path in sorted(folder.rglob("*"))}


@dataclass(frozen=True)
class World:
    """Where the inputs are put."""

    dir: Path
    """Empty; may be written."""
    sweep: dict[str, Any]
    """A valid sweep on files of its own."""
    run: Path
    """A finished run folder."""

    @property
    def entry(self) -> Path:
        """The ledger entry of one of its trials."""
        return min(self.run.glob("trials/lora*/trial.json"))


def sweep_texts(world: World, tally: Tally, content: str | bytes) -> None:
    """Any file given as a sweep is read or refused by its name; nothing is written."""
    file = world.dir / "fuzz.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    before = files_of(world.dir)
    with tally.counted():
        told(tally, "check", str(file))
    assert files_of(world.dir) == before


def sweep_values(world: World, tally: Tally, sweep: dict[str, Any], override: str | None) -> None:
    """A sweep with odd values is planned or refused at once; what it plans, it can list; nothing is written."""
    try:
        content = inputs.as_yaml(sweep)
    except (yaml.YAMLError, ValueError):  # nobody can write it, so nobody can have it (integers of 5,000 digits)
        return
    file = world.dir / "fuzz.yaml"
    file.write_bytes(content)
    before = files_of(world.dir)
    with tally.counted():
        told(tally, "check", str(file), *(["--set", override] if override is not None else []))
        config = load_sweep(file, [override] if override is not None else [])
        assert RunFolder(world.dir / config.name).dir.parent == world.dir.resolve()
        assert not is_listed(config) or config.search.sampler in ("grid", "random")
    assert files_of(world.dir) == before


def plans(world: World, tally: Tally, sweep: dict[str, Any]) -> None:
    """What `check` does once it has looked at the models: the sweep is measured or refused, at once."""
    file = world.dir / "fuzz.yaml"
    file.write_bytes(inputs.as_yaml(sweep))
    with tally.counted():
        assert plan_of(load_sweep(file)).lines()


def photos(world: World, tally: Tally, content: bytes) -> None:
    """Any bytes are a picture or are refused by their name."""
    file = world.dir / "photo.jpg"
    file.write_bytes(content)
    with tally.counted():
        image = read_picture(file)
        assert image.mode == "RGB"
        assert not image.info
        assert isinstance(image, Image.Image)


def ledger_entries(world: World, tally: Tally, content: bytes) -> None:
    """A trial.json is believed, left out with a word, or refused by its name; nothing but the table is written."""
    entry = world.entry
    whole, before = entry.read_bytes(), files_of(world.dir)
    entry.write_bytes(content)
    try:
        with tally.counted():
            told(tally, "show", str(world.run))
            told(tally, "show", str(world.run), "--json")
            results = read_results(world.run)
            if (tally.answered + tally.refused) % REPORT_EVERY == 0:
                render_report(results)
            config = results.config
            assert config is not None
            trials_asked_for(config, RunFolder(world.run))
            if results.warnings:
                raise UserError(results.warnings[0])
    finally:
        entry.write_bytes(whole)
    assert files_of(world.dir) == before


def sweep_names(world: World, tally: Tally, name: str) -> None:
    """A sweep's name is one folder name below --out, or refused."""
    with tally.counted():
        config = parse_sweep({**world.sweep, "name": name})
        folder = RunFolder(world.dir / "runs" / config.name)
        assert folder.dir.parent == (world.dir / "runs").resolve()
        assert folder.dir.name == name


def run_names(world: World, tally: Tally, name: str) -> None:
    """Whatever is given as a run folder or a trial is shown or refused; nothing is written anywhere."""
    before = files_of(world.dir)
    with tally.counted():
        told(tally, "show", "--", name) if name.startswith("-") else told(tally, "show", name)
    with tally.counted():
        told(tally, "export", str(world.run), str(world.dir / "export"), f"--trial={name}", "--format=lora")
    assert files_of(world.dir) == before


Law = Callable[..., None]
KINDS: dict[str, tuple[Law, Callable[[World], tuple[st.SearchStrategy[Any], ...]]]] = {
    "sweep files, text": (sweep_texts, lambda _: (inputs.yaml_texts,)),
    "sweep files, values": (
        sweep_values,
        lambda world: (inputs.sweeps(world.sweep), st.none() | st.none() | inputs.overrides),
    ),
    "photos": (photos, lambda _: (inputs.garbled(inputs.PICTURES),)),
    "ledger entries": (ledger_entries, lambda world: (inputs.ledger_entries(world.entry.read_bytes()),)),
    "names of sweeps": (sweep_names, lambda _: (inputs.names,)),
    "names of runs and trials": (run_names, lambda _: (inputs.names,)),
}


def fuzz(kind: str, world: World, num_examples: int, seed: int | None = None) -> Tally:
    """Put `num_examples` inputs of a kind before its law.

    Raises:
        Exception: the first input that breaks it, made small; hypothesis prints it.
    """
    law, strategies = KINDS[kind]
    tally = Tally()
    here = Path.cwd()
    os.chdir(world.dir)  # what is written by a relative name lands here and is noticed

    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.tuples(*strategies(world)))
    def run(arguments: tuple[Any, ...]) -> None:
        law(world, tally, *arguments)

    try:
        run()
    finally:
        os.chdir(here)
        shutil.rmtree(world.dir / "export", ignore_errors=True)
    return tally
