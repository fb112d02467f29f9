"""Measure how far a sweep's verdicts can be believed, against a truth had by brute force on the demo's world.

    python examples/demo/verdicts.py draw --people 10 11 12 13 14    # hours; goes on where it was
    python examples/demo/verdicts.py judge                           # seconds: the tables of verdicts.md

`draw` trains every arm (a method with its settings) with ten training seeds on people that the family never saw, and
scores every training on twelve prompts and three noises. `judge` plays sweeps on these scores with the product's own
rules: what a sweep would have seen of a few trainings, and what it says, against the mean of all the others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import measure
import numpy as np
import torch
import world
from measure import CLASS_PROMPT, INSTANCE_PROMPT, Bench, open_bench, subject_references

from evaluation.config import EvaluationConfig
from evaluation.generate import GeneratedImage, generate, generate_packed
from evaluation.references import References
from evaluation.score import score_images
from training.checkpoint import Checkpoint, load_pipeline
from training.config import DreamBoothConfig, LoraConfig, MethodConfig, SubjectConfig
from training.dataset import Dataset, encode_dataset, load_dataset
from training.pack_training import PackTraining
from training.packed_pipeline import packed_pipeline
from training.preparation import prepare_photos
from training.stable_diffusion import load_base_model
from training.train import train

HERE = Path(__file__).parent
CPU = torch.device("cpu")
STEPS = 100
NUM_SEEDS = 10
NUM_NOISES = 3
NUM_BARE = 6
PROMPTS = [
    "photo of sks person wearing a purple suit, angry, in a forest",
    "photo of sks person wearing a red dress, with a crown, in space",
    "photo of sks person wearing a yellow sweater, surprised, in the snow",
    "close-up photo of sks person wearing a green t-shirt, sad, with a hat, in the desert",
    "photo of sks person wearing a blue suit, smiling, in a city",
    "close-up photo of sks person wearing a white dress, calm, in the snow",
    "photo of sks person wearing a pink hoodie, sad, in space",
    "photo of sks person wearing a black suit, with sunglasses, at the beach",
    "close-up photo of sks person wearing a red sweater, angry, in a city",
    "photo of sks person wearing a green dress, smiling, with headphones, in a forest",
    "photo of sks person wearing a white suit, surprised, in the desert",
    "close-up photo of sks person wearing a blue hoodie, with a crown, in a garden",
]
"""The first four are the demo's own; a sweep sees the first, and is confirmed on all."""

ARMS: dict[str, Callable[[int], MethodConfig]] = {
    "lora r1 1e-3": lambda seed: LoraConfig(rank=1, learning_rate=1e-3, max_train_steps=STEPS, seed=seed),
    "lora r4 1e-3": lambda seed: LoraConfig(rank=4, learning_rate=1e-3, max_train_steps=STEPS, seed=seed),
    "lora r16 1e-3": lambda seed: LoraConfig(rank=16, learning_rate=1e-3, max_train_steps=STEPS, seed=seed),
    "lora r16 3e-4": lambda seed: LoraConfig(rank=16, learning_rate=3e-4, max_train_steps=STEPS, seed=seed),
    "dreambooth 3e-4": lambda seed: DreamBoothConfig(learning_rate=3e-4, max_train_steps=STEPS, seed=seed),
    "dreambooth 6e-4": lambda seed: DreamBoothConfig(learning_rate=6e-4, max_train_steps=STEPS, seed=seed),
}


def evaluation(prompts: Sequence[str], images_per_prompt: int) -> EvaluationConfig:
    """The sampler of all pictures here: 12 steps, for time."""
    return EvaluationConfig(
        prompts=list(prompts),
        images_per_prompt=images_per_prompt,
        at_steps=[1],
        num_inference_steps=12,
        guidance_scale=measure.GUIDANCE_SCALE,
        batch_size=12,
    )


WANTED = (evaluation(PROMPTS, NUM_NOISES), evaluation([INSTANCE_PROMPT], NUM_BARE))
"""The prompts', and of the bare instance prompt, where copies show."""


def prepared(bench: Bench, folder: Path, num_photos: int | None = None) -> Dataset:
    """The person's photos encoded, all or the first few."""
    photos = folder / "photos"
    if num_photos is not None:
        few = folder / f"photos-{num_photos}"
        few.mkdir(exist_ok=True)
        for path in sorted(photos.glob("*.png"))[:num_photos]:
            (few / path.name).write_bytes(path.read_bytes())
        photos = few
    subject = SubjectConfig(
        photos=photos,
        instance_prompt=INSTANCE_PROMPT,
        class_prompt=CLASS_PROMPT,
        resolution=world.SIZE,
        crop="center",
    )
    place = folder / ("dataset" if num_photos is None else f"dataset-{num_photos}")
    prepare_photos(subject, place)
    encode_dataset(place, bench.base_model, device=CPU)
    return load_dataset(place)


def keep(bench: Bench, references: References, file: Path, pictures: Sequence[GeneratedImage]) -> None:
    """Score a training's pictures and write scores and pixels, the scores last."""
    score = score_images(pictures, references, bench.face, bench.clip)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file.with_suffix(".npz"), pictures=np.stack([np.asarray(p.image) for p in pictures]))
    file.write_text(json.dumps([[i.face_similarity, i.prompt_alignment] for i in score.images]))


def draw_base(bench: Bench, folder: Path, references: References) -> None:
    """The untouched base model's pictures."""
    if not (file := folder / "base.json").exists():
        pipeline = load_base_model(bench.base_model)
        keep(bench, references, file, [picture for config in WANTED for picture in generate(pipeline, config)])


def draw_arm(bench: Bench, folder: Path, references: References, dataset: Dataset, arm: str) -> None:
    """Ten trainings of an arm: LoRAs in one pack."""
    files = {seed: folder / arm / f"{seed}.json" for seed in range(NUM_SEEDS)}
    missing = [seed for seed, file in files.items() if not file.exists()]
    configs = {seed: ARMS[arm](seed) for seed in missing}
    loras = {seed: config for seed, config in configs.items() if isinstance(config, LoraConfig)}
    if loras:
        training = PackTraining(dataset, CPU)
        for seed, config in loras.items():
            training.admit(str(seed), config, [], out_dir=folder / "work" / arm / str(seed))
        reached = training.advance()
        points = [point for seed in missing if isinstance(point := reached[str(seed)], Checkpoint)]
        assert len(points) == len(missing), f"{folder} {arm}: trainings diverged"
        pipeline = packed_pipeline(points, bench.base_model, CPU, torch.float32, guided=True)
        drawn: list[list[GeneratedImage]] = [[] for _ in points]
        for wanted in WANTED:
            for row in generate_packed(pipeline, wanted, len(points)):
                for pictures, picture in zip(drawn, row, strict=True):
                    assert isinstance(picture, GeneratedImage)
                    pictures.append(picture)
        for seed, pictures in zip(missing, drawn, strict=True):
            keep(bench, references, files[seed], pictures)
        return
    for seed in missing:
        draw_alone(bench, references, dataset, configs[seed], files[seed], folder / "work" / arm / str(seed))


def draw_alone(
    bench: Bench, references: References, dataset: Dataset, config: MethodConfig, file: Path, work: Path
) -> None:
    """One training and its pictures."""
    *_, checkpoint = train(config, dataset, [], out_dir=work, device=CPU)
    pipeline = load_pipeline(checkpoint, bench.base_model, device=CPU, share_frozen=True)
    keep(bench, references, file, [picture for each in WANTED for picture in generate(pipeline, each)])
    for path in checkpoint.dir.rglob("*"):  # of DreamBooth it is 22 MB, which nobody needs any more
        if path.is_file():
            path.unlink()


OVERFIT_PHOTOS, OVERFIT_SEEDS = 5, 3


def draw_overfit(bench: Bench, folder: Path, references: References) -> None:
    """Copying made on purpose: five photos, four times the steps, a high rate."""
    for seed in range(OVERFIT_SEEDS):
        if not (file := folder / "overfit" / f"{seed}.json").exists():
            config = DreamBoothConfig(learning_rate=1e-3, max_train_steps=400, seed=seed)
            dataset = prepared(bench, folder, OVERFIT_PHOTOS)
            draw_alone(bench, references, dataset, config, file, folder / "work" / "overfit" / str(seed))


def draw(bench: Bench, people: Sequence[int], arms: Sequence[str]) -> None:
    """All of it, person by person."""
    for person in people:
        folder, references, real = subject_references(bench, person)
        (folder / "real.json").write_text(json.dumps(real))
        draw_base(bench, folder, references)
        dataset = prepared(bench, folder)
        for arm in arms:
            if arm == "overfit":
                draw_overfit(bench, folder, references)
            else:
                draw_arm(bench, folder, references, dataset, arm)
            print(f"person {person}  {arm}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw or judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("draw",))
    parser.add_argument("--family", type=Path, default=HERE / "family")
    parser.add_argument("--work", type=Path, default=Path("runs/verdicts"))
    parser.add_argument("--people", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--arms", nargs="+", default=[*ARMS, "overfit"])
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    draw(open_bench(asked.family, asked.work, 0, []), asked.people, asked.arms)


if __name__ == "__main__":
    main()
