"""Machines that fail: what is tried again, where, and when it is enough.

pytest tests/sweeps/execution/test_machines.py     a few seconds without Ray; with it (`-m ray`) a minute
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import cloudpickle
from ray.cluster_utils import Cluster
from ray.exceptions import RayTaskError

from sweeps.execution.failures import TRACEBACK_FILE, is_full_disk
from sweeps.execution.keeper import LedgerKeeper
from sweeps.execution.machines import (
    MAX_FAILURES,
    TRIALS_TO_SET_ASIDE,
    MachineError,
    Machines,
    asked_once_a_second,
    node_at,
)
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import TrialRecord
from sweeps.results.results import read_results
from tests.sweeps.tiny_sweep import write_sweep

TWO = {"a": "10.0.0.1", "b": "10.0.0.2"}


def machines(alive: dict[str, str] = TWO) -> Machines:
    return Machines(lambda: alive)


def test_a_machine_that_fails_trial_after_trial_is_set_aside() -> None:
    """Different trials in a row, said once; the same trial again proves nothing about the machine."""
    known = machines()
    assert [known.failed("t1", "a", "no disk") for _ in range(5)] == [False] * 5
    assert [known.failed(trial, "a", "no disk") for trial in ("t2", "t3", "t4")] == [False, True, False]
    assert known.set_aside == {"a": "no disk"}
    assert known.to_avoid("another") == ["a"]
    assert not known.none_left


def test_a_machine_that_lacks_something_gets_no_second_trial() -> None:
    """It fails fastest of all: at once, before it has trained anything."""
    known = machines()
    assert known.failed("t", "a", "does not see the folder", is_unfit=True)
    assert known.to_avoid("u") == ["a"]
    assert not known.failed("u", "a", "does not see the folder", is_unfit=True), "and is named once"


def test_a_success_in_between_clears_a_machine() -> None:
    """Failures that are not in a row are the lot of large sweeps."""
    known = machines()
    for round_ in range(4):
        for i in range(TRIALS_TO_SET_ASIDE - 1):
            assert not known.failed(f"t{round_}{i}", "a", "lost")
        known.succeeded("good", "a")
    assert not known.set_aside


def test_a_trial_is_tried_elsewhere_first() -> None:
    """Where it failed is avoided while there is another machine; where all failed it, any may try again."""
    known = machines()
    known.failed("t", "a", "lost")
    assert known.to_avoid("t") == ["a"]
    known.failed("t", "b", "lost")
    assert known.to_avoid("t") == []
    assert machines({"a": "10.0.0.1"}).to_avoid("t") == []


def test_a_trial_that_gets_on_is_tried_for_ever() -> None:
    """A machine that is taken away every hour ends no trial that scores a point in between."""
    known = machines()
    for _ in range(10 * MAX_FAILURES):
        known.failed("t", "a", "preempted")
        assert known.is_worth_another_try("t")
        known.succeeded("t", "b")
    for _ in range(MAX_FAILURES):
        known.failed("t", "b", "lost")
    assert not known.is_worth_another_try("t")


@given(st.lists(st.tuples(st.sampled_from("tuvwxyz"), st.sampled_from("ab"), st.booleans()), max_size=60))
def test_a_good_machine_always_remains_to_be_tried(history: list[tuple[str, str, bool]]) -> None:
    """Whatever happened: what a trial must avoid never covers every machine that is not set aside."""
    known = machines()
    for trial, node, good in history:
        if good:
            known.succeeded(trial, node)
        else:
            known.failed(trial, node, "lost")
        for one in "tuvwxyz":
            assert set(known.to_avoid(one)) >= set(known.set_aside)
            assert set(known.to_avoid(one)) != set(TWO) or known.none_left


def test_a_failure_before_the_trial_could_say_where_it_is_blames_no_earlier_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The record names the machine of the last attempt; that of this one is told by its address, where it can be."""
    monkeypatch.setattr("sweeps.execution.machines.alive_machines", lambda: {**TWO, "c": "10.0.0.3", "d": "10.0.0.3"})
    record = TrialRecord(
        trial="t", method="lora", status="running", config={}, machine="10.0.0.1", node_id="a of this record"
    )
    assert node_at("10.0.0.1", record) == "a of this record"
    assert node_at("10.0.0.2", record) == "b"
    assert node_at("10.0.0.3", record) is None
    assert node_at("10.0.0.9", record) is None


@pytest.mark.parametrize(("is_unfit", "num_set_aside"), [(True, 1), (False, 0)])
def test_what_a_machine_says_of_itself_reaches_the_driver(tmp_path: Path, is_unfit: bool, num_set_aside: int) -> None:
    """Before it could write into the ledger that the trial was there: named, and the trial served again, elsewhere."""
    folder = RunFolder(tmp_path)
    folder.write(TrialRecord(trial="t", method="lora", status="running", config={}, machine="10.0.0.1", node_id="a"))
    error = RayTaskError(
        "step", "its traceback", MachineError("no right to write", "10.0.0.2", "b", is_unfit), "", 1, ""
    )
    (tmp_path / "error.pkl").write_bytes(cloudpickle.dumps(error.as_instanceof_cause()))
    known, said, served = machines(), list[str](), list[tuple[str, bool]]()
    keeper = LedgerKeeper(
        folder,
        SimpleNamespace(retry=lambda record, at_once: served.append((record.trial, at_once))),  # type: ignore[arg-type]
        known,
        SimpleNamespace(say=said.append, changed=lambda _: None),  # type: ignore[arg-type]
        SimpleNamespace(running=set()),  # type: ignore[arg-type]
        SimpleNamespace(set_sweep=lambda _: None),  # type: ignore[arg-type]
    )
    keeper.on_trial_error(SimpleNamespace(config={"trial": "t"}, pickled_error_file=str(tmp_path / "error.pkl")))
    assert served == [("t", False)]
    assert known.to_avoid("t") == ["b"]
    assert said == ["machine 10.0.0.2 is set aside: no right to write"][:num_set_aside]
    assert "10.0.0.2" in (folder.trial_dir("t") / TRACEBACK_FILE).read_text()


def test_a_full_disk_is_known_through_its_causes() -> None:
    """Libraries wrap it, and some say it in words only."""
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = OSError(28, "No space left on device")
    assert is_full_disk(wrapped)
    assert is_full_disk(ValueError("I/O error: No space left on device (os error 28)"))
    assert not is_full_disk(OSError(5, "Input/output error"))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two machines of one CPU, none of them the head."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100_000_000})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_one_bad_machine_does_not_eat_the_sweep(cluster: Cluster, tmp_path: Path, tiny_mapping: dict[str, Any]) -> None:
    """A machine on which a library raises `ValueError`: every trial ends on the other, none by its own fault."""
    bad = min(node.node_id for node in cluster.worker_nodes)
    (tmp_path / "tiny.bad").write_text(bad)
    sweep = write_sweep(tmp_path / "tiny.yaml", tiny_mapping)
    driver = [sys.executable, "-m", "tests.sweeps.drive_sweep", str(sweep), str(tmp_path), cluster.address]
    ended = subprocess.run(driver, capture_output=True, text=True, timeout=400, check=False)  # noqa: S603 -- our own
    results = read_results(tmp_path / "tiny")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert results.num_by_status == {"finished": 4}, ended.stdout
    assert {trial.node_id for trial in results.trials if not trial.is_base} != {bad}
    kept = list((tmp_path / "tiny" / "trials").glob(f"*/{TRACEBACK_FILE}"))
    assert kept, "the bad machine had no trial"
    assert all("no such GPU kernel here" in file.read_text() for file in kept)


def test_a_question_is_asked_once_a_second() -> None:
    """And answered as often as anybody wants to know."""
    clock, answers = [10.0], iter("abc")
    answer = asked_once_a_second(lambda: next(answers), lambda: clock[0])
    assert [answer(), answer()] == ["a", "a"]
    clock[0] = 10.9
    assert answer() == "a"
    clock[0] = 11.0
    assert [answer(), answer()] == ["b", "b"]
