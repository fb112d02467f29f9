"""Train the demo's small Stable Diffusion family on the drawn world, from nothing to the folder the demo loads.

    python examples/demo/train_family.py                    # everything, on a GPU if there is one
    python examples/demo/train_family.py --stages vae unet  # some stages, in the order given

Every stage writes a checkpoint a minute into the work folder and goes on from it when the same command is given again.
Stages need what is listed with them in `STAGES`; those that do not need each other may run at the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import world
from torch import Tensor, nn
from torch.nn import functional
from world import CAPTIONED, CHOICES, COLOURS, EXPRESSIONS, PLACE_ALONE, PLACES, Identity, Shot

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextModel

NUM_PEOPLE = 7000
SHOTS_PER_PERSON = 6
NUM_PLACES = 3000
NUM_UNSEEN_PEOPLE = 200
SHOTS_PER_UNSEEN_PERSON = 10
NUM_NAMES = 1000
MAX_TOKENS = 32
TEXT_WIDTH = 128
WELL_KNOWN_NAMES = ("sks", "ohwx", "zwx", "shs", "xjy", "zwc", "bnha", "vtk")
"""Rare tokens that people use to name a subject; the first people of the world get them, others get made-up ones."""


# --- the painted world


@dataclass(frozen=True)
class Pictures:
    """A painted world: pixels uint8 [N, 64, 64, 3] and what they show. Place-only pictures have person -1."""

    pixels: np.ndarray
    person: np.ndarray
    vectors: np.ndarray  # [num_people, num_identity_values]
    boxes: np.ndarray  # [N, 4] pixels; nan without a face
    shots: list[Shot]

    def caption(self, index: int, name: str | None = None, leave_out: tuple[str, ...] = ()) -> str:
        """The picture in words; `name` and `leave_out` as in `world.write_caption`."""
        if self.person[index] < 0:
            return world.write_place_caption(self.shots[index].place)
        return world.write_caption(self.shots[index], name, leave_out)


def draw_people(num_people: int, seed: int) -> list[Identity]:
    """The people of a seed; a larger number only appends."""
    rng = np.random.default_rng([seed, 0])
    return [world.draw_identity(rng) for _ in range(num_people)]


def paint_world(
    num_people: int, shots_per_person: int, num_places: int, seed: int, say: Callable[[str], None]
) -> Pictures:
    """Paint people and empty places; everything follows from the seed."""
    people = draw_people(num_people, seed)
    rng = np.random.default_rng([seed, 1])
    person = np.concatenate([np.repeat(np.arange(num_people), shots_per_person), np.full(num_places, -1)])
    pixels = np.empty((len(person), world.SIZE, world.SIZE, 3), dtype=np.uint8)
    boxes = np.full((len(person), 4), np.nan, dtype=np.float32)
    shots = []
    for index, who in enumerate(person):
        shot = world.draw_shot(rng)
        identity = people[who] if who >= 0 else None
        pixels[index] = np.asarray(world.paint(identity, shot))
        if identity is not None:
            boxes[index] = world.face_box(identity, shot)
        shots.append(shot)
        if index % 5000 == 0:
            say(f"{index} of {len(person)} pictures")
    return Pictures(pixels, person, np.stack([identity.vector() for identity in people]), boxes, shots)


def save_pictures(pictures: Pictures, folder: Path) -> None:
    """Write pixels last: their presence says that all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "labels.npz", person=pictures.person, vectors=pictures.vectors, boxes=pictures.boxes)
    (folder / "shots.json").write_text(json.dumps([vars(shot) for shot in pictures.shots]))
    np.save(folder / "pixels.npy.part.npy", pictures.pixels)
    (folder / "pixels.npy.part.npy").rename(folder / "pixels.npy")


def load_pictures(folder: Path) -> Pictures:
    """Read what `save_pictures` wrote; pixels stay on disk."""
    labels = np.load(folder / "labels.npz")
    shots = [Shot(**shot) for shot in json.loads((folder / "shots.json").read_text())]
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    return Pictures(pixels, labels["person"], labels["vectors"], labels["boxes"], shots)


def to_tensor(pixels: np.ndarray, device: torch.device) -> Tensor:
    """Pixels uint8 [B, H, W, 3] -> float [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_gaps(num_captions: int, rng: np.random.Generator, keep: float) -> list[tuple[str, ...]]:
    """For each caption the attributes it leaves out; a share `keep` of captions says everything."""
    kinds = [kind for kind in CAPTIONED if kind != "colour"]
    gaps = []
    for _ in range(num_captions):
        probability = 0.0 if rng.random() < keep else rng.uniform(0.2, 0.8)
        gaps.append(tuple(kind for kind in kinds if rng.random() < probability))
    return gaps


# --- resumable loop


class Workshop:
    """The work folder: where stages find each other's results, say how far they are, and resume."""

    def __init__(self, folder: Path, out: Path, device: torch.device, steps_scale: float, compiles: bool) -> None:
        self.folder, self.out, self.device = folder, out, device
        self.steps_scale, self.compiles = steps_scale, compiles
        folder.mkdir(parents=True, exist_ok=True)

    def say(self, stage: str, text: str) -> None:
        """One line of progress."""
        print(f"{time.strftime('%H:%M:%S')} {stage:>10}  {text}", flush=True)

    def autocast(self) -> torch.autocast:
        """bfloat16: half the work on CPUs that know it, and what a GPU likes."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def maybe_compiled(self, module: nn.Module) -> nn.Module:
        """The module, or the same weights behind compiled code."""
        # torch promises no more than a callable
        return torch.compile(module) if self.compiles else module  # type: ignore[return-value]

    def fit(
        self,
        stage: str,
        modules: nn.ModuleDict,
        loss_of: Callable[[np.random.Generator], dict[str, Tensor]],
        *,
        num_steps: int,
        learning_rate: float,
        weight_decay: float = 0.01,
        ema_decay: float = 0.998,
        save_seconds: float = 60,
    ) -> nn.ModuleDict:
        """Train `modules`, or go on training them; returns their exponential moving average.

        `loss_of(rng)` gives the parts of the loss, whose sum is minimised. The learning rate warms up over 200
        steps and falls to zero over the last third. `rng` and torch's generator depend on the step alone, so that an
        interrupted run is the same as an uninterrupted one.
        """
        num_steps = max(round(num_steps * self.steps_scale), 2)
        modules.to(self.device).train()
        parameters = [parameter for parameter in modules.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
        )
        average = {name: value.detach().clone() for name, value in modules.state_dict().items()}
        file = self.folder / f"{stage}.pt"
        step, seconds = 0, 0.0
        if file.exists():
            state = torch.load(file, map_location=self.device, weights_only=True)
            modules.load_state_dict(state["modules"])
            optimizer.load_state_dict(state["optimizer"])
            average, step, seconds = state["average"], state["step"], state["seconds"]
        start, saved_at, shown_at = time.monotonic() - seconds, time.monotonic(), time.monotonic()
        first_step, first_time = step, time.monotonic()
        while step < num_steps:
            torch.manual_seed(step)
            rng = np.random.default_rng([17, step])
            rate = learning_rate * min(1.0, (step + 1) / 200, 3 * (num_steps - step) / num_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            parts = loss_of(rng)
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]  # torch's own gap
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step += 1
            _update_average(average, modules, min(ema_decay, step / (step + 20)))
            now = time.monotonic()
            if now - shown_at > 15 or step == num_steps:
                shown_at = now
                left = (num_steps - step) * (now - first_time) / (step - first_step)
                losses = " ".join(f"{name} {value.item():.4f}" for name, value in parts.items())
                self.say(stage, f"step {step}/{num_steps}  {losses}  lr {rate:.1e}  {left / 60:.1f} min left")
            if now - saved_at > save_seconds or step == num_steps:
                saved_at = now
                state = {"modules": modules.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
                torch.save(state | {"step": step, "seconds": now - start}, file.with_suffix(".part"))
                file.with_suffix(".part").rename(file)
        modules.load_state_dict(average)
        self.note(stage, {"steps": step, "seconds": round(time.monotonic() - start if step > first_step else seconds)})
        return modules.eval()

    def load(self, stage: str, modules: nn.ModuleDict) -> nn.ModuleDict:
        """The averaged weights of a stage, as far as it has come."""
        state = torch.load(self.folder / f"{stage}.pt", map_location=self.device, weights_only=True)
        modules.load_state_dict(state["average"])
        return modules.to(self.device).eval().requires_grad_(False)

    def note(self, stage: str, facts: dict[str, object]) -> None:
        """What a stage took, for its card."""
        facts |= {"machine": describe_machine(self.device)}
        (self.folder / f"{stage}.json").write_text(json.dumps(facts, indent=1))

    def training_pictures(self) -> Pictures:
        """The people the family learns from."""
        return load_pictures(self.folder / "world")

    def unseen_pictures(self) -> Pictures:
        """People and places that no stage learns from."""
        return load_pictures(self.folder / "unseen")


@torch.no_grad()
def _update_average(average: dict[str, Tensor], modules: nn.Module, decay: float) -> None:
    for name, value in modules.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


def describe_machine(device: torch.device) -> str:
    """For the cards."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()}-core {platform.machine()} CPU, {torch.get_num_threads()} torch thread(s)"


# --- the stages


def train_world(shop: Workshop) -> None:
    """Paint the people the family learns from, and the unseen ones it is measured on."""
    for name, people, shots, places, seed in (
        ("unseen", NUM_UNSEEN_PEOPLE, SHOTS_PER_UNSEEN_PERSON, 500, 2),
        ("world", NUM_PEOPLE, SHOTS_PER_PERSON, NUM_PLACES, 1),
    ):
        if not (shop.folder / name / "pixels.npy").exists():
            pictures = paint_world(people, shots, places, seed, lambda text: shop.say("world", text))
            save_pictures(pictures, shop.folder / name)


# --- VAE


def build_vae() -> AutoencoderKL:
    """Stable Diffusion's VAE, x4 instead of x8, without attention in the middle: 64 px pictures to 16x16x4."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=world.SIZE,
    )


def train_vae(shop: Workshop) -> None:
    """Encoder and decoder together; afterwards only the decoder learns on (`train_decoder`)."""
    pictures = shop.training_pictures()
    vae = build_vae()

    def loss_of(rng: np.random.Generator) -> dict[str, Tensor]:
        images = to_tensor(pictures.pixels[np.sort(rng.choice(len(pictures.person), 16, replace=False))], shop.device)
        with shop.autocast():
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        error = decoded.float() - images
        divergence = posterior.kl().float().mean() / posterior.mean[0].numel()
        return {**reconstruction_losses(error), "kl": 1e-4 * divergence}

    shop.fit("vae", nn.ModuleDict({"vae": vae}), loss_of, num_steps=1300, learning_rate=1.5e-3, weight_decay=0.0)


def reconstruction_losses(error: Tensor) -> dict[str, Tensor]:
    """Of [B, 3, H, W]: every pixel, edges, and broad colours, which group norms otherwise let drift."""
    broad = functional.avg_pool2d(error, 8)
    return {"mse": error.square().mean(), "l1": 0.05 * error.abs().mean(), "broad": 2 * broad.square().mean()}


def train_latents(shop: Workshop) -> None:
    """Encode the world once: mean and standard deviation, float16 [N, 4, 16, 16]."""
    vae: AutoencoderKL = shop.load("vae", nn.ModuleDict({"vae": build_vae()}))["vae"]
    pictures = shop.training_pictures()
    means, deviations = [], []
    for start in range(0, len(pictures.person), 256):
        with torch.inference_mode(), shop.autocast():
            posterior = vae.encode(to_tensor(pictures.pixels[start : start + 256], shop.device)).latent_dist
        means.append(posterior.mean.half().cpu().numpy())
        deviations.append(posterior.std.half().cpu().numpy())
        if start % 5120 == 0:
            shop.say("latents", f"{start} of {len(pictures.person)}")
    mean = np.concatenate(means)
    np.save(shop.folder / "latents_std.npy", np.concatenate(deviations))
    np.save(shop.folder / "latents_mean.npy", mean)
    shop.note("latents", {"scaling_factor": float(1 / mean[:4000].astype(np.float32).std())})


def train_decoder(shop: Workshop) -> None:
    """The decoder alone, from latents that no longer change; the face encoder keeps an eye on who is shown."""
    pictures = shop.training_pictures()
    vae: AutoencoderKL = shop.load("vae", nn.ModuleDict({"vae": build_vae()}))["vae"]
    face = shop.load("face", build_face())["network"]
    decoder = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).requires_grad_(True)
    mean, deviation = (np.load(shop.folder / f"latents_{kind}.npy", mmap_mode="r") for kind in ("mean", "std"))

    def loss_of(rng: np.random.Generator) -> dict[str, Tensor]:
        indices = np.sort(rng.choice(len(pictures.person), 16, replace=False))
        images = to_tensor(pictures.pixels[indices], shop.device)
        latents = torch.from_numpy(mean[indices]).float()
        latents += torch.from_numpy(deviation[indices]).float() * torch.randn_like(latents)
        with shop.autocast():
            decoded = vae.decode(latents.to(shop.device)).sample
            likeness = (face(decoded)[2] * face(images)[2]).sum(1)[torch.from_numpy(pictures.person[indices] >= 0)]
        error = decoded.float() - images
        return {**reconstruction_losses(error), "face": 0.002 * (1 - likeness.float()).mean()}

    shop.fit("decoder", decoder, loss_of, num_steps=3300, learning_rate=1.5e-3, weight_decay=0.0)


# --- face encoder


SECOND_FACE = {"channels": (12, 24, 48, 96), "embedding_size": 48}
"""Of the network that gives a second opinion: it selects nothing, so that nothing is chosen for its liking."""


def build_face(**sizes: Any) -> nn.ModuleDict:
    """A face network, and what helps it learn."""
    from evaluation.drawn_face import DrawnFaceNetwork

    network = DrawnFaceNetwork(**sizes)
    traits = nn.Linear(network.embed.out_features, world.num_identity_values())  # used in training only
    return nn.ModuleDict({"network": network, "traits": traits, "temperature": _Temperature()})


class _Temperature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(2.5))

    def forward(self, similarity: Tensor) -> Tensor:
        return similarity * self.log.clamp(max=4.0).exp()


def train_face(shop: Workshop) -> None:
    """The judge of likeness."""
    _fit_face(shop, "face", build_face())


def train_second_face(shop: Workshop) -> None:
    """Another one, of another size and other first weights; it needs only the world, and is written at once."""
    torch.manual_seed(5)
    write_face(shop, _fit_face(shop, "second_face", build_face(**SECOND_FACE)), "second_face_encoder")


def _fit_face(shop: Workshop, stage: str, modules: nn.ModuleDict) -> nn.ModuleDict:
    """Two shots of each of 64 people must find each other; empty places, noise and shuffled pictures hold no face."""
    pictures = shop.training_pictures()
    num_shots = SHOTS_PER_PERSON
    places = np.flatnonzero(pictures.person < 0)

    def loss_of(rng: np.random.Generator) -> dict[str, Tensor]:
        who = rng.choice(NUM_PEOPLE, 64, replace=False)
        shots = np.stack([rng.choice(num_shots, 2, replace=False) for _ in who])
        indices = np.concatenate([who * num_shots + shots[:, 0], who * num_shots + shots[:, 1]])
        people = to_tensor(pictures.pixels[indices], shop.device)
        empty = to_tensor(pictures.pixels[rng.choice(places, 16, replace=False)], shop.device)
        images = degrade(
            torch.cat([people, empty, shuffle_patches(people[:8]), torch.randn_like(people[:4]).clamp(-1, 1)])
        )
        with shop.autocast():
            presence, boxes, embeddings = modules["network"](images)
        similarity = modules["temperature"](embeddings[:64].float() @ embeddings[64:128].float().T)
        traits = modules["traits"](embeddings[:128].float() * 8)
        target = torch.arange(64, device=shop.device)
        here = torch.zeros_like(presence)
        here[:128] = 1
        vectors = torch.from_numpy(np.concatenate([pictures.vectors[who]] * 2)).to(shop.device)
        box = torch.from_numpy(pictures.boxes[indices]).to(shop.device) / world.SIZE
        return {
            "contrast": (functional.cross_entropy(similarity, target) + functional.cross_entropy(similarity.T, target))
            / 2,
            "traits": functional.mse_loss(traits.float(), vectors),
            "presence": functional.binary_cross_entropy_with_logits(presence.float(), here),
            "box": 4 * functional.smooth_l1_loss(boxes[:128].float(), box, beta=0.05),
        }

    return shop.fit(stage, modules, loss_of, num_steps=1000, learning_rate=2e-3, weight_decay=0.05)


def write_face(shop: Workshop, modules: nn.ModuleDict, folder: str) -> None:
    """An encoder folder of the family."""
    from safetensors.torch import save_file

    from evaluation.drawn_face import DrawnFaceNetwork

    face = modules["network"]
    assert isinstance(face, DrawnFaceNetwork)
    (shop.out / folder).mkdir(parents=True, exist_ok=True)
    (shop.out / folder / "config.json").write_text(json.dumps(face.config, indent=2) + "\n")
    weights = face.state_dict().items()
    halves = {name: value.half() if value.is_floating_point() else value for name, value in weights}
    save_file(halves, shop.out / folder / "model.safetensors")


def degrade(images: Tensor) -> Tensor:
    """Softer, noisier, brighter: what a generator does to pictures, [B, 3, 64, 64]."""
    shrink = float(torch.empty(()).uniform_(0.4, 1))
    small = functional.interpolate(images, scale_factor=shrink, mode="bilinear", antialias=True)
    soft = functional.interpolate(small, size=images.shape[-1], mode="bilinear")
    share = torch.rand(len(images), 1, 1, 1, device=images.device)
    mixed = images * share + soft * (1 - share)
    noise = torch.randn_like(images) * 0.08 * torch.rand(len(images), 1, 1, 1, device=images.device)
    gain = 1 + 0.1 * torch.randn(len(images), 1, 1, 1, device=images.device)
    return (mixed * gain + 0.05 * torch.randn(len(images), 3, 1, 1, device=images.device) + noise).clamp(-1, 1)


def shuffle_patches(images: Tensor) -> Tensor:
    """Pictures cut in 16 squares that change places: all the colours of a face and no face."""
    patches = images.unfold(2, 16, 16).unfold(3, 16, 16).flatten(2, 3)[:, :, torch.randperm(16)]
    squares: Tensor = patches.unflatten(2, (4, 4))  # type: ignore[no-untyped-call]  # torch's own gap
    return squares.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)


# --- CLIP, the judge of prompt alignment

CLIP_CONFIG: dict[str, dict[str, Any]] = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": world.SIZE, "layers": [1, 1, 1, 1], "width": 24, "patch_size": None},
        "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3},
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    },
}


def build_clip() -> nn.ModuleDict:
    """An open_clip model, and what helps it learn."""
    from open_clip.model import CLIP

    config = CLIP_CONFIG["model_cfg"]
    model = CLIP(config["embed_dim"], dict(config["vision_cfg"]), dict(config["text_cfg"]))
    heads = {kind: nn.Linear(config["embed_dim"], len(choices)) for kind, choices in CHOICES.items()}
    return nn.ModuleDict({"clip": model, "heads": nn.ModuleDict(heads)})


def train_clip(shop: Workshop) -> None:
    """Pictures and captions must find each other among 64; heads that name the attributes help in training only."""
    import open_clip

    pictures = shop.training_pictures()
    modules = build_clip()
    heads = modules["heads"]
    assert isinstance(heads, nn.ModuleDict)
    tokenize = open_clip.SimpleTokenizer(context_length=CLIP_CONFIG["model_cfg"]["text_cfg"]["context_length"])
    labels = {
        kind: np.array([choices.index(getattr(shot, kind)) for shot in pictures.shots])
        for kind, choices in CHOICES.items()
    }

    def loss_of(rng: np.random.Generator) -> dict[str, Tensor]:
        indices = np.sort(rng.choice(len(pictures.person), 64, replace=False))
        gaps = draw_gaps(len(indices), rng, keep=0.6)
        captions = [pictures.caption(index, leave_out=gap) for index, gap in zip(indices, gaps, strict=True)]
        images = degrade(to_tensor(pictures.pixels[indices], shop.device))
        with shop.autocast():
            image, text, scale = modules["clip"](images, tokenize(captions).to(shop.device))
        logits = scale.float().clamp(max=50.0) * image.float() @ text.float().T
        # Equal captions are equally right: several places may look for the same words.
        same = torch.tensor([[a == b for b in captions] for a in captions], device=shop.device).float()
        target = same / same.sum(1, keepdim=True)
        people = torch.from_numpy(np.flatnonzero(pictures.person[indices] >= 0))
        losses = (
            # an expression is the smallest thing that captions tell
            (1.0 if kind == "expression" else 0.2)
            * functional.cross_entropy(
                head(image[people].float() * 8),
                torch.from_numpy(labels[kind][indices])[people].to(shop.device),
            )
            for kind, head in heads.items()
        )
        named = sum(losses, torch.zeros((), device=shop.device))
        contrast = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
        return {"contrast": contrast / 2, "attributes": named}

    shop.fit("clip", modules, loss_of, num_steps=1150, learning_rate=2e-3, weight_decay=0.02)


# --- text encoder and UNet


def rare_names() -> list[str]:
    """Names of the first people of the world: well-known rare tokens, then made-up ones."""
    rng = np.random.default_rng(5)
    made_up: dict[str, None] = {}
    while len(made_up) < 2 * NUM_NAMES:
        made_up["".join(rng.choice(list("bcdfghjklmnpqrstvwxz"), 3))] = None
    names = [*WELL_KNOWN_NAMES, *(name for name in made_up if name not in WELL_KNOWN_NAMES)]
    return names[:NUM_NAMES]


def world_words() -> list[str]:
    """Every word of the captions."""
    phrases = [
        *world.GARMENTS,
        *COLOURS,
        *EXPRESSIONS,
        *world.ACCESSORIES.values(),
        *PLACES.values(),
        *PLACE_ALONE.values(),
    ]
    phrases += [*world.FRAMINGS.values(), "of a person wearing", ", ; . - ! ? ( ) : '"]
    return sorted({word for phrase in phrases for word in phrase.replace("-", " - ").split()})


def build_tokenizer() -> Any:
    """A CLIPTokenizer whose vocabulary is all bytes, and every word and name of the world as one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    clip_rules = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = clip_rules.normalizer, clip_rules.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    final = [letter + "</w>" for letter in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        show_progress=False,
        end_of_word_suffix="</w>",
        special_tokens=final,  # numbers them; left to itself it numbers them as they come, another way every time
    )
    learner.train_from_iterator(world_words() + rare_names(), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokens = [*alphabet, *final, *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: Any) -> CLIPTextModel:
    """A small CLIP text model, not yet trained."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    """Stable Diffusion's UNet in small: cross-attention at every level, the largest included."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=world.SIZE // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 96, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=16,
    )


def build_scheduler() -> Any:
    """Stable Diffusion 1.5's noise schedule."""
    from diffusers import PNDMScheduler

    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_diffusion() -> nn.ModuleDict:
    """What `train_unet` trains."""
    names = nn.Linear(world.num_identity_values(), TEXT_WIDTH)
    nn.init.normal_(names.weight, std=0.02)
    return nn.ModuleDict({"unet": build_unet(), "text": build_text_encoder(build_tokenizer()), "names": names})


class Namesakes:
    """Lets one placeholder token stand for anybody while the text encoder learns.

    Half of the captions name the person they show. A row of the token table for each of thousands of people would see
    too few pictures to learn from, so that during training a name's embedding is computed from the person's traits by a
    linear map that all names share. Afterwards the names of `rare_names` get their rows by it, and the map is dropped.
    """

    placeholder = "sks"

    def __init__(self, text_encoder: CLIPTextModel, names: nn.Module, tokenizer: Any) -> None:
        (self.token,) = tokenizer(self.placeholder, add_special_tokens=False)["input_ids"]
        self.names = names
        self.vectors: Tensor | None = None
        self.hook = text_encoder.get_input_embeddings().register_forward_hook(self._replace)

    def _replace(self, _: nn.Module, arguments: tuple[Tensor], embeddings: Tensor) -> Tensor:
        if self.vectors is None:
            return embeddings
        named = self.names(self.vectors).to(embeddings.dtype)
        return torch.where((arguments[0] == self.token)[..., None], named[:, None], embeddings)


FACE_WEIGHT, MOUTH_WEIGHT = 3.0, 10.0
"""How much more the latents of a face with what it wears count, and those of its mouth: few, and all of who and how."""


def weigh_faces(boxes: np.ndarray) -> Tensor:
    """Loss weight of every latent, [B, 1, 16, 16], from face boxes [B, 4] in pixels; nan (nobody there) weighs 1."""
    x0, y0, x1, y1 = (boxes / 4).T[..., None, None]  # one latent is 4 pixels wide
    width, height = x1 - x0, y1 - y0
    y, x = np.mgrid[0:16, 0:16] + 0.5

    def inside(left: Any, top: Any, right: Any, bottom: Any) -> Any:
        return (x > left) & (x < right) & (y > top) & (y < bottom)

    worn = inside(x0 - 1, y0 - 2.5, x1 + 1, y1 + 0.5)  # headphones, hats and crowns, a beard
    mouth = inside(x0 + 0.2 * width, y0 + 0.62 * height, x1 - 0.2 * width, y1)
    return torch.from_numpy(np.select([mouth, worn], [MOUTH_WEIGHT, FACE_WEIGHT], 1.0)[:, None]).float()


def train_unet(shop: Workshop) -> None:
    """UNet and text encoder together: noise prediction with P2 weights (k 0.06, gamma 0.5; Choi et al. 2022).

    P2 favours the noisy timesteps, which decide who is shown and how.
    A weight per place leaves the best prediction what it is and tells a small network where to spend its effort:
    without it, expressions and glasses, a few latents each, come long after garments and places.
    """
    pictures = shop.training_pictures()
    tokenizer = build_tokenizer()
    modules = build_diffusion()
    unet = shop.maybe_compiled(modules["unet"])
    namesakes = Namesakes(modules["text"], modules["names"], tokenizer)
    mean, deviation = (np.load(shop.folder / f"latents_{kind}.npy") for kind in ("mean", "std"))
    scaling = json.loads((shop.folder / "latents.json").read_text())["scaling_factor"]
    alphas = build_scheduler().alphas_cumprod.to(shop.device)

    def loss_of(rng: np.random.Generator) -> dict[str, Tensor]:
        indices = rng.choice(len(pictures.person), 32)
        prompts = []
        for index, gap in zip(indices, draw_gaps(len(indices), rng, keep=0.6), strict=True):
            name = Namesakes.placeholder if rng.random() < 0.5 else None
            prompts.append("" if rng.random() < 0.1 else pictures.caption(index, name, gap))
        tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        namesakes.vectors = torch.from_numpy(pictures.vectors[pictures.person[indices]]).to(shop.device)
        latents, noise = (torch.randn(len(indices), *mean.shape[1:], device=shop.device) for _ in range(2))
        latents = latents * torch.from_numpy(deviation[indices]).to(shop.device) + torch.from_numpy(mean[indices]).to(
            shop.device
        )
        timesteps = torch.from_numpy(rng.integers(0, len(alphas), len(indices))).to(shop.device)
        alpha = alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents * scaling + (1 - alpha).sqrt() * noise
        with shop.autocast():
            states = modules["text"](tokens.input_ids.to(shop.device))[0]
            predicted = unet(noisy, timesteps, states).sample
        signal_to_noise = (alpha / (1 - alpha)).flatten()
        weight = (0.06 + signal_to_noise) ** -0.5
        error = (predicted.float() - noise).square() * weigh_faces(pictures.boxes[indices]).to(shop.device)
        return {"noise": (weight * error.mean((1, 2, 3))).mean()}

    shop.fit("unet", modules, loss_of, num_steps=12600, learning_rate=1e-3, ema_decay=0.998)


def assembled_text_encoder(modules: nn.ModuleDict) -> CLIPTextModel:
    """The text encoder with a row of its own for each of `rare_names`."""
    tokenizer = build_tokenizer()
    people = np.stack([identity.vector() for identity in draw_people(NUM_NAMES, seed=1)])
    rows = [tokenizer(name, add_special_tokens=False)["input_ids"] for name in rare_names()]
    assert all(len(row) == 1 for row in rows), "every name is one token"
    text: CLIPTextModel = modules["text"]
    names = modules["names"]
    assert isinstance(names, nn.Linear)
    with torch.no_grad():
        named = names(torch.from_numpy(people).to(names.weight.device))
        text.get_input_embeddings().weight[[row[0] for row in rows]] = named
    return text


# --- ControlNet


def draw_edges(pixels: np.ndarray) -> np.ndarray:
    """Canny edges as the renders draw them: uint8 [H, W, 3], white on black."""
    import cv2

    return np.repeat(cv2.Canny(np.ascontiguousarray(pixels), 100, 200)[..., None], 3, axis=2)


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """The UNet's encoder with a stem for conditions of picture size."""
    from diffusers import ControlNetModel

    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64))


def train_controlnet(shop: Workshop) -> None:
    """A copy of the UNet's encoder learns to follow canny edges; the UNet and text encoder stay as they are."""
    pictures = shop.training_pictures()
    tokenizer = build_tokenizer()
    base = shop.load("unet", build_diffusion())
    text, unet = assembled_text_encoder(base), base["unet"]
    modules = nn.ModuleDict({"controlnet": build_controlnet(unet)})
    controlnet, unet = shop.maybe_compiled(modules["controlnet"]), shop.maybe_compiled(unet)
    mean = np.load(shop.folder / "latents_mean.npy", mmap_mode="r")
    scaling = json.loads((shop.folder / "latents.json").read_text())["scaling_factor"]
    alphas = build_scheduler().alphas_cumprod.to(shop.device)

    def loss_of(rng: np.random.Generator) -> dict[str, Tensor]:
        indices = rng.choice(len(pictures.person), 16)
        prompts = [
            "" if rng.random() < 0.1 else pictures.caption(index, None, gap)
            for index, gap in zip(indices, draw_gaps(len(indices), rng, keep=0.3), strict=True)
        ]
        tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        edges = np.stack([draw_edges(pictures.pixels[index]) for index in indices])
        condition = torch.from_numpy(edges).to(shop.device).permute(0, 3, 1, 2).float() / 255
        latents = torch.from_numpy(mean[indices]).float().to(shop.device)
        noise = torch.randn_like(latents)
        # Edges decide the layout, which the first steps of a picture draw: noisy timesteps teach the most.
        timesteps = torch.from_numpy((len(alphas) * (1 - rng.random(len(indices)) ** 1.6)).astype(np.int64)).to(
            shop.device
        )
        timesteps = timesteps.clamp(max=len(alphas) - 1)
        alpha = alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents * scaling + (1 - alpha).sqrt() * noise
        with shop.autocast():
            states = text(tokens.input_ids.to(shop.device))[0]
            down, middle = controlnet(noisy, timesteps, states, condition, return_dict=False)
            predicted = unet(
                noisy, timesteps, states, down_block_additional_residuals=down, mid_block_additional_residual=middle
            ).sample
        return {"noise": functional.mse_loss(predicted.float(), noise)}

    shop.fit("controlnet", modules, loss_of, num_steps=900, learning_rate=1e-3)


# --- the folder


def assemble(shop: Workshop) -> None:
    """Write the family as float16 safetensors, from each stage's averaged weights as far as they have come."""
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import save_file

    vae: AutoencoderKL = shop.load("vae", nn.ModuleDict({"vae": build_vae()}))["vae"]
    if (shop.folder / "decoder.pt").exists():
        shop.load("decoder", nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}))
    vae.register_to_config(scaling_factor=json.loads((shop.folder / "latents.json").read_text())["scaling_factor"])
    base = shop.load("unet", build_diffusion())
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=assembled_text_encoder(base),
        tokenizer=build_tokenizer(),
        unet=base["unet"],
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    if (shop.folder / "controlnet.pt").exists():
        modules = nn.ModuleDict({"controlnet": build_controlnet(base["unet"])})
        controlnet: ControlNetModel = shop.load("controlnet", modules)["controlnet"]
    else:  # with its zero convolutions it leaves the UNet's pictures as they are
        controlnet = build_controlnet(base["unet"])
    controlnet.half().save_pretrained(shop.out / "controlnet")
    pipeline.to(dtype=torch.float16).save_pretrained(shop.out / "base_model")

    clip = shop.load("clip", build_clip())["clip"]
    (shop.out / "clip").mkdir(parents=True, exist_ok=True)
    (shop.out / "clip" / "open_clip_config.json").write_text(json.dumps(CLIP_CONFIG, indent=2) + "\n")
    save_file(
        {name: value.half().contiguous() for name, value in clip.state_dict().items()},
        shop.out / "clip" / "open_clip_model.safetensors",
    )

    write_face(shop, shop.load("face", build_face()), "face_encoder")
    write_cards(shop)
    size = sum(file.stat().st_size for file in shop.out.rglob("*") if file.is_file())
    shop.say("assemble", f"{shop.out}: {size / 1e6:.1f} MB")


CARDS = {
    "base_model": (
        "The demo's Stable Diffusion",
        "A diffusers pipeline in Stable Diffusion 1.5's layout for 64 px pictures of drawn characters. Rare tokens "
        "such as `sks` each name a person of their own; `a person` is anybody.",
        ("vae", "decoder", "unet"),
    ),
    "clip": (
        "The demo's CLIP",
        "An open_clip model (`local-dir:`) that judges how well a picture follows its prompt. It shares nothing with "
        "the text encoder of the pipeline that it judges.",
        ("clip",),
    ),
    "face_encoder": (
        "The demo's face encoder",
        "Finds the face of a drawn character and embeds who it is (`evaluation/drawn_face.py`).",
        ("face",),
    ),
    "second_face_encoder": (
        "The demo's second face encoder",
        "Another network for the same task: it scores the finalists and selects nothing (`evaluation.second_opinion`).",
        ("second_face",),
    ),
    "controlnet": (
        "The demo's ControlNet",
        "Makes the demo's Stable Diffusion follow canny edges (thresholds 100 and 200, at 64 px).",
        ("controlnet",),
    ),
}
"""Folder of the family -> title, what it is, the stages that made it."""
MEASURED_MARKS = ("<!-- measured -->", "<!-- /measured -->")
"""Between these `measure.py` writes its table."""


def write_cards(shop: Workshop) -> None:
    """A card in each folder: training data, command, time, machine; the quality is `measure.py`'s to write."""
    for folder, (title, text, stages) in CARDS.items():
        notes = {stage: shop.folder / f"{stage}.json" for stage in stages}
        facts = {stage: json.loads(file.read_text()) for stage, file in notes.items() if file.exists()}
        times = "\n".join(
            f"- stage `{stage}`: {fact['steps']} steps, {fact['seconds'] / 60:.0f} minutes on a {fact['machine']}, "
            "which other work shared"
            for stage, fact in facts.items()
        )
        people = f"{NUM_PEOPLE} drawn people in {SHOTS_PER_PERSON} shots each and {NUM_PLACES} empty places"
        card = f"""# {title}

{text}

Trained on {people} (`examples/demo/world.py`, seed 1); no photo of a real person.
Made by `python examples/demo/train_family.py`; float16 weights, Apache-2.0 as the rest of the repository.

{times or "- not trained: the weights are random"}

Measured by `python examples/demo/measure.py` on people it never saw:
{MEASURED_MARKS[0]}
{MEASURED_MARKS[1]}
"""
        (shop.out / folder / "README.md").write_text(card)


STAGES: dict[str, Callable[[Workshop], None]] = {
    "world": train_world,
    "vae": train_vae,
    "face": train_face,
    "second_face": train_second_face,
    "clip": train_clip,
    "latents": train_latents,
    "unet": train_unet,
    "decoder": train_decoder,
    "controlnet": train_controlnet,
    "assemble": assemble,
}
"""In an order that works; vae, face and clip need only the world, unet and decoder the latents."""


def main() -> None:
    """Run the stages asked for."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=here / ".work", help="painted world, checkpoints (git-ignored)")
    parser.add_argument("--out", type=Path, default=here / "family", help="where the family is assembled")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; two help the UNet on two free cores")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="0.01 tries the whole chain in minutes")
    parser.add_argument(
        "--compile", action="store_true", help="compile UNet and ControlNet: a third less time; needs a C++ compiler"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shop = Workshop(
        arguments.work, arguments.out, torch.device(arguments.device), arguments.steps_scale, arguments.compile
    )
    for stage in arguments.stages:
        STAGES[stage](shop)


if __name__ == "__main__":
    main()
