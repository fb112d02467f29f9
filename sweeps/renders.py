"""Which ControlNet renders a sweep asks for, and whether they are there. Needs no torch; `rendering.py` makes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evaluation.config import RenderConfig
from evaluation.reference_labels import reference_labels
from sweeps.config import SweepConfig
from sweeps.ledger.folder import RunFolder
from sweeps.results.leaderboard import Row
from sweeps.results.results import read_results
from training.errors import UserError
from training.pictures import pixel_digest, read_picture

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
        return cls(render, config.base, config.subject.instance_prompt, tuple(best[: render.top]), config.storage)

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


def model_render_config(references: Sequence[Path], settings: Mapping[str, Any]) -> RenderConfig:
    """Renders of a model that is in no run, under the settings that are given (None: the default).

    Raises:
        UserError: a setting is not in its range.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        return RenderConfig.model_validate({"references": [path.resolve() for path in references], **given})
    except ValidationError as error:
        first = error.errors()[0]
        place = str(first["loc"][0]).replace("_", "-")
        raise UserError(f"--{place}: {first['msg']}, got {first['input']!r}") from None


def _rendered(folder: RunFolder) -> Any:
    try:
        return json.loads((folder.renders_dir / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or neither text nor JSON: rendered anew
        return None


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
