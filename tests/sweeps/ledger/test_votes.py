"""Laws of the file of votes: nothing that was said is lost, and what was not said to its end is no vote.

pytest tests/sweeps/ledger/test_votes.py     some seconds
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sweeps.ledger import votes as votes_module
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.votes import Side, Vote, append_vote, read_votes
from training.errors import UserError

A, B = Side(trial="lora_r4_lr1e-4_1a2b3c", step=400), Side(trial="base", step=0)


def vote(**said: object) -> Vote:
    return Vote(**{"prompt": "sks woman", "picture": "000-5.png", "left": A, "right": B, "choice": "left", **said})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run folder in which nobody has voted."""
    return RunFolder(tmp_path)


@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"])),
    choice=st.sampled_from(["left", "right", "neither"]),
    when=st.datetimes(min_value=datetime(2020, 1, 1), timezones=st.just(UTC)),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_a_vote_is_read_as_it_was_given(folder: RunFolder, prompt: str, choice: str, when: datetime) -> None:
    """Whatever the prompt holds, line ends among it."""
    given_vote = vote(prompt=prompt, choice=choice, when=when)
    append_vote(folder, given_vote)
    assert read_votes(folder)[-1] == given_vote


def test_a_line_says_what_was_asked_what_was_chosen_and_when_and_not_by_whom(folder: RunFolder) -> None:
    """The keys of the file, and a time with its zone."""
    assert read_votes(folder) == []
    append_vote(folder, vote())
    (line,) = folder.votes_file.read_text().splitlines()
    said = json.loads(line)
    assert said.pop("when").endswith("Z")
    assert said == {
        "prompt": "sks woman",
        "picture": "000-5.png",
        "left": {"trial": A.trial, "step": 400},
        "right": {"trial": "base", "step": 0},
        "choice": "left",
    }
    for wrong in ({"choice": "both"}, {"left": {"trial": "t", "step": -1}}, {"when": "2026-01-01T00:00:00"}):
        with pytest.raises(ValidationError):
            vote(**wrong)


@pytest.mark.parametrize("looked_back", [7, 65_536])
def test_a_line_torn_anywhere_is_no_vote_and_does_not_stain_the_next(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, looked_back: int
) -> None:
    """A writer killed within a line, at every byte of it, the line end not written yet among them."""
    monkeypatch.setattr(votes_module, "BYTES_LOOKED_BACK", looked_back)
    whole, torn, next_one = vote(), vote(prompt="torn"), vote(prompt="next")
    line = torn.model_dump_json().encode()
    for before in ([], [whole]):
        for length in range(0, len(line) + 1, 1 if looked_back > 100 else 23):
            folder.votes_file.unlink(missing_ok=True)
            for each in before:
                append_vote(folder, each)
            with folder.votes_file.open("ab") as stream:
                stream.write(line[:length])
            assert read_votes(folder) == before
            append_vote(folder, next_one)
            assert read_votes(folder) == [*before, next_one]


@pytest.mark.parametrize("damage", ["", "\0\0\0", '{"prompt": "a"}', "[]", '{"step": NaN}', "\ufeff{}"])
def test_other_damage_is_refused_by_its_place(folder: RunFolder, damage: str) -> None:
    """A line that was ended and is no vote: the refusal names file and line, and nothing is thrown away."""
    append_vote(folder, vote())
    with folder.votes_file.open("a") as stream:
        stream.write(damage + "\n")
    append_vote(folder, vote())
    content = folder.votes_file.read_bytes()
    with pytest.raises(UserError, match=r"votes\.jsonl: line 2 must be a whole vote: .*; delete that line"):
        read_votes(folder)
    assert folder.votes_file.read_bytes() == content


def test_a_key_of_a_later_release_is_passed_over(folder: RunFolder) -> None:
    """Older programs read what newer ones wrote."""
    folder.votes_file.write_text(json.dumps({**json.loads(vote().model_dump_json()), "seconds": 3.5}) + "\n")
    assert len(read_votes(folder)) == 1


def test_two_processes_that_vote_at_the_same_time_lose_nothing(folder: RunFolder) -> None:
    """Each finds its votes whole and in its order."""
    program = (
        "import sys; from sweeps.ledger.folder import RunFolder\n"
        "from sweeps.ledger.votes import *\n"
        "folder, name = RunFolder(sys.argv[1]), sys.argv[2]; sys.stdin.read()\n"
        "for i in range(100):\n"
        "    append_vote(folder, Vote(prompt=f'{name} {i}', picture='000-0.png', left=Side(trial='a', step=1), "
        "right=Side(trial='b', step=1), choice='left'))\n"
    )
    surroundings = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    writers = [
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", program, str(folder.dir), name], stdin=subprocess.PIPE, env=surroundings
        )
        for name in ("one", "two")
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    said = [each.prompt for each in read_votes(folder)]
    for name in ("one", "two"):
        assert [prompt for prompt in said if prompt.startswith(name)] == [f"{name} {i}" for i in range(100)]
    assert len(said) == 200


def test_a_line_that_another_process_is_writing_is_not_torn(folder: RunFolder) -> None:
    """Who votes meanwhile waits until it is whole."""
    first, second = vote(prompt="first"), vote(prompt="second")
    line = first.model_dump_json().encode() + b"\n"
    with folder.votes_file.open("ab", buffering=0) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(line[:40])
        other = threading.Thread(target=append_vote, args=(folder, second))
        other.start()
        other.join(0.3)
        assert other.is_alive()
        stream.write(line[40:])
    other.join()
    assert read_votes(folder) == [first, second]


def test_a_run_folder_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    """A vote on a run that was moved away is refused by name."""
    with pytest.raises(UserError, match="gone"):
        append_vote(RunFolder(tmp_path / "gone"), vote())
    assert not (tmp_path / "gone").exists()
