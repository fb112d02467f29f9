"""Run folders drawn by code: believable curves and pictures without training anything."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

from training.stats import STATS_FILE, StepStats

PROMPTS = (
    "sks woman as a queen in a garden",
    "sks woman in a computer game",
    "a portrait of sks woman in a victorian mansion",
)
SIZE = 64
"""Side of the drawn pictures in pixels."""


def build_run(
    folder: Path,
    num_trials: int = 6,
    at_steps: Sequence[int] = (200, 400, 800),
    prompts: Sequence[str] = PROMPTS,
    images_per_prompt: int = 4,
    *,
    name: str = "ada",
    likeness: float = 0.6,
    with_faces: bool = True,
    with_base: bool = True,
    with_renders: bool = True,
    num_failed: int = 0,
    num_running: int = 0,
    size: int = SIZE,
) -> Path:
    """A run folder of `num_trials` trials (every fourth a dreambooth one) whose likeness rises to about `likeness`.

    `likeness=0` gives trials no better than the base model; `with_faces=False` pictures without any face. The last
    `num_failed` trials failed, the `num_running` before them are at their first scoring point.
    """
    rng = np.random.default_rng(7)
    write_sweep(folder, name, prompts, images_per_prompt, at_steps)
    if with_base:
        entry = _entry(folder, "base", 0, 0.0, 0.0, prompts, images_per_prompt, with_faces, rng, size)
        write_trial(folder, {"trial": "base", "method": "base", "status": "finished", "config": {}}, [entry])
    for i in range(num_trials):
        config = _config(i, at_steps[-1])
        trial = _trial_id(config)
        failed, running = (
            i >= num_trials - num_failed,
            num_trials - num_failed - num_running <= i < num_trials - num_failed,
        )
        steps = at_steps[:0] if failed else at_steps[:1] if running else at_steps
        entries = [
            _entry(
                folder,
                trial,
                step,
                *progress(config, step, likeness),
                prompts,
                images_per_prompt,
                with_faces,
                rng,
                size,
            )
            for step in steps
        ]
        status = "failed" if failed else "running" if running else "stopped" if i % 5 == 4 else "finished"
        reason = "the loss is not finite at step 37 (learning_rate 0.05)" if failed else None
        write_trial(
            folder,
            {"trial": trial, "method": config["method"], "status": status, "config": config, "reason": reason},
            entries,
        )
        write_stats(folder, trial, config["learning_rate"], range(1, 1 + (37 if failed else steps[-1])))
    if with_renders:
        write_renders(folder)
    return folder


def write_sweep(
    folder: Path, name: str, prompts: Sequence[str], images_per_prompt: int, at_steps: Sequence[int]
) -> None:
    """RUN/sweep.yaml as a sweep leaves it: resolved, with versions."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep = {
        "name": name,
        "base_model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "subject": {
            "photos": "photos/ada",
            "instance_prompt": "a photo of sks woman",
            "class_prompt": "a photo of a woman",
        },
        "methods": {
            "lora": {
                "rank": {"choices": [2, 4, 16, 128]},
                "learning_rate": {"low": 3e-5, "high": 1e-3, "log": True},
                "max_train_steps": {"choices": sorted({at_steps[-1], 800})},
            },
            "dreambooth": {
                "learning_rate": {"low": 5e-7, "high": 5e-6, "log": True},
                "max_train_steps": {"choices": sorted({at_steps[-1], 800})},
            },
        },
        "search": {"sampler": "tpe", "num_trials": 24, "seed": 0, "early_stopping": "asha"},
        "evaluation": {
            "prompts": list(prompts),
            "images_per_prompt": images_per_prompt,
            "at_steps": list(at_steps),
            "face": {"encoder": "vggface2"},
            "clip": {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"},
        },
        "champion": {"prompt_alignment_margin": 0.02},
        "confirm": {"finalists": 0},
        "versions": {"dreamsweep": "0.1.0", "python": "3.11.9", "torch": "2.14.1", "diffusers": "0.42.1"},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False), encoding="utf-8")


def write_trial(folder: Path, trial: dict[str, Any], checkpoints: Sequence[dict[str, Any]]) -> Path:
    """One trials/<trial>/trial.json."""
    path = folder / "trials" / trial["trial"] / "trial.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = checkpoints[-1]["seconds"] if checkpoints else 12.0
    record = {
        "reason": None,
        "key": "0" * 64,
        "num_restarts": 0,
        "created": "2026-01-01T00:00:00+00:00",  # without it a record is of the second in which it is read
        "seconds": seconds,
        **trial,
        "checkpoints": list(checkpoints),
    }
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return path


def write_stats(folder: Path, trial: str, learning_rate: float, steps: Sequence[int]) -> Path:
    """One trials/<trial>/stats.jsonl."""
    path = folder / "trials" / trial / STATS_FILE
    path.write_text(stats_lines(learning_rate, steps), encoding="utf-8")
    return path


def stats_lines(learning_rate: float, steps: Sequence[int]) -> str:
    """Lines of stats.jsonl, a falling loss under the noise that all trials share."""
    lines = [
        StepStats(
            step=step,
            loss=0.05 + 0.1 * math.exp(-step / 300) * (1 + 0.5 * math.sin(7.3 * step)),
            learning_rate=learning_rate,
            gradient_norm=0.02 + 0.01 * math.cos(3.1 * step),
            seconds=0.4,
            peak_memory_bytes=6_000_000_000,
        ).model_dump_json()
        for step in steps
    ]
    return "".join(f"{line}\n" for line in lines)


def entry(
    step: int,
    face_similarity: float,
    prompt_alignment: float | None = 0.3,
    *,
    trial: str = "t",
    num_images: int = 8,
    num_faces: int | None = None,
    spread: float = 0.0,
) -> dict[str, Any]:
    """A checkpoint entry without pictures: scores alternate by ±`spread` around their mean."""
    offsets = [spread if i % 2 else -spread for i in range(num_images)]
    return {
        "step": step,
        "checkpoint": None if trial == "base" else f"trials/{trial}/checkpoint-{step}",
        "images": f"trials/{trial}/images-{step}",
        "seconds": 1.0 * step,
        "loss": 0.1,
        "face_similarity": face_similarity,
        "prompt_alignment": prompt_alignment,
        "num_images": num_images,
        "num_faces": num_images if num_faces is None else num_faces,
        "image_scores": [
            {
                "file": f"000-{i}.png",
                "prompt": PROMPTS[0],
                "seed": i,
                "face_similarity": face_similarity + offset,
                "prompt_alignment": None if prompt_alignment is None else prompt_alignment + offset,
                "num_faces": 1,
            }
            for i, offset in enumerate(offsets)
        ],
    }


def _config(i: int, max_train_steps: int) -> dict[str, Any]:
    if i % 4 == 3:
        rate = float(f"{5e-7 * 10 ** ((i * 0.37) % 1):.3g}")
        return {"method": "dreambooth", "learning_rate": rate, "max_train_steps": max_train_steps, "seed": 0}
    rate = float(f"{3e-5 * 10 ** ((i * 0.61) % 1.5):.3g}")
    rank = (2, 16, 128)[i % 4]
    return {"method": "lora", "rank": rank, "learning_rate": rate, "max_train_steps": max_train_steps, "seed": 0}


def _trial_id(config: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:6]
    rank = f"_r{config['rank']}" if "rank" in config else ""
    rate = f"{config['learning_rate']:.3g}".replace("e-0", "e-")
    return f"{config['method']}{rank}_lr{rate}_{digest}"


def progress(config: dict[str, Any], step: int, likeness: float) -> tuple[float, float]:
    """How far likeness has risen and alignment fallen: faster with a higher rate and rank, alignment pays late."""
    if config["method"] == "lora":
        speed = config["learning_rate"] / 1e-4 * (1 + 0.15 * math.log2(config["rank"]))
    else:
        speed = config["learning_rate"] / 1e-6
    dose = speed * step / 400
    return likeness * (1 - math.exp(-dose)), -0.08 * (1 - math.exp(-((dose / 4) ** 1.5)))


def _entry(
    folder: Path,
    trial: str,
    step: int,
    gain: float,
    loss_of_alignment: float,
    prompts: Sequence[str],
    images_per_prompt: int,
    with_faces: bool,
    rng: np.random.Generator,
    size: int,
) -> dict[str, Any]:
    images = folder / "trials" / trial / f"images-{step}"
    images.mkdir(parents=True, exist_ok=True)
    for prompt_index in range(len(prompts)):
        for seed in range(images_per_prompt):
            picture = draw_face(size, prompt_index, seed, gain, with_face=with_faces)
            picture.save(images / f"{prompt_index:03d}-{seed}.png")
    return scored_entry(trial, step, gain, loss_of_alignment, prompts, images_per_prompt, with_faces, rng)


def scored_entry(
    trial: str,
    step: int,
    gain: float,
    loss_of_alignment: float,
    prompts: Sequence[str],
    images_per_prompt: int,
    with_faces: bool,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """A checkpoint entry with a score a picture, but no pictures; `gain` and `loss_of_alignment` are of `progress`."""
    scores = []
    for prompt_index, prompt in enumerate(prompts):
        for seed in range(images_per_prompt):
            shared = math.sin(3.1 * prompt_index + 1.7 * seed)
            similarity = 0.08 + gain + 0.05 * shared + 0.02 * rng.standard_normal()
            scores.append(
                {
                    "file": f"{prompt_index:03d}-{seed}.png",
                    "prompt": prompt,
                    "seed": seed,
                    "face_similarity": float(similarity) if with_faces else None,
                    "prompt_alignment": float(
                        0.31 + loss_of_alignment + 0.015 * shared + 0.005 * rng.standard_normal()
                    ),
                    "num_faces": int(with_faces),
                }
            )
    return {
        "step": step,
        "checkpoint": None if trial == "base" else f"trials/{trial}/checkpoint-{step}",
        "images": f"trials/{trial}/images-{step}",
        "seconds": 0.9 * step + 4,
        "loss": 0.12,
        "face_similarity": float(np.mean([s["face_similarity"] or 0.0 for s in scores])),
        "prompt_alignment": float(np.mean([s["prompt_alignment"] for s in scores])),
        "num_images": len(scores),
        "num_faces": sum(s["num_faces"] for s in scores),
        "image_scores": scores,
    }


def draw_face(size: int, prompt_index: int, seed: int, gain: float, *, with_face: bool = True) -> Image.Image:
    """A head on a ground: the ground says the prompt, the place the seed, the skin how far training has come."""
    grounds = ((96, 142, 96), (70, 84, 140), (140, 92, 84), (150, 140, 90), (110, 90, 140))
    picture = Image.new("RGB", (size, size), grounds[prompt_index % len(grounds)])
    if not with_face:
        return picture
    pen = ImageDraw.Draw(picture)
    unit = size / 16
    x, y = (5 + seed % 3) * unit, (3 + seed % 2) * unit
    skin = tuple(int(a + (b - a) * min(1.0, gain / 0.6)) for a, b in zip((200, 200, 205), (236, 188, 150), strict=True))
    pen.ellipse((x - unit, y - unit, x + 6 * unit, y + 5 * unit), fill=(60, 40, 30))
    pen.ellipse((x, y, x + 5 * unit, y + 7 * unit), fill=skin)
    for eye in (1.3, 3.2):
        pen.ellipse((x + eye * unit, y + 2.4 * unit, x + (eye + 0.6) * unit, y + 3 * unit), fill=(30, 30, 60))
    pen.arc((x + 1.3 * unit, y + 3.6 * unit, x + 3.7 * unit, y + 5.8 * unit), 20, 160, fill=(150, 50, 60), width=2)
    return picture


def write_renders(folder: Path) -> None:
    """RUN/renders/: one sheet, as a sweep leaves it."""
    renders = folder / "renders"
    renders.mkdir(parents=True, exist_ok=True)
    sheet = Image.new("RGB", (6 * 128, 2 * 128), "white")
    for row in range(2):
        for column in range(6):
            sheet.paste(draw_face(128, row, column, 0.1 * column), (128 * column, 128 * row))
    sheet.save(renders / "sheet.png")
    (renders / "renders.json").write_text("[]", encoding="utf-8")
