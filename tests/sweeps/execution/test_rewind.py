"""Weights that were damaged after their trial had ended are named, and trained again by the run command.

pytest tests/sweeps/execution/test_rewind.py     about 30 seconds
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sweeps.asked import listed_trials
from sweeps.config import SweepConfig, resolved_yaml
from sweeps.execution.preparation import Preparation, prepare_subject
from sweeps.execution.rewind import rewind_damaged
from sweeps.execution.stages import prepare_run
from sweeps.execution.task import TrialTask
from sweeps.execution.trial import SweepTrial
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import trial_id
from sweeps.ledger.records import TrialRecord
from sweeps.results.leaderboard import Row
from sweeps.results.results import read_results
from tests.sweeps.command import Command
from tests.sweeps.tiny_sweep import ONE_CPU
from training.errors import UserError
from training.layout import LORA_FILE, MANIFEST_FILE


@pytest.fixture(scope="module")
def ended(tiny_sweep: Callable[..., SweepConfig], tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepConfig, Path]:
    """A sweep of one LoRA that has ended."""
    lora = {"rank": 2, "learning_rate": 1e-3, "max_train_steps": 4, "train_batch_size": 1}
    # With every checkpoint able to be the champion.
    config = tiny_sweep(methods={"lora": lora}, champion={"prompt_alignment_margin": 2.0})
    folder = RunFolder(tmp_path_factory.mktemp("ended") / "run")
    folder.write_sweep(resolved_yaml(config))
    prepare_subject(config, folder)
    list(prepare_run(Preparation.of(config, folder, "cpu")))
    (trial,) = listed_trials(config)
    folder.write(
        TrialRecord(trial=trial_id(trial), method="lora", status="running", config=trial.model_dump(mode="json"))
    )
    go_on(config, folder)
    return config, folder.dir


@pytest.fixture
def run(ended: tuple[SweepConfig, Path], tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(ended[1], tmp_path / "run"))


def go_on(config: SweepConfig, folder: RunFolder) -> None:
    """A worker takes the one trial up, as Ray would let it."""
    (record,) = folder.trials()
    task = TrialTask.of(config, folder, ONE_CPU)
    worker = SweepTrial({"trial": record.trial, "task": task, "config": record.config, "avoid": []})
    while not worker.step()["done"]:
        pass


def champion(folder: RunFolder) -> Row:
    row = read_results(folder.dir).champion.row
    assert row is not None
    return row


def assert_equal(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    """To the bit; of the file's header safetensors leaves the order open."""
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights flipped": lambda folder: flip(folder / LORA_FILE),
    "weights cut": lambda folder: (folder / LORA_FILE).write_bytes((folder / LORA_FILE).read_bytes()[:-5]),
    "weights gone": lambda folder: (folder / LORA_FILE).unlink(),
    "manifest empty": lambda folder: (folder / MANIFEST_FILE).write_bytes(b""),
    "folder emptied": lambda folder: [file.unlink() for file in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_champion_is_trained_again_to_equal_weights(
    ended: tuple[SweepConfig, Path], run: RunFolder, damage: str
) -> None:
    """The run goes on before the damage, by the trial's own seed: equal weights, equal scores, nothing else touched."""
    before, file = champion(run), run.inside(str(champion(run).checkpoint)) / LORA_FILE
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    DAMAGES[damage](file.parent)
    (said,) = rewind_damaged(run)
    assert f"{before.trial}: the weights of step {before.step} are damaged" in said
    (record,) = run.trials()
    assert not record.is_over
    assert all(entry.step < before.step for entry in record.checkpoints)
    go_on(ended[0], run)
    assert_equal(load_file(file), weights)
    after = champion(run)
    assert (after.key, after.face_similarity, after.prompt_alignment) == (
        before.key,
        before.face_similarity,
        before.prompt_alignment,
    )
    assert list(rewind_damaged(run)) == []


def test_nothing_is_set_back_without_damage(run: RunFolder) -> None:
    """A whole run stays as it is, to the byte."""
    files = {file: file.read_bytes() for file in run.dir.rglob("*") if file.is_file()}
    assert list(rewind_damaged(run)) == []
    assert {file: file.read_bytes() for file in run.dir.rglob("*") if file.is_file()} == files
    assert read_results(run.dir).weights is None


def test_damage_that_sizes_show_is_named_by_every_verb(dreamsweep: Command, run: RunFolder, tmp_path: Path) -> None:
    """`show` and `report` name the checkpoint and the way out and still show the scores; `export` refuses."""
    row = champion(run)
    DAMAGES["weights cut"](run.inside(str(row.checkpoint)))
    shown, reported = dreamsweep("show", run.dir), dreamsweep("report", run.dir)
    exported = dreamsweep("export", run.dir, tmp_path / "export", "--format", "lora")
    assert (shown.code, reported.code, exported.code) == (0, 0, 2)
    for text in (shown.out, (run.dir / "report.html").read_text(encoding="utf-8"), exported.err):
        assert str(row.checkpoint) in text.replace("\n", "")
        assert "are damaged" in text
        assert "trains them anew" in " ".join(text.split())
    assert not (tmp_path / "export").exists()


def test_weights_deleted_on_purpose_stay_deleted_and_are_called_so(
    ended: tuple[SweepConfig, Path], dreamsweep: Command, run: RunFolder, tmp_path: Path
) -> None:
    """Scores stand and nothing is trained; the message says how to have them back, and that is true."""
    row = champion(run)
    folder = run.inside(str(row.checkpoint))
    weights = {name: tensor.clone() for name, tensor in load_file(folder / LORA_FILE).items()}
    shutil.rmtree(folder)
    assert list(rewind_damaged(run)) == []
    assert champion(run).face_similarity == row.face_similarity
    shown = " ".join(dreamsweep("show", run.dir).out.split())
    exported = dreamsweep("export", run.dir, tmp_path / "export", "--format", "lora")
    assert exported.code == 2
    for text in (shown, exported.err):
        assert "were deleted, their scores stand" in text
        assert f"make the empty folder {row.checkpoint}" in text
    folder.mkdir()
    assert len(list(rewind_damaged(run))) == 1
    go_on(ended[0], run)
    assert_equal(load_file(folder / LORA_FILE), weights)


def test_a_ledger_that_names_a_place_outside_is_not_followed(run: RunFolder) -> None:
    """Nothing outside of the run folder is compared, deleted or trained over."""
    (record,) = run.trials()
    outside = tuple(entry.model_copy(update={"checkpoint": "../../outside"}) for entry in record.checkpoints)
    run.write(record.model_copy(update={"checkpoints": outside}))
    assert list(rewind_damaged(run)) == []
    assert "must stay inside the run folder" in str(read_results(run.dir).weights)
    with pytest.raises(UserError):
        run.inside("../../outside")
