"""Verbs that answer at once: what they import, looked at in fresh interpreters. No clock is asked.

pytest tests/sweeps/test_light_verbs.py     a few seconds
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.demo import demo_sweep_file
from tests.sweeps.fake_run import build_run

HEAVY = {"ray", "optuna", "torch", "diffusers", "transformers", "peft", "accelerate", "open_clip", "facenet_pytorch"}

CALL = """
import json, os, signal, sys, threading, urllib.request
from sweeps.cli import main
from sweeps.serving.server import SiteServer

def look_and_end():
    start = SiteServer.start
    def start_and_look(page):
        start(page)
        urllib.request.urlopen(page.page_address).read()
        os.kill(os.getpid(), signal.SIGTERM)
    SiteServer.start = start_and_look

sys.argv = ["dreamsweep", *json.loads(sys.argv[1])]
if sys.argv[1] in ("watch", "judge"):
    look_and_end()
code = 0
try:
    main()
except SystemExit as ended:
    code = ended.code or 0
print(json.dumps({"code": code, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def heavy_modules_of(*arguments: str) -> set[str]:
    """Call the command in a new process, see it succeed, and tell which heavy packages it has loaded."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", CALL, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["code"] == 0, done.stderr
    return HEAVY & set(said["modules"])


def test_help_and_check_load_nothing_heavy() -> None:
    """A sweep file with everything in it is checked without torch, Ray or Optuna."""
    assert heavy_modules_of("--help") == set()
    assert heavy_modules_of("check", str(demo_sweep_file())) == set()


def test_another_trainers_run_is_read_without_its_libraries() -> None:
    """Flags and defaults are data here: neither diffusers nor torch is asked."""
    run = "--pretrained_model_name_or_path=m --instance_data_dir=p --instance_prompt='sks woman' --max_train_steps=9"
    assert heavy_modules_of("import-command", f"accelerate launch train_dreambooth_lora.py {run}") == set()


def test_a_sweep_file_is_written_without_anything_heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the face encoder's weights are not here nothing is loaded to say so."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    photos = demo_sweep_file().parent / "photos"
    assert heavy_modules_of("init", str(photos), "--class-word", "woman", "--budget", "3h") == set()


@pytest.mark.parametrize("verb", ["submit", "fetch", "doctor"])
def test_a_clusters_verbs_are_explained_without_ray(verb: str) -> None:
    """Ray is loaded when a cluster is asked, not before."""
    assert heavy_modules_of(verb, "--help") == set()


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_search_is_planned_without_the_library_that_will_lead_it(sampler: str) -> None:
    """Whichever sampler the file names."""
    arguments = ("--set", f"search.sampler={sampler}", "--set", "search.num_trials=5")
    assert heavy_modules_of("check", str(demo_sweep_file()), *arguments) == set()


@pytest.mark.parametrize("verb", ["show", "report"])
def test_a_run_is_read_without_what_made_it(verb: str, tmp_path: Path) -> None:
    """The leaderboard and the page need the files alone."""
    assert heavy_modules_of(verb, str(build_run(tmp_path / "ada", num_trials=3))) == set()


@pytest.mark.parametrize("verb", ["watch", "judge"])
def test_a_run_is_served_without_what_made_it(verb: str, tmp_path: Path) -> None:
    """The page's server starts at once, and beside a driver it takes no memory for what it does not use."""
    run = build_run(tmp_path / "ada", num_trials=3)
    assert heavy_modules_of(verb, str(run), "--port", "0") == set()


@pytest.mark.parametrize("module", ["run", "trial", "server"])
def test_who_asks_others_to_compute_loads_nothing_that_computes(module: str) -> None:
    """The driver, a trial beside its server, and a server before its first work: so a sweep begins at once."""
    code = f"import json, sys; import sweeps.execution.{module}; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert HEAVY & set(json.loads(done.stdout.splitlines()[-1])) <= {"ray", "optuna"}
