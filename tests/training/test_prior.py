"""Prior preservation without pictures, and a text encoder that stops: who is held to what, and from when on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.test_train import last, weights
from training.checkpoint import Checkpoint
from training.config import DreamBoothConfig, LoraConfig, is_packable
from training.dataset import Dataset
from training.methods import copy_for_training
from training.step import TrainingRun, apply_gradients, micro_step_inputs, micro_step_loss, start_run
from training.train import train

CPU = torch.device("cpu")
LORA = LoraConfig(rank=2, learning_rate=1e-2, max_train_steps=6, train_batch_size=2, seed=3)
FULL = DreamBoothConfig(learning_rate=1e-3, max_train_steps=6, train_batch_size=2, seed=3)
OF_BASE = {"with_prior_preservation": True, "prior_from": "base_model"}
BOTH = pytest.mark.parametrize("config", [LORA, FULL], ids=["lora", "dreambooth"])


def loss_and_gradients(run: TrainingRun, micro_step: int = 0) -> tuple[float, Tensor]:
    inputs = micro_step_inputs(run, micro_step)
    prediction = run.weights.unet(inputs.noisy_latents, inputs.timesteps, inputs.conditioning).sample
    loss = micro_step_loss(run, prediction, inputs)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in run.weights.parameters() if p.grad is not None])


# --- the base model as teacher -------------------------------------------------------------------------------------


@BOTH
def test_an_untouched_model_has_no_prior_loss(config: LoraConfig | DreamBoothConfig, dataset: Dataset) -> None:
    """Whatever it weighs: at step 0 the model answers what the base model answers."""
    light, heavy = (
        loss_and_gradients(start_run(config.model_copy(update={**OF_BASE, "prior_loss_weight": w}), dataset, CPU))
        for w in (0.0, 100.0)
    )
    assert heavy[0] == pytest.approx(light[0], rel=1e-5)
    assert light[0] > 0.1
    torch.testing.assert_close(heavy[1], light[1], rtol=1e-3, atol=1e-5)


@BOTH
def test_the_class_is_asked_about_the_photos(config: LoraConfig | DreamBoothConfig, dataset: Dataset) -> None:
    """Its half of the target is the base model's own answer to the noisy photos under the class prompt."""
    config = config.model_copy(update=OF_BASE)
    run = start_run(config, replace(dataset, class_latents=None), CPU)
    inputs = micro_step_inputs(run, 3)
    base = copy_for_training(FULL, dataset.base_model, CPU).unet.eval()
    with torch.no_grad():
        words = run.encode_prompts([dataset.class_prompt or ""] * 2)
        answer = base(inputs.noisy_latents[2:], inputs.timesteps[2:], words).sample
    torch.testing.assert_close(inputs.target[2:], answer, rtol=1e-5, atol=1e-6)
    assert torch.equal(inputs.conditioning[2:], words)
    assert not inputs.target.requires_grad


@pytest.mark.usefixtures("in_float64")
def test_it_holds_the_class_where_it_was(dataset: Dataset, tmp_path: Path) -> None:
    """After the same steps the model's answers under the class prompt are nearer to the base model's with it."""

    def drift(**options: object) -> float:
        config = FULL.model_copy(update=options)
        checkpoint = last(train(config, dataset, [], out_dir=tmp_path / str(len(options)), device="cpu"))
        unet = copy_for_training(config, dataset.base_model, CPU, checkpoint.dir).unet.eval()
        base = copy_for_training(config, dataset.base_model, CPU).unet.eval()
        run = start_run(FULL, dataset, CPU)
        inputs = micro_step_inputs(run, 99)
        words = run.encode_prompts([dataset.class_prompt or ""] * 2)
        with torch.no_grad():
            answers = [each(inputs.noisy_latents, inputs.timesteps, words).sample for each in (unet, base)]
        return (answers[0] - answers[1]).norm().item()

    assert drift(**OF_BASE, prior_loss_weight=5.0) < 0.8 * drift()


def test_no_class_pictures_are_needed(dataset: Dataset, tmp_path: Path) -> None:
    """Nor looked at; a class prompt is."""
    config = LORA.model_copy(update=OF_BASE)
    bare = replace(dataset, class_latents=None)
    losses: list[dict[int, float]] = [{}, {}]
    for seen, given in zip(losses, (dataset, bare), strict=True):
        last(train(config, given, [], out_dir=tmp_path / str(len(seen)), device="cpu", on_step=seen.__setitem__))
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
    with pytest.raises(ValueError, match=r"subject\.class_prompt"):
        train(config, replace(bare, class_prompt=None), [], out_dir=tmp_path, device="cpu")
    assert not is_packable(config)


# --- the text encoder's last step ----------------------------------------------------------------------------------


def of_text_encoder(checkpoint: Checkpoint) -> list[Tensor]:
    return [tensor for name, tensor in weights(checkpoint).items() if "text_encoder" in name]


def of_unet(checkpoint: Checkpoint) -> list[Tensor]:
    return [tensor for name, tensor in weights(checkpoint).items() if "text_encoder" not in name]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    assert len(one) == len(other) > 0
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
@BOTH
def test_a_text_encoder_trains_as_long_as_asked(
    config: LoraConfig | DreamBoothConfig, mixed_precision: str, dataset: Dataset, tmp_path: Path
) -> None:
    """Until then to the bit as without the option; then it stays, and the UNet goes on."""
    config = config.model_copy(update={"train_text_encoder": True, "mixed_precision": mixed_precision})
    stopping = config.model_copy(update={"stop_text_encoder_training": 3})
    kept: dict[str, list[Checkpoint]] = {}
    for name, each in (("whole", config), ("stopped", stopping)):
        kept[name] = list(train(each, dataset, [3, 4], out_dir=tmp_path / name, device="cpu"))
    (whole_3, whole_4, _), (stopped_3, stopped_4, stopped_6) = kept["whole"], kept["stopped"]
    assert weights(whole_3).keys() == weights(stopped_3).keys()
    assert same(list(weights(whole_3).values()), list(weights(stopped_3).values()))
    assert same(of_text_encoder(stopped_3), of_text_encoder(stopped_6))
    assert not same(of_text_encoder(whole_3), of_text_encoder(whole_4))
    assert not same(of_unet(stopped_4), of_unet(stopped_6))


def test_after_its_last_step_it_is_read_as_pictures_are_made_with_it(dataset: Dataset) -> None:
    """Without dropout and without gradients, from its weights as they are by then; each prompt once."""
    config = LORA.model_copy(update={"train_text_encoder": True, "lora_dropout": 0.5, "stop_text_encoder_training": 1})
    run = start_run(config, dataset, CPU)
    assert not run.encode_prompts.is_frozen
    loss_and_gradients(run)
    apply_gradients(run)
    run.freeze_text_encoder_at(config.stop_text_encoder_training)
    words = run.encode_prompts(["a photo of sks woman"])
    assert not words.requires_grad
    text_encoder = run.weights.text_encoder
    assert text_encoder is not None
    assert not text_encoder.training
    assert torch.equal(words, run.encode_prompts(["a photo of sks woman"]))
    before = [parameter.detach().clone() for parameter in text_encoder.parameters()]
    loss_and_gradients(run, 1)
    apply_gradients(run)
    assert all(torch.equal(*pair) for pair in zip(before, text_encoder.parameters(), strict=True))
    base = start_run(LORA, dataset, CPU).encode_prompts(["a photo of sks woman"])
    assert not torch.equal(words, base)


def test_one_that_does_not_train_has_no_last_step(dataset: Dataset, tmp_path: Path) -> None:
    """A search may leave both open."""
    losses: list[dict[int, float]] = [{}, {}]
    for seen, stop in zip(losses, (None, 2), strict=True):
        config = LORA.model_copy(update={"stop_text_encoder_training": stop})
        assert is_packable(config)
        last(train(config, dataset, [], out_dir=tmp_path / str(stop), device="cpu", on_step=seen.__setitem__))
    assert losses[0] == losses[1]
