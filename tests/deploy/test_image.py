"""Laws of `deploy/Dockerfile` and `.dockerignore`: what the image is built from is enough, and no more.

pytest tests/deploy/test_image.py     seconds; no Docker
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.machine import CLONE

DOCKERFILE = CLONE / "deploy/Dockerfile"


def context() -> list[str]:
    """What `.dockerignore` lets in."""
    lines = (CLONE / ".dockerignore").read_text().splitlines()
    assert "*" in lines, "nothing else is let in"
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


def test_hadolint_finds_nothing() -> None:
    """The linter for Dockerfiles agrees."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_one_ray_everywhere_and_not_root() -> None:
    """The image is of the Ray in constraints.txt and in cluster.yaml, and its user is Ray's, by number."""
    text = DOCKERFILE.read_text()
    [base] = re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert yaml.safe_load((CLONE / "cluster.yaml").read_text())["docker"]["image"] == base
    assert f"ray=={base.partition(':')[2].partition('-')[0]}\n" in (CLONE / "constraints.txt").read_text()
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["1000:100"]


def test_the_context_holds_nothing_of_a_person() -> None:
    """No photos but the demo's drawn ones, no runs, no history, no token."""
    assert all((CLONE / path).exists() for path in context())
    assert not {".", ".git", "photos", "runs", "examples"} & set(context())
    for copied in re.findall(r"^COPY (\S+)", DOCKERFILE.read_text(), re.MULTILINE):
        assert copied in context()


def built_from() -> dict[str, list[str]]:
    """Paths that dreamsweep is installed from: on a cluster's machines, and in the image."""
    mounts = yaml.safe_load((CLONE / "deploy/machines.yaml").read_text())["file_mounts"]
    return {"machines": [local for remote, local in mounts.items() if "dreamsweep" in remote], "image": context()}


@pytest.mark.parametrize("paths", built_from().values(), ids=list(built_from()))
def test_dreamsweep_is_built_from_what_is_copied(paths: list[str], tmp_path: Path) -> None:
    """It is enough for the whole wheel, and nothing is written beside it (the folder is read-only)."""
    source = tmp_path / "source"
    for path in paths:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        if (CLONE / path).is_dir():
            shutil.copytree(CLONE / path, source / path, ignore=shutil.ignore_patterns("__pycache__", ".work"))
        else:
            shutil.copy(CLONE / path, source / path)
    before = sorted(source.rglob("*"))
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / done.stdout.split()[-1]).exists()
    assert sorted(source.rglob("*")) == before
