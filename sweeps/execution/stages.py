"""What is done once a sweep where trials run, before them and after them: jobs of trial servers.

Every stage is given the sections that it needs by the driver, which has validated them, and works in the run folder.
None reads the sweep file: what lies there may still be an older one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from evaluation.checks import check_clip, check_render
from evaluation.prompt import load_clip
from sweeps.execution.full_scores import FullScores
from sweeps.execution.machines import check_seen
from sweeps.execution.preparation import Preparation
from sweeps.execution.same_models import check_same_models
from sweeps.execution.scoring import score_base, use_threads
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.mirror import open_run
from sweeps.ledger.records import BASE_TRIAL
from sweeps.prompts import cut_texts, refuse_cut
from sweeps.rendering import render_best
from sweeps.renders import RenderJob
from sweeps.space import MethodSpace, corners_of
from training.config import METHODS
from training.dataset import (
    begin_class_images,
    draw_class_images,
    encode_dataset,
    num_class_images_missing,
)
from training.errors import UserError
from training.flops import flops_of
from training.layout import STATE_FILE
from training.passes import Pass
from training.share import ALONE, Share
from training.stable_diffusion import base_model_fingerprint, load_base_model
from training.tokenizer import reader_of_pipeline
from training.train import check_training


def prepare_run(asked: Preparation) -> Iterator[str]:
    """What all trials share, made where trials run: latents, class images, the base model's scores.

    Yields:
        What is being done, for the user.

    Raises:
        UserError: the base model, the CLIP model, a ControlNet or the precision cannot be had here, or a text is longer
            than what reads it.
    """
    yield from check_models_and_encode_photos(asked)
    yield from draw_share_of_class_images(asked, ALONE)
    yield from finish_preparation(asked)


def check_models_and_encode_photos(asked: Preparation) -> Iterator[str]:
    """The first part of `prepare_run`."""
    folder = _open_run(asked)
    folder.pull(folder.controls_dir)
    base_model, device, clip = asked.scoring.base_model, asked.device, asked.scoring.evaluation.clip
    folder.claim("device", device)  # pictures are made in half precision on a GPU
    yield "checking the models"
    check_trainable(asked.methods, device)
    check_clip(clip)
    if asked.render is not None:
        check_render(asked.render)
    folder.claim("base_model", base_model_fingerprint(base_model))
    folder.claim("clip_model", load_clip(clip, device).name)
    pipeline = reader_of_pipeline(load_base_model(base_model))
    refuse_cut(asked.texts.by_pipeline, pipeline)
    refuse_cut(asked.texts.by_clip, load_clip(clip, device).reader)
    yield from (f"mind: {line}" for line in cut_texts(asked.uncounted_captions, pipeline))
    yield "encoding the photos"
    encode_dataset(folder.dataset_dir, base_model, device=device)
    if asked.num_class_images:
        begin_class_images(folder.dataset_dir, base_model)
    folder.push(folder.identity_file, folder.dataset_dir)


def draw_share_of_class_images(asked: Preparation, share: Share) -> Iterator[str]:
    """The second part of `prepare_run`, or one process's share of it."""
    folder = _open_run(asked)
    if missing := num_class_images_missing(folder.dataset_dir, asked.num_class_images, share):
        yield f"drawing {missing} class images"
        draw_class_images(
            folder.dataset_dir, asked.scoring.base_model, asked.num_class_images, device=asked.device, share=share
        )
        folder.push(folder.dataset_dir)


def finish_preparation(asked: Preparation) -> Iterator[str]:
    """The last part of `prepare_run`, when all class images are there; one that is damaged is drawn again."""
    folder = _open_run(asked)
    encode_dataset(
        folder.dataset_dir, asked.scoring.base_model, class_images=asked.num_class_images, device=asked.device
    )
    base = folder.base()
    if base is None or not base.is_over:
        yield "scoring the base model"
        score_base(asked.scoring, folder, asked.device)
    folder.push(folder.identity_file, folder.dataset_dir, folder.trial_dir(BASE_TRIAL))


def score_base_again(asked: FullScores) -> Iterator[str]:
    """The base model's scores of more pictures, or of other ones than the search's.

    Yields:
        What is being done, for the user.
    """
    yield from ()
    folder = asked.open_run()
    folder.pull(folder.identity_file, folder.dataset_dir, folder.trial_dir(BASE_TRIAL))
    check_seen(folder)
    use_threads(asked.resources.cpus)
    check_same_models(folder, asked.scoring.base_model, asked.scoring.evaluation)
    score_base(asked.scoring, folder, asked.resources.device)


def _open_run(asked: Preparation) -> RunFolder:
    """The run folder as this machine has it, with what is there already."""
    folder = open_run(asked.run_dir, asked.storage)
    folder.pull(folder.identity_file, folder.dataset_dir, folder.trial_dir(BASE_TRIAL))
    check_seen(folder)
    use_threads(asked.cpus)
    return folder


def check_trainable(methods: Mapping[str, MethodSpace], device: str) -> None:
    """Refuse a precision or an optimizer that this machine does not have, whichever trial would ask for it."""
    for method, space in methods.items():
        for mixed_precision in corners_of(space.get("mixed_precision", "no")):
            for use_8bit_adam in corners_of(space.get("use_8bit_adam", False)):
                trial = METHODS[method].model_validate(
                    {"mixed_precision": mixed_precision, "use_8bit_adam": use_8bit_adam}
                )
                try:
                    check_training(trial, device)
                except UserError as error:
                    raise UserError(f"methods.{method}.{error}") from None


def render_where_trials_run(job: RenderJob, run_dir: str, storage: str | None) -> Iterator[str]:
    """Render a run's best trials on a machine that may not have its files yet.

    Yields:
        What is being done, for the user.

    Raises:
        UserError: from `render_best`.
    """
    yield "rendering the best trials"
    folder = open_run(run_dir, storage)
    check_same_models(folder, job.base_model)
    folder.pull(folder.controls_dir)
    folder.pull(folder.trials_dir, ending="trial.json")
    for row in job.best:
        if row.checkpoint is not None:
            folder.inside(row.checkpoint)  # or it is refused
            folder.pull(folder.dir / row.checkpoint, without=(STATE_FILE,))
    render_best(job, folder)
    folder.push(folder.renders_dir)


def measure_costs(kinds: Collection[Pass], base_model: str) -> Iterator[Mapping[Pass, int] | None]:
    """FLOPs of a sample of each kind, as `training.flops.flops_of` tells them."""
    yield flops_of(kinds, base_model)
