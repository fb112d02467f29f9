"""Run folders that are watched: read anew when their files have changed, rendered once for all who look.

A look at the files costs a call of the file system a trial, a rendering of a large run some seconds. So one thread does
either, at most once a second and with a fifth of a core, and everybody else gets what it had made before.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from sweeps.ledger.folder import RunFolder
from sweeps.report.page import render_live_content, render_live_page
from sweeps.report.pictures import LinkedPictures
from sweeps.results.results import Results, TrialReader, read_results
from sweeps.serving.messages import Body
from sweeps.watch.pages import Card, problem_content, problem_page
from training.errors import UserError
from training.stats import STATS_FILE

SECONDS_BETWEEN_LOOKS = 1.0
SHARE_OF_A_CORE = 0.2
"""What looking and rendering may take, in a driver too."""
SECONDS_AT_WORK = 600.0
"""A running trial writes a line a step. With a storage, no other sign of its driver is seen from here."""
SECONDS_BETWEEN_FETCHES = 30.0
"""What a storage did not have, or was away with, it is asked for again."""

T = TypeVar("T")
Files = dict[str, tuple[int, int]]
"""Path -> time of its last change in ns, and size in bytes."""


class Latest(Generic[T]):
    """The newest state of something that takes long to make: one thread makes it, others get the one before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: tuple[object, T] | None = None

    def get(self, key: object, make: Callable[[], T]) -> T:
        """What was made for `key`, or for the key before it while another thread makes it."""
        if self._made is not None and not self._lock.acquire(blocking=False):
            return self._made[1]
        if self._made is None:
            self._lock.acquire()
        try:
            if self._made is None or self._made[0] != key:
                self._made = (key, make())
            return self._made[1]
        finally:
            self._lock.release()


@dataclass(frozen=True)
class Seen:
    """What a look at a run folder finds, without reading a file."""

    exists: bool
    files: Files
    """Of all that a page is made from."""
    has_driver: bool
    """Whether a driver holds the run."""

    @classmethod
    def of(cls, folder: RunFolder) -> Seen:
        """Look."""
        has_driver = False
        with suppress(OSError):  # a lease that may not be read says nothing
            has_driver = folder.has_driver()
        return cls(folder.dir.is_dir(), read_stamps(folder), has_driver)

    @property
    def changed(self) -> float:
        """When the newest file changed, in seconds since 1970; 0 where there is none."""
        return max((when for when, _ in self.files.values()), default=0) / 1e9


@dataclass(frozen=True, eq=False)
class State:
    """A run as its files had it at one moment; no two are equal."""

    results: Results | None
    problem: str | None
    """Why there are none."""
    seen: Seen


class WatchedRun:
    """One run folder.

    Args:
        name: what it is called in addresses.
        run_dir: the folder; it need not be there (any more, or yet).
        now: seconds by a clock that is never set back.
    """

    def __init__(self, name: str, run_dir: Path, now: Callable[[], float] = time.monotonic) -> None:
        self.name, self.folder, self._now = name, RunFolder(run_dir), now
        self._next_look, self._seconds_spent = now(), 0.0
        self._look_lock, self._state = threading.Lock(), Latest[State]()
        self._reader = TrialReader()
        self._seen: Seen | None = None
        self._content, self._card = Latest[Body](), Latest[Card]()
        self._pages = {theme: Latest[Body]() for theme in (None, "light", "dark")}
        self._fetching: threading.Thread | None = None
        self._num_fetched, self._next_fetch = 0, 0.0

    @property
    def state(self) -> State:
        """As the files have it now, or had it a second ago."""
        with self._look_lock:
            is_due = self._seen is None or self._now() >= self._next_look
            if self._seen is None or is_due:
                self._seen = self._timed(lambda: Seen.of(self.folder))
                pause = max(SECONDS_BETWEEN_LOOKS, self._seconds_spent / SHARE_OF_A_CORE)
                self._next_look, self._seconds_spent = self._now() + pause, 0.0
            seen = self._seen
        state = self._state.get((seen, self._num_fetched), lambda: self._read(seen))
        if is_due and state.results is not None:
            self._fetch_missing_pictures(state.results)
        return state

    @property
    def is_active(self) -> bool:
        """Whether a driver gives signs of life."""
        state = self.state
        if state.seen.has_driver:
            return True
        is_running = state.results is not None and bool(state.results.num_by_status.get("running"))
        return is_running and time.time() - state.seen.changed < SECONDS_AT_WORK

    def content(self) -> Body:
        """What the page follows."""
        state = self.state
        return self._content.get(state, lambda: self._rendered(state, render_live_content, problem_content))

    def page(self, assets: str, theme: str | None, index: str | None) -> Body:
        """The page.

        Args:
            assets: address of its scripts and styles.
            theme: `light`, `dark` or None.
            index: address of the page of all runs, if there is one.
        """
        state = self.state

        def whole(results: Results) -> str:
            return render_live_page(results, assets, theme=theme, index=index)

        def without(problem: str) -> str:
            return problem_page(self.name, problem, assets, theme, index)

        return self._pages[theme].get((state, index), lambda: self._rendered(state, whole, without))

    def card(self) -> Card:
        """The run in brief."""
        state = self.state

        def make() -> Card:
            try:
                return Card.of(self.name, state.results, state.problem, state.seen.changed)
            except (UserError, OSError) as error:
                return Card.of(self.name, None, self._said(error), state.seen.changed)

        return self._card.get(state, make)

    def _read(self, seen: Seen) -> State:
        try:
            if not seen.exists:
                raise UserError(f"{self.name}: the run folder is not there (any more)")
            if not seen.files:
                raise UserError(f"{self.name}: the sweep has not written anything yet")
            results = self._timed(lambda: read_results(self.folder.dir, self._reader))
        except (UserError, OSError) as error:
            return State(None, self._said(error), seen)
        return State(replace(results, warnings=tuple(map(self._public, results.warnings))), None, seen)

    def _rendered(self, state: State, whole: Callable[[Results], str], without: Callable[[str], str]) -> Body:
        if state.results is None:
            return Body.of_html(without(state.problem or ""))
        results = state.results
        try:
            html = self._timed(lambda: whole(results))
        except (UserError, OSError) as error:  # the folder went away meanwhile
            html = without(self._said(error))
        return Body.of_html(html)

    def _timed(self, work: Callable[[], T]) -> T:
        """Do it, and count the time that it takes before the next look at the files is due."""
        start = self._now()
        outcome = work()
        self._seconds_spent += self._now() - start
        return outcome

    def _said(self, error: UserError | OSError) -> str:
        return self._public(str(error) if isinstance(error, UserError) else f"{error.filename}: {error.strerror}")

    def _public(self, said: str) -> str:
        """For readers whom the folders of the machine do not concern."""
        return said.replace(str(self.folder.dir), self.name)

    # --- pictures that lie in the storage alone

    def _fetch_missing_pictures(self, results: Results) -> None:
        """Fetch, beside the answers, what the page shows and this machine lacks."""
        if results.config is None or results.config.storage is None or self._now() < self._next_fetch:
            return
        if self._fetching is not None and self._fetching.is_alive():
            return
        missing = [images for images in _shown_pictures(results) if not (self.folder.dir / images).exists()]
        if missing:
            self._fetching = threading.Thread(
                target=self._fetch, args=(results.config.storage, missing), name="pictures", daemon=True
            )
            self._fetching.start()

    def _fetch(self, storage: str, missing: list[str]) -> None:
        from sweeps.ledger.mirror import bring_here  # asked for only where there is a storage

        for images in missing:
            try:
                bring_here(self.folder, storage, images)
            except (UserError, OSError):  # the page stands without them; a storage that is away may come back
                break
            self._num_fetched += 1
        self._next_fetch = self._now() + SECONDS_BETWEEN_FETCHES


def _shown_pictures(results: Results) -> list[str]:
    """Folders of the pictures that the page shows, those of the best checkpoints first."""
    best = results.best_of_each_trial()[: LinkedPictures.max_grid_trials]
    first = [*([results.base] if results.base else []), *best]
    trials = {row.trial for row in best}
    rows = [*first, *(row for row in results.rows if row.trial in trials)]
    return list(dict.fromkeys(row.images for row in rows if row.images))


class Runs:
    """What is watched: one run folder, or all runs in a folder of them.

    Args:
        path: either; an empty folder becomes what is put into it.
        is_run: it is a run's, although nothing may lie in it yet.
        now: seconds by a clock that is never set back.
    """

    def __init__(self, path: Path, *, is_run: bool = False, now: Callable[[], float] = time.monotonic) -> None:
        self.path, self._now = path.resolve(), now
        self._is_run = is_run
        self._known: dict[str, WatchedRun] = {}
        self._lock = threading.Lock()

    @property
    def single(self) -> WatchedRun | None:
        """The run, where it is one; it stays one when its files go."""
        self._is_run = self._is_run or is_run_folder(self.path)
        return self._watched(self.path.name, self.path) if self._is_run else None

    def named(self, name: str) -> WatchedRun | None:
        """The run of this name: one that is there, or was when somebody looked."""
        single = self.single
        if single is not None:
            return single if single.name == name else None
        if name in self._known:
            return self._known[name]
        is_there = not name.startswith(".") and is_run_folder(self.path / name)
        return self._watched(name, self.path / name) if is_there else None

    def all(self) -> list[WatchedRun]:
        """Every run that is there now, the one with the newest file first."""
        single = self.single
        found = [single] if single else [self._watched(name, self.path / name) for name in self._names()]
        return sorted(found, key=lambda run: (-run.state.seen.changed, run.name))

    def in_brief(self) -> list[WatchedRun]:
        """The runs that give signs of life; where none does, the newest, if there is any."""
        found = self.all()
        return [run for run in found if run.is_active] or found[:1]

    def _names(self) -> Iterator[str]:
        with suppress(OSError), os.scandir(self.path) as entries:
            yield from (e.name for e in entries if not e.name.startswith(".") and is_run_folder(Path(e.path)))

    def _watched(self, name: str, run_dir: Path) -> WatchedRun:
        with self._lock:
            return self._known.setdefault(name, WatchedRun(name, run_dir, self._now))


def is_run_folder(path: Path) -> bool:
    """Whether a sweep writes or has written there; its first file is a lock."""
    with suppress(OSError, ValueError):
        folder = RunFolder(path)
        return any(part.exists() for part in (folder.sweep_file, folder.trials_dir, folder.identity_file)) or (
            (folder.dir / ".lock").is_file()
        )
    return False


def read_stamps(folder: RunFolder) -> Files:
    """Of all files that a page is made from; one that cannot be looked at has none."""
    files: Files = {}
    places = [str(folder.sweep_file), str(folder.confirm_file), str(folder.votes_file)]
    for parent, names in (
        (folder.trials_dir, ("trial.json", STATS_FILE)),
        (folder.confirm.trials_dir, ("trial.json",)),
        (folder.renders_dir, ()),
        (folder.dataset_dir, ()),
    ):
        with suppress(OSError), os.scandir(parent) as entries:
            for entry in entries:
                places += [os.path.join(entry.path, name) for name in names] or [entry.path]  # noqa: PTH118 -- hundreds
    for place in places:
        with suppress(OSError):
            stat = os.stat(place)  # noqa: PTH116 -- hundreds
            files[place] = (stat.st_mtime_ns, stat.st_size)
    return files
