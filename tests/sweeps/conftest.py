"""Fixtures of the sweeps room."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.cli import main
from sweeps.config import SweepConfig, parse_sweep
from tests.sweeps.browser import CHROMEDRIVER, CHROMIUM, Browser, chromium
from tests.sweeps.command import Command, Outcome
from tests.sweeps.tiny_sweep import build_face_encoder, sweep_mapping


@pytest.fixture(scope="session")
def drawn_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small face encoder that finds a face in any picture."""
    return build_face_encoder(tmp_path_factory.mktemp("faces") / "encoder")


@pytest.fixture(scope="session")
def tiny_mapping(tiny_base: str, photos: Path, tiny_clip: str, drawn_faces: Path) -> dict[str, Any]:
    """A sweep of four trials on small models, as plain mappings; copy it before changing it."""
    return sweep_mapping(tiny_base, photos, tiny_clip, drawn_faces)


@pytest.fixture(scope="session")
def tiny_sweep(tiny_mapping: dict[str, Any]) -> Callable[..., SweepConfig]:
    """A sweep on small models, with whole sections replaced."""

    def build(**sections: Any) -> SweepConfig:
        return parse_sweep({**tiny_mapping, **sections})

    return build


@pytest.fixture
def dreamsweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The `dreamsweep` command, called in this process."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["dreamsweep", *map(str, arguments)])
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        else:
            code = 0
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless Chromium; tests that ask for it are skipped where the machine has none."""
    for program, package in ((CHROMIUM, "chromium"), (CHROMEDRIVER, "chromium-driver")):
        if program is None:
            pytest.skip(f"needs {package} (a Debian package)")
    with chromium(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened
