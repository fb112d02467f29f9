"""The training loop: a generator of checkpoints.

It repeats what diffusers' DreamBooth scripts do in a step, on explicit state (weights, optimizer, schedule, step), so
that a run that was interrupted and resumed equals an uninterrupted one: bit for bit on the CPU.
Batches run on over the end of an epoch, so every step sees the same number of pictures.
"""

from __future__ import annotations

import gc
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import torch
from torch import Tensor

from training.checkpoint import Checkpoint, drop_older_states
from training.config import HORIZON_FREE_SCHEDULES, DreamBoothConfig, LoraConfig, TrainConfig, scoring_steps
from training.dataset import Dataset
from training.errors import UserError
from training.journal import Journal
from training.methods import TrainedModules
from training.share import ALONE, Share
from training.stable_diffusion import choose_device
from training.step import TrainingRun, apply_gradients, dropout_at, micro_step_inputs, micro_step_loss, start_run


class TrainingStopped(Exception):  # noqa: N818 - it names what happened
    """The caller asked for it; the last step that was taken is in a checkpoint."""


def train(
    config: LoraConfig | DreamBoothConfig,
    dataset: Dataset,
    at_steps: Sequence[int],
    resume_from: Checkpoint | None = None,
    *,
    out_dir: str | Path,
    device: torch.device | str | None = None,
    on_step: Callable[[int, float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    share: Share = ALONE,
) -> Iterator[Checkpoint]:
    """Train, and yield a checkpoint at each of `scoring_steps(at_steps, config.max_train_steps)`.

    Between two checkpoints nothing runs: a caller that has seen enough closes the generator, which frees the memory.
    A checkpoint has been taken when the caller asks for the next: until then the one before can be gone on from too.
    Several generators may take turns in one process.

    Several processes may share one training, each on a device of its own and in one process group: they give the same
    arguments but for their `share` and are given equal checkpoints, which the first of them writes. The checkpoint is
    whole when all have been given it.

    Args:
        config: one trial's hyperparameters.
        dataset: from `load_dataset`; its `base_model` is fine-tuned.
        at_steps: optimizer steps at which checkpoints are wanted; the last step is always one.
        resume_from: go on from this checkpoint (see `latest_checkpoint`), yielding only later ones.
        out_dir: the parent folder of the checkpoints and of `stats.jsonl` (see `read_stats`).
        device: default: the GPU where there is one.
        on_step: called with (step, loss) after every optimizer step.
        should_stop: asked after every optimizer step; at its first True a checkpoint of that step is written.
        share: this process's, of every batch.

    Raises:
        UserError: the machine or the dataset lacks what the config asks for, or `resume_from` is of another config.
        NonFiniteLoss: from the generator, when training runs away.
        TrainingStopped: from the generator, once the checkpoint that `should_stop` asked for is written.
        OSError: from the generator, when `out_dir` has gone or its disk is full.
    """
    device = choose_device(device)
    check_run(config, dataset, device, resume_from)
    if config.train_batch_size % share.world_size:
        raise UserError(
            f"train_batch_size: must be divisible by the {share.world_size} processes that share it, "
            f"got {config.train_batch_size}"
        )
    watcher = _Watcher(on_step or (lambda _step, _loss: None), should_stop or (lambda: False))
    return _checkpoints(config, dataset, at_steps, resume_from, Path(out_dir), device, share, watcher)


def check_run(
    config: LoraConfig | DreamBoothConfig, dataset: Dataset, device: torch.device, resume_from: Checkpoint | None
) -> None:
    """Refuse what cannot be trained with what is there.

    Raises:
        UserError: as `train` does.
    """
    check_training(config, device)
    _check_dataset(config, dataset)
    if resume_from is not None:
        _check_resume(config, resume_from)


def check_training(config: TrainConfig, device: torch.device | str | None = None) -> None:
    """Refuse, without loading anything, what this machine cannot train.

    Raises:
        UserError: fp16 without a GPU, bf16 on a GPU that lacks it, 8-bit Adam without its library, or `compile` without
            a compiler.
    """
    device = choose_device(device)
    if config.mixed_precision == "fp16" and device.type == "cpu":
        raise UserError("mixed_precision: fp16 needs a GPU, got device cpu (no and bf16 train on a CPU)")
    if config.mixed_precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError(f"mixed_precision: bf16 needs a newer GPU than {torch.cuda.get_device_name(device)}; use fp16")
    if config.use_8bit_adam and find_spec("bitsandbytes") is None:
        raise UserError("use_8bit_adam: needs bitsandbytes, which is not installed: pip install 'dreamsweep[adam8bit]'")
    if config.compile and not has_compiler():
        raise UserError(
            "compile: needs a C++ compiler, which is not installed: apt-get install g++, or name one as CXX"
        )


def has_compiler() -> bool:
    """Is there one of C++ where torch looks for it?"""
    command = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return which(shlex.split(command)[0]) is not None


@dataclass(frozen=True)
class _Watcher:
    """Who follows a training."""

    on_step: Callable[[int, float], None]
    should_stop: Callable[[], bool]


def _checkpoints(
    config: LoraConfig | DreamBoothConfig,
    dataset: Dataset,
    at_steps: Sequence[int],
    resume_from: Checkpoint | None,
    out_dir: Path,
    device: torch.device,
    share: Share,
    watcher: _Watcher,
) -> Iterator[Checkpoint]:
    try:
        yield from _checkpoints_of_run(
            start_run(config, dataset, device, resume_from, share), at_steps, out_dir, watcher
        )
    finally:  # nothing here holds the run by now
        if config.compile:
            torch.compiler.reset()  # torch keeps few variants of a module's code, and past them it compiles no more
        free_memory(device)


def _checkpoints_of_run(
    run: TrainingRun[TrainedModules], at_steps: Sequence[int], out_dir: Path, watcher: _Watcher
) -> Iterator[Checkpoint]:
    with closing(Journal(run, out_dir, watcher.on_step)) as journal:
        for step in scoring_steps(at_steps, run.config.max_train_steps):
            if step > run.step:
                _advance_through_phases(run, step, journal, watcher)
                checkpoint = journal.checkpoint()
                if run.step < step:
                    raise TrainingStopped(f"at step {run.step}")
                yield checkpoint
                if run.share.is_first:  # only now: it may have been damaged before anybody had scored it
                    drop_older_states(checkpoint)


def free_memory(device: torch.device) -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _advance_through_phases(
    run: TrainingRun[TrainedModules], to_step: int, journal: Journal, watcher: _Watcher
) -> None:
    """Take optimizer steps until `to_step`, or until told to stop; on the way the text encoder may be done."""
    end_of_text_encoder = run.config.stop_text_encoder_training
    with run.matrix_precision():
        if end_of_text_encoder is not None and run.step < end_of_text_encoder < to_step:
            _advance(run, end_of_text_encoder, journal, watcher)
            if run.step < end_of_text_encoder:
                return
        run.freeze_text_encoder_at(end_of_text_encoder)
        _advance(run, to_step, journal, watcher)


def _advance(run: TrainingRun[TrainedModules], to_step: int, journal: Journal, watcher: _Watcher) -> None:
    """Take optimizer steps until `to_step`, or until told to stop, and write each down."""
    while run.step < to_step:
        journal.begin()
        learning_rate = run.learning_rate
        losses = [_forward_and_backward(run, micro_step) for micro_step in run.micro_steps]
        gradient_norm = apply_gradients(run)
        journal.took(learning_rate, torch.stack(losses).double().mean(), gradient_norm)
        if watcher.should_stop():
            return


def _forward_and_backward(run: TrainingRun[TrainedModules], micro_step: int) -> Tensor:
    """Add the gradients of one micro-step to those that are there; its loss []."""
    with dropout_at(run, micro_step):
        inputs = micro_step_inputs(run, micro_step)
        with run.autocast():
            prediction = run.weights.unet(inputs.noisy_latents, inputs.timesteps, inputs.conditioning).sample
    loss = micro_step_loss(run, prediction, inputs)
    torch.autograd.backward(run.scaler.scale(loss / run.config.gradient_accumulation_steps))
    return loss.detach()


def _check_dataset(config: TrainConfig, dataset: Dataset) -> None:
    if config.face_loss_weight != 1 and dataset.face_coverage is None:
        raise UserError(
            f"face_loss_weight: where the faces are is not known of {dataset.dir} (crop: face finds them; 0.1.0 did "
            f"not write them down), so it must be 1, got {config.face_loss_weight:g}"
        )
    if not config.with_prior_preservation:
        return
    if dataset.class_prompt is None:
        raise UserError("subject.class_prompt: with_prior_preservation needs it, got none")
    if config.prior_from == "base_model":
        return
    num_class_images = 0 if dataset.class_latents is None else len(dataset.class_latents.mean)
    if num_class_images < config.num_class_images:
        raise UserError(
            f"num_class_images: the dataset must hold as many class images, got {num_class_images} of "
            f"{config.num_class_images} in {dataset.dir}"
        )


def _check_resume(config: LoraConfig | DreamBoothConfig, checkpoint: Checkpoint) -> None:
    """The same run, or a longer one where the schedule does not look at its end."""
    free = {"gradient_checkpointing"}  # it changes what is kept in memory, and no number
    if config.lr_scheduler in HORIZON_FREE_SCHEDULES:
        free.add("max_train_steps")
    wanted, found = config.model_dump(exclude=free), checkpoint.config.model_dump(exclude=free)
    different = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if different:
        raise UserError(f"resume_from: {checkpoint.dir} was trained with another {', '.join(different)}")
