"""Laws of what is put side by side: all pairs evenly, sides by chance, nothing twice.

pytest tests/sweeps/judge/test_pairs.py     some seconds
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from sweeps.judge.pairs import Contender, Deck, Question, Shot, cards_of, contenders_of
from sweeps.ledger.votes import Vote
from sweeps.results.leaderboard import Row
from sweeps.results.results import read_results
from tests.sweeps.fake_run import build_run
from training.errors import UserError


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that no test changes: six trials, three prompts, four seeds."""
    return build_run(tmp_path_factory.mktemp("runs") / "ada", with_renders=False)


def contender(trial: str, pictures: dict[str, str]) -> Contender:
    """One of which only its name and its pictures matter."""
    row = Row.model_construct(trial=trial, step=1)
    return Contender(row, {key: Shot(prompt, Path(trial, key)) for key, prompt in pictures.items()})


PICTURES = {f"{prompt:03d}-{seed}.png": f"prompt {prompt}" for prompt in range(3) for seed in range(4)}
FOUR = [contender(name, PICTURES) for name in "abcd"]


def vote_on(question: Question) -> Vote:
    return Vote(
        prompt=question.prompt,
        picture=question.card.picture,
        left=question.left.side,
        right=question.right.side,
        choice="left",
    )


def asked(deck: Deck, number: int | None = None) -> list[Question]:
    """The next questions, each answered; all that are left where no number is given."""
    found = []
    while (number is None or len(found) < number) and (question := deck.draw()):
        deck.answered(question)
        found.append(question)
    return found


# --- who is compared


def test_the_champion_three_more_and_the_base_model_are_compared(run_dir: Path) -> None:
    """Each trial by its best checkpoint, in the leaderboard's order."""
    results = read_results(run_dir)
    assert results.champion.row is not None
    found = [each.row.key for each in contenders_of(results)]
    assert found[0] == results.champion.row.key
    assert found == [*[row.key for row in results.best_of_each_trial()[:4]], ("base", 0)]


def test_named_trials_are_compared_and_no_others(run_dir: Path) -> None:
    """Once each, in the order in which they were named; the base model only by its name."""
    results = read_results(run_dir)
    last, first = results.best_of_each_trial()[-1], results.best_of_each_trial()[0]
    assert [each.row.key for each in contenders_of(results, [last.trial, first.trial, last.trial])] == [
        last.key,
        first.key,
    ]
    assert [each.row.trial for each in contenders_of(results, [first.trial, "base"])] == [first.trial, "base"]


def test_what_cannot_be_compared_is_refused(run_dir: Path, tmp_path: Path) -> None:
    """An unknown trial, a single one, one without pictures, and a run without any: by name, as a user's mistake."""
    results = read_results(run_dir)
    first = results.best_of_each_trial()[0].trial
    with pytest.raises(UserError, match="'nobody' is not in this run"):
        contenders_of(results, [first, "nobody"])
    with pytest.raises(UserError, match="needs two checkpoints"):
        contenders_of(results, [first])
    bare = build_run(tmp_path / "bare", num_trials=2, images_per_prompt=1)
    trial = read_results(bare).best_of_each_trial()[0].trial
    for picture in bare.glob(f"trials/{trial}/images-*/*"):
        picture.unlink()
    with pytest.raises(UserError, match=f"'{trial}' has no pictures"):
        contenders_of(read_results(bare), [trial, "base"])
    assert trial not in [each.row.trial for each in contenders_of(read_results(bare))]
    for picture in bare.glob("trials/*/images-*/*"):
        picture.unlink()
    with pytest.raises(UserError, match="found 0 with pictures"):
        contenders_of(read_results(bare))


def test_a_picture_outside_the_run_s_pictures_is_not_there(run_dir: Path, tmp_path: Path) -> None:
    """A ledger that came from somebody else names no other file of this machine."""
    run = build_run(tmp_path / "ada", num_trials=2, images_per_prompt=1)
    for file in run.glob("trials/*/trial.json"):
        record = json.loads(file.read_text())
        for checkpoint in record["checkpoints"]:
            checkpoint["images"] = "dataset"
        file.write_text(json.dumps(record))
    (run / "dataset").mkdir()
    for seed in range(3):
        (run / "dataset" / f"{seed:03d}-0.png").write_bytes(b"a photo")
    with pytest.raises(UserError, match="found 0 with pictures"):
        contenders_of(read_results(run))


def test_only_pictures_of_the_same_prompt_and_seed_are_set_side_by_side() -> None:
    """What one of the two lacks, or made of another prompt, is not asked."""
    a, b = contender("a", {"0.png": "p", "1.png": "p", "2.png": "p"}), contender("b", {"0.png": "p", "1.png": "q"})
    assert [card.picture for card in cards_of([a, b])] == ["0.png"]
    question = Deck([a, b], [], random.Random(0)).draw()
    assert question is not None
    assert {path.name for path in question.paths} == {"0.png"}
    assert {path.parent.name for path in question.paths} == {"a", "b"}


# --- in what order


def test_everything_is_asked_once() -> None:
    """All pairs with all pictures, under ids of which no two are the same."""
    deck = Deck(FOUR, [], random.Random(0))
    questions = asked(deck)
    assert len({question.card for question in questions}) == len(questions) == deck.num_cards == 6 * 12
    assert len({question.id for question in questions}) == len(questions)
    assert deck.draw() is None
    assert deck.num_open == 0


@pytest.mark.parametrize("seed", range(5))
def test_whoever_stops_at_any_time_has_asked_evenly(seed: int) -> None:
    """Pairs differ by one vote at most, and so do the prompts of a pair; pictures by no more than the pairs allow."""
    questions = asked(Deck(FOUR, [], random.Random(seed)))
    pairs: Counter[tuple[int, int]] = Counter(dict.fromkeys(itertools.combinations(range(4), 2), 0))
    prompts = Counter({(pair, f"prompt {i}"): 0 for pair in pairs for i in range(3)})
    for question in questions:
        pairs[question.card.pair] += 1
        prompts[question.card.pair, question.prompt] += 1
        assert max(pairs.values()) - min(pairs.values()) <= 1
        for pair in pairs:
            of_pair = [prompts[pair, f"prompt {i}"] for i in range(3)]
            assert max(of_pair) - min(of_pair) <= 1


def test_the_order_is_by_chance_and_a_seed_settles_it() -> None:
    """The same seed asks the same on the same sides, another one something else."""

    def order(seed: int) -> list[tuple[object, ...]]:
        return [(q.id, q.card, q.left.row.trial) for q in asked(Deck(FOUR, [], random.Random(seed)))]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_each_stands_on_the_left_half_of_the_time() -> None:
    """Within every pair, to one vote; and who stands there first is decided by a coin."""
    questions = asked(Deck(FOUR, [], random.Random(0)))
    ahead: Counter[tuple[int, int]] = Counter()
    for question in questions:
        ahead[question.card.pair] += 1 if question.left is FOUR[question.card.pair[0]] else -1
        assert abs(ahead[question.card.pair]) <= 1
    first = [asked(Deck(FOUR[:2], [], random.Random(seed)), 1)[0].left is FOUR[0] for seed in range(400)]
    assert 140 < sum(first) < 260


def test_the_side_of_a_question_does_not_hang_on_the_strength_of_who_stands_there() -> None:
    """Over many sittings each of four is on the left about as often as on the right."""
    left = Counter(q.left.row.trial for seed in range(200) for q in asked(Deck(FOUR, [], random.Random(seed)), 5))
    both = Counter(
        side.row.trial
        for seed in range(200)
        for q in asked(Deck(FOUR, [], random.Random(seed)), 5)
        for side in (q.left, q.right)
    )
    for name in "abcd":
        assert 0.4 < left[name] / both[name] < 0.6


def test_it_goes_on_where_the_votes_end() -> None:
    """Nothing that was answered is asked again; what was asked least comes first; others' votes do not count."""
    answered = asked(Deck(FOUR, [], random.Random(0)), 31)
    votes = [vote_on(question) for question in answered]
    stranger = votes[0].model_copy(update={"left": votes[0].left.model_copy(update={"trial": "gone"})})
    deck = Deck(FOUR, [*votes, stranger], random.Random(1))
    assert deck.num_open == 72 - 31
    rest = asked(deck)
    assert {q.card for q in rest}.isdisjoint(q.card for q in answered)
    pairs = Counter(q.card.pair for q in answered)
    five_votes = {pair for pair, number in pairs.items() if number == 5}
    assert {q.card.pair for q in rest[: len(five_votes)]} == five_votes
    of_pair = Counter((q.card.pair, q.left.row.trial) for q in [*answered, *rest])
    assert set(of_pair.values()) == {6}, "sides are even over both sittings"


def test_what_is_laid_aside_is_not_asked_again_and_counts_for_nothing() -> None:
    """Its pair is asked about with another picture."""
    deck = Deck(FOUR[:2], [], random.Random(0))
    first = deck.draw()
    assert first is not None
    deck.lay_aside(first)
    assert first.card not in [question.card for question in asked(deck)]
