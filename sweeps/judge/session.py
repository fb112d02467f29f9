"""A sitting: one question after another until a round is over, and then what the votes say."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sweeps.judge.pairs import Contender, Deck, Question
from sweeps.ledger.votes import Vote, append_vote, read_votes
from sweeps.report.pictures import reduced
from sweeps.results.leaderboard import Row
from sweeps.results.preference import Preference, preference_of
from sweeps.results.results import Results

QUESTIONS_A_ROUND = 60
"""Some ten minutes; then the result is shown, and who likes goes on."""
SIDE = 1024
"""The longer side of a picture has at most so many pixels."""

Answer = Literal["left", "right", "neither", "skip", "end", "more"]
"""A vote; not this one; show the result; ask on."""


@dataclass(frozen=True)
class Asked:
    """A question as the page shows it."""

    question: Question
    left: bytes
    right: bytes
    kind: str
    """Of both pictures, `png` or `jpeg`."""
    number: int
    """From 1, those of earlier sittings and those passed over counted."""
    goal: int
    """How many the round ends with."""

    @property
    def is_small(self) -> bool:
        """Whether the pictures are so small that they are shown with their own pixels."""
        return self.kind == "png"


@dataclass(frozen=True)
class Outcome:
    """What the page shows after the last question."""

    preference: Preference | None
    """None where nobody has voted."""
    rows: dict[tuple[str, int], Row]
    """Trial and step -> the row of every contender."""
    num_left: int
    """Questions that were not asked yet."""
    num_passed_over: int
    """In this sitting; another one asks them again."""


class Session:
    """The state of a page that one person looks at; two tabs show the same question.

    Args:
        results: of the run.
        contenders: what is compared.
        rng: decides what `Deck` leaves to chance.
    """

    def __init__(self, results: Results, contenders: Sequence[Contender], rng: random.Random) -> None:
        self.name, self._folder = results.name, results.folder
        self._rows = {contender.row.key: contender.row for contender in contenders}
        self._deck = Deck(contenders, read_votes(results.folder), rng)
        self._num_passed_over = 0
        self._lock = threading.Lock()
        self._goal = self._next_goal()
        self._asked = self._ask()

    @property
    def asked(self) -> Asked | None:
        """The question that waits for an answer; None at the end of a round."""
        return self._asked

    def outcome(self) -> Outcome:
        """What all votes of the run on these checkpoints say, those of other sittings among them.

        Raises:
            UserError: the file of votes is damaged.
        """
        preference = preference_of(read_votes(self._folder), list(self._rows.values()))
        return Outcome(preference, self._rows, self._deck.num_open, self._num_passed_over)

    def answer(self, question_id: str, answer: Answer) -> None:
        """Take an answer to the question that is shown; one to any other is passed over.

        Raises:
            UserError: the run folder is gone.
            OSError: the vote cannot be written down; the question stays.
        """
        with self._lock:
            if answer == "more" and self._asked is None:
                self._goal = self._next_goal()
                self._asked = self._ask()
            elif self._asked is not None and self._asked.question.id == question_id:
                self._asked = None if answer == "end" else self._after(self._asked, answer)

    def _after(self, asked: Asked, answer: Answer) -> Asked | None:
        question = asked.question
        if answer in ("left", "right", "neither"):
            vote = Vote(
                prompt=question.prompt,
                picture=question.card.picture,
                left=question.left.side,
                right=question.right.side,
                choice=answer,
            )
            append_vote(self._folder, vote)
            self._deck.answered(question)
        elif answer == "skip":
            self._deck.lay_aside(question)
            self._num_passed_over += 1
        return self._ask()

    def _ask(self) -> Asked | None:
        """The next question of which both pictures can be read; the others are laid aside."""
        while self._num_done < self._goal and (question := self._deck.draw()):
            left, right = (reduced(path, SIDE) for path in question.paths)
            if left and right and left[0] == right[0]:
                return Asked(question, left[1], right[1], left[0], self._num_done + 1, self._goal)
            self._deck.lay_aside(question)
        return None

    @property
    def _num_done(self) -> int:
        return self._deck.num_cards - self._deck.num_open

    def _next_goal(self) -> int:
        return min(self._deck.num_cards, (self._num_done // QUESTIONS_A_ROUND + 1) * QUESTIONS_A_ROUND)
