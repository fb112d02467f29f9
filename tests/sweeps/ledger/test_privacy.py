"""Who may look into a run folder, by its modes: weights, photos and pictures alike."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from evaluation.references import References
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.mirror import open_run
from sweeps.ledger.privacy import make_run_dir, open_to_all
from tests.sweeps.ledger_entries import record
from training.files import whole_folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=lambda umask: f"{umask:03o}")
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The usual one, one of people who share by group, and a strict one."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_new_run_folder_is_its_users_alone(tmp_path: Path, umask: int) -> None:
    """On the driver, and on a machine that has a copy of its own."""
    with RunFolder(tmp_path / "runs" / "ada").lock():
        assert mode(tmp_path / "runs" / "ada") == 0o700
    open_run(tmp_path / "copy" / "ada", str(tmp_path / "storage"))
    assert mode(tmp_path / "copy" / "ada") == 0o700
    assert open_to_all(tmp_path / "copy" / "ada") is None


def test_below_a_folder_of_a_group_the_group_may_work(tmp_path: Path, umask: int) -> None:
    """Set-group-ID says that the folder is shared; the umask still has its say."""
    tmp_path.chmod(0o2770)
    make_run_dir(tmp_path / "ada")
    assert mode(tmp_path / "ada") & 0o777 == 0o770 & ~umask


def test_a_folder_that_exists_keeps_its_mode_and_is_named_if_open(tmp_path: Path) -> None:
    """Its owner may want it so; what it means is said."""
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada").chmod(0o755)
    make_run_dir(tmp_path / "ada")
    assert mode(tmp_path / "ada") == 0o755
    assert f"{tmp_path / 'ada'}: every user" in str(open_to_all(tmp_path / "ada"))
    (tmp_path / "ada").chmod(0o750)
    assert open_to_all(tmp_path / "ada") is None


def test_files_are_as_open_as_the_umask_says_whoever_wrote_them(tmp_path: Path, umask: int) -> None:
    """Weights, numbers of faces and ledger alike: safetensors alone would write for its user only."""
    folder = RunFolder(tmp_path / "ada")
    make_run_dir(folder.dir)
    folder.write(record("t"))
    References("judge", np.eye(2, 4, dtype=np.float32), ("a", "b"), ("c", "d")).save(folder.reference_file)
    with whole_folder(folder.checkpoint_dir("t", 4)) as part:
        (part / "unet").mkdir()
        save_file({"weight": np.zeros(2)}, part / "unet" / "model.safetensors")
        (part / "checkpoint.json").write_text("{}")
    files = [file for file in folder.dir.rglob("*") if file.is_file()]
    assert len(files) == 4
    assert {file.name: mode(file) for file in files} == {file.name: 0o666 & ~umask for file in files}
