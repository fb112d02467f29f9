"""What can be known before anything starts: the sweep's size, and everything that would make it fail later.

It needs neither Ray nor Optuna nor a GPU, and not torch either for as long as nothing has to be loaded to be checked.
"""

from __future__ import annotations

import errno
import math
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from evaluation.checks import check_clip, check_render
from evaluation.config import EvaluationConfig
from evaluation.face_encoders import check_face_encoder
from sweeps.asked import is_listed, listed_trials, num_planned
from sweeps.config import SweepConfig, class_images_needed
from sweeps.confirm import confirm_evaluation, confirm_of
from sweeps.held_out import held_out_photos
from sweeps.initial_weights import check_initial_weights
from sweeps.ledger.folder import RunFolder
from sweeps.photo_remarks import remarks_on_class_images
from sweeps.prompts import check_prompts, prompt_lines
from sweeps.results.leaderboard import rows_of
from sweeps.results.power import TYPICAL, Design, Noise, noise_of_base, smallest_visible
from sweeps.search.starts import Start, starts_of, starts_warnings
from sweeps.space import scoring_points
from sweeps.wording import bytes_text, learning_rate_text
from training.architecture import text_encoder_shapes, unet_shapes
from training.base_model import STABLE_DIFFUSION_15 as CONFIGS_OF_STABLE_DIFFUSION_15
from training.base_model import Configs, check_base_model, look_at
from training.base_name import parse_base_name
from training.config import DreamBoothConfig, LoraConfig, MethodConfig, Optimizer, TargetBlocks, TargetModules
from training.errors import UserError
from training.photos import check_photos
from training.pictures import find_photos
from training.preparation import class_photos
from training.targets import numbers_per_rank, text_encoder_targets, unet_targets
from training.weights import count

BYTES_PER_PIXEL = 1.5
"""Of a PNG of a photograph."""
STATE_FACTORS: Mapping[Optimizer, int] = {"adamw": 2, "prodigy": 4, "adafactor": 0}
"""Numbers that an optimizer keeps for each trained one. Adafactor's rows and columns are next to none."""
MANY_AT_ONCE = 8
"""Trials at one time on a cluster of unknown size: a guess."""
STATES_OF_A_TRIAL = 2
"""The newest checkpoint's, and the one before it until the newest has been scored."""
FLOAT_BYTES = 4
HALF_BYTES = 2
ADAM_8BIT_BYTES = 1
"""Of each number of 8-bit AdamW's state; the factors of its blocks are a hundredth of that and not counted."""
CHECKPOINT_OVERHEAD_BYTES = 100_000


@dataclass(frozen=True)
class BaseSizes:
    """How many numbers a base model holds, by which checkpoints are measured."""

    unet: int
    text_encoder: int
    unet_per_rank: Mapping[tuple[TargetModules, TargetBlocks], int]
    """Numbers that one LoRA rank adds to the UNet's layers."""
    text_encoder_per_rank: Mapping[TargetModules, int]
    native_size: int
    """Side of its pictures in pixels."""


def sizes_of(configs: Configs) -> BaseSizes:
    """Of a base model with these configs."""
    unet, text_encoder = unet_shapes(configs.unet), text_encoder_shapes(configs.text_encoder)
    return BaseSizes(
        unet=count(unet.values()),
        text_encoder=count(text_encoder.values()),
        unet_per_rank={
            (modules, blocks): numbers_per_rank(unet, unet_targets(modules, blocks))
            for modules in get_args(TargetModules)
            for blocks in get_args(TargetBlocks)
        },
        text_encoder_per_rank={
            modules: numbers_per_rank(text_encoder, text_encoder_targets(modules))
            for modules in get_args(TargetModules)
        },
        native_size=configs.unet.sample_size * 2 ** (len(configs.vae.block_out_channels) - 1),
    )


STABLE_DIFFUSION_15 = sizes_of(CONFIGS_OF_STABLE_DIFFUSION_15)


@dataclass(frozen=True)
class SecondStageSize:
    """What training the finalists again takes, at most."""

    finalists: int
    seeds: int
    num_steps: int
    num_prompts: int
    images_per_prompt: int

    @property
    def design(self) -> Design:
        """By how much each finalist is tried."""
        return Design(self.seeds, self.num_prompts, self.images_per_prompt, self.finalists)

    @property
    def num_images(self) -> int:
        """Pictures to generate and score, the base model's counted."""
        return (self.finalists * self.seeds + 1) * self.num_prompts * self.images_per_prompt


@dataclass(frozen=True)
class Plan:
    """What a sweep will take."""

    config: SweepConfig
    trials: tuple[MethodConfig, ...]
    """The trials of a grid or random search; for the others, as many drawn at random to measure by."""
    is_exact: bool
    num_steps: int
    """Training steps of all trials."""
    num_checkpoints: int
    """Scoring points of all trials, the base model's not counted."""
    num_images: int
    """Pictures to generate and score, the base model's counted."""
    num_class_images: int
    """Pictures of the class prompt that the base model draws once for all trials."""
    disk_bytes: int
    dreambooth_bytes: int | None = None
    """Of a GPU, for what the largest full DreamBooth trial trains; None where there is none, or where the sweep file
    says how many share a GPU."""
    second_stage: SecondStageSize | None = None
    """What training the finalists again will take, at most; None where there is no second stage."""
    num_held_out: int = 0
    """Photos that are not trained on; not known without looking at the photos."""
    noise: Noise = TYPICAL
    """By which it is said what the sweep can see."""
    starts: tuple[Start, ...] = ()
    """Trials that the search is given to begin with."""
    warnings: tuple[str, ...] = ()
    """What works and is perhaps not what is meant, a line each."""

    def lines(self) -> list[str]:
        """The plan for people."""
        config = self.config
        about = "" if self.is_exact else "about "
        stopping = ", fewer with early stopping" if config.search.early_stopping != "none" else ""
        methods = ", ".join(config.methods)
        screened = " (the best in full)" if config.evaluation.screening else ""
        pictures = f"{self.num_images:,} pictures (and base)"
        once = f", {self.num_class_images:,} class images once" if self.num_class_images else ""
        return [
            f"sweep     {config.name}: {methods}; {config.search.sampler} search, seed {config.search.seed}",
            f"trials    {len(self.trials)}",
            *(f"first     {_start_text(start)}" for start in self.starts),
            f"steps     {about}{self.num_steps:,} training steps in all{stopping}",
            f"scored    {about}{self.num_checkpoints:,} checkpoints{screened}, {pictures}{once}",
            f"disk      about {bytes_text(self.disk_bytes)}",
            *self._second_stage_lines(),
            *self._held_out_lines(),
            *self._visible_lines(),
            *self._memory_lines(),
            *prompt_lines(config),
            *(f"mind: {warning}" for warning in self.warnings),
        ]

    def _second_stage_lines(self) -> list[str]:
        stage = self.second_stage
        if stage is None:
            return ["confirm   no: the champion is named from one training each (confirm: {finalists: 3} changes that)"]
        return [
            f"confirm   the best {stage.finalists} trained again with {stage.seeds} other seeds each: up to "
            f"{stage.num_steps:,} steps more, {stage.num_images:,} pictures of {stage.num_prompts} prompts (and base); "
            "the champion is named from these"
        ]

    def _held_out_lines(self) -> list[str]:
        if not self.num_held_out:
            return []
        return [
            f"photos    {self.num_held_out} held out: not trained on, pictures are compared with them "
            "(subject.held_out_photos)"
        ]

    def _visible_lines(self) -> list[str]:
        """The smallest difference that the sweep can see, and what more of everything buys."""
        evaluation, stage = self.config.evaluation, self.second_stage
        of = "the base model's" if self.noise is not TYPICAL else "typical"
        if stage is None:
            design = Design(1, len(evaluation.prompts), evaluation.images_per_prompt)
            seen, twice = (
                smallest_visible(self.noise, each)
                for each in (design, replace(design, images_per_prompt=2 * design.images_per_prompt))
            )
            return [
                f"sees      face similarities that differ by {seen:.2f} (by {of} noise), {twice:.2f} with twice the "
                "pictures; nothing of what another training seed does"
            ]
        design, pairs = stage.design, max(1, stage.finalists * (stage.finalists - 1) // 2)
        seen, pictures, seeds = (
            smallest_visible(self.noise, each, pairs)
            for each in (
                design,
                replace(design, images_per_prompt=2 * design.images_per_prompt),
                replace(design, seeds=2 * design.seeds),
            )
        )
        return [
            f"sees      finalists whose face similarities differ by {seen:.2f} (by {of} noise); "
            f"{min(seen, pictures):.2f} with twice the pictures, {seeds:.2f} with twice the seeds"
        ]

    def _memory_lines(self) -> list[str]:
        """What one full DreamBooth trial takes of a GPU: several may share one, and by default none do."""
        if self.dreambooth_bytes is None:
            return []
        return [
            f"memory    a dreambooth trial on a GPU: {bytes_text(self.dreambooth_bytes)} for weights, gradients and "
            "the optimizer, activations not counted; where 4 fit: resources.gpus_per_trial: {dreambooth: 0.25}"
        ]


def _start_text(start: Start) -> str:
    values = {name.split("/")[-1]: value for name, value in start.values.items()}
    written = [
        learning_rate_text(value) if isinstance(value, float) and "rate" in name else str(value)
        for name, value in values.items()
    ]
    named = ", ".join(
        text if name == "method" else f"{name} {text}" for name, text in zip(values, written, strict=True)
    )
    return f"{named} ({start.source})"


def check_sweep(config: SweepConfig) -> Plan:
    """Check everything that this machine can, and measure the sweep.

    Weights that would be fetched from the hub are not asked for: a sweep for another machine may be checked here.

    Raises:
        UserError: the first thing that would not work.
    """
    check_photos(config.subject)
    _check_references(config.evaluation.face.references)
    check_base_model(config.base)
    check_initial_weights(config)
    check_face_encoder(config.evaluation.face.encoder, weights_present=False)
    check_clip(config.evaluation.clip, weights_present=False)
    if (second := config.evaluation.second_opinion) is not None:
        if second.face is not None:
            check_face_encoder(second.face.encoder, weights_present=False)
        if second.clip is not None:
            check_clip(second.clip, weights_present=False)
    if config.render is not None:
        check_render(config.render, weights_present=False)
    num_held_out = len(held_out_photos(config))
    plan = plan_of(config)
    return replace(
        plan,
        num_class_images=max(0, plan.num_class_images - len(class_photos(config.subject))),
        num_held_out=num_held_out,
        starts=tuple(starts_of(config)),
        warnings=(*check_prompts(config), *remarks_on_class_images(config), *starts_warnings(config)),
    )


def _check_references(folder: Path | None) -> None:
    if folder is None:
        return
    try:
        num_photos = len(find_photos(folder))
    except UserError as error:
        raise UserError(f"evaluation.face.references: {error}") from None
    if not num_photos:
        raise UserError(f"evaluation.face.references: need 1 or more pictures, got 0 in {folder}")


def with_noise_of(plan: Plan, run_dir: Path) -> Plan:
    """The plan with the noise of the base model's own pictures, where a run of the sweep has scored them."""
    try:
        base = RunFolder(run_dir).base()
    except UserError:
        return plan
    return plan if base is None else replace(plan, noise=noise_of_base(rows_of(base)[0]))


def plan_of(config: SweepConfig) -> Plan:
    """Measure the sweep without looking at its photos."""
    listed = is_listed(config)
    as_listed = config if listed else _drawn_at_random(config)
    trials = tuple(listed_trials(as_listed))[: num_planned(config)]
    sizes = base_sizes(config.base)
    points = [scoring_points(trial, config.evaluation.at_steps) for trial in trials]
    num_checkpoints = sum(map(len, points))
    num_images = _num_images(config.evaluation, num_checkpoints)
    num_class_images = class_images_needed(config)
    side = sizes.native_size
    pixels = (config.evaluation.width or side) * (config.evaluation.height or side)
    weights = sum(len(p) * checkpoint_bytes(trial, sizes) for p, trial in zip(points, trials, strict=True))
    second = _second_stage(config, trials)
    if second is not None:
        weights += second.finalists * second.seeds * max(checkpoint_bytes(trial, sizes) for trial in trials)
        num_images_in_all = num_images + second.num_images
    else:
        num_images_in_all = num_images
    at_once = config.search.max_concurrent_trials or MANY_AT_ONCE
    states = sorted(STATE_FACTORS[trial.optimizer] * checkpoint_bytes(trial, sizes) for trial in trials)[-at_once:]
    return Plan(
        config=config,
        trials=trials,
        is_exact=listed,
        num_steps=sum(trial.max_train_steps for trial in trials),
        num_checkpoints=num_checkpoints,
        num_images=num_images,
        num_class_images=num_class_images,
        disk_bytes=int(
            weights
            + STATES_OF_A_TRIAL * sum(states)
            + num_images_in_all * pixels * BYTES_PER_PIXEL
            + num_class_images * sizes.native_size**2 * BYTES_PER_PIXEL
        ),
        dreambooth_bytes=_dreambooth_bytes(config, trials, sizes),
        second_stage=second,
    )


def _second_stage(config: SweepConfig, trials: Sequence[MethodConfig]) -> SecondStageSize | None:
    """Were the longest trials the finalists."""
    confirm = confirm_of(config)
    if confirm is None:
        return None
    finalists = min(confirm.finalists, len(trials))
    longest = sorted((trial.max_train_steps for trial in trials), reverse=True)[:finalists]
    num_prompts = len(confirm_evaluation(config, confirm).prompts)
    return SecondStageSize(
        finalists, confirm.seeds, confirm.seeds * sum(longest), num_prompts, confirm.images_per_prompt
    )


def _num_images(evaluation: EvaluationConfig, num_checkpoints: int) -> int:
    """Of all checkpoints and, in full, of the base model and of those that are kept after screening."""
    screening, in_full = evaluation.screening, evaluation.num_images
    if screening is None:
        return in_full * (num_checkpoints + 1)
    num_kept = min(num_checkpoints, max(1, math.ceil(screening.keep * num_checkpoints)))
    return evaluation.first_look.num_images * (num_checkpoints - num_kept) + in_full * (num_kept + 1)


def _drawn_at_random(config: SweepConfig) -> SweepConfig:
    return config.model_copy(update={"search": config.search.model_copy(update={"sampler": "random"})})


def checkpoint_bytes(trial: MethodConfig, sizes: BaseSizes) -> int:
    """Size of one checkpoint's weights in float32."""
    if isinstance(trial, LoraConfig):
        per_rank = sizes.unet_per_rank[trial.target_modules, trial.target_blocks]
        if trial.train_text_encoder:
            per_rank += sizes.text_encoder_per_rank[trial.target_modules]
        numbers = trial.rank * per_rank * (2 if trial.adapter == "loha" else 1)  # a LoKr's are fewer
    else:
        numbers = sizes.unet + (sizes.text_encoder if trial.train_text_encoder else 0)
    return FLOAT_BYTES * numbers + CHECKPOINT_OVERHEAD_BYTES


def _dreambooth_bytes(config: SweepConfig, trials: Iterable[MethodConfig], sizes: BaseSizes) -> int | None:
    asked = config.resources.of("dreambooth")
    if asked.gpus is not None or asked.num_workers > 1:
        return None
    return max((training_bytes(trial, sizes) for trial in trials if isinstance(trial, DreamBoothConfig)), default=None)


def training_bytes(trial: DreamBoothConfig, sizes: BaseSizes) -> int:
    """Weights, gradients and the optimizer's state, in float32 whatever the precision of the passes.

    What stays frozen is not on the GPU while such a trial trains, for it works on stored latents, and prompts are
    encoded on the CPU; but for the UNet that says what the base model would have answered (`prior_from`).
    """
    numbers = sizes.unet + (sizes.text_encoder if trial.train_text_encoder else 0)
    state_bytes = STATE_FACTORS[trial.optimizer] * (ADAM_8BIT_BYTES if trial.use_8bit_adam else FLOAT_BYTES)
    asks_base = trial.with_prior_preservation and trial.prior_from == "base_model"
    frozen_bytes = sizes.unet * (FLOAT_BYTES if trial.mixed_precision == "no" else HALF_BYTES) if asks_base else 0
    return numbers * (FLOAT_BYTES + FLOAT_BYTES + state_bytes) + frozen_bytes


def base_sizes(base_model: str) -> BaseSizes:
    """Sizes of a local base model, read from the headers of its files; of any other, Stable Diffusion 1.5's.

    Raises:
        UserError: it is local and no usable base model.
    """
    look = look_at(base_model) if Path(parse_base_name(base_model).name).exists() else None
    if look is None:
        return STABLE_DIFFUSION_15
    return sizes_of(look.configs)


def check_disk(plan: Plan, folder: RunFolder) -> None:
    """Refuse a run folder that cannot be written or whose disk is too small for what is still to come.

    The disk that counts is the one of `trials/`, which may be another.
    """
    try:
        folder.dir.mkdir(parents=True, exist_ok=True)
        place = folder.trials_dir if folder.trials_dir.exists() else folder.dir
        probe = place / f".probe-{uuid.uuid4().hex}"
        probe.write_bytes(b"probe")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder.dir}: must be writable: {error.strerror}") from None
    needed, free = _disk_needed(plan, folder), shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{place}: needs about {bytes_text(needed)} of disk, {bytes_text(free)} are free; "
            "fewer trials or fewer evaluation.at_steps take less"
        )


def _disk_needed(plan: Plan, folder: RunFolder) -> int:
    files = [file for ledger in (folder, folder.confirm) for file in ledger.trials_dir.rglob("*")]
    there = sum(file.stat().st_size for file in files if file.is_file())
    return max(0, plan.disk_bytes - there)


@contextmanager
def failing_disk_explained(plan: Plan, folder: RunFolder) -> Iterator[None]:
    """While this lasts, a disk that fills up is said with its place, what is free and what is still needed.

    Raises:
        UserError: the disk is full or has become read-only; everything that was written is whole.
    """
    try:
        yield
    except OSError as error:
        place = error.filename or folder.trials_dir
        if error.errno == errno.EROFS:
            raise UserError(
                f"{place}: has become read-only; nothing that was scored is lost, let it be written and give the same "
                "command again"
            ) from None
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{place}: the disk is full: {bytes_text(shutil.disk_usage(folder.dir).free)} are free, the rest of the "
            f"sweep needs about {bytes_text(_disk_needed(plan, folder))}; nothing that was scored is lost, free some "
            "and give the same command again"
        ) from None
