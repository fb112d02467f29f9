"""The loss is upstream's, number for number; `expected_loss` says in plain torch what upstream's scripts compute."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from training.loss import dreambooth_loss, instance_loss, min_snr_weights, prediction_target, signal_to_noise

BATCH = 2


@pytest.fixture(scope="module")
def unet(tiny_base: str) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet")


def noise_schedule(tiny_base: str, prediction_type: str) -> DDPMScheduler:
    return DDPMScheduler.from_pretrained(tiny_base, subfolder="scheduler", prediction_type=prediction_type)


def expected_loss(
    prediction: Tensor,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    schedule: DDPMScheduler,
    *,
    prior_loss_weight: float | None,
    snr_gamma: float | None,
) -> Tensor:
    """Written down from the equations, with min-SNR in its corrected form."""
    kept = schedule.alphas_cumprod[timesteps]
    signal, sigma = kept.sqrt()[:, None, None, None], (1 - kept).sqrt()[:, None, None, None]
    velocity = signal * noise - sigma * latents
    target = noise if schedule.config.prediction_type == "epsilon" else velocity
    num_instances = len(prediction) if prior_loss_weight is None else len(prediction) // 2
    squared = (prediction - target) ** 2
    instance = squared[:num_instances]
    if snr_gamma is None:
        loss = instance.mean()
    else:
        snr = (kept / (1 - kept))[:num_instances]
        weights = torch.minimum(snr, torch.full_like(snr, snr_gamma)) / (
            snr if schedule.config.prediction_type == "epsilon" else snr + 1
        )
        loss = (instance.mean(dim=(1, 2, 3)) * weights).mean()
    if prior_loss_weight is not None:
        loss = loss + prior_loss_weight * squared[num_instances:].mean()
    return loss


@pytest.mark.parametrize(
    ("prediction_type", "prior_loss_weight", "snr_gamma"),
    list(itertools.product(["epsilon", "v_prediction"], [None, 0.7], [None, 5.0])),
)
def test_loss_and_gradients_equal_upstreams_expressions(
    unet: UNet2DConditionModel,
    tiny_base: str,
    prediction_type: str,
    prior_loss_weight: float | None,
    snr_gamma: float | None,
) -> None:
    """For both prediction types, with and without prior, with and without min-SNR."""
    generator = torch.Generator().manual_seed(0)
    size = BATCH if prior_loss_weight is None else 2 * BATCH
    latents, noise = (torch.randn(size, 4, 8, 8, generator=generator) for _ in range(2))
    timesteps = torch.tensor([3, 998, 412, 77])[:size]
    words = torch.randn(size, 77, 16, generator=generator)
    schedule = noise_schedule(tiny_base, prediction_type)
    noisy = schedule.add_noise(latents, noise, timesteps)

    def gradients(loss_of: str) -> tuple[Tensor, list[Tensor]]:
        unet.zero_grad()
        prediction = unet(noisy, timesteps, words).sample
        if loss_of == "ours":
            target = prediction_target(schedule, latents, noise, timesteps)
            loss = dreambooth_loss(
                prediction, target, timesteps, schedule, prior_loss_weight=prior_loss_weight, snr_gamma=snr_gamma
            )
        else:
            loss = expected_loss(
                prediction,
                latents,
                noise,
                timesteps,
                schedule,
                prior_loss_weight=prior_loss_weight,
                snr_gamma=snr_gamma,
            )
        loss.backward()
        return loss, [parameter.grad.clone() for parameter in unet.parameters() if parameter.grad is not None]

    our_loss, our_gradients = gradients("ours")
    upstream_loss, upstream_gradients = gradients("upstream")
    torch.testing.assert_close(our_loss, upstream_loss, rtol=1e-6, atol=0)
    assert len(our_gradients) == len(list(unet.parameters()))
    for ours, theirs in zip(our_gradients, upstream_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_min_snr_looks_at_the_instance_half_alone(tiny_base: str) -> None:
    """The timestep of a class picture changes neither the number of weights nor the instance loss."""
    schedule = noise_schedule(tiny_base, "epsilon")
    generator = torch.Generator().manual_seed(1)
    prediction, target = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    losses = {
        class_timestep: dreambooth_loss(
            prediction, target, torch.tensor([10, class_timestep]), schedule, prior_loss_weight=1.0, snr_gamma=5.0
        ).item()
        for class_timestep in (10, 990)
    }
    assert losses[10] == losses[990]
    weight = min_snr_weights(schedule.alphas_cumprod, torch.tensor([10]), 5.0, "epsilon")
    expected = instance_loss(prediction[:1], target[:1], weight) + instance_loss(prediction[1:], target[1:])
    assert losses[10] == expected.item()


def test_min_snr_weights_lie_between_zero_and_one(tiny_base: str) -> None:
    """Noisy timesteps weigh 1 for noise prediction and snr / (snr + 1) for velocity; clean ones less."""
    schedule = noise_schedule(tiny_base, "epsilon")
    timesteps = torch.arange(1000)
    snr = signal_to_noise(schedule.alphas_cumprod, timesteps)
    assert bool((snr.diff() < 0).all())
    for_noise = min_snr_weights(schedule.alphas_cumprod, timesteps, 5.0, "epsilon")
    for_velocity = min_snr_weights(schedule.alphas_cumprod, timesteps, 5.0, "v_prediction")
    assert bool(((for_noise > 0) & (for_noise <= 1)).all())
    assert for_noise[-1] == 1.0
    assert for_noise[0] < 0.01
    torch.testing.assert_close(for_velocity, for_noise * snr / (snr + 1))


def test_half_precision_predictions_are_compared_in_float32() -> None:
    """A float16 prediction's loss is not rounded to float16."""
    prediction = torch.full((1, 4, 8, 8), 1.0, dtype=torch.float16)
    assert instance_loss(prediction, torch.zeros(1, 4, 8, 8)).dtype == torch.float32


def test_a_wrong_shape_is_refused() -> None:
    """Shape annotations are checked in tests: one timestep for two pictures does not pass."""
    with pytest.raises(Exception, match="timesteps"):
        min_snr_weights(torch.rand(1000), torch.zeros(2, 2, dtype=torch.long), 5.0, "epsilon")


@pytest.mark.parametrize("snr_gamma", [None, 5.0])
@pytest.mark.parametrize("prior_loss_weight", [None, 0.7])
def test_cell_weights_weigh_the_instance_half_cell_by_cell(
    tiny_base: str, prior_loss_weight: float | None, snr_gamma: float | None
) -> None:
    """Weights of 1 change nothing; doubled they double the instance loss; what is weighed 0 does not count."""
    schedule = noise_schedule(tiny_base, "epsilon")
    generator = torch.Generator().manual_seed(2)
    rows = BATCH if prior_loss_weight is None else 2 * BATCH
    prediction, target = (torch.randn(rows, 4, 8, 8, generator=generator) for _ in range(2))
    timesteps = torch.tensor([10, 400, 700, 990])[:rows]

    def loss(cell_weights: Tensor | None, answer: Tensor = prediction) -> float:
        return dreambooth_loss(
            answer,
            target,
            timesteps,
            schedule,
            prior_loss_weight=prior_loss_weight,
            snr_gamma=snr_gamma,
            cell_weights=cell_weights,
        ).item()

    ones = torch.ones(rows, 1, 8, 8)
    of_class = 0.0 if prior_loss_weight is None else prior_loss_weight * loss_of(prediction[BATCH:], target[BATCH:])
    assert loss(ones) == pytest.approx(loss(None), rel=1e-6)
    assert loss(2 * ones) - of_class == pytest.approx(2 * (loss(None) - of_class), rel=1e-5)
    left = ones.clone()
    left[:BATCH, :, :, 4:] = 0
    elsewhere = prediction.clone()
    elsewhere[:BATCH, :, :, 4:] += 3
    assert loss(left, elsewhere) == pytest.approx(loss(left), rel=1e-6)
    assert loss(ones, elsewhere) != pytest.approx(loss(ones), rel=0.1)


def loss_of(prediction: Tensor, target: Tensor) -> float:
    return instance_loss(prediction, target).item()
