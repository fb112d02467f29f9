"""The denoising loss of DreamBooth: one formula, one function, one source. Pure functions of tensors."""

import torch.nn.functional as F  # noqa: N812 - the field's name for it
from diffusers import DDPMScheduler
from jaxtyping import Float, Int
from torch import Tensor


def prediction_target(
    schedule: DDPMScheduler,
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    timesteps: Int[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """What the UNet should answer: the noise, or the velocity of Salimans & Ho 2022 (Appendix D)."""
    if schedule.config.prediction_type == "epsilon":
        return noise
    velocity: Tensor = schedule.get_velocity(latents, noise, timesteps)
    return velocity


def signal_to_noise(alphas_cumprod: Float[Tensor, " t"], timesteps: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """alpha^2 / sigma^2 of each timestep, falling from about 1200 to 0.005 over Stable Diffusion's schedule."""
    alphas_cumprod = alphas_cumprod.to(timesteps.device)
    alpha = (alphas_cumprod**0.5)[timesteps].float()
    sigma = ((1.0 - alphas_cumprod) ** 0.5)[timesteps].float()
    return (alpha / sigma) ** 2


def min_snr_weights(
    alphas_cumprod: Float[Tensor, " t"], timesteps: Int[Tensor, " b"], snr_gamma: float, prediction_type: str
) -> Float[Tensor, " b"]:
    """Loss weight of each timestep, in (0, 1]: Hang et al. 2023, section 3.4, for noise or velocity prediction."""
    snr = signal_to_noise(alphas_cumprod, timesteps)
    divisor = snr + 1 if prediction_type == "v_prediction" else snr
    return snr.clamp(max=snr_gamma) / divisor


def instance_loss(
    prediction: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    weights: Float[Tensor, " b"] | None = None,
    cell_weights: Float[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error in float32, each cell's and each picture's mean times its weight where weights are given."""
    if weights is None and cell_weights is None:
        return F.mse_loss(prediction.float(), target.float())
    per_cell = F.mse_loss(prediction.float(), target.float(), reduction="none")
    if cell_weights is not None:
        per_cell = per_cell * cell_weights
    per_picture = per_cell.mean(dim=(1, 2, 3))
    return per_picture.mean() if weights is None else (per_picture * weights).mean()


def dreambooth_loss(
    prediction: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    timesteps: Int[Tensor, " b"],
    schedule: DDPMScheduler,
    *,
    prior_loss_weight: float | None = None,
    snr_gamma: float | None = None,
    cell_weights: Float[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, ""]:
    """The loss of one batch; with `prior_loss_weight` its second half are class pictures (Eq. 2 of Ruiz et al. 2022).

    Min-SNR weights come from the timesteps of the instance half alone and weigh that half alone; so do cell weights.
    """
    prior_loss: Tensor | float = 0.0
    if prior_loss_weight is not None:
        prediction, class_prediction = prediction.chunk(2)
        target, class_target = target.chunk(2)
        timesteps, _ = timesteps.chunk(2)
        cell_weights = None if cell_weights is None else cell_weights.chunk(2)[0]
        prior_loss = prior_loss_weight * instance_loss(class_prediction, class_target)
    weights = None
    if snr_gamma is not None:
        weights = min_snr_weights(schedule.alphas_cumprod, timesteps, snr_gamma, schedule.config.prediction_type)
    return instance_loss(prediction, target, weights, cell_weights) + prior_loss
