"""Reference pictures of the renders, on their way to the machines that render: they may lie on the driver's alone."""

from __future__ import annotations

import shutil

from evaluation.config import RenderConfig
from evaluation.render import reference_labels
from sweeps.ledger.folder import RunFolder
from training.files import sha256_of, whole_folder


def send_controls(render: RenderConfig | None, folder: RunFolder) -> RenderConfig | None:
    """Copy the references into the run folder; the render section as it reads on every machine of the cluster."""
    if render is None or not render.references:
        return render
    labels = [label.lstrip("/") for label in reference_labels(render.references)]
    there = [folder.controls_dir / label for label in labels]
    pairs = list(zip(render.references, there, strict=True))
    if not all(copy.is_file() and sha256_of(copy) == sha256_of(original) for original, copy in pairs):
        with whole_folder(folder.controls_dir) as part:
            for original, label in zip(render.references, labels, strict=True):
                (part / label).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(original, part / label)
    folder.push(folder.controls_dir)
    return render.model_copy(update={"references": there})
