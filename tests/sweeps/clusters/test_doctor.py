"""Each finding is well where all is, and says what to do where not. No Ray, no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.clusters import doctor
from sweeps.clusters.findings import Finding
from sweeps.clusters.machine import Gpu, Machine, gpus_in, look_at_machine
from sweeps.clusters.there import checks
from sweeps.clusters.there.checks import Seen
from sweeps.config import SweepConfig
from sweeps.execution.launcher import Growth, NodeType

A10 = Gpu("NVIDIA A10G", 23028, 0, "580.65.06")
VERSIONS = {"ray": "2.60.0", "torch": "2.14.1"}


def seen(address: str = "10.0.0.1", *, asked: float = 100, answered: float = 100.1, **said: object) -> Seen:
    """A machine that is well, with what is not said otherwise."""
    machine = {
        "python": "3.11.7",
        "versions": VERSIONS,
        "gpus": (),
        "free_bytes": 10**12,
        "probe": "text",
        "writes": "",
        "models": {"/models/sd15": True},
        "clock": 100.05,
    }
    return Seen(address, 4, 0, Machine(**{**machine, **said}), asked, answered)  # type: ignore[arg-type]


def ill(findings: object) -> str:
    """What is not well, in one text."""
    assert isinstance(findings, list)
    return "; ".join(finding.said for finding in findings if not finding.is_well)


def test_a_machine_is_looked_at_without_torch(tmp_path: Path) -> None:
    """Disk, probe and models are told as they are."""
    (tmp_path / "probe").write_text("text")
    machine = look_at_machine(["torch", "no-such-package"], str(tmp_path), "probe", [str(tmp_path), "/nowhere"])
    assert machine.probe == "text"
    assert machine.writes == ""
    assert set(machine.versions) == {"torch"}
    assert machine.models == {str(tmp_path): True, "/nowhere": False}
    gone = look_at_machine([], str(tmp_path / "gone"), "probe", [])
    assert (gone.free_bytes, gone.probe) == (None, "")
    assert "No such file" in gone.writes


def test_the_drivers_table_is_read() -> None:
    """A memory that it does not know is 0; a line of another kind is none."""
    said = "NVIDIA A10G, 23028, 0, 580.65.06\nNVIDIA Odd, [N/A], [N/A], 580\nno devices were found\n"
    assert gpus_in(said) == (A10, Gpu("NVIDIA Odd", 0, 0, "580"))


@pytest.mark.parametrize(("url", "is_well"), [("127.0.0.1:8265", True), ("10.0.0.1:8265", False), ("[::1]:8265", True)])
def test_a_dashboard_listens_on_loopback(url: str, is_well: bool) -> None:
    """Anywhere else it is open to whoever reaches the head."""
    (finding,) = checks.of_dashboard(url)
    assert finding.is_well == is_well


def test_silent_machines_are_named() -> None:
    """By their addresses."""
    silent = Seen("10.0.0.9", 4, 0, None, 0, 120)
    assert "10.0.0.9" in ill(list(checks.of_nodes([seen(), silent])))
    assert not ill(list(checks.of_nodes([seen()])))


def test_versions_that_differ_are_named() -> None:
    """Between machines, and of Ray between here and there; another torch there than here is told and is well."""
    other = seen("10.0.0.2", versions={"ray": "2.60.0", "torch": "2.9.0"})
    assert "torch differs: 10.0.0.1 2.14.1, 10.0.0.2 2.9.0" in ill(list(checks.of_versions([seen(), other], VERSIONS)))
    assert "10.0.0.2 lacks torch" in ill(
        list(checks.of_versions([seen("10.0.0.2", versions={"ray": "2.60.0"})], VERSIONS))
    )
    assert "python" not in ill(list(checks.of_versions([seen()], VERSIONS)))
    assert "3.12" in ill(list(checks.of_versions([seen(), seen("b", python="3.12.1")], VERSIONS)))
    assert "ray 2.60.0 there" in ill(list(checks.of_versions([seen()], {**VERSIONS, "ray": "2.59.0"})))
    assert not ill(list(checks.of_versions([seen()], {**VERSIONS, "torch": "2.9.0"})))


def test_gpus_are_those_that_ray_knows() -> None:
    """One that Ray was not told of idles; one that the driver lacks fails; one in use is somebody's."""
    with_gpu = Seen("a", 4, 1, look_with((A10,)), 0, 0)
    assert not ill(list(checks.of_gpus([with_gpu])))
    assert "1 by its driver and 0 by Ray" in ill(list(checks.of_gpus([Seen("a", 4, 0, look_with((A10,)), 0, 0)])))
    assert "0 by its driver and 1 by Ray" in ill(list(checks.of_gpus([Seen("a", 4, 1, look_with(()), 0, 0)])))
    busy = Gpu("NVIDIA A10G", 23028, 20000, "580")
    assert "in use by somebody else" in ill(list(checks.of_gpus([Seen("a", 4, 1, look_with((busy,)), 0, 0)])))


def look_with(gpus: tuple[Gpu, ...]) -> Machine:
    """A machine that is well, with GPUs."""
    return Machine("3.11.7", VERSIONS, gpus, 10**12, "text", "", {}, 0)


def test_the_folder_of_runs_is_one_for_all() -> None:
    """Not writable, another one, or nearly full is said; with a storage each machine may have its own."""
    of = lambda machines, storage=None: list(checks.of_folder(machines, "/runs", "text", storage))  # noqa: E731
    assert not ill(of([seen(), seen("b")]))
    assert "Permission denied" in ill(of([seen(), seen("b", writes="Permission denied")]))
    assert "another folder on b" in ill(of([seen(), seen("b", probe="")]))
    assert not ill(of([seen(), seen("b", probe="")], "s3://bucket"))
    assert "1.0 GB free" in ill(of([seen(), seen("b", free_bytes=10**9)]))


def test_a_storage_is_written_and_read(tmp_path: Path) -> None:
    """And one that cannot be opened is named; nothing stays in it."""
    (tmp_path / "storage").mkdir()
    assert not ill(list(checks.of_storage(str(tmp_path / "storage"))))
    assert not [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]
    (tmp_path / "file").write_text("")
    assert "must be writable" in ill(list(checks.of_storage(str(tmp_path / "file"))))
    assert "cannot be opened" in ill(list(checks.of_storage("nosuch://bucket")))
    assert list(checks.of_storage(None)) == []


def test_models_are_where_trials_train() -> None:
    """A path must be on all of them; a hub's is fetched by those that lack it."""
    there, away = seen(), seen("b", models={"/models/sd15": False})
    assert not ill(list(checks.of_models([there], ["/models/sd15"])))
    assert "b lacks it" in ill(list(checks.of_models([there, away], ["/models/sd15"])))
    hub = seen("b", models={"owner/model": False})
    (finding,) = checks.of_models([hub], ["owner/model"])
    assert finding.is_well
    assert "not in the cache of b" in finding.said


def test_a_clock_is_compared_only_as_far_as_it_is_known() -> None:
    """A slow answer is no skew: only what no round trip explains counts."""
    assert not ill(list(checks.of_clocks([seen(clock=130.0, answered=131.0)])))
    assert "10.0.0.1 30 s" in ill(list(checks.of_clocks([seen(clock=130.1, answered=100.1)])))
    assert "10.0.0.1 40 s" in ill(list(checks.of_clocks([seen(clock=60.0)])))


def test_node_types_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may come; and where the launcher's file does not say it, what the sweep file must."""
    known = Growth((NodeType("gpu_worker", {"CPU": 4, "GPU": 1}, 8),), 8)
    monkeypatch.setattr(checks, "growth_of_cluster", lambda **_: known)
    (finding,) = checks.of_growth()
    assert finding == Finding(True, "growth", "starts up to 8 gpu_worker (CPU 4, GPU 1), 8 in all")
    unknown = Growth((NodeType("machine", None, 2),), 2)
    monkeypatch.setattr(checks, "growth_of_cluster", lambda **_: unknown)
    assert "gpus_per_trial" in ill(list(checks.of_growth()))


def test_requirements_are_those_of_the_package() -> None:
    """Missing and too old ones come with the command that mends it; extras are not asked for."""
    required = ["torch>=2.6", "absent>=1", "dlib-bin; extra == 'dlib'"]
    found = list(doctor.of_requirements(required, {"torch": "2.5.0"}))
    assert "pip install 'torch>=2.6'" in ill(found)
    assert "absent is missing" in ill(found)
    assert "dlib" not in ill(found)
    assert not ill(list(doctor.of_requirements(["torch>=2.6"], {"torch": "2.14.1+cu130"})))


def test_a_token_that_others_may_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that mends it; the token itself is never said."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not ill(list(doctor.of_token({})))
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("canary")
    token.chmod(0o644)
    said = ill(list(doctor.of_token({"RAY_AUTH_MODE": "token"})))
    assert f"chmod 600 {token}" in said
    token.chmod(0o600)
    found = list(doctor.of_token({"RAY_AUTH_MODE": "token"}))
    assert not ill(found)
    assert not [finding for finding in found if "canary" in finding.said]
    token.unlink()
    assert "asks for a token" in ill(list(doctor.of_token({"RAY_AUTH_MODE": "token"})))


def test_a_sweep_is_looked_at(tiny_sweep: object) -> None:
    """What `check` refuses is what to mend; else its size is told."""
    assert callable(tiny_sweep)
    sweep: SweepConfig = tiny_sweep()
    findings, needed = doctor.of_sweep(sweep)
    assert not ill(findings)
    assert needed
    findings, needed = doctor.of_sweep(sweep.model_copy(update={"base_model": "/nowhere/model"}))
    assert "base_model" in ill(findings)
    assert needed is None


def test_findings_are_read_from_a_log() -> None:
    """Among whatever else a job prints."""
    log = 'hello\n{"is_well": true, "what": "ray", "said": "2.60"}\n{"is_well": broken\n'
    assert list(doctor.findings_in(log)) == [Finding(True, "ray", "2.60")]
