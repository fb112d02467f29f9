"""ControlNet renders of a run's best trials: one picture a reference and trial, and a sheet of them all.

A late stage that can be given again alone: it reads the run folder, needs no Ray, and touches nothing but `renders/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from evaluation.checks import check_render
from evaluation.config import RenderConfig
from evaluation.generate import generation_dtype
from evaluation.render import Render, contact_sheet, render_references
from sweeps.config import SweepConfig, load_sweep
from sweeps.results import Row, path_in_run, read_results
from sweeps.store import BASE_TRIAL, RunFolder
from training.checkpoint import load_pipeline, open_checkpoint
from training.files import whole_file, write_json

BASE_COLUMN = "base model"
INDEX = "renders.json"


def render_run(
    run_dir: Path | str,
    top: int | None = None,
    references: Sequence[Path] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """Render the references with the base model and each of the best trials' best checkpoints.

    Args:
        run_dir: a run folder with at least one scored checkpoint.
        top: how many trials; default: `render.top` of the sweep.
        references: pictures instead of `render.references`.
        progress: told the name of what is rendered next.

    Returns:
        `renders/sheet.png`: reference | condition | base model | one column per trial.

    Raises:
        ValueError: nothing to render, or no reference.
    """
    run = RunFolder(run_dir)
    config = load_sweep(run.sweep_file)
    render = render_config(config, references)
    check_render(render)
    best = read_results(run.dir).best_of_each_trial()[: top or render.top]
    if not best:
        raise ValueError(f"rendering needs a scored checkpoint, and {run.dir} has none yet")

    columns: dict[str, list[Render]] = {}
    for name, row in [(BASE_COLUMN, None), *((f"{row.trial} @ {row.step}", row) for row in best)]:
        progress(name)
        columns[name] = _render(run.dir, row, config, render)
        _save(columns[name], run.renders_dir / (row.trial if row else BASE_TRIAL))
    path = run.renders_dir / "sheet.png"
    with whole_file(path) as part:
        contact_sheet(columns).save(part, format="PNG")
    write_json(run.renders_dir / INDEX, _index(render, best))
    return path


def renders_are_due(run_dir: Path | str) -> bool:
    """Whether the sweep asks for renders, has trials to render, and what lies in `renders/` is not of those."""
    run = RunFolder(run_dir)
    render = load_sweep(run.sweep_file).render
    best = read_results(run.dir).best_of_each_trial()
    if render is None or not render.references or not best:
        return False
    try:
        return bool(json.loads((run.renders_dir / INDEX).read_text()) != _index(render, best[: render.top]))
    except (OSError, json.JSONDecodeError):
        return True


def render_config(config: SweepConfig, references: Sequence[Path] = ()) -> RenderConfig:
    """The sweep's render section, with `references` given by hand instead of its own.

    Raises:
        ValueError: there is no reference at all.
    """
    render = config.render or RenderConfig()
    render = render.model_copy(update={"references": [path.resolve() for path in references] or render.references})
    if not render.references:
        raise ValueError("rendering needs a reference: name pictures under render.references or with --reference")
    return render


def _render(run_dir: Path, row: Row | None, config: SweepConfig, render: RenderConfig) -> list[Render]:
    checkpoint = None
    if row is not None:
        assert row.checkpoint is not None, "only the base model has no checkpoint"
        checkpoint = open_checkpoint(path_in_run(run_dir, row.checkpoint), config.base_model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = load_pipeline(
        checkpoint, config.base_model, device=device, dtype=generation_dtype(device), share_frozen=True
    )
    return render_references(pipeline, render, config.subject.instance_prompt)


def _save(pictures: Sequence[Render], folder: Path) -> None:
    for picture in pictures:
        with whole_file(folder / f"{Path(picture.reference).stem}.png") as part:
            picture.image.save(part, format="PNG")


def _index(render: RenderConfig, best: Sequence[Row]) -> dict[str, Any]:
    """What the renders were made of and with; written last, it says that they are whole."""
    return {
        "trials": [{"trial": row.trial, "step": row.step} for row in best],
        "references": [path.name for path in render.references],
        **render.model_dump(mode="json", exclude={"references", "top"}),
    }
