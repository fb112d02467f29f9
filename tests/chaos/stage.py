"""Where the faults are made: the models, one small sweep, a folder for every case, and drivers that can be watched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import yaml

from sweeps.asked import listed_trials
from sweeps.config import SweepConfig, parse_sweep, rare_token
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import trial_id
from sweeps.results.results import read_results
from tests.chaos.judge import Champion, Outcome
from tests.chaos.log import Entry, read_log
from tests.sweeps.tiny_sweep import sweep_mapping

ROOT = Path(__file__).parents[2]
SIDES = ("dreamsweep", "ray")
Side = Literal["dreamsweep", "ray"]
NUM_STEPS = 12
AT_STEPS = [4, 8, 12]
AT_ONCE = 2
PATIENCE_SECONDS = 600
"""For a run, however loaded the machine is; a driver that takes longer is killed and said to hang."""
POLL_SECONDS = 0.01


class Stage:
    """Models, sweep file and prepared photos in a folder of their own: the same for every case of both sides.

    Args:
        dir: an empty folder outside of everything that a fault is done to.
    """

    def __init__(self, dir: Path) -> None:  # noqa: A002 -- the attribute's name
        from tests.tiny_models import build_clip, build_pipeline, draw_photos

        self.dir = dir
        dir.mkdir(parents=True)
        base_model = build_pipeline(dir / "base")
        clip = f"local-dir:{build_clip(dir / 'clip')}"
        photos = draw_photos(dir / "photos")
        mapping = sweep_mapping(str(base_model), photos, clip, _face_encoder(dir / "face", photos))
        for space in mapping["methods"].values():
            space["max_train_steps"] = NUM_STEPS
        mapping["evaluation"]["at_steps"] = AT_STEPS
        mapping["search"]["max_concurrent_trials"] = AT_ONCE
        mapping["champion"] = {
            "prompt_alignment_margin": 2.0
        }  # whatever the drawn models score, somebody is the champion
        self.sweep_file = dir / "sweep.yaml"
        self.sweep_file.write_text(yaml.safe_dump(mapping, sort_keys=False))  # trials come in this order on both sides
        self.config: SweepConfig = parse_sweep(mapping)
        self.trials = [{"name": trial_id(t), "config": t.model_dump(mode="json")} for t in listed_trials(self.config)]
        self.prepared = dir / "prepared"
        self.killed: dict[str, tuple[Path, Driver]] = {}
        """Side -> a copy of a sweep whose driver was killed in its middle, and that driver."""
        self._prepare()

    def _prepare(self) -> None:
        """Photos, latents and the base model's scores, made once for both sides."""
        environ = dict(os.environ)
        from sweeps.execution.preparation import Preparation, prepare_subject
        from sweeps.execution.stages import prepare_run

        os.environ.clear()  # what that import set for Ray Tune is not for the plain side
        os.environ.update(environ)
        folder = RunFolder(self.prepared)
        prepare_subject(self.config, folder)
        for _said in prepare_run(Preparation.of(self.config, folder, "cpu")):
            pass

    def case(self, name: str, side: Side) -> Case:
        """A fresh run folder for one case of one side."""
        return Case(self, name, side)


def _face_encoder(folder: Path, photos: Path) -> Path:
    """An encoder of random weights that sees a face in everything and tells pictures apart.

    Its embeddings are measured from the photos' mean: without that they all point the same way, and one trial is as
    good as the other.
    """
    import torch
    from PIL import Image
    from safetensors.torch import save_file
    from torchvision.transforms.functional import pil_to_tensor

    from evaluation.drawn_face import DrawnFaceNetwork

    settings = {"side": 32, "channels": [8, 8, 16, 16], "embedding_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DrawnFaceNetwork(**settings).eval()
    pictures = [Image.open(file).convert("RGB").resize((32, 32)) for file in sorted(photos.iterdir())]
    batch = torch.stack([pil_to_tensor(picture) / 127.5 - 1 for picture in pictures])
    with torch.no_grad():
        features = network.blocks(torch.relu(network.stem(batch))).flatten(1)
        network.embed.bias.copy_(-network.embed.weight @ features.mean(0))
        network.find.weight.zero_()
        network.find.bias.copy_(torch.tensor([9.0, 0.2, 0.2, 0.8, 0.8]))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


class Driver:
    """A driver in a process of its own, its words in files."""

    def __init__(self, command: list[str], words: Path) -> None:
        self._words = words
        with words.open("wb") as errors, words.with_suffix(".out").open("wb") as output:
            self.process = subprocess.Popen(  # noqa: S603
                command, cwd=ROOT, env=_environment(), stdout=output, stderr=errors
            )
        self.hung = False

    def end(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for its end; one that does not come is brought about."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.hung = True
            self.process.kill()
            return self.process.wait()

    def send(self, number: signal.Signals) -> None:
        """A signal to this very process."""
        self.process.send_signal(number)

    @property
    def last_words(self) -> str:
        """What it said on standard error in the end: the product's own complaint, or the last line."""
        if self.hung:
            return f"nothing for {PATIENCE_SECONDS} s, then killed"
        if self.process.returncode == -signal.SIGKILL:
            return ""
        lines = [line.strip() for line in self._words.read_text(errors="replace").splitlines() if line.strip()]
        first = [line for line in lines if line.startswith(("dreamsweep: ", "*** "))]  # before a stack of addresses
        return (first[:1] or lines[-1:] or [""])[0]


def _environment() -> dict[str, str]:
    ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "250"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))}
    return {**kept, **ours}


class Case:
    """One fault done to one side: its run folder, its log, its drivers in turn.

    Args:
        stage: what the sweep needs.
        name: the fault's.
        side: whose sweep it is.
    """

    def __init__(self, stage: Stage, name: str, side: Side) -> None:
        self.stage, self.name, self.side = stage, name, side
        self.out = stage.dir / "cases" / side  # the same for every case: Tune writes down where it was
        self.out.mkdir(parents=True)
        self.run_dir = self.out / "tiny"
        self.address: str | None = None
        self.drivers: list[Driver] = []
        if side == "dreamsweep":
            shutil.copytree(stage.prepared, self.run_dir)

    def start(self, *overrides: str) -> Driver:
        """The command that a user gives, the same every time; `overrides` of the sweep file are dreamsweep's alone."""
        words = self.out / f"words-{len(self.drivers)}.err"
        if self.side == "dreamsweep":
            command = ["tests.chaos.dreamsweep_side", "run", str(self.stage.sweep_file), "--out", str(self.out)]
            command += ["--address", self.address] if self.address else []
            command += [part for override in overrides for part in ("--set", override)]
        else:
            command = ["tests.chaos.ray_side", str(self._plan_file()), *([self.address] if self.address else [])]
        driver = Driver([sys.executable, "-m", *command], words)
        self.drivers.append(driver)
        return driver

    def _plan_file(self) -> Path:
        config, file = self.stage.config, self.out / "plan.json"
        plan = {
            "run_dir": str(self.run_dir),
            "dataset": str(self.stage.prepared / "dataset"),
            "base_model": config.base_model,
            "evaluation": config.evaluation.model_dump(mode="json"),
            "rare_token": rare_token(config.subject),
            "trials": self.stage.trials,
        }
        file.write_text(json.dumps(plan))
        return file

    def keep_as_killed(self) -> None:
        """Keep a copy of everything, for the cases that begin with the same killed driver."""
        copy = self.stage.dir / f"killed-{self.side}"
        shutil.copytree(self.out, copy, symlinks=True)
        self.stage.killed[self.side] = copy, self.drivers[-1]

    def take_up_killed(self) -> Driver | None:
        """Begin with the copy of the sweep whose driver was killed, if there is one; that driver."""
        if self.side not in self.stage.killed:
            return None
        copy, driver = self.stage.killed[self.side]
        shutil.rmtree(self.out)
        shutil.copytree(copy, self.out, symlinks=True)
        self.drivers.append(driver)
        return driver

    def log(self) -> list[Entry]:
        """Everything that the judge knows."""
        return read_log(self.run_dir)

    def wait_for(self, happened: Callable[[list[Entry]], bool], *drivers: Driver) -> None:
        """Until the log says that something has happened: progress, not time.

        Raises:
            RuntimeError: the drivers have ended, or nothing came for too long.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not happened(self.log()):
            if all(driver.process.poll() is not None for driver in drivers) or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: no fault was made: {drivers[-1].last_words}")
            time.sleep(POLL_SECONDS)

    def outcome(self) -> Outcome:
        """What the product says now: its finished trials and its champion."""
        if self.side == "ray":
            file = Path(f"{self.run_dir}.outcome.json")
            return Outcome.of(json.loads(file.read_text())) if file.exists() else Outcome((), None)
        return outcome_in(self.run_dir)

    def clear_away(self) -> None:
        """End what the case has left running, by the pids of its own drivers and trials; keep its files aside."""
        for driver in self.drivers:
            if driver.process.poll() is None:
                driver.process.kill()
                driver.process.wait()
        pids = {entry["pid"] for entry in self.log()} - {driver.process.pid for driver in self.drivers}
        deadline = time.monotonic() + 60
        while (alive := {pid for pid in pids if _is_trial(pid)}) and time.monotonic() < deadline:
            time.sleep(1)
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.out.rename(self.out.with_name(f"{self.name}-{self.side}"))


def outcome_in(run_dir: Path) -> Outcome:
    """What dreamsweep's run folder says."""
    results = read_results(run_dir)
    finished = (trial.trial for trial in results.trials if trial.status == "finished" and not trial.is_base)
    row = results.champion.row
    champion = Champion(row.trial, row.step, row.face_similarity, row.prompt_alignment) if row else None
    return Outcome(tuple(sorted(finished)), champion)


def _is_trial(pid: int) -> bool:
    """Is it still there, and still a worker of Ray's and not somebody else who got its number?"""
    try:
        return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def entries(log: list[Entry], event: str) -> list[Entry]:
    """The lines of one kind."""
    return [entry for entry in log if entry["event"] == event]
