"""What a running sweep shows: a table in the terminal, the same as a file in Ray's logs, two gauges.

All of it is read from the ledger's records. Labels of the gauges are trial ids and a hash of the sweep's name: Ray's
metrics port answers anybody who can reach it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sweeps.config import ChampionConfig
from sweeps.ledger.records import BASE_TRIAL, TrialRecord
from sweeps.results.rule import ChampionRule
from sweeps.wording import duration_text, learning_rate_text

MAX_ROWS = 30
"""Trials in the terminal's table; the leaderboard file has all."""
STATUS_STYLES = {"running": "cyan", "finished": "green", "stopped": "yellow", "failed": "red", "waiting": "dim"}


class Board:
    """The state of all trials, as people want to see it.

    Args:
        name: the sweep's.
        champion: the rule by which the best is first.
        num_planned: trials in all.
    """

    def __init__(self, name: str, champion: ChampionConfig, num_planned: int) -> None:
        self.name, self._champion, self._num_planned = name, champion, num_planned
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

    def seconds_left(self) -> float | None:
        """An estimate from the steps done so far, or None before anything is known."""
        done_steps = sum(_steps_done(record) for record in self.records.values())
        spent = sum(record.seconds for record in self.records.values() if record.checkpoints)
        if not done_steps or not self.records:
            return None
        known = [_steps_left(record) for record in self.records.values() if not record.is_over]
        num_unknown = max(0, self._num_planned - len(self.records))
        mean_steps = sum(_steps(record) for record in self.records.values()) / len(self.records)
        steps_left = sum(known) + num_unknown * mean_steps
        at_once = max(1, len(self.running))
        return steps_left * spent / done_steps / at_once

    def best_first(self) -> list[TrialRecord]:
        """Scored trials by the champion's rule on their newest scores, then the others."""
        rule = ChampionRule.of(self._champion, self.base)
        scored = [record for record in self.records.values() if record.checkpoints]
        scored.sort(key=lambda record: (*rule.order(record.checkpoints[-1]), record.trial))
        return [*scored, *sorted((r for r in self.records.values() if not r.checkpoints), key=lambda r: r.trial)]

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The table's cells, base model first."""
        if self.base is not None:
            scores = self.base.checkpoints[0]
            yield (
                BASE_TRIAL,
                "base",
                "",
                "",
                "0",
                f"{scores.face_similarity:.3f}",
                f"{scores.prompt_alignment:.3f}",
                "",
            )
        for record in self.best_first():
            yield self._row(record)

    def _row(self, record: TrialRecord) -> tuple[str, ...]:
        config = record.method_config
        newest = record.checkpoints[-1] if record.checkpoints else None
        return (
            record.trial,
            record.method,
            str(getattr(config, "rank", "")),
            learning_rate_text(config.learning_rate),
            f"{_steps_done(record)}/{config.max_train_steps}",
            f"{newest.face_similarity:.3f}" if newest else "",
            f"{newest.prompt_alignment:.3f}" if newest else "",
            self.status(record),
        )

    def progress(self) -> str:
        """Trials ended, of all."""
        return f"{self.num_ended}/{self._num_planned}"

    def headline(self) -> str:
        """One line on the whole sweep."""
        left = self.seconds_left()
        time_left = "" if left is None or self.num_ended >= self._num_planned else f", about {duration_text(left)} left"
        return (
            f"{self.name}: {self.num_ended} of {self._num_planned} trials ended, {len(self.running)} running{time_left}"
        )


COLUMNS = ("trial", "method", "rank", "learning rate", "step", "face similarity", "prompt alignment", "status")


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

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While this lasts, the table stands in the terminal."""
        if self._console is None or not self._console.is_terminal:
            yield
            return
        with Live(self._table(), console=self._console, auto_refresh=False) as self._live:
            yield
            self._live.update(self._table(), refresh=True)

    def changed(self, record: TrialRecord) -> None:
        """A record has a new state worth showing."""
        self._board.put(record)
        self._write_leaderboard()
        if self._console is not None and self._live is None:
            self._console.print(Text(self._line(record)), soft_wrap=True)
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
        line = f"[{self._board.progress()}] {record.trial}  {self._board.status(record)}"
        if record.status == "failed":
            return f"{line}  {record.reason}"
        if record.checkpoints:
            newest = record.checkpoints[-1]
            steps = newest.step if record.trial == BASE_TRIAL else f"{newest.step}/{_steps(record)}"
            line += f"  step {steps}  face {newest.face_similarity:.3f}  prompt {newest.prompt_alignment:.3f}"
        return line

    def _table(self) -> Group:
        table = Table(*COLUMNS)
        rows = list(self._board.rows())
        for row in rows[:MAX_ROWS]:
            table.add_row(*(Text(cell) for cell in row[:-1]), Text(row[-1], style=STATUS_STYLES.get(row[-1], "")))
        more = [Text(f"and {len(rows) - MAX_ROWS} more")] if len(rows) > MAX_ROWS else []
        return Group(table, *more, Text(self._board.headline()))

    def _write_leaderboard(self) -> None:
        if self._leaderboard is None:
            return
        rows = [COLUMNS, *self._board.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        try:
            self._leaderboard.write_text("\n".join([self._board.headline(), "", *lines, ""]), encoding="utf-8")
        except OSError:
            self._leaderboard = None  # Ray's session folder is a convenience: a sweep does not end for it


class Gauges:
    """`face_similarity` and `prompt_alignment` of each trial's newest checkpoint, for Ray's metrics port."""

    def __init__(self, sweep_name: str) -> None:
        from ray.util.metrics import Gauge

        self._tags = {"sweep": hashlib.sha256(sweep_name.encode()).hexdigest()[:8]}
        keys = ("trial", "sweep")
        self._face_similarity = Gauge("face_similarity", "Mean cosine to the reference face", tag_keys=keys)
        self._prompt_alignment = Gauge("prompt_alignment", "Mean CLIP cosine to the prompt", tag_keys=keys)

    def set(self, record: TrialRecord) -> None:
        """Publish the newest scores."""
        if record.checkpoints:
            tags = {**self._tags, "trial": record.trial}
            self._face_similarity.set(record.checkpoints[-1].face_similarity, tags)
            self._prompt_alignment.set(record.checkpoints[-1].prompt_alignment, tags)


def leaderboard_file(name: str) -> Path | None:
    """`sweep_<name>_leaderboard.log` in the log folder of Ray's session, which the dashboard lists under Logs."""
    from ray._private.worker import _global_node  # Ray has no public name for its session's folder

    return None if _global_node is None else Path(_global_node.get_logs_dir_path()) / f"sweep_{name}_leaderboard.log"


def fill_board(board: Board, base: TrialRecord | None, trials: Sequence[TrialRecord]) -> None:
    """Take up what earlier drivers have done."""
    for record in [*([base] if base else []), *trials]:
        board.put(record)
