"""What a running sweep shows.

pytest tests/sweeps/execution/test_live.py     two seconds
"""

from __future__ import annotations

import io
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from sweeps.config import ChampionConfig
from sweeps.execution.live import COLUMNS, Board, Display, Pace, fill_board
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import TrialRecord
from sweeps.results.results import read_results
from sweeps.results.rule import ChampionRule
from sweeps.search.listed import trials_asked_for
from tests.sweeps import fake_run
from tests.sweeps.ledger_entries import entry, record


@pytest.fixture
def board() -> Board:
    board = Board("ada", ChampionConfig(), num_planned=4)
    board.put(record("base", entry(0, 0.1)))
    board.put(record("a", entry(200, 0.3)))
    board.put(record("b", entry(200, 0.4), entry(400, 0.5), status="finished"))
    board.put(record("c", entry(200, 0.9, prompt_alignment=0.1), status="stopped"))
    board.put(record("d"))
    board.running = {"a"}
    return board


def test_the_best_by_the_champions_rule_is_first(board: Board) -> None:
    """Likeness at the price of the prompt does not lead; what has no score yet is last."""
    assert [trial.trial for trial in board.best_first()] == ["b", "a", "c", "d"]


def test_a_trial_without_a_worker_waits(board: Board) -> None:
    """The ledger's `running` is shown as what it is."""
    assert [board.status(trial) for trial in board.best_first()] == ["finished", "running", "stopped", "waiting"]


def test_the_time_left_is_steps_left_at_the_pace_so_far(board: Board) -> None:
    """800 steps took 40 s, 600 are left, one trial runs at a time."""
    assert board.seconds_left() == pytest.approx(600 * 40 / 800)
    board.running = {"a", "d"}
    assert board.seconds_left() == pytest.approx(600 * 40 / 800 / 2)
    assert Board("new", ChampionConfig(), 3).seconds_left() is None


def of_run(run_dir: Path) -> Board:
    """A driver's board over a run folder."""
    folder, config = RunFolder(run_dir), read_results(run_dir).config
    assert config is not None
    board = Board(config.name, config.champion, num_planned=24)
    fill_board(board, folder.base(), trials_asked_for(config, folder))
    return board


def scored_trial(trial: str, method: str, rank: int | None, *scored: tuple[float, float]) -> tuple[Any, list[Any]]:
    """A trial for a run folder, and its scores (face similarity, prompt alignment) at 200, 400, ..."""
    settings = {"learning_rate": 1e-4 if rank else 1e-6, "max_train_steps": 800, **({"rank": rank} if rank else {})}
    entries = [fake_run.entry(200 * (i + 1), *scores, trial=trial) for i, scores in enumerate(scored)]
    return {"trial": trial, "method": method, "status": "finished", "config": settings}, entries


@pytest.mark.parametrize(
    "trials",
    [
        pytest.param(
            [
                scored_trial("a", "lora", 4, (0.8, 0.3), (0.4, 0.3)),
                scored_trial("b", "lora", 4, (0.2, 0.3), (0.7, 0.3)),
            ],
            id="the newest of another is better",
        ),
        pytest.param(
            [
                scored_trial("a", "lora", 4, (0.5, 0.3), (0.99, 0.1)),
                scored_trial("b", "lora", 4, (0.6, 0.3)),
            ],
            id="the most alike has lost its prompts",
        ),
        pytest.param(
            [
                scored_trial("a", "dreambooth", None, (0.6, 0.3)),
                scored_trial("b", "lora", 16, (0.6, 0.3)),
                scored_trial("d", "lora", 2, (0.6, 0.3)),
                scored_trial("c", "lora", 2, (0.6, 0.3)),
            ],
            id="equals go by rank, no rank last, then by name",
        ),
        pytest.param([scored_trial("a", "lora", 4, (0.9, 0.1)), scored_trial("b", "lora", 4, (0.8, 0.2))], id="nobody"),
    ],
)
def test_the_board_stands_as_the_results_do(trials: list[tuple[Any, list[Any]]], tmp_path: Path) -> None:
    """Its trials have the order and the best steps of the run's leaderboard, and its star is the champion's."""
    fake_run.build_run(tmp_path, num_trials=0, with_renders=False)
    fake_run.write_trial(
        tmp_path,
        {"trial": "base", "method": "base", "status": "finished", "config": {}},
        [fake_run.entry(0, 0.1, trial="base")],
    )
    for trial, entries in trials:
        fake_run.write_trial(tmp_path, trial, entries)
    results, board = read_results(tmp_path), of_run(tmp_path)
    base, *rows = board.rows()
    step = COLUMNS.index("best step")
    assert [(row[1], int(row[step])) for row in rows] == [row.key for row in results.best_of_each_trial()]
    champion = results.champion.row
    assert [row[1] for row in rows if row[0] == "*"] == ([] if champion is None else [champion.trial])
    assert base[0] == ""
    best = board.best()
    assert (best and (best.trial, best.checkpoint.step)) == (champion and champion.key)


def test_the_board_of_a_whole_run_is_led_by_its_champion(tmp_path: Path) -> None:
    """Of finished, stopped, running and failed trials; and before the base model is scored nobody leads."""
    fake_run.build_run(tmp_path / "run", num_trials=12, num_failed=2, num_running=3, with_renders=False)
    champion, board = read_results(tmp_path / "run").champion.row, of_run(tmp_path / "run")
    assert champion is not None
    assert board.best_first()[0].trial == champion.trial
    fake_run.build_run(tmp_path / "new", num_trials=2, with_base=False, with_renders=False)
    assert of_run(tmp_path / "new").best() is None


def test_every_planned_trial_is_counted_once(board: Board) -> None:
    """What the search has not asked for yet waits."""
    counts = board.num_by_status()
    assert counts == {"running": 1, "finished": 1, "stopped": 1, "failed": 0, "waiting": 1}
    larger = Board("ada", ChampionConfig(), num_planned=10)
    fill_board(larger, board.base, list(board.records.values()))
    assert sum(larger.num_by_status().values()) == 10


def test_the_leaderboard_file_survives_a_viewer_that_collapses_blanks(board: Board, tmp_path: Path) -> None:
    """Every change rewrites it; each row has the same cells with blanks collapsed and without, none of them empty."""
    file = tmp_path / "sweep_ada_leaderboard.log"
    board.num_planned = 5
    board.put(record("e", status="failed", reason="ValueError: too | large\n" + 60 * "on and "))
    Display(board, None, file).changed(record("d", entry(200, 0.2)))
    text = file.read_text()
    assert text.startswith("ada: 3 of 5 trials ended, 1 running")
    _, table, below = text.split("\n\n")
    aligned = [row.split("|") for row in table.splitlines()]
    collapsed = [re.sub(" +", " ", row).split("|") for row in table.splitlines()]
    for cells in (aligned, collapsed):
        assert {len(row) for row in cells} == {len(COLUMNS)}
        assert all(cell.strip() for row in cells for cell in row)
    assert len({tuple(map(len, row[:-1])) for row in aligned}) == 1, "and it is aligned where blanks are kept"
    assert [[cell.strip() for cell in row] for row in aligned[1:]] == [
        ["-", "base", "-", "-", "-", "0", "0.100", "0.250", "finished"],
        ["*", "b", "4", "1e-4", "400/400", "400", "0.500", "0.250", "finished"],
        ["-", "a", "4", "1e-4", "200/400", "200", "0.300", "0.250", "running"],
        ["-", "d", "4", "1e-4", "200/400", "200", "0.200", "0.250", "waiting"],
        ["-", "c", "4", "1e-4", "200/400", "200", "0.900", "0.100", "stopped"],
        ["-", "e", "4", "1e-4", "0/400", "-", "-", "-", "failed"],
    ]
    (failure,) = below.splitlines()
    assert failure.startswith("failed: e: ValueError: too | large on and")
    assert len(failure) <= 150


def test_a_leaderboard_that_cannot_be_written_ends_nothing(board: Board, tmp_path: Path) -> None:
    """Ray's session folder may vanish; the sweep goes on."""
    Display(board, None, tmp_path / "gone" / "file.log").changed(record("d"))


def test_a_jobs_log_says_each_change_and_the_best_so_far(board: Board) -> None:
    """Without a terminal: a line before, a line a change, the best where it is new or a trial ends, a line after."""
    output = io.StringIO()
    board.running = {"a", "d"}
    display = Display(board, Console(file=output, width=60), None)
    with display.shown():
        display.changed(record("d", entry(200, 0.2)))
        display.changed(record("a", entry(200, 0.3), entry(400, 0.6)))
        display.changed(record("a", entry(200, 0.3), entry(400, 0.6), status="finished"))
        display.changed(record("d", entry(200, 0.2), status="failed", reason="ValueError: [bold]x"))
    assert output.getvalue().splitlines() == [
        "ada: 4 trials planned, 2 ended by earlier runs",
        "[2/4] d  running  step 200/400  face 0.200  prompt 0.250",
        "[2/4] a  running  step 400/400  face 0.600  prompt 0.250  best so far a 0.600 at step 400",
        "[3/4] a  finished  step 400/400  face 0.600  prompt 0.250  best so far a 0.600 at step 400",
        "[4/4] d  failed  ValueError: [bold]x  best so far a 0.600 at step 400",
        "ada: 2 finished, 1 stopped, 1 failed; best a 0.600 at step 400",
    ]


def test_a_sweep_without_a_champion_says_so(tmp_path: Path) -> None:
    """At its end, whatever ended it."""
    output = io.StringIO()
    board = Board("ada", ChampionConfig(), num_planned=1)
    with pytest.raises(KeyboardInterrupt), Display(board, Console(file=output), None).shown():
        raise KeyboardInterrupt
    assert output.getvalue().splitlines()[-1] == "ada: 1 waiting; no champion"


@pytest.mark.parametrize("width", [100, 160])
def test_the_table_fits_a_terminal(tmp_path: Path, width: int) -> None:
    """With the ids and numbers of a real run no cell is cut or broken; a heading may be."""
    fake_run.build_run(tmp_path, num_trials=8, num_running=1, num_failed=1, at_steps=(2000, 12000), with_renders=False)
    output, board = io.StringIO(), of_run(tmp_path)
    with Display(board, Console(file=output, width=width, force_terminal=True, color_system=None), None).shown():
        pass
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue())
    assert max(cell_len(line) for line in drawn.splitlines()) <= width
    for row in board.rows():
        assert re.search(r"\s+".join(re.escape(cell) for cell in row if cell), drawn), row


def test_a_terminal_gets_a_table(board: Board) -> None:
    """Both scores, steps and status stand in it, and the headline below."""
    output = io.StringIO()
    display = Display(board, Console(file=output, width=160, force_terminal=True), None)
    with display.shown():
        display.tick()
    for part in ("similarity", "alignment", "400/400", "0.500", "stopped", "2 of 4 trials ended"):
        assert part in output.getvalue()


def slow_reference(board: Board, records: dict[str, TrialRecord], base: TrialRecord | None) -> dict[str, Any]:
    """The same board from all records at once, by the words of its docstrings."""
    rule = ChampionRule.of(ChampionConfig(), base)
    trials = [records[trial] for trial in sorted(records)]
    scored = [trial for trial in trials if trial.checkpoints]
    scored.sort(key=lambda trial: (*rule.order(rule.best(trial.checkpoints)), trial.config["rank"]))
    done = {trial.trial: trial.checkpoints[-1].step if trial.checkpoints else 0 for trial in trials}
    left = sum(400 - done[trial.trial] for trial in trials if not trial.is_over)
    left += 400 * max(0, board.num_planned - len(trials))
    spent = sum(trial.seconds for trial in scored)
    at_once = max(1, len(board.running))
    first = rule.best(scored[0].checkpoints) if scored and base else None
    return {
        "order": [*(trial.trial for trial in scored), *(trial.trial for trial in trials if not trial.checkpoints)],
        "ended": sum(trial.is_over for trial in trials),
        "statuses": Counter(board.status(trial) for trial in trials),
        "left": left * spent / sum(done.values()) / at_once if any(done.values()) else None,
        "best": (scored[0].trial, first.step) if first and rule.qualifies(first) else None,
        "failures": [
            trial.trial for trial in [*scored, *(t for t in trials if not t.checkpoints)] if trial.status == "failed"
        ],
    }


scores = st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([0.1, 0.25, 0.3])), max_size=3)
changes = st.tuples(
    st.sampled_from("abcdef"),
    scores,
    st.sampled_from([2, 16]),
    st.sampled_from(["running", "finished", "stopped", "failed"]),
    st.sampled_from([None, "machine", "trial"]),
)


@given(st.lists(changes, max_size=25), st.integers(0, 25), st.sets(st.sampled_from("abcdef")))
def test_a_board_that_is_kept_up_to_date_is_the_one_made_anew(
    events: list[Any], base_comes_after: int, running: set[str]
) -> None:
    """Whatever changes, in whatever order, and whenever the base model's score comes."""
    board, records, base = Board("ada", ChampionConfig(), num_planned=8), {}, None
    board.running = running
    for i, (trial, scored, rank, status, fault) in enumerate(events):
        entries = [entry(100 * (n + 1), *found) for n, found in enumerate(scored)]
        records[trial] = record(trial, *entries, status=status, fault=fault)
        records[trial] = records[trial].model_copy(update={"config": {**records[trial].config, "rank": rank}})
        board.put(records[trial])
        if i == base_comes_after:
            base = record("base", entry(0, 0.1, 0.28))
            board.put(base)
    wanted = slow_reference(board, records, base)
    assert [trial.trial for trial in board.best_first()] == wanted["order"]
    assert board.num_ended == wanted["ended"]
    assert {k: v for k, v in board.num_by_status().items() if v} == dict(
        wanted["statuses"] + Counter(waiting=8 - len(records))
    )
    assert board.seconds_left() == (None if wanted["left"] is None else pytest.approx(wanted["left"]))
    best = board.best()
    assert (best and (best.trial, best.checkpoint.step)) == wanted["best"]
    assert len(list(board.rows())) == board.num_rows == len(records) + (base is not None)
    assert [line.split(": ")[1] for line in board.failures()] == wanted["failures"]


def test_a_change_costs_the_same_among_many_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the trials ask the champion rule twice as often, all their changes together."""
    asked = 0
    order = ChampionRule.order

    def counted(rule: ChampionRule, scores: Any) -> Any:
        nonlocal asked
        asked += 1
        return order(rule, scores)

    monkeypatch.setattr(ChampionRule, "order", counted)

    def asked_for(num_trials: int) -> int:
        nonlocal asked
        board = Board("ada", ChampionConfig(), num_trials)
        board.put(record("base", entry(0, 0.1)))
        display = Display(board, Console(file=io.StringIO()), None)
        asked = 0
        for i in range(num_trials):
            display.changed(record(f"t{i}", entry(200, i / num_trials)))
            board.headline(), board.summary(), board.num_by_status()
        return asked

    assert 0 < asked_for(80) <= 2 * asked_for(40)


def test_writing_takes_no_more_than_its_share_and_nothing_stays_unwritten() -> None:
    """A file that takes a second to write is written every twenty; what was left out meanwhile is written then."""
    clock, done = [0.0], []

    def work() -> None:
        done.append(clock[0])
        clock[0] += 1

    pace = Pace(0.05, lambda: clock[0])
    pace.wanted(work)
    for moment in (2.0, 5.0, 19.0):
        clock[0] = moment
        pace.wanted(work)
        pace.catch_up(work)
    assert done == [0.0]
    clock[0] = 20.0
    pace.catch_up(work)
    pace.catch_up(work)
    assert done == [0.0, 20.0]
    pace.catch_up(work, at_once=True)
    assert done == [0.0, 20.0], "nothing new"
    pace.wanted(work, at_once=True)
    assert done == [0.0, 20.0, 21.0]


def test_the_last_state_is_in_the_leaderboard_file(board: Board, tmp_path: Path) -> None:
    """Whatever was left out while the sweep ran, and however it ends."""
    clock = iter(range(10**9))
    file = tmp_path / "board.log"
    display = Display(board, None, file, now=lambda: float(next(clock)))
    with suppress(KeyboardInterrupt), display.shown():
        display.changed(record("a", entry(200, 0.3), status="finished"))
        assert "2 of 4" in file.read_text(), "a second of writing allows the next in twenty"
        raise KeyboardInterrupt
    assert "3 of 4" in file.read_text()
