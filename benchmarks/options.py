"""What options of a training do to the demo's model: how far the class drifts, and how bright and dark pictures get.

    OMP_NUM_THREADS=1 python -m benchmarks.options        five minutes

LoRAs of rank 4 at 1e-3, batch 1, 150 steps, two seeds each, on the demo's photos. Everything is measured on what no
training has seen: eight class pictures that the base model drew beyond those of the training, and the demo's held-out
photos. **drift**: root mean square of what the trained model answers of noisy class pictures under the class prompt,
less what the base model answers, as a part of the base model's answer. **held-out photos**: the loss under the instance
prompt, as a part of the base model's; below 1 the person was learnt. **brightness**: mean level of eight pictures of a
prompt, of 255.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from benchmarks.alternating import table
from benchmarks.golden import CLASS_PROMPT
from benchmarks.trainings import CPU, DEMO, PROMPT
from training.checkpoint import load_pipeline
from training.config import LoraConfig, SubjectConfig
from training.dataset import Dataset, Latents, encode_dataset, load_dataset
from training.preparation import prepare_photos
from training.train import train

BASE = str(DEMO / "family" / "base_model")
NUM_TRAINED, NUM_UNSEEN = 16, 8
"""Class pictures."""
ARMS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "class pictures": {"with_prior_preservation": True, "num_class_images": NUM_TRAINED},
    "prior_from: base_model": {"with_prior_preservation": True, "prior_from": "base_model"},
    "noise_offset: 0.1": {"noise_offset": 0.1},
}
DARK, BRIGHT = f"{PROMPT} in space", f"{PROMPT} in the snow"
HEADER = ("training", "drift", "held-out photos", "dark prompt", "bright prompt", "between them")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--pictures", type=int, default=8, help="of each prompt, for their brightness")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with TemporaryDirectory() as work:
        dataset, unseen_class = _class_pictures(Path(work) / "trained")
        unseen_photos = _encoded(DEMO / "photos_held_out", Path(work) / "held_out").latents.mean
        base = load_pipeline(None, BASE, device="cpu", dtype=torch.float32)
        rows = [["base model", "0", "1", *_brightness(base, asked.pictures)]]
        for said in asked.arms:
            for seed in range(asked.seeds):
                config = LoraConfig(
                    rank=4,
                    learning_rate=1e-3,
                    train_batch_size=1,
                    max_train_steps=asked.steps,
                    seed=seed,
                    **ARMS[said],
                )
                *_, checkpoint = train(config, dataset, (), out_dir=Path(work) / f"{said}-{seed}", device=CPU)
                trained = load_pipeline(checkpoint, BASE, device="cpu", dtype=torch.float32)
                rows.append(
                    [
                        f"{said}, seed {seed}",
                        f"{_drift(trained, base, unseen_class):.3f}",
                        f"{_loss(trained, unseen_photos) / _loss(base, unseen_photos):.3f}",
                        *_brightness(trained, asked.pictures),
                    ]
                )
    print(table(HEADER, rows))


def _class_pictures(folder: Path) -> tuple[Dataset, Tensor]:
    """The demo's photos and the first class pictures, to train on; and the latents of further ones."""
    dataset = _encoded(DEMO / "photos", folder, NUM_TRAINED + NUM_UNSEEN)
    assert dataset.class_latents is not None, "they were asked for"
    mean, std = dataset.class_latents.mean, dataset.class_latents.std
    return replace(dataset, class_latents=Latents(mean[:NUM_TRAINED], std[:NUM_TRAINED])), mean[NUM_TRAINED:]


def _encoded(photos: Path, folder: Path, class_images: int = 0) -> Dataset:
    subject = SubjectConfig(
        photos=photos, instance_prompt=PROMPT, class_prompt=CLASS_PROMPT, resolution=64, crop="center"
    )
    prepare_photos(subject, folder)
    encode_dataset(folder, BASE, class_images=class_images, device=CPU)
    return load_dataset(folder)


@torch.no_grad()
def _answers(pipeline: StableDiffusionPipeline, latents: Tensor, prompt: str) -> tuple[Tensor, Tensor]:
    """The noise in pictures at five noise levels, and what the model says of it: [5 B, 4, h, w] each."""
    alphas = pipeline.scheduler.alphas_cumprod
    timesteps = torch.tensor([100, 300, 500, 700, 900]).repeat_interleave(len(latents))
    pictures = (latents * pipeline.vae.config.scaling_factor).repeat(5, 1, 1, 1)
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    kept = alphas[timesteps][:, None, None, None]
    words, _ = pipeline.encode_prompt(prompt, CPU, 1, do_classifier_free_guidance=False)
    noisy = kept.sqrt() * pictures + (1 - kept).sqrt() * noise
    answer: Tensor = pipeline.unet(noisy, timesteps, words.expand(len(noisy), -1, -1)).sample
    return noise, answer


def _drift(trained: StableDiffusionPipeline, base: StableDiffusionPipeline, latents: Tensor) -> float:
    (_, now), (_, before) = (_answers(pipeline, latents, CLASS_PROMPT) for pipeline in (trained, base))
    return float((now - before).square().mean().sqrt() / before.square().mean().sqrt())


def _loss(pipeline: StableDiffusionPipeline, latents: Tensor) -> float:
    noise, answer = _answers(pipeline, latents, PROMPT)
    return float((noise - answer).square().mean())


def _brightness(pipeline: StableDiffusionPipeline, num_pictures: int) -> Sequence[str]:
    pipeline.set_progress_bar_config(disable=True)
    levels = [
        float(
            np.mean(
                pipeline(
                    [prompt] * num_pictures,
                    num_inference_steps=20,
                    guidance_scale=3.0,
                    height=64,
                    width=64,
                    generator=[torch.Generator().manual_seed(seed) for seed in range(num_pictures)],
                    output_type="np",
                ).images
            )
        )
        * 255
        for prompt in (DARK, BRIGHT)
    ]
    return [*(f"{level:.0f}" for level in levels), f"{levels[1] - levels[0]:.0f}"]


if __name__ == "__main__":
    main()
