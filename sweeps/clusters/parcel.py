"""A sweep file and all that it names, in one folder: what is sent to a cluster.

Pictures and captions go as they are, byte for byte, because a run is known by the bytes of its photos: taken out of
them, a position in one would make the same sweep another experiment there than here. Who is told of it can take it out
of the originals.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from evaluation.config import LOCAL_DIR, ClipConfig, EvaluationConfig, FaceConfig, RenderConfig
from sweeps.config import SearchConfig, SweepConfig, resolved_yaml
from sweeps.execution.cluster import named_models
from sweeps.ledger.identity import photos_key
from sweeps.ledger.storage import is_hidden
from sweeps.plan import check_sweep
from sweeps.wording import bytes_text
from training.captions import caption_files
from training.config import SubjectConfig
from training.errors import UserError
from training.files import sha256_of
from training.lora_names import files_of_lora
from training.names import listed, shown
from training.pictures import find_photos

SWEEP_FILE = "sweep.yaml"
MODELS_DIR = "models"
MODELS_THERE = ".models"
"""Folder beside the runs where models that were sent lie, by content: all machines see it."""
MAX_MODELS_BYTES = 200_000_000
"""Of all local models of a sweep. Stable Diffusion 1.5 has 4 GB, and its place is a disk that the cluster has."""
MAX_BYTES = 450_000_000
"""Of a whole parcel. Ray's head holds it in memory, and takes no more than 512 MiB."""
GPS_TAG = 0x8825
"""Of EXIF: where a picture was taken."""
_STAND_IN_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@dataclass(frozen=True)
class Parcel:
    """A folder that is ready to be sent."""

    config: SweepConfig
    """The sweep as it is here."""
    sweep: str
    """Its id in a list of jobs, as in Ray's metrics: of its name and its photos' contents, so nobody guesses it."""
    models: Mapping[str, str]
    """Path within the parcel -> path on the cluster."""
    num_bytes: int
    remarks: tuple[str, ...]
    """What the user should know of it, in sentences."""


def pack_sweep(config: SweepConfig, sweep_dir: Path, out: str, into: Path) -> Parcel:
    """Check a sweep as far as this machine can, and put it together.

    Args:
        config: from `load_sweep`.
        sweep_dir: the sweep file's folder.
        out: the folder of runs on the cluster.
        into: an empty folder.

    Raises:
        UserError: what `check` refuses, too much to send, or a path that only this machine can mean.
    """
    elsewhere = models_elsewhere(config, sweep_dir)
    plan = check_sweep(_with_stand_ins(config, elsewhere))
    _check_storage(config, sweep_dir)
    models = _Models(config, out, into)
    sent = config.model_copy(
        update={
            "subject": _pack_subject(config.subject, into),
            "base_model": models.place("base_model", config.base_model),
            "initial_weights": config.initial_weights
            if "initial_weights" in elsewhere
            else _pack_initial_weights(config.initial_weights, into),
            "evaluation": _pack_evaluation(config.evaluation, models, into),
            "render": _pack_render(config.render, models, into),
            "search": _pack_search(config.search, into),
        }
    )
    (into / SWEEP_FILE).write_text(resolved_yaml(sent), encoding="utf-8")
    num_bytes = _close(into)
    if num_bytes > MAX_BYTES:
        raise UserError(
            f"a sweep that is sent may have {bytes_text(MAX_BYTES)} in all, this one has {bytes_text(num_bytes)}; "
            "smaller photos train as well, and what is larger must lie on the cluster"
        )
    remarks = [f"mind: {warning}" for warning in plan.warnings]
    if elsewhere:
        named = ", ".join(f"{place} {path}" for place, path in elsewhere.items())
        remarks.append(f"not here, so not looked at, and must be on the cluster: {named}")
    if with_position := _photos_with_position(into):
        remarks.append(
            f"mind: {listed(with_position)} say where they were taken (GPS); a run is known by its photos' bytes, so "
            "they are sent as they are. Take it out of the originals if the cluster is not yours alone"
        )
    return Parcel(config, _sweep_id(config), models.there, num_bytes, tuple(remarks))


def _sweep_id(config: SweepConfig) -> str:
    """As `gauges.sweep_id` has it, before there is a run folder."""
    key = photos_key(config.subject.model_copy(update={"rare_token": None}), config.evaluation.face.references)
    return hashlib.sha256(f"{config.name} {key}".encode()).hexdigest()[:8]


# --- models


def models_elsewhere(config: SweepConfig, sweep_dir: Path) -> dict[str, str]:
    """Models that only the cluster can have, a LoRA to go on from too: their place in the sweep file and absolute path.

    What would lie below the sweep file's own folder is this machine's, and missing.
    """
    named = named_models(config)
    if config.initial_weights is not None:
        named["initial_weights"] = str(config.initial_weights)
    return {
        place: path
        for place, path in named.items()
        if Path(path).is_absolute() and not Path(path).exists() and not Path(path).is_relative_to(sweep_dir.resolve())
    }


def _with_stand_ins(config: SweepConfig, elsewhere: Mapping[str, str]) -> SweepConfig:
    """The sweep with models that anybody has, or none, in the place of those that cannot be looked at."""
    evaluation, render = config.evaluation, config.render
    if "evaluation.face.encoder" in elsewhere:
        face = evaluation.face.model_copy(update={"encoder": FaceConfig().encoder})
        evaluation = evaluation.model_copy(update={"face": face})
    if elsewhere.keys() & {"evaluation.clip.model", "evaluation.clip.pretrained"}:
        evaluation = evaluation.model_copy(update={"clip": ClipConfig()})
    if render is not None and "render.controlnet" in elsewhere:
        render = render.model_copy(update={"controlnet": RenderConfig().controlnet})
    base_model = _STAND_IN_BASE if "base_model" in elsewhere else config.base_model
    initial_weights = None if "initial_weights" in elsewhere else config.initial_weights
    models = {"base_model": base_model, "initial_weights": initial_weights}
    return config.model_copy(update={"evaluation": evaluation, "render": render, **models})


class _Models:
    """Local models on their way: copied into the parcel, and to be found by content on the cluster."""

    def __init__(self, config: SweepConfig, out: str, into: Path) -> None:
        self._storage, self._out, self._into = config.storage, PurePosixPath(out), into
        self.there: dict[str, str] = {}
        self._num_bytes = 0

    def place(self, place: str, name: str) -> str:
        """Where the cluster has it: a path if it lies here, else as it was named."""
        prefix = LOCAL_DIR if name.startswith(LOCAL_DIR) else ""
        path = Path(name.removeprefix(prefix))
        if not path.is_absolute() or not path.exists():
            return name
        if self._storage is not None:
            raise UserError(
                f"{place}: with a storage the cluster's machines share no folder that {path} could be sent to; name a "
                "hub id, or a path where all of them have it"
            )
        files = _files_of(path)
        self._num_bytes += sum(file.stat().st_size for file in files.values())
        if self._num_bytes > MAX_MODELS_BYTES:
            raise UserError(
                f"{place}: local models of up to {bytes_text(MAX_MODELS_BYTES)} in all are sent, with {path} it is "
                f"{bytes_text(self._num_bytes)}; name a hub id, or a path where the cluster has it"
            )
        digests = [f"{within} {sha256_of(file)}" for within, file in files.items()]
        digest = hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]
        sent = f"{MODELS_DIR}/{digest}/{path.name}"
        for within, file in files.items():
            _copy(file, self._into / sent / within)
        self.there[sent] = str(self._out / MODELS_THERE / digest / path.name)
        return f"{prefix}{self.there[sent]}"


def _files_of(path: Path) -> dict[str, Path]:
    """Name within `path` -> file, by name, without hidden ones; of a single file the empty name."""
    if path.is_file():
        return {"": path}
    files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    return {within: file for within, file in files.items() if not is_hidden(within)}  # a clone's .git


def _pack_initial_weights(source: Path | None, into: Path) -> Path | None:
    """All that says what the LoRA is. The driver alone reads it, and keeps it in the run folder."""
    if source is None:
        return None
    file, *config = files_of_lora(source)
    for each in (file, *config):
        _copy(each, into / "initial_weights" / each.name)
    return Path("initial_weights") / file.name


# --- pictures


def _pack_evaluation(evaluation: EvaluationConfig, models: _Models, into: Path) -> EvaluationConfig:
    face, second = evaluation.face, evaluation.second_opinion
    references = face.references and _pack_photos(face.references, into / "references", into)
    sent = _pack_face(face, "evaluation.face", models).model_copy(update={"references": references})
    if second is not None:
        place = "evaluation.second_opinion"
        judges = {
            "face": second.face and _pack_face(second.face, f"{place}.face", models),
            "clip": second.clip and _pack_clip(second.clip, f"{place}.clip", models),
        }
        second = second.model_copy(update=judges)
    clip = _pack_clip(evaluation.clip, "evaluation.clip", models)
    return evaluation.model_copy(update={"face": sent, "clip": clip, "second_opinion": second})


def _pack_face(face: FaceConfig, place: str, models: _Models) -> FaceConfig:
    return face.model_copy(update={"encoder": models.place(f"{place}.encoder", face.encoder)})


def _pack_clip(clip: ClipConfig, place: str, models: _Models) -> ClipConfig:
    pretrained = clip.pretrained and models.place(f"{place}.pretrained", clip.pretrained)
    model = models.place(f"{place}.model", clip.model) if clip.model.startswith(LOCAL_DIR) else clip.model
    return clip.model_copy(update={"model": model, "pretrained": pretrained})


def _pack_render(render: RenderConfig | None, models: _Models, into: Path) -> RenderConfig | None:
    if render is None or not render.references:
        return render
    update: dict[str, Any] = {"references": [], "controlnet": models.place("render.controlnet", render.controlnet)}
    for number, reference in enumerate(render.references):  # two folders may have files of one name
        sent = into / "controls" / str(number) / reference.name
        _copy(reference, sent)
        update["references"].append(sent.relative_to(into))
    return render.model_copy(update=update)


def _pack_search(search: SearchConfig, into: Path) -> SearchConfig:
    """Of the run that is started from what its leaderboard is made of: settings and scores, no picture and no face."""
    if search.warm_start is None:
        return search
    to = into / "warm_start"
    for pattern in ("sweep.yaml", "confirm.json", "trials/*/trial.json", "confirm/*/trial.json"):
        for file in search.warm_start.glob(pattern):
            _copy(file, to / file.relative_to(search.warm_start))
    return search.model_copy(update={"warm_start": to.relative_to(into)})


def _pack_subject(subject: SubjectConfig, into: Path) -> SubjectConfig:
    sent = {"photos": _pack_photos(subject.photos, into / "photos", into)}
    if subject.class_images is not None:
        sent["class_images"] = _pack_photos(subject.class_images, into / "class_images", into)
    return subject.model_copy(update=sent)


def _pack_photos(folder: Path, to: Path, into: Path) -> Path:
    """Copy the pictures that are read, and their captions, under their names, which are part of the run's identity."""
    for photo in find_photos(folder):
        for file in (photo, *caption_files(photo)):
            _copy(file, to / file.relative_to(folder))
    return to.relative_to(into)


def _photos_with_position(into: Path) -> list[str]:
    found = []
    for folder in ("photos", "references", "class_images"):
        for file in find_photos(into / folder) if (into / folder).is_dir() else ():
            with Image.open(file) as picture:
                if picture.getexif().get_ifd(GPS_TAG):
                    found.append(f"{folder}/{file.relative_to(into / folder)}")
    return found


# --- files


def _copy(file: Path, to: Path) -> None:
    try:
        str(to).encode()
    except UnicodeEncodeError:
        raise UserError(f"what is sent must have a name in UTF-8, got {shown(file)}") from None
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)


def _close(folder: Path) -> int:
    """For nobody else's eyes, there too: archives keep the mode. The size of all, in bytes."""
    num_bytes = 0
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
        num_bytes += path.stat().st_size if path.is_file() else 0
    return num_bytes


def _check_storage(config: SweepConfig, sweep_dir: Path) -> None:
    storage = config.storage
    if storage is not None and "://" not in storage and Path(storage).is_relative_to(sweep_dir.resolve()):
        raise UserError(f"storage: must be one that the cluster's machines reach, got a folder of this one: {storage}")
