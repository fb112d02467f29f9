"""What a running sweep shows: a table in the terminal or lines in a job's log, and the table as a file in Ray's logs.

All of it is read from the ledger's records, and ordered as every other table of a run is.
"""

from __future__ import annotations

import math
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from sweeps.ledger.records import BASE_TRIAL, ScoredCheckpoint, TrialRecord
from sweeps.results.rule import ChampionRule
from sweeps.wording import duration_text, learning_rate_text

MAX_ROWS = 30
"""Trials in the terminal's table; the leaderboard file has all."""
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


class Board:
    """The state of all trials, as people want to see it.

    Args:
        name: the sweep's.
        champion: the rule by which the best is first.
        num_planned: trials in all.
    """

    def __init__(self, name: str, champion: ChampionConfig, num_planned: int) -> None:
        self.name, self.num_planned = name, num_planned
        self._champion = champion
        self.records: dict[str, TrialRecord] = {}
        self.base: TrialRecord | None = None
        self.running: set[str] = set()
        """Trials that have a worker now."""

    def put(self, record: TrialRecord) -> None:
        """Take up a record's newest state."""
        if record.trial == BASE_TRIAL:
            self.base = record
        else:
            self.records[record.trial] = record

    def status(self, record: TrialRecord) -> str:
        """The ledger's status; `waiting` where no worker has the trial yet."""
        if record.status == "running" and record.trial not in self.running:
            return "waiting"
        return record.status

    @property
    def num_ended(self) -> int:
        """Trials that need no more work."""
        return sum(record.is_over for record in self.records.values())

    def num_by_status(self) -> Mapping[str, int]:
        """Trials in each status, all planned ones together: what the search has not asked for yet waits."""
        counts = Counter(dict.fromkeys(STATUS_STYLES, 0))
        counts.update(self.status(record) for record in self.records.values())
        counts["waiting"] += max(0, self.num_planned - len(self.records))
        return counts

    def seconds_left(self) -> float | None:
        """An estimate from the steps done so far, or None before anything is known."""
        done_steps = sum(_steps_done(record) for record in self.records.values())
        spent = sum(record.seconds for record in self.records.values() if record.checkpoints)
        if not done_steps or not self.records:
            return None
        known = [_steps_left(record) for record in self.records.values() if not record.is_over]
        num_unknown = max(0, self.num_planned - len(self.records))
        mean_steps = sum(_steps(record) for record in self.records.values()) / len(self.records)
        steps_left = sum(known) + num_unknown * mean_steps
        at_once = max(1, len(self.running))
        return steps_left * spent / done_steps / at_once

    def best_first(self) -> list[TrialRecord]:
        """Scored trials by their best checkpoints, in the order of the run's leaderboard, then the others by name."""
        rule = self._rule

        def key(record: TrialRecord) -> tuple[float, ...]:
            rank = getattr(record.method_config, "rank", None)
            return (*rule.order(rule.best(record.checkpoints)), math.inf if rank is None else rank)

        by_name = [self.records[trial] for trial in sorted(self.records)]
        scored = [record for record in by_name if record.checkpoints]
        return [*sorted(scored, key=key), *(record for record in by_name if not record.checkpoints)]

    def best(self) -> Best | None:
        """The champion so far; None while the base model is not scored or no checkpoint qualifies."""
        first = next(iter(self.best_first()), None)
        if self.base is None or first is None or not first.checkpoints:
            return None
        checkpoint = self._rule.best(first.checkpoints)
        return Best(first.trial, checkpoint) if self._rule.qualifies(checkpoint) else None

    @property
    def _rule(self) -> ChampionRule:
        return ChampionRule.of(self._champion, self.base)

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The table's cells, base model first; a trial's scores are its best checkpoint's."""
        if self.base is not None:
            yield ("", BASE_TRIAL, "", "", "", *_score_cells(self.base.checkpoints[0]), self.base.status)
        best = self.best()
        for record in self.best_first():
            yield self._row(record, "*" if best and record.trial == best.trial else "")

    def _row(self, record: TrialRecord, mark: str) -> tuple[str, ...]:
        config = record.method_config
        return (
            mark,
            record.trial,
            str(getattr(config, "rank", "")),
            learning_rate_text(config.learning_rate),
            f"{_steps_done(record)}/{config.max_train_steps}",
            *_score_cells(self._rule.best(record.checkpoints) if record.checkpoints else None),
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


def _steps(record: TrialRecord) -> int:
    return record.method_config.max_train_steps


def _steps_done(record: TrialRecord) -> int:
    return record.checkpoints[-1].step if record.checkpoints else 0


def _steps_left(record: TrialRecord) -> int:
    return _steps(record) - _steps_done(record)


class Display:
    """Shows a board: live where the console is a terminal, a line a change where it is not.

    Args:
        board: what to show.
        console: where; None shows nothing.
        leaderboard: a file to keep up to date, or None.
    """

    def __init__(self, board: Board, console: Console | None, leaderboard: Path | None) -> None:
        self._board, self._console, self._leaderboard = board, console, leaderboard
        self._live: Live | None = None
        self._drawn = 0.0
        self._said_best = board.best()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While this lasts, the table stands in the terminal; elsewhere a line says what is ahead, and one what was."""
        self._write_leaderboard()
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
            self._live.update(self._table(), refresh=True)

    def changed(self, record: TrialRecord) -> None:
        """A record has a new state worth showing."""
        self._board.put(record)
        self._write_leaderboard()
        if self._live is None:
            self.say(self._line(record))
        self.tick(at_once=True)

    def say(self, text: str) -> None:
        """A line of its own, above the live table."""
        if self._console is not None:
            self._console.print(Text(text), soft_wrap=True)

    def tick(self, at_once: bool = False) -> None:
        """Redraw, at most once a second unless something has changed."""
        if self._live is not None and (at_once or time.monotonic() - self._drawn > 1):
            self._drawn = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def _line(self, record: TrialRecord) -> str:
        """The change, and the best so far where that is news or a trial has ended."""
        line = f"[{self._board.progress()}] {record.trial}  {self._board.status(record)}"
        if record.status == "failed":
            line += f"  {record.reason}"
        elif record.checkpoints:
            newest = record.checkpoints[-1]
            line += f"  {step_text(newest.step, _steps(record))}  {scores_text(newest)}"
        best = self._board.best()
        if best is not None and (record.status != "running" or best != self._said_best):
            line += f"  best so far {best}"
        self._said_best = best
        return line

    def _table(self) -> Group:
        columns = (Column(name.replace(" ", "\n"), no_wrap=True) for name in COLUMNS)  # an id in two lines is none
        table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        rows = list(self._board.rows())
        for row in rows[:MAX_ROWS]:
            table.add_row(*(Text(cell) for cell in row[:-1]), Text(row[-1], style=STATUS_STYLES.get(row[-1], "")))
        more = [Text(f"and {len(rows) - MAX_ROWS} more")] if len(rows) > MAX_ROWS else []
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
