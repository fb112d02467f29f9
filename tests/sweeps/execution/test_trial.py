"""One trial in this process, with real tiny models and no Ray session: what it writes, and how it goes on.

pytest tests/sweeps/test_trial.py     about 20 seconds
"""

from __future__ import annotations

import dataclasses
import pickle
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from evaluation.references import References
from sweeps.config import SweepConfig, load_sweep, parse_sweep, rare_token
from sweeps.execution.cluster import TrialResources
from sweeps.execution.failures import TRACEBACK_FILE
from sweeps.execution.machines import MachineError
from sweeps.execution.preparation import Preparation, prepare_subject
from sweeps.execution.stages import prepare_run
from sweeps.execution.task import TrialTask
from sweeps.execution.trial import SweepTrial
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import photos_key, trial_id
from sweeps.ledger.mending import mend_ledger
from sweeps.ledger.records import TrialRecord
from tests.sweeps.execution.conftest import prepare, task_in
from tests.sweeps.tiny_sweep import ONE_CPU, write_sweep
from training.checkpoint import STATE_FILE
from training.config import METHODS, DreamBoothConfig, LoraConfig, MethodConfig, SubjectConfig
from training.errors import UserError
from training.stats import STATS_FILE, read_stats
from training.train import train

TRIAL = LoraConfig(rank=2, learning_rate=1e-3, max_train_steps=4, train_batch_size=1)


def key_of(config: SweepConfig) -> str:
    return photos_key(config.subject, config.evaluation.face.references)


def test_pictures_are_compared_with_the_references_that_are_given(
    tiny_mapping: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    """With `evaluation.face.references` the trials' own photos are none of what likeness is measured against."""
    held_out = tmp_path / "held_out"
    held_out.mkdir()
    first, second = sorted(file for file in photos.iterdir() if file.suffix == ".png")[:2]
    Image.open(first).rotate(90).save(held_out / "other.png")
    evaluation = {**tiny_mapping["evaluation"]}
    evaluation["face"] = {**evaluation["face"], "references": "held_out"}
    sweep = write_sweep(tmp_path / "sweep.yaml", {**tiny_mapping, "evaluation": evaluation})
    config, folder = load_sweep(sweep), RunFolder(tmp_path / "run")
    prepare_subject(config, folder)
    assert References.load(folder.reference_file).used == ("other.png",)
    before = key_of(config)
    shutil.copy(second, held_out)
    assert key_of(config) != before
    moved = config.subject.model_copy(update={"photos": held_out})
    alone = config.evaluation.model_copy(
        update={"face": config.evaluation.face.model_copy(update={"references": None})}
    )
    split = config.model_copy(update={"subject": moved})
    assert key_of(split) != key_of(split.model_copy(update={"evaluation": alone}))


def begin(folder: RunFolder, config: MethodConfig = TRIAL) -> SweepTrial:
    """A worker takes the trial up, as Ray would let it."""
    trial = trial_id(config)
    if folder.read(trial) is None:
        folder.write(
            TrialRecord(
                trial=trial,
                method=config.method,
                status="running",
                config=config.model_dump(mode="json"),
            )
        )
    return SweepTrial({"trial": trial, "task": task_in(folder)})


def read(folder: RunFolder, config: MethodConfig = TRIAL) -> TrialRecord:
    record = folder.read(trial_id(config))
    assert record is not None
    return record


def outcome(record: TrialRecord) -> dict[str, Any]:
    """All of a record but its clock and its history."""
    dumped = record.model_dump(exclude={"seconds", "created", "started", "num_restarts"})
    for checkpoint in dumped["checkpoints"]:
        del checkpoint["seconds"]
    return dumped


@pytest.fixture(scope="module")
def uninterrupted(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialRecord:
    """The record of a trial that nothing disturbed."""
    shutil.copytree(prepared, run := tmp_path_factory.mktemp("whole") / "run")
    worker = begin(RunFolder(run))
    while not worker.step()["done"]:
        pass
    return read(RunFolder(run))


def test_a_trial_writes_its_scores_before_it_reports_them(folder: RunFolder) -> None:
    """After each step the ledger holds what Ray hears, pictures and weights lie there, and the end is the best."""
    worker = begin(folder)
    assert repr(worker) == "lora_r2_lr1e-3"
    first = worker.step()
    record = read(folder)
    assert (record.status, [c.step for c in record.checkpoints]) == ("running", [2])
    assert first["face_similarity"] == record.checkpoints[0].face_similarity
    assert first["done"] is False
    last = worker.step()
    record = read(folder)
    assert (record.status, [c.step for c in record.checkpoints]) == ("finished", [2, 4])
    assert (last["done"], last["step"]) == (True, 4)
    assert last["best_step"] in (2, 4)
    for checkpoint in record.checkpoints:
        assert checkpoint.checkpoint is not None
        assert (folder.dir / checkpoint.checkpoint / "pytorch_lora_weights.safetensors").is_file()
        assert not (folder.dir / checkpoint.checkpoint / STATE_FILE).exists()
        assert len(list((folder.dir / checkpoint.images).glob("*.png"))) == checkpoint.num_images == 2
    losses = {taken.step: taken.loss for taken in read_stats(folder.trial_dir(trial_id(TRIAL)) / STATS_FILE)}
    assert [checkpoint.loss for checkpoint in record.checkpoints] == [
        pytest.approx((losses[1] + losses[2]) / 2),
        pytest.approx((losses[3] + losses[4]) / 2),
    ]


def test_every_metric_of_every_report_is_a_finite_number(folder: RunFolder) -> None:
    """Tune and Optuna trip over what is missing or not a number, so nothing ever is."""
    worker = begin(folder)
    for _ in range(2):
        report = worker.step()
        for name in ("face_similarity", "prompt_alignment", "champion_score", "num_images", "num_faces", "step"):
            assert torch.isfinite(torch.tensor(float(report[name])))


@pytest.mark.parametrize("lost", ["worker", "score", "score and resume state"])
def test_another_worker_goes_on_and_gets_the_same(folder: RunFolder, uninterrupted: TrialRecord, lost: str) -> None:
    """Whatever the first worker left, the second ends with the scores of a trial that nothing disturbed."""
    begin(folder).step()
    if lost != "worker":  # died between writing the checkpoint and writing its score
        folder.write(read(folder).model_copy(update={"checkpoints": ()}))
    if lost == "score and resume state":
        (folder.checkpoint_dir(trial_id(TRIAL), 2) / STATE_FILE).unlink()
    second = begin(folder)
    while not second.step()["done"]:
        pass
    assert outcome(read(folder)) == outcome(uninterrupted)
    assert read(folder).num_restarts == 1


def test_a_damaged_checkpoint_is_trained_again(folder: RunFolder, uninterrupted: TrialRecord) -> None:
    """A checkpoint that does not verify is neither scored nor resumed from."""
    begin(folder).step()
    weights = folder.checkpoint_dir(trial_id(TRIAL), 2) / "pytorch_lora_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    folder.write(read(folder).model_copy(update={"checkpoints": ()}))
    second = begin(folder)
    while not second.step()["done"]:
        pass
    assert outcome(read(folder)) == outcome(uninterrupted)


def test_a_damaged_record_costs_no_step(
    folder: RunFolder, uninterrupted: TrialRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished trial whose record was cut short is only scored again, to the same scores."""
    worker = begin(folder)
    while not worker.step()["done"]:
        pass
    file = folder.trial_file(trial_id(TRIAL))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert len(mend_ledger(folder)) == 1
    monkeypatch.delattr("sweeps.execution.worker.train")
    second = begin(folder)
    while not second.step()["done"]:
        pass
    mended = read(folder)
    assert outcome(mended) == outcome(uninterrupted)


def test_a_trial_makes_nothing_where_its_run_folder_was(folder: RunFolder, tmp_path: Path) -> None:
    """Moved away in the middle of training, as when a share is detached: the trial fails there and leaves no tree."""
    worker = begin(folder)
    worker.step()
    folder.dir.rename(tmp_path / "away")
    with pytest.raises((OSError, UserError)):
        worker.step()
    assert not folder.dir.exists()
    (tmp_path / "away").rename(folder.dir)
    assert [checkpoint.step for checkpoint in read(folder).checkpoints] == [2]


def test_a_trial_that_has_ended_is_not_run_again(folder: RunFolder) -> None:
    """A worker that comes too late reports the end and touches nothing."""
    worker = begin(folder)
    while not worker.step()["done"]:
        pass
    before = folder.trial_file(trial_id(TRIAL)).stat().st_mtime_ns
    late = begin(folder).step()
    assert late["done"] is True
    assert folder.trial_file(trial_id(TRIAL)).stat().st_mtime_ns == before


def test_a_failure_by_its_settings_is_recorded_with_its_reason(folder: RunFolder) -> None:
    """A rate that makes the weights run away ends the trial, not the sweep, and reports finite floor scores."""
    config = DreamBoothConfig(learning_rate=1.0, max_train_steps=30, train_batch_size=1, adam_beta2=0.0)
    worker = begin(folder, config)
    report: dict[str, Any] = {"done": False}
    while not report["done"]:
        report = worker.step()
    record = read(folder, config)
    assert (record.status, record.fault) == ("failed", "trial")
    assert record.reason is not None
    assert "not finite" in record.reason or "ran away" in record.reason
    assert report["failed"] is True
    assert torch.isfinite(torch.tensor([report["face_similarity"], report["prompt_alignment"]])).all()
    trial_dir = folder.trial_dir(record.trial)
    assert list(trial_dir.glob("checkpoint-*")), "it left a checkpoint"
    assert not list(trial_dir.rglob(STATE_FILE)), "which nothing goes on from"


def test_preparing_again_changes_nothing(prepared: Path, tiny_sweep: Callable[..., SweepConfig]) -> None:
    """Latents and the base model's scores are made once a sweep."""
    files = {path: path.stat().st_mtime_ns for path in prepared.rglob("*") if path.is_file()}
    config, folder = tiny_sweep(), RunFolder(prepared)
    prepare_subject(config, folder)
    stages = list(prepare_run(Preparation.of(config, folder, "cpu")))
    assert stages == ["checking the models", "encoding the photos"]
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize(
    ("section", "claim"),
    [("base_model", "base model"), ("face", "face encoder"), ("clip", "clip model"), ("fp16", "fp16 needs a GPU")],
)
def test_other_models_are_refused_in_the_same_run_folder(
    folder: RunFolder, tiny_sweep: Callable[..., SweepConfig], tmp_path: Path, section: str, claim: str
) -> None:
    """Scores of different base models or judges never meet in one table, wherever the models lie."""
    changed = models_elsewhere(tiny_sweep(), tmp_path, other=section)
    if section == "fp16":
        changed = tiny_sweep(methods={"lora": {"mixed_precision": "fp16", "max_train_steps": 4}})
    with pytest.raises(ValueError, match=claim):
        prepare(changed, folder)
    prepare(models_elsewhere(tiny_sweep(), tmp_path / "moved", other=None), folder)


@pytest.mark.parametrize(
    ("section", "named"), [("base_model", "base model"), ("face", "face encoder"), ("clip", "clip model")]
)
def test_a_machine_with_another_model_trains_nothing(
    folder: RunFolder, tiny_sweep: Callable[..., SweepConfig], tmp_path: Path, section: str, named: str
) -> None:
    """The same names, other weights, on one machine: its own fault, named, tried elsewhere, never the trial's."""
    begin(folder)
    for other, fails in ((section, True), (None, False)):
        here = models_elsewhere(tiny_sweep(), tmp_path / str(other), other=other)
        task = TrialTask.of(here, folder, ONE_CPU)
        worker = SweepTrial({"trial": trial_id(TRIAL), "task": task})
        if fails:
            with pytest.raises(UserError, match=f"machine {socket.gethostname()}: {named} .* this machine has another"):
                worker.step()
            assert not folder.checkpoint_dir(trial_id(TRIAL), 2).exists()
            assert (read(folder).status, read(folder).fault) == ("running", None)
        else:
            assert worker.step()["step"] == 2


def test_a_machine_without_the_run_folder_is_named(folder: RunFolder, tmp_path: Path) -> None:
    """One that joined later and mounts nothing there: which machine, which folder, what to do."""
    elsewhere = RunFolder(tmp_path / "not mounted")
    law = f"{elsewhere.dir}: must be seen by every machine .* machine {socket.gethostname()} does not see it"
    task = dataclasses.replace(task_in(folder), run_dir=str(elsewhere.dir))
    with pytest.raises(MachineError, match=law) as failed:
        SweepTrial({"trial": trial_id(TRIAL), "task": task}).step()
    sent = pickle.loads(pickle.dumps(failed.value))  # noqa: S301 -- our own, as Ray sends it
    assert (str(sent), sent.machine, sent.is_unfit) == (str(failed.value), socket.gethostname(), True)
    config = load_sweep(folder.sweep_file)
    with pytest.raises(UserError, match=law):
        list(prepare_run(Preparation.of(config, elsewhere, "cpu")))
    assert not elsewhere.dir.exists(), "nothing is made where the shared folder should be"


def models_elsewhere(config: SweepConfig, to: Path, other: str | None) -> SweepConfig:
    """The same sweep with copies of its models, one of them with other weights."""
    clip = config.evaluation.clip.model.removeprefix("local-dir:")
    sources = {"base_model": config.base_model, "face": config.evaluation.face.encoder, "clip": clip}
    copies = {name: to / name / Path(source).name for name, source in sources.items()}
    for name, source in sources.items():
        shutil.copytree(source, copies[name])
        if name == other:
            weights = max(copies[name].rglob("*.safetensors"))
            save_file({key: tensor * 1.5 for key, tensor in load_file(weights).items()}, weights)
    mapping = config.model_dump(mode="json")
    mapping["base_model"] = str(copies["base_model"])
    mapping["evaluation"]["face"]["encoder"] = str(copies["face"])
    mapping["evaluation"]["clip"]["model"] = f"local-dir:{copies['clip']}"
    return SweepConfig.model_validate(mapping)


def test_the_base_models_row_is_the_zero_line(prepared: Path) -> None:
    """Step 0, no checkpoint, the trials' own prompts and seeds."""
    base = RunFolder(prepared).base()
    assert base is not None
    (entry,) = base.checkpoints
    assert (base.method, entry.step, entry.checkpoint, entry.num_images) == ("base", 0, None, 2)
    assert len(list((prepared / entry.images).glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("subject", "token"),
    [
        ({"instance_prompt": "a photo of sks woman", "class_prompt": "a photo of a woman"}, "sks"),
        ({"instance_prompt": "a photo of ohwx ada", "class_prompt": "a photo of a woman"}, "ohwx ada"),
        ({"instance_prompt": "a photo of sks woman"}, "sks"),
        ({"instance_prompt": "A photo of sks woman, smiling", "class_prompt": "person"}, "sks"),
        ({"instance_prompt": "zwx", "rare_token": "zwx"}, "zwx"),
    ],
)
def test_the_rare_token_is_what_the_class_prompt_lacks(subject: dict[str, str], token: str) -> None:
    """CLIP is not asked about words that only the fine-tune knows."""
    assert rare_token(SubjectConfig(photos=Path("photos"), **subject)) == token


def test_both_methods_are_known() -> None:
    """Every method of the training room can be swept."""
    assert set(METHODS) == {"lora", "dreambooth"}


def test_a_point_asked_for_too_late_is_passed_over(folder: RunFolder) -> None:
    """at_steps [2, 4], then [1, 2, 3, 4]: what was scored stays as it is, the ledger is in the order of steps."""
    begin(folder).step()
    trial = trial_id(TRIAL)
    scored = {file: file.stat().st_mtime_ns for file in folder.checkpoint_dir(trial, 2).rglob("*") if file.is_file()}
    task = task_in(folder)
    finer = task.scoring.evaluation.model_copy(update={"at_steps": [1, 2, 3, 4]})
    task = replace(task, scoring=replace(task.scoring, evaluation=finer))
    worker = SweepTrial({"trial": trial, "task": task})
    while not worker.step()["done"]:
        pass
    assert [checkpoint.step for checkpoint in read(folder).checkpoints] == [2, 3, 4]
    assert {file: file.stat().st_mtime_ns for file in scored if STATE_FILE not in file.name} == {
        file: time for file, time in scored.items() if STATE_FILE not in file.name
    }
    assert not folder.checkpoint_dir(trial, 1).exists()


def test_a_lost_state_never_rewrites_what_was_scored(folder: RunFolder, uninterrupted: TrialRecord) -> None:
    """Where going on is impossible, the next point is trained from the start, and only that point is written."""
    begin(folder).step()
    trial_dir = folder.trial_dir(trial_id(TRIAL))
    (trial_dir / "checkpoint-2" / STATE_FILE).unlink()
    before = (trial_dir / "checkpoint-2" / "checkpoint.json").stat().st_mtime_ns
    worker = begin(folder)
    while not worker.step()["done"]:
        pass
    assert (trial_dir / "checkpoint-2" / "checkpoint.json").stat().st_mtime_ns == before
    assert outcome(read(folder))["checkpoints"] == outcome(uninterrupted)["checkpoints"]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("429 Too Many Requests"),
        UserError("base_model: no such file, folder or hub id: /mnt/models/sd15"),
        OSError(5, "Input/output error"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
    ids=["hub", "missing", "disk", "shared GPU"],
)
def test_what_a_machine_lacks_is_not_the_trials_fault(
    folder: RunFolder, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub's refusal, a folder that one machine lacks, a neighbour on the GPU: raised, to be tried elsewhere."""
    monkeypatch.setattr("sweeps.execution.worker.train", _raising(error))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (1, 10))
    with pytest.raises((ValueError, OSError, RuntimeError)):
        begin(folder).step()
    record = read(folder)
    assert (record.status, record.fault) == ("running", None)
    assert not record.is_over


def _raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(("fits", "status"), [(True, "running"), (False, "failed")])
def test_out_of_memory_is_tried_once_more_with_gradient_checkpointing(
    folder: RunFolder, fits: bool, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone on its GPU; what still does not fit is the settings' own fault. Another worker goes on sparing memory."""
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (10, 10))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda: 0)
    tried: list[bool] = []

    def train_in_small_memory(config: MethodConfig, *arguments: Any, **options: Any) -> Any:
        tried.append(config.gradient_checkpointing)
        if not (config.gradient_checkpointing and fits):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(config, *arguments, **options)

    monkeypatch.setattr("sweeps.execution.worker.train", train_in_small_memory)
    monkeypatch.setattr(TrialResources, "device", "cpu")  # the memory is pretended, the device is not
    task = replace(task_in(folder), resources={"lora": TrialResources(cpus=1, gpus=1)})
    begin(folder)
    worker = SweepTrial({"trial": trial_id(TRIAL), "task": task})
    worker.step()
    record = read(folder)
    assert tried == [False, True]
    assert (record.status, record.spares_memory) == (status, True)
    traceback_file = folder.trial_dir(record.trial) / TRACEBACK_FILE
    assert traceback_file.exists() == (not fits)
    if fits:
        again = begin(folder)
        assert again._hyperparameters.gradient_checkpointing
        assert again.step()["step"] == 4, "it goes on from a checkpoint that was trained with it"
    else:
        assert record.fault == "trial"
        assert "OutOfMemoryError" in traceback_file.read_text()


def test_a_run_begun_on_a_cpu_is_not_gone_on_with_on_a_gpu(
    prepared: Path, tiny_sweep: Callable[..., SweepConfig]
) -> None:
    """Pictures are made in half precision there: their scores would be compared with others."""
    asked = Preparation.of(tiny_sweep(), RunFolder(prepared), "cuda")
    with pytest.raises(UserError, match="another device"):
        list(prepare_run(asked))


def test_a_text_that_only_the_loaded_models_can_count_is_refused_before_anything_is_made(
    tiny_mapping: dict[str, Any], tmp_path: Path
) -> None:
    """As with a base model of the hub, whose tokenizer was not here when the sweep was checked."""
    long = " ".join(["garden"] * 90)
    for section, place in (("evaluation", r"evaluation\.negative_prompt"), ("subject", r"subject\.class_prompt")):
        changed = {"evaluation": {"negative_prompt": long}, "subject": {"class_prompt": long}}[section]
        config = parse_sweep({**tiny_mapping, section: {**tiny_mapping[section], **changed}})
        folder = RunFolder(tmp_path / section)
        with pytest.raises(UserError, match=rf"{place}: .* reads 77 tokens and would not read 'garden garden"):
            prepare(config, folder)
        assert folder.base() is None


def test_what_is_special_about_the_photos_is_said_before_the_first_trial(
    tiny_mapping: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    """A subfolder that is not read, a reference without a face; again on the next run, which looks at no photo anew."""
    demo = Path(__file__).parents[3] / "examples" / "demo"
    own = shutil.copytree(photos, tmp_path / "photos")
    (own / "old").mkdir()
    shutil.copy(own / "photo_1.png", own / "old")
    black = tmp_path / "references" / "black [1].png"
    black.parent.mkdir()
    Image.new("RGB", (64, 64)).save(black)
    shutil.copy(demo / "photos" / "000.png", black.with_name("face.png"))
    mapping = {**tiny_mapping, "subject": {**tiny_mapping["subject"], "photos": str(own), "crop": "face"}}
    evaluation = {**tiny_mapping["evaluation"]}
    face = {"encoder": str(demo / "family" / "face_encoder"), "references": str(black.parent)}
    mapping["evaluation"] = {**evaluation, "face": face}
    config, folder = load_sweep(write_sweep(tmp_path / "sweep.yaml", mapping)), RunFolder(tmp_path / "run")
    said = prepare_subject(config, folder)
    assert f"passed over in {own}: old/ (1 picture)" in said
    assert "reference photos without a face, left out of the mean: black [1].png" in said
    assert prepare_subject(config, folder) == said
