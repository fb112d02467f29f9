"""Models from anywhere in one table: the same prompts from the same noise, scored by the same judges.

LoRA files, whole checkpoints and a sweep's checkpoints stand beside the base model, best first by the champion's rule.
Pictures are made and scored as a trial's are, so that an exported checkpoint has its trial's scores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from pydantic import ValidationError

from evaluation.config import EvaluationConfig
from evaluation.face_encoders import load_face_encoder
from evaluation.generate import generation_dtype, load_images
from evaluation.pictures import grid
from evaluation.prompt import load_clip
from evaluation.references import embed_references
from evaluation.score import prompt_lines
from evaluation.score_model import Judges, score_model
from evaluation.scores import Score
from sweeps.config import ChampionConfig
from sweeps.ledger.records import BASE_TRIAL, ScoredCheckpoint
from sweeps.outputs import check_output, whole_output
from sweeps.prompts import Text, refuse_cut
from sweeps.results.intervals import Difference, Family, Interval, interval_over_pictures
from sweeps.results.rule import ChampionRule
from sweeps.wording import public_name
from training.elsewhere import BASE_NAME, ElsewhereModel, model_names, open_model
from training.errors import UserError
from training.files import whole_file
from training.finite_pictures import NonFinitePictureError
from training.lora_file import LoraFile
from training.names import name_text, shown
from training.pictures import look_into
from training.stable_diffusion import base_pipeline, choose_device
from training.tokenizer import reader_of_pipeline

INDEX = "comparison.json"
SCORE_INDEX = "score.json"
SHEET = "sheet.png"
Progress = Callable[[str], None]
"""Told what is done next, as a line."""


@dataclass(frozen=True)
class Asked:
    """What every model is asked for, and what its pictures are compared with."""

    evaluation: EvaluationConfig
    photos: Path
    rare_token: str
    """Word(s) taken out of the prompts before CLIP reads them."""

    @classmethod
    def of(cls, prompts: Path, photos: Path, rare_token: str, settings: dict[str, Any]) -> Asked:
        """The prompts of a file, one a line, under the settings of an evaluation that are given (None: its default).

        Raises:
            UserError: no prompt, or a setting is not in its range.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        lines = prompt_lines(prompts)
        if not lines:
            raise UserError(f"prompts: need 1 or more lines in {shown(prompts)}, got 0")
        try:  # no training, whose steps would be looked at
            evaluation = EvaluationConfig.model_validate({"prompts": lines, "at_steps": [0], **given})
        except ValidationError as error:
            first = error.errors()[0]
            place = str(first["loc"][0]).replace("_", "-")
            raise UserError(f"--{place}: {first['msg']}, got {first['input']!r}") from None
        return cls(evaluation, photos, rare_token)

    def judges(self) -> tuple[Judges, list[str]]:
        """The judges, loaded, and what is to be minded about the photos."""
        encoder = load_face_encoder(self.evaluation.face.encoder)
        clip = load_clip(self.evaluation.clip)
        refuse_cut(self._texts(), clip.reader)
        folder = look_into(self.photos, kohya=True)
        references = embed_references(folder.pictures, encoder)
        return Judges(references, encoder, clip, self.rare_token), folder.remarks()

    def _texts(self) -> list[Text]:
        return [Text(f"prompts: line {number}", text) for number, text in enumerate(self.evaluation.prompts, start=1)]

    def score(
        self,
        model: ElsewhereModel | None,
        name: str,
        base_model: str | None,
        judges: Judges,
        images_dir: Path,
        progress: Progress,
    ) -> Score:
        """Make and score a model's pictures; None is the base model itself.

        Raises:
            UserError: its text encoder would not read a prompt to its end, or its pictures are not finite.
        """
        progress(f"{name}: loading")
        device = choose_device(None)
        dtype = generation_dtype(device)
        if model is None:
            assert base_model is not None, "there is a model or a base model"
            pipeline = base_pipeline(base_model, device, dtype, share_frozen=True)
        else:
            pipeline = model.pipeline(base_model, device, dtype)
        refuse_cut(self._texts(), reader_of_pipeline(pipeline))
        try:
            return score_model(
                pipeline,
                self.evaluation,
                judges,
                images_dir,
                name,
                lambda made, of_all: progress(f"{name}: picture {made} of {of_all}"),
            )
        except NonFinitePictureError as error:
            raise UserError(f"{shown(model.path if model else str(base_model))}: {error}") from error


# --- one model ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredModel:
    """One model's score."""

    score: Score
    about: dict[str, Any]
    """Further keys of the JSON object: which model, of what, and where its pictures are."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.score.model_dump(mode="json"), **self.about}


def score_one(
    path: Path | None, base_model: str | None, asked: Asked, out: Path | None, progress: Progress = lambda _: None
) -> ScoredModel:
    """Score a model's pictures of the prompts; they are kept where `out` is given.

    Args:
        path: a LoRA file, a whole checkpoint or a sweep's; None is the base model itself.
        base_model: what a LoRA is a change of.
        asked: prompts, photos and judges.
        out: folder for the pictures.
        progress: told what is done next.

    Raises:
        UserError: as `open_model`, `Asked.score` and `check_output`.
    """
    out = None if out is None else check_output(out, SCORE_INDEX)
    model = None if path is None else open_model(path, base_model)
    name = BASE_NAME if model is None else model_names([model])[0]
    progress("loading the judges")
    judges, about_photos = asked.judges()
    about = {
        "model": name,
        "kind": BASE_TRIAL if model is None else model.kind,
        "base_model": None if base_model is None else public_name(base_model),
        "prompts": asked.evaluation.prompts,
        "images_per_prompt": asked.evaluation.images_per_prompt,
        "seed": asked.evaluation.seed,
        "images_dir": None if out is None else name_text(out),
        **_said_by(model),
    }
    if out is None:
        with TemporaryDirectory(prefix="dreamsweep-") as folder:
            score = asked.score(model, name, base_model, judges, Path(folder), progress)
    else:
        index: dict[str, Any] = {}
        with whole_output(out, SCORE_INDEX, index) as part:
            score = asked.score(model, name, base_model, judges, part, progress)
            index |= {**score.model_dump(mode="json"), **about}
    remarks = (*about_photos, *score.remarks, *_remarks(model, name, asked))
    return ScoredModel(score.model_copy(update={"remarks": tuple(dict.fromkeys(remarks))}), about)


# --- several ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """A row of the table."""

    name: str
    model: ElsewhereModel | None
    """None is the base model."""
    score: Score
    images_dir: str
    """Within the comparison's folder."""
    interval: Interval | None
    """Of its face similarity, over other prompts like these."""
    follows_prompts: bool
    lead: Difference | None = None
    """The leader's face similarity minus its own; None of the leader itself."""

    @property
    def counted(self) -> dict[str, float]:
        """Picture -> what it counts as face similarity."""
        return {image.key: image.counted(self.score.no_face_similarity) for image in self.score.images}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        lead = self.lead
        return {
            "name": self.name,
            "kind": BASE_TRIAL if self.model is None else self.model.kind,
            "what": "base model" if self.model is None else self.model.what,
            "file": None if self.model is None else name_text(self.model.path),
            "face_similarity": self.score.face_similarity,
            "face_similarity_low": self.interval and self.interval.low,
            "face_similarity_high": self.interval and self.interval.high,
            "prompt_alignment": self.score.prompt_alignment,
            "follows_prompts": self.follows_prompts,
            "num_images": self.score.num_images,
            "num_faces": self.score.num_faces,
            "lead": None if lead is None else lead.mean,
            "lead_low": lead.interval.low if lead and lead.interval else None,
            "lead_high": lead.interval.high if lead and lead.interval else None,
            "lead_verdict": None if lead is None else lead.verdict,
            "images_dir": self.images_dir,
            "images": [image.model_dump(mode="json") for image in self.score.images],
            **_said_by(self.model),
        }


@dataclass(frozen=True)
class Comparison:
    """Models from anywhere, best first, with the base model among them."""

    rows: tuple[Compared, ...]
    base_model: str
    asked: Asked
    rule: str
    """In words."""
    dir: Path
    remarks: tuple[str, ...]

    @property
    def sheet(self) -> Path:
        """A row a prompt, a column a model."""
        return self.dir / SHEET

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        evaluation, first = self.asked.evaluation, self.rows[0].score
        return {
            "base_model": public_name(self.base_model),
            "prompts": evaluation.prompts,
            "images_per_prompt": evaluation.images_per_prompt,
            "seed": evaluation.seed,
            "face_encoder": first.face_encoder,
            "clip": first.clip,
            "rule": self.rule,
            "models": [row.as_dict() for row in self.rows],
            "dir": name_text(self.dir),
            "sheet": name_text(self.sheet),
            "remarks": list(self.remarks),
        }


def compare_models(
    paths: Sequence[Path], base_model: str, asked: Asked, out: Path, progress: Progress = lambda _: None
) -> Comparison:
    """Compare models with each other and with the base model, on the same prompts and noise.

    Args:
        paths: LoRA files, whole checkpoints (file or folder), checkpoints of sweeps.
        base_model: what the LoRAs are changes of.
        asked: prompts, photos and judges.
        out: folder for pictures, sheet and `comparison.json`; whole when this returns, else as it was.
        progress: told what is done next.

    Raises:
        UserError: one of the files is none of these, does not fit the base model, or makes no finite pictures.
    """
    out = check_output(out, INDEX)
    models = [open_model(path, base_model) for path in paths]  # all are looked at before the first is asked
    names = [BASE_NAME, *model_names(models)]
    progress("loading the judges")
    judges, about_photos = asked.judges()
    index: dict[str, Any] = {}
    with whole_output(out, INDEX, index) as part:
        scored: list[tuple[str, ElsewhereModel | None, Score, str]] = []
        for number, (name, model) in enumerate(zip(names, [None, *models], strict=True)):
            folder = f"{number:02d}-{_folder_name(name)}"
            score = asked.score(model, name, base_model, judges, part / folder, progress)
            scored.append((name, model, score, folder))
        remarks = [*about_photos, *scored[0][2].remarks]
        remarks += [line for name, model, *_ in scored for line in _remarks(model, name, asked)]
        rule = _rule(scored[0][2])
        comparison = Comparison(_ranked(scored, rule), base_model, asked, rule.text, out, tuple(dict.fromkeys(remarks)))
        progress("drawing the sheet")
        with whole_file(part / SHEET) as file:
            _sheet(comparison, part).save(file, format="PNG")
        index |= comparison.as_dict()
    return comparison


def _folder_name(name: str) -> str:
    return re.sub(r"[^\w-]+", "_", name)[:60]


def _said_by(model: ElsewhereModel | None) -> dict[str, Any]:
    """What a LoRA file says of itself."""
    if model is None or not isinstance(model.content, LoraFile):
        return {}
    lora = model.content
    return {
        "ranks": list(lora.ranks),
        "alphas": list(lora.alphas),
        "trains_text_encoder": bool(lora.text_encoder),
        "says_base_model": lora.base_model_name,
        "says_trigger_phrase": lora.trigger_phrase,
    }


def _remarks(model: ElsewhereModel | None, name: str, asked: Asked) -> list[str]:
    """A LoRA that nobody calls by its words is not seen at its best."""
    if model is None or not isinstance(model.content, LoraFile):
        return []
    phrase = model.content.trigger_phrase
    if phrase is None or any(phrase.casefold() in prompt.casefold() for prompt in asked.evaluation.prompts):
        return []
    return [f"{shown(name)} says that {shown(phrase)!r} calls it, which stands in none of the prompts"]


def _entry(score: Score) -> ScoredCheckpoint:
    """As the rule knows it."""
    assert score.prompt_alignment is not None, "a CLIP model was given"
    return ScoredCheckpoint(
        step=0,
        checkpoint=None,
        images=None,
        face_similarity=score.face_similarity,
        no_face_similarity=score.no_face_similarity,
        prompt_alignment=score.prompt_alignment,
        num_images=score.num_images,
        num_faces=score.num_faces,
        image_scores=score.images,
    )


def _rule(base: Score) -> ChampionRule:
    return ChampionRule.of(ChampionConfig(), _entry(base))


def _ranked(
    scored: Sequence[tuple[str, ElsewhereModel | None, Score, str]], rule: ChampionRule
) -> tuple[Compared, ...]:
    rows = []
    for name, model, score, folder in sorted(scored, key=lambda each: rule.order(_entry(each[2]))):
        row = Compared(name, model, score, folder, None, rule.qualifies(_entry(score)))
        interval = interval_over_pictures(row.counted)
        rows.append(row if interval is None else replace(row, interval=interval.within(-1.0, 1.0)))
    family = Family([row.counted for row in rows])
    leader = rows[0].counted
    return (rows[0], *(replace(row, lead=family.compare(leader, row.counted)) for row in rows[1:]))


def _sheet(comparison: Comparison, folder: Path) -> Image.Image:
    """The first picture of each prompt; the base model first, the others best first."""
    evaluation = comparison.asked.evaluation
    first = evaluation.model_copy(update={"images_per_prompt": 1})
    columns = sorted(comparison.rows, key=lambda row: row.model is not None)  # stable
    pictures = [[picture.image for picture in load_images(folder / row.images_dir, first)] for row in columns]
    labels = [f"{row.name} {row.score.face_similarity:.3f}" for row in columns]
    return grid(list(zip(*pictures, strict=True)), evaluation.prompts, labels)
