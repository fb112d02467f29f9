"""Which pictures are put side by side: two checkpoints' of one prompt and one starting noise, each pair as often.

The pair with the fewest votes comes first, of it a prompt that it was asked about least, of that a picture that was
shown least; chance decides the rest. So whoever stops after any number of votes has asked about all evenly.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sweeps.ledger.mirror import bring_here
from sweeps.ledger.votes import Side, Vote
from sweeps.report.pictures import picture_file
from sweeps.results.leaderboard import Row
from sweeps.results.results import Results
from training.errors import UserError

NUM_TRIALS = 4
"""Whose best checkpoints are compared where none are named, beside the base model: ten pairs with it."""
ID_BITS = 96


class Shot(NamedTuple):
    """One picture of a checkpoint."""

    prompt: str
    path: Path


@dataclass(frozen=True, eq=False)
class Contender:
    """A checkpoint with the pictures of it that are there."""

    row: Row
    shots: Mapping[str, Shot]
    """By the name of their file, which says prompt and seed."""

    @property
    def side(self) -> Side:
        """As a vote names it."""
        return Side(trial=self.row.trial, step=self.row.step)


class Card(NamedTuple):
    """What may be asked: two contenders, by their places, and a picture that both have."""

    pair: tuple[int, int]
    """The lower place first."""
    picture: str


@dataclass(frozen=True, eq=False)
class Question:
    """A card that is shown, with its sides."""

    id: str
    """Random: it says nothing of what is compared."""
    prompt: str
    card: Card
    left: Contender
    right: Contender

    @property
    def paths(self) -> tuple[Path, Path]:
        """Of the left picture and the right one."""
        return self.left.shots[self.card.picture].path, self.right.shots[self.card.picture].path


def contenders_of(results: Results, trials: Sequence[str] = ()) -> list[Contender]:
    """What is compared.

    Args:
        results: of the run.
        trials: whose best checkpoints, `base` for the base model. Else the champion, the best of other trials until
            there are `NUM_TRIALS`, and the base model.

    Raises:
        UserError: a named trial is not in the run, has no score or no picture, or no two have a picture in common.
        OSError: pictures are only in the sweep's storage, and it cannot be read.
    """
    rows = [results.best_of_trial(trial) for trial in dict.fromkeys(trials)] if trials else _best_rows(results)
    storage = results.config.storage if results.config else None
    if storage is not None:
        bring_here(results.folder, storage, *(row.images for row in rows if row.images))
    found = [Contender(row, _shots(results, row)) for row in rows]
    for contender in found:
        if trials and not contender.shots:
            raise UserError(
                f"trial {contender.row.trial!r} has no pictures to be compared: {results.folder.trials_dir}"
            )
    found = [contender for contender in found if contender.shots]
    if not cards_of(found):
        raise UserError(
            "a comparison needs two checkpoints that have a picture of the same prompt and seed, found "
            f"{len(found)} with pictures and none in common: {results.folder.dir}"
        )
    return found


def _best_rows(results: Results) -> list[Row]:
    champion = [results.champion.row] if results.champion.row else []
    others = [row for row in results.best_of_each_trial() if row.trial not in {winner.trial for winner in champion}]
    return [*champion, *others][:NUM_TRIALS] + ([results.base] if results.base else [])


def _shots(results: Results, row: Row) -> dict[str, Shot]:
    paths = {image: picture_file(results.folder, f"{row.images}/{image.key}") for image in row.image_scores}
    return {image.key: Shot(image.prompt or "", path) for image, path in paths.items() if path is not None}


def cards_of(contenders: Sequence[Contender]) -> list[Card]:
    """Every pair with every picture that both have."""
    return [
        Card((i, j), picture)
        for (i, a), (j, b) in itertools.combinations(enumerate(contenders), 2)
        for picture, shot in a.shots.items()
        if picture in b.shots and b.shots[picture].prompt == shot.prompt
    ]


class Deck:
    """What is still to be asked.

    Args:
        contenders: what is compared.
        votes: that were given before; what they answer is not asked again.
        rng: decides sides, names, and what comes next of what is as good.
    """

    def __init__(self, contenders: Sequence[Contender], votes: Iterable[Vote], rng: random.Random) -> None:
        self._contenders, self._rng = contenders, rng
        self._open = dict.fromkeys(cards_of(contenders))
        self.num_cards = len(self._open)
        self._num_of_pair: Counter[tuple[int, int]] = Counter()
        self._num_of_prompt: Counter[tuple[tuple[int, int], str]] = Counter()
        self._num_of_picture: Counter[str] = Counter()
        self._num_first_left: Counter[tuple[int, int]] = Counter()
        """Of a pair: how often its first stood on the left, less how often on the right."""
        place = {contender.side.key: i for i, contender in enumerate(contenders)}
        for vote in votes:
            left, right = place.get(vote.left.key), place.get(vote.right.key)
            if left is not None and right is not None and left != right:
                self._count(Card((min(left, right), max(left, right)), vote.picture), vote.prompt, left < right)

    @property
    def num_open(self) -> int:
        """Cards that are neither answered nor laid aside."""
        return len(self._open)

    def draw(self) -> Question | None:
        """What to ask next; None where nothing is left. Until it is answered or laid aside it may be drawn again."""
        if not self._open:
            return None
        card = min(self._open, key=lambda card: (*self._order(card), self._rng.random()))
        ahead = self._num_first_left[card.pair]
        first_is_left = ahead < 0 or (ahead == 0 and self._rng.random() < 0.5)
        first, second = (self._contenders[i] for i in card.pair)
        return Question(
            id=f"{self._rng.getrandbits(ID_BITS):0{ID_BITS // 4}x}",
            prompt=first.shots[card.picture].prompt,
            card=card,
            left=first if first_is_left else second,
            right=second if first_is_left else first,
        )

    def answered(self, question: Question) -> None:
        """It was voted on."""
        self._count(question.card, question.prompt, question.left is self._contenders[question.card.pair[0]])

    def lay_aside(self, question: Question) -> None:
        """Do not ask it, although it was not answered."""
        self._open.pop(question.card, None)

    def _order(self, card: Card) -> tuple[int, int, int]:
        prompt = self._contenders[card.pair[0]].shots[card.picture].prompt
        return (
            self._num_of_pair[card.pair],
            self._num_of_prompt[card.pair, prompt],
            self._num_of_picture[card.picture],
        )

    def _count(self, card: Card, prompt: str, first_was_left: bool) -> None:
        self._open.pop(card, None)
        self._num_of_pair[card.pair] += 1
        self._num_of_prompt[card.pair, prompt] += 1
        self._num_of_picture[card.picture] += 1
        self._num_first_left[card.pair] += 1 if first_was_left else -1
