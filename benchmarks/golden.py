"""Golden curves: 100 steps of diffusers' own, unpatched scripts, and how closely `training.train` follows them.

    OMP_NUM_THREADS=1 python -m benchmarks.golden record DIFFUSERS    runs upstream's, writes tests/training/golden/
    OMP_NUM_THREADS=1 python -m benchmarks.golden compare             one table: ours, and ours with a lie in the config
    OMP_NUM_THREADS=1 python -m benchmarks.golden plot                docs/golden.png

DIFFUSERS is a checkout of diffusers; its `examples/dreambooth/train_dreambooth_lora.py` and `train_dreambooth.py` are
run as they are, each in a process of its own, on the demo's base model and photos. Its commit should be no newer than
the installed diffusers, which the scripts ask for. A minute each for `record` and `plot`, three for `compare`.

Both sides see the same draws. A script shuffles and draws by torch's global generator, which nobody else could follow;
so, while it runs, three functions that it calls answer with the draws of `training.batches.draw_batch` instead:
`AutoencoderKL.encode` with the latents, `torch.randn_like` with the noise, `torch.randint` with the timesteps. What the
script reads is held against our prompts, token by token. Its loss is read where it hands it to
`Accelerator.backward`, the norm of its gradients where `Accelerator.clip_grad_norm_` returns it, and its learning rates
from the optimizer before each step. The adapters of a LoRA are drawn by the script itself from its own `--seed`.

Photos and class pictures are in `latents.npz` as the base model's VAE sees them, rounded to half precision: what is
compared is the training, on whatever machine, and not how that machine draws pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import CLIPTextModel

from benchmarks.alternating import table
from benchmarks.trainings import CPU, DEMO, PROMPT, ROOT
from training.batches import Batch, draw_batch
from training.config import DreamBoothConfig, LoraConfig, SubjectConfig
from training.dataset import CLASS_IMAGES, Dataset, Latents, encode_dataset, load_dataset
from training.preparation import prepare_photos
from training.stable_diffusion import load_base_model, training_noise_schedule
from training.stats import STATS_FILE, read_stats
from training.train import train

GOLDEN = ROOT / "tests" / "training" / "golden"
CURVES_FILE, LATENTS_FILE = GOLDEN / "curves.json", GOLDEN / "latents.npz"
PICTURE = ROOT / "docs" / "golden.png"
SCRIPTS = {"lora": "train_dreambooth_lora.py", "dreambooth": "train_dreambooth.py"}
CLASS_PROMPT = "photo of a person"
NUM_STEPS, NUM_CLASS_IMAGES = 100, 8

CASES: Mapping[str, LoraConfig | DreamBoothConfig] = {
    "lora": LoraConfig(
        rank=4,
        learning_rate=1e-3,
        lr_scheduler="cosine",
        lr_warmup_steps=10,
        train_batch_size=2,
        max_train_steps=NUM_STEPS,
    ),
    "dreambooth": DreamBoothConfig(
        learning_rate=5e-5,
        train_batch_size=1,
        with_prior_preservation=True,
        num_class_images=NUM_CLASS_IMAGES,
        max_train_steps=NUM_STEPS,
    ),
}
"""What is trained; all else is the configs' default."""

LIES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "lora": {
        "learning_rate 0.1 % higher": {"learning_rate": 1.001e-3},
        "adam_weight_decay 0": {"adam_weight_decay": 0.0},
        "lora_alpha 0.1 % higher": {"lora_alpha": 4.004},
        "lr_warmup_steps 11": {"lr_warmup_steps": 11},
    },
    "dreambooth": {
        "learning_rate 0.1 % higher": {"learning_rate": 5.005e-5},
        "adam_weight_decay 0": {"adam_weight_decay": 0.0},
        "prior_loss_weight 0.999": {"prior_loss_weight": 0.999},
        "max_grad_norm 1.01": {"max_grad_norm": 1.01},
    },
}
"""Small untruths about a case, which a comparison worth its name has to see."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A training, a number a step."""

    loss: Numbers
    gradient_norm: Numbers
    """Of all gradients together, before clipping."""
    learning_rate: Numbers
    """At which the step was taken."""

    QUANTITIES = ("loss", "gradient_norm", "learning_rate")

    def gap(self, other: Curve, quantity: str) -> Numbers:
        """How far the other one is from this one at each of its steps, as a part of this one's mean size."""
        own, theirs = getattr(self, quantity), getattr(other, quantity)
        relative: Numbers = np.abs(theirs - own[: len(theirs)]) / np.abs(own).mean()
        return relative


# --- what both sides train on


def golden_dataset() -> Dataset:
    """The demo's photos and eight class pictures, as `latents.npz` has them."""
    with np.load(LATENTS_FILE) as file:
        latents = {name: torch.from_numpy(file[name]).float() for name in file.files}
    num_photos = len(latents["photos_mean"])
    return Dataset(
        dir=GOLDEN,
        base_model=str(DEMO / "family" / "base_model"),
        instance_prompt=PROMPT,
        class_prompt=CLASS_PROMPT,
        prompts=(PROMPT,) * num_photos,
        repeats=(1,) * num_photos,
        latents=Latents(latents["photos_mean"], latents["photos_std"]),
        flipped_latents=None,
        class_latents=Latents(latents["class_mean"], latents["class_std"]),
    )


def prepare_pictures(folder: Path, class_images: int = 0) -> Dataset:
    """The demo's photos, encoded anew, and class pictures that the base model draws."""
    subject = SubjectConfig(
        photos=DEMO / "photos", instance_prompt=PROMPT, class_prompt=CLASS_PROMPT, resolution=64, crop="center"
    )
    prepare_photos(subject, folder)
    encode_dataset(folder, str(DEMO / "family" / "base_model"), class_images=class_images, device=CPU)
    return load_dataset(folder)


# --- ours


def follow(config: LoraConfig | DreamBoothConfig, dataset: Dataset, num_steps: int = NUM_STEPS) -> Curve:
    """Our training's curve, or its first steps."""
    with TemporaryDirectory() as out_dir:
        assert next(train(config, dataset, [num_steps], out_dir=out_dir, device=CPU)).step == num_steps
        steps = read_stats(Path(out_dir) / STATS_FILE)
    return Curve(
        np.array([step.loss for step in steps]),
        np.array([step.gradient_norm for step in steps], dtype=np.float64),
        np.array([step.learning_rate for step in steps]),
    )


# --- upstream's


def recorded_curves() -> dict[str, Curve]:
    """Upstream's curves, by case."""
    curves = json.loads(CURVES_FILE.read_text(encoding="utf-8"))["curves"]
    return {case: Curve(*(np.array(numbers[name]) for name in Curve.QUANTITIES)) for case, numbers in curves.items()}


def record(diffusers: Path) -> None:
    """Run upstream's scripts and write `tests/training/golden/` anew."""
    GOLDEN.mkdir(exist_ok=True)
    with TemporaryDirectory() as work:
        pictures = prepare_pictures(Path(work) / "dataset", NUM_CLASS_IMAGES)
        assert pictures.class_latents is not None, "they were asked for"
        halves = {
            "photos_mean": pictures.latents.mean,
            "photos_std": pictures.latents.std,
            "class_mean": pictures.class_latents.mean,
            "class_std": pictures.class_latents.std,
        }
        numbers: dict[str, Any] = {name: tensor.half().numpy() for name, tensor in halves.items()}
        np.savez_compressed(LATENTS_FILE, **numbers)
        class_dir = Path(work) / "class"
        class_dir.mkdir()
        for picture in sorted((Path(work) / "dataset" / CLASS_IMAGES).glob("*.png")):
            shutil.copy(picture, class_dir)
        curves = {
            case: _record_in_a_process(diffusers / "examples" / "dreambooth" / script, case, Path(work))
            for case, script in SCRIPTS.items()
        }
    packages = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy")
    told = {
        "what": "diffusers' own scripts, unpatched, with the draws of training.batches; see benchmarks/golden.py",
        "commit": _commit_of(diffusers),
        "scripts": {
            script: {
                "git_blob": git_blob((diffusers / "examples" / "dreambooth" / script).read_bytes()),
                "command": ["python", script, *arguments_of(case, "OUT", "CLASS_IMAGES")],
            }
            for case, script in SCRIPTS.items()
        },
        "versions": {"python": platform.python_version()} | {package: version(package) for package in packages},
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, one thread, float32",
        "curves": curves,
    }
    text = json.dumps(told, indent=1)
    CURVES_FILE.write_text(text + "\n", encoding="utf-8")


def arguments_of(case: str, out_dir: str, class_dir: str) -> list[str]:
    """A case as upstream's command line says it, from the root of this repository."""
    config = CASES[case]
    named = {
        "pretrained_model_name_or_path": (DEMO / "family" / "base_model").relative_to(ROOT),
        "instance_data_dir": (DEMO / "photos").relative_to(ROOT),
        "instance_prompt": PROMPT,
        "output_dir": out_dir,
        "resolution": 64,
        "train_batch_size": config.train_batch_size,
        "learning_rate": config.learning_rate,
        "lr_scheduler": config.lr_scheduler,
        "lr_warmup_steps": config.lr_warmup_steps,
        "max_train_steps": config.max_train_steps,
        "mixed_precision": config.mixed_precision,
        "seed": config.seed,
    }
    if isinstance(config, LoraConfig):
        named["rank"] = config.rank
    switches = ["--center_crop"]
    if config.with_prior_preservation:
        named |= {
            "class_data_dir": class_dir,
            "class_prompt": CLASS_PROMPT,
            "num_class_images": config.num_class_images,
            "prior_loss_weight": config.prior_loss_weight,
        }
        switches.append("--with_prior_preservation")
    return [f"--{name}={value}" for name, value in named.items()] + switches


def git_blob(content: bytes) -> str:
    """The name that git gives a file's content: `git ls-tree` of upstream's commit shows the same one."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _commit_of(diffusers: Path) -> str:
    command = ["git", "-C", str(diffusers), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _record_in_a_process(script: Path, case: str, work: Path) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "benchmarks.golden", "turn", str(script.resolve()), case, str(work)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{script.name}:\n{process.stderr[-3000:]}")
    numbers: dict[str, list[float]] = json.loads((work / f"{case}.json").read_text(encoding="utf-8"))
    return numbers


def take_turn(script: Path, case: str, work: Path) -> None:
    """Run the script as `python SCRIPT ...` does, and write down its curve."""
    written: dict[str, list[float]] = {name: [] for name in Curve.QUANTITIES}
    sys.argv = [str(script), *arguments_of(case, str(work / "out"), str(work / "class"))]
    with _Draws(CASES[case], golden_dataset()).told(), _written_down(written):
        runpy.run_path(str(script), run_name="__main__")
    assert {len(numbers) for numbers in written.values()} == {NUM_STEPS}, "a number a step"
    (work / f"{case}.json").write_text(json.dumps(written), encoding="utf-8")


@dataclass
class _Draws:
    """What upstream's script is told when it draws: each micro-step's batch, once, in the order in which it asks."""

    config: LoraConfig | DreamBoothConfig
    dataset: Dataset
    micro_steps: int = 0
    pending: list[str] = field(default_factory=list)
    """What the script has not asked for yet of the batch that it is at."""
    batch: Batch | None = None

    @contextmanager
    def told(self) -> Iterator[None]:
        base = load_base_model(self.dataset.base_model)
        num_timesteps = training_noise_schedule(base).config.num_train_timesteps
        randn_like, randint = torch.randn_like, torch.randint

        def encode(_vae: AutoencoderKL, pixels: Tensor) -> SimpleNamespace:
            assert not self.pending, f"the script has left out {self.pending}"
            self.batch = draw_batch(self.config, self.dataset, self.micro_steps, num_timesteps)
            self.micro_steps += 1
            self.pending = ["latents", "noise", "timesteps", "prompts"]
            assert pixels.shape == (len(self.batch.latents), 3, 64, 64)
            return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda: self._next("latents")))

        def noise(like: Tensor, *arguments: Any, **named: Any) -> Tensor:
            return self._next("noise") if self.pending else randn_like(like, *arguments, **named)

        def timesteps(*arguments: Any, **named: Any) -> Tensor:
            return self._next("timesteps") if self.pending else randint(*arguments, **named)

        def read(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            if isinstance(module, CLIPTextModel) and self.pending:
                assert self.batch is not None
                expected = base.tokenizer(self.batch.prompts, padding="max_length", return_tensors="pt").input_ids
                assert torch.equal(inputs[0], expected), "the script reads other prompts"
                self._next("prompts")

        hook = register_module_forward_pre_hook(read)
        with ExitStack() as stack:
            stack.callback(hook.remove)
            stack.enter_context(patch.object(AutoencoderKL, "encode", encode))
            stack.enter_context(patch.object(torch, "randn_like", noise))
            stack.enter_context(patch.object(torch, "randint", timesteps))
            yield
        assert not self.pending, f"the script has left out {self.pending}"

    def _next(self, what: str) -> Any:
        assert self.pending.pop(0) == what, f"the script asks for {what}, before {self.pending}"
        return getattr(self.batch, what)


@contextmanager
def _written_down(written: dict[str, list[float]]) -> Iterator[None]:
    """Append what the script hands to accelerate and to its optimizer."""
    backward, clip = Accelerator.backward, Accelerator.clip_grad_norm_

    def note_loss(accelerator: Accelerator, loss: Tensor, **named: Any) -> None:
        written["loss"].append(loss.item())
        backward(accelerator, loss, **named)

    def note_norm(accelerator: Accelerator, *arguments: Any, **named: Any) -> Tensor:
        norm: Tensor = clip(accelerator, *arguments, **named)
        written["gradient_norm"].append(norm.item())
        return norm

    def note_rate(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        written["learning_rate"].append(float(optimizer.param_groups[0]["lr"]))

    hook = register_optimizer_step_pre_hook(note_rate)
    with patch.object(Accelerator, "backward", note_loss), patch.object(Accelerator, "clip_grad_norm_", note_norm):
        yield
    hook.remove()


# --- side by side


def compare(*, lies: bool = True) -> str:
    """A row for each case, and for each lie about it: the largest gap, and that of the first ten steps."""
    dataset, golden, rows = golden_dataset(), recorded_curves(), []
    for case, config in CASES.items():
        for said, lie in {"as it is": {}, **(LIES[case] if lies else {})}.items():
            curve = follow(config.model_copy(update=dict(lie)), dataset)
            gaps = [golden[case].gap(curve, quantity) for quantity in Curve.QUANTITIES]
            rows.append([case, said, *(f"{gap.max():.1e}" for gap in gaps), f"{gaps[0][:10].max():.1e}"])
    header = ("case", "config", *Curve.QUANTITIES, "loss, first ten steps")
    return table(header, rows)


def plot() -> None:
    """Both curves of each case, and what lies between them."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    import matplotlib.pyplot as plt

    dataset, golden = golden_dataset(), recorded_curves()
    figure, axes = plt.subplots(3, len(CASES), figsize=(12, 8), sharex=True, layout="constrained")
    steps = np.arange(1, NUM_STEPS + 1)
    titles = {"lora": "LoRA, rank 4, batch 2", "dreambooth": "DreamBooth, prior preservation, batch 1"}
    for column, (case, config) in enumerate(CASES.items()):
        ours = follow(config, dataset)
        theirs = golden[case]
        lied = follow(config.model_copy(update=dict(LIES[case]["learning_rate 0.1 % higher"])), dataset)
        for row, quantity in enumerate(("loss", "gradient_norm")):
            axis = axes[row][column]
            axis.plot(steps, getattr(theirs, quantity), color="#f2a03d", linewidth=4, label="diffusers' script")
            axis.plot(steps, getattr(ours, quantity), color="#1f4e79", linewidth=1.2, label="dreamsweep")
            axis.set_ylabel(quantity.replace("_", " "))
            axis.set_yscale("log")
        axes[0][column].set_title(titles[case])
        axis = axes[2][column]
        axis.plot(steps, theirs.gap(ours, "loss"), color="#1f4e79", label="dreamsweep")
        axis.plot(steps, theirs.gap(lied, "loss"), color="#b03a2e", label="dreamsweep with a rate 0.1 % higher")
        axis.set_yscale("symlog", linthresh=1e-8)
        axis.set_ylim(-1e-9, 1)
        axis.set_ylabel("gap in the loss,\nas a part of its mean")
        axis.set_xlabel("step")
    handles = [*axes[0][0].get_lines(), axes[2][0].get_lines()[1]]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(PICTURE, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Record, compare or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("record").add_argument("diffusers", type=Path, help="a checkout of diffusers")
    verbs.add_parser("compare").add_argument("--no-lies", action="store_true", help="the cases as they are")
    verbs.add_parser("plot")
    turn = verbs.add_parser("turn")
    for name, kind in (("script", Path), ("case", str), ("work", Path)):
        turn.add_argument(name, type=kind)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.verb == "record":
        record(options.diffusers)
    elif options.verb == "turn":
        take_turn(options.script, options.case, options.work)
    elif options.verb == "compare":
        print(compare(lies=not options.no_lies))
    else:
        plot()


if __name__ == "__main__":
    main()
