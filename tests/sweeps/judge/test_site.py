"""Laws of the judge's page, asked without a socket: it is blind, it counts each vote once, and no other site votes.

pytest tests/sweeps/judge/test_site.py     some seconds
"""

from __future__ import annotations

import io
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sweeps.judge import session as session_module
from sweeps.judge.pairs import contenders_of
from sweeps.judge.session import Session
from sweeps.judge.site import TOKEN_HEADER, Site
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.votes import Side, Vote, append_vote, read_votes
from sweeps.results.results import read_results
from sweeps.serving.messages import Request, Response
from tests.sweeps.fake_run import build_run

TOKEN = "t0ken"  # noqa: S105 -- of a test
HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>'\"&amp;"
STEPS = (7331, 8447)
"""That are part of no other number."""


class Page:
    """The page as a browser has it.

    Args:
        run_dir: of the run.
        seed: of what is left to chance.
        trials: that are compared.
    """

    def __init__(self, run_dir: Path, seed: int = 0, trials: tuple[str, ...] = ()) -> None:
        self.folder = RunFolder(run_dir)
        results = read_results(run_dir)
        self.session = Session(results, contenders_of(results, trials), random.Random(seed))
        self.site = Site(self.session, TOKEN)
        self.sent: list[Response] = []

    def ask(self, target: str, method: str = "GET", body: bytes = b"", **headers: str) -> Response:
        """Any request below the token."""
        said = {"host": "127.0.0.1:8267", **{name.replace("_", "-"): value for name, value in headers.items()}}
        self.sent.append(self.site.respond(Request(method, f"/t/{TOKEN}/{target}", said, body)))
        return self.sent[-1]

    def answer(self, answer: str, question: str | None = None, **headers: str) -> Response:
        """As its script answers."""
        body = json.dumps({"question": self.question if question is None else question, "answer": answer})
        return self.ask("answer", "POST", body.encode(), **{"x_dreamsweep_token": TOKEN, **headers})

    @property
    def html(self) -> str:
        """What stands in its main part."""
        return self.ask("content").body.decode()

    @property
    def question(self) -> str:
        """Id of the question that is shown; empty where it is the result."""
        (found,) = re.findall(r'data-question="(.*?)"', self.html)
        return str(found)

    @property
    def votes(self) -> list[Vote]:
        """What was written down."""
        return read_votes(self.folder)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of two trials, two prompts and two seeds."""
    return build_run(
        tmp_path / "ada", 2, STEPS, prompts=("sks woman one", "sks woman two"), images_per_prompt=2, with_renders=False
    )


@pytest.fixture
def page(run_dir: Path) -> Page:
    """Its page: three contenders, twelve questions."""
    return Page(run_dir)


# --- blindness


def test_nothing_that_is_sent_before_the_end_says_whose_pictures_they_are(run_dir: Path) -> None:
    """No trial, step, score or file name, in pages, pictures or headers, while all questions are answered."""
    for file in run_dir.glob("trials/*/images-*/*.png"):  # as pictures are written that name their model
        chunks = PngInfo()
        chunks.add_text("parameters", f"{file.parent.parent.name} {file.parent.name} {file.name}")
        with Image.open(file) as picture:
            picture.save(file, pnginfo=chunks)
    results = read_results(run_dir)
    secrets = {b"images-", b".png", b"checkpoint", b"lora", b"dreambooth", b"base model", str(run_dir).encode()}
    for row in results.rows:
        secrets |= {row.trial.encode()} if not row.is_base else {b">base", b'"base', b"/base"}
        secrets |= {str(row.step).encode()} if row.step else set()
        for image in row.image_scores:
            secrets |= {image.key.encode()}
            numbers = [image.face_similarity, image.prompt_alignment, row.face_similarity, row.prompt_alignment]
            secrets |= {f"{number:.3f}".encode() for number in numbers if number is not None}
    page = Page(run_dir)
    page.ask("")
    while question := page.question:
        for side in ("left", "right"):
            assert page.ask(f"picture/{question}/{side}").status == 200
        if page.session.asked and page.session.asked.number == page.session.asked.goal:
            break
        page.answer("left")
    assert len(page.votes) == 11
    for response in page.sent:
        headers = "\n".join(f"{name}: {value}" for name, value in response.headers.items()).encode()
        for secret in secrets:
            assert secret not in headers.lower()
            assert secret not in response.body.lower(), (secret, response.body[:200])
    page.answer("right")
    assert page.question == ""
    for row in results.rows:
        if not row.is_base and row.key in {each.key for vote in page.votes for each in (vote.left, vote.right)}:
            assert row.trial in page.html, "at the end it is said"


def test_both_pictures_come_in_one_form_without_what_was_written_into_them(page: Page) -> None:
    """The same kind, size and headers but for the length, and pixels alone."""
    question = page.question
    left, right = (page.ask(f"picture/{question}/{side}") for side in ("left", "right"))
    assert left.headers == right.headers
    assert left.headers["Cache-Control"] == "no-store"
    opened = [Image.open(io.BytesIO(response.body)) for response in (left, right)]
    assert opened[0].size == opened[1].size
    assert opened[0].info == opened[1].info == {}


def test_the_pictures_are_those_that_the_vote_names(page: Page) -> None:
    """Left is left and right is right, pixel by pixel."""
    for choice in ("left", "right", "neither", "left", "right", "left"):
        question = page.question
        seen = [page.ask(f"picture/{question}/{side}").body for side in ("left", "right")]
        page.answer(choice)
        vote = page.votes[-1]
        assert vote.choice == choice
        for body, side in zip(seen, (vote.left, vote.right), strict=True):
            with (
                Image.open(io.BytesIO(body)) as shown,
                Image.open(page.folder.images_dir(side.trial, side.step) / vote.picture) as made,
            ):
                assert shown.convert("RGB").tobytes() == made.convert("RGB").tobytes()


def test_no_picture_is_sent_but_those_of_the_question_that_is_shown(page: Page) -> None:
    """Not by its path, not of a question that was answered, not after the end."""
    question = page.question
    for target in (
        "picture/x/left",
        f"picture/{question}/middle",
        f"picture/{question}",
        "picture/trials/base/images-0/000-0.png",
        "../../trials/base/trial.json",
        "votes.jsonl",
        "assets/page.js",
        "assets/site.py",
    ):
        assert page.ask(target).status == 404
    page.answer("left")
    assert page.ask(f"picture/{question}/left").status == 404
    last = page.question
    page.answer("end")
    assert page.ask(f"picture/{last}/left").status == 404


def test_hostile_prompts_and_names_stay_letters(tmp_path: Path) -> None:
    """In the question the prompt and the run's name, in the result the trials' names too."""
    evil = "<i id=evil>"
    run_dir = build_run(tmp_path / f"{evil}ada", 1, STEPS, prompts=[HOSTILE], images_per_prompt=2, name=f"{evil}ada")
    (trial,) = (file.parent for file in run_dir.glob("trials/*/trial.json") if file.parent.name != "base")
    record = (trial / "trial.json").read_text()
    (trial / "trial.json").write_text(record.replace(f"trials/{trial.name}", f"trials/{evil}"))
    trial.rename(trial.with_name(evil))
    page = Page(run_dir)
    whole = page.ask("").body.decode()
    assert "document.title" in whole
    for part in ("<img src=x", "<script>document", evil):
        assert part not in whole
    page.answer("left")
    page.answer("end")
    assert page.votes[0].prompt == HOSTILE
    assert evil in (page.votes[0].left.trial, page.votes[0].right.trial)
    assert "&lt;i id=evil&gt;</span>" in page.html
    assert evil not in page.html


# --- votes


def test_every_vote_is_on_the_disk_when_the_next_question_is_shown(page: Page) -> None:
    """With its prompt and picture; what was skipped is not, and is not asked again."""
    assert page.votes == []
    skipped = page.question
    asked = page.session.asked
    assert asked is not None
    card = asked.question.card
    assert page.answer("skip").status == 200
    assert page.question not in ("", skipped)
    for number, choice in enumerate(("left", "neither", "right"), 1):
        page.answer(choice)
        assert len(page.votes) == number
        assert page.votes[-1].prompt == f"sks woman {'one' if page.votes[-1].picture < '001' else 'two'}"
    while page.question:
        assert page.session.asked is not None
        assert page.session.asked.question.card != card
        page.answer("left")
    assert len(page.votes) == 11
    assert "skipped (1) is asked again by the next call" in page.html
    assert len(read_votes(page.folder)) == 11
    assert Page(page.folder.dir).question, "it is"


def test_a_question_is_answered_once(page: Page) -> None:
    """A second answer from another tab, or to what is not asked, changes nothing and shows what is asked now."""
    question = page.question
    page.answer("left", question)
    now = page.question
    for late in (question, "", "x"):
        for choice in ("right", "skip", "end", "more"):
            assert page.answer(choice, late).status == 200
    assert page.question == now
    assert [vote.choice for vote in page.votes] == ["left"]


def test_another_sitting_goes_on_where_the_votes_end(run_dir: Path) -> None:
    """By number, and with the sides and pictures that are left; at the end the result is there at once."""
    first = Page(run_dir)
    for _ in range(5):
        first.answer("left")
    assert "6 of 12" in first.html
    second = Page(run_dir, seed=1)
    assert "6 of 12" in second.html
    for _ in range(7):
        second.answer("neither")
    assert second.question == ""
    third = Page(run_dir)
    assert third.question == ""
    assert "12 votes, 7 of them for no difference" in third.html
    assert "Nothing is left to ask." in third.html
    assert len({(vote.picture, *sorted((vote.left.key, vote.right.key))) for vote in third.votes}) == 12


def test_a_round_ends_with_the_result_and_another_may_follow(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once where one likes; going on asks something that was not asked."""
    monkeypatch.setattr(session_module, "QUESTIONS_A_ROUND", 5)
    page = Page(run_dir)
    assert "1 of 5" in page.html
    page.answer("end")
    assert "No votes yet" in page.html
    page.answer("more", "")
    for _ in range(5):
        page.answer("left")
    assert page.question == ""
    assert "Go on: 7 more questions" in page.html
    page.answer("more", "")
    assert "6 of 10" in page.html
    for _ in range(5):
        page.answer("left")
    page.answer("more", "")
    assert "11 of 12" in page.html


def test_the_result_says_what_all_votes_say(page: Page) -> None:
    """Those of other sittings too: order, votes, and how often the scores agree."""
    results = read_results(page.folder.dir)
    best, other = results.best_of_each_trial()[:2]
    a, b = Side(trial=best.trial, step=best.step), Side(trial=other.trial, step=other.step)
    for picture in ("000-0.png", "000-1.png", "001-0.png"):
        append_vote(page.folder, Vote(prompt="p", picture=picture, left=a, right=b, choice="left"))
    append_vote(page.folder, Vote(prompt="p", picture="001-1.png", left=b, right=a, choice="neither"))
    append_vote(
        page.folder,
        Vote(prompt="p", picture="000-0.png", left=a, right=Side(trial="gone", step=1), choice="right"),
    )
    page.answer("end")
    rows = re.findall(r'<tr data-trial="(.*?)" data-step="(\d+)"', page.html)
    assert rows == [(best.trial, str(best.step)), (other.trial, str(other.step))]
    assert "4 votes, 1 of them for no difference" in page.html
    assert "3/1/0" in page.html
    assert "0/1/3" in page.html
    face = page.html.partition('id="agreement-face"')[2]
    assert f"{3 if best.face_similarity > other.face_similarity else 0} of 3" in face


def test_a_picture_that_cannot_be_read_is_passed_over(run_dir: Path) -> None:
    """The others are asked, and none of a pair is shown without the other."""
    for picture in run_dir.glob("trials/base/images-*/000-*.png"):
        picture.write_bytes(b"no picture")
    page = Page(run_dir)
    while page.question:
        page.answer("left")
    assert len(page.votes) == 12 - 4
    assert not any(vote.picture < "001" and "base" in (vote.left.trial, vote.right.trial) for vote in page.votes)


# --- who may vote


@pytest.mark.parametrize(
    "change",
    [
        lambda page: page.answer("left", x_dreamsweep_token=""),
        lambda page: page.answer("left", x_dreamsweep_token=TOKEN + "x"),
        lambda page: page.answer("left", host="evil.example"),
        lambda page: page.ask("answer", "POST", b"{}", x_dreamsweep_token=TOKEN),
        lambda page: page.ask("answer", "POST", b"", x_dreamsweep_token=TOKEN),
        lambda page: page.answer("both"),
        lambda page: page.ask(f"answer?question={page.question}&answer=left", x_dreamsweep_token=TOKEN),
        lambda page: page.ask("content", "POST", b"", x_dreamsweep_token=TOKEN),
        lambda page: page.ask("", "DELETE"),
        lambda page: page.site.respond(
            Request("POST", "/answer", {"host": "localhost", TOKEN_HEADER.lower(): TOKEN}, b"{}")
        ),
        lambda page: page.site.respond(Request("GET", "/", {"host": "localhost"})),
        lambda page: page.site.respond(Request("GET", "/t/other/", {"host": "localhost"})),
        lambda page: page.site.respond(Request("GET", f"/t/{TOKEN}", {"host": "localhost"})),
        lambda page: page.site.respond(Request("GET", f"/t/{TOKEN}/", {"host": "evil.example"})),
    ],
)
def test_who_lacks_the_token_or_the_form_is_refused(page: Page, change: Callable[[Page], Response]) -> None:
    """Another site's page, another user of the machine, a name turned to it: no vote, and the question stays."""
    question = page.question
    response = change(page)
    assert 400 <= response.status < 500
    assert TOKEN.encode() not in response.body
    assert page.votes == []
    assert page.question == question


def test_looking_changes_nothing(page: Page) -> None:
    """GET is read-only: the same question again, and no file is written."""
    before = sorted(page.folder.dir.rglob("*"))
    question = page.question
    for target in ("", "content", f"picture/{question}/left", f"picture/{question}/right", "answer"):
        page.ask(target)
    assert page.question == question
    assert sorted(page.folder.dir.rglob("*")) == before


def test_every_answer_keeps_other_sites_out(page: Page) -> None:
    """Its own scripts and pictures alone, in no frame, and no address goes on to others."""
    for response in (page.ask(""), page.ask("content"), page.answer("left"), page.ask("nowhere")):
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_a_vote_that_cannot_be_written_leaves_the_question(page: Page) -> None:
    """The run folder was moved away: the answer is refused, counts for nothing, and may be given when it is back."""
    question = page.question
    moved = page.folder.dir.rename(page.folder.dir.with_name("moved"))
    for _ in range(4):
        with pytest.raises(ValueError, match="gone"):
            page.answer("left")
    assert page.question == question
    moved.rename(page.folder.dir)
    for _ in range(6):
        page.answer("left")
    pairs = Counter(frozenset((vote.left.key, vote.right.key)) for vote in page.votes)
    assert set(pairs.values()) == {2}
