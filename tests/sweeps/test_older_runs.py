"""Run folders that earlier versions wrote are shown, reported, exported and gone on with. About 20 seconds.

`runs/` holds them as they were written but for the paths of their repository; `runs/v0.1/README.md` says what is in it.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from sweeps.config import load_sweep
from sweeps.execution.task import TrialTask
from sweeps.execution.trial import SweepTrial
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import evaluation_key, photos_key, trial_id
from sweeps.results.results import read_results
from tests.sweeps.command import Command
from tests.sweeps.tiny_sweep import ONE_CPU

REPOSITORY = Path(__file__).parents[2]
RUNS = Path(__file__).parent / "runs"
PLACEHOLDER = "@REPOSITORY@"

CHAMPION = ("lora_r1_lr1e-3_1c277f", 4)
LEADERBOARD = [
    ("lora_r1_lr1e-3_1c277f", 4, 0.151326),
    ("lora_r2_lr1e-3_d671ac", 4, 0.143595),
    ("lora_r1_lr1e-3_1c277f", 2, 0.130753),
    ("lora_r2_lr1e-3_d671ac", 2, 0.125476),
    ("lora_r1_lr5e-4_8c5be8", 2, 0.114748),
    ("dreambooth_lr1e-5_599609", 4, 0.105903),
    ("dreambooth_lr1e-5_599609", 2, 0.103928),
    ("base", 0, 0.098968),
]
"""Trial, step and face similarity of every scored checkpoint, best first."""
STATUSES = {
    "base": "finished",
    "dreambooth_lr1e-5_599609": "finished",
    "dreambooth_lr1e0_02100b": "failed",
    "lora_r1_lr1e-3_1c277f": "finished",
    "lora_r1_lr5e-4_8c5be8": "running",
    "lora_r2_lr1e-3_d671ac": "finished",
}
WEIGHTS = {
    "lora": "pytorch_lora_weights.safetensors",
    "kohya": "ada.safetensors",
    "diffusers": "unet/diffusion_pytorch_model.safetensors",
}
"""The file by which people load each format."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the run that 0.1.0 wrote, its models and photos those of this repository's demo."""
    copy = shutil.copytree(RUNS / "v0.1" / "ada", tmp_path / "ada")
    for name in ("sweep.yaml", "renders/renders.json"):
        text = (copy / name).read_text(encoding="utf-8")
        assert PLACEHOLDER in text
        (copy / name).write_text(text.replace(PLACEHOLDER, str(REPOSITORY)), encoding="utf-8")
    return copy


def test_every_trial_is_read(run: Path) -> None:
    """No file is left out or misread, and each trial is in the state in which it was left."""
    results = read_results(run)
    assert results.warnings == ()
    assert {trial.trial: trial.status for trial in results.trials} == STATUSES
    (failed,) = [trial for trial in results.trials if trial.status == "failed"]
    assert failed.fault == "trial"
    assert failed.reason is not None
    assert failed.reason.startswith("NonFinitePictureError")
    (cut,) = [trial for trial in results.trials if trial.status == "running"]
    assert [entry.step for entry in cut.checkpoints] == [2]
    assert not cut.is_over


def test_show_prints_the_leaderboard_that_was_recorded(dreamsweep: Command, run: Path) -> None:
    """Every scored checkpoint in its place, with its scores, and the champion that 0.1.0 named in results.csv."""
    with (run / "results.csv").open(encoding="utf-8", newline="") as file:
        recorded = list(csv.DictReader(file))
    outcome = dreamsweep("show", run, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    rows = json.loads(outcome.out)
    assert [(row["trial"], row["step"], round(row["face_similarity"], 6)) for row in rows] == LEADERBOARD
    assert [(row["trial"], row["step"]) for row in rows if row["champion"]] == [CHAMPION]
    assert [(row["trial"], int(row["step"])) for row in recorded if row["champion"] == "True"] == [CHAMPION]


def test_report_names_the_champion(dreamsweep: Command, run: Path) -> None:
    """One page, without complaint, whose headline names it and whose tables mark it and nothing else."""
    outcome = dreamsweep("report", run)
    assert (outcome.code, outcome.err) == (0, "")
    html = (run / "report.html").read_text(encoding="utf-8")
    trial, step = CHAMPION
    (headline,) = re.findall(r'<p class="trial-name">(.*?)</p>', html)
    assert f"{trial} · trials/{trial}/checkpoint-{step}" in headline
    marked = re.findall(r'<tr [^>]*class="is-champion">(.*?)</tr>', html, flags=re.DOTALL)
    assert marked
    assert all(trial in row for row in marked)


@pytest.mark.parametrize("format", WEIGHTS)
def test_a_finished_lora_is_exported(dreamsweep: Command, run: Path, tmp_path: Path, format: str) -> None:  # noqa: A002
    """Its best checkpoint is whole, whatever place its base model had where it was trained."""
    dest = tmp_path / "export"
    outcome = dreamsweep("export", run, dest, "--trial", "lora_r2_lr1e-3_d671ac", "--format", format)
    assert outcome.code == 0, outcome.err
    marker = json.loads((dest / "dreamsweep.json").read_text(encoding="utf-8"))
    assert (marker["format"], marker["trial"], marker["step"]) == (format, "lora_r2_lr1e-3_d671ac", 4)
    assert (dest / WEIGHTS[format]).stat().st_size > 100_000


def test_a_trial_without_its_weights_is_not_exported(dreamsweep: Command, run: Path, tmp_path: Path) -> None:
    """Weights that were deleted to save disk are missed in one line that names the checkpoint; nothing is written."""
    dest = tmp_path / "export"
    outcome = dreamsweep("export", run, dest, "--trial", "dreambooth_lr1e-5_599609", "--format", "diffusers")
    assert outcome.code == 2, outcome
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert "dreambooth_lr1e-5_599609/checkpoint-" in outcome.err
    assert not dest.exists()


def test_a_run_is_the_same_experiment_still(run: Path) -> None:
    """Its photos and its evaluation have the keys that were claimed then, and its trials the ids they were given."""
    config, folder = load_sweep(run / "sweep.yaml"), RunFolder(run)
    claims = folder.identity()
    assert photos_key(config.subject, config.evaluation.face.references) == claims["photos"]
    assert evaluation_key(config.evaluation) == claims["evaluation"]
    assert {trial_id(record.method_config) for record in folder.trials()} == STATUSES.keys() - {"base"}


def test_a_trial_that_was_cut_goes_on(run: Path) -> None:
    """From the checkpoint and the training state that it left; what was scored stays scored."""
    folder = RunFolder(run)
    before = folder.read("lora_r1_lr5e-4_8c5be8")
    assert before is not None
    task = TrialTask.of(load_sweep(run / "sweep.yaml"), folder, ONE_CPU)
    assert SweepTrial({"trial": before.trial, "task": task}).step()["done"] is True
    after = folder.read(before.trial)
    assert after is not None
    assert (after.status, after.num_restarts, [c.step for c in after.checkpoints]) == ("finished", 1, [2, 4])
    assert after.checkpoints[0] == before.checkpoints[0]
