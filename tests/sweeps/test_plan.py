"""What is known before a sweep starts: its size, and what would make it fail.

pytest tests/sweeps/test_plan.py     a few seconds
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.config import SweepConfig
from sweeps.ledger.folder import RunFolder
from sweeps.plan import (
    STABLE_DIFFUSION_15,
    base_sizes,
    check_disk,
    check_sweep,
    checkpoint_bytes,
    failing_disk_explained,
    plan_of,
    training_bytes,
)
from training.config import DreamBoothConfig, LoraConfig
from training.errors import UserError


def test_the_plan_counts_what_the_sweep_will_do(tiny_sweep: Callable[..., SweepConfig]) -> None:
    """Trials, training steps, scored checkpoints and pictures, the base model's among them."""
    plan = check_sweep(tiny_sweep())
    assert (len(plan.trials), plan.num_steps, plan.num_checkpoints) == (4, 16, 8)
    assert plan.num_images == (8 + 1) * 2
    assert plan.is_exact
    assert any("4" in line for line in plan.lines())


def test_a_schedule_that_knows_its_end_costs_runs(tiny_sweep: Callable[..., SweepConfig]) -> None:
    """Under a cosine schedule each scoring point is a trial of its own, and the plan says so."""
    lora = {"max_train_steps": 4, "train_batch_size": 1}
    constant = plan_of(tiny_sweep(methods={"lora": lora}))
    cosine = plan_of(tiny_sweep(methods={"lora": {**lora, "lr_scheduler": "cosine"}}))
    assert (len(constant.trials), constant.num_steps, constant.num_checkpoints) == (1, 4, 2)
    assert (len(cosine.trials), cosine.num_steps, cosine.num_checkpoints) == (2, 2 + 4, 2)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_search_is_planned_at_its_number_of_trials(tiny_sweep: Callable[..., SweepConfig], sampler: str) -> None:
    """Where scores decide, the plan is measured on as many trials drawn at random."""
    methods = {"lora": {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "max_train_steps": 4}}
    plan = plan_of(tiny_sweep(methods=methods, search={"sampler": sampler, "num_trials": 7}))
    assert len(plan.trials) == 7
    assert plan.is_exact is (sampler == "random")


def test_reference_photos_that_are_not_there_are_named(tiny_sweep: Callable[..., SweepConfig], tmp_path: Path) -> None:
    """A folder of references that is missing or empty is refused before anything starts."""
    evaluation = tiny_sweep().evaluation

    def compared_with(references: Path) -> SweepConfig:
        face = evaluation.face.model_copy(update={"references": references})
        return tiny_sweep(evaluation=evaluation.model_copy(update={"face": face}))

    with pytest.raises(ValueError, match=r"evaluation\.face\.references: no such folder"):
        check_sweep(compared_with(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"evaluation\.face\.references: need 1 or more pictures, got 0"):
        check_sweep(compared_with(tmp_path))


def test_sizes_are_read_from_the_base_model(tiny_base: str) -> None:
    """A local model's own numbers count, not Stable Diffusion 1.5's."""
    from training.stable_diffusion import load_base_model

    pipeline = load_base_model(tiny_base)
    sizes = base_sizes(tiny_base)
    assert sizes.unet == sum(parameter.numel() for parameter in pipeline.unet.parameters())
    assert sizes.text_encoder == sum(parameter.numel() for parameter in pipeline.text_encoder.parameters())
    assert sizes.native_size == 64


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_a_checkpoint_takes_the_disk_that_was_estimated(
    tiny_base: str, photos: Path, tmp_path: Path, method: str, train_text_encoder: bool
) -> None:
    """The estimate of a checkpoint's weights is right within the small files around them."""
    from training.config import SubjectConfig
    from training.dataset import encode_dataset, load_dataset
    from training.preparation import prepare_photos
    from training.train import train

    subject = SubjectConfig(photos=photos, instance_prompt="a photo of sks woman", resolution=64)
    prepare_photos(subject, tmp_path / "dataset")
    encode_dataset(tmp_path / "dataset", tiny_base)
    common: dict[str, Any] = {"max_train_steps": 1, "train_batch_size": 1, "train_text_encoder": train_text_encoder}
    config = LoraConfig(rank=16, **common) if method == "lora" else DreamBoothConfig(**common)
    (checkpoint,) = train(config, load_dataset(tmp_path / "dataset"), [1], out_dir=tmp_path, device="cpu")
    weights = sum(file.stat().st_size for file in checkpoint.dir.rglob("*") if "state" not in file.name)
    assert weights == pytest.approx(checkpoint_bytes(config, base_sizes(tiny_base)), abs=150_000)


def test_stable_diffusion_15s_checkpoints_have_their_known_sizes() -> None:
    """A LoRA of rank 4 is a file of 3.2 MB and a UNet one of 3.4 GB, as people know them."""
    assert checkpoint_bytes(LoraConfig(rank=4), STABLE_DIFFUSION_15) == pytest.approx(3.2e6, rel=0.05)
    assert checkpoint_bytes(DreamBoothConfig(), STABLE_DIFFUSION_15) == pytest.approx(3.44e9, rel=0.01)


@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_full_training_takes_the_memory_that_was_estimated(
    tiny_base: str, photos: Path, tmp_path: Path, train_text_encoder: bool
) -> None:
    """Weights, gradients and AdamW's moments of a real training after a step, to the byte."""
    import torch

    from training.config import SubjectConfig
    from training.dataset import encode_dataset, load_dataset
    from training.preparation import prepare_photos
    from training.step import apply_gradients, start_run

    subject = SubjectConfig(photos=photos, instance_prompt="a photo of sks woman", resolution=64)
    prepare_photos(subject, tmp_path / "dataset")
    encode_dataset(tmp_path / "dataset", tiny_base)
    config = DreamBoothConfig(train_text_encoder=train_text_encoder)
    run = start_run(config, load_dataset(tmp_path / "dataset"), torch.device("cpu"))
    gradients = [parameter for group in run.weights.groups() for parameter in group]
    for parameter in gradients:
        parameter.grad = torch.ones_like(parameter)
    held = sum(parameter.nbytes + parameter.grad.nbytes for parameter in gradients if parameter.grad is not None)
    apply_gradients(run)
    held += sum(
        tensor.nbytes for state in run.optimizer.state.values() for name, tensor in state.items() if name != "step"
    )
    assert training_bytes(config, base_sizes(tiny_base)) == held


def test_the_memory_of_full_training_is_said_where_nobody_has_said_how_many_share_a_gpu(
    tiny_sweep: Callable[..., SweepConfig],
) -> None:
    """13.8 GB for Stable Diffusion 1.5's UNet, 10 bytes a number with 8-bit AdamW; the largest trial counts."""
    assert training_bytes(DreamBoothConfig(), STABLE_DIFFUSION_15) == 13_752_335_424
    assert training_bytes(DreamBoothConfig(use_8bit_adam=True), STABLE_DIFFUSION_15) == 8_595_209_640
    methods = {"lora": {}, "dreambooth": {"train_text_encoder": {"choices": [False, True]}}}

    def said(resources: dict[str, Any], **sections: Any) -> list[str]:
        config = tiny_sweep(**{"base_model": "owner/name", "methods": methods, **sections, "resources": resources})
        return [line for line in plan_of(config).lines() if line.startswith("memory")]

    (line,) = said({})
    assert "15.7 GB" in line
    assert "resources.gpus_per_trial: {dreambooth: 0.25}" in line
    assert said({"gpus_per_trial": {"lora": 1}}) == [line]
    for others in ({"gpus_per_trial": 1}, {"gpus_per_trial": {"dreambooth": 0.5}}, {"workers_per_trial": 2}):
        assert said(others) == []
    assert said({}, methods={"lora": {}}) == []


def test_a_full_disk_is_refused_with_what_is_needed(
    tiny_sweep: Callable[..., SweepConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Path, bytes needed and bytes free."""
    plan = plan_of(tiny_sweep())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(ValueError, match=r"needs about \d+\.\d MB of disk, 1\.0 MB are free") as refused:
        check_disk(plan, RunFolder(tmp_path / "run"))
    assert str(tmp_path / "run") in str(refused.value)


def test_a_run_folder_that_cannot_be_made_is_refused(tiny_sweep: Callable[..., SweepConfig], tmp_path: Path) -> None:
    """A file in the way is named."""
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="must be writable"):
        check_disk(plan_of(tiny_sweep()), RunFolder(tmp_path / "file" / "run"))


@pytest.mark.parametrize(
    ("section", "value", "law"),
    [
        ("subject", {"photos": "nowhere", "instance_prompt": "sks"}, "nowhere"),
        ("base_model", "model.ckpt", "pickle"),
        ("base_model", "/no/such/model", "no such"),
    ],
)
def test_what_cannot_work_is_refused_without_ray(
    tiny_sweep: Callable[..., SweepConfig], section: str, value: object, law: str
) -> None:
    """`check` finds missing photos and base models on this machine."""
    with pytest.raises(ValueError, match=law):
        check_sweep(tiny_sweep(**{section: value}))


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "trials: the disk is full: .* are free, .* needs about .*nothing that was scored is lost"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EROFS, "trials: has become read-only; nothing that was scored is lost"),
    ],
)
def test_a_disk_that_fails_in_the_middle_is_named_with_the_way_on(
    tiny_sweep: Callable[..., SweepConfig], tmp_path: Path, number: int, said: str
) -> None:
    """What happened, where, that nothing is lost, and that the same command goes on."""
    folder = RunFolder(tmp_path)
    with (
        pytest.raises(UserError, match=said) as refused,
        failing_disk_explained(plan_of(tiny_sweep()), folder),
    ):
        raise OSError(number, "as the kernel says it", str(folder.trials_dir))
    assert "give the same command again" in str(refused.value)


def test_other_failures_are_not_called_a_failing_disk(tiny_sweep: Callable[..., SweepConfig], tmp_path: Path) -> None:
    """They pass as they are."""
    with pytest.raises(PermissionError), failing_disk_explained(plan_of(tiny_sweep()), RunFolder(tmp_path)):
        raise PermissionError(errno.EACCES, "not allowed")
