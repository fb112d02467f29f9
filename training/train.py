"""The training loop: a generator of checkpoints.

It repeats what diffusers' DreamBooth scripts do in a step, on explicit state (weights, optimizer, schedule, step), so
that a run that was interrupted and resumed equals an uninterrupted one: bit for bit on the CPU.
Batches run on over the end of an epoch, so every step sees the same number of pictures.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from torch import Tensor

from training.batches import Batch, PromptEncoder, Stream, draw_batch, seed_at
from training.checkpoint import Checkpoint, load_training_state, save_checkpoint
from training.config import HORIZON_FREE_SCHEDULES, DreamBoothConfig, LoraConfig, TrainConfig, scoring_steps
from training.dataset import Dataset
from training.files import remove_parts
from training.loss import dreambooth_loss, prediction_target
from training.methods import TrainedModules, copy_for_training, trainable
from training.stable_diffusion import choose_device, load_base_model, training_noise_schedule


class NonFiniteLoss(ValueError):  # noqa: N818 - it names what happened
    """Training ran away: the loss or a weight is infinite or not a number."""


def train(
    config: LoraConfig | DreamBoothConfig,
    dataset: Dataset,
    at_steps: Sequence[int],
    resume_from: Checkpoint | None = None,
    *,
    out_dir: str | Path,
    device: torch.device | str | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Iterator[Checkpoint]:
    """Train, and yield a checkpoint at each of `scoring_steps(at_steps, config.max_train_steps)`.

    Between two checkpoints nothing runs: a caller that has seen enough closes the generator, which frees the memory.
    Several generators may take turns in one process.

    Args:
        config: one trial's hyperparameters.
        dataset: from `load_dataset`; its `base_model` is fine-tuned.
        at_steps: optimizer steps at which checkpoints are wanted; the last step is always one.
        resume_from: go on from this checkpoint (see `latest_checkpoint`), yielding only later ones.
        out_dir: the checkpoints' parent folder.
        device: default: the GPU where there is one.
        on_step: called with (step, loss) after every optimizer step.

    Raises:
        ValueError: the machine or the dataset lacks what the config asks for, or `resume_from` is of another config.
        NonFiniteLoss: from the generator, when training runs away.
    """
    device = choose_device(device)
    check_training(config, device)
    _check_dataset(config, dataset)
    if resume_from is not None:
        _check_resume(config, resume_from)
    return _checkpoints(config, dataset, at_steps, resume_from, Path(out_dir), device, on_step)


def check_training(config: TrainConfig, device: torch.device | str | None = None) -> None:
    """Refuse, without loading anything, what this machine cannot train.

    Raises:
        ValueError: fp16 without a GPU, bf16 on a GPU that lacks it, or 8-bit Adam without its library.
    """
    device = choose_device(device)
    if config.mixed_precision == "fp16" and device.type == "cpu":
        raise ValueError("mixed_precision: fp16 needs a GPU, got device cpu (no and bf16 train on a CPU)")
    if config.mixed_precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError(f"mixed_precision: bf16 needs a newer GPU than {torch.cuda.get_device_name(device)}; use fp16")
    if config.use_8bit_adam and find_spec("bitsandbytes") is None:
        raise ValueError(
            "use_8bit_adam: needs bitsandbytes, which is not installed: pip install 'dreamsweep[adam8bit]'"
        )


@dataclass
class _Run:
    """Everything that a training step reads and changes."""

    config: LoraConfig | DreamBoothConfig
    dataset: Dataset
    device: torch.device
    modules: TrainedModules
    encode_prompts: PromptEncoder
    noise_schedule: DDPMScheduler
    latent_scale: float
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LambdaLR
    loss_scale: dict[str, Any]
    """State of fp16's gradient scaler."""
    step: int = 0

    def training_state(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "loss_scale": self.loss_scale,
        }

    def load_training_state(self, state: dict[str, Any], step: int) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self.loss_scale = state["loss_scale"]
        self.step = step


def _checkpoints(
    config: LoraConfig | DreamBoothConfig,
    dataset: Dataset,
    at_steps: Sequence[int],
    resume_from: Checkpoint | None,
    out_dir: Path,
    device: torch.device,
    on_step: Callable[[int, float], None] | None,
) -> Iterator[Checkpoint]:
    out_dir.mkdir(parents=True, exist_ok=True)
    remove_parts(out_dir)
    run = _start(config, dataset, device, resume_from)
    try:
        for step in scoring_steps(at_steps, config.max_train_steps):
            if step > run.step:
                _advance(run, step, on_step)
                _check_weights(run)
                yield save_checkpoint(out_dir, config, run.modules, run.step, dataset.base_model, run.training_state())
    finally:
        del run
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _start(
    config: LoraConfig | DreamBoothConfig, dataset: Dataset, device: torch.device, resume_from: Checkpoint | None
) -> _Run:
    base = load_base_model(dataset.base_model)
    modules = copy_for_training(config, dataset.base_model, device, resume_from.dir if resume_from else None)
    optimizer = _optimizer(config, modules)
    run = _Run(
        config=config,
        dataset=dataset,
        device=device,
        modules=modules,
        encode_prompts=PromptEncoder(base, modules.text_encoder, device),
        noise_schedule=training_noise_schedule(base),
        latent_scale=base.vae.config.scaling_factor,
        optimizer=optimizer,
        lr_scheduler=get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
            num_cycles=config.lr_num_cycles,
            power=config.lr_power,
        ),
        loss_scale={},
    )
    if resume_from is not None:
        run.load_training_state(load_training_state(resume_from), resume_from.step)
    return run


def _advance(run: _Run, to_step: int, on_step: Callable[[int, float], None] | None) -> None:
    """Take optimizer steps until `to_step`."""
    with _accelerator(run) as accelerator, _forked_random_numbers(run.device):
        optimizer = accelerator.prepare_optimizer(run.optimizer, device_placement=False)
        while run.step < to_step:
            losses: list[float] = []
            for _ in range(run.config.gradient_accumulation_steps):
                micro_step = run.step * run.config.gradient_accumulation_steps + len(losses)
                with accelerator.accumulate(run.modules.unet):
                    batch = draw_batch(
                        run.config, run.dataset, micro_step, run.noise_schedule.config.num_train_timesteps
                    )
                    _seed_dropout(seed_at(run.config.seed, micro_step, Stream.DROPOUT), run.device)
                    with accelerator.autocast():
                        loss = _loss(run, batch)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(run.modules.parameters(), run.config.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                losses.append(loss.item())
            if not accelerator.optimizer_step_was_skipped:  # fp16 found an overflow and lowered its scale instead
                run.lr_scheduler.step()
            run.step += 1
            mean_loss = sum(losses) / len(losses)
            if not math.isfinite(mean_loss):
                raise NonFiniteLoss(f"training ran away: loss {mean_loss} at step {run.step}; lower learning_rate")
            if on_step:
                on_step(run.step, mean_loss)


def _loss(run: _Run, batch: Batch) -> Tensor:
    """The loss of one batch, as diffusers' scripts compute it."""
    noise, timesteps = batch.noise.to(run.device), batch.timesteps.to(run.device)
    latents = (batch.latents * run.latent_scale).to(run.device)
    noisy_latents = run.noise_schedule.add_noise(latents, noise, timesteps)
    prediction = run.modules.unet(noisy_latents, timesteps, run.encode_prompts(batch.prompts)).sample
    return dreambooth_loss(
        prediction,
        prediction_target(run.noise_schedule, latents, noise, timesteps),
        timesteps,
        run.noise_schedule,
        prior_loss_weight=run.config.prior_loss_weight if run.config.with_prior_preservation else None,
        snr_gamma=run.config.snr_gamma,
    )


def _optimizer(config: TrainConfig, modules: TrainedModules) -> torch.optim.Optimizer:
    if config.use_8bit_adam:
        from bitsandbytes.optim import AdamW8bit as AdamW  # an optional extra
    else:
        from torch.optim import AdamW
    groups: list[dict[str, Any]] = [{"params": trainable(modules.unet)}]
    if modules.text_encoder is not None:
        rate = config.text_encoder_learning_rate or config.learning_rate
        groups.append({"params": trainable(modules.text_encoder), "lr": rate})
    optimizer: torch.optim.Optimizer = AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
    )
    return optimizer


@contextmanager
def _accelerator(run: _Run) -> Iterator[Accelerator]:
    """An accelerator for one stretch of training.

    Accelerate keeps precision and accumulation in state that the whole process shares. That state is put aside for
    the stretch and put back after it, so that several trainings, and whoever else uses accelerate, don't meet in it.
    """
    shared = [owner._shared_state for owner in (PartialState, AcceleratorState, GradientState)]
    put_aside = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        accelerator = Accelerator(
            mixed_precision=run.config.mixed_precision,
            gradient_accumulation_steps=run.config.gradient_accumulation_steps,
            cpu=run.device.type == "cpu",
        )
        if accelerator.scaler is not None and run.loss_scale:
            accelerator.scaler.load_state_dict(run.loss_scale)
        yield accelerator
        if accelerator.scaler is not None:
            run.loss_scale = accelerator.scaler.state_dict()
    finally:
        for state, content in zip(shared, put_aside, strict=True):
            state.clear()
            state.update(content)


def _forked_random_numbers(device: torch.device) -> AbstractContextManager[None]:
    """Leave torch's global generators as they were: only dropout draws from them, seeded for its step."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _seed_dropout(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _check_weights(run: _Run) -> None:
    if not all(bool(parameter.isfinite().all()) for parameter in run.modules.parameters()):
        raise NonFiniteLoss(f"training ran away: weights that are no numbers at step {run.step}; lower learning_rate")


def _check_dataset(config: TrainConfig, dataset: Dataset) -> None:
    if not config.with_prior_preservation:
        return
    if dataset.class_prompt is None:
        raise ValueError("subject.class_prompt: with_prior_preservation needs it, got none")
    num_class_images = 0 if dataset.class_latents is None else len(dataset.class_latents.mean)
    if num_class_images < config.num_class_images:
        raise ValueError(
            f"num_class_images: the dataset must hold as many class images, got {num_class_images} of "
            f"{config.num_class_images} in {dataset.dir}"
        )


def _check_resume(config: LoraConfig | DreamBoothConfig, checkpoint: Checkpoint) -> None:
    """The same run, or a longer one where the schedule does not look at its end."""
    free = {"max_train_steps"} if config.lr_scheduler in HORIZON_FREE_SCHEDULES else set()
    wanted, found = config.model_dump(exclude=free), checkpoint.config.model_dump(exclude=free)
    different = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if different:
        raise ValueError(f"resume_from: {checkpoint.dir} was trained with another {', '.join(different)}")
