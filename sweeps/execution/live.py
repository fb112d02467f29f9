"""What a running sweep shows: a table in the terminal or lines in a job's log, and the table as a file in Ray's logs.

All of it is read from the ledger's records, and ordered as every other table of a run is.
"""

from __future__ import annotations

import bisect
import itertools
import math
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from sweeps.config import ChampionConfig
from sweeps.execution.lines import scores_text, step_text
from sweeps.ledger.records import BASE_TRIAL, ScoredCheckpoint, Status, TrialRecord
from sweeps.results.rule import ChampionRule
from sweeps.wording import duration_text, learning_rate_text
from training.config import MethodConfig

MAX_ROWS = 30
"""Trials in the terminal's table; the leaderboard file has all."""
SHARE_OF_TIME = 0.05
"""That writing the leaderboard file may take, and drawing the table: a driver has other things to do."""
STATUS_STYLES = {"running": "cyan", "finished": "green", "stopped": "yellow", "failed": "red", "waiting": "dim"}
REASON_LENGTH = 150
"""Characters of a failure's reason below the leaderboard; `show` and trial.json have all of it."""


class Best(NamedTuple):
    """The champion so far."""

    trial: str
    checkpoint: ScoredCheckpoint

    def __str__(self) -> str:
        """Who, how good, and when."""
        return f"{self.trial} {self.checkpoint.face_similarity:.3f} at step {self.checkpoint.step}"


class _Standing(NamedTuple):
    """What the board needs of a trial, worked out once for each of its states."""

    place: tuple[float | str, ...]
    """Sorts as the run's leaderboard does: by the best checkpoint, then those without a score; equals by name."""
    record: TrialRecord
    """Without the pictures' own scores, which nothing here shows and thousands of trials have many of."""
    config: MethodConfig
    best: ScoredCheckpoint | None


class Board:
    """The state of all trials, as people want to see it.

    Counts, sums and the order of thousands of trials are kept up to date, so that a change costs the same whatever
    their number.

    Args:
        name: the sweep's.
        champion: the rule by which the best is first.
        num_planned: trials in all.
    """

    def __init__(self, name: str, champion: ChampionConfig, num_planned: int) -> None:
        self.name, self.num_planned = name, num_planned
        self._champion = champion
        self.base: TrialRecord | None = None
        self._rule = ChampionRule.of(champion, None)
        self.running: set[str] = set()
        """Trials that have a worker now."""
        self._standings: dict[str, _Standing] = {}
        self._order: list[tuple[tuple[float | str, ...], str]] = []
        """Place and trial of every standing, best first."""
        self._statuses: Counter[Status] = Counter()
        self._steps_done = self._steps_left = self._steps_planned = self.num_ended = 0
        """Of all trials together; left is what those have to go that have not ended. The last: trials that need no
        more work."""
        self._seconds_spent = 0.0
        """By trials that have a score."""

    @property
    def records(self) -> dict[str, TrialRecord]:
        """Trial -> its newest state, without the scores of single pictures."""
        return {trial: standing.record for trial, standing in self._standings.items()}

    def put(self, record: TrialRecord) -> None:
        """Take up a record's newest state."""
        record = _without_pictures(record)
        if record.trial != BASE_TRIAL:
            self._take_off(record.trial)
            self._put_up(record)
            return
        self.base, self._rule = record, ChampionRule.of(self._champion, record)
        for known in list(self.records.values()):  # the rule is another now
            self._take_off(known.trial)
            self._put_up(known)

    def _put_up(self, record: TrialRecord) -> None:
        config = record.method_config
        best = self._rule.best(record.checkpoints) if record.checkpoints else None
        rank = getattr(config, "rank", None)
        rank_or_last = math.inf if rank is None else rank
        place = (1, record.trial) if best is None else (0, *self._rule.order(best), rank_or_last, record.trial)
        standing = self._standings[record.trial] = _Standing(place, record, config, best)
        bisect.insort(self._order, (place, record.trial))
        self._count(standing, 1)

    def _take_off(self, trial: str) -> None:
        standing = self._standings.pop(trial, None)
        if standing is not None:
            del self._order[bisect.bisect_left(self._order, (standing.place, trial))]
            self._count(standing, -1)

    def _count(self, standing: _Standing, sign: int) -> None:
        record, planned = standing.record, standing.config.max_train_steps
        done = _steps_done(record)
        self._statuses[record.status] += sign
        self._steps_done += sign * done
        self._steps_planned += sign * planned
        if record.is_over:
            self.num_ended += sign
        else:
            self._steps_left += sign * (planned - done)
        if record.checkpoints:
            self._seconds_spent += sign * record.seconds

    def status(self, record: TrialRecord) -> str:
        """The ledger's status; `waiting` where no worker has the trial yet."""
        if record.status == "running" and record.trial not in self.running:
            return "waiting"
        return record.status

    def num_by_status(self) -> Mapping[str, int]:
        """Trials in each status, all planned ones together: what the search has not asked for yet waits."""
        at_work = sum(
            trial in self._standings and self._standings[trial].record.status == "running" for trial in self.running
        )
        counts = Counter(dict.fromkeys(STATUS_STYLES, 0))
        counts.update(self._statuses)
        counts["waiting"] += counts["running"] - at_work + max(0, self.num_planned - len(self._standings))
        counts["running"] = at_work
        return counts

    def seconds_left(self) -> float | None:
        """An estimate from the steps done so far, or None before anything is known."""
        if not self._steps_done:
            return None
        num_unknown = max(0, self.num_planned - len(self._standings))
        steps_left = self._steps_left + num_unknown * self._steps_planned / len(self._standings)
        at_work = {self._pack_of(trial) or trial for trial in self.running}
        return steps_left * self._seconds_spent / self._steps_done / max(1, len(at_work))

    def _pack_of(self, trial: str) -> tuple[str, ...]:
        standing = self._standings.get(trial)
        return () if standing is None else standing.record.pack

    def best_first(self) -> list[TrialRecord]:
        """Scored trials by their best checkpoints, in the order of the run's leaderboard, then the others by name."""
        return [standing.record for standing in self._in_order()]

    def _in_order(self) -> Iterator[_Standing]:
        return (self._standings[trial] for _, trial in self._order)

    def best(self) -> Best | None:
        """The champion so far; None while the base model is not scored or no checkpoint qualifies."""
        first = next(self._in_order(), None)
        if self.base is None or first is None or first.best is None or not self._rule.qualifies(first.best):
            return None
        return Best(first.record.trial, first.best)

    @property
    def num_rows(self) -> int:
        """Of the whole table."""
        return len(self._standings) + (self.base is not None)

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The table's cells, base model first; a trial's scores are its best checkpoint's."""
        if self.base is not None:
            yield ("", BASE_TRIAL, "", "", "", *_score_cells(self.base.checkpoints[0]), self.base.status)
        best = self.best()
        for standing in self._in_order():
            yield self._row(standing, "*" if best and standing.record.trial == best.trial else "")

    def _row(self, standing: _Standing, mark: str) -> tuple[str, ...]:
        record, config = standing.record, standing.config
        return (
            mark,
            record.trial,
            str(getattr(config, "rank", "")),
            learning_rate_text(config.learning_rate),
            f"{_steps_done(record)}/{config.max_train_steps}",
            *_score_cells(standing.best),
            self.status(record),
        )

    def failures(self) -> list[str]:
        """A line for each failed trial: its reason, shortened."""
        return [
            textwrap.shorten(f"failed: {record.trial}: {record.reason}", REASON_LENGTH, placeholder=" ...")
            for record in self.best_first()
            if record.status == "failed"
        ]

    def progress(self) -> str:
        """Trials ended, of all."""
        return f"{self.num_ended}/{self.num_planned}"

    def headline(self) -> str:
        """One line on the whole sweep."""
        left = self.seconds_left()
        time_left = "" if left is None or self.num_ended >= self.num_planned else f", about {duration_text(left)} left"
        return (
            f"{self.name}: {self.num_ended} of {self.num_planned} trials ended, {len(self.running)} running{time_left}"
        )

    def opening(self) -> str:
        """One line before the first trial."""
        return f"{self.name}: {self.num_planned} trials planned, {self.num_ended} ended by earlier runs"

    def summary(self) -> str:
        """One line after the last trial."""
        counts = ", ".join(f"{count} {status}" for status, count in self.num_by_status().items() if count)
        best = self.best()
        return f"{self.name}: {counts}; {f'best {best}' if best else 'no champion'}"


COLUMNS = (
    "",
    "trial",
    "rank",
    "learning rate",
    "step",
    "best step",
    "face similarity",
    "prompt alignment",
    "status",
)
"""`*` stands before the champion, as in `show`."""


def _score_cells(scores: ScoredCheckpoint | None) -> tuple[str, str, str]:
    """Step and scores."""
    if scores is None:
        return ("", "", "")
    return (str(scores.step), f"{scores.face_similarity:.3f}", f"{scores.prompt_alignment:.3f}")


def _without_pictures(record: TrialRecord) -> TrialRecord:
    checkpoints = tuple(scores.model_copy(update={"image_scores": ()}) for scores in record.checkpoints)
    return record.model_copy(update={"checkpoints": checkpoints})


def _steps_done(record: TrialRecord) -> int:
    return record.checkpoints[-1].step if record.checkpoints else 0


class Pace:
    """Leaves out what would take more than a share of the time: what is done again and again, and takes ever longer.

    Args:
        share: of the time, in (0, 1].
        now: seconds by a clock that is never set back.
    """

    def __init__(self, share: float, now: Callable[[], float]) -> None:
        self._share, self._now = share, now
        self._due = -math.inf
        self.is_behind = False
        """Was it left out since it was last done?"""

    def wanted(self, work: Callable[[], None], *, at_once: bool = False) -> None:
        """Do it, or leave it out for now."""
        self.is_behind = True
        self.catch_up(work, at_once=at_once)

    def catch_up(self, work: Callable[[], None], *, at_once: bool = False) -> None:
        """Do what was left out, if it is time."""
        if not self.is_behind or not (at_once or self._now() >= self._due):
            return
        start = self._now()
        work()
        self._due = self._now() + (self._now() - start) * (1 / self._share - 1)
        self.is_behind = False


class Display:
    """Shows a board: live where the console is a terminal, a line a change where it is not.

    Args:
        board: what to show.
        console: where; None shows nothing.
        leaderboard: a file to keep up to date, or None.
        now: seconds by a clock that is never set back.
    """

    def __init__(
        self,
        board: Board,
        console: Console | None,
        leaderboard: Path | None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board, self._console, self._leaderboard, self._now = board, console, leaderboard, now
        self._live: Live | None = None
        self._drawn = 0.0
        self._said_best = board.best()
        self._drawing, self._writing = Pace(SHARE_OF_TIME, now), Pace(SHARE_OF_TIME, now)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While this lasts, the table stands in the terminal; elsewhere a line says what is ahead, and one what was."""
        self._writing.wanted(self._write_leaderboard)
        try:
            if self._console is None or not self._console.is_terminal:
                self._said_best = self._board.best()
                self.say(self._board.opening())
                try:
                    yield
                finally:
                    self.say(self._board.summary())
                return
            with Live(self._table(), console=self._console, auto_refresh=False) as self._live:
                yield
                self._draw()
        finally:
            self._writing.catch_up(self._write_leaderboard, at_once=True)

    def changed(self, record: TrialRecord) -> None:
        """A record has a new state worth showing."""
        self._board.put(record)
        self._writing.wanted(self._write_leaderboard)
        if self._live is None:
            self.say(self._line(record))
        else:
            self._drawing.wanted(self._draw)

    def say(self, text: str) -> None:
        """A line of its own, above the live table."""
        if self._console is not None:
            self._console.print(Text(text), soft_wrap=True)

    def tick(self) -> None:
        """Show what was left out, if it is time; redraw the table once a second also where nothing has changed."""
        self._writing.catch_up(self._write_leaderboard)
        if self._live is not None:
            self._drawing.is_behind |= self._now() - self._drawn > 1
            self._drawing.catch_up(self._draw)

    def _draw(self) -> None:
        if self._live is not None:
            self._drawn = self._now()
            self._live.update(self._table(), refresh=True)

    def _line(self, record: TrialRecord) -> str:
        """The change, and the best so far where that is news or a trial has ended."""
        line = f"[{self._board.progress()}] {record.trial}  {self._board.status(record)}"
        if record.status == "failed":
            line += f"  {record.reason}"
        elif record.checkpoints:
            newest = record.checkpoints[-1]
            line += f"  {step_text(newest.step, record.method_config.max_train_steps)}  {scores_text(newest)}"
        best = self._board.best()
        if best is not None and (record.status != "running" or best != self._said_best):
            line += f"  best so far {best}"
        self._said_best = best
        return line

    def _table(self) -> Group:
        columns = (Column(name.replace(" ", "\n"), no_wrap=True) for name in COLUMNS)  # an id in two lines is none
        table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for row in itertools.islice(self._board.rows(), MAX_ROWS):
            table.add_row(*(Text(cell) for cell in row[:-1]), Text(row[-1], style=STATUS_STYLES.get(row[-1], "")))
        num_more = self._board.num_rows - MAX_ROWS
        more = [Text(f"and {num_more} more")] if num_more > 0 else []
        return Group(table, *more, Text(self._board.headline()))

    def _write_leaderboard(self) -> None:
        if self._leaderboard is None:
            return
        lines = [self._board.headline(), "", *_piped([COLUMNS, *self._board.rows()]), "", *self._board.failures()]
        try:
            self._leaderboard.write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError:
            self._leaderboard = None  # Ray's session folder is a convenience: a sweep does not end for it


def _piped(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table for a viewer that makes every run of blanks one blank: lines between columns, `-` in empty cells."""
    rows = [[cell or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [" | ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def leaderboard_file(name: str) -> Path | None:
    """`sweep_<name>_leaderboard.log` in the log folder of Ray's session, which the dashboard lists under Logs."""
    from ray._private.worker import _global_node  # Ray has no public name for its session's folder

    return None if _global_node is None else Path(_global_node.get_logs_dir_path()) / f"sweep_{name}_leaderboard.log"


def fill_board(board: Board, base: TrialRecord | None, trials: Sequence[TrialRecord]) -> None:
    """Take up what earlier drivers have done."""
    for record in [*([base] if base else []), *trials]:
        board.put(record)
