"""Reference pictures of the renders, on their way to the machines that render: they may lie on the driver's alone."""

from __future__ import annotations

from pathlib import Path

from evaluation.config import RenderConfig
from evaluation.reference_labels import reference_labels
from sweeps.ledger.folder import RunFolder
from training.errors import UserError
from training.files import whole_folder
from training.pictures import pixel_digest, read_picture


def send_controls(render: RenderConfig | None, folder: RunFolder) -> RenderConfig | None:
    """Copy the references into the run folder; the render section as it reads on every machine of the cluster."""
    if render is None or not render.references:
        return render
    names = [f"{Path(label).stem}.png" for label in reference_labels(render.references)]
    there = [folder.controls_dir / name for name in names]
    if not all(map(_alike, render.references, there)):
        with whole_folder(folder.controls_dir) as part:
            for original, name in zip(render.references, names, strict=True):
                read_picture(original).save(part / name)  # its pixels alone: where it was taken is nobody's business
    folder.push(folder.controls_dir)
    return render.model_copy(update={"references": there})


def _alike(original: Path, copy: Path) -> bool:
    try:
        return pixel_digest(read_picture(original)) == pixel_digest(read_picture(copy))
    except UserError:  # it is not there yet, or damaged
        return False
