"""Measure the demo's family on people it never saw, and write the table of `examples/demo/README.md`.

    python examples/demo/measure.py                        # everything
    python examples/demo/measure.py --sections vae clip    # some of it; the table keeps the other rows

Pictures, trials and finished rows are kept in the work folder: the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import train_family
import world
from draw_photos import draw_everyday_shot
from PIL import Image
from scipy.stats import rankdata, spearmanr
from world import CHOICES, Identity, Shot

from evaluation.config import ClipConfig, EvaluationConfig
from evaluation.face import FaceEncoder
from evaluation.face_encoders import load_face_encoder
from evaluation.generate import generate
from evaluation.prompt import ClipScorer, load_clip
from evaluation.references import References, embed_references
from evaluation.score import score_images
from training.checkpoint import load_pipeline
from training.config import DreamBoothConfig, LoraConfig, SubjectConfig
from training.dataset import encode_dataset, load_dataset
from training.preparation import prepare_photos
from training.stable_diffusion import load_base_model
from training.train import train

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

HERE = Path(__file__).parent
INSTANCE_PROMPT, CLASS_PROMPT = "photo of sks person", "photo of a person"
NUM_PHOTOS, NUM_HELD_OUT = 12, 8
GUIDANCE_SCALE, NUM_INFERENCE_STEPS = 3.0, 20


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    bar: str
    measured: str
    reached: bool | None
    """None where there is no bar."""


@dataclass(frozen=True)
class Bench:
    """What all sections need."""

    family: Path
    work: Path
    people: list[Identity]
    face: FaceEncoder
    clip: ClipScorer
    num_subjects: int
    seeds: list[int]
    """Of the personalised trials."""

    @property
    def base_model(self) -> str:
        """Where the pipeline lies."""
        return str(self.family / "base_model")


def open_bench(family: Path, work: Path, num_subjects: int, seeds: list[int]) -> Bench:
    """Load the judges; the unseen people are those that `train_family.py` keeps aside."""
    clip = load_clip(ClipConfig(model=f"local-dir:{family / 'clip'}", pretrained=None), "cpu")
    people = train_family.draw_people(train_family.NUM_UNSEEN_PEOPLE, seed=2)
    return Bench(
        family, work, people, load_face_encoder(str(family / "face_encoder"), "cpu"), clip, num_subjects, seeds
    )


def draw_shots(num_shots: int, seed: int) -> list[Shot]:
    """Ways of showing people that no training used."""
    rng = np.random.default_rng([7, seed])
    return [world.draw_shot(rng) for _ in range(num_shots)]


def embed(bench: Bench, images: list[Image.Image]) -> np.ndarray:
    """Embedding of the face of each picture, [n, d]; zeros where there is none."""
    faces = [
        found for start in range(0, len(images), 100) for found in bench.face.find_faces(images[start : start + 100])
    ]
    return np.stack([found[0].embedding if found else np.zeros(64, np.float32) for found in faces])


# --- VAE


def measure_vae(bench: Bench) -> Iterator[Row]:
    """400 pictures of 200 unseen people, encoded to the mean and decoded."""
    vae = load_base_model(bench.base_model).vae
    shots = draw_shots(400, seed=0)
    images = [world.paint(bench.people[index % 200], shot) for index, shot in enumerate(shots)]
    ratios, decoded_images = [], []
    for start in range(0, len(images), 50):
        pixels = np.stack([np.asarray(image) for image in images[start : start + 50]])
        pictures = train_family.to_tensor(pixels, torch.device("cpu"))
        with torch.inference_mode():
            decoded = vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
        ratios += (10 * torch.log10(4 / (decoded - pictures).square().mean((1, 2, 3)))).tolist()
        bytes_ = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        decoded_images += [Image.fromarray(picture) for picture in bytes_]
    psnr = float(np.mean(ratios))
    similarity = float((embed(bench, images) * embed(bench, decoded_images)).sum(1).mean())
    yield Row("VAE, held-out pictures: PSNR", "≥ 28 dB", f"{psnr:.1f} dB", psnr >= 28)
    yield Row("… face similarity before and after", "≥ 0.9", f"{similarity:.3f}", similarity >= 0.9)


# --- CLIP


def alternatives(shot: Shot, kind: str) -> list[str]:
    """Captions of the shot with each choice of one attribute, the true one among them."""
    changes: list[dict[str, Any]] = [{kind: choice} for choice in CHOICES[kind]]
    return [world.write_caption(replace(shot, **change)) for change in changes]


@cache
def open_clip_model(folder: Path) -> tuple[Any, Any, Any]:
    """Model, preprocessing and tokenizer, straight from open_clip."""
    import open_clip

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}")


@torch.inference_mode()
def clip_similarity(folder: Path, images: list[Image.Image], texts: list[str]) -> np.ndarray:
    """Cosine of every picture with every text, [num_images, num_texts]."""
    model, preprocess, tokenize = open_clip_model(folder)
    pictures = torch.cat(
        [
            model.encode_image(
                torch.stack([preprocess(image) for image in images[start : start + 100]]), normalize=True
            )
            for start in range(0, len(images), 100)
        ]
    )
    words = torch.cat(
        [model.encode_text(tokenize(texts[start : start + 200]), normalize=True) for start in range(0, len(texts), 200)]
    )
    return (pictures @ words.T).numpy()


def judge_attributes(clip: Path, images: list[Image.Image], shots: list[Shot]) -> dict[str, float]:
    """For each attribute, the share of pictures to which CLIP gives the right choice among its alternatives."""
    shares = {}
    for kind, choices in CHOICES.items():
        texts = [text for shot in shots for text in alternatives(shot, kind)]
        similarity = clip_similarity(clip, images, texts).reshape(len(images), len(shots), len(choices))
        chosen = similarity[np.arange(len(images)), np.arange(len(shots))].argmax(axis=1)
        shares[kind] = float(
            np.mean([choices[i] == getattr(shot, kind) for i, shot in zip(chosen, shots, strict=True)])
        )
    return shares


def measure_clip(bench: Bench) -> Iterator[Row]:
    """500 pictures of unseen people with full captions."""
    shots = draw_shots(500, seed=1)
    images = [world.paint(bench.people[index % 200], shot) for index, shot in enumerate(shots)]
    captions = [world.write_caption(shot) for shot in shots]
    first = clip_similarity(bench.family / "clip", images, captions).argmax(axis=1)
    found = float(np.mean([captions[index] == caption for index, caption in zip(first, captions, strict=True)]))
    yield Row("CLIP, held-out: caption among 500 at rank 1", "≥ 0.9", f"{found:.3f}", found >= 0.9)
    for kind, share in judge_attributes(bench.family / "clip", images[:250], shots[:250]).items():
        yield Row(f"… {kind}", "≥ 0.9", f"{share:.3f}", share >= 0.9)


# --- face encoder


def area_under_curve(same: np.ndarray, different: np.ndarray) -> float:
    """Probability that a pair of one person is more alike than a pair of two (Mann-Whitney)."""
    ranks = rankdata(np.concatenate([same, different]))
    return float((ranks[: len(same)].sum() - len(same) * (len(same) + 1) / 2) / (len(same) * len(different)))


def measure_face(bench: Bench) -> Iterator[Row]:
    """200 unseen people in 10 shots each, and 500 places with nobody there."""
    shots = draw_shots(2000, seed=2)
    images = [world.paint(bench.people[index // 10], shot) for index, shot in enumerate(shots)]
    vectors = embed(bench, images)
    similarity = vectors @ vectors.T
    person = np.arange(2000) // 10
    upper = np.triu(np.ones_like(similarity, dtype=bool), 1)
    same = similarity[upper & (person[:, None] == person[None])]
    different = similarity[upper & (person[:, None] != person[None])]
    area = area_under_curve(same, different)
    places = [world.paint(None, shot) for shot in draw_shots(500, seed=3)]
    empty = float(np.mean([not found for found in bench.face.find_faces(places)]))
    missed = float(np.mean(np.linalg.norm(vectors, axis=1) == 0))
    yield Row("face encoder, 200 unseen people: verification AUC", "≥ 0.995", f"{area:.4f}", area >= 0.995)
    yield Row(
        "… similarity of one person's pictures; of two people's (95th percentile)",
        "",
        f"{same.mean():.2f}; {different.mean():.2f} ({np.quantile(different, 0.95):.2f})",
        None,
    )
    yield Row('… "no face" for empty places', "≥ 0.98", f"{empty:.3f}", empty >= 0.98)
    yield Row('… "no face" for characters', "≤ 0.02", f"{missed:.3f}", missed <= 0.02)


# --- base model


def evaluation(prompts: list[str], images_per_prompt: int, seed: int = 0) -> EvaluationConfig:
    """The sampler of all pictures here."""
    return EvaluationConfig(
        prompts=prompts,
        images_per_prompt=images_per_prompt,
        seed=seed,
        at_steps=[1],
        num_inference_steps=NUM_INFERENCE_STEPS,
        guidance_scale=GUIDANCE_SCALE,
        batch_size=8,
    )


def measure_base(bench: Bench) -> Iterator[Row]:
    """120 prompts of random shots, one picture each."""
    pipeline = load_base_model(bench.base_model)
    shots = draw_shots(120, seed=4)
    config = evaluation([world.write_caption(shot) for shot in shots], 1)
    images = [picture.image for picture in generate(pipeline, config)]
    save_sheet(images[:40], bench.work / "base.png", columns=10)
    shares = judge_attributes(bench.family / "clip", images, shots)
    mean = float(np.mean(list(shares.values())))
    detail = ", ".join(f"{kind} {share:.2f}" for kind, share in shares.items())
    people = float(np.mean([bool(found) for found in bench.face.find_faces(images)]))
    yield Row(
        "base model: attributes of the prompt in the picture, by CLIP", "≥ 0.8", f"{mean:.3f} ({detail})", mean >= 0.8
    )
    yield Row("… pictures that hold a character", "≥ 0.98", f"{people:.3f}", people >= 0.98)


def save_sheet(images: list[Image.Image], file: Path, columns: int) -> None:
    """Pictures side by side, to look at."""
    side = world.SIZE
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side))
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * side, index // columns * side))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(file)


# --- personalised


PROMPTS = [
    "photo of sks person wearing a red dress, angry, with a crown, in space",
    "photo of sks person wearing a blue suit, surprised, in the snow",
    "close-up photo of sks person wearing a green suit, sad, with headphones, in a forest",
    "photo of sks person wearing a yellow dress, smiling, with a hat, in the desert",
    "close-up photo of sks person wearing a white suit, surprised, in a city",
    "photo of sks person wearing a purple hoodie, angry, in the desert",
    "close-up photo of sks person wearing a black dress, calm, in the snow",
    "photo of sks person",
]


def subject_references(bench: Bench, person: int) -> tuple[Path, References, float]:
    """The person's photos, the held-out references, and how alike real photos are to them."""
    rng = np.random.default_rng([8, person])
    folder = bench.work / f"person-{person}"
    for name, count in (("photos", NUM_PHOTOS), ("held_out", NUM_HELD_OUT)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            picture = world.paint(bench.people[person], draw_everyday_shot(rng), scale=4)
            picture.save(folder / name / f"{index:03d}.png")
    references = embed_references(sorted((folder / "held_out").glob("*.png")), bench.face)
    photos = [Image.open(file).convert("RGB") for file in sorted((folder / "photos").glob("*.png"))]
    return folder, references, float(np.mean(embed(bench, photos) @ references.embedding))


def run_trial(
    bench: Bench, person: int, config: LoraConfig | DreamBoothConfig, at_steps: list[int]
) -> list[dict[str, float]]:
    """Scores at each of `at_steps` (0 is the base model), kept in the work folder."""
    folder, references, _ = subject_references(bench, person)
    name = f"{config.method}-r{getattr(config, 'rank', 0)}-lr{config.learning_rate:g}-s{config.seed}"
    name += "-prior" if config.with_prior_preservation else ""
    file = folder / f"{name}.json"
    if file.exists():
        kept: list[dict[str, float]] = json.loads(file.read_text())
        return kept
    subject = SubjectConfig(
        photos=folder / "photos",
        instance_prompt=INSTANCE_PROMPT,
        class_prompt=CLASS_PROMPT,
        resolution=world.SIZE,
        crop="center",
    )
    prepare_photos(subject, folder / "dataset")
    encode_dataset(
        folder / "dataset",
        bench.base_model,
        class_images=config.num_class_images if config.with_prior_preservation else 0,
    )
    dataset = load_dataset(folder / "dataset")
    pictures_wanted = evaluation(PROMPTS, 2, seed=100 * config.seed)
    scores: list[dict[str, float]] = []

    def score(step: int, pipeline: StableDiffusionPipeline) -> None:
        pictures = list(generate(pipeline, pictures_wanted))
        result = score_images(pictures, references, bench.face, bench.clip)
        assert result.prompt_alignment is not None, "a CLIP model was given"
        scores.append(
            {
                "step": step,
                "face": result.face_similarity,
                "clip": result.prompt_alignment,
                "seconds": time.monotonic() - start,
            }
        )
        save_sheet([picture.image for picture in pictures], folder / f"{name}-{step}.png", columns=8)

    start = time.monotonic()
    base_file = folder / f"base-s{config.seed}.json"
    if base_file.exists():
        scores += json.loads(base_file.read_text())
    else:
        score(0, load_base_model(bench.base_model))
        base_file.write_text(json.dumps(scores))
    for checkpoint in train(config, dataset, at_steps, out_dir=folder / name):
        pipeline = load_pipeline(checkpoint, bench.base_model)
        score(checkpoint.step, pipeline)
        if config.with_prior_preservation and checkpoint.step == config.max_train_steps:
            scores[-1] |= class_variety(bench, pipeline)
    file.write_text(json.dumps(scores))
    return scores


def class_variety(bench: Bench, pipeline: StableDiffusionPipeline) -> dict[str, float]:
    """How alike faces of the class prompt are to each other, before and after: 1 would be one face only."""
    config = evaluation([CLASS_PROMPT], 24)
    alike = []
    for each in (load_base_model(bench.base_model), pipeline):
        vectors = embed(bench, [picture.image for picture in generate(each, config)])
        alike.append(float((vectors @ vectors.T)[np.triu_indices(len(vectors), 1)].mean()))
    return {"class_alike_before": alike[0], "class_alike_after": alike[1]}


RANKS = (1, 4, 16)
AT_STEPS = [80, 160]
LORA_RATE, DREAMBOOTH_RATE = 1e-3, 6e-4  # the best of a few on characters that are not measured here


def lora(rank: int, seed: int = 0, factor: float = 1.0) -> LoraConfig:
    """A LoRA trial on upstream's default layers, at the good learning rate times `factor`."""
    return LoraConfig(rank=rank, learning_rate=LORA_RATE * factor, max_train_steps=AT_STEPS[-1], seed=seed)


def dreambooth(seed: int = 0, prior: bool = False) -> DreamBoothConfig:
    """A DreamBooth trial, by wish with prior preservation."""
    return DreamBoothConfig(
        learning_rate=DREAMBOOTH_RATE,
        max_train_steps=AT_STEPS[-1],
        seed=seed,
        with_prior_preservation=prior,
        num_class_images=24,
    )


def best(scores: list[dict[str, float]]) -> float:
    """The best checkpoint's face similarity; step 0 is the base model and does not count."""
    return max(score["face"] for score in scores if score["step"])


def correlation_interval(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rank correlation of x and y and its 95 % interval, by 2,000 bootstrap draws of whole groups."""
    rng = np.random.default_rng(0)
    names = np.unique(groups)
    draws = []
    for _ in range(2000):
        chosen = np.concatenate([np.flatnonzero(groups == name) for name in rng.choice(names, len(names))])
        draws.append(spearmanr(x[chosen], y[chosen]).statistic)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(spearmanr(x, y).statistic), float(low), float(high)


def measure_personalised(bench: Bench) -> Iterator[Row]:
    """Unseen characters from 12 photos each: LoRA of several ranks and DreamBooth, against 8 held-out photos."""
    shares: list[float] = []
    ranks: list[int] = []
    likenesses: list[float] = []
    subjects: list[int] = []
    gains: list[float] = []
    for person in range(bench.num_subjects):
        _, _, real = subject_references(bench, person)
        for seed in bench.seeds:
            trials = {rank: run_trial(bench, person, lora(rank, seed), AT_STEPS) for rank in RANKS}
            full = run_trial(bench, person, dreambooth(seed), AT_STEPS)
            base = full[0]["face"]
            likeness = {rank: (best(scores) - base) / (real - base) for rank, scores in trials.items()}
            shares.append(max(likeness.values()))
            gains.append((best(full) - base) / (real - base) - likeness[RANKS[0]])
            ranks += RANKS
            likenesses += likeness.values()
            subjects += [person] * len(RANKS)
            print(
                f"person {person}, seed {seed}: real {real:.2f}, base {base:.2f}, {likeness}, full {best(full):.2f}",
                flush=True,
            )
    share, gain = float(np.mean(shares)), float(np.mean(gains))
    trials_text = f"{bench.num_subjects} characters x {len(bench.seeds)} seed(s)"
    yield Row(
        f"personalised, {trials_text}, best LoRA checkpoint: way from the base model's likeness to real photos'",
        "≥ 60 %",
        f"{100 * share:.0f} % (worst {100 * min(shares):.0f} %)",
        share >= 0.6,
    )
    wins = sum(value > 0 for value in gains)
    yield Row(
        f"… DreamBooth against LoRA of rank {RANKS[0]}, on that way",
        "above",
        f"{100 * gain:+.0f} points, above in {wins} of {len(gains)}",
        gain > 0,
    )
    pooled = np.array(likenesses).reshape(-1, len(RANKS))
    paired = pooled - pooled.mean(axis=1, keepdims=True)  # without how hard a character and how lucky a seed is
    (rho, low, high), (rho_paired, low_paired, high_paired) = (
        correlation_interval(np.array(ranks), values.ravel(), np.array(subjects)) for values in (pooled, paired)
    )
    yield Row(
        f"… likeness against rank ({', '.join(map(str, RANKS))}): Spearman [95 % interval over characters], pooled; "
        "within a character and seed",
        "> 0",
        f"{rho:.2f} [{low:.2f}, {high:.2f}]; {rho_paired:.2f} [{low_paired:.2f}, {high_paired:.2f}]",
        low > 0,
    )


def measure_prior(bench: Bench) -> Iterator[Row]:
    """DreamBooth with prior preservation: every character, one seed."""
    likeness, before, after = [], [], []
    for person in range(bench.num_subjects):
        _, _, real = subject_references(bench, person)
        scores = run_trial(bench, person, dreambooth(bench.seeds[0], prior=True), AT_STEPS)
        likeness.append((best(scores) - scores[0]["face"]) / (real - scores[0]["face"]))
        before.append(scores[-1]["class_alike_before"])
        after.append(scores[-1]["class_alike_after"])
    yield Row(
        f"… DreamBooth with prior preservation ({bench.num_subjects} characters, one seed): way to real photos",
        "comes",
        f"{100 * np.mean(likeness):.0f} %",
        float(np.mean(likeness)) > 0.3,
    )
    yield Row(
        "… likeness of the class prompt's faces to each other, before and after (1 = one face)",
        "stays",
        f"{np.mean(before):.2f}, {np.mean(after):.2f}",
        float(np.mean(after)) < float(np.mean(before)) + 0.15,
    )


def measure_trade_off(bench: Bench) -> Iterator[Row]:
    """The same LoRA at its good learning rate and at ten times that; the curve goes beside the table."""
    good = run_trial(bench, 0, lora(RANKS[-1]), AT_STEPS)
    hot = run_trial(bench, 0, lora(RANKS[-1], factor=10), AT_STEPS)
    draw_trade_off({"good learning rate": good, "ten times": hot}, HERE / "trade_off.png")
    base, drop = hot[0]["clip"], hot[0]["clip"] - hot[-1]["clip"]
    yield Row(
        f"trade-off: prompt alignment at ten times a good rate, {AT_STEPS[-1]} steps (base model {base:.3f})",
        "clearly below",
        f"{hot[-1]['clip']:.3f} (at the good one {good[-1]['clip']:.3f})",
        drop > 0.05,
    )


def draw_trade_off(curves: dict[str, list[dict[str, float]]], file: Path) -> None:
    """Both scores over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.8), layout="constrained")
    for axes, score, label in zip(
        figure.subplots(1, 2), ("face", "clip"), ("face similarity", "prompt alignment"), strict=True
    ):
        for name, scores in curves.items():
            axes.plot([each["step"] for each in scores], [each[score] for each in scores], marker="o", label=name)
        axes.set(xlabel="steps", ylabel=label)
        axes.legend(frameon=False)
    figure.savefig(file, dpi=110)


# --- ControlNet


def measure_controlnet(bench: Bench) -> Iterator[Row]:
    """60 unseen pictures: how many pixels of their edges the render has too, within one pixel."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    controlnet = ControlNetModel.from_pretrained(bench.family / "controlnet", dtype=torch.float32)
    parts = load_base_model(bench.base_model).components | {"controlnet": controlnet}
    pipeline = StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    shots = draw_shots(60, seed=5)
    edges = [
        train_family.draw_edges(np.asarray(world.paint(bench.people[index], shot))) for index, shot in enumerate(shots)
    ]
    recalls = []
    for strength in (0.0, 1.0):
        images = pipeline(
            [world.write_caption(shot) for shot in shots],
            image=[Image.fromarray(edge) for edge in edges],
            num_inference_steps=NUM_INFERENCE_STEPS,
            guidance_scale=GUIDANCE_SCALE,
            controlnet_conditioning_scale=strength,
            generator=torch.Generator().manual_seed(0),
        ).images
        recalls.append(np.mean([edge_recall(edge, image) for edge, image in zip(edges, images, strict=True)]))
    save_sheet([*map(Image.fromarray, edges[:20]), *images[:20]], bench.work / "controlnet.png", columns=20)
    yield Row(
        "ControlNet: edges of the reference found in the render (without the condition)",
        "",
        f"{recalls[1]:.2f} ({recalls[0]:.2f})",
        None,
    )


def edge_recall(edges: np.ndarray, image: Image.Image) -> float:
    """Share of edge pixels that have an edge of `image` within one pixel."""
    wanted = edges[..., 0] > 0
    drawn = np.pad(train_family.draw_edges(np.asarray(image))[..., 0] > 0, 1)
    side = len(wanted)
    near = np.any([drawn[y : y + side, x : x + side] for y in range(3) for x in range(3)], axis=0)
    return float(near[wanted].mean())


# --- speed and size


def measure_speed(bench: Bench) -> Iterator[Row]:
    """On one thread, best of several: another process on the machine only makes it slower."""
    pipeline = load_base_model(bench.base_model)
    config = evaluation([INSTANCE_PROMPT], 1)
    picture = min(timed(lambda: list(generate(pipeline, config))) for _ in range(8))
    folder, _, _ = subject_references(bench, 0)
    run_trial(bench, 0, lora(RANKS[1]), AT_STEPS)  # its dataset
    clock: list[float] = []
    config_lora = LoraConfig(rank=RANKS[1], max_train_steps=30)
    for _ in train(
        config_lora,
        load_dataset(folder / "dataset"),
        [30],
        out_dir=bench.work / "speed",
        on_step=lambda *_: clock.append(time.perf_counter()),
    ):
        pass
    step = float(np.diff(clock).min())
    size = sum(file.stat().st_size for file in bench.family.rglob("*") if file.is_file()) / 1e6
    yield Row("a LoRA step of batch 4, one CPU thread", "≤ 0.25 s", f"{step:.2f} s", step <= 0.25)
    yield Row("a 20-step picture, one CPU thread", "≤ 0.6 s", f"{picture:.2f} s", picture <= 0.6)
    yield Row("size of the family", "≤ 40 MB", f"{size:.1f} MB", size <= 40)


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "vae": measure_vae,
    "clip": measure_clip,
    "face": measure_face,
    "base": measure_base,
    "personalised": measure_personalised,
    "prior": measure_prior,
    "trade_off": measure_trade_off,
    "controlnet": measure_controlnet,
    "speed": measure_speed,
}


CARDS = {
    "base_model": ("vae", "base", "speed"),
    "clip": ("clip",),
    "face_encoder": ("face",),
    "controlnet": ("controlnet",),
}
"""Folder of the family -> the sections that its card repeats."""


def write_tables(work: Path, family: Path, readme: Path) -> None:
    """Put all measured rows into the README, and each part's into its card."""
    write_table(work, list(SECTIONS), readme)
    for folder, sections in CARDS.items():
        write_table(work, list(sections), family / folder / "README.md")


def write_table(work: Path, sections: list[str], card: Path) -> None:
    """Replace what stands between the marks."""
    lines = ["", "| | bar | measured | |", "|---|---|---|---|"]
    for section in sections:
        file = work / f"{section}.rows.json"
        for row in json.loads(file.read_text()) if file.exists() else []:
            verdict = {True: "reached", False: "**not reached**", None: ""}[row["reached"]]
            lines.append(f"| {row['what']} | {row['bar']} | {row['measured']} | {verdict} |")
    first, last = train_family.MEASURED_MARKS
    text = card.read_text()
    start, end = text.index(first) + len(first), text.index(last)
    card.write_text(text[:start] + "\n" + "\n".join(lines) + "\n\n" + text[end:])


def main() -> None:
    """Measure the sections asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=Path, default=HERE / "family")
    parser.add_argument("--work", type=Path, default=HERE / ".work" / "measured")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--subjects", type=int, default=5, help="characters of the personalised trials")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the personalised trials")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    bench = open_bench(arguments.family, arguments.work, arguments.subjects, arguments.seeds)
    for section in arguments.sections:
        rows = list(SECTIONS[section](bench))
        for row in rows:
            print(f"{row.what} | {row.bar} | {row.measured}", flush=True)
        (arguments.work / f"{section}.rows.json").write_text(json.dumps([asdict(row) for row in rows]))
        write_tables(arguments.work, arguments.family, HERE / "README.md")


if __name__ == "__main__":
    main()
