"""Measure how far a sweep's verdicts can be believed, against a truth had by brute force on the demo's world.

    python examples/demo/verdicts.py draw --people 10 11 12 13 14    # hours; goes on where it was
    python examples/demo/verdicts.py draw-others                     # of the same LoRAs on prompts drawn anew
    python examples/demo/verdicts.py judge                           # seconds: the tables of verdicts.md

`draw` trains every arm (a method with its settings) with ten training seeds on people that the family never saw, and
scores every training on twelve prompts and three noises. `judge` plays sweeps on these scores with the product's own
rules: what a sweep would have seen of a few trainings, and what it says, against the mean of all the others.
`draw-others` goes on with the trainings whose weights are still there: the twelve prompts with noise that no two share,
as the second stage has them, and 36 prompts that are drawn anew for each training seed, which are the truth that an
interval over prompts is about.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import measure
import numpy as np
import torch
import world
from measure import CLASS_PROMPT, INSTANCE_PROMPT, Bench, open_bench, subject_references
from PIL import Image
from scipy.special import stdtrit

from benchmarks.alternating import table
from evaluation.config import ApartEvaluationConfig, EvaluationConfig
from evaluation.copies import COPY, check_copies
from evaluation.drawn_face import DrawnFaceEncoder
from evaluation.generate import GeneratedImage, generate, generate_packed
from evaluation.references import References
from evaluation.score import score_images
from sweeps.config import ChampionConfig
from sweeps.results.confirmed import Repeated, standing_of
from sweeps.results.intervals import Interval, Uncertainty, interval_over_pictures, seed_noise
from training.checkpoint import Checkpoint, load_pipeline, open_checkpoint
from training.config import DreamBoothConfig, LoraConfig, MethodConfig, SubjectConfig
from training.dataset import Dataset, encode_dataset, load_dataset
from training.pack_training import PackTraining
from training.packed_pipeline import packed_pipeline
from training.pictures import read_picture
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


NUM_OTHER_PROMPTS = 36
LORA_ARMS = [arm for arm in ARMS if arm.startswith("lora")]
CONFIRM_NOISE, OTHER_NOISE = 10_000, 100_000
"""First seeds of the noise."""


def other_prompts(person: int, seed: int) -> list[str]:
    """Captions of shots drawn as the family's own pictures were, of the person; anew for every training seed."""
    rng = np.random.default_rng([11, person, seed])
    return [world.write_caption(world.draw_shot(rng), name="sks") for _ in range(NUM_OTHER_PROMPTS)]


def draw_others(bench: Bench, people: Sequence[int]) -> None:
    """What the LoRAs of each training seed draw of other prompts."""
    for person in people:
        folder, references, _ = subject_references(bench, person)
        for seed in range(NUM_SEEDS):
            if (file := folder / "others" / f"{seed}.json").exists():
                continue
            points = [
                open_checkpoint(folder / "work" / arm / str(seed) / f"checkpoint-{STEPS}", bench.base_model)
                for arm in LORA_ARMS
            ]
            pipeline = packed_pipeline(points, bench.base_model, CPU, torch.float32, guided=True)
            drawn: list[list[GeneratedImage]] = [[] for _ in points]
            first_noise = OTHER_NOISE * (1 + seed)
            for prompts, noise in ((PROMPTS, CONFIRM_NOISE), (other_prompts(person, seed), first_noise)):
                wanted = ApartEvaluationConfig(**evaluation(prompts, 1).model_dump() | {"seed": noise})
                for row in generate_packed(pipeline, wanted, len(points)):
                    for pictures, picture in zip(drawn, row, strict=True):
                        assert isinstance(picture, GeneratedImage)
                        pictures.append(picture)
            scored = [score_images(pictures, references, bench.face, bench.clip).images for pictures in drawn]
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps([[[i.face_similarity, i.prompt_alignment] for i in each] for each in scored]))
            print(f"person {person}  seed {seed}", flush=True)


# --- what is kept


def collect(work: Path, file: Path) -> None:
    """Everything that `judge` needs, of the people whose arms are all there, in one small file."""
    people = [folder for folder in sorted(work.glob("person-*")) if _is_whole(folder)]
    np.savez_compressed(
        file,
        people=np.array([int(folder.name.rpartition("-")[2]) for folder in people]),
        base=np.stack([_scores(folder / "base.json") for folder in people]),
        scores=np.stack(
            [
                [[_scores(folder / arm / f"{seed}.json") for seed in range(NUM_SEEDS)] for arm in ARMS]
                for folder in people
            ]
        ),
        ratios=np.stack([[_ratios(folder, arm, NUM_SEEDS, None) for arm in ARMS] for folder in people]),
        overfit=np.stack([_ratios(folder, "overfit", OVERFIT_SEEDS, OVERFIT_PHOTOS) for folder in people]),
        others=np.stack([_others(folder) for folder in people]),
    )


def _is_whole(folder: Path) -> bool:
    wanted = [(arm, NUM_SEEDS) for arm in ARMS] + [("overfit", OVERFIT_SEEDS)]
    return all((folder / arm / f"{seed}.json").is_file() for arm, number in wanted for seed in range(number))


def _scores(file: Path) -> np.ndarray:
    """[pictures, 2]: face similarity and prompt alignment."""
    return _counted(json.loads(file.read_text())[: len(PROMPTS) * NUM_NOISES])


def _others(folder: Path) -> np.ndarray:
    """[LoRA arms, seeds, prompts, 2]: the twelve prompts with noise apart, then those drawn anew for the seed."""
    of_seeds = [json.loads((folder / "others" / f"{seed}.json").read_text()) for seed in range(NUM_SEEDS)]
    return np.stack([[_counted(arms[number]) for arms in of_seeds] for number in range(len(LORA_ARMS))])


def _counted(scored: Sequence[tuple[float | None, float]]) -> np.ndarray:
    """A picture without a face counts as a stranger."""
    stranger = DrawnFaceEncoder.stranger_similarity
    return np.array([[stranger if face is None else face, alignment] for face, alignment in scored], dtype=np.float32)


def _ratios(folder: Path, arm: str, num_seeds: int, num_photos: int | None) -> np.ndarray:
    """[seeds, bare pictures]: how near each is to a trained photo, by the product's own check."""
    trained = [(path.name, read_picture(path)) for path in sorted((folder / "photos").glob("*.png"))[:num_photos]]
    unseen = [read_picture(path) for path in sorted((folder / "held_out").glob("*.png"))]
    found = []
    for seed in range(num_seeds):
        pixels = np.load(folder / arm / f"{seed}.npz")["pictures"][-NUM_BARE:]
        pictures = [(str(place), Image.fromarray(each)) for place, each in enumerate(pixels)]
        found.append([each.ratio for each in check_copies(pictures, trained, unseen).nearest])
    return np.array(found, dtype=np.float32)


# --- what a sweep would have said


SEARCHED = [prompt * NUM_NOISES + noise for prompt in range(4) for noise in range(NUM_NOISES)]
"""Pictures that a search sees: the demo's four prompts, three noises."""
CONFIRMED = [prompt * NUM_NOISES + prompt % NUM_NOISES for prompt in range(len(PROMPTS))]
"""Pictures of a finalist's training: all prompts, one noise each, which differs from prompt to prompt."""
MARGIN = ChampionConfig().prompt_alignment_margin
SIZES = (1, 4, 16, 16, 999, 999)
"""Of the arms' files, in their order."""
FACE, PROMPT = 0, 1


def by_key(picture_scores: np.ndarray, places: Sequence[int], score: int) -> dict[str, float]:
    """Some pictures' scores as the product has them."""
    keys = (f"{place // NUM_NOISES:03d}-{place % NUM_NOISES}.png" for place in places)
    return dict(zip(keys, picture_scores[list(places), score].astype(float).tolist(), strict=True))


@dataclass(frozen=True)
class Played:
    """One sweep over the arms of one person, and what is true of them by all other trainings."""

    arms: np.ndarray
    """[arms, seeds, pictures, 2]"""
    base: np.ndarray
    ratios: np.ndarray
    """[arms, seeds, bare pictures]: nearness to trained photos."""
    search_seed: int
    num_seeds: int
    num_finalists: int
    tie_margin: float = ChampionConfig().face_similarity_margin

    @property
    def confirm_seeds(self) -> list[int]:
        """Of the second stage."""
        return [(self.search_seed + 1 + number) % NUM_SEEDS for number in range(self.num_seeds)]

    @property
    def other_seeds(self) -> list[int]:
        """Those that the sweep has not had."""
        return [seed for seed in range(NUM_SEEDS) if seed not in (self.search_seed, *self.confirm_seeds)]

    @cached_property
    def truth(self) -> np.ndarray:
        """[arms, 2]: mean of the seeds that the sweep has not had, over all pictures."""
        truth: np.ndarray = self.arms[:, self.other_seeds].mean(axis=(1, 2))
        return truth

    @cached_property
    def first_look(self) -> np.ndarray:
        """[arms, 2]: what the search has seen."""
        seen: np.ndarray = self.arms[:, self.search_seed, SEARCHED].mean(axis=1)
        return seen

    @cached_property
    def in_order(self) -> list[int]:
        """Arms by the search's rule, those that qualify."""
        line = self.base[SEARCHED, PROMPT].mean() - MARGIN
        able = [arm for arm in range(len(self.arms)) if self.first_look[arm, PROMPT] >= line]
        return sorted(able, key=lambda arm: -self.first_look[arm, FACE])

    @property
    def finalists(self) -> list[int]:
        """Whom the second stage trains again."""
        return self.in_order[: self.num_finalists]

    @cached_property
    def noise(self) -> Uncertainty | None:
        """Of training seeds, pooled over the finalists."""
        return seed_noise([_means_of_seeds(self.arms[arm], self.confirm_seeds) for arm in self.finalists])

    def again(self, arm: int, score: int = FACE, seeds: Sequence[int] | None = None) -> Repeated:
        """A finalist's trainings."""
        trainings = [by_key(self.arms[arm, seed], CONFIRMED, score) for seed in seeds or self.confirm_seeds]
        return Repeated(trainings, self.noise if score == FACE else None)

    @cached_property
    def named(self) -> int:
        """The champion by the second stage, as `sweeps.results.champion` names it."""
        of_base = Repeated([by_key(self.base, CONFIRMED, PROMPT)])
        able = [
            arm
            for arm in self.finalists
            if standing_of(self.again(arm, PROMPT).minus(of_base).interval, MARGIN) != "off prompt"
        ] or self.finalists
        best = max(able, key=lambda arm: self.again(arm).mean)
        pairs = max(1, len(self.finalists) * (len(self.finalists) - 1) // 2)
        tied = [
            arm
            for arm in able
            if arm != best
            and self.again(best).minus(self.again(arm), pairs).verdict == "tie"
            and self.again(best).mean - self.again(arm).mean <= self.tie_margin
        ]
        return min([best, *tied], key=lambda arm: SIZES[arm])

    @cached_property
    def best(self) -> int:
        """The arm that is truly best among those that truly follow their prompts."""
        line = self.base[:, PROMPT].mean() - MARGIN
        able = [arm for arm in range(len(self.arms)) if self.truth[arm, PROMPT] >= line] or range(len(self.arms))
        return max(able, key=lambda arm: self.truth[arm, FACE])

    def regret(self, arm: int) -> float:
        """How much likeness is lost by naming it."""
        return float(self.truth[self.best, FACE] - self.truth[arm, FACE])


def _means_of_seeds(arm: np.ndarray, seeds: Sequence[int]) -> list[float]:
    """Face similarity of each of an arm's trainings [seeds, pictures, 2] over a finalist's pictures."""
    return [float(arm[seed, CONFIRMED, FACE].mean()) for seed in seeds]


def plays(kept: Mapping[str, np.ndarray], num_seeds: int, num_finalists: int, **others: float) -> list[Played]:
    """A sweep for each person and search seed."""
    return [
        Played(arms, base, ratios, seed, num_seeds, num_finalists, **others)
        for arms, base, ratios in zip(kept["scores"], kept["base"], kept["ratios"], strict=True)
        for seed in range(NUM_SEEDS)
    ]


def judge(kept: Mapping[str, np.ndarray], num_seeds: int, num_finalists: int) -> list[tuple[str, str, str, str]]:
    """The table's lines: what, goal, by a first look alone, by the second stage."""
    played = [play for play in plays(kept, num_seeds, num_finalists) if play.in_order]
    run_old, run_new, arm, decisive, wrong = [], [], [], [], []
    for play in played:
        for number in play.finalists:
            truth = float(play.truth[number, FACE])
            one = by_key(play.arms[number, play.search_seed], SEARCHED, FACE)
            run_old.append(_iid(list(one.values())).covers(truth))
            run_new.append(_covers(interval_over_pictures(one, play.noise), truth))
            arm.append(_covers(play.again(number).interval, truth))
        pairs = list(combinations(play.finalists, 2))
        for a, b in pairs:
            verdict = play.again(a).minus(play.again(b), len(pairs)).verdict
            decisive.append(verdict != "tie")
            if verdict != "tie":
                wrong.append((play.truth[a, FACE] > play.truth[b, FACE]) != (verdict == "higher"))
    old, new = [(play, play.in_order[0]) for play in played], [(play, play.named) for play in played]
    curse_old = [float(play.first_look[one, FACE] - play.truth[one, FACE]) for play, one in old]
    curse_new = [play.again(one).mean - float(play.truth[one, FACE]) for play, one in new]
    regret_old, regret_new = ([play.regret(one) for play, one in named] for named in (old, new))
    best_old, best_new = ([one == play.best for play, one in named] for named in (old, new))
    overfit = [_is_flagged(ratios) for person in kept["overfit"] for ratios in person]
    honest = [_is_flagged(play.ratios[one, play.search_seed]) for play, one in new]
    return [
        ("95 % interval of a run holds the mean of other training seeds", "93-97 %", _share(run_old), _share(run_new)),
        ("... of a finalist's trainings", "93-97 %", "", _share(arm)),
        ("pairs of finalists told apart", "", "", _share(decisive)),
        ('verdicts "higher" that brute force contradicts', "<= 3 %", "", _share(wrong)),
        ("champion's reported score minus its true one", "+-0.01", _mean(curse_old), _mean(curse_new)),
        ("regret: likeness of the best arm minus the named one's", "<= 0.02", _mean(regret_old), _mean(regret_new)),
        ("the best arm is named", "", _share(best_old), _share(best_new)),
        ("ties called ties, arms being equal by construction", ">= 95 %", "", _share(_equal_arms(kept, num_seeds))),
        ("copies flagged: overfit on purpose", ">= 90 %", "", _share(overfit)),
        ("copies flagged: honest champions", "<= 5 %", "", _share(honest)),
    ]


def judge_on_other_prompts(kept: Mapping[str, np.ndarray], num_seeds: int) -> list[tuple[str, str, str]]:
    """What an interval over prompts is about: the mean of other training seeds on prompts that no sweep has seen.

    Sweeps over the LoRAs alone, their finalists scored as the second stage does, with noise apart for each prompt.
    """
    run, held, differences, wrong = [], [], [], []
    loras = {**kept, "scores": kept["scores"][:, : len(LORA_ARMS)], "ratios": kept["ratios"][:, : len(LORA_ARMS)]}
    for place, play in enumerate(plays(loras, num_seeds, 3)):
        others = kept["others"][place // NUM_SEEDS][..., FACE]
        truth = others[:, play.other_seeds, len(PROMPTS) :].mean(axis=(1, 2))
        trainings = {
            arm: [
                {f"{prompt:03d}-0.png": float(others[arm, seed, prompt]) for prompt in range(len(PROMPTS))}
                for seed in play.confirm_seeds
            ]
            for arm in play.finalists
        }
        noise = seed_noise([[float(np.mean(list(each.values()))) for each in seeds] for seeds in trainings.values()])
        again = {arm: Repeated(seeds, noise) for arm, seeds in trainings.items()}
        for arm in play.finalists:
            drawn = others[arm, play.search_seed, len(PROMPTS) : 2 * len(PROMPTS)]
            one = {f"{prompt:03d}-0.png": float(score) for prompt, score in enumerate(drawn)}
            run.append(_covers(interval_over_pictures(one, noise), float(truth[arm])))
        held += [_covers(each.interval, float(truth[arm])) for arm, each in again.items()]
        pairs = list(combinations(play.finalists, 2))
        for a, b in pairs:
            differences.append(_covers(again[a].minus(again[b]).interval, float(truth[a] - truth[b])))
            verdict = again[a].minus(again[b], len(pairs)).verdict
            if verdict != "tie":
                wrong.append((truth[a] > truth[b]) != (verdict == "higher"))
    return [
        (
            "95 % interval of a run on twelve prompts drawn at random holds the mean of other seeds on other prompts",
            "93-97 %",
            _share(run),
        ),
        ("... of the difference of two finalists' trainings, on the twelve prompts", "93-97 %", _share(differences)),
        ("... of a finalist's trainings, on the twelve prompts", "93-97 %", _share(held)),
        ('verdicts "higher" that the other prompts contradict', "<= 3 %", _share(wrong)),
    ]


def regret_by_tie_margin(kept: Mapping[str, np.ndarray], num_seeds: int, num_finalists: int) -> list[tuple[str, str]]:
    """What naming the cheapest of those that tie costs, by how far below the highest it may lie."""
    lines = []
    for margin in (0.0, 0.01, 0.02, 0.05, 2.0):
        played = [play for play in plays(kept, num_seeds, num_finalists, tie_margin=margin) if play.in_order]
        lines.append((f"{margin:g}", _mean([play.regret(play.named) for play in played])))
    return lines


def arms_by_person(kept: Mapping[str, np.ndarray]) -> list[list[str]]:
    """The truth itself: each arm's face similarity over all seeds with its 95 % interval over them."""
    lines = []
    for person, arms, base in zip(kept["people"], kept["scores"], kept["base"], strict=True):
        means = arms[..., FACE].mean(axis=2)
        widths = -stdtrit(NUM_SEEDS - 1, 0.025) * means.std(axis=1, ddof=1) / NUM_SEEDS**0.5
        cells = [f"{mean:.3f} +-{width:.3f}" for mean, width in zip(means.mean(axis=1), widths, strict=True)]
        lines.append([str(person), f"{base[:, FACE].mean():.3f}", *cells])
    return lines


def _equal_arms(kept: Mapping[str, np.ndarray], num_seeds: int) -> list[bool]:
    """One arm's seeds as two arms', beside a third that is another: is the verdict on the two a tie?"""
    found = []
    for arms, base, ratios in zip(kept["scores"], kept["base"], kept["ratios"], strict=True):
        for number in range(len(arms)):
            for start in range(0, NUM_SEEDS, 2):
                seeds = [(start + place) % NUM_SEEDS for place in range(2 * num_seeds)]
                other = (number + 1) % len(arms)
                play = Played(arms[[number, number, other]], base, ratios, 0, num_seeds, 3)
                groups = (seeds[:num_seeds], seeds[num_seeds:], seeds[:num_seeds])
                noise = seed_noise([_means_of_seeds(play.arms[place], group) for place, group in enumerate(groups)])
                a, b = (Repeated(play.again(place, seeds=groups[place]).trainings, noise) for place in (0, 1))
                found.append(a.minus(b, 3).verdict == "tie")
    return found


def _is_flagged(ratios: np.ndarray) -> bool:
    return bool((ratios < COPY).any())


def _covers(interval: Interval | None, value: float) -> bool:
    assert interval is not None, "there are many pictures"
    return interval.covers(value)


def _iid(values: Sequence[float]) -> Interval:
    """What 0.1 printed, but for its bootstrap: pictures as so many independent draws."""
    variance = float(np.var(values, ddof=1) / len(values))
    return Uncertainty(variance, len(values) - 1, ("noise",)).around(float(np.mean(values)))


def _share(values: Sequence[bool]) -> str:
    return f"{np.mean(values):.1%} of {len(values)}" if len(values) else "none"


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):+.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, collect or judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("draw", "draw-others", "collect", "judge"))
    parser.add_argument("--family", type=Path, default=HERE / "family")
    parser.add_argument("--work", type=Path, default=Path("runs/verdicts"))
    parser.add_argument("--scores", type=Path, default=HERE / "verdicts.npz")
    parser.add_argument("--people", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--arms", nargs="+", default=[*ARMS, "overfit"])
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if asked.what == "draw":
        draw(open_bench(asked.family, asked.work, 0, []), asked.people, asked.arms)
    elif asked.what == "draw-others":
        draw_others(open_bench(asked.family, asked.work, 0, []), asked.people)
    elif asked.what == "collect":
        collect(asked.work, asked.scores)
    else:
        kept = dict(np.load(asked.scores))
        people = ", ".join(map(str, kept["people"]))
        for num_seeds in (2, 3):
            lines = judge(kept, num_seeds, 3)
            print(f"\npeople {people}; 3 finalists, {num_seeds} seeds\n")
            print(table(("", "goal", "first look", "second stage"), lines))
            print(table(("LoRAs alone", "goal", "second stage"), judge_on_other_prompts(kept, num_seeds)))
        print(table(("person", "base model", *ARMS), arms_by_person(kept)))
        print(table(("a cheaper one may fall short by", "regret"), regret_by_tie_margin(kept, 3, 3)))


if __name__ == "__main__":
    main()
