"""The report's plots: leaderboard rows in, SVG elements out, to stand inside an HTML page.

Colours are the variables of the page (`var(--lora)`, ...), so that a plot follows the reader's light or dark theme;
methods differ in shape as well as in colour. Text stays text, and every mark says on hovering which checkpoint it is.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from sweeps.results.leaderboard import Row, base_row
from sweeps.wording import learning_rate_text

THEME = {
    "#010101": "--ink",
    "#020202": "--muted",
    "#030303": "--line",
    "#040404": "--paper",
    "#050505": "--lora",
    "#060606": "--dreambooth",
    "#070707": "--champion",
    "#080808": "--shade",
}
"""Stand-ins that matplotlib draws with, and the page's variables that take their place."""
INK, MUTED, LINE, PAPER, LORA, DREAMBOOTH, CHAMPION, SHADE = THEME

METHOD_COLOURS = {"lora": LORA, "dreambooth": DREAMBOOTH, "base": INK}
METHOD_MARKERS = {"lora": "o", "dreambooth": "s", "base": "D"}
METHOD_NAMES = {"lora": "LoRA", "dreambooth": "full DreamBooth", "base": "base model"}
FACE_LABEL = "face similarity"
PROMPT_LABEL = "prompt alignment"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with a dollar sign is a name
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.solid_capstyle": "round",
}


def short_label(row: Row) -> str:
    """What tells a checkpoint from the others in few letters: `rank 16, 1e-4, step 400`."""
    if row.is_base:
        return METHOD_NAMES["base"]
    kind = f"rank {row.rank}" if row.method == "lora" else "full"
    return f"{kind}, {learning_rate_text(row.learning_rate)}, step {row.step}"


def trade_off(rows: Sequence[Row], limit: float | None) -> str:
    """Both scores of every checkpoint, the Pareto front, the base model's zero lines and where the rule begins."""
    with _figure(10.8, 5.6) as figure:
        axes = figure.add_subplot()
        axes.set_xlabel(f"{PROMPT_LABEL} (CLIP cosine)")
        axes.set_ylabel(f"{FACE_LABEL} (cosine)")
        marks = _Marks()
        base = base_row(rows)
        if base:
            axes.axhline(base.face_similarity, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            axes.axvline(base.prompt_alignment, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        _draw_front(axes, rows)
        for row in sorted(rows, key=lambda row: (row.pareto, row.champion)):
            _draw_point(axes, row, row.prompt_alignment, row.face_similarity, marks, faint=not row.pareto)
        axes.margins(0.09, 0.12)
        _widen(axes)
        if limit is not None:
            _shade_unqualified(axes, limit)
        _annotate_trade_off(axes, rows)
        _legend(figure, rows, front=True)
        return _svg(figure, "trade-off", marks)


def curves_over_steps(rows: Sequence[Row], limit: float | None) -> str:
    """Both scores of every trial over its training steps, from the base model at step 0."""
    with _figure(10.8, 4.4) as figure:
        left, right = figure.subplots(1, 2)
        marks = _Marks()
        base = base_row(rows)
        for axes, label in ((left, FACE_LABEL), (right, PROMPT_LABEL)):
            axes.set_title(label)
            axes.set_xlabel("training step")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            for series in _series_by_trial(rows):
                _draw_series(axes, [*([base] if base else []), *series], label, marks)
            if base:
                _base_line(axes, _score(base, label))
            _widen(axes)
        if limit is not None:
            right.axhline(limit, color=CHAMPION, linewidth=1.1, linestyle=(0, (1, 2)))
            right.annotate(
                "the rule's limit",
                (1, limit),
                xycoords=right.get_yaxis_transform(),
                xytext=(0, -4),
                textcoords="offset points",
                ha="right",
                va="top",
                fontsize=8.5,
                color=MUTED,
                annotation_clip=True,  # far below the curves it has no place, and would take all of theirs
            )
        _legend(figure, rows, lines=True)
        return _svg(figure, "curves", marks)


def likeness_by_setting(rows: Sequence[Row], best: Sequence[Row]) -> str:
    """Face similarity against rank and against learning rate: each trial's best checkpoint with its interval.

    Args:
        rows: every checkpoint, drawn faintly.
        best: each trial's best one, drawn with its 95 % interval.
    """
    with _figure(10.8, 4.4) as figure:
        by_rank, by_rate = figure.subplots(1, 2, sharey=True)
        marks = _Marks()
        positions = _rank_positions(rows)
        by_rank.set_title("by rank")
        by_rank.set_xlabel("LoRA rank")
        by_rank.set_ylabel(FACE_LABEL)
        by_rank.xaxis.set_major_locator(FixedLocator(list(positions.values())))
        by_rank.xaxis.set_major_formatter(FixedFormatter(["full" if r is None else str(r) for r in positions]))
        by_rate.set_title("by learning rate")
        by_rate.set_xlabel("learning rate (log)")
        trained = [row for row in rows if not row.is_base]
        chosen = {(row.trial, row.step) for row in best}
        for row in sorted(trained, key=lambda row: (row.trial, row.step) in chosen):
            is_best = (row.trial, row.step) in chosen
            nudge = _nudge(row, trained)
            _draw_point(by_rank, row, positions[row.rank] + nudge, row.face_similarity, marks, not is_best, is_best)
            if row.learning_rate:
                _draw_point(by_rate, row, row.learning_rate, row.face_similarity, marks, not is_best, is_best)
        if any(row.learning_rate for row in trained):
            by_rate.set_xscale("log")
            _label_rates(by_rate, [row.learning_rate for row in trained if row.learning_rate])
        by_rank.margins(0.14, 0.1)
        by_rate.margins(0.1, 0.1)
        _widen(by_rank)
        base = base_row(rows)
        for axes in (by_rank, by_rate):
            if base:
                _base_line(axes, base.face_similarity)
        _legend(figure, rows)
        return _svg(figure, "settings", marks)


# --- parts --------------------------------------------------------------------------------------------------------


class _Marks:
    """Hover texts of the marks drawn so far, under the ids that the SVG gives them."""

    def __init__(self) -> None:
        self.titles: dict[str, str] = {}

    def add(self, title: str) -> str:
        mark = f"mark-{len(self.titles)}"
        self.titles[mark] = title
        return mark


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """A figure in the page's style; no global state of matplotlib changes for anyone else."""
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def _widen(axes: Axes, span: float = 0.05) -> None:
    """Leave an axis of scores at least `span` wide: what hardly differs shall look so."""
    low, high = axes.get_ylim()
    missing = max(0.0, span - (high - low)) / 2
    axes.set_ylim(low - missing, high + missing)


def _score(row: Row, label: str) -> float:
    return row.face_similarity if label == FACE_LABEL else row.prompt_alignment


def _hover(row: Row) -> str:
    lines = [row.trial, f"step {row.step}", f"{FACE_LABEL} {row.face_similarity:.3f}"]
    return "\n".join([*lines, f"{PROMPT_LABEL} {row.prompt_alignment:.3f}"])


def _draw_point(
    axes: Axes, row: Row, x: float, y: float, marks: _Marks, faint: bool = False, with_interval: bool = False
) -> None:
    colour = METHOD_COLOURS[row.method]
    faint = faint and not row.is_base
    interval = row.face_similarity_interval
    if with_interval and interval:
        axes.plot([x, x], [interval.low, interval.high], color=colour, linewidth=2.2, alpha=0.5, zorder=2)
    if row.champion:
        axes.plot([x], [y], marker="o", markersize=17, color="none", markeredgecolor=CHAMPION, markeredgewidth=2.2)
    (point,) = axes.plot(
        [x],
        [y],
        marker=METHOD_MARKERS[row.method],
        markersize=5.5 if faint else 8,
        color=colour,
        alpha=0.32 if faint else 0.95,
        markeredgecolor=PAPER,
        markeredgewidth=0.9,
        linestyle="none",
        zorder=3 if faint else 4,
    )
    point.set_gid(marks.add(_hover(row)))


def _draw_front(axes: Axes, rows: Sequence[Row]) -> None:
    """The front as a line from the most alike to the best aligned."""
    front = sorted((row for row in rows if row.pareto), key=lambda row: row.prompt_alignment)
    if len(front) > 1:
        x, y = [row.prompt_alignment for row in front], [row.face_similarity for row in front]
        axes.plot(x, y, color=MUTED, linewidth=1.6, alpha=0.6, zorder=2)


def _shade_unqualified(axes: Axes, limit: float) -> None:
    """What lies left of the rule's limit cannot win, however alike it is."""
    low, high = axes.get_xlim()
    if limit <= low:
        return
    axes.axvspan(low, min(limit, high), color=SHADE, linewidth=0, zorder=0)
    axes.set_xlim(low, high)
    axes.annotate(
        "prompt alignment too low for the rule",
        (min(limit, high), 0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(-6, 6),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8.5,
        color=MUTED,
    )


def _annotate_trade_off(axes: Axes, rows: Sequence[Row]) -> None:
    """Name the base model and the champion; up and to the right of the champion there is nothing to hide."""
    low, high = axes.get_xlim()
    base, winner = base_row(rows), next((row for row in rows if row.champion), None)
    if base:
        on_left = (base.prompt_alignment - low) / (high - low) > 0.5
        axes.annotate(
            short_label(base),
            (base.prompt_alignment, base.face_similarity),
            xytext=(-11 if on_left else 11, -5),
            textcoords="offset points",
            ha="right" if on_left else "left",
            va="top",
        )
    if winner:
        near_edge = (winner.prompt_alignment - low) / (high - low) > 0.68
        axes.annotate(
            f"champion: {short_label(winner)}",
            (winner.prompt_alignment, winner.face_similarity),
            xytext=(0.995, 26) if near_edge else (16, 14),
            textcoords=("axes fraction", "offset points") if near_edge else "offset points",
            ha="right" if near_edge else "left",
            fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": CHAMPION, "shrinkB": 9, "shrinkA": 2},
            zorder=5,
        )


def _series_by_trial(rows: Sequence[Row]) -> list[list[Row]]:
    """Trained checkpoints by trial and step; the champion's trial last, so that it is drawn on top."""
    trials: dict[str, list[Row]] = {}
    for row in rows:
        if not row.is_base:
            trials.setdefault(row.trial, []).append(row)
    series = [sorted(trial, key=lambda row: row.step) for trial in trials.values()]
    return sorted(series, key=lambda trial: any(row.champion for row in trial))


def _draw_series(axes: Axes, series: Sequence[Row], label: str, marks: _Marks) -> None:
    wins = any(row.champion for row in series)
    method = series[-1].method
    (line,) = axes.plot(
        [row.step for row in series],
        [_score(row, label) for row in series],
        color=METHOD_COLOURS[method],
        linewidth=2.6 if wins else 1.3,
        alpha=1.0 if wins else 0.45,
        marker=METHOD_MARKERS[method],
        markersize=4.5 if wins else 3,
        markeredgewidth=0,
        zorder=4 if wins else 2,
    )
    line.set_gid(marks.add(series[-1].trial))
    for row in series:
        if row.champion:
            y = _score(row, label)
            axes.plot([row.step], [y], "o", markersize=14, color="none", markeredgecolor=CHAMPION, markeredgewidth=2)


def _base_line(axes: Axes, value: float) -> None:
    axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        METHOD_NAMES["base"],
        (1, value),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color=MUTED,
        annotation_clip=True,  # as for the rule's limit
    )


def _rank_positions(rows: Sequence[Row]) -> dict[int | None, float]:
    """Ranks evenly spaced in their order (2, 16 and 128 are no straight line), full fine-tunes to their right."""
    trained = [row for row in rows if not row.is_base]
    ranks: list[int | None] = [*sorted({row.rank for row in trained if row.rank is not None})]
    if any(row.rank is None for row in trained):
        ranks.append(None)
    return {rank: float(i) for i, rank in enumerate(ranks)}


def _nudge(row: Row, rows: Sequence[Row]) -> float:
    """A sideways step in [-0.22, 0.22] by learning rate, so that trials of one rank don't hide each other."""
    rates = sorted({r.learning_rate for r in rows if r.rank == row.rank and r.learning_rate is not None})
    if row.learning_rate is None or len(rates) < 2:
        return 0.0
    return 0.44 * rates.index(row.learning_rate) / (len(rates) - 1) - 0.22


def _label_rates(axes: Axes, rates: Sequence[float]) -> None:
    """One, two and five of each decade, thinned until the labels have room."""
    low, high = min(rates), max(rates)
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low / 1.5 <= tick <= high * 1.5]
        if len(ticks) <= 6:
            break
    axes.xaxis.set_major_locator(FixedLocator(ticks or [low]))
    axes.xaxis.set_major_formatter(FixedFormatter([learning_rate_text(tick) for tick in ticks or [low]]))
    axes.xaxis.set_minor_locator(NullLocator())


def _legend(figure: Figure, rows: Sequence[Row], *, front: bool = False, lines: bool = False) -> None:
    """Of what is there: the methods, the champion's ring and the front."""
    handles = []
    for method in ("lora", "dreambooth"):
        if any(row.method == method for row in rows):
            handle = Line2D([], [], color=METHOD_COLOURS[method], marker=METHOD_MARKERS[method], markersize=7)
            handle.set(label=METHOD_NAMES[method], markeredgecolor=PAPER, linestyle="-" if lines else "none")
            handles.append(handle)
    if any(row.champion for row in rows):
        ring: dict[str, Any] = {"marker": "o", "markersize": 10, "color": "none", "markeredgecolor": CHAMPION}
        handles.append(Line2D([], [], label="champion", **ring))
    if front and sum(row.pareto for row in rows) > 1:
        handles.append(Line2D([], [], color=MUTED, linewidth=1.6, alpha=0.6, label="Pareto front"))
    if handles:
        place: dict[str, Any] = {"loc": "outside upper right", "ncols": len(handles)}
        figure.legend(handles=handles, columnspacing=1.6, handletextpad=0.5, **place)


def _svg(figure: Figure, name: str, marks: _Marks) -> str:
    """The figure as one SVG element: no prolog, ids that are unique on the page, the page's colours and fonts."""
    buffer = io.StringIO()
    nothing: dict[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for mark, title in marks.titles.items():
        svg = svg.replace(f'<g id="{mark}">', f'<g id="{mark}"><title>{escape(title)}</title>', 1)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for stand_in, variable in THEME.items():
        svg = svg.replace(stand_in, f"var({variable})")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
    return re.sub(r"font-family: [^;\"]*; ?", "", svg)
