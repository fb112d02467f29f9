"""The report's plots: leaderboard rows and training stats in, plotly figures out, as plain JSON values.

A figure is what plotly.js draws (`{"data": [...], "layout": {...}}`). Colours are the variables of the page
(`var(--lora)`, ...), which its script resolves, so that a plot follows the reader's light or dark theme; methods differ
in shape as well as in colour. Every point says on hovering which checkpoint it is, and its `customdata` is the
trial that a click leads to. Points of one method are one trace, lines of many trials are parted by gaps: a sweep of a
thousand trials stays a few traces.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from sweeps.report.learning_curves import CurvePoint
from sweeps.results.leaderboard import Row, base_row
from sweeps.wording import learning_rate_text, score_text

Figure = dict[str, Any]
"""What `Plotly.react` takes, ready for JSON."""

METHOD_NAMES = {"lora": "LoRA", "dreambooth": "full DreamBooth", "base": "base model"}
COLOURS = {method: f"var(--{method})" for method in METHOD_NAMES}
MARKERS = {"lora": "circle", "dreambooth": "square", "base": "diamond"}
MUTED, LINE, PAPER, CHAMPION, SHADE = (f"var(--{name})" for name in ("muted", "line", "paper", "champion", "shade"))
LINE_STYLES = {"faint": (0.8, 0.18), "plain": (1.4, 0.6), "champion": (3.0, 1.0)}
"""Width in pixels and opacity of a trial's line, from the bottom to the top."""
FACE_LABEL = "face similarity"
PROMPT_LABEL = "prompt alignment"
MIN_SPAN = 0.05
"""An axis of scores is at least this wide: what hardly differs shall look so."""


def short_label(row: Row) -> str:
    """What tells a checkpoint from the others in few letters: `rank 16, 1e-4, step 400`."""
    if row.is_base:
        return METHOD_NAMES["base"]
    kind = f"rank {row.rank}" if row.method == "lora" else "full"
    options = f", {row.options}" if row.options else ""
    return f"{kind}, {learning_rate_text(row.learning_rate)}{options}, step {row.step}"


def trade_off(rows: Sequence[Row], limit: float | None, levels: Mapping[str, float] | None = None) -> Figure:
    """Both scores of every checkpoint, the Pareto front, the base model's zero lines and where the rule begins.

    Args:
        rows: every checkpoint.
        limit: the rule's lowest prompt alignment.
        levels: face similarities to compare with by their names, such as another real photo's.
    """
    base, front = base_row(rows), sorted((row for row in rows if row.pareto), key=lambda row: row.prompt_alignment)
    traces = [_line([(row.prompt_alignment, row.face_similarity) for row in front], MUTED, 1.6)] if front[1:] else []
    traces += _points(rows, [(row.prompt_alignment, row.face_similarity) for row in rows], lambda row: row.pareto)
    figure = _figure(traces, f"{PROMPT_LABEL} (CLIP cosine)", f"{FACE_LABEL} (cosine)", height=460)
    layout = figure["layout"]
    shown = [row for row in rows if not _is_astray(row, rows)]
    low, high = _span(row.prompt_alignment for row in shown)
    layout["xaxis"] |= _from_to(low, high)
    bottom, top = _span([*(row.face_similarity for row in shown), *(levels or {}).values()])
    layout["yaxis"] |= _from_to(bottom, top)
    for name, level in (levels or {}).items():
        layout["shapes"].append(_across(level, CHAMPION, "dot"))
        layout["annotations"].append(_note(name, 0, level, xref="paper", xanchor="left", yanchor="bottom"))
    if len(shown) < len(rows):
        number = len(rows) - len(shown)
        astray = f"{number} checkpoint{' lies' if number == 1 else 's lie'} far outside, see the table"
        layout["annotations"].append(_note(astray, 1, 1, xref="paper", yref="paper", xanchor="right", yanchor="bottom"))
    if base:
        layout["shapes"] += [_across(base.face_similarity), _upright(base.prompt_alignment)]
    if limit is not None and limit > low:
        edge = min(limit, high)
        layout["shapes"].append(
            {"type": "rect", "x0": low - 2, "x1": edge, "y0": 0, "y1": 1, "yref": "paper", "layer": "below"}
            | {"fillcolor": SHADE, "line": {"width": 0}}
        )
        layout["annotations"].append(
            _note("prompt alignment too low for the rule", edge, 0, yref="paper", xanchor="right", yanchor="bottom")
        )
    if base:
        on_left = (base.prompt_alignment - low) / (high - low) > 0.5
        place = {"xanchor": "right", "xshift": -12} if on_left else {"xanchor": "left", "xshift": 12}
        note = _note(METHOD_NAMES["base"], base.prompt_alignment, base.face_similarity, yanchor="top", yshift=-4)
        layout["annotations"].append(note | place | STRONG_TEXT)
    if winner := next((row for row in rows if row.champion), None):
        on_left = (winner.prompt_alignment - low) / (high - low) > 0.5
        text = f"<b>champion: {escape(short_label(winner))}</b>"
        arrow = {"showarrow": True, "arrowhead": 0, "arrowcolor": CHAMPION, "standoff": 10, "bgcolor": PAPER}
        place = {"ax": -40 if on_left else 40, "ay": -34, "xanchor": "right" if on_left else "left"}
        note = _note(text, winner.prompt_alignment, winner.face_similarity, opacity=0.9)
        layout["annotations"].append(note | arrow | place | STRONG_TEXT)
    return figure


def _is_astray(row: Row, rows: Sequence[Row]) -> bool:
    """Does a checkpoint lie so far below the others that an axis with it would crush them? One that diverged does.

    By Tukey's outer fences, three times the distance of the quartiles below the lower one.
    """
    if row.champion or row.is_base or row.pareto or len(rows) < 8:
        return False
    for score in (FACE_LABEL, PROMPT_LABEL):
        lower, _, upper = statistics.quantiles([_score(each, score) for each in rows], n=4)
        if _score(row, score) < lower - 3 * max(upper - lower, MIN_SPAN):
            return True
    return False


def score_over_steps(rows: Sequence[Row], label: str, best: Sequence[Row], limit: float | None = None) -> Figure:
    """One score of every trial over its training steps, from the base model at step 0.

    Args:
        rows: every checkpoint.
        label: `FACE_LABEL` or `PROMPT_LABEL`.
        best: of the trials that stand out; the others are drawn faintly, or hundreds of them would be one block.
        limit: the rule's lowest prompt alignment, drawn where it lies among the curves.
    """
    base, outstanding = base_row(rows), {row.trial for row in best}
    series = {trial[0].trial: trial for trial in _by_trial(rows)}
    champion = next((row.trial for row in rows if row.champion), None)
    styles = {trial: _line_style(trial, champion, outstanding) for trial in series}
    traces = []
    for style, method, drawn in _layers({trial: points[-1].method for trial, points in series.items()}, styles):
        lines = [[*([base] if base else []), *series[trial], None] for trial in drawn]
        points = [(row, row and row.step, row and _score(row, label)) for line in lines for row in line]
        width, opacity = LINE_STYLES[style]
        look = {"line": {"color": COLOURS[method], "width": width}, "opacity": opacity}
        marker = {"symbol": MARKERS[method], "size": 4 + width}
        traces.append(_trace(points, "lines+markers") | look | {"marker": marker})
    traces += _ring([(row, row.step, _score(row, label)) for row in rows if row.champion])
    figure = _figure(traces, "training step", label)
    low, high = _span(_score(row, label) for row in rows)
    figure["layout"]["yaxis"] |= _from_to(low, high)
    if base:
        figure["layout"]["shapes"].append(_across(_score(base, label)))
    if limit is not None and low <= limit <= high:
        figure["layout"]["shapes"].append(_across(limit, CHAMPION, "dot"))
        figure["layout"]["annotations"].append(
            _note("the rule's limit", 1, limit, xref="paper", xanchor="right", yanchor="top")
        )
    return figure


def likeness_by_rank(rows: Sequence[Row], best: Sequence[Row]) -> Figure:
    """Face similarity against rank: each trial's best checkpoint with its interval, the others faintly.

    Ranks stand evenly in their order (2, 16 and 128 are no straight line), full fine-tunes to their right; within a
    rank, learning rate rises from left to right.
    """
    trained = [row for row in rows if not row.is_base]
    ranks: list[int | None] = [*sorted({row.rank for row in trained if row.rank is not None})]
    ranks += [None] if any(row.rank is None for row in trained) else []
    rates = {rank: sorted({r.learning_rate for r in trained if r.rank == rank and r.learning_rate}) for rank in ranks}
    at = [(ranks.index(row.rank) + _nudge(row, rates[row.rank]), row.face_similarity) for row in trained]
    figure = _by_setting(rows, trained, at, best, "LoRA rank")
    ticks = {"tickvals": list(range(len(ranks))), "ticktext": ["full" if r is None else str(r) for r in ranks]}
    figure["layout"]["xaxis"] |= ticks | _from_to(-0.5, len(ranks) - 0.5)
    return figure


def likeness_by_learning_rate(rows: Sequence[Row], best: Sequence[Row]) -> Figure:
    """Face similarity against learning rate, as `likeness_by_rank`."""
    trained = [row for row in rows if not row.is_base and row.learning_rate]
    at = [(row.learning_rate or 0.0, row.face_similarity) for row in trained]
    figure = _by_setting(rows, trained, at, best, "learning rate")
    rates = sorted({row.learning_rate for row in trained if row.learning_rate})
    figure["layout"]["xaxis"]["type"] = "log"
    if rates:
        low, high = math.log10(rates[0]), math.log10(rates[-1])
        margin = max(0.2, 0.08 * (high - low))
        limits = _from_to(low - margin, high + margin)  # of a logarithmic axis as exponents
        ticks = _log_ticks(rates)
        figure["layout"]["xaxis"] |= limits | {"tickvals": ticks}
        figure["layout"]["xaxis"]["ticktext"] = [learning_rate_text(tick) for tick in ticks]
    return figure


def training_curve(
    curves: Mapping[str, Sequence[CurvePoint]], methods: Mapping[str, str], champion: str | None, field: str, label: str
) -> Figure:
    """One number of the training over its steps, a line a trial.

    Args:
        curves: of each trial.
        methods: of each trial.
        champion: the trial that is drawn thick, if there is one.
        field: of `CurvePoint`, such as `loss`.
        label: of the vertical axis.
    """
    traces: list[Figure] = []
    known: set[float] = set()
    styles = {trial: _line_style(trial, champion, curves) for trial in curves}
    for style, method, drawn in _layers({trial: methods[trial] for trial in curves}, styles):
        points = [(trial, point) for trial in drawn for point in [*curves[trial], None]]
        # a logarithmic axis has no place for 0
        values = [(getattr(point, field) or None) if point else None for _, point in points]
        known.update(value for value in values if value)
        steps = [point.last_step if point else None for _, point in points]
        width, opacity = LINE_STYLES[style]
        traces.append(
            _line([*zip(steps, values, strict=True)], COLOURS[method], width)
            | {
                "opacity": opacity,
                "customdata": [trial for trial, _ in points],
                "text": [f"<b>{escape(t)}</b><br>{escape(p.steps_text)}" if p else "" for t, p in points],
                "hoverinfo": "all",
                "hovertemplate": f"%{{text}}<br>{label} %{{y:.4g}}<extra></extra>",
            }
        )
    figure = _figure(traces, "training step", label)
    ticks = _log_ticks(sorted(known))
    figure["layout"]["yaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return figure


# --- parts --------------------------------------------------------------------------------------------------------

Point = tuple[float | None, float | None]
STRONG_TEXT: Figure = {"font": {"size": 12, "color": "var(--ink)"}}


def _figure(traces: list[Figure], x_title: str, y_title: str, height: int = 340) -> Figure:
    axis = {"gridcolor": LINE, "linecolor": LINE, "zeroline": False, "tickfont": {"color": MUTED}, "automargin": True}
    return {
        "data": traces,
        "layout": {
            "height": height,
            "margin": {"l": 52, "r": 12, "t": 34, "b": 44},
            "xaxis": {**axis, "title": {"text": x_title, "standoff": 8}},
            "yaxis": {**axis, "title": {"text": y_title, "standoff": 8}},
            "shapes": [],
            "annotations": [],
            "showlegend": False,
            "hovermode": "closest",
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": "var(--ink)", "size": 12},
            "hoverlabel": {"bgcolor": PAPER, "bordercolor": LINE, "font": {"color": "var(--ink)"}, "align": "left"},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": "var(--ink)"},
            "uirevision": "the reader's zoom outlasts new data",
        },
    }


def _points(
    rows: Sequence[Row], at: Sequence[Point], is_strong: Callable[[Row], bool], *, with_intervals: bool = False
) -> list[Figure]:
    """Markers, one trace a method, the champion's with a ring; intervals of face similarity on the strong ones."""
    traces = []
    for method in ("lora", "dreambooth", "base"):
        drawn = [(row, x, y) for row, (x, y) in zip(rows, at, strict=True) if row.method == method]
        if drawn:
            strong = [is_strong(row) or row.is_base for row, _, _ in drawn]
            marker = {
                "symbol": MARKERS[method],
                "color": COLOURS[method],
                "size": [11 if s else 8 for s in strong],
                "opacity": [0.95 if s else 0.35 for s in strong],
                "line": {"color": PAPER, "width": 1},
            }
            trace = _trace(drawn, "markers") | {"marker": marker}
            if with_intervals:
                trace["error_y"] = _bounds([row if s else None for (row, _, _), s in zip(drawn, strong, strict=True)])
            traces.append(trace)
    return traces + _ring([(row, x, y) for row, (x, y) in zip(rows, at, strict=True) if row.champion])


def _bounds(rows: Sequence[Row | None]) -> Figure:
    """Error bars; of no length where there is no row or no interval."""
    known = [(row.face_similarity, row.face_similarity_interval) if row else (0.0, None) for row in rows]
    return {
        "type": "data",
        "symmetric": False,
        "array": [i.high - score if i else 0.0 for score, i in known],
        "arrayminus": [score - i.low if i else 0.0 for score, i in known],
        "thickness": 1.6,
        "width": 0,
    }


def _ring(drawn: Sequence[tuple[Row, float | None, float | None]]) -> list[Figure]:
    if not drawn:
        return []
    marker = {"symbol": "circle-open", "size": 19, "color": CHAMPION, "line": {"width": 2.5}}
    return [_trace(drawn, "markers") | {"marker": marker, "hoverinfo": "skip", "hovertemplate": None}]


def _line_style(trial: str, champion: str | None, outstanding: Container[str]) -> str:
    return "champion" if trial == champion else "plain" if trial in outstanding else "faint"


def _layers(methods: Mapping[str, str], styles: Mapping[str, str]) -> Iterator[tuple[str, str, list[str]]]:
    """Style, method and the trials that share both, from the bottom to the top; each is one trace."""
    for style in LINE_STYLES:
        for method in ("lora", "dreambooth"):
            drawn = [trial for trial in methods if (methods[trial], styles[trial]) == (method, style)]
            if drawn:
                yield style, method, drawn


def _line(points: Sequence[Point], colour: str, width: float) -> Figure:
    """A bare line, which says nothing on hovering."""
    x, y = [x for x, _ in points], [y for _, y in points]
    style = {"color": colour, "width": width}
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": style, "hoverinfo": "skip"}


def _trace(drawn: Sequence[tuple[Row | None, Any, Any]], mode: str) -> Figure:
    """Points that say what they are; where there is no row the line is broken."""
    return {
        "type": "scatter",
        "mode": mode,
        "x": [x if row else None for row, x, _ in drawn],
        "y": [y if row else None for row, _, y in drawn],
        "customdata": [row.trial if row else "" for row, _, _ in drawn],
        "text": [_hover(row) if row else "" for row, _, _ in drawn],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _hover(row: Row) -> str:
    """Which checkpoint, and all that its point can be read for; plotly takes simple tags, so names are escaped."""
    lines = [f"<b>{escape(METHOD_NAMES['base'] if row.is_base else row.trial)}</b>", f"step {row.step}"]
    for label, interval in (
        (FACE_LABEL, row.face_similarity_interval),
        (PROMPT_LABEL, row.prompt_alignment_interval),
    ):
        bounds = f" [{score_text(interval.low)}, {score_text(interval.high)}]" if interval else ""
        lines.append(f"{label} {score_text(_score(row, label))}{bounds}")
    return "<br>".join([*lines, f"faces {row.num_faces}/{row.num_images}"])


def _by_setting(
    rows: Sequence[Row], trained: Sequence[Row], at: Sequence[Point], best: Sequence[Row], x_title: str
) -> Figure:
    """Checkpoints at their settings, each trial's best one strong and with its interval."""
    chosen = {row.key for row in best}
    traces = _points(trained, at, lambda row: row.key in chosen, with_intervals=True)
    figure = _figure(traces, x_title, FACE_LABEL)
    ends = [b for row in best if (i := row.face_similarity_interval) for b in (i.low, i.high)]
    low, high = _span([*(row.face_similarity for row in trained), *ends])
    figure["layout"]["yaxis"] |= _from_to(low, high)
    if (base := base_row(rows)) and low <= base.face_similarity <= high:
        figure["layout"]["shapes"].append(_across(base.face_similarity))
    return figure


def _across(value: float, colour: str = MUTED, dash: str = "dash") -> Figure:
    """A line at a height, such as the base model's."""
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "layer": "below"} | {
        "line": {"color": colour, "width": 1, "dash": dash}
    }


def _upright(value: float) -> Figure:
    return {"type": "line", "yref": "paper", "x0": value, "x1": value, "y0": 0, "y1": 1, "layer": "below"} | {
        "line": {"color": MUTED, "width": 1, "dash": "dash"}
    }


def _note(text: str, x: float, y: float, **place: Any) -> Figure:
    return {"text": text, "x": x, "y": y, "showarrow": False, "font": {"size": 11, "color": MUTED}, **place}


def _from_to(low: float, high: float) -> Figure:
    """Limits of an axis where its reader has not zoomed; a plain `range` that new data change would undo the zoom."""
    return {"autorangeoptions": {"minallowed": low, "maxallowed": high}}


def _span(values: Iterable[float], margin: float = 0.1) -> list[float]:
    """Limits of an axis of scores around these values."""
    known = [*values]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    room = max(margin * (high - low), (MIN_SPAN - (high - low)) / 2)
    return [low - room, high + room]


def _score(row: Row, label: str) -> float:
    return row.face_similarity if label == FACE_LABEL else row.prompt_alignment


def _by_trial(rows: Sequence[Row]) -> list[list[Row]]:
    """Trained checkpoints by trial and step."""
    trials: dict[str, list[Row]] = {}
    for row in rows:
        if not row.is_base:
            trials.setdefault(row.trial, []).append(row)
    return [sorted(trial, key=lambda row: row.step) for trial in trials.values()]


def _nudge(row: Row, rates: Sequence[float]) -> float:
    """A sideways step in [-0.22, 0.22] by learning rate, so that trials of one rank don't hide each other."""
    if row.learning_rate is None or len(rates) < 2:
        return 0.0
    return 0.44 * rates.index(row.learning_rate) / (len(rates) - 1) - 0.22


def _log_ticks(values: Sequence[float]) -> list[float]:
    """One, two and five of each decade of these sorted positive values, thinned until the labels have room."""
    if not values:
        return []
    low, high = values[0], values[-1]
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    ticks: list[float] = []
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{factor}e{decade}") for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low / 1.5 <= tick <= high * 1.5]
        if len(ticks) <= 6:
            break
    return ticks or [low]
