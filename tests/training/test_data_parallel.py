"""A training that several processes share is the training that one process does, to rounding.

`python -m pytest tests/training/test_data_parallel.py`: two processes, gloo, on the CPU; half a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.training.conftest import NUM_CLASS_IMAGES, encoded
from tests.training.shared_training import Training, run_training, train_in_two_processes
from tests.training.test_train import weights
from training.checkpoint import Checkpoint, latest_checkpoint, load_training_state, open_checkpoint
from training.config import DreamBoothConfig, LoraConfig, SubjectConfig
from training.data_parallel import RowDropout, _buckets, drop_by_row, rows_of
from training.dataset import Dataset
from training.share import ALONE, Share
from training.stats import STATS_FILE, read_stats
from training.train import train

LORA = LoraConfig(
    rank=3,
    lora_dropout=0.3,
    learning_rate=1e-3,
    max_train_steps=6,
    train_batch_size=4,
    gradient_accumulation_steps=2,
    train_text_encoder=True,
    lr_scheduler="cosine",
    seed=7,
)
DREAMBOOTH = DreamBoothConfig(
    learning_rate=1e-4,
    max_train_steps=6,
    train_batch_size=2,
    train_text_encoder=True,
    with_prior_preservation=True,
    num_class_images=NUM_CLASS_IMAGES,
    prior_loss_weight=0.5,
    snr_gamma=5.0,
    gradient_checkpointing=True,
    seed=8,
)
BF16 = LORA.model_copy(update={"mixed_precision": "bf16", "train_text_encoder": False, "max_train_steps": 2})
CONFIGS = {"lora": LORA, "dreambooth": DREAMBOOTH, "bf16": BF16}
ROUNDING = {"lora": 3e-4, "dreambooth": 3e-4, "bf16": 0.1}
"""How far weights may lie apart, as a part of the way that training moved them; Adam makes much of small gradients."""


@pytest.fixture(scope="module")
def dataset(subject: SubjectConfig, tiny_sd15: str, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """For all of SD1.5's layers: `ROUNDING` is what their weights lie apart together, and few lie further."""
    return encoded(subject, tiny_sd15, tmp_path_factory.mktemp("whole") / "dataset")


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Name -> folder of a trial, trained as the name says."""
    root = tmp_path_factory.mktemp("shared")
    alone = {f"{name} by one": Training(config, root / f"{name}-1", (3,)) for name, config in CONFIGS.items()}
    shared = {f"{name} by two": Training(config, root / f"{name}-2", (3,)) for name, config in CONFIGS.items()}
    first_alone = Training(LORA, root / "one-then-two", stop_at=4)
    first_shared = Training(DREAMBOOTH, root / "two-then-one", stop_at=4)
    for training in (*alone.values(), first_alone):
        run_training(training, dataset.dir, ALONE)
    train_in_two_processes(
        [*shared.values(), replace(first_alone, stop_at=None), first_shared], dataset.dir, root / "rendezvous"
    )
    run_training(replace(first_shared, stop_at=None), dataset.dir, ALONE)
    moved = {"lora by one, then by two": first_alone, "dreambooth by two, then by one": first_shared}
    return {name: training.out_dir for name, training in {**alone, **shared, **moved}.items()}


def checkpoint_in(trial_dir: Path) -> Checkpoint:
    checkpoint = latest_checkpoint(trial_dir)
    assert checkpoint is not None
    return checkpoint


def apart(first: Mapping[str, Tensor], second: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """Distance of two trainings' weights over the way of the second from its start."""
    assert first.keys() == second.keys() == start.keys()
    between = sum((first[name].double() - second[name]).square().sum() for name in first)
    way = sum((second[name].double() - start[name]).square().sum() for name in first)
    return float((between / way).sqrt())


@pytest.mark.parametrize(
    ("shared", "alone"),
    [
        ("lora by two", "lora by one"),
        ("dreambooth by two", "dreambooth by one"),
        ("bf16 by two", "bf16 by one"),
        ("lora by one, then by two", "lora by one"),
        ("dreambooth by two, then by one", "dreambooth by one"),
    ],
)
def test_shared_training_is_training(
    shared: str, alone: str, trained: Mapping[str, Path], dataset: Dataset, tmp_path: Path
) -> None:
    """Weights, schedule and the stats of all steps: dropout, accumulation, priors, gone on with by another number."""
    rounding = ROUNDING[alone.split()[0]]
    one, other = checkpoint_in(trained[shared]), checkpoint_in(trained[alone])
    assert one.step == other.step == other.config.max_train_steps
    untrained = other.config.model_copy(update={"learning_rate": 1e-12, "max_train_steps": 1})
    (start,) = train(untrained, dataset, [], out_dir=tmp_path, device="cpu")
    assert apart(weights(one), weights(other), weights(start)) < rounding
    for mine, others in zip(*(read_stats(trained[name] / STATS_FILE) for name in (shared, alone)), strict=True):
        assert (mine.step, mine.learning_rate) == (others.step, others.learning_rate)
        assert mine.loss == pytest.approx(others.loss, rel=rounding)
        assert mine.gradient_norm == pytest.approx(others.gradient_norm, rel=10 * rounding)
    assert load_training_state(one)["lr_scheduler"] == load_training_state(other)["lr_scheduler"]


def test_shared_training_leaves_what_training_leaves(trained: Mapping[str, Path]) -> None:
    """The same files, each written once; the names of the weights are those of one process."""
    for name in ("lora", "dreambooth"):
        files = [
            {path.relative_to(trained[f"{name} by {number}"]) for path in trained[f"{name} by {number}"].rglob("*")}
            for number in ("one", "two")
        ]
        assert files[0] == files[1]
        assert open_checkpoint(trained[f"{name} by two"] / "checkpoint-3").config == CONFIGS[name]


def test_a_batch_that_cannot_be_shared_equally_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train_batch_size: must be divisible by the 3 processes .* got 4"):
        train(LORA, dataset, [], out_dir=tmp_path, device="cpu", share=Share(0, 3))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("num_parts", [1, 2])
def test_every_row_is_somebodys_and_nobody_elses(world_size: int, num_parts: int) -> None:
    """And each process has as many of one part as of the other, part by part."""
    rows = [rows_of(Share(rank, world_size), 6, num_parts) for rank in range(world_size)]
    assert sorted(row for own in rows for row in own) == list(range(6 * num_parts))
    for own in rows:
        assert own == sorted(own)
        assert len([row for row in own if row < 6]) == 6 // world_size


@pytest.mark.parametrize("size", [0, 1, 5, 8])
@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_places_are_shared_evenly(size: int, world_size: int) -> None:
    """Also where they are fewer than the processes."""
    shares = [Share(rank, world_size).of(size) for rank in range(world_size)]
    assert [place for own in shares for place in own] == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_dropout_on_some_rows_is_dropout_on_the_whole_batch() -> None:
    """To the last bit, however deep it lies; what is off stays off, and what drops nothing is left alone."""
    whole = nn.Sequential(nn.ModuleDict({"a": nn.Dropout(0.5)})["a"], nn.Sequential(nn.Dropout(0.2)), nn.Dropout(0))
    batch = torch.randn(6, 4, 5)
    torch.manual_seed(1)
    expected = whole(batch)
    drop_by_row(whole, [1, 4], 6)
    assert [type(module) for module in (whole[0], whole[1][0], whole[2])] == [RowDropout, RowDropout, nn.Dropout]
    torch.manual_seed(1)
    assert torch.equal(whole(batch[[1, 4]]), expected[[1, 4]])
    assert torch.equal(whole.eval()(batch[[1, 4]]), batch[[1, 4]])


def test_buckets_hold_every_tensor_once_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """None above the limit but a tensor that is larger than it."""
    monkeypatch.setattr("training.data_parallel.BUCKET_BYTES", 40)
    tensors = [torch.zeros(size) for size in (4, 6, 1, 20, 3, 3, 3, 3)]
    buckets = list(_buckets(tensors))
    assert [id(tensor) for bucket in buckets for tensor in bucket] == [id(tensor) for tensor in tensors]
    assert [[len(tensor) for tensor in bucket] for bucket in buckets] == [[4, 6], [1], [20], [3, 3, 3], [3]]
