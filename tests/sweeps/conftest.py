"""Fixtures of the sweeps room."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sweeps.cli import main
from sweeps.config import SweepConfig, parse_sweep
from tests.sweeps.browser import CHROMEDRIVER, CHROMIUM, Browser, chromium
from tests.sweeps.command import Command, Outcome
from tests.sweeps.tiny_sweep import build_face_encoder, sweep_mapping

if TYPE_CHECKING:
    from tests.sweeps.s3_server import S3Server


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


@pytest.fixture(scope="session")
def _one_s3_server() -> Iterator[S3Server]:
    from tests.sweeps.s3_server import S3Server  # moto takes a second, and most tests have no use for it

    server = S3Server()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(_one_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server on this machine; this process asks it as `head`, as its environment says."""
    from s3fs import S3FileSystem

    for name, value in _one_s3_server.environment("head").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")  # so that an error which lasts costs a second, not five
    S3FileSystem.clear_instance_cache()  # which an earlier test may have pointed elsewhere
    _one_s3_server.log.clear()
    yield _one_s3_server
    S3FileSystem.clear_instance_cache()
