"""ControlNet renders of a run's best trials: one picture a reference and trial, and a sheet of them all.

A late stage that can be given again alone: it reads the run folder, needs no Ray, and touches nothing but `renders/`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluation.checks import check_render
from evaluation.config import RenderConfig
from evaluation.generate import generation_dtype
from evaluation.render import Render, contact_sheet, reference_labels, render_references
from sweeps.config import SweepConfig, load_sweep
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.mirror import bring_here
from sweeps.ledger.records import BASE_TRIAL
from sweeps.results.leaderboard import Row
from sweeps.results.results import read_results
from training.checkpoint import load_pipeline, open_checkpoint
from training.errors import UserError
from training.files import whole_file, whole_folder, write_json
from training.pictures import pixel_digest, read_picture

BASE_COLUMN = "base model"
INDEX = "renders.json"


@dataclass(frozen=True)
class RenderJob:
    """What is rendered with what."""

    render: RenderConfig
    base_model: str
    instance_prompt: str
    """Where the render section has no prompt of its own."""
    best: tuple[Row, ...]
    """Each of the best trials' best checkpoint."""
    storage: str | None = None
    """Where a checkpoint is fetched from that is not on this machine."""

    @classmethod
    def of(cls, config: SweepConfig, render: RenderConfig, best: Sequence[Row]) -> RenderJob:
        """The sweep's own renders: as many of the best trials as the section says."""
        return cls(render, config.base_model, config.subject.instance_prompt, tuple(best[: render.top]), config.storage)

    @property
    def index(self) -> dict[str, Any]:
        """What the renders are made of and with; written last, it says that they are whole."""
        return {
            "trials": [{"trial": row.trial, "step": row.step} for row in self.best],
            "references": [
                {"file": Path(label).stem, "pixels": pixel_digest(read_picture(path))}
                for path, label in zip(self.render.references, reference_labels(self.render.references), strict=True)
            ],
            **self.render.model_dump(mode="json", exclude={"references", "top"}),
        }


def due_renders(config: SweepConfig, folder: RunFolder) -> RenderJob | None:
    """The renders that the sweep asks for, if it has trials to render and `renders/` does not hold just these."""
    best = read_results(folder.dir).best_of_each_trial()
    if config.render is None or not config.render.references or not best:
        return None
    job = RenderJob.of(config, config.render, best)
    return None if _rendered(folder) == job.index else job


def _rendered(folder: RunFolder) -> Any:
    try:
        return json.loads((folder.renders_dir / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or neither text nor JSON: rendered anew
        return None


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


def render_config(config: SweepConfig, references: Sequence[Path] = (), top: int | None = None) -> RenderConfig:
    """The sweep's render section, with what is given by hand instead of its own.

    Raises:
        UserError: there is no reference at all.
    """
    render = config.render or RenderConfig()
    given = {"references": [path.resolve() for path in references], "top": top}
    render = render.model_copy(update={name: value for name, value in given.items() if value})
    if not render.references:
        raise UserError("rendering needs a reference: name pictures under render.references or with --reference")
    return render


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
