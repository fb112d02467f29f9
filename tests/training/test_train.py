"""The loop: upstream's steps, the same again from the same seed, and no trace of an interruption."""

from __future__ import annotations

import hashlib
import itertools
import math
import weakref
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, StableDiffusionPipeline
from peft import LoraConfig as PeftConfig
from safetensors.torch import load_file
from torch import Tensor, nn

import training.step
import training.train
from tests.training.conftest import NUM_CLASS_IMAGES
from training.batches import PromptEncoder, Stream, draw_batch, picture_at, seed_at
from training.checkpoint import Checkpoint, latest_checkpoint, load_pipeline, load_training_state, open_checkpoint
from training.config import DreamBoothConfig, LoraConfig
from training.dataset import Dataset, Latents
from training.journal import NonFiniteLoss
from training.methods import TrainedModules, copy_for_training
from training.stable_diffusion import base_pipeline, frozen_module, load_base_model, shared_copy
from training.train import TrainingStopped, check_training, free_memory, train

CPU = torch.device("cpu")
NUM_TIMESTEPS = 1000
"""Noise levels of the tiny base model, as Stable Diffusion 1.5 has them."""

LORA = LoraConfig(
    rank=3,
    lora_alpha=6,
    lora_dropout=0.1,
    learning_rate=1e-2,
    max_train_steps=4,
    train_batch_size=2,
    gradient_accumulation_steps=2,
    train_text_encoder=True,
    seed=7,
)
DREAMBOOTH = DreamBoothConfig(
    learning_rate=1e-4,
    max_train_steps=4,
    train_batch_size=2,
    train_text_encoder=True,
    with_prior_preservation=True,
    num_class_images=NUM_CLASS_IMAGES,
    prior_loss_weight=0.5,
    snr_gamma=5.0,
    lr_scheduler="cosine",
    lr_warmup_steps=2,
    seed=8,
)
BOTH = pytest.mark.parametrize("config", [LORA, DREAMBOOTH], ids=["lora", "dreambooth"])


def last(checkpoints: Iterator[Checkpoint]) -> Checkpoint:
    *_, checkpoint = checkpoints
    return checkpoint


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All weights of a checkpoint folder, by file and name."""
    return {
        f"{file.relative_to(checkpoint.dir)}:{name}": tensor
        for file in sorted(checkpoint.dir.rglob("*.safetensors"))
        if file.name != "training_state.safetensors"
        for name, tensor in load_file(file).items()
    }


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different[:3]


def digest(module: nn.Module) -> str:
    sha256 = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        sha256.update(name.encode())
        sha256.update(tensor.numpy().tobytes())
    return sha256.hexdigest()


def base_digest(tiny_base: str) -> list[str]:
    base = load_base_model(tiny_base)
    return [digest(module) for module in (base.unet, base.vae, base.text_encoder)]


# --- as upstream -----------------------------------------------------------------------------------------------


def upstream_weights(
    config: LoraConfig | DreamBoothConfig, dataset: Dataset, base: str, start: TrainedModules
) -> list[Tensor]:
    """Weights after `max_train_steps` of upstream's step in plain torch and diffusers, without our loop.

    The adapters' first values are taken from `start`, batches are those the loop draws.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    unet, text_encoder = pipeline.unet, pipeline.text_encoder
    for parameter in (*unet.parameters(), *text_encoder.parameters()):
        parameter.data = parameter.data.clone()  # memory mapped from a file rounds differently than memory of one's own
    if isinstance(config, LoraConfig):
        for module, targets, ours in (
            (unet, ["to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_v_proj"], start.unet),
            (text_encoder, ["q_proj", "k_proj", "v_proj", "out_proj"], start.text_encoder),
        ):
            module.requires_grad_(False)
            module.add_adapter(
                PeftConfig(
                    r=config.rank,
                    lora_alpha=config.lora_alpha,
                    lora_dropout=config.lora_dropout,
                    init_lora_weights="gaussian",
                    target_modules=targets,
                )
            )
            assert ours is not None
            module.load_state_dict(ours.state_dict())
    parameters = [p for module in (unet, text_encoder) for p in module.parameters() if p.requires_grad]
    unet.train()
    text_encoder.train()
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=1e-2)
    schedule = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    for step in range(config.max_train_steps):
        if config.lr_scheduler == "cosine":
            warm, total = config.lr_warmup_steps, config.max_train_steps
            factor = step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
            optimizer.param_groups[0]["lr"] = config.learning_rate * factor
        for micro_step in range(config.gradient_accumulation_steps):
            position = step * config.gradient_accumulation_steps + micro_step
            batch = draw_batch(config, dataset, position, schedule.config.num_train_timesteps)
            torch.manual_seed(seed_at(config.seed, position, Stream.DROPOUT))
            tokens = pipeline.tokenizer(batch.prompts, padding="max_length", max_length=77, return_tensors="pt")
            words = text_encoder(tokens.input_ids, return_dict=False)[0]
            latents = batch.latents * pipeline.vae.config.scaling_factor
            noisy = schedule.add_noise(latents, batch.noise, batch.timesteps)
            prediction = unet(noisy, batch.timesteps, words, return_dict=False)[0]
            squared = (prediction - batch.noise).square().mean(dim=(1, 2, 3))
            if config.with_prior_preservation:
                instance, prior = squared.chunk(2)
                kept = schedule.alphas_cumprod[batch.timesteps[: len(instance)]]
                snr = kept / (1 - kept)
                loss = (instance * snr.clamp(max=5.0) / snr).mean() + config.prior_loss_weight * prior.mean()
            else:
                loss = squared.mean()
            (loss / config.gradient_accumulation_steps).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return parameters


@BOTH
def test_weights_after_three_adamw_steps_equal_upstreams(
    config: LoraConfig | DreamBoothConfig, dataset: Dataset, tiny_base: str, tmp_path: Path
) -> None:
    """Three optimizer steps, with accumulation, joint clipping, dropout and schedule, end in upstream's weights."""
    config = config.model_copy(update={"max_train_steps": 3})
    start = copy_for_training(config, tiny_base, CPU)
    expected = upstream_weights(config, dataset, tiny_base, start)
    checkpoint = last(train(config, dataset, [], out_dir=tmp_path, device="cpu"))
    ours = copy_for_training(config, tiny_base, CPU, checkpoint.dir).parameters()
    moved = 0.0
    for ours_after, expected_after, before in zip(ours, expected, start.parameters(), strict=True):
        torch.testing.assert_close(ours_after, expected_after, rtol=1e-4, atol=2e-6)
        moved = max(moved, (ours_after - before).abs().max().item())
    assert moved > 1e-5


def test_a_frozen_text_encoders_embeddings_are_those_of_the_pipeline(dataset: Dataset, tiny_base: str) -> None:
    """What the UNet is given equals what diffusers' own pipeline would give it, whatever the batch."""
    base = load_base_model(tiny_base)
    encode = PromptEncoder(base, None, CPU)
    prompts = ["a photo of sks woman", "a photo of a woman", "a photo of sks woman"]
    for prompt, embedding in zip(prompts, encode(prompts), strict=True):
        expected, _ = base.encode_prompt(prompt, CPU, 1, do_classifier_free_guidance=False)
        assert torch.equal(embedding, expected[0])


# --- the same again --------------------------------------------------------------------------------------------


@BOTH
def test_resumed_equals_uninterrupted_bit_for_bit(
    config: LoraConfig | DreamBoothConfig, dataset: Dataset, tmp_path: Path
) -> None:
    """Stopped at every checkpoint and gone on from disk: same losses, weights, optimizer and random numbers."""
    whole_losses: dict[int, float] = {}
    whole = last(
        train(config, dataset, [1, 3], out_dir=tmp_path / "whole", device="cpu", on_step=whole_losses.__setitem__)
    )

    losses: dict[int, float] = {}
    for expected_step in (1, 3, 4):
        torch.manual_seed(expected_step)  # what the process did in between must not matter
        checkpoints = train(
            config,
            dataset,
            [1, 3],
            latest_checkpoint(tmp_path / "pieces"),
            out_dir=tmp_path / "pieces",
            device="cpu",
            on_step=losses.__setitem__,
        )
        assert next(checkpoints).step == expected_step
        checkpoints.close()

    resumed = latest_checkpoint(tmp_path / "pieces")
    assert resumed is not None
    assert losses == whole_losses
    assert_same(weights(resumed), weights(whole))
    state = "training_state.safetensors"
    assert (resumed.dir / state).read_bytes() == (whole.dir / state).read_bytes()


def test_a_training_that_is_told_to_stop_goes_on_bit_for_bit(dataset: Dataset, tmp_path: Path) -> None:
    """From the step it had come to, wherever that lies; on the way it yields nothing."""
    whole = last(train(DREAMBOOTH, dataset, [], out_dir=tmp_path / "whole", device="cpu"))
    steps: list[int] = []
    told = train(
        DREAMBOOTH,
        dataset,
        [],
        out_dir=tmp_path / "told",
        device="cpu",
        on_step=lambda step, _: steps.append(step),
        should_stop=lambda: steps[-1] == 3,
    )
    with pytest.raises(TrainingStopped, match="at step 3"):
        next(told)
    stopped = latest_checkpoint(tmp_path / "told")
    assert stopped is not None
    assert (stopped.step, steps) == (3, [1, 2, 3])
    resumed = last(train(DREAMBOOTH, dataset, [], stopped, out_dir=tmp_path / "told", device="cpu"))
    assert_same(weights(resumed), weights(whole))


def test_a_stop_at_a_checkpoint_is_that_checkpoint(dataset: Dataset, tmp_path: Path) -> None:
    """It is yielded as ever: nothing was cut short."""
    checkpoints = train(DREAMBOOTH, dataset, [2], out_dir=tmp_path, device="cpu", should_stop=lambda: True)
    with pytest.raises(TrainingStopped, match="at step 1"):
        next(checkpoints)
    first = latest_checkpoint(tmp_path)
    checkpoints = train(DREAMBOOTH, dataset, [2], first, out_dir=tmp_path, device="cpu", should_stop=lambda: True)
    assert next(checkpoints).step == 2


def test_8bit_adam_resumes_bit_for_bit_too(dataset: Dataset, tmp_path: Path) -> None:
    """The quantised optimizer state comes back as it was."""
    pytest.importorskip("bitsandbytes")
    config = DREAMBOOTH.model_copy(update={"use_8bit_adam": True, "train_text_encoder": False})
    whole = last(train(config, dataset, [2], out_dir=tmp_path / "whole", device="cpu"))
    next(train(config, dataset, [2], out_dir=tmp_path / "pieces", device="cpu"))
    half = latest_checkpoint(tmp_path / "pieces")
    resumed = last(train(config, dataset, [2], half, out_dir=tmp_path / "pieces", device="cpu"))
    assert_same(weights(resumed), weights(whole))


def test_same_seed_same_losses_and_another_seed_other_losses(dataset: Dataset, tmp_path: Path) -> None:
    """A trial is a function of its config and dataset."""
    curves = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        losses: dict[int, float] = {}
        config = LORA.model_copy(update={"seed": seed})
        last(train(config, dataset, [], out_dir=tmp_path / name, device="cpu", on_step=losses.__setitem__))
        curves.append(losses)
    assert list(curves[0]) == [1, 2, 3, 4]
    assert curves[0] == curves[1] != curves[2]


def test_trainings_that_take_turns_equal_trainings_alone(dataset: Dataset, tmp_path: Path) -> None:
    """Two generators of different precision, alive in one process, do not meet in global state."""
    configs = {
        "full": LORA,
        "bf16": LORA.model_copy(update={"mixed_precision": "bf16", "gradient_accumulation_steps": 1}),
    }
    alone = {
        name: last(train(config, dataset, [1, 2, 3], out_dir=tmp_path / "alone" / name, device="cpu"))
        for name, config in configs.items()
    }
    mine = Accelerator(mixed_precision="no", cpu=True)
    numbers = torch.get_rng_state()
    turns = {
        name: train(config, dataset, [1, 2, 3], out_dir=tmp_path / "turns" / name, device="cpu")
        for name, config in configs.items()
    }
    for _, _ in zip(turns["full"], turns["bf16"], strict=True):
        assert mine.mixed_precision == "no"
    assert AcceleratorState().mixed_precision == "no"
    assert torch.equal(torch.get_rng_state(), numbers)
    for name, checkpoint in alone.items():
        assert_same(weights(open_checkpoint(tmp_path / "turns" / name / "checkpoint-4")), weights(checkpoint))


@pytest.mark.parametrize(("lr_scheduler", "equal"), [("constant_with_warmup", True), ("linear", False)])
def test_a_step_of_a_longer_run_is_a_run_of_that_length(
    lr_scheduler: str, equal: bool, dataset: Dataset, tmp_path: Path
) -> None:
    """Exact where the schedule does not look at its end, and only there."""
    config = LORA.model_copy(update={"lr_scheduler": lr_scheduler, "lr_warmup_steps": int(equal)})
    on_the_way = next(train(config, dataset, [2], out_dir=tmp_path / "long", device="cpu"))
    shorter = config.model_copy(update={"max_train_steps": 2})
    at_the_end = last(train(shorter, dataset, [], out_dir=tmp_path / "short", device="cpu"))
    first, second = weights(on_the_way), weights(at_the_end)
    assert all(torch.equal(first[name], second[name]) for name in first) == equal


def test_gradient_checkpointing_changes_nothing_but_memory(dataset: Dataset, tmp_path: Path) -> None:
    """Activations computed twice give the same weights, dropout included."""
    plain = last(train(LORA, dataset, [], out_dir=tmp_path / "plain", device="cpu"))
    config = LORA.model_copy(update={"gradient_checkpointing": True})
    checkpointed = last(train(config, dataset, [], out_dir=tmp_path / "checkpointed", device="cpu"))
    for ours, theirs in zip(weights(checkpointed).values(), weights(plain).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


# --- the base model --------------------------------------------------------------------------------------------


@BOTH
def test_the_base_is_unchanged_by_a_trial(
    config: LoraConfig | DreamBoothConfig, dataset: Dataset, tiny_base: str, tmp_path: Path
) -> None:
    """Training, loading, and even fusing adapters into the loaded pipeline leave the cached base as it was."""
    before = base_digest(tiny_base)
    checkpoint = last(train(config, dataset, [], out_dir=tmp_path, device="cpu"))
    pipeline = load_pipeline(checkpoint, tiny_base, device="cpu")
    if isinstance(config, LoraConfig):
        pipeline.fuse_lora()
    else:
        nn.init.zeros_(pipeline.vae.post_quant_conv.weight)
    assert base_digest(tiny_base) == before
    assert not any(parameter.requires_grad for parameter in load_base_model(tiny_base).unet.parameters())


@BOTH
def test_nothing_writes_into_the_frozen_modules(
    config: LoraConfig | DreamBoothConfig, dataset: Dataset, tiny_base: str, tmp_path: Path
) -> None:
    """A whole trial, pictures at every point included, and its resumption leave their bytes as they were."""
    parts = [frozen_module(tiny_base, part, CPU, torch.float32) for part in ("unet", "vae", "text_encoder")]
    before = [digest(module) for module in parts]
    for resume_from in (None, "half"):
        latest = latest_checkpoint(tmp_path) if resume_from else None
        for checkpoint in train(config, dataset, [2], latest, out_dir=tmp_path, device="cpu"):
            pictures = load_pipeline(checkpoint, tiny_base, device="cpu", share_frozen=True)
            generator = torch.Generator().manual_seed(0)
            assert pictures("sks", num_inference_steps=2, generator=generator).images
            if resume_from is None:
                break
    assert [digest(module) for module in parts] == before
    assert not any(parameter.requires_grad for module in parts for parameter in module.parameters())


def test_training_and_pictures_of_a_lora_share_one_frozen_unet(
    dataset: Dataset, tiny_base: str, tmp_path: Path
) -> None:
    """The same storage, not equal copies; a pipeline of its own makes the same pictures."""
    frozen = frozen_module(tiny_base, "unet", CPU, torch.float32)
    assert frozen_module(tiny_base, "unet", CPU, torch.float32) is frozen
    checkpoint = last(train(LORA, dataset, [], out_dir=tmp_path, device="cpu"))
    shared = load_pipeline(checkpoint, tiny_base, device="cpu", share_frozen=True)
    storage = {parameter.data_ptr() for parameter in frozen.parameters()}
    for unet in (copy_for_training(LORA, tiny_base, CPU).unet, shared.unet):
        in_layers = {p.data_ptr() for name, p in unet.named_parameters() if "lora_" not in name}
        assert in_layers == storage
    pictures = [
        pipeline("sks", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for pipeline in (shared, load_pipeline(checkpoint, tiny_base, device="cpu"))
    ]
    assert torch.equal(*pictures)


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_a_lora_at_step_0_is_the_base(mixed_precision: str, tiny_base: str) -> None:
    """New adapters add nothing: pictures are equal, pixel for pixel."""
    config = LORA.model_copy(update={"mixed_precision": mixed_precision})
    dtype = torch.bfloat16 if mixed_precision == "bf16" else torch.float32
    untouched = TrainedModules(
        *(shared_copy(frozen_module(tiny_base, part, CPU, dtype)) for part in ("unet", "text_encoder"))
    )
    pictures = []
    for modules in (untouched, copy_for_training(config, tiny_base, CPU)):
        unet, text_encoder = modules.unet.float().eval(), modules.text_encoder.float().eval()
        pipeline = base_pipeline(tiny_base, CPU, torch.float32, unet=unet, text_encoder=text_encoder)
        generator = torch.Generator().manual_seed(0)
        pictures.append(pipeline("sks", num_inference_steps=2, generator=generator, output_type="pt").images)
    assert torch.equal(*pictures)


def test_closing_the_generator_frees_the_trials_modules(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing holds on to a trial that was given up, and the checkpoint it left is whole.

    Not even while memory is given back: a GPU's would stay taken until the next time.
    """
    alive = []
    gone_in_time = []

    def give_back(device: torch.device) -> None:
        free_memory(device)
        gone_in_time.append(alive[0]() is None)

    def remember(*arguments: object) -> TrainedModules:
        modules = copy_for_training(*arguments)  # type: ignore[arg-type]
        alive.append(weakref.ref(modules.unet))
        return modules

    monkeypatch.setattr(training.step, "copy_for_training", remember)
    monkeypatch.setattr(training.train, "free_memory", give_back)
    checkpoints = train(LORA, dataset, [1], out_dir=tmp_path, device="cpu")
    checkpoint = next(checkpoints)
    assert alive[0]() is not None
    checkpoints.close()
    assert alive[0]() is None
    assert gone_in_time == [True]
    assert open_checkpoint(checkpoint.dir) == checkpoint


# --- precision -------------------------------------------------------------------------------------------------


@BOTH
def test_what_trains_is_float32_and_what_is_frozen_is_half(
    config: LoraConfig | DreamBoothConfig, tiny_base: str
) -> None:
    """Under mixed precision too, for both methods and both modules."""
    modules = copy_for_training(config.model_copy(update={"mixed_precision": "bf16"}), tiny_base, CPU)
    assert {parameter.dtype for parameter in modules.parameters()} == {torch.float32}
    frozen = {parameter.dtype for parameter in modules.unet.parameters() if not parameter.requires_grad}
    assert frozen == ({torch.bfloat16} if isinstance(config, LoraConfig) else set())


def test_small_steps_move_a_lora_under_bf16(dataset: Dataset, tiny_base: str, tmp_path: Path) -> None:
    """At a learning rate of 1e-4 nine adapter weights of ten move; in bfloat16 most would stand still."""
    config = LoraConfig(
        rank=4, learning_rate=1e-4, max_train_steps=3, train_batch_size=1, mixed_precision="bf16", seed=1
    )
    before = copy_for_training(config, tiny_base, CPU).parameters()
    checkpoint = last(train(config, dataset, [], out_dir=tmp_path, device="cpu"))
    after = copy_for_training(config, tiny_base, CPU, checkpoint.dir).parameters()
    moved = torch.cat([(a != b).flatten() for a, b in zip(after, before, strict=True)])
    assert moved.float().mean() > 0.9
    assert all(tensor.dtype == torch.float32 for tensor in weights(checkpoint).values())


def test_what_the_machine_cannot_train_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 without a GPU and 8-bit Adam without its library, before anything is loaded."""
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        check_training(LORA.model_copy(update={"mixed_precision": "fp16"}), "cpu")
    monkeypatch.setattr(training.train, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    with pytest.raises(ValueError, match=r"dreamsweep\[adam8bit\]"):
        check_training(LORA.model_copy(update={"use_8bit_adam": True}), "cpu")
    check_training(LORA.model_copy(update={"mixed_precision": "bf16"}), "cpu")


def test_the_text_encoder_may_have_a_learning_rate_of_its_own(dataset: Dataset, tiny_base: str, tmp_path: Path) -> None:
    """AdamW's first step moves a weight by its rate: each module by its own, by one rate where none is given."""
    config = DREAMBOOTH.model_copy(
        update={"learning_rate": 1e-5, "lr_scheduler": "constant", "adam_weight_decay": 0.0, "max_train_steps": 1}
    )
    for rate, expected in ((1e-3, 1e-3), (None, 1e-5)):
        own = config.model_copy(update={"text_encoder_learning_rate": rate})
        checkpoint = last(train(own, dataset, [], out_dir=tmp_path / str(rate), device="cpu"))
        after = copy_for_training(own, tiny_base, CPU, checkpoint.dir)
        before = copy_for_training(own, tiny_base, CPU)
        for module, step in (("unet", 1e-5), ("text_encoder", expected)):
            pairs = zip(getattr(after, module).parameters(), getattr(before, module).parameters(), strict=True)
            assert max((a - b).abs().max().item() for a, b in pairs) == pytest.approx(step, rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mixed_precision", ["no", "fp16", "bf16"])
@BOTH
def test_a_gpu_trains_in_every_precision_and_goes_on(
    config: LoraConfig | DreamBoothConfig, mixed_precision: str, dataset: Dataset, tiny_base: str, tmp_path: Path
) -> None:
    """Losses stay near the CPU's, an interrupted run near an uninterrupted one, and pictures come out."""
    config = config.model_copy(update={"mixed_precision": mixed_precision})
    on_cpu: dict[int, float] = {}
    plain = config.model_copy(update={"mixed_precision": "no", "lora_dropout": 0.0})
    last(train(plain, dataset, [], out_dir=tmp_path / "cpu", device="cpu", on_step=on_cpu.__setitem__))
    on_gpu: dict[int, float] = {}
    for _ in range(2):
        resume = latest_checkpoint(tmp_path / "gpu")
        checkpoints = train(
            config, dataset, [2], resume, out_dir=tmp_path / "gpu", device="cuda", on_step=on_gpu.__setitem__
        )
        checkpoint = next(checkpoints)
        checkpoints.close()
    assert on_gpu[1] == pytest.approx(on_cpu[1], rel=0.05)
    assert on_gpu.keys() == on_cpu.keys()
    assert load_pipeline(checkpoint, tiny_base, device="cuda")("sks", num_inference_steps=2).images[0].size == (64, 64)


# --- steps, order, refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch_length", [1, 5, 12])
def test_every_epoch_shows_every_picture_once_in_an_order_of_its_own(epoch_length: int) -> None:
    """The order is a function of seed and position, so resuming needs no loader state."""
    epochs = [
        [picture_at(epoch * epoch_length + place, epoch_length, seed=3) for place in range(epoch_length)]
        for epoch in range(4)
    ]
    assert all(sorted(epoch) == list(range(epoch_length)) for epoch in epochs)
    if epoch_length == 12:
        assert all(first != second for first, second in itertools.combinations(epochs, 2))
        assert epochs[0] != [picture_at(place, epoch_length, seed=4) for place in range(epoch_length)]


def test_a_batch_is_a_function_of_seed_and_position(dataset: Dataset) -> None:
    """Drawn in any order, whatever else was drawn before: the same pictures, flips, noise and timesteps."""
    forwards = [draw_batch(DREAMBOOTH, dataset, position, NUM_TIMESTEPS) for position in range(3)]
    torch.manual_seed(5)
    backwards = [draw_batch(DREAMBOOTH, dataset, position, NUM_TIMESTEPS) for position in (2, 1, 0)][::-1]
    for first, second in zip(forwards, backwards, strict=True):
        assert first.prompts == second.prompts
        for name in ("latents", "noise", "timesteps"):
            assert torch.equal(getattr(first, name), getattr(second, name))
    others = [*forwards[1:], draw_batch(DREAMBOOTH.model_copy(update={"seed": 9}), dataset, 0, NUM_TIMESTEPS)]
    assert not any(torch.equal(forwards[0].noise, other.noise) for other in others)


def test_every_stream_of_every_step_of_every_seed_has_a_seed_of_its_own() -> None:
    """Neighbouring runs, steps and streams share no numbers, nor do the run and the step that change places."""
    positions = list(itertools.product((0, 1, 2, 2**32 - 1), (0, 1, 2, 800), Stream))
    assert len({seed_at(*position) for position in positions}) == len(positions)


def test_repeats_weigh_photos_in_an_epoch(dataset: Dataset) -> None:
    """A photo with three repeats is seen three times as often."""
    names = tuple(f"photo {number}" for number in range(6))
    weighted = replace(dataset, repeats=(3, 1, 1, 1, 1, 1), prompts=names)
    config = LoraConfig(train_batch_size=8)
    prompts = draw_batch(config, weighted, 0, NUM_TIMESTEPS).prompts
    assert sorted(prompts) == sorted(["photo 0"] * 2 + list(names))


def test_a_batch_with_prior_is_instances_then_classes(dataset: Dataset) -> None:
    """With prior preservation each instance picture has its class picture in the second half."""
    batch = draw_batch(DREAMBOOTH, dataset, 0, NUM_TIMESTEPS)
    assert batch.prompts == ["a photo of sks woman"] * 2 + ["a photo of a woman"] * 2
    assert batch.latents.shape == batch.noise.shape == (4, 4, 8, 8)
    assert batch.timesteps.shape == (4,)


def test_timesteps_are_all_the_levels_of_the_base_models_schedule(dataset: Dataset) -> None:
    """Uniform over [0, num_train_timesteps), whatever number of noise levels the base model has."""
    config = LoraConfig(train_batch_size=200)
    for num_train_timesteps in (3, 50):
        timesteps = draw_batch(config, dataset, 0, num_train_timesteps).timesteps
        assert timesteps.dtype == torch.int64
        assert set(timesteps.tolist()) <= set(range(num_train_timesteps))
        assert len(timesteps.unique()) > 0.9 * num_train_timesteps


def test_latents_are_drawn_anew_every_step(dataset: Dataset) -> None:
    """A cached mean and deviation are not a cached sample: their draws scatter as the VAE says."""
    one = replace(
        dataset,
        latents=Latents(dataset.latents.mean[:1], dataset.latents.std[:1]),
        flipped_latents=None,
        repeats=(1,),
        prompts=("x",),
    )
    draws = torch.cat([draw_batch(LoraConfig(train_batch_size=50), one, i, NUM_TIMESTEPS).latents for i in range(20)])
    scatter = ((draws - one.latents.mean) / one.latents.std).flatten()
    assert abs(scatter.mean()) < 0.02
    assert abs(scatter.std() - 1) < 0.02


def test_prior_preservation_needs_class_prompt_and_pictures(dataset: Dataset, tmp_path: Path) -> None:
    """Refused when train is called, not at the first step."""
    with pytest.raises(ValueError, match="class_prompt"):
        train(DREAMBOOTH, replace(dataset, class_prompt=None), [], out_dir=tmp_path, device="cpu")
    more = DREAMBOOTH.model_copy(update={"num_class_images": 5})
    with pytest.raises(ValueError, match="got 4 of 5"):
        train(more, dataset, [], out_dir=tmp_path, device="cpu")


def test_a_run_that_runs_away_ends_with_a_reason(dataset: Dataset, tmp_path: Path) -> None:
    """A loss that is no number ends training, and no checkpoint is written after it."""
    broken = replace(
        dataset, latents=Latents(dataset.latents.mean * math.nan, dataset.latents.std), flipped_latents=None
    )
    with pytest.raises(NonFiniteLoss, match="step 1"):
        last(train(LORA, broken, [], out_dir=tmp_path, device="cpu"))
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {"stats.jsonl": 0}


def test_going_on_with_another_config_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    """A checkpoint is resumed by its own config; only a constant schedule may be made longer."""
    checkpoint = next(train(LORA, dataset, [1], out_dir=tmp_path, device="cpu"))
    with pytest.raises(ValueError, match="another learning_rate"):
        train(LORA.model_copy(update={"learning_rate": 0.5}), dataset, [], checkpoint, out_dir=tmp_path, device="cpu")
    longer = LORA.model_copy(update={"max_train_steps": 5})
    assert [c.step for c in train(longer, dataset, [], checkpoint, out_dir=tmp_path, device="cpu")] == [5]


def test_a_checkpoint_that_is_damaged_before_it_was_taken_costs_only_itself(dataset: Dataset, tmp_path: Path) -> None:
    """Until the caller asks for the next one, training can go on from the one before, to the same weights."""
    checkpoints = train(LORA, dataset, [1, 2], out_dir=tmp_path / "cut", device="cpu")
    first, second = next(checkpoints), next(checkpoints)
    checkpoints.close()
    weights_file = second.dir / "pytorch_lora_weights.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"x")
    assert latest_checkpoint(tmp_path / "cut") == first
    resumed = last(train(LORA, dataset, [1, 2], first, out_dir=tmp_path / "cut", device="cpu"))
    assert_same(weights(resumed), weights(last(train(LORA, dataset, [1, 2], out_dir=tmp_path / "whole", device="cpu"))))


def test_only_the_newest_checkpoint_can_be_gone_on_from(dataset: Dataset, tmp_path: Path) -> None:
    """Optimizer state is large: it stays with the newest checkpoint alone once that was taken."""
    steps = list(train(LORA, dataset, [1, 2], out_dir=tmp_path, device="cpu"))
    assert [checkpoint.step for checkpoint in steps] == [1, 2, 4]
    assert load_training_state(steps[-1])
    with pytest.raises(ValueError, match="cannot go on"):
        load_training_state(steps[0])
    assert open_checkpoint(steps[0].dir) == steps[0]
