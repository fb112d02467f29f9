"""What a sweep computed, and what its trials would have taken as runs of their own: counted from the run folder alone.

What is counted are optimizer steps, pictures, and samples through Stable Diffusion's modules. Whatever was computed
twice because a machine was lost is in no file and not in the counts; neither are the face encoder and CLIP. What
*separate runs* means is in `docs/design/015-work-counted.md`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ValidationError

from evaluation.config import EvaluationConfig
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import BASE_TRIAL, TrialRecord
from sweeps.results.results import Results
from sweeps.space import scoring_points
from training.config import LoraConfig, MethodConfig
from training.passes import AdapterKind, Pass
from training.photos import prepared_record
from training.stats import STATS_FILE, StepStats, read_stats

Stage = Literal["photos", "class_images", "training", "scoring", "base_model", "renders"]

CLASS_IMAGE_STEPS = 25
"""Sampler steps of a class image (`training/class_images.py`)."""
UPSTREAM_CLASS_IMAGE_STEPS = 50
"""The same in diffusers' scripts: their pipeline's default. (PNDM, the usual scheduler, calls the UNet once more.)"""
CLASS_IMAGE_GUIDANCE = 7.5
"""In both: the pipeline's default."""


@dataclass(frozen=True)
class Work:
    """An amount of work; amounts add up."""

    runs: int = 0
    """Trainings that were begun."""
    steps: Counter[str] = field(default_factory=Counter)
    """Method -> optimizer steps."""
    pictures: Counter[Stage] = field(default_factory=Counter)
    """What for -> pictures drawn."""
    passes: Counter[tuple[Stage, Pass]] = field(default_factory=Counter)
    """What for and of which kind -> samples."""

    def __add__(self, other: Work) -> Work:
        """Both."""
        return Work(
            self.runs + other.runs,
            self.steps + other.steps,
            self.pictures + other.pictures,
            self.passes + other.passes,
        )


@dataclass(frozen=True)
class Account:
    """The same sweep's work in four ways; accounts add up."""

    computed: Work = Work()
    separate_runs: Work = Work()
    """Each trial at each of its scoring points as a run of its own, from step 0 to that step."""
    to_the_end: Work = Work()
    """What would have been computed had no trial been stopped before its end."""
    separate_runs_to_the_end: Work = Work()
    """Separate runs for all points of those."""

    def __add__(self, other: Account) -> Account:
        """Both."""
        return Account(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @property
    def kinds(self) -> set[Pass]:
        """Every kind of pass in it."""
        return {kind for each in fields(self) for _, kind in getattr(self, each.name).passes}


@dataclass(frozen=True)
class Prepared:
    """What of a dataset decides what is computed."""

    resolution: int
    """Side of the training pictures in pixels."""
    num_photos: int
    is_flipped: bool
    """Whether the mirrored photos are encoded too."""
    num_prompts: int
    """Different prompts that the photos have: captions, and the instance prompt where one has none."""
    num_class_images: int
    """Drawn so far."""
    num_class_photos: int
    """One's own."""

    @classmethod
    def of(cls, folder: RunFolder, resolution: int) -> Prepared:
        """As the run folder holds it; nothing where no photo was prepared."""
        record = prepared_record(folder.dataset_dir)
        photos = record.get("photos", [])
        return cls(
            resolution=resolution,
            num_photos=len(photos),
            is_flipped=bool(photos) and bool(record["subject"]["random_flip"]),
            num_prompts=len({photo["caption"] for photo in photos}),
            num_class_images=len(list(folder.dataset_dir.glob("class_images/*.png"))),
            num_class_photos=len(record.get("class_photos", [])),
        )


def account_of(results: Results) -> Account:
    """All that lies in a run folder, trials of an earlier state of the sweep file and finalists' trainings included.

    Raises:
        AssertionError: `results` has no sweep file.
    """
    assert results.config is not None, "what a picture takes is in the sweep file"
    evaluation, folder = results.config.evaluation, results.folder
    prepared = Prepared.of(folder, results.config.subject.resolution)
    once = [_photos(prepared), _class_images(prepared), _renders(folder, results.trials)]
    trials = [
        account_of_base(trial, evaluation)
        if trial.is_base
        else account_of_trial(trial, steps_taken(folder, trial), evaluation, prepared)
        for trial in results.trials
    ]
    again = [
        account_of_base(trial, evaluation)
        if trial.is_base
        else account_of_trial(trial, steps_taken(folder.confirm, trial), evaluation, prepared)
        for trial in results.again
    ]
    return reduce(add, [*once, *trials, *again], Account())


def steps_taken(folder: RunFolder, trial: TrialRecord) -> int:
    """Optimizer steps of a trial, those since its newest score included."""
    stats = _stats(folder, trial)
    return max([stats[-1].step if stats else 0, *(checkpoint.step for checkpoint in trial.checkpoints)])


def seconds_by_stage(results: Results) -> dict[str, float]:
    """Seconds of the clock, added up over trials; scoring is whatever of a trial's seconds was not training.

    A trial's seconds are those of its worker, loading the models included.
    """
    ledgers = ((results.folder, results.trials), (results.folder.confirm, results.again))
    everything = [(folder, trial) for folder, trials in ledgers for trial in trials]
    trained = [(folder, trial) for folder, trial in everything if not trial.is_base]
    training = sum(taken.seconds for folder, trial in trained for taken in _stats(folder, trial))
    return {
        "training": training,
        "scoring": max(0.0, sum(trial.seconds for _, trial in trained) - training),
        "base_model": sum(trial.seconds for _, trial in everything if trial.is_base),
    }


def _stats(folder: RunFolder, trial: TrialRecord) -> list[StepStats]:
    return read_stats(folder.trial_dir(trial.trial) / STATS_FILE)


# --- trials -------------------------------------------------------------------------------------------------------


def account_of_trial(trial: TrialRecord, steps: int, evaluation: EvaluationConfig, prepared: Prepared) -> Account:
    """What a trial took.

    Args:
        trial: its record; its checkpoints are its scoring points.
        steps: it has taken, those since its newest score included.
        evaluation: how its pictures are made.
        prepared: what it trains on.
    """
    config = trial.method_config
    points = {checkpoint.step: checkpoint.num_images for checkpoint in trial.checkpoints}
    in_full = {
        checkpoint.step: evaluation.num_images if checkpoint.screened else checkpoint.num_images
        for checkpoint in trial.checkpoints
    }
    ends_later = trial.status in ("running", "stopped")
    to_come = [
        step for step in scoring_points(config, evaluation.at_steps) if ends_later and step > max(points, default=0)
    ]
    all_steps = config.max_train_steps if ends_later else steps
    all_points = points | dict.fromkeys(to_come, evaluation.first_look.num_images)
    all_in_full = in_full | dict.fromkeys(to_come, evaluation.num_images)
    return Account(
        _together(config, steps, points, evaluation, prepared),
        _separately(config, steps, in_full, evaluation, prepared),
        _together(config, all_steps, all_points, evaluation, prepared),
        _separately(config, all_steps, all_in_full, evaluation, prepared),
    )


def _together(
    config: MethodConfig, steps: int, points: dict[int, int], evaluation: EvaluationConfig, prepared: Prepared
) -> Work:
    """One training, scored at all its points (step -> pictures); photos and class images were encoded before it."""
    work = Work(runs=int(steps > 0), steps=Counter({config.method: steps}))
    passes = _training_passes(config, steps, prepared)
    if not config.train_text_encoder and steps:
        photos_seen = steps * config.gradient_accumulation_steps * config.train_batch_size
        num_prompts = min(prepared.num_prompts, photos_seen) + config.with_prior_preservation
        passes["training", Pass("text_encoder")] += num_prompts  # once a prompt and process
    scored = (_scored("scoring", number, evaluation, config) for number in points.values())
    return reduce(add, scored, work + Work(passes=passes))


def _separately(
    config: MethodConfig, steps: int, points: dict[int, int], evaluation: EvaluationConfig, prepared: Prepared
) -> Work:
    """A training for each point, and one for the steps after the last, which a run that fails takes too."""
    lengths = [*points, *([steps] if steps > max(points, default=0) else [])]
    work = Work(runs=len(lengths), steps=Counter({config.method: sum(lengths)}))
    for length in lengths:
        passes = _training_passes(config, length, prepared)
        rows = _rows(config, length)
        passes["training", _square("vae_encoder", prepared)] += rows  # every row of every step, in the loop
        if not config.train_text_encoder:
            passes["training", Pass("text_encoder")] += rows  # likewise: pre_compute_text_embeddings is off by default
        work += Work(passes=passes)
        if config.with_prior_preservation and config.prior_from == "class_images":
            work += _drawn("class_images", config.num_class_images, UPSTREAM_CLASS_IMAGE_STEPS, CLASS_IMAGE_GUIDANCE)
    scored = (_scored("scoring", number, evaluation, config) for number in points.values())
    return reduce(add, scored, work)


def _rows(config: MethodConfig, steps: int) -> int:
    """Training pictures of so many steps, class images included."""
    parts = 2 if config.with_prior_preservation else 1
    return steps * config.gradient_accumulation_steps * config.train_batch_size * parts


def _training_passes(config: MethodConfig, steps: int, prepared: Prepared) -> Counter[tuple[Stage, Pass]]:
    """What both ways of training ask of the modules that train."""
    unet, text_encoder = _adapted(config)
    side, rows = prepared.resolution, _rows(config, steps)
    how: dict[str, Any] = {"trains": True, "gradient_checkpointing": config.gradient_checkpointing}
    passes: Counter[tuple[Stage, Pass]] = Counter()
    passes["training", replace(unet, width=side, height=side, **how)] = rows
    if config.train_text_encoder:
        last = min(steps, config.stop_text_encoder_training or steps)
        passes["training", replace(text_encoder, **how)] = _rows(config, last)
    if config.with_prior_preservation and config.prior_from == "base_model":
        passes["training", Pass("unet", side, side)] = rows // 2
    return passes


def _adapted(config: MethodConfig | None) -> tuple[Pass, Pass]:
    """A sample through a trial's UNet and text encoder; without a config, the base model's, which have no adapters."""
    unet, text_encoder = Pass("unet"), Pass("text_encoder")
    if not isinstance(config, LoraConfig):
        return unet, text_encoder
    kind: AdapterKind = "dora" if config.use_dora else config.adapter
    layers: dict[str, Any] = {"rank": config.rank, "target_modules": config.target_modules, "adapter": kind}
    unet = replace(unet, target_blocks=config.target_blocks, **layers)
    return unet, replace(text_encoder, **layers) if config.train_text_encoder else text_encoder


# --- pictures -----------------------------------------------------------------------------------------------------


def account_of_base(trial: TrialRecord, evaluation: EvaluationConfig) -> Account:
    """The base model's pictures, made once whichever way."""
    pictures = sum(checkpoint.num_images for checkpoint in trial.checkpoints)
    return _alike(_scored("base_model", pictures, evaluation, None))


def _scored(stage: Stage, pictures: int, evaluation: EvaluationConfig, config: MethodConfig | None) -> Work:
    """Pictures to be scored, of a trial's checkpoint or, without a config, of the base model."""
    size = (evaluation.width, evaluation.height)
    return _drawn(stage, pictures, evaluation.num_inference_steps, evaluation.guidance_scale, size, config)


def _drawn(
    stage: Stage,
    pictures: int,
    steps: int,
    guidance: float,
    size: tuple[int | None, int | None] = (None, None),
    config: MethodConfig | None = None,
    with_controlnet: bool = False,
) -> Work:
    """Pictures of `steps` sampler steps; DDIM, DPM-Solver++ and UniPC call the UNet once a step.

    Classifier-free guidance, above 1, asks everything but the VAE twice: for the prompt and the negative prompt.
    """
    asked = pictures * (2 if guidance > 1 else 1)
    passes: Counter[tuple[Stage, Pass]] = Counter()
    unet, text_encoder = _adapted(config)
    passes[stage, text_encoder] = asked
    passes[stage, replace(unet, width=size[0], height=size[1])] = steps * asked
    if with_controlnet:
        passes[stage, Pass("controlnet", *size)] = steps * asked
    passes[stage, Pass("vae_decoder", *size)] = pictures
    return Work(pictures=Counter({stage: pictures}), passes=+passes)


# --- once a sweep -------------------------------------------------------------------------------------------------


def _photos(prepared: Prepared) -> Account:
    """The photos' latents; separate runs encode rows instead."""
    number = prepared.num_photos * (2 if prepared.is_flipped else 1)
    encoded = Work(passes=+Counter({("photos", _square("vae_encoder", prepared)): number}))
    return Account(computed=encoded, to_the_end=encoded)


def _class_images(prepared: Prepared) -> Account:
    """Drawn and encoded for all trials together; separate runs that need them draw their own."""
    drawn = prepared.num_class_images
    encoded = Work(
        passes=+Counter({("class_images", _square("vae_encoder", prepared)): drawn + prepared.num_class_photos})
    )
    made = _drawn("class_images", drawn, CLASS_IMAGE_STEPS, CLASS_IMAGE_GUIDANCE) + encoded
    return Account(computed=made, to_the_end=made)


class _RenderedTrial(BaseModel):
    trial: str


class _RenderIndex(BaseModel):
    """What of `renders/renders.json` decides what a render takes."""

    trials: list[_RenderedTrial] = []
    num_inference_steps: int = 0
    guidance_scale: float = 0.0


def _renders(folder: RunFolder, trials: Iterable[TrialRecord]) -> Account:
    """The ControlNet renders that lie in the run folder, of the base model and of the best trials."""
    index = _render_index(folder)
    if index is None:
        return Account()
    configs = {trial.trial: trial.method_config for trial in trials if not trial.is_base}
    work = Work()
    for name in (BASE_TRIAL, *(rendered.trial for rendered in index.trials if rendered.trial in configs)):
        for size in _picture_sizes(folder.renders_dir / name):
            steps, guidance = index.num_inference_steps, index.guidance_scale
            work += _drawn("renders", 1, steps, guidance, size, configs.get(name), with_controlnet=True)
    return _alike(work)


def _render_index(folder: RunFolder) -> _RenderIndex | None:
    """None where there are no renders, or not all of them."""
    try:
        return _RenderIndex.model_validate_json((folder.renders_dir / "renders.json").read_bytes())
    except (OSError, ValidationError):
        return None


def _picture_sizes(folder: Path) -> Iterator[tuple[int, int]]:
    """Width and height of each picture that can be read."""
    for file in sorted(folder.glob("*.png")):
        with suppress(OSError), Image.open(file) as picture:
            yield picture.size


def _square(part: Literal["vae_encoder"], prepared: Prepared) -> Pass:
    return Pass(part, prepared.resolution, prepared.resolution)


def _alike(work: Work) -> Account:
    """Work that would be the same whichever way."""
    return Account(work, work, work, work)
