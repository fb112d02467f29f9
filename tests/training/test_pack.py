"""A run in a pack is the run alone: exact in float64, up to rounding in float32, and its own business in either."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig as PeftConfig
from peft import get_peft_model_state_dict
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import training.adapter_bank
import training.batches
import training.methods
import training.pack
import training.stable_diffusion
import training.step
from tests.training.conftest import NUM_CLASS_IMAGES
from tests.training.test_train import assert_same, last, weights
from training.adapter_bank import AdapterBank
from training.checkpoint import Checkpoint, latest_checkpoint, load_pipeline, load_training_state
from training.config import LoraConfig
from training.dataset import Dataset
from training.journal import NonFiniteLoss
from training.methods import LoraTensors, load_lora
from training.pack import Member, start_pack, take_pack_step
from training.pack_training import PackTraining
from training.packed_dropout import PackedDropout
from training.stats import read_stats
from training.step import TrainingRun, apply_gradients, dropout_at, micro_step_inputs, micro_step_loss, start_run
from training.targets import unet_targets
from training.train import TrainingStopped, train

CPU = torch.device("cpu")
PLAIN = LoraConfig(rank=4, learning_rate=1e-3, max_train_steps=22, train_batch_size=2)
UNLIKE = {
    "plain": [
        PLAIN.model_copy(update={"rank": 1, "seed": 1}),
        PLAIN.model_copy(update={"rank": 3, "lora_alpha": 7.5, "seed": 2, "learning_rate": 3e-4}),
        PLAIN.model_copy(
            update={"seed": 3, "lr_scheduler": "cosine", "lr_warmup_steps": 3, "max_grad_norm": 0.01, "snr_gamma": 5.0}
        ),
        PLAIN.model_copy(update={"rank": 8, "adam_weight_decay": 0.5, "adam_beta1": 0.5, "adam_epsilon": 1e-4}),
    ],
    "everything": [
        config.model_copy(
            update={
                "train_text_encoder": True,
                "gradient_accumulation_steps": 2,
                "with_prior_preservation": True,
                "num_class_images": NUM_CLASS_IMAGES - rank % 2,
                "prior_loss_weight": 0.5 + rank,
                "train_batch_size": 1,
                **more,
            }
        )
        for rank, config, more in (
            (2, PLAIN.model_copy(update={"rank": 2, "seed": 5}), {"lora_dropout": 0.3}),
            (3, PLAIN.model_copy(update={"rank": 3, "seed": 6}), {"text_encoder_learning_rate": 1e-4}),
            (5, PLAIN.model_copy(update={"rank": 5, "seed": 7}), {"lora_dropout": 0.5, "gradient_checkpointing": True}),
        )
    ],
    "some blocks": [
        PLAIN.model_copy(update={"rank": rank, "seed": rank, "target_blocks": "mid+up"}) for rank in (1, 3)
    ],
}
"""Packs whose runs differ in all that may differ, and one without adapters in some blocks."""


def alone(config: LoraConfig, dataset: Dataset, steps: int) -> tuple[TrainingRun, list[float]]:
    """Peft's modules and torch's AdamW over their tensors, one by one."""
    run = start_run(config, dataset, CPU)
    losses = []
    for _ in range(steps):
        of_step = []
        for micro_step in run.micro_steps:
            with dropout_at(run, micro_step):
                inputs = micro_step_inputs(run, micro_step)
                answer = run.weights.unet(inputs.noisy_latents, inputs.timesteps, inputs.conditioning).sample
            loss = micro_step_loss(run, answer, inputs)
            (loss / config.gradient_accumulation_steps).backward()
            of_step.append(loss.item())
        apply_gradients(run)
        losses.append(sum(of_step) / len(of_step))
    return run, losses


def in_pack(
    configs: Sequence[LoraConfig], dataset: Dataset, steps: int
) -> tuple[training.pack.Pack, list[list[float]]]:
    """The pack, and the losses of each of its runs."""
    pack = start_pack([Member.of(config, dataset, None) for config in configs], dataset, CPU)
    losses = [[loss.item() for loss, _ in take_pack_step(pack)] for _ in range(steps)]
    return pack, [list(of_run) for of_run in zip(*losses, strict=True)]


def tensors_of(run: TrainingRun) -> dict[str, Tensor]:
    """All that a run has learnt, and its optimizer's moments, as they are saved."""
    saved = run.weights.saved()
    tensors = saved if isinstance(saved, LoraTensors) else training.methods.lora_tensors(saved)
    moments = {
        f"{index} {name}": tensor
        for index, own in run.training_state()["optimizer"]["state"].items()
        for name, tensor in own.items()
    }
    named = {**tensors.unet, **(tensors.text_encoder or {}), **moments}
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def farthest(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """The largest relative distance, of all A together, of all B, and of each moment.

    Single tensors are no measure: what some of them learn is rounding.
    """
    assert first.keys() == second.keys()
    kinds: dict[str, list[str]] = {}
    for name in first:
        kinds.setdefault(name.split()[-1] if " " in name else ".".join(name.split(".")[-2:]), []).append(name)
    return max(
        (
            torch.cat([(first[name] - second[name]).flatten() for name in names]).norm()
            / torch.cat([second[name].flatten() for name in names]).norm()
        ).item()
        for names in kinds.values()
    )


# --- packed equals alone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", UNLIKE)
@pytest.mark.usefixtures("in_float64")
def test_in_float64_every_run_of_a_pack_is_the_run_alone(kind: str, dataset: Dataset) -> None:
    """Losses, weights and moments after 22 steps, to 1e-10: rank, alpha, rate, schedule, clipping, dropout, priors."""
    pack, losses = in_pack(UNLIKE[kind], dataset, 22)
    for run, of_run, config in zip(pack.runs, losses, UNLIKE[kind], strict=True):
        lone, expected = alone(config, dataset, 22)
        assert of_run == pytest.approx(expected, rel=1e-10, abs=0)
        assert farthest(tensors_of(run), tensors_of(lone)) < 1e-10
        assert run.learning_rate == lone.learning_rate
        assert len(set(expected)) == 22


@pytest.mark.parametrize(("mixed_precision", "steps", "rel"), [("no", 22, 1e-3), ("bf16", 6, 3e-2)])
def test_in_ordinary_precision_a_pack_differs_by_rounding(
    mixed_precision: str, steps: int, rel: float, dataset: Dataset, tmp_path: Path
) -> None:
    """float32: 1e-3 over 22 steps. bf16 rounds a thousand times more coarsely; its losses agree to 3e-2."""
    update = {"mixed_precision": mixed_precision, "max_train_steps": steps}
    configs = [config.model_copy(update=update) for config in UNLIKE["plain"][:3]]
    _, losses = in_pack(configs, dataset, steps)
    for number, config in enumerate(configs):
        expected: dict[int, float] = {}
        last(train(config, dataset, [], out_dir=tmp_path / f"{number}", on_step=expected.__setitem__, device="cpu"))
        assert losses[number] == pytest.approx(list(expected.values()), rel=rel)


def test_what_a_run_learns_does_not_depend_on_a_neighbours_numbers(dataset: Dataset) -> None:
    """Another rate, seed, alpha, schedule and clipping for the first: not a bit of the others changes."""
    others = UNLIKE["plain"][1:]
    packs = [
        in_pack([UNLIKE["plain"][0].model_copy(update=update), *others], dataset, 5)[0]
        for update in ({}, {"learning_rate": 0.5, "seed": 99, "lr_scheduler": "linear", "max_grad_norm": 100.0})
    ]
    (first, *kept), (changed, *same) = ([tensors_of(run) for run in pack.runs] for pack in packs)
    assert farthest(first, changed) > 0.1
    for one, other in zip(kept, same, strict=True):
        assert_same(one, other)


def test_padding_stays_zero(dataset: Dataset) -> None:
    """In the bank, and in both moments: after steps at a rate that has moved all else."""
    pack, _ = in_pack([config.model_copy(update={"learning_rate": 0.1}) for config in UNLIKE["plain"]], dataset, 4)
    (bank,) = pack.banks
    for number, run in enumerate(pack.runs):
        row = bank.rows[number].detach()
        (moments,) = run.optimizer.state.values()
        own = bank.row_of(number, {name: torch.ones_like(view) for name, view in bank.lora(number).items()}) == 1
        for tensor in (row, moments["exp_avg"], moments["exp_avg_sq"]):
            assert tensor[~own].count_nonzero() == 0
            assert tensor[own].count_nonzero() > 0.9 * own.sum()
    assert (~own).sum() == 0  # the widest has none


# --- coming, going, breaking down ------------------------------------------------------------------------------


def admit(
    pack: PackTraining, name: str, config: LoraConfig, at_steps: Sequence[int], root: Path, *, resume: bool = False
) -> None:
    pack.admit(name, config, at_steps, latest_checkpoint(root / name) if resume else None, out_dir=root / name)


def through(pack: PackTraining) -> Iterator[tuple[str, int]]:
    """Trainings and steps in the order in which they reach their points."""
    while pack.names:
        for name, outcome in pack.advance().items():
            assert isinstance(outcome, Checkpoint)
            yield name, outcome.step


@pytest.mark.usefixtures("in_float64")
def test_trainings_come_and_go_and_the_others_do_not_notice(dataset: Dataset, tmp_path: Path) -> None:
    """One dropped, two admitted at points on the way, of other lengths and ranks: each as alone, to 1e-10."""
    first, second, third, fourth = (
        config.model_copy(update={"max_train_steps": steps})
        for config, steps in zip(UNLIKE["plain"], (6, 6, 7, 4), strict=True)
    )
    pack = PackTraining(dataset, "cpu")
    admit(pack, "first", first, [2], tmp_path)
    admit(pack, "dropped", second, [2, 4], tmp_path)
    assert [(name, c.step) for name, c in pack.advance().items()] == [("first", 2), ("dropped", 2)]
    pack.drop("dropped")
    admit(pack, "third", third, [2, 3], tmp_path)
    assert [(name, c.step) for name, c in pack.advance().items()] == [("third", 2)]
    admit(pack, "fourth", fourth, [], tmp_path)
    assert list(through(pack)) == [("third", 3), ("first", 6), ("fourth", 4), ("third", 7)]
    for name, config in (("first", first), ("third", third), ("fourth", fourth)):
        lone = last(train(config, dataset, [], out_dir=tmp_path / "alone" / name, device="cpu"))
        packed = latest_checkpoint(tmp_path / name)
        assert packed is not None
        assert farthest(weights(packed), weights(lone)) < 1e-10
        ours, theirs = (
            [stats.loss for stats in read_stats(folder / "stats.jsonl")]
            for folder in (packed.dir.parent, lone.dir.parent)
        )
        assert ours == pytest.approx(theirs, rel=1e-10, abs=0)


def test_a_pack_keeps_nothing_of_the_pack_before(dataset: Dataset, tmp_path: Path) -> None:
    """Where a training goes on from is views of the rows that it had; once it is in a pack again, they are freed."""
    pack = PackTraining(dataset, "cpu")
    for number, config in enumerate(UNLIKE["plain"][:3]):
        admit(pack, f"{number}", config, [1, 2], tmp_path)
    pack.advance()
    pack.drop("1")
    assert all(training.start is not None for training in pack._trainings.values())
    pack.advance()
    assert all(training.start is None for training in pack._trainings.values())


def test_what_was_stopped_and_gone_on_with_is_what_was_not(dataset: Dataset, tmp_path: Path) -> None:
    """Told to stop in mid-pack: every training has its checkpoint, and all of them end in the same bits."""
    configs = {f"{number}": config for number, config in enumerate(UNLIKE["everything"])}
    for kind in ("whole", "cut"):
        pack = PackTraining(dataset, "cpu", should_stop=lambda: kind == "cut" and len(taken) == 3 * len(configs))  # noqa: B023
        taken: list[int] = []
        pack._on_step = lambda _name, step, _loss: taken.append(step)  # noqa: B023
        for name, config in configs.items():
            short = config.model_copy(update={"max_train_steps": 6})
            admit(pack, name, short, [4], tmp_path / kind)
        if kind == "whole":
            assert len(list(through(pack))) == 2 * len(configs)
            continue
        with pytest.raises(TrainingStopped, match="step 3, 3, 3"):
            pack.advance()
        pack = PackTraining(dataset, "cpu")
        for name, config in configs.items():
            short = config.model_copy(update={"max_train_steps": 6})
            admit(pack, name, short, [4], tmp_path / kind, resume=True)
        assert len(list(through(pack))) == 2 * len(configs)
    for name in configs:
        whole, cut = (latest_checkpoint(tmp_path / kind / name) for kind in ("whole", "cut"))
        assert whole is not None
        assert cut is not None
        assert_same(weights(whole), weights(cut))
        assert sha256(whole) == sha256(cut)


def sha256(checkpoint: Checkpoint) -> list[str]:
    """Of all its files but the record, which names no folder."""
    return [
        hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(checkpoint.dir.rglob("*"))
        if file.suffix == ".safetensors"
    ]


def test_a_training_that_runs_away_ends_alone(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told of at the next point, with its step; the others end as if it had not, to the last bit."""

    def loss_of(run: TrainingRun, *others: object) -> Tensor:
        loss = micro_step_loss(run, *others)
        return loss * math.nan if poisoned and (run.config.seed, run.step) == (2, 1) else loss

    monkeypatch.setattr(training.pack, "micro_step_loss", loss_of)
    for poisoned in (False, True):
        pack = PackTraining(dataset, "cpu")
        for config in UNLIKE["plain"][:3]:
            admit(
                pack, f"{config.seed}", config.model_copy(update={"max_train_steps": 3}), [], tmp_path / f"{poisoned}"
            )
        outcomes = pack.advance()
        assert pack.names == []
        assert {name for name, outcome in outcomes.items() if isinstance(outcome, NonFiniteLoss)} == (
            {"2"} if poisoned else set()
        )
    assert str(outcomes["2"]) == "training ran away: loss nan at step 2; lower learning_rate"
    assert [stats.step for stats in read_stats(tmp_path / "True" / "2" / "stats.jsonl")] == [1]
    assert latest_checkpoint(tmp_path / "True" / "2") is None
    for name in ("1", "3"):
        unhurt, beside_it = (latest_checkpoint(tmp_path / f"{poisoned}" / name) for poisoned in (False, True))
        assert unhurt is not None
        assert beside_it is not None
        assert_same(weights(unhurt), weights(beside_it))


def test_a_pack_of_which_nothing_is_left_stops_at_once(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not train rows of nothing up to the next point."""
    monkeypatch.setattr(training.pack, "micro_step_loss", lambda *arguments: micro_step_loss(*arguments) * math.inf)
    steps: list[int] = []
    pack = PackTraining(dataset, "cpu", should_stop=lambda: steps.append(1) is not None)
    for config in UNLIKE["plain"]:
        admit(pack, f"{config.seed}", config, [], tmp_path)
    assert all(isinstance(outcome, NonFiniteLoss) for outcome in pack.advance().values())
    assert (pack.names, len(steps)) == ([], 1)


# --- what is saved ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", UNLIKE)
def test_what_a_pack_saves_is_what_a_training_alone_saves_of_equal_weights(
    kind: str, dataset: Dataset, tmp_path: Path
) -> None:
    """Byte for byte, the training state too; plain diffusers reads it."""
    configs = [config.model_copy(update={"max_train_steps": 4}) for config in UNLIKE[kind]]
    pack = PackTraining(dataset, "cpu")
    for number, config in enumerate(configs):
        admit(pack, f"{number}", config, [2], tmp_path)
    reached = pack.advance()
    for number, config in enumerate(configs):
        packed = reached[f"{number}"]
        assert isinstance(packed, Checkpoint)
        run = start_run(config, dataset, CPU, packed)
        again = training.journal.save_checkpoint(
            tmp_path / "alone" / f"{number}", config, run.weights, 2, dataset.base_model, run.training_state()
        )
        assert sha256(again) == sha256(packed)
        assert (again.dir / "MANIFEST.json").read_text() == (packed.dir / "MANIFEST.json").read_text()
        pipeline = load_pipeline(packed, dataset.base_model, device="cpu")
        loaded = get_peft_model_state_dict(pipeline.unet, adapter_name="default_0")
        assert_same(loaded, dict(load_lora(packed.dir).unet))


@pytest.mark.usefixtures("in_float64")
def test_a_training_goes_from_a_pack_to_itself_and_back(dataset: Dataset, tmp_path: Path) -> None:
    """Two steps packed, two alone, two packed with others: as six alone, to 1e-6, as it is float32 that is loaded."""
    config, *others = (config.model_copy(update={"max_train_steps": 6}) for config in UNLIKE["everything"])
    for steps, company in ((2, others[:1]), (4, []), (6, others)):
        if company:
            pack = PackTraining(dataset, "cpu")
            for number, other in enumerate(company):
                admit(pack, f"{steps} {number}", other, [], tmp_path)
            admit(pack, "moved", config, [steps], tmp_path, resume=True)
            while "moved" not in pack.advance():
                pass
        else:
            next(train(config, dataset, [4], latest_checkpoint(tmp_path / "moved"), out_dir=tmp_path / "moved"))
    moved = latest_checkpoint(tmp_path / "moved")
    assert moved is not None
    assert moved.step == 6
    lone = last(train(config, dataset, [], out_dir=tmp_path / "alone", device="cpu"))
    assert farthest(weights(moved), weights(lone)) < 1e-6
    ours, theirs = (load_training_state(checkpoint) for checkpoint in (moved, lone))
    assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
    assert ours["lr_scheduler"] == theirs["lr_scheduler"]


# --- what it costs ---------------------------------------------------------------------------------------------


class Dispatches(TorchDispatchMode):
    """Counts the operations that torch hands to a device: on a GPU, about its kernels. Views launch none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: D105
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def with_adapter(unet: UNet2DConditionModel, rank: int) -> UNet2DConditionModel:
    """Peft's own layers over shared weights."""
    copy = training.stable_diffusion.shared_copy(unet)
    copy.add_adapter(PeftConfig(r=rank, lora_alpha=rank, target_modules=[*unet_targets("attention").ends]))
    return copy


def test_eight_packed_trainings_dispatch_what_one_does() -> None:
    """Forward and backward of SD1.5's UNet: eight in a pack at most a tenth more than one with peft's layers."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).requires_grad_(False)
    counts = {}
    for num_runs, ranks in ((1, [16]), (8, [2, 4, 8, 16, 32, 64, 64, 128])):
        with_peft = [with_adapter(unet, rank) for rank in ranks]
        if num_runs == 1:
            (model,) = with_peft
        else:
            model = training.stable_diffusion.shared_copy(unet)
            loras = [get_peft_model_state_dict(one) for one in with_peft]
            AdapterBank(model, loras, torch.device("meta")).add_layers(
                [None] * num_runs, PackedDropout([0.0] * num_runs, torch.device("meta"))
            )
        model.train()
        latents, timesteps, words = (
            torch.zeros(num_runs, *shape, device="meta") for shape in ((4, 64, 64), (), (77, 768))
        )
        with Dispatches() as dispatches:
            model(latents, timesteps, words).sample.sum().backward()
        counts[num_runs] = dispatches.count
    assert counts[1] > 2500
    assert counts[8] < 1.1 * counts[1], counts
