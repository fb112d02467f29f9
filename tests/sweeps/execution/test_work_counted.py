"""What work.json says was computed against what the real modules saw, in a whole sweep of tiny models without Ray.

pytest tests/sweeps/execution/test_work_counted.py     about half a minute
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import CLIPTextModel

from sweeps.config import SweepConfig, resolved_yaml
from sweeps.execution.preparation import Preparation, prepare_subject
from sweeps.execution.stages import prepare_run
from sweeps.execution.trial import SweepTrial
from sweeps.execution.worker import TrialTask
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import trial_id
from sweeps.ledger.records import TrialRecord
from sweeps.rendering import render_best
from sweeps.renders import due_renders
from sweeps.results.results import read_results
from sweeps.results.work import account_of, seconds_by_stage
from sweeps.results.work_file import work_file
from sweeps.space import grid
from tests.sweeps.tiny_sweep import ONE_CPU
from training.batches import frozen_prompt_encoder
from training.config import MethodConfig

SEEN_AS = {
    UNet2DConditionModel: "unet",
    ControlNetModel: "controlnet",
    CLIPTextModel: "text_encoder",
    Encoder: "vae_encode",
    Decoder: "vae_decode",
}


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Samples that go through Stable Diffusion's modules while this lasts, whichever copies of them."""
    seen: Counter[str] = Counter()

    def look(module: nn.Module, _: Any, output: Any) -> None:
        part = next((name for kind, name in SEEN_AS.items() if isinstance(module, kind)), None)
        if part is None:
            return
        first = output if isinstance(output, Tensor) else output[0][0] if part == "controlnet" else output[0]
        assert isinstance(first, Tensor)
        name = part if part.startswith("vae") else f"{part}_forward"
        seen[name] += len(first)
        if first.requires_grad:
            first.register_hook(lambda gradient: seen.update({f"{part}_backward": len(gradient)}))

    handle = register_module_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


METHODS: dict[str, dict[str, Any]] = {
    "lora": {
        "rank": {"choices": [1, 2]},
        "max_train_steps": 3,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "train_text_encoder": {"choices": [False, True]},
    },
    "dreambooth": {
        "max_train_steps": 3,
        "train_batch_size": 1,
        "with_prior_preservation": True,
        "num_class_images": 5,
    },
}


def run_trial(folder: RunFolder, task: TrialTask, config: MethodConfig) -> None:
    """To its end, as in a process of its own."""
    frozen_prompt_encoder.cache_clear()
    record = TrialRecord(
        trial=trial_id(config), method=config.method, status="running", config=config.model_dump(mode="json")
    )
    folder.write(record)
    worker = SweepTrial({"trial": record.trial, "task": task})
    while not worker.step()["done"]:
        pass
    worker.cleanup()


@pytest.mark.slow
@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_the_counts_are_what_the_modules_saw(
    tiny_sweep: Callable[..., SweepConfig],
    tiny_mapping: dict[str, Any],
    tiny_controlnet: str,
    photos: Path,
    tmp_path: Path,
    guidance_scale: float,
) -> None:
    """Mirrored photos, class images, accumulation, text encoders trained and frozen, guidance and none, renders.

    Every picture, every training row and every prompt, forward and backward; no more and no fewer.
    """
    config = tiny_sweep(
        methods=METHODS if guidance_scale > 1 else {"lora": {**METHODS["lora"], "rank": 1}},
        subject={**tiny_mapping["subject"], "random_flip": guidance_scale > 1},
        evaluation={
            **tiny_mapping["evaluation"],
            "prompts": ["sks woman in a garden", "sks woman in a game"],
            "at_steps": [2],
            "num_inference_steps": 3,
            "guidance_scale": guidance_scale,
            "negative_prompt": "blurry",
        },
        render={
            "references": [str(min(photos.glob("*.png")))],
            "controlnet": tiny_controlnet,
            "num_inference_steps": 2,
            "guidance_scale": guidance_scale,
            "resolution": 64,
            "top": 2,
        },
    )
    folder = RunFolder(tmp_path / "run")
    folder.write_sweep(resolved_yaml(config))
    with counting() as seen:
        prepare_subject(config, folder)
        list(prepare_run(Preparation.of(config, folder, "cpu")))
        for trial in grid(config.methods, config.evaluation.at_steps):
            run_trial(folder, TrialTask.of(config, folder, ONE_CPU), trial)
        job = due_renders(config, folder)
        assert job is not None
        render_best(job, folder)
    results = read_results(folder.dir)
    work = work_file(account_of(results), None, seconds_by_stage(results))
    assert {name: number for name, number in work.computed.samples.model_dump().items() if number} == dict(seen)
    assert work.computed.pictures["renders"] == 3, "the base model's and two trials'"
    assert work.seconds["training"] > 0
    assert work.seconds["scoring"] > 0
