"""One training step as three functions over explicit state: inputs, loss, update.

    inputs = micro_step_inputs(run, micro_step)         what the UNet is asked, and what it should answer
    prediction = unet(...)                              the caller's, who may ask for several runs in one pass;
                                                        under `run.autocast()`
    loss = micro_step_loss(run, prediction, inputs)     .backward() is the caller's too
    gradient_norm = apply_gradients(run)                once the gradients of all micro-steps have been added up

Whoever trains one run, several in one forward pass, or one in several processes, takes these same steps; a process
that has a `Share` of a run is given its rows of every batch, and its gradients are averaged with the others' before the
update (`training.data_parallel`). Precision, accumulation and clipping are those of diffusers' scripts, which leave
them to accelerate; here they are the run's own, so that several trainings in a process have nothing to meet in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from training.batches import Batch, PromptEncoder, Stream, draw_batch, frozen_prompt_encoder, seed_at
from training.checkpoint import Checkpoint, load_training_state
from training.config import DreamBoothConfig, LoraConfig
from training.data_parallel import average_gradients, drop_by_row, rows_of
from training.dataset import Dataset
from training.initial_weights import start_of_lora
from training.loss import dreambooth_loss, prediction_target
from training.methods import TrainedModules, TrainedWeights, copy_for_training
from training.optimizers import make_optimizer, rate_of
from training.prior import BaseModelPrior
from training.share import ALONE, Share
from training.stable_diffusion import load_base_model, training_noise_schedule

WeightsT = TypeVar("WeightsT", bound=TrainedWeights)

_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class TrainingRun(Generic[WeightsT]):
    """Everything that a training step reads and changes."""

    config: LoraConfig | DreamBoothConfig
    dataset: Dataset
    device: torch.device
    weights: WeightsT
    encode_prompts: PromptEncoder
    noise_schedule: DDPMScheduler
    latent_scale: float
    """Factor between the VAE's latents and those that the UNet knows: 0.18215 for Stable Diffusion 1.5."""
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    """Keeps fp16's gradients from vanishing; in other precisions it does nothing."""
    step: int = 0
    """Optimizer steps taken."""
    share: Share = ALONE
    """Which rows of every batch are this process's."""
    prior: BaseModelPrior | None = None
    """Where the class's answers come from the base model instead of pictures."""

    @property
    def rows(self) -> list[int]:
        """This process's rows of a whole batch."""
        return rows_of(self.share, self.config.train_batch_size, self._num_parts)

    @property
    def whole_batch_size(self) -> int:
        """Rows of a batch, those of all processes together."""
        return self.config.train_batch_size * self._num_parts

    @property
    def _num_parts(self) -> int:
        return 2 if self.config.with_prior_preservation else 1

    @property
    def micro_steps(self) -> range:
        """The numbers of the next step's micro-steps, counted over the whole run."""
        accumulation = self.config.gradient_accumulation_steps
        return range(self.step * accumulation, (self.step + 1) * accumulation)

    @property
    def learning_rate(self) -> float:
        """The UNet's rate in the next step."""
        return rate_of(self.optimizer.param_groups[0])

    def freeze_text_encoder_at(self, step: int | None) -> None:
        """Let the text encoder train no further where the run has come to `step`."""
        if step is not None and self.step >= step:
            self.encode_prompts.freeze()

    @contextmanager
    def matrix_precision(self) -> Iterator[None]:
        """How exactly a GPU multiplies float32 matrices, forward and backward; afterwards as it was."""
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.config.allow_tf32
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    def autocast(self) -> torch.autocast:
        """The precision of the forward pass, whatever precision the caller computes in."""
        dtype = _AUTOCAST.get(self.config.mixed_precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def training_state(self) -> dict[str, Any]:
        """What going on needs besides the weights and the step."""
        return {
            "optimizer": self.weights.optimizer_state_alone(self.optimizer.state_dict()),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "loss_scale": self.scaler.state_dict(),
        }

    def load_training_state(self, state: dict[str, Any], step: int) -> None:
        """Go on from what `training_state` gave at `step`."""
        saved = self.weights.optimizer_state_here(state["optimizer"])
        fused = self.optimizer.defaults.get("fused")  # the config's, also where the checkpoint was made in a pack
        groups = [{**group, "fused": fused} if "fused" in group else group for group in saved["param_groups"]]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self.scaler.load_state_dict(state["loss_scale"])
        self.step = step


def start_run(
    config: LoraConfig | DreamBoothConfig,
    dataset: Dataset,
    device: torch.device,
    resume_from: Checkpoint | None = None,
    share: Share = ALONE,
) -> TrainingRun[TrainedModules]:
    """A run before its first step, or as it was when the checkpoint was written.

    Processes that share a run start it equally; nothing has to be sent from one to the others.

    Raises:
        UserError: the base model cannot be had, or the checkpoint is not one to go on from.
    """
    if resume_from is not None:
        modules = copy_for_training(config, dataset.base_model, device, resume_from.dir)
    else:
        start = start_of_lora(config, dataset) if isinstance(config, LoraConfig) else None
        modules = copy_for_training(config, dataset.base_model, device, None, start)
    if modules.text_encoder is None:
        encode_prompts = frozen_prompt_encoder(dataset.base_model, device)
    else:
        encode_prompts = PromptEncoder(load_base_model(dataset.base_model), modules.text_encoder, device)
    run = run_over(modules, config, dataset, device, encode_prompts, share)
    if not share.is_whole:
        drop_by_row(modules.unet, run.rows, run.whole_batch_size)
    if resume_from is not None:
        run.load_training_state(load_training_state(resume_from), resume_from.step)
    return run


def run_over(
    weights: WeightsT,
    config: LoraConfig | DreamBoothConfig,
    dataset: Dataset,
    device: torch.device,
    encode_prompts: PromptEncoder,
    share: Share = ALONE,
    *,
    fused: bool = False,
) -> TrainingRun[WeightsT]:
    """A run of these weights before its first step.

    `fused` AdamW takes a step in one kernel a parameter, rounded otherwise than diffusers' scripts do; the config may
    ask for it too.
    """
    base = load_base_model(dataset.base_model)
    optimizer = make_optimizer(config, weights.groups(), fused=fused or config.fused_adam)
    prior = None
    if config.with_prior_preservation and config.prior_from == "base_model":
        assert dataset.class_prompt is not None, "the dataset was held against the config"
        prior = BaseModelPrior(config, dataset.base_model, dataset.class_prompt, device)
    return TrainingRun(
        config=config,
        dataset=dataset,
        device=device,
        weights=weights,
        encode_prompts=encode_prompts,
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
        scaler=torch.amp.GradScaler(device.type, enabled=config.mixed_precision == "fp16"),
        share=share,
        prior=prior,
    )


@dataclass(frozen=True, eq=False)
class MicroStepInputs:
    """What one forward pass is about, on the run's device.

    B pictures, or with prior preservation 2B: B of the subject, then B of the class; B is the process's own part of
    `train_batch_size`.
    """

    noisy_latents: Tensor
    """float32 [B, 4, h, w]"""
    timesteps: Tensor
    """int64 [B] in [0, num_train_timesteps)"""
    conditioning: Tensor
    """[B, 77, d], the text encoder's last hidden states; with gradients where it trains."""
    target: Tensor
    """float32 [B, 4, h, w], what the UNet should answer."""
    cell_weights: Tensor | None = None
    """float32 [B, 1, h, w], what each cell's loss counts; None where all count alike."""


def micro_step_inputs(run: TrainingRun[Any], micro_step: int) -> MicroStepInputs:
    """The process's rows of batch number `micro_step` (from 0) of a run; the UNet is not asked.

    A text encoder that trains is: where there is dropout, call it under `dropout_at`. It reads the whole batch in every
    process, so that its dropout is the whole batch's; beside the UNet that costs little.
    """
    batch = batch_of(run, micro_step)
    with run.autocast():
        if run.encode_prompts.is_frozen:
            conditioning = run.encode_prompts([batch.prompts[row] for row in run.rows])
        else:
            conditioning = run.encode_prompts(batch.prompts)[run.rows]
    return inputs_of(run, batch, conditioning)


def batch_of(run: TrainingRun[Any], micro_step: int) -> Batch:
    """The whole batch number `micro_step` (from 0) of a run, on the CPU."""
    return draw_batch(run.config, run.dataset, micro_step, run.noise_schedule.config.num_train_timesteps)


def inputs_of(run: TrainingRun[Any], batch: Batch, conditioning: Tensor) -> MicroStepInputs:
    """The process's rows of a batch, with what their prompts have been encoded to."""
    rows = run.rows
    noise, timesteps, latents = (
        _sent(tensor[rows], run.device) for tensor in (batch.noise, batch.timesteps, batch.latents * run.latent_scale)
    )
    noisy_latents = run.noise_schedule.add_noise(latents, noise, timesteps)
    target = prediction_target(run.noise_schedule, latents, noise, timesteps)
    if run.prior is not None:
        with run.autocast():
            of_class = run.prior(noisy_latents.chunk(2)[1], timesteps.chunk(2)[1])
        target = torch.cat([target.chunk(2)[0], of_class])
    weights = batch.cell_weights
    return MicroStepInputs(
        noisy_latents=noisy_latents,
        timesteps=timesteps,
        conditioning=conditioning,
        target=target,
        cell_weights=None if weights is None else _sent(weights[rows], run.device),
    )


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """To a GPU without waiting for what it still has to do."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def dropout_at(run: TrainingRun[Any], micro_step: int) -> Iterator[None]:
    """Torch's global generators, from which dropout draws, as this micro-step of this run has them.

    Afterwards they are as they were.
    """
    seed = seed_at(run.config.seed, micro_step, Stream.DROPOUT)
    on_gpu = run.device.type == "cuda"
    with torch.random.fork_rng(devices=[run.device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(run.device):
                torch.cuda.manual_seed(seed)
        yield


def micro_step_loss(run: TrainingRun[Any], prediction: Tensor, inputs: MicroStepInputs) -> Tensor:
    """The loss [] of the UNet's answer [B, 4, h, w], in float32; it changes nothing.

    Its gradients are those of a step once it is divided by `gradient_accumulation_steps` and scaled by `run.scaler`.
    """
    return dreambooth_loss(
        prediction,
        inputs.target,
        inputs.timesteps,
        run.noise_schedule,
        prior_loss_weight=run.config.prior_loss_weight if run.config.with_prior_preservation else None,
        snr_gamma=run.config.snr_gamma,
        cell_weights=inputs.cell_weights,
    )


def apply_gradients(run: TrainingRun[Any]) -> Tensor:
    """Take the optimizer step that the added up gradients ask for, then forget them.

    Processes that share the run average their gradients first: all of them must call it.

    Where an fp16 gradient has overflowed, no weight changes and the schedule stays where it is; the scale falls.

    Returns:
        Norm [] of all gradients together, before clipping; not finite where one has overflowed.
    """
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    average_gradients(run.share, parameters)
    run.scaler.unscale_(run.optimizer)
    gradient_norm = clip_grad_norm_(parameters, run.config.max_grad_norm)
    scale = run.scaler.get_scale()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad()
    overflowed = run.scaler.get_scale() < scale
    if not overflowed:
        run.lr_scheduler.step()
    run.step += 1
    return gradient_norm
