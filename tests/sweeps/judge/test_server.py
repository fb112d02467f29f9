"""Laws of the judge's server over real sockets, and of the verb that starts it.

pytest tests/sweeps/judge/test_server.py     some ten seconds
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import pytest

from sweeps.judge.server import JudgeServer, open_judge
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.votes import read_votes
from sweeps.results.results import read_results
from tests.sweeps.command import Command
from tests.sweeps.fake_run import build_run

LOOPBACK = "127.0.0.1"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A small run."""
    return build_run(tmp_path / "ada", 2, (200,), images_per_prompt=1, with_renders=False)


def test_it_listens_on_this_machine_alone_under_an_address_that_nobody_guesses(run_dir: Path) -> None:
    """Another one each time."""
    pages = [open_judge(read_results(run_dir), 0) for _ in range(2)]
    found = [re.fullmatch(rf"http://127\.0\.0\.1:{page.port}/t/([\w-]{{32}})/", page.page_address) for page in pages]
    assert all(found)
    assert len({match[1] for match in found if match}) == 2
    for page in pages:
        page.close()


def test_votes_arrive_over_a_connection_that_stays(run_dir: Path) -> None:
    """A body is read whole, and one without the token or too long is refused."""
    page: JudgeServer = open_judge(read_results(run_dir), 0)
    page.start()
    connection = HTTPConnection(LOOPBACK, page.port, timeout=20)
    start = page.page_address.partition(f":{page.port}")[2]
    connection.request("GET", start)
    html = connection.getresponse().read().decode()
    (token,) = re.findall(r'data-token="(.*?)"', html)
    (question,) = re.findall(r'data-question="(.*?)"', html)
    body = json.dumps({"question": question, "answer": "left"})
    for headers, sent, status in (
        ({}, body, 403),
        ({"X-Dreamsweep-Token": token}, body + " " * 1000, 400),
        ({"X-Dreamsweep-Token": token}, body, 200),
    ):
        connection.request("POST", f"{start}answer", sent, headers)
        response = connection.getresponse()
        response.read()
        assert response.status == status
        assert len(read_votes(RunFolder(run_dir))) == (status == 200)
    connection.close()
    page.close()


def test_the_verb_serves_until_it_is_told_to_end(run_dir: Path) -> None:
    """It says the address, writes nothing else, and ends with 0."""
    call = "from sweeps.cli import main; main()"
    trials = [row.trial for row in read_results(run_dir).best_of_each_trial()]
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", call, "judge", str(run_dir), "--port", "0", "--trials", trials[0], "--trials", "base"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    ) as verb:
        assert verb.stdout is not None
        line = verb.stdout.readline()
        found = re.fullmatch(r"judge     http://127\.0\.0\.1:(\d+)(/t/[\w-]{32}/)  \(Ctrl-C ends it\)\n", line)
        assert found
        connection = HTTPConnection(LOOPBACK, int(found[1]), timeout=20)
        connection.request("GET", found[2])
        assert b"1 of 3" in connection.getresponse().read()
        verb.send_signal(signal.SIGINT)
        out, err = verb.communicate(timeout=60)
        connection.close()
        assert (verb.returncode, out, err) == (0, "", "")


def test_the_verb_refuses_what_it_cannot_ask(dreamsweep: Command, run_dir: Path, tmp_path: Path) -> None:
    """No run folder, an unknown trial, nothing to compare it with, damaged votes: exit 2 and one line."""
    trial = read_results(run_dir).best_of_each_trial()[0].trial
    for arguments, said in (
        ((tmp_path / "nowhere",), "nowhere"),
        ((run_dir, "--trials", "nobody", "--trials", trial), "'nobody' is not in this run"),
        ((run_dir, "--trials", trial), "needs two checkpoints"),
    ):
        outcome = dreamsweep("judge", *arguments)
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
        assert said in outcome.err
    RunFolder(run_dir).votes_file.write_text("no vote\n")
    outcome = dreamsweep("judge", run_dir, "--port", "0")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "votes.jsonl: line 1" in outcome.err
