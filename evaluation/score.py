"""Pictures to two scores: face similarity to reference photos, and prompt alignment.

Knows no training, and no torch but its judges'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from evaluation.face import Embedding, Face, FaceEncoder, face_similarity
from evaluation.rare_token import RARE_WORD, without_rare_token
from evaluation.references import References, embed_references
from evaluation.scores import ImageScore, Score, mean_face_similarity, mean_prompt_alignment, num_with_face
from training.errors import UserError
from training.names import name_text, shown
from training.pictures import look_into, read_picture

if TYPE_CHECKING:
    from evaluation.prompt import ClipScorer

BATCH_SIZE = 16
"""Pictures in memory at once."""

GENERATED_FILE = re.compile(r"(?P<prompt_index>\d{3,})-(?P<seed>\d+)\.png")
"""File names of `evaluation.generate`."""


class Picture(Protocol):
    """What can be scored; `evaluation.generate.GeneratedImage` is one."""

    @property
    def file(self) -> str:
        """Name in the record."""
        ...

    @property
    def image(self) -> Image.Image:
        """RGB."""
        ...

    @property
    def prompt(self) -> str | None:
        """What it should show, if that is to be scored."""
        ...

    @property
    def seed(self) -> int | None:
        """Seed it was generated from, if any."""
        ...


@dataclass(frozen=True)
class PictureFile:
    """A picture of a folder."""

    file: str
    image: Image.Image
    prompt: str | None = None
    seed: int | None = None


def score_images(
    images: Iterable[Picture],
    references: References,
    face_encoder: FaceEncoder,
    clip: ClipScorer | None = None,
    rare_token: str | None = RARE_WORD,
    trained: References | None = None,
) -> Score:
    """Score pictures one by one against the reference photos and, with a CLIP model, against their prompts.

    Args:
        images: Pictures; with `clip`, each has a prompt.
        references: The person's photos, embedded by the same encoder.
        face_encoder: Finds and embeds the faces.
        clip: Judge of prompt alignment, if that is wanted.
        rare_token: Word(s) taken out of the prompts before CLIP reads them.
        trained: The photos that were trained on, where `references` are others: likeness to them is told beside.

    Raises:
        UserError: no pictures, a picture without a prompt where CLIP is asked, or references of another encoder.
    """
    if references.face_encoder != face_encoder.name:
        raise ValueError(
            f"references: made by {references.face_encoder!r}, pictures are scored by {face_encoder.name!r}"
        )
    scores: list[ImageScore] = []
    for batch in _batches(images):
        scores += _score_batch(batch, references, face_encoder, clip, rare_token, trained)
    if not scores:
        raise UserError("pictures: need 1 or more to score, got 0")
    return Score(
        face_similarity=mean_face_similarity(scores, references.no_face_similarity),
        no_face_similarity=references.no_face_similarity,
        prompt_alignment=mean_prompt_alignment(scores),
        num_images=len(scores),
        num_faces=num_with_face(scores),
        face_encoder=face_encoder.name,
        clip=clip.name if clip else None,
        images=tuple(scores),
        references=references.summary,
        remarks=tuple(references.summary.remarks()),
    )


def score_folder(
    images_dir: Path,
    photos: Path | Sequence[Path],
    face_encoder: FaceEncoder,
    prompts: Path | None = None,
    clip: ClipScorer | None = None,
    rare_token: str | None = RARE_WORD,
) -> Score:
    """Score the pictures of any folder; see `read_prompts` for the prompts file.

    A picture that is itself one of several photos is compared with the mean of the others: a folder scored against
    itself says how alike real photos of the person are.

    Args:
        images_dir: Folder of pictures. What is not scored in it is named in the result.
        photos: Folder (kohya's subfolders are read too) or files of the person.
        face_encoder: Finds and embeds the faces.
        prompts: Text file of prompts; needs `clip`.
        clip: Judge of prompt alignment; asked only with `prompts`.
        rare_token: Word(s) taken out of the prompts before CLIP reads them.

    Raises:
        UserError: no pictures, a broken one, no face in any photo, or prompts that do not fit the pictures.
    """
    found = look_into(images_dir)
    paths = found.pictures
    if not paths:
        raise UserError(f"pictures: need 1 or more to score, got 0 in {shown(images_dir)}")
    texts: Sequence[str | None] = [None] * len(paths)
    if prompts is not None:
        if clip is None:
            raise UserError(f"prompts: {shown(prompts)} needs a CLIP model to be scored by")
        texts = read_prompts(prompts, [path.name for path in paths])
    about_photos: list[str] = []
    if isinstance(photos, Path):
        folder = look_into(photos, kohya=True)
        photos, about_photos = folder.pictures, folder.remarks()
    references = embed_references(photos, face_encoder)
    pictures = (
        PictureFile(name_text(path.name), read_picture(path), text, _generated_seed(path.name))
        for path, text in zip(paths, texts, strict=True)
    )
    score = score_images(pictures, references, face_encoder, clip if prompts is not None else None, rare_token)
    remarks = (*found.remarks(), *about_photos, *score.remarks)
    return score.model_copy(update={"passed_over": found.passed_over, "remarks": tuple(dict.fromkeys(remarks))})


def read_prompts(file: Path, names: Sequence[str]) -> list[str]:
    """The prompt of each picture, from a text file with a prompt a line; empty lines don't count.

    One line serves all pictures. Pictures that `generate` named carry their prompt's index in their name, and the
    lines are the prompts in the config's order. Any other pictures need a line each, in order of file name.

    Raises:
        UserError: the file is missing, or its lines do not fit the pictures.
    """
    lines = prompt_lines(file)
    if len(lines) == 1:
        return lines * len(names)
    generated = [GENERATED_FILE.fullmatch(name) for name in names]
    indices = [int(match["prompt_index"]) for match in generated if match]
    if len(indices) == len(names) and lines and max(indices) < len(lines):
        return [lines[index] for index in indices]
    if len(lines) == len(names):
        return lines
    wanted = f"1 line or {len(names)} (a line a picture)"
    if len(indices) == len(names):
        wanted = f"1 line or {max(indices) + 1} and more (a line a prompt)"
    raise UserError(f"prompts: need {wanted} in {shown(file)}, got {len(lines)}")


def prompt_lines(file: Path) -> list[str]:
    """The lines of a text file; empty ones don't count.

    Raises:
        UserError: it cannot be read as text.
    """
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts: {shown(file)} cannot be read as text ({error})") from error


def _score_batch(
    pictures: Sequence[Picture],
    references: References,
    encoder: FaceEncoder,
    clip: ClipScorer | None,
    rare_token: str | None,
    trained: References | None,
) -> list[ImageScore]:
    images = [picture.image for picture in pictures]
    alignments: list[float | None] = [None] * len(pictures)
    if clip is not None:
        prompts = [_clip_prompt(picture, rare_token) for picture in pictures]
        alignments = list(clip.prompt_alignment(images, prompts))
    of_trained = None if trained is None else trained.embedding
    return [
        _image_score(picture, faces, alignment, references, of_trained)
        for picture, faces, alignment in zip(pictures, encoder.find_faces(images), alignments, strict=True)
    ]


def _clip_prompt(picture: Picture, rare_token: str | None) -> str:
    if picture.prompt is None:
        raise ValueError(f"{picture.file}: has no prompt to be aligned with")
    return without_rare_token(picture.prompt, rare_token) if rare_token else picture.prompt


def _image_score(
    picture: Picture,
    faces: Sequence[Face],
    alignment: float | None,
    references: References,
    trained: Embedding | None,
) -> ImageScore:
    others = references.excluding(picture.image)
    reference = references.embedding if others is None else others
    largest = faces[0] if faces else None
    return ImageScore(
        file=picture.file,
        prompt=picture.prompt,
        seed=picture.seed,
        face_similarity=face_similarity(largest.embedding, reference) if largest else None,
        prompt_alignment=alignment,
        num_faces=len(faces),
        face_width=largest.box[2] - largest.box[0] if largest else None,
        face_probability=largest.probability if largest else None,
        trained_similarity=face_similarity(largest.embedding, trained) if largest and trained is not None else None,
        left_out=others is not None,
    )


def _batches(images: Iterable[Picture]) -> Iterator[list[Picture]]:
    """Groups of pictures, so that a folder of thousands is never in memory at once."""
    remaining = iter(images)
    while batch := list(islice(remaining, BATCH_SIZE)):
        yield batch


def _generated_seed(name: str) -> int | None:
    match = GENERATED_FILE.fullmatch(name)
    return int(match["seed"]) if match else None
