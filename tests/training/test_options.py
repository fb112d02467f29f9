"""Options of the step give bits for speed, and nothing else. The `slow` ones compile, which takes minutes."""

from __future__ import annotations

import json
import struct
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

import training.step
import training.train
from tests.training.test_pack import in_pack, tensors_of
from tests.training.test_train import DREAMBOOTH, LORA, assert_same, last, weights
from training.canonical import canonical_json
from training.checkpoint import Checkpoint, latest_checkpoint, load_training_state
from training.config import DreamBoothConfig, LoraConfig, is_packable, pack_together
from training.dataset import Dataset
from training.layout import LORA_FILE
from training.methods import TrainedModules, copy_for_training
from training.pack_training import PackTraining
from training.stable_diffusion import frozen_module
from training.step import start_run
from training.train import check_training, has_compiler, train

CPU = torch.device("cpu")
CONFIGS = {
    "lora": LORA.model_copy(update={"learning_rate": 1e-3, "max_train_steps": 5}),
    "dreambooth": DREAMBOOTH.model_copy(update={"max_train_steps": 5}),
}
"""With dropout, accumulation and a text encoder that trains; with prior preservation, a schedule and SNR weights."""
METHODS = pytest.mark.parametrize("method", CONFIGS)
NEEDS_COMPILER = pytest.mark.skipif(not has_compiler(), reason="compile needs a C++ compiler")
OPTIONS = pytest.mark.parametrize(
    ("method", "option"),
    [
        *((method, option) for method in CONFIGS for option in ("fused_adam", "channels_last")),
        pytest.param("lora", "compile", marks=[NEEDS_COMPILER, pytest.mark.slow]),
    ],
)
"""Compiling takes long: of DreamBooth it is seen once, with gradient checkpointing."""


@pytest.fixture(autouse=True)
def _traced_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile without generating code, which takes minutes: the UNet is traced as ever, and torch runs its graph.

    What a compiler makes of it, `python benchmarks/loop.py --options compile` shows.
    """
    compile_module = nn.Module.compile

    def trace(module: nn.Module, *, dynamic: bool, options: object) -> None:
        compile_module(module, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", trace)


@pytest.fixture(scope="session")
def smallest(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same photos for a UNet of two levels, no attention on the way up: compiling takes what its layers take."""
    folder = tmp_path_factory.mktemp("smallest")
    pipeline = StableDiffusionPipeline.from_pretrained(dataset.base_model, safety_checker=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline.unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=16,
        )
    pipeline.save_pretrained(folder)
    return replace(dataset, base_model=str(folder))


@dataclass(frozen=True)
class Trained:
    """A training that has ended."""

    losses: list[float]
    checkpoint: Checkpoint


@pytest.fixture(scope="module")
def plain(smallest: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """A method's training without options, which no test changes."""

    @cache
    def train_once(method: str) -> Trained:
        return Trained(*losses_and_checkpoint(CONFIGS[method], smallest, tmp_path_factory.mktemp("plain")))

    return train_once


@pytest.fixture(scope="module")
def optional(smallest: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Trained]:
    """The same with an option."""

    @cache
    def train_once(method: str, option: str) -> Trained:
        config = with_option(method, option)
        return Trained(*losses_and_checkpoint(config, smallest, tmp_path_factory.mktemp("option")))

    return train_once


def with_option(method: str, option: str) -> LoraConfig | DreamBoothConfig:
    return CONFIGS[method].model_copy(update={option: True})


def losses_and_checkpoint(
    config: LoraConfig | DreamBoothConfig, dataset: Dataset, out_dir: Path
) -> tuple[list[float], Checkpoint]:
    losses: dict[int, float] = {}
    checkpoint = last(train(config, dataset, [], out_dir=out_dir, device="cpu", on_step=losses.__setitem__))
    return list(losses.values()), checkpoint


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])


def distance(method: str, one: Checkpoint, other: Checkpoint, base: str) -> float:
    """How far two trainings' weights are from each other, as a part of the way that they have come."""
    ends = [copy_for_training(CONFIGS[method], base, CPU, checkpoint.dir).parameters() for checkpoint in (one, other)]
    start = flat(copy_for_training(CONFIGS[method], base, CPU).parameters())
    return ((flat(ends[0]) - flat(ends[1])).norm() / (flat(ends[1]) - start).norm()).item()


# --- the same training -----------------------------------------------------------------------------------------


@OPTIONS
def test_an_option_changes_a_training_by_rounding(
    method: str,
    option: str,
    smallest: Dataset,
    plain: Callable[[str], Trained],
    optional: Callable[[str, str], Trained],
) -> None:
    """float32: losses of five steps to 1e-4, and weights to a hundredth of the way that they have come."""
    expected, ours = plain(method), optional(method, option)
    assert ours.losses == pytest.approx(expected.losses, rel=1e-4)
    assert distance(method, ours.checkpoint, expected.checkpoint, smallest.base_model) < 1e-2


@pytest.mark.parametrize("option", ["fused_adam", "channels_last"])
@METHODS
@pytest.mark.usefixtures("in_float64")
def test_in_float64_an_option_changes_nothing(method: str, option: str, dataset: Dataset, tmp_path: Path) -> None:
    """Losses to 1e-10, weights to 1e-9 of the way that they have come."""
    expected, plain = losses_and_checkpoint(CONFIGS[method], dataset, tmp_path / "plain")
    losses, checkpoint = losses_and_checkpoint(with_option(method, option), dataset, tmp_path / "option")
    assert losses == pytest.approx(expected, rel=1e-10, abs=0)
    assert distance(method, checkpoint, plain, dataset.base_model) < 1e-9


@OPTIONS
def test_resumed_with_an_option_equals_uninterrupted_bit_for_bit(
    method: str, option: str, smallest: Dataset, optional: Callable[[str, str], Trained], tmp_path: Path
) -> None:
    """Losses, weights and training state, after an interruption at step 2."""
    config, whole = with_option(method, option), optional(method, option)
    losses: dict[int, float] = {}
    for _ in range(2):
        resume = latest_checkpoint(tmp_path / "pieces")
        pieces = train(
            config, smallest, [2], resume, out_dir=tmp_path / "pieces", device="cpu", on_step=losses.__setitem__
        )
        checkpoint = next(pieces)
        pieces.close()
    assert checkpoint.step == 5
    assert list(losses.values()) == whole.losses
    assert_same(weights(checkpoint), weights(whole.checkpoint))
    state = "training_state.safetensors"
    assert (checkpoint.dir / state).read_bytes() == (whole.checkpoint.dir / state).read_bytes()


def test_moments_lie_as_their_channels_last_weights_do(dataset: Dataset, tmp_path: Path) -> None:
    """A fused kernel, which runs over memory as it lies, resumes bit for bit too."""
    config = with_option("dreambooth", "channels_last").model_copy(update={"fused_adam": True})
    _, whole = losses_and_checkpoint(config, dataset, tmp_path / "whole")
    next(train(config, dataset, [2], out_dir=tmp_path / "pieces", device="cpu"))
    half = latest_checkpoint(tmp_path / "pieces")
    resumed = last(train(config, dataset, [2], half, out_dir=tmp_path / "pieces", device="cpu"))
    assert_same(weights(resumed), weights(whole))


@pytest.mark.slow
@NEEDS_COMPILER
def test_a_compiled_training_may_compute_activations_twice(
    smallest: Dataset, plain: Callable[[str], Trained], tmp_path: Path
) -> None:
    """With gradient checkpointing it is the same training up to rounding."""
    method = "dreambooth"
    expected = plain(method)
    config = with_option(method, "compile").model_copy(update={"gradient_checkpointing": True})
    losses, checkpoint = losses_and_checkpoint(config, smallest, tmp_path)
    assert losses == pytest.approx(expected.losses, rel=1e-4)
    assert distance(method, checkpoint, expected.checkpoint, smallest.base_model) < 1e-2


# --- the same files --------------------------------------------------------------------------------------------


def layout(checkpoint: Checkpoint) -> dict[str, Any]:
    """Every file, and of weights the header: names, shapes, dtypes and where each lies."""
    headers: dict[str, Any] = {}
    for file in sorted(path for path in checkpoint.dir.rglob("*") if path.is_file()):
        name = str(file.relative_to(checkpoint.dir))
        headers[name] = None
        if file.suffix == ".safetensors" and "state" not in name:
            with file.open("rb") as stream:
                (size,) = struct.unpack("<Q", stream.read(8))
                headers[name] = json.loads(stream.read(size))
    return headers


@OPTIONS
def test_files_are_those_of_a_plain_training(
    method: str,
    option: str,
    smallest: Dataset,
    plain: Callable[[str], Trained],
    optional: Callable[[str, str], Trained],
) -> None:
    """Same files, same names, shapes and dtypes in the same places; plain diffusers loads them."""
    checkpoint = optional(method, option).checkpoint
    assert layout(checkpoint) == layout(plain(method).checkpoint)
    pipeline = StableDiffusionPipeline.from_pretrained(smallest.base_model, safety_checker=None)
    if method == "lora":
        pipeline.load_lora_weights(str(checkpoint.dir), weight_name=LORA_FILE)
        assert sum("lora_B" in name for name, _ in pipeline.unet.named_parameters()) > 0
    else:
        unet = UNet2DConditionModel.from_pretrained(checkpoint.dir / "unet")
        stored = {
            name.partition(":")[2]: tensor for name, tensor in weights(checkpoint).items() if name.startswith("unet/")
        }
        assert_same(dict(unet.state_dict()), stored)


# --- nobody else's ---------------------------------------------------------------------------------------------


@OPTIONS
def test_a_training_after_one_with_an_option_is_as_before_it(
    method: str, option: str, smallest: Dataset, plain: Callable[[str], Trained], tmp_path: Path
) -> None:
    """Bit for bit, and the modules that this process shares lie in memory as they lay."""
    shared = frozen_module(smallest.base_model, "unet", CPU, torch.float32)
    assert isinstance(shared, nn.Module)
    before = plain(method)
    strides = [(parameter.data_ptr(), parameter.stride()) for parameter in shared.parameters()]
    next(train(with_option(method, option), smallest, [1], out_dir=tmp_path / "option", device="cpu"))
    after, second = losses_and_checkpoint(CONFIGS[method], smallest, tmp_path / "after")
    assert after == before.losses
    assert_same(weights(second), weights(before.checkpoint))
    assert [(parameter.data_ptr(), parameter.stride()) for parameter in shared.parameters()] == strides
    assert shared._compiled_call_impl is None


@pytest.mark.slow
@NEEDS_COMPILER
def test_closing_a_compiled_training_frees_its_modules(
    smallest: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch keeps of compiled code holds on to nothing."""
    alive = []

    def remember(*arguments: Any) -> TrainedModules:
        modules = copy_for_training(*arguments)
        alive.append(weakref.ref(modules.unet))
        return modules

    monkeypatch.setattr(training.step, "copy_for_training", remember)
    checkpoints = train(with_option("lora", "compile"), smallest, [1], out_dir=tmp_path, device="cpu")
    next(checkpoints)
    assert alive[0]() is not None
    checkpoints.close()
    assert alive[0]() is None


# --- asked for, and got ----------------------------------------------------------------------------------------


@METHODS
def test_each_option_is_taken(method: str, dataset: Dataset) -> None:
    """Off by default; on it is there: one kernel, channels innermost in every convolution, a compiled UNet."""

    def is_fused(config: LoraConfig | DreamBoothConfig) -> bool:
        return bool(start_run(config, dataset, CPU).optimizer.param_groups[0]["fused"])

    def lies_channels_last(config: LoraConfig | DreamBoothConfig) -> bool:
        unet = copy_for_training(config, dataset.base_model, CPU).unet
        kernels = [parameter for parameter in unet.parameters() if parameter.dim() == 4]
        assert kernels
        return all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)

    def is_compiled(config: LoraConfig | DreamBoothConfig) -> bool:
        return copy_for_training(config, dataset.base_model, CPU).unet._compiled_call_impl is not None

    looks: dict[str, Callable[[LoraConfig | DreamBoothConfig], bool]] = {
        "fused_adam": is_fused,
        "channels_last": lies_channels_last,
        "compile": is_compiled,
    }
    for option, look in looks.items():
        assert not look(CONFIGS[method])
        assert look(with_option(method, option))


@pytest.mark.slow
@NEEDS_COMPILER
def test_the_unet_is_one_graph(smallest: Dataset, tmp_path: Path) -> None:
    """Traced once for all steps, and not in pieces with Python between them; with adapters and dropout."""
    counters = torch._dynamo.utils.counters
    torch.compiler.reset()
    counters.clear()
    config = with_option("lora", "compile").model_copy(update={"max_train_steps": 3})
    losses_and_checkpoint(config, smallest, tmp_path)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@METHODS
def test_options_left_out_are_in_no_identity(method: str) -> None:
    """What a config without them is hashed from does not name them; one that asks for them is another."""
    text = canonical_json(CONFIGS[method])
    for option in ("fused_adam", "channels_last", "compile"):
        assert option not in text
        assert canonical_json(CONFIGS[method].model_copy(update={option: False})) == text
        assert canonical_json(with_option(method, option)) != text


def test_compile_without_a_compiler_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, before anything is loaded."""
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(ValueError, match=r"compile: needs a C\+\+ compiler"):
        check_training(with_option("lora", "compile"), "cpu")
    check_training(CONFIGS["lora"], "cpu")


# --- in packs --------------------------------------------------------------------------------------------------


def test_who_may_share_a_pass() -> None:
    """Not those that are compiled; others where they agree on memory format and blocks; fused or not is all one."""
    plain = CONFIGS["lora"]
    assert not is_packable(with_option("lora", "compile"))
    assert pack_together(plain, with_option("lora", "fused_adam"))
    assert not pack_together(plain, with_option("lora", "channels_last"))
    assert pack_together(with_option("lora", "channels_last"), with_option("lora", "channels_last"))
    in_some_blocks = plain.model_copy(update={"target_blocks": "mid+up"})
    assert not pack_together(plain, in_some_blocks)
    assert pack_together(in_some_blocks, in_some_blocks)
    for one, other in ((plain, CONFIGS["dreambooth"]), (CONFIGS["dreambooth"], plain), (CONFIGS["dreambooth"],) * 2):
        assert not pack_together(one, other)


@pytest.mark.usefixtures("in_float64")
def test_a_pack_that_lies_channels_last_is_the_pack(dataset: Dataset) -> None:
    """In float64 to 1e-10, with convolutions of its own that lie so."""
    configs = [CONFIGS["lora"].model_copy(update={"rank": rank, "seed": rank}) for rank in (2, 3)]
    plain, expected = in_pack(configs, dataset, 5)
    pack, losses = in_pack([config.model_copy(update={"channels_last": True}) for config in configs], dataset, 5)
    kernels = [(one, other) for one, other in zip(pack.unet.parameters(), plain.unet.parameters(), strict=True)]
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one, _ in kernels if one.dim() == 4)
    assert all(other.is_contiguous() for _, other in kernels)
    for of_run, of_plain in zip(losses, expected, strict=True):
        assert of_run == pytest.approx(of_plain, rel=1e-10, abs=0)
    for run, lone in zip(pack.runs, plain.runs, strict=True):
        ours, theirs = tensors_of(run), tensors_of(lone)
        assert (flat(list(ours.values())) - flat(list(theirs.values()))).norm() < 1e-9


@pytest.mark.parametrize("fused_adam", [True, False])
def test_who_leaves_a_pack_has_the_optimizer_of_its_config(fused_adam: bool, dataset: Dataset, tmp_path: Path) -> None:
    """A pack's is fused; alone it is as the config says, the count of steps included."""
    config = CONFIGS["lora"].model_copy(update={"fused_adam": fused_adam})
    pack = PackTraining(dataset, "cpu")
    pack.admit("a", config, [2], out_dir=tmp_path)
    checkpoint = pack.advance()["a"]
    assert isinstance(checkpoint, Checkpoint)
    run = start_run(config, dataset, CPU, checkpoint)
    assert run.optimizer.param_groups[0]["fused"] == (True if fused_adam else None)
    assert {state["step"].item() for state in run.optimizer.state.values()} == {2}
    assert load_training_state(checkpoint)["optimizer"]["param_groups"][0]["fused"] is None


def test_matrices_are_multiplied_as_the_config_says(
    smallest: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, alone and in packs; whoever computes in between finds torch's setting as it was."""
    flag = torch.backends.cuda.matmul
    at_first, seen = flag.allow_tf32, list[bool]()
    backward = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda *a, **k: (seen.append(flag.allow_tf32), backward(*a, **k)))
    config = CONFIGS["lora"].model_copy(update={"allow_tf32": True, "max_train_steps": 2, "train_text_encoder": False})
    for before in (True, at_first):
        flag.allow_tf32 = before
        for wanted in (True, False):
            seen.clear()
            own = config.model_copy(update={"allow_tf32": wanted})
            for _ in train(own, smallest, [1], out_dir=tmp_path / f"{before}{wanted}", device="cpu"):
                assert flag.allow_tf32 == before
            pack = PackTraining(smallest, "cpu")
            pack.admit("a", own, [1], out_dir=tmp_path / f"pack{before}{wanted}")
            while pack.names:
                pack.advance()
                assert flag.allow_tf32 == before
            assert set(seen) == {wanted}
    assert not pack_together(config, config.model_copy(update={"allow_tf32": False}))
