"""Laws of the report's plots: figures that plotly takes, with every checkpoint in its place.

pytest tests/sweeps/report/test_figures.py     some seconds
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from sweeps.report.figures import (
    FACE_LABEL,
    LINE_STYLES,
    PROMPT_LABEL,
    Figure,
    likeness_by_learning_rate,
    likeness_by_rank,
    score_over_steps,
    trade_off,
    training_curve,
)
from sweeps.report.learning_curves import NUM_POINTS, condensed, learning_curves
from sweeps.results.results import Results, read_results
from tests.sweeps.fake_run import build_run, write_stats
from training.stats import read_stats


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return read_results(build_run(tmp_path_factory.mktemp("runs") / "ada", num_trials=8, num_failed=1, size=8))


def figures_of(results: Results) -> dict[str, Figure]:
    rows, best, limit = results.rows, results.best_of_each_trial(), results.rule.limit
    curves = learning_curves(results.folder, [trial.trial for trial in results.trials])
    methods = {trial.trial: trial.method for trial in results.trials}
    assert results.champion.row is not None
    return {
        "trade_off": trade_off(rows, limit),
        "face": score_over_steps(rows, FACE_LABEL, best),
        "prompt": score_over_steps(rows, PROMPT_LABEL, best, limit),
        "rank": likeness_by_rank(rows, best),
        "rate": likeness_by_learning_rate(rows, best),
        "loss": training_curve(curves, methods, results.champion.row.trial, "loss", "loss"),
    }


def points_of(figure: Figure) -> set[tuple[str, float, float]]:
    """Trial and place of every mark that answers a click."""
    return {
        (trial, x, y)
        for trace in figure["data"]
        for trial, x, y in zip(trace.get("customdata", ()), trace["x"], trace["y"], strict=False)
        if y is not None and trace.get("hoverinfo") != "skip"
    }


def test_plotly_takes_every_figure(results: Results) -> None:
    """No field that it does not know, no value that it refuses; ready for JSON, every number finite."""
    for figure in figures_of(results).values():
        go.Figure(figure)
        json.dumps(figure, allow_nan=False)


def test_every_checkpoint_stands_at_its_scores(results: Results) -> None:
    """In the trade-off by both scores, over steps by each, by rank and rate trained ones alone."""
    figures = figures_of(results)
    rows, trained = results.rows, [row for row in results.rows if not row.is_base]
    assert points_of(figures["trade_off"]) == {(r.trial, r.prompt_alignment, r.face_similarity) for r in rows}
    assert points_of(figures["face"]) == {(r.trial, r.step, r.face_similarity) for r in rows}
    assert points_of(figures["prompt"]) == {(r.trial, r.step, r.prompt_alignment) for r in rows}
    assert points_of(figures["rate"]) == {(r.trial, r.learning_rate, r.face_similarity) for r in trained}
    assert {(trial, y) for trial, _, y in points_of(figures["rank"])} == {(r.trial, r.face_similarity) for r in trained}


def test_no_line_leads_from_one_trial_to_another(results: Results) -> None:
    """Between two trials of one trace there is a gap; within a trial steps rise."""
    for name in ("face", "prompt", "loss"):
        for trace in figures_of(results)[name]["data"]:
            pairs = [*zip(trace["customdata"], trace["x"], strict=True)]
            for (trial, x), (next_trial, next_x) in itertools.pairwise(pairs):
                if x is not None and next_x is not None:
                    assert x < next_x
                    assert next_trial == trial or trial == "base"


def test_of_many_trials_the_best_stand_out(results: Results) -> None:
    """The champion's line is on top, then theirs; every other is there all the same."""
    best = results.best_of_each_trial()
    traces = score_over_steps(results.rows, FACE_LABEL, best[:3])["data"]
    by_opacity = {
        opacity: {trial for trace in traces if trace.get("opacity") == opacity for trial in trace["customdata"]}
        - {"", "base"}
        for _, opacity in LINE_STYLES.values()
    }
    assert [*by_opacity.values()] == [
        {row.trial for row in best[3:]},
        {row.trial for row in best[1:3]},
        {best[0].trial},
    ]
    assert [trace.get("opacity", 1) for trace in traces] == sorted(trace.get("opacity", 1) for trace in traces)


def test_intervals_are_drawn_of_each_trials_best(results: Results) -> None:
    """From the lower bound to the upper, and nothing on the other checkpoints."""
    best = {row.key: row.face_similarity_interval for row in results.best_of_each_trial()}
    bars = [
        (y - low, y + high)
        for trace in likeness_by_rank(results.rows, results.best_of_each_trial())["data"]
        if "error_y" in trace
        for y, low, high in zip(trace["y"], trace["error_y"]["arrayminus"], trace["error_y"]["array"], strict=True)
        if low or high
    ]
    expected = sorted((interval.low, interval.high) for interval in best.values() if interval)
    assert sorted(bars) == [pytest.approx(bounds) for bounds in expected]


def test_names_are_text_where_plotly_would_read_tags(results: Results) -> None:
    """It takes `<b>` and links in hover texts: a trial of somebody else's run folder may be called so."""
    hostile = "<a href='//evil.example'>x</a>"
    rows = [row.model_copy(update={"trial": hostile}) for row in results.rows if not row.is_base]
    text = json.dumps([trace["text"] for trace in trade_off(rows, None)["data"] if "text" in trace])
    assert "<a" not in text
    assert "&lt;a href=&#x27;//evil.example" in text


@pytest.mark.parametrize("draw", [lambda rows, _: trade_off(rows, 0.3), likeness_by_rank, likeness_by_learning_rate])
def test_a_sweep_without_a_base_model_or_an_interval_is_drawn(results: Results, draw: Callable[..., Figure]) -> None:
    """What is not there is left out."""
    rows = [row.model_copy(update={"face_similarity_interval": None}) for row in results.rows if not row.is_base]
    go.Figure(draw(rows, rows))
    go.Figure(draw(rows[:1], rows[:1]))
    nothing: list[Any] = []
    go.Figure(draw(nothing, nothing))


def test_a_base_model_far_below_takes_no_room_from_the_trials(results: Results) -> None:
    """By setting, where trials are compared with each other, the axis is theirs."""
    rows = [
        row.model_copy(
            update={
                "face_similarity": 0.05 if row.is_base else 0.85 + row.face_similarity / 100,
                "face_similarity_interval": None,
            }
        )
        for row in results.rows
    ]
    figure = likeness_by_rank(rows, [row for row in rows if not row.is_base])
    low, high = figure["layout"]["yaxis"]["autorangeoptions"].values()
    assert high - low < 0.1
    assert not figure["layout"]["shapes"]


def test_what_hardly_differs_looks_so(results: Results) -> None:
    """An axis of scores spans 0.05 at least."""
    rows = [row.model_copy(update={"face_similarity": 0.5, "prompt_alignment": 0.3}) for row in results.rows]
    layout = trade_off(rows, None)["layout"]
    for axis in ("xaxis", "yaxis"):
        low, high = layout[axis]["autorangeoptions"].values()
        assert high - low >= 0.05 - 1e-9


# --- learning curves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [0, 1, 7, NUM_POINTS, NUM_POINTS + 1, 1000])
def test_a_curve_holds_every_step_once_and_keeps_the_mean(tmp_path: Path, num_steps: int) -> None:
    """Points are few, join without gap or overlap, and weighted by their steps give the mean of all losses."""
    (tmp_path / "trials" / "t").mkdir(parents=True)
    stats = read_stats(write_stats(tmp_path, "t", 1e-4, range(1, num_steps + 1)))
    curve = condensed(stats)
    assert len(curve) <= NUM_POINTS
    steps = [step for point in curve for step in range(point.first_step, point.last_step + 1)]
    assert steps == [*range(1, num_steps + 1)]
    total = sum(point.loss * (point.last_step - point.first_step + 1) for point in curve)
    assert math.isclose(total, sum(taken.loss for taken in stats), abs_tol=1e-9)


def test_a_curve_grows_with_its_file(tmp_path: Path) -> None:
    """What was read before is not taken for what is there now; a trial without a step has no curve."""
    run_dir = build_run(tmp_path / "ada", num_trials=1, at_steps=(20,), size=8)
    folder = read_results(run_dir).folder
    (trial,) = [record.trial for record in folder.trials()]
    assert learning_curves(folder, [trial, "nobody"]).keys() == {trial}
    before = learning_curves(folder, [trial])[trial][-1].last_step
    write_stats(run_dir, trial, 1e-4, range(1, 31))
    assert (before, learning_curves(folder, [trial])[trial][-1].last_step) == (20, 30)


def test_one_that_diverged_does_not_crush_the_axes(results: Results) -> None:
    """Its point is there for who zooms out, the axes are the others', and the figure says so."""
    whole = trade_off(results.rows, results.rule.limit)
    last = results.rows[-1]
    lost = last.model_copy(update={"trial": "lost", "face_similarity": -0.9, "prompt_alignment": -0.8, "pareto": False})
    with_lost = trade_off([*results.rows, lost], results.rule.limit)
    for axis in ("xaxis", "yaxis"):
        assert with_lost["layout"][axis]["autorangeoptions"] == whole["layout"][axis]["autorangeoptions"]
    assert ("lost", -0.8, -0.9) in points_of(with_lost)
    said = [note["text"] for note in with_lost["layout"]["annotations"]]
    assert any("1 checkpoint lies far outside" in text for text in said)


def test_levels_to_compare_with_lie_within_the_axis(results: Results) -> None:
    """Another real photo's face similarity and a stranger's, by name."""
    figure = trade_off(results.rows, results.rule.limit, {"another photo of the person": 0.95, "a stranger": -0.3})
    limits = figure["layout"]["yaxis"]["autorangeoptions"]
    assert limits["minallowed"] < -0.3
    assert limits["maxallowed"] > 0.95
    assert {"another photo of the person", "a stranger"} <= {note["text"] for note in figure["layout"]["annotations"]}
