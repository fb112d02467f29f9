"""Optimizers are their libraries' own, set up as the trainers that people know set them up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from prodigyopt import Prodigy
from torch import Tensor
from transformers.optimization import Adafactor

from tests.training.test_train import last
from training.config import LoraConfig, is_packable
from training.dataset import Dataset
from training.stats import STATS_FILE, read_stats
from training.step import TrainingRun, apply_gradients, micro_step_inputs, micro_step_loss, start_run
from training.train import train

CPU = torch.device("cpu")
PRODIGY = LoraConfig(
    rank=2,
    optimizer="prodigy",
    learning_rate=1.0,
    adam_weight_decay=1e-2,
    train_batch_size=2,
    max_train_steps=30,
    train_text_encoder=True,
    seed=2,
)
ADAFACTOR = PRODIGY.model_copy(update={"optimizer": "adafactor", "learning_rate": 1e-3})


def add_gradients(run: TrainingRun) -> list[Tensor]:
    inputs = micro_step_inputs(run, run.step)
    prediction = run.weights.unet(inputs.noisy_latents, inputs.timesteps, inputs.conditioning).sample
    micro_step_loss(run, prediction, inputs).backward()
    return [parameter.grad for parameter in run.weights.parameters()]


def by_hand(config: LoraConfig, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """As `train_dreambooth_lora_sd15_advanced.py` makes its Prodigy, and kohya's trainers advise Adafactor."""
    if config.optimizer == "prodigy":
        return Prodigy(
            parameters,
            lr=1.0,
            betas=(0.9, 0.999),
            beta3=None,
            weight_decay=1e-2,
            eps=1e-8,
            decouple=True,
            use_bias_correction=True,
            safeguard_warmup=True,
        )
    return Adafactor(
        parameters, lr=1e-3, weight_decay=1e-2, scale_parameter=False, relative_step=False, warmup_init=False
    )


@pytest.mark.parametrize("config", [PRODIGY, ADAFACTOR], ids=["prodigy", "adafactor"])
def test_steps_are_the_librarys_own(config: LoraConfig, dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    """From the same clipped gradients, over one list of all weights, to the bit."""
    run = start_run(config, dataset, CPU)
    assert not capsys.readouterr().out
    twins = [parameter.detach().clone().requires_grad_() for parameter in run.weights.parameters()]
    optimizer = by_hand(config, twins)
    for _ in range(20):  # by then Prodigy has changed its mind about the rate
        for twin, gradient in zip(twins, add_gradients(run), strict=True):
            twin.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(twins, 1.0)
        apply_gradients(run)
        optimizer.step()
    assert run.learning_rate > 1.01e-6 if config.optimizer == "prodigy" else run.learning_rate == 1e-3
    start = start_run(config, dataset, CPU).weights.parameters()
    for parameter, twin in zip(run.weights.parameters(), twins, strict=True):
        assert torch.equal(parameter, twin)
    assert any(not torch.equal(*pair) for pair in zip(start, twins, strict=True))


def test_prodigys_own_rate_is_what_is_written_down(dataset: Dataset, tmp_path: Path) -> None:
    """Its estimate times `learning_rate`: small at first, then it grows."""
    last(train(PRODIGY, dataset, [], out_dir=tmp_path, device="cpu"))
    rates = [line.learning_rate for line in read_stats(tmp_path / STATS_FILE)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[-1] > 1.5 * rates[0]
    assert rates == sorted(rates)


def test_the_text_encoder_has_its_own_rate_where_the_optimizer_can(dataset: Dataset) -> None:
    """Adafactor as AdamW; Prodigy refuses it when the config is read."""
    config = ADAFACTOR.model_copy(update={"text_encoder_learning_rate": 1e-5})
    run = start_run(config, dataset, CPU)
    assert [group["lr"] for group in run.optimizer.param_groups] == [1e-3, 1e-5]
    assert not is_packable(config)


def test_adafactor_keeps_less(dataset: Dataset) -> None:
    """Of a matrix a row's and a column's numbers, not two matrices."""

    def kept(config: LoraConfig) -> int:
        run = start_run(config.model_copy(update={"rank": 16}), dataset, CPU)
        add_gradients(run)
        apply_gradients(run)
        return sum(
            value.numel()
            for state in run.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )

    adamw = PRODIGY.model_copy(update={"optimizer": "adamw", "learning_rate": 1e-3})
    assert kept(ADAFACTOR) < 0.3 * kept(adamw)
    assert 1.3 * kept(adamw) < kept(PRODIGY) < 2.1 * kept(adamw)
