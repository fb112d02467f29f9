"""A sweep file that suits somebody's photos, as text with its reasons in comments."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from evaluation.face_encoders import check_face_encoder, is_here, load_face_encoder
from evaluation.rare_token import has_rare_token
from sweeps.clusters.machine import Gpu
from sweeps.config import SweepConfig, parse_sweep_text
from sweeps.held_out import num_held_out_by_default
from sweeps.imports.write import lawful_name, scalar
from sweeps.init.budget import USUAL, Estimate, Size, estimate, largest_that_fits, scoring_points, steps_for
from sweeps.init.photos import Photos
from sweeps.init.prompts import prompts_for
from sweeps.init.speed import Speed
from sweeps.photo_remarks import look_for_faces, remarks_on_folders, remarks_on_photos
from sweeps.plan import base_sizes, check_sweep, training_bytes
from sweeps.prompts import STABLE_DIFFUSION_15 as READER_OF_STABLE_DIFFUSION_15
from sweeps.space import explain
from sweeps.wording import bytes_text, duration_text
from training.base_model import check_base_model
from training.config import DreamBoothConfig
from training.errors import UserError
from training.paths import NameOrPath, relative_to
from training.reading import TextReader
from training.tokenizer import reader_of_base_model

_NAME_OR_PATH: TypeAdapter[str] = TypeAdapter(NameOrPath)
WIDTH = 120
SOURCE = "the sweep file for these photos"
STABLE_DIFFUSION_15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
IMAGES_PER_PROMPT = 4
LEAST_MIB_FOR_DREAMBOOTH = 15_000
"""The reference experiment trained a full checkpoint on a Tesla T4, which has 15,360 MiB."""
ROOMY_MIB = 24_000
"""From where AdamW's moments fit in full precision."""
ACTIVATIONS_BYTES = 6_000_000_000
"""Beside what a full DreamBooth trial trains: a guess, on the safe side of the T4's 15 GB less 9.8 GB."""
MOST_ON_ONE_GPU = 4
LARGE_MIB, LARGE_PACK = 40_000, 16


@dataclass(frozen=True)
class Wanted:
    """What the user says; the rest follows from the photos and the machine."""

    class_word: str
    token: str
    base_model: str = STABLE_DIFFUSION_15
    face: str | None = None
    """Face encoder; None is the default one."""
    name: str | None = None

    @property
    def who(self) -> str:
        """The rare token and the class word: `sks woman`."""
        return f"{self.token} {self.class_word}"


@dataclass(frozen=True)
class Written:
    """A sweep file's text, and what the user should know of the photos."""

    text: str
    remarks: tuple[str, ...]
    config: SweepConfig
    estimate: Estimate


def write_sweep(
    photos: Photos, wanted: Wanted, gpus: Sequence[Gpu], speed: Speed, budget: float | None = None
) -> Written:
    """The sweep file, checked as `dreamsweep check` checks it, and faces looked for where the encoder is here.

    Args:
        photos: as they were looked at.
        wanted: what the user says.
        gpus: of this machine.
        speed: by which time is estimated.
        budget: seconds; None is a sweep of the usual size.

    Raises:
        UserError: a photo, a word or a model cannot be used, or the budget holds no sweep.
    """
    _check_words(wanted)
    check_base_model(wanted.base_model)
    draft = _Draft(photos, wanted, tuple(gpus), speed)
    num_gpus = max(1, len(gpus))
    if budget is None:
        size = USUAL if draft.holds_dreambooth else Size(USUAL.num_trials, 1, USUAL.num_prompts, dreambooth=False)
        config = draft.config(size)
        needed = estimate(config, speed, num_gpus)
    else:
        size, config, needed = largest_that_fits(draft.config, speed, num_gpus, budget)
    text = "\n".join([*draft.head(needed, budget), *draft.body(size), ""])
    warnings = check_sweep(config).warnings
    remarks = [*remarks_on_folders(photos.folder, None), *remarks_on_photos(config), *warnings, *_on_faces(config)]
    if (free := shutil.disk_usage(Path.cwd()).free) < needed.plan.disk_bytes:
        remarks.append(
            f"the sweep needs about {bytes_text(needed.plan.disk_bytes)} of disk, {bytes_text(free)} are free here: "
            "give `run` another --out, take dreambooth out, or give a smaller --budget"
        )
    return Written(text, tuple(remarks), config, needed)


def name_or_path(option: str, text: str) -> str:
    """A model's name as it is, what is or looks like a path as an absolute one: the file may be put anywhere.

    Raises:
        UserError: no file system can hold such a path.
    """
    try:
        return _NAME_OR_PATH.validate_python(text, context=relative_to(Path.cwd()))
    except ValidationError as error:
        raise UserError(f"{option}: {explain(error)[1]}") from None


def _check_words(wanted: Wanted) -> None:
    for option, words in (("--class-word", wanted.class_word), ("--token", wanted.token)):
        if not words or words != " ".join(words.split()) or not words.isprintable() or not words[0].isalnum():
            raise UserError(f"{option}: must be a word or a few, such as woman or sks, got {words!r}")
    if has_rare_token(wanted.class_word, wanted.token):
        raise UserError(f"--class-word: must not hold the token {wanted.token!r}, got {wanted.class_word!r}")


def _on_faces(config: SweepConfig) -> list[str]:
    encoder = config.evaluation.face.encoder
    if not is_here(encoder):
        check_face_encoder(encoder, weights_present=False)
        return [
            f"faces were not looked for: the weights of {encoder} are not here; `run` fetches them and looks before "
            "the first trial"
        ]
    return look_for_faces(config, load_face_encoder(encoder, "cpu"))


def with_article(words: str) -> str:
    """`a woman`, `an old man`."""
    return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class _Draft:
    """Everything but the size."""

    photos: Photos
    wanted: Wanted
    gpus: tuple[Gpu, ...]
    speed: Speed

    def config(self, size: Size) -> SweepConfig:
        """The sweep of a size, as its text is read."""
        return parse_sweep_text("\n".join(self.body(size)), SOURCE, Path.cwd())

    @property
    def memory_mib(self) -> int | None:
        """Of the smallest GPU; None without one, or where its driver does not say."""
        return min((gpu.memory_mib for gpu in self.gpus), default=0) or None

    @property
    def holds_dreambooth(self) -> bool:
        """Does a full DreamBooth trial fit? Where nothing is known it is taken to."""
        return self.memory_mib is None or self.memory_mib >= LEAST_MIB_FOR_DREAMBOOTH

    @property
    def is_tight(self) -> bool:
        """Do AdamW's full moments not fit?"""
        return self.memory_mib is not None and self.memory_mib < ROOMY_MIB

    @cached_property
    def resolution(self) -> int:
        """Of the training pictures."""
        return self.photos.resolution(base_sizes(self.wanted.base_model).native_size)

    @cached_property
    def reader(self) -> TextReader:
        """Of the prompts: the base model's text encoder, or one like Stable Diffusion 1.5's where it is not here."""
        return reader_of_base_model(self.wanted.base_model) or READER_OF_STABLE_DIFFUSION_15

    # --- text

    def head(self, needed: Estimate, budget: float | None) -> Iterator[str]:
        """What was looked at, and what it will take."""
        within = "" if budget is None else f", within a budget of {duration_text(budget)}"
        if self.gpus:
            machine = f"this machine's {len(self.gpus)} x {self.gpus[0].name}"
        else:
            machine = (
                "a machine without a GPU as well as with one: none was found here, so mixed_precision is left at no, "
                "which trains anywhere (with a GPU, fp16 is faster)"
            )
        disk = bytes_text(needed.plan.disk_bytes)
        yield from _comment(f"A sweep for {self.photos.folder.resolve().name}: {'; '.join(self.photos.lines())}.")
        yield from _comment(
            f"About {duration_text(needed.seconds)}{within} and {disk} of disk, the second stage included, by "
            f"{self.speed.text}; a tenth is added for the rest. That LoRA trials share passes is not counted and saves "
            f"time. Written for {machine}."
        )
        yield from _comment(
            "Search space and first trials are published settings (sweeps/priors.py, docs/design/019-priors.md). "
            "dreamsweep check FILE says what it takes, dreamsweep run FILE runs it."
        )

    def body(self, size: Size) -> Iterator[str]:
        """The sections."""
        yield f"name: {scalar(self.wanted.name or lawful_name(self.photos.folder.resolve().name, 'photos'))}"
        yield f"base_model: {scalar(self.wanted.base_model)}"
        yield from self._subject()
        yield from self._methods(size)
        yield "search:"
        yield "  sampler: tpe"
        yield f"  num_trials: {size.num_trials}"
        yield "  priors: published # the first trials, at most a third of them"
        yield from self._evaluation(size)
        yield from self._resources(size)

    def _subject(self) -> Iterator[str]:
        word, wanted = self.wanted.class_word, self.wanted
        yield "subject:"
        yield f"  photos: {scalar(str(self.photos.folder.resolve()))}"
        yield f"  instance_prompt: {scalar(f'a photo of {wanted.who}')}"
        yield f"  class_prompt: {scalar(f'a photo of {with_article(word)}')}"
        yield f"  rare_token: {scalar(wanted.token)}"
        native = base_sizes(wanted.base_model).native_size
        why = "the base model's own size" if self.resolution == native else "what most of these photos carry"
        yield f"  resolution: {self.resolution} # {why}"

    def _steps(self, size: Size) -> int:
        return int(size.part_of_steps * steps_for(self._num_trained))

    def _methods(self, size: Size) -> Iterator[str]:
        steps = self._steps(size)
        precision = ["    mixed_precision: fp16"] if self.gpus else []
        yield "methods:"
        yield "  lora:"
        yield "    rank: {choices: [4, 16, 128]} # published: 1-16 (LyCORIS' author), 16 (ai-toolkit), 128 (EasyPhoto)"
        yield "    learning_rate: {low: 5.0e-5, high: 1.0e-3, log: true} # published: 5e-5 to 5e-4"
        per_photo = f"{steps / self._num_trained:.0f} a trained photo"
        yield f"    max_train_steps: {steps} # {per_photo}; published: 50 to 200, for faces 500 to 1200 in all"
        yield "    train_batch_size: 1"
        yield from precision
        if not (size.dreambooth and self.holds_dreambooth):
            why = (
                "a budget that is larger has full DreamBooth, too"
                if self.holds_dreambooth
                else f"full DreamBooth needs a GPU of 15 GB, this one has {(self.memory_mib or 0) / 1024:.0f}"
            )
            yield f"  # {why}"
            return
        yield "  dreambooth:"
        yield "    learning_rate: {low: 5.0e-7, high: 5.0e-6, log: true} # published: 1e-6 to 5e-6"
        yield f"    max_train_steps: {steps}"
        yield "    train_batch_size: 1"
        yield "    with_prior_preservation: true # matters for faces, says Hugging Face's study"
        yield "    num_class_images: 100 # drawn once for all trials"
        yield from precision
        if self.is_tight:
            yield "    use_8bit_adam: true # for this GPU's memory; pip install 'dreamsweep[adam8bit]'"
            yield "    gradient_checkpointing: true # likewise"

    @property
    def _num_trained(self) -> int:
        return len(self.photos.sizes) - num_held_out_by_default(len(self.photos.sizes))

    def _evaluation(self, size: Size) -> Iterator[str]:
        points = scoring_points(self._steps(size))
        yield "evaluation:"
        yield "  prompts: # places, clothes, styles, framings: change whatever your photos show already"
        prompts = prompts_for(self.wanted.who, self.photos.captions, size.num_prompts, self.reader)
        yield from (f"    - {scalar(prompt)}" for prompt in prompts)
        yield f"  images_per_prompt: {IMAGES_PER_PROMPT} # one picture cannot rank anything"
        yield "  screening: {images_per_prompt: 1} # all of them only of the quarter that could still win"
        yield f"  at_steps: {points} # one run is scored at all of them; likeness is reported best as early as 250"
        if self.wanted.face is not None:
            yield f"  face: {{encoder: {scalar(self.wanted.face)}}}"

    def _resources(self, size: Size) -> Iterator[str]:
        if not self.gpus:
            return
        memory = self.memory_mib
        yield "resources:"
        if size.dreambooth and self.holds_dreambooth:
            yield f"  gpus_per_trial: {{lora: 1, dreambooth: {self._part_for_dreambooth():g}}}"
        else:
            yield "  gpus_per_trial: 1"
        if memory is not None and memory >= LARGE_MIB:
            yield f"  pack_size: {LARGE_PACK} # LoRA trials in one pass; as many as memory holds"

    def _part_for_dreambooth(self) -> float:
        """Of a GPU: so that as many trials share one as it holds."""
        if self.memory_mib is None:
            return 1.0
        trial = DreamBoothConfig(
            with_prior_preservation=True,
            use_8bit_adam=self.is_tight,
            mixed_precision="fp16",
        )
        needed = training_bytes(trial, base_sizes(self.wanted.base_model)) + ACTIVATIONS_BYTES
        together = min(MOST_ON_ONE_GPU, max(1, int(self.memory_mib * 2**20 // needed)))
        return int(100 / together) / 100


def _comment(text: str) -> list[str]:
    """Never a line that could be read as anything but a comment, whatever a name holds."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    return textwrap.wrap(clean, WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)
