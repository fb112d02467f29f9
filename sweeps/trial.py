"""One trial: train, generate, score, report. The one place where the rooms meet, and what once a sweep precedes it.

All of it works in the run folder, so that a worker that takes over from a dead one finds everything there. The ledger
is written before Ray hears of a scoring point: what Ray knows may be lost, what the ledger knows may not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.result import DONE

from evaluation.checks import check_clip, check_render
from evaluation.face import largest_box
from evaluation.face_encoders import load_face_encoder
from evaluation.generate import generate, generation_dtype, load_images, save_images
from evaluation.prompt import load_clip
from evaluation.references import References, embed_references
from evaluation.score import score_images
from sweeps.config import SweepConfig, class_images_needed, load_sweep, rare_token
from sweeps.mirror import open_run
from sweeps.renders import render_run
from sweeps.results import path_in_run, qualifies, read_results
from sweeps.search import best_checkpoint, lesson, read_config
from sweeps.space import METHODS, corners_of, scoring_points, trial_name
from sweeps.store import BASE_TRIAL, RunFolder, ScoredCheckpoint, TrialRecord
from training.checkpoint import STATE_FILE, Checkpoint, latest_checkpoint, load_pipeline, open_checkpoint
from training.dataset import encode_dataset, load_dataset, prepare_photos
from training.pictures import find_photos
from training.stable_diffusion import base_model_fingerprint
from training.train import check_training, train

SETTINGS_ERRORS = (ValueError, torch.OutOfMemoryError)
"""Failures that the same settings would meet again: a law broken, a loss or picture not finite, a GPU too small."""


# --- once a sweep ---------------------------------------------------------------------------------------------------


def prepare_subject(config: SweepConfig, folder: RunFolder) -> None:
    """Crop the photos and embed their faces, on the CPU; done already, it does little.

    Raises:
        ValueError: a photo cannot be used, no photo has a face, or the face encoder's weights are missing.
    """
    encoder = load_face_encoder(config.evaluation.face.encoder, "cpu")
    folder.claim("face_encoder", encoder.name)
    prepare_photos(config.subject, folder.dataset_dir, lambda image: largest_box(encoder, image))
    if not folder.reference_file.exists():
        references = config.evaluation.face.references or config.subject.photos
        embed_references(find_photos(references), encoder).save(folder.reference_file)


def prepare_run(config: SweepConfig, run_dir: str, device: str) -> Iterator[str]:
    """What all trials share, made where trials run: latents, class images, the base model's scores.

    Yields:
        What is being done, for the user.

    Raises:
        ValueError: the base model, the CLIP model, a ControlNet or the precision cannot be had here.
    """
    folder = open_run(run_dir, config.storage)
    shared = (folder.identity_file, folder.dataset_dir, folder.trial_dir(BASE_TRIAL))
    folder.pull(*shared)
    _use_threads(config)
    yield "checking the models"
    check_trainable(config, device)
    check_clip(config.evaluation.clip)
    if config.render is not None:
        check_render(config.render)
    folder.claim("base_model", base_model_fingerprint(config.base_model))
    folder.claim("clip_model", load_clip(config.evaluation.clip, device).name)
    yield "encoding the photos"
    num_class_images = class_images_needed(config)
    encode_dataset(folder.dataset_dir, config.base_model, device=device)
    if num_class_images:
        yield f"drawing {num_class_images} class images"
        encode_dataset(folder.dataset_dir, config.base_model, class_images=num_class_images, device=device)
    base = folder.base()
    if base is None or not base.is_over:
        yield "scoring the base model"
        score_base(config, folder, device)
    folder.push(*shared)


def render_best(run_dir: str, storage: str | None) -> None:
    """Render a run's best trials where trials run.

    Raises:
        ValueError: from `render_run`.
    """
    folder = open_run(run_dir, storage)
    folder.pull(folder.sweep_file)
    folder.pull(folder.trials_dir, ending="trial.json")
    for row in read_results(folder.dir).best_of_each_trial():
        if row.checkpoint is not None:
            folder.pull(path_in_run(folder.dir, row.checkpoint))
    render_run(folder.dir)
    folder.push(folder.renders_dir)


def check_trainable(config: SweepConfig, device: str) -> None:
    """Refuse a precision or an optimizer that this machine does not have, whichever trial would ask for it."""
    for method, space in config.methods.items():
        for mixed_precision in corners_of(space.get("mixed_precision", "no")):
            for use_8bit_adam in corners_of(space.get("use_8bit_adam", False)):
                trial = METHODS[method].model_validate(
                    {"mixed_precision": mixed_precision, "use_8bit_adam": use_8bit_adam}
                )
                try:
                    check_training(trial, device)
                except ValueError as error:
                    raise ValueError(f"methods.{method}.{error}") from None


def score_base(config: SweepConfig, folder: RunFolder, device: str) -> None:
    """Score the untouched base model with the trials' own prompts and seeds: the zero line."""
    start = time.monotonic()
    scored = score_checkpoint(config, folder, BASE_TRIAL, None, device)
    seconds = time.monotonic() - start
    folder.write(
        TrialRecord(
            trial=BASE_TRIAL,
            method="base",
            status="finished",
            config={},
            key=folder.identity_key(),
            checkpoints=[scored.model_copy(update={"seconds": seconds})],
            seconds=seconds,
        )
    )


def score_checkpoint(
    config: SweepConfig, folder: RunFolder, trial: str, checkpoint: Checkpoint | None, device: str
) -> ScoredCheckpoint:
    """Generate a checkpoint's pictures into the run folder and score them; None is the base model."""
    step = 0 if checkpoint is None else checkpoint.step
    images_dir = folder.images_dir(trial, step)
    pipeline = load_pipeline(
        checkpoint, config.base_model, device=device, dtype=generation_dtype(device), share_frozen=True
    )
    save_images(generate(pipeline, config.evaluation), images_dir, config.evaluation, model=trial)
    del pipeline  # its memory is needed for the judges
    score = score_images(
        load_images(images_dir, config.evaluation),
        References.load(folder.reference_file),
        load_face_encoder(config.evaluation.face.encoder, device),
        load_clip(config.evaluation.clip, device),
        rare_token(config.subject),
    )
    assert score.prompt_alignment is not None, "a CLIP model was given"
    return ScoredCheckpoint(
        step=step,
        checkpoint=None if checkpoint is None else folder.relative(checkpoint.dir),
        images=folder.relative(images_dir),
        face_similarity=score.face_similarity,
        prompt_alignment=score.prompt_alignment,
        num_images=score.num_images,
        num_faces=score.num_faces,
        face_encoder=score.face_encoder,
        clip=score.clip,
        image_scores=[image.model_dump(mode="json") for image in score.images],
    )


# --- the trial ------------------------------------------------------------------------------------------------------


class SweepTrial(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """A trial as Ray Tune runs it: one `step()` a scoring point, named by its `repr` on the dashboard.

    Its config holds `trial`, the trial's own `config`, `run_dir`, `storage`, `cpus` and `gpus`.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """One bundle of the trial's CPUs and GPUs."""
        return tune.PlacementGroupFactory([{"CPU": config["cpus"], "GPU": config["gpus"]}])

    def setup(self, config: dict[str, Any]) -> None:
        """Find the trial in the ledger; nothing heavy yet, since an error here would count as the machine's."""
        self._folder = open_run(config["run_dir"], config["storage"])
        self._folder.pull(self._folder.sweep_file, self._folder.dataset_dir, self._folder.trial_dir(config["trial"]))
        self._device = "cuda" if config["gpus"] else "cpu"
        record = self._folder.read(config["trial"])
        assert record is not None, "the searcher writes a trial before Ray starts it"
        self._record = record
        self._name = trial_name(read_config(record))
        self._since = time.monotonic()
        self._losses: list[float] = []
        self._points: Iterator[Checkpoint] | None = None
        if record.is_over:
            return  # an earlier driver's worker ended it after this driver had read the ledger
        base = self._folder.base()
        assert base is not None, "the base model is scored before trials start"
        self._base_prompt_alignment = base.checkpoints[0].prompt_alignment
        self._config = load_sweep(self._folder.sweep_file)
        began_before = record.started is not None
        self._write(
            status="running",
            reason=None,
            fault=None,
            started=record.started or datetime.now(UTC).isoformat(timespec="seconds"),
            num_restarts=record.num_restarts + began_before,
        )

    def __repr__(self) -> str:
        """`lora_r16_lr1e-4`: Ray shows it for the actor, its tasks and its log lines."""
        return getattr(self, "_name", "trial")

    def step(self) -> dict[str, Any]:
        """Train up to the next scoring point, score it, write it down, then report it."""
        if self._record.is_over:
            return self._report()
        try:
            self._score_next()
        except SETTINGS_ERRORS as error:
            self._write(status="failed", fault="trial", reason=explain_failure(error))
        return self._report()

    def _score_next(self) -> None:
        if self._points is None:
            _use_threads(self._config)
            self._points = self._unscored_checkpoints()
        checkpoint = next(self._points)
        scored = score_checkpoint(self._config, self._folder, self._record.trial, checkpoint, self._device)
        is_last = checkpoint.step == self._scoring_points[-1]
        if is_last:
            drop_training_state(self._folder, self._record.trial)
        self._folder.push(self._folder.trial_dir(self._record.trial))  # before the ledger speaks of it
        self._write(
            checkpoints=[*self._record.checkpoints, scored.model_copy(update=self._progress())],
            status="finished" if is_last else "running",
        )

    def _progress(self) -> dict[str, float | None]:
        """Seconds of the trial's life so far and the mean loss since the scoring point before."""
        loss = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses.clear()
        return {"seconds": self._seconds(), "loss": loss}

    @property
    def _scoring_points(self) -> list[int]:
        return scoring_points(read_config(self._record), self._config.evaluation.at_steps)

    def _unscored_checkpoints(self) -> Iterator[Checkpoint]:
        """The trial's checkpoints without a score: those that a dead worker left, then those still to be trained."""
        trial_dir = self._folder.trial_dir(self._record.trial)
        scored = {checkpoint.step for checkpoint in self._record.checkpoints}
        unscored = [step for step in self._scoring_points if step not in scored]
        latest = latest_checkpoint(trial_dir, self._config.base_model)
        left = [step for step in unscored if latest is not None and step <= latest.step]
        try:
            checkpoints = [open_checkpoint(trial_dir / f"checkpoint-{step}", self._config.base_model) for step in left]
        except ValueError:  # one is not whole: from the start again, which makes equal ones
            left, checkpoints, latest = [], [], None
        yield from checkpoints
        still = [step for step in unscored if step not in left]
        if still:
            yield from (checkpoint for checkpoint in self._train(trial_dir, latest) if checkpoint.step in still)

    def _train(self, trial_dir: Path, resume_from: Checkpoint | None) -> Iterator[Checkpoint]:
        return train(
            read_config(self._record),
            load_dataset(self._folder.dataset_dir, self._config.base_model),
            self._scoring_points,
            resume_from,
            out_dir=trial_dir,
            device=self._device,
            on_step=lambda _step, loss: self._losses.append(loss),
        )

    def _write(self, **changes: Any) -> None:
        self._record = self._record.model_copy(update={**changes, "seconds": self._seconds()})
        self._since = time.monotonic()
        self._folder.write(self._record)

    def _seconds(self) -> float:
        return self._record.seconds + time.monotonic() - self._since

    def _report(self) -> dict[str, Any]:
        """What Ray hears: the newest scores, and at the end the best checkpoint's; every metric, always finite."""
        return report_of(self._record, self._folder)

    def cleanup(self) -> None:
        """Let go of the models."""
        self._points = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A pointer: weights and optimizer lie in the run folder."""
        (Path(checkpoint_dir) / "trial.txt").write_text(self._record.trial)

    def load_checkpoint(self, checkpoint: object) -> None:
        """Nothing to load: `setup` found everything in the run folder."""


def drop_training_state(folder: RunFolder, trial: str) -> None:
    """Free what only going on would need, twice the weights, once a trial does not go on."""
    for state in folder.trial_dir(trial).glob(f"checkpoint-*/{STATE_FILE}"):
        state.unlink()


def report_of(record: TrialRecord, folder: RunFolder) -> dict[str, Any]:
    """A trial's metrics for Ray: of its newest checkpoint while it runs, of its best one (`best_step`) at its end."""
    base = folder.base()
    assert base is not None, "the base model is scored before trials start"
    config = load_sweep(folder.sweep_file)
    base_prompt_alignment = base.checkpoints[0].prompt_alignment
    newest = record.checkpoints[-1] if record.checkpoints else None
    best = best_checkpoint(record, config, base_prompt_alignment)
    shown = lesson(record, config, base_prompt_alignment) if record.is_over else newest
    assert shown is not None, "a trial reports when it has a score or has failed"
    follows_prompts = qualifies(shown.prompt_alignment, base_prompt_alignment, config.champion)
    return {
        "trial": record.trial,
        "step": newest.step if newest else 0,
        "best_step": best.step if best else 0,
        "face_similarity": shown.face_similarity,
        "prompt_alignment": shown.prompt_alignment,
        "champion_score": shown.face_similarity - (0 if follows_prompts else 2),
        "num_images": shown.num_images,
        "num_faces": shown.num_faces,
        "failed": record.status == "failed",
        DONE: record.is_over,
    }


def explain_failure(error: BaseException) -> str:
    """One line for the ledger."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _use_threads(config: SweepConfig) -> None:
    """As many torch threads as the trial has CPUs: more would fight with its neighbours."""
    torch.set_num_threads(max(1, int(config.resources.cpus_per_trial)))
