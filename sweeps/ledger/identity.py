"""What makes a trial the same trial and two runs the same experiment: hashes of configs and of what they name.

They are compared for as long as run folders live, so they are made of `canonical_json`: a release that adds a field
with a default changes none of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from evaluation.config import EvaluationConfig
from evaluation.scores import EVALUATOR_VERSION
from sweeps.ledger.folder import RunFolder
from sweeps.wording import learning_rate_text
from training.canonical import canonical_json
from training.captions import read_caption
from training.config import LoraConfig, MethodConfig, SubjectConfig
from training.errors import UserError
from training.files import sha256_of
from training.lora_names import files_of_lora
from training.pictures import find_photos

NEUTRAL_EVALUATION_KEYS = frozenset(
    {"batch_size", "at_steps", "face", "clip", "prompts_without_token", "screening", "second_opinion"}
)
"""Change no picture and no full score; the judges are known by their names, weights included."""


def config_hash(config: MethodConfig) -> str:
    """sha256 of the whole config: equal for equal configs, on every machine."""
    in_order_of_names = json.dumps(json.loads(canonical_json(config)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(in_order_of_names.encode()).hexdigest()


def trial_name(config: MethodConfig) -> str:
    """What a human calls the trial: `lora_r16_lr1e-4`; the seed joins where it is not the default."""
    parts: list[str] = [config.method]
    if isinstance(config, LoraConfig):
        parts.append(f"r{config.rank}")
    parts.append(f"lr{learning_rate_text(config.learning_rate)}")
    if config.seed:
        parts.append(f"s{config.seed}")
    return "_".join(parts)


def trial_id(config: MethodConfig) -> str:
    """The trial's id, a function of its config alone: its name and six hex digits of `config_hash`."""
    return f"{trial_name(config)}_{config_hash(config)[:6]}"


def photos_key(subject: SubjectConfig, references: Path | None) -> str:
    """Hash of the photos' names, bytes and captions, of how they are cut and called, and of those compared with.

    One's own pictures of the class count as the photos do.
    """
    digest = hashlib.sha256(canonical_json(subject, exclude={"photos", "class_images"}).encode())
    folders = {"photos": subject.photos}
    if references is not None:
        folders["references"] = references
    if subject.class_images is not None:
        folders["class_images"] = subject.class_images
    for role, folder in folders.items():
        for entry in _photo_entries(folder):
            digest.update(json.dumps([role, *entry]).encode())
    return digest.hexdigest()


def claim_subject(folder: RunFolder, subject: SubjectConfig, references: Path | None, rare_token: str) -> None:
    """Say of whom the run is: photos, captions and prompts, and the token that CLIP was not shown.

    Args:
        folder: the run.
        subject: as the sweep file says.
        references: the photos compared with, where they are others.
        rare_token: given or guessed; that it was guessed makes it no other subject.

    Raises:
        UserError: the folder holds a run of another subject, or one whose scores were made with another token.
    """
    claims = folder.identity()
    of_0_1 = photos_key(subject, references)
    given_to_0_1 = subject.rare_token is not None and claims.get("photos") == of_0_1
    folder.claim(
        "photos", of_0_1 if given_to_0_1 else photos_key(subject.model_copy(update={"rare_token": None}), references)
    )
    if "rare_token" not in claims and not given_to_0_1 and folder.base() is not None:
        _refuse_another_guess(folder, subject, rare_token)
    folder.claim("rare_token", rare_token.casefold())


def claim_initial_weights(folder: RunFolder, file: Path | None) -> None:
    """Say what the run's LoRA trials start from: by content a file and the config that has its alphas, or nothing.

    Raises:
        UserError: the folder holds a run that started from something else; or from `files_of_lora`.
    """
    if file is None and "initial_weights" not in folder.identity():
        return  # as every run did before there was the key
    weights, *config = ["none"] if file is None else [sha256_of(each) for each in files_of_lora(file)]
    has_begun = "initial_weights" not in folder.identity() and folder.base() is not None
    folder.claim("initial_weights", "none" if has_begun else weights)
    folder.claim("initial_weights", weights)
    if config:  # a part of its own, so that runs that claimed weights alone go on
        folder.claim("adapter_config_of_initial_weights", config[0])


def _refuse_another_guess(folder: RunFolder, subject: SubjectConfig, rare_token: str) -> None:
    """A run that 0.1 made claims no token, and 0.1 guessed more simply: what CLIP read there may be other texts."""
    class_words = (subject.class_prompt or "").split()
    own_words = [word for word in subject.instance_prompt.split() if word not in class_words]
    guess = " ".join(own_words) if class_words and own_words else "sks"
    if guess.casefold() != rare_token.casefold():
        raise UserError(
            f"{folder.dir}: its scores were made by an older release, which took {guess!r} for the rare token; it is "
            f"{rare_token!r}, and CLIP read other texts; choose another name in the sweep file or another --out"
        )


def _photo_entries(folder: Path) -> Iterator[tuple[str, str, str | None]]:
    for path in find_photos(folder):
        yield path.relative_to(folder).as_posix(), sha256_of(path), read_caption(path)


def evaluation_key(evaluation: EvaluationConfig) -> str:
    """Hash of everything in the evaluation that changes a picture or its scores."""
    canonical = canonical_json(evaluation, exclude=NEUTRAL_EVALUATION_KEYS)
    return hashlib.sha256(f"{EVALUATOR_VERSION} {canonical}".encode()).hexdigest()
