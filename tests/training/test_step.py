"""The step's three functions: one run, several in one pass or one in several processes take the same step."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradScalerKwargs
from torch import Tensor

from tests.training.conftest import NUM_CLASS_IMAGES
from training.checkpoint import save_checkpoint
from training.config import DreamBoothConfig, LoraConfig
from training.dataset import Dataset
from training.stable_diffusion import frozen_module
from training.step import (
    MicroStepInputs,
    TrainingRun,
    apply_gradients,
    dropout_at,
    micro_step_inputs,
    micro_step_loss,
    start_run,
)
from training.train import train

CPU = torch.device("cpu")
LORA = LoraConfig(rank=2, learning_rate=1e-3, max_train_steps=3, train_batch_size=2, seed=3)
DREAMBOOTH = DreamBoothConfig(
    learning_rate=1e-4,
    max_train_steps=3,
    train_batch_size=2,
    gradient_accumulation_steps=2,
    train_text_encoder=True,
    with_prior_preservation=True,
    num_class_images=NUM_CLASS_IMAGES,
    snr_gamma=5.0,
    lr_scheduler="linear",
    seed=4,
)
FP16 = DREAMBOOTH.model_copy(update={"mixed_precision": "fp16"})
"""The command line refuses it on a CPU; the step's arithmetic is the same there."""


def predict(run: TrainingRun, inputs: MicroStepInputs) -> Tensor:
    with run.autocast():
        return run.weights.unet(inputs.noisy_latents, inputs.timesteps, inputs.conditioning).sample


def given(inputs: MicroStepInputs) -> list[Tensor]:
    """What is in them."""
    return [tensor for tensor in vars(inputs).values() if tensor is not None]


def add_gradients(run: TrainingRun, rows: list[int] | None = None) -> list[float]:
    """Forward and backward of one step's micro-steps, of some rows of each batch; their losses."""
    losses = []
    for micro_step in run.micro_steps:
        with dropout_at(run, micro_step):
            inputs = micro_step_inputs(run, micro_step)
            if rows is not None:
                inputs = MicroStepInputs(*(tensor[rows] for tensor in given(inputs)))
            prediction = predict(run, inputs)
        loss = micro_step_loss(run, prediction, inputs)
        run.scaler.scale(loss / run.config.gradient_accumulation_steps).backward()
        losses.append(loss.item())
    return losses


def gradients(run: TrainingRun) -> list[Tensor]:
    return [parameter.grad for parameter in run.weights.parameters() if parameter.grad is not None]


def copies(run: TrainingRun) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in run.weights.parameters()]


# --- others may hold runs --------------------------------------------------------------------------------------


def test_a_run_split_over_workers_whose_gradients_are_averaged_is_the_run(dataset: Dataset) -> None:
    """Each takes an equal part of the subject's and of the class's rows; only rounding differs."""
    alone, *workers = (start_run(DREAMBOOTH, dataset, CPU) for _ in range(3))
    for _ in range(DREAMBOOTH.max_train_steps):
        whole = sum(add_gradients(alone))
        parts = [sum(add_gradients(worker, rows)) for worker, rows in zip(workers, ([0, 2], [1, 3]), strict=True)]
        assert sum(parts) / 2 == pytest.approx(whole, rel=1e-5)
        for pair in zip(*(gradients(worker) for worker in workers), strict=True):
            mean = torch.stack(pair).mean(0)
            for gradient in pair:
                gradient.copy_(mean)
        norms = [apply_gradients(run) for run in (alone, *workers)]
        torch.testing.assert_close(norms[1], norms[0], rtol=1e-4, atol=0)
        assert torch.equal(norms[1], norms[2])
    for whole, first, second in zip(*(copies(run) for run in (alone, *workers)), strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, whole, rtol=1e-3, atol=2e-5)


def test_several_runs_inputs_may_go_through_one_forward_pass(dataset: Dataset, tmp_path: Path) -> None:
    """Laid after each other and cut apart again they give the losses of trainings alone; at step 0 a LoRA adds 0."""
    configs = [LORA, LORA.model_copy(update={"rank": 4, "seed": 5, "train_batch_size": 3, "snr_gamma": 5.0})]
    runs = [start_run(config, dataset, CPU) for config in configs]
    inputs = [micro_step_inputs(run, 0) for run in runs]
    together = MicroStepInputs(*(torch.cat(tensors) for tensors in zip(*(given(i) for i in inputs), strict=True)))
    unet = frozen_module(dataset.base_model, "unet", CPU, torch.float32)
    prediction = unet(together.noisy_latents, together.timesteps, together.conditioning).sample
    predictions = prediction.split([config.train_batch_size for config in configs])
    for number, (run, own, asked) in enumerate(zip(runs, predictions, inputs, strict=True)):
        alone: dict[int, float] = {}
        checkpoints = train(run.config, dataset, [1], out_dir=tmp_path / f"{number}", on_step=alone.__setitem__)
        next(checkpoints)
        assert micro_step_loss(run, own, asked).item() == pytest.approx(alone[1], rel=1e-5)


@pytest.mark.parametrize("config", [LORA, DREAMBOOTH], ids=["lora", "dreambooth"])
def test_inputs_and_loss_are_functions_that_ask_no_unet(
    config: LoraConfig | DreamBoothConfig, dataset: Dataset
) -> None:
    """In any order, as often as wanted: same inputs, same loss, no random number drawn, no gradient left behind."""
    run = start_run(config, dataset, CPU)
    run.weights.unet.forward = None
    numbers = torch.get_rng_state()
    first, again = ([micro_step_inputs(run, position) for position in order] for order in ((0, 1), (1, 0)))
    for one, other in zip(first, reversed(again), strict=True):
        assert all(torch.equal(*pair) for pair in zip(given(one), given(other), strict=True))
    assert not torch.equal(first[0].noisy_latents, first[1].noisy_latents)
    prediction = torch.zeros_like(first[0].target)
    assert micro_step_loss(run, prediction, first[0]) == micro_step_loss(run, prediction, first[0])
    assert micro_step_loss(run, first[0].target, first[0]) == 0
    assert torch.equal(torch.get_rng_state(), numbers)
    assert (run.step, gradients(run)) == (0, [])


def test_dropout_is_drawn_for_its_micro_step_and_leaves_no_trace(dataset: Dataset) -> None:
    """The same masks whenever the micro-step is computed, others at every other one and in every other run."""
    config = LORA.model_copy(update={"lora_dropout": 0.5})
    run, other = (start_run(c, dataset, CPU) for c in (config, config.model_copy(update={"seed": 9})))
    numbers = torch.get_rng_state()
    drawn = []
    for whose, micro_step in ((run, 0), (run, 1), (run, 0), (other, 0)):
        with dropout_at(whose, micro_step):
            drawn.append(torch.rand(8))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[3])
    assert torch.equal(torch.get_rng_state(), numbers)


def test_a_base_model_of_few_noise_levels_trains(dataset: Dataset, tmp_path: Path) -> None:
    """Timesteps are drawn from the levels that its schedule has, not from Stable Diffusion 1.5's thousand."""
    base = shutil.copytree(dataset.base_model, tmp_path / "base")
    file = base / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_train_timesteps": 20}))
    run = start_run(LORA.model_copy(update={"train_batch_size": 64}), replace(dataset, base_model=str(base)), CPU)
    assert 15 < micro_step_inputs(run, 0).timesteps.max() < 20


# --- the update ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [DREAMBOOTH, FP16], ids=["no", "fp16"])
def test_the_gradient_norm_is_that_before_clipping_and_what_is_clipped_is_unscaled(
    config: DreamBoothConfig, dataset: Dataset
) -> None:
    """Gradients of norm 4 give 4 and are cut to max_grad_norm, whatever the scale of the loss."""
    run = start_run(config.model_copy(update={"max_grad_norm": 0.5}), dataset, CPU)
    parameters = run.weights.parameters()
    size = sum(parameter.numel() for parameter in parameters)
    run.scaler.scale(torch.zeros(()))  # the scale is made when it is first used
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, run.scaler.get_scale() * 4 / math.sqrt(size))
    taken: list[Tensor] = []
    run.optimizer.register_step_pre_hook(lambda *_: taken.extend(gradient.clone() for gradient in gradients(run)))
    assert apply_gradients(run).item() == pytest.approx(4, rel=1e-3)
    assert torch.cat([gradient.flatten() for gradient in taken]).norm().item() == pytest.approx(0.5, rel=1e-3)
    assert (run.step, gradients(run)) == (1, [])


def test_a_step_skipped_by_overflow_changes_no_weight_and_leaves_the_schedule_where_it_is(dataset: Dataset) -> None:
    """The scale is halved; the next step is taken, and at the rate that the skipped one would have had."""
    run = start_run(FP16, dataset, CPU)
    rate, before = run.learning_rate, copies(run)
    add_gradients(run)
    gradients(run)[0][0] = math.inf
    assert not apply_gradients(run).isfinite()
    assert run.learning_rate == rate
    assert run.scaler.get_scale() == 2.0**15
    assert all(torch.equal(*pair) for pair in zip(copies(run), before, strict=True))
    assert (run.step, gradients(run)) == (1, [])

    add_gradients(run)
    assert apply_gradients(run).isfinite()
    assert run.learning_rate == pytest.approx(rate * 2 / 3)  # linear, from its start to 0 in three steps
    assert not any(torch.equal(*pair) for pair in zip(copies(run), before, strict=True))


def test_the_loss_scale_goes_on_where_it_was(dataset: Dataset, tmp_path: Path) -> None:
    """Saved as `loss_scale` and resumed; without fp16 there is none."""
    run = start_run(FP16, dataset, CPU)
    add_gradients(run)
    gradients(run)[0][0] = math.nan
    apply_gradients(run)
    add_gradients(run)
    apply_gradients(run)
    state = run.training_state()
    assert state["loss_scale"]["scale"] == 2.0**15
    assert state["loss_scale"]["_growth_tracker"] == 1
    checkpoint = save_checkpoint(tmp_path, FP16, run.weights, run.step, dataset.base_model, state)
    resumed = start_run(FP16, dataset, CPU, checkpoint)
    assert resumed.training_state()["loss_scale"] == state["loss_scale"]
    assert resumed.learning_rate == run.learning_rate
    assert resumed.step == 2
    assert start_run(DREAMBOOTH, dataset, CPU).training_state()["loss_scale"] == {}


# --- precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_the_forward_pass_has_the_precision_that_accelerate_gives_it(mixed_precision: str, dataset: Dataset) -> None:
    """Equal to the last bit, also where the caller computes in another precision."""
    config = LORA.model_copy(update={"mixed_precision": mixed_precision, "train_text_encoder": True})
    run = start_run(config, dataset, CPU)
    inputs = micro_step_inputs(run, 0)
    AcceleratorState._reset_state(reset_partial_state=True)
    with Accelerator(mixed_precision=mixed_precision, cpu=True).autocast():
        words = run.encode_prompts([dataset.instance_prompt] * config.train_batch_size)
        theirs = run.weights.unet(inputs.noisy_latents, inputs.timesteps, words).sample
    AcceleratorState._reset_state(reset_partial_state=True)
    for callers in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", callers):
            ours = predict(run, micro_step_inputs(run, 0))
        assert ours.dtype == (torch.bfloat16 if mixed_precision == "bf16" else torch.float32)
        assert torch.equal(ours, theirs)


def test_the_loss_scale_starts_as_accelerates_does(dataset: Dataset) -> None:
    """65536, doubled after 2000 steps without an overflow, halved by one."""
    theirs = GradScalerKwargs()
    assert start_run(FP16, dataset, CPU).scaler.state_dict() == {
        "scale": theirs.init_scale,
        "growth_factor": theirs.growth_factor,
        "backoff_factor": theirs.backoff_factor,
        "growth_interval": theirs.growth_interval,
        "_growth_tracker": 0,
    }
