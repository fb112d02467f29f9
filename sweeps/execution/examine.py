"""What else is looked at in the finalists' own checkpoints, where trials run: copies of photos, and the class.

These checkpoints are what is exported, so they are examined and not their settings' other trainings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evaluation.copies import check_copies
from evaluation.face_encoders import load_face_encoder
from evaluation.generate import GeneratedImage, load_images
from evaluation.references import References
from evaluation.score import score_images
from evaluation.scores import CopyCheck, Examination
from sweeps.execution.examinations import Examinations
from sweeps.execution.machines import check_seen
from sweeps.execution.same_models import check_same_models
from sweeps.execution.scoring import make_pictures, use_threads
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import BASE_TRIAL
from training.checkpoint import checkpoint_dir, open_checkpoint
from training.dataset import load_prepared_photos
from training.errors import DivergedError
from training.layout import STATE_FILE
from training.preparation import load_unseen


def examine(asked: Examinations) -> Iterator[str]:
    """Draw the bare prompts' pictures of each checkpoint, look at them, and write into the ledger what is found.

    Yields:
        What is being done, for the user.

    Raises:
        UserError: a checkpoint is damaged, or this machine lacks a model.
    """
    yield f"examining {len(asked.wanted)} checkpoints for copies"
    scoring, folder, device = asked.scoring, asked.open_run(), asked.resources.device
    folder.pull(folder.identity_file, folder.dataset_dir)
    check_seen(folder)
    use_threads(asked.resources.cpus)
    check_same_models(folder, scoring.base_model, scoring.evaluation)
    for trial, step in asked.wanted:
        folder.pull(folder.trial_dir(trial), without=(STATE_FILE,))
        place = checkpoint_dir(folder.trial_dir(trial), step)
        if trial != BASE_TRIAL and not place.exists():  # deleted on purpose; its scores stand
            _write(folder, trial, step, Examination())
            continue
        checkpoint = None if trial == BASE_TRIAL else open_checkpoint(place, scoring.base_model)
        try:
            make_pictures(scoring, folder, trial, checkpoint, device)
        except DivergedError:  # pictures of the sweep's prompts did not: there is nothing to hold against photos
            _write(folder, trial, step, Examination())
            continue
        images_dir = folder.images_dir(trial, step)
        pictures = load_images(images_dir, scoring.evaluation)
        copies = None if checkpoint is None else _copies(folder, pictures)
        found = Examination(copies=copies, class_similarity=_class_similarity(asked, folder, pictures))
        folder.push(images_dir)
        _write(folder, trial, step, found)
        if copies is not None and copies.is_copying:
            yield f"{trial}  step {step}  {copies.num_copies} of its {len(copies.nearest)} bare pictures copy a photo"


def _copies(folder: RunFolder, pictures: Sequence[GeneratedImage]) -> CopyCheck:
    bare = [(picture.file, picture.image) for picture in pictures if picture.prompt_index == 0]
    photos = [(photo.file, photo.image) for photo in load_prepared_photos(folder.dataset_dir)]
    return check_copies(bare, photos, load_unseen(folder.dataset_dir))


def _class_similarity(asked: Examinations, folder: RunFolder, pictures: Sequence[GeneratedImage]) -> float | None:
    of_class = [picture for picture in pictures if picture.prompt_index == 1]
    if not of_class:
        return None
    encoder = load_face_encoder(asked.scoring.evaluation.face.encoder, asked.resources.device)
    return score_images(of_class, References.load(folder.reference_file), encoder).face_similarity


def _write(folder: RunFolder, trial: str, step: int, found: Examination) -> None:
    record = folder.read(trial)
    assert record is not None, "it has a row"
    checkpoints = [
        each.model_copy(update={"examination": found}) if each.step == step else each for each in record.checkpoints
    ]
    folder.write(record.model_copy(update={"checkpoints": tuple(checkpoints)}))
