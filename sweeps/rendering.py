"""ControlNet renders of a run's best trials: one picture a reference and trial, and a sheet of them all.

A late stage that can be given again alone: it reads the run folder, needs no Ray, and touches nothing but `renders/`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch

from evaluation.checks import check_render
from evaluation.config import RenderConfig
from evaluation.generate import generation_dtype
from evaluation.render import Render, contact_sheet, render_references
from sweeps.config import load_sweep
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.mirror import bring_here
from sweeps.ledger.records import BASE_TRIAL
from sweeps.outputs import check_output, whole_output
from sweeps.renders import INDEX, RenderJob, render_config
from sweeps.results.leaderboard import Row
from sweeps.results.results import read_results
from training.checkpoint import load_pipeline, open_checkpoint
from training.elsewhere import BASE_NAME, model_names, open_model
from training.errors import UserError
from training.files import whole_file, whole_folder, write_json
from training.stable_diffusion import base_pipeline, choose_device

BASE_COLUMN = BASE_NAME
MODEL_INDEX = "render.json"


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
        UserError: nothing to render, or no reference.
    """
    folder = RunFolder(run_dir)
    config = load_sweep(folder.sweep_file, source=str(folder.sweep_file))
    render = render_config(config, references, top)
    check_render(render)
    best = read_results(folder.dir).best_of_each_trial()
    if not best:
        raise UserError(f"rendering needs a scored checkpoint, and {folder.dir} has none yet")
    return render_best(RenderJob.of(config, render, best), folder, progress)


def render_best(job: RenderJob, folder: RunFolder, progress: Callable[[str], None] = lambda _: None) -> Path:
    """Do the job; `renders/sheet.png` as `render_run` returns it."""
    columns: dict[str, list[Render]] = {}
    (folder.renders_dir / INDEX).unlink(missing_ok=True)
    for name, row in [(BASE_COLUMN, None), *((f"{row.trial} @ {row.step}", row) for row in job.best)]:
        progress(name)
        columns[name] = _render(job, row, folder)
        _save(columns[name], folder.renders_dir / (row.trial if row else BASE_TRIAL))
    _remove_others(folder.renders_dir, {BASE_TRIAL, *(row.trial for row in job.best)})
    sheet = folder.renders_dir / "sheet.png"
    with whole_file(sheet) as part:
        contact_sheet(columns).save(part, format="PNG")
    write_json(folder.renders_dir / INDEX, job.index)
    return sheet


def render_model(
    path: Path | None,
    base_model: str | None,
    render: RenderConfig,
    out: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """Render the references with a model from anywhere, beside its base model where that is given.

    Args:
        path: a LoRA file, a whole checkpoint or a sweep's; None is the base model alone.
        base_model: what a LoRA is a change of.
        render: references, ControlNet and prompt, which must be given.
        out: folder for the renders; whole when this returns, else as it was.
        progress: told the name of what is rendered next.

    Returns:
        `sheet.png` in `out`: reference | condition | base model | the model.

    Raises:
        UserError: no prompt or reference, or the model is none that loads.
    """
    if render.prompt is None or not render.references:
        missing = "a prompt: --prompt" if render.prompt is None else "a picture to follow: --reference"
        raise UserError(f"rendering a model without a run needs {missing}")
    check_render(render)
    out = check_output(out, MODEL_INDEX)
    model = None if path is None else open_model(path, base_model)
    device = choose_device(None)
    dtype = generation_dtype(device)
    columns: dict[str, list[Render]] = {}
    with whole_output(out, MODEL_INDEX, {"prompt": render.prompt}) as part:
        if base_model is not None:
            progress(BASE_COLUMN)
            pipeline = base_pipeline(base_model, device, dtype, share_frozen=True)
            columns[BASE_COLUMN] = render_references(pipeline, render, render.prompt)
            _save(columns[BASE_COLUMN], part / BASE_TRIAL)
        if model is not None:
            (name,) = model_names([model])
            progress(name)
            pipeline = model.pipeline(base_model, device, dtype)
            columns[name] = render_references(pipeline, render, render.prompt)
            _save(columns[name], part / "model")
        with whole_file(part / "sheet.png") as file:
            contact_sheet(columns).save(file, format="PNG")
    return out / "sheet.png"


def _render(job: RenderJob, row: Row | None, folder: RunFolder) -> list[Render]:
    checkpoint = None
    if row is not None:
        assert row.checkpoint is not None, "only the base model has no checkpoint"
        bring_here(folder, job.storage, row.checkpoint)
        checkpoint = open_checkpoint(folder.inside(row.checkpoint), job.base_model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = load_pipeline(
        checkpoint, job.base_model, device=device, dtype=generation_dtype(device), share_frozen=True
    )
    return render_references(pipeline, job.render, job.instance_prompt)


def _save(pictures: Sequence[Render], folder: Path) -> None:
    with whole_folder(folder) as part:
        for picture in pictures:
            picture.image.save(part / f"{Path(picture.reference).stem}.png")


def _remove_others(renders_dir: Path, trials: Collection[str]) -> None:
    """Renders of trials that are not among the best any more."""
    for folder in renders_dir.iterdir():
        if folder.is_dir() and folder.name not in trials:
            shutil.rmtree(folder)
