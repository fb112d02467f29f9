"""Laws of the leaderboard, the champion rule and the intervals. No torch, no Ray: about a second."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evaluation.scores import ImageScore
from sweeps.config import ChampionConfig
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import TrialRecord, parse_record
from sweeps.results import results
from sweeps.results.advice import advice_of
from sweeps.results.champion import Champion, champion
from sweeps.results.intervals import Family
from sweeps.results.leaderboard import (
    COLUMNS,
    Row,
    base_row,
    best_first,
    mark_pareto,
    pareto_front,
    results_csv,
    write_results_csv,
)
from sweeps.results.results import Results, TrialReader, read_results
from sweeps.results.rule import ChampionRule
from tests.sweeps.fake_run import PROMPTS, build_run, entry, write_sweep, write_trial

CHAMPION = ChampionConfig(prompt_alignment_margin=0.02)


def verdict_on(rows: list[Row]) -> Champion:
    return champion(rows, ChampionRule.of(CHAMPION, base_row(rows)))


def row(
    trial: str, face: float, alignment: float = 0.3, step: int = 100, rank: int | None = 4, method: str = "lora"
) -> Row:
    return Row(
        trial=trial,
        method=method,
        rank=rank,
        learning_rate=1e-4,
        step=step,
        seed=0,
        status="finished",
        face_similarity=face,
        prompt_alignment=alignment,
        num_images=4,
        num_faces=4,
        checkpoint=f"trials/{trial}/checkpoint-{step}",
        images=None,
    )


def base(face: float = 0.1, alignment: float = 0.3) -> Row:
    zero = row("base", face, alignment, step=0, rank=None, method="base")
    return zero.model_copy(update={"checkpoint": None})


def run_of(folder: Path, *trials: tuple[str, list[dict[str, object]]], base_face: float = 0.1) -> Results:
    """A run folder of lora trials with the given entries, and the base model's."""
    write_sweep(folder, "ada", PROMPTS, 4, [100, 200])
    write_trial(
        folder,
        {"trial": "base", "method": "base", "status": "finished", "config": {}},
        [entry(0, base_face, trial="base", spread=0.01)],
    )
    for name, entries in trials:
        config = {"method": "lora", "rank": 4, "learning_rate": 1e-4, "seed": 0}
        write_trial(folder, {"trial": name, "method": "lora", "status": "finished", "config": config}, entries)
    return read_results(folder)


def test_champion_is_the_highest_face_similarity_that_still_follows_its_prompts() -> None:
    """A more alike checkpoint below the base model's alignment minus the margin does not win."""
    rows = [base(), row("a", 0.9, 0.27), row("b", 0.6, 0.285), row("c", 0.5, 0.31)]
    verdict = verdict_on(rows)
    assert verdict.row is not None
    assert verdict.row.trial == "b"
    assert verdict.runner_up is not None
    assert verdict.runner_up.trial == "c"
    assert verdict.rule == ChampionRule(0.02).text
    assert "0.02" in verdict.rule


def test_the_margin_is_inclusive() -> None:
    """Exactly the base model's alignment minus the margin qualifies, whatever binary fractions make of it."""
    assert verdict_on([base(alignment=0.26), row("a", 0.5, 0.24)]).row is not None  # 0.26 - 0.02 > 0.24 in binary
    assert verdict_on([base(alignment=0.26), row("a", 0.5, 0.2399)]).row is None


def test_base_model_is_never_the_champion_and_its_lead_is_said() -> None:
    """Where the base model is as alike as the best checkpoint, the verdict says so and is no finding."""
    verdict = verdict_on([base(face=0.7), row("a", 0.5), row("b", 0.4)])
    assert verdict.row is not None
    assert verdict.row.trial == "a"
    assert not verdict.is_finding
    assert any("at least the champion's" in caveat for caveat in verdict.caveats)


def test_nobody_qualifies_gives_no_champion_and_the_reason() -> None:
    """The reason names the alignment needed and the best one found."""
    verdict = verdict_on([base(alignment=0.3), row("a", 0.9, 0.1)])
    assert verdict.row is None
    assert "0.280" in verdict.reason
    assert "0.100" in verdict.reason


def test_without_base_or_trials_there_is_no_champion() -> None:
    """The rule compares with the base model, so without its row nobody is named."""
    assert verdict_on([row("a", 0.9)]).row is None
    assert verdict_on([base()]).row is None
    assert verdict_on([]).row is None


def test_ties_go_to_fewer_steps_then_lower_rank_then_name() -> None:
    """Equal scores have one order, whatever the order on disk."""
    rows = [row("d", 0.5, step=200, rank=2), row("c", 0.5, rank=8), row("b", 0.5, rank=4), row("a", 0.5, rank=4)]
    for arrangement in (rows, rows[::-1]):
        assert [r.trial for r in best_first([base(), *arrangement], ChampionRule(0.02, 0.3))][:4] == [
            "a",
            "b",
            "c",
            "d",
        ]


points = st.lists(st.tuples(st.integers(0, 4).map(float), st.integers(0, 4).map(float)), max_size=12)


@given(points)
def test_pareto_front_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    """A point is on the front if and only if no other is at least as good in both and better in one."""

    def dominated(p: tuple[float, float]) -> bool:
        return any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points)

    assert pareto_front(points) == [not dominated(p) for p in points]


def test_what_the_base_model_beats_twice_is_on_no_front() -> None:
    """The base model takes part in the front."""
    flags = {r.trial: r.pareto for r in mark_pareto([base(0.5, 0.3), row("a", 0.4, 0.29), row("b", 0.6, 0.2)])}
    assert flags == {"base": True, "a": False, "b": True}


def test_rows_are_one_per_scored_checkpoint_with_the_contract_s_keys(tmp_path: Path) -> None:
    """`show --json` and results.csv have the same names, best first, and the base model as the zero line."""
    results = read_results(build_run(tmp_path, num_trials=5, num_failed=1))
    assert len(results.rows) == 4 * 3 + 1
    needed = "trial method rank learning_rate step seed status face_similarity prompt_alignment num_images num_faces"
    assert {*needed.split(), "checkpoint"} <= set(results.rows[0].as_dict())
    assert json.loads(json.dumps([r.as_dict() for r in results.rows], allow_nan=False))
    assert results.base is not None
    zero = results.base.as_dict()
    assert (zero["step"], zero["rank"], zero["learning_rate"], zero["checkpoint"]) == (0, None, None, None)
    assert sum(r.champion for r in results.rows) == 1
    assert results.champion.row is not None
    assert results.champion.row.champion
    assert all(r.rank is None for r in results.rows if r.method == "dreambooth")


def test_csv_is_the_leaderboard(tmp_path: Path) -> None:
    """results.csv reads back as the rows, in their order."""
    results = read_results(build_run(tmp_path, num_trials=3))
    lines = list(csv.DictReader(write_results_csv(results.run_dir, results.rows).read_text().splitlines()))
    assert [line["trial"] for line in lines] == [r.trial for r in results.rows]
    assert tuple(lines[0]) == COLUMNS
    assert float(lines[0]["face_similarity"]) == results.rows[0].face_similarity
    assert results_csv([]).strip() == ",".join(COLUMNS)


def test_a_broken_trial_is_named_and_the_rest_shown(tmp_path: Path) -> None:
    """Truncated JSON, a NaN score, a wrong type: each named by its file, none hides the other trials."""
    build_run(tmp_path, num_trials=5, with_renders=False)
    files = sorted(p for p in tmp_path.glob("trials/*/trial.json") if p.parent.name != "base")
    files[0].write_bytes(files[0].read_bytes()[:500])
    poisoned = json.loads(files[1].read_text())
    poisoned["checkpoints"][0]["face_similarity"] = float("nan")
    files[1].write_text(json.dumps(poisoned))
    poisoned = json.loads(files[2].read_text())
    poisoned["config"]["learning_rate"] = "<script>"
    files[2].write_text(json.dumps(poisoned))
    results = read_results(tmp_path)
    assert len(results.warnings) == 3
    for path in files[:3]:
        assert any(path.parent.name in warning for warning in results.warnings)
    assert {r.trial for r in results.rows} == {"base", *(p.parent.name for p in files[3:])}


def test_an_unreadable_sweep_file_leaves_the_scores(tmp_path: Path) -> None:
    """Without settings the default rule holds and a warning says so."""
    build_run(tmp_path, num_trials=2, with_renders=False)
    (tmp_path / "sweep.yaml").write_text("name: [")
    results = read_results(tmp_path)
    assert results.config is None
    assert results.rule.margin == ChampionConfig().prompt_alignment_margin
    assert "sweep.yaml" in results.warnings[0]
    assert results.champion.row is not None


def test_scores_of_different_judges_are_not_silently_compared(tmp_path: Path) -> None:
    """An encoder changed in the middle of a sweep is named."""
    one, other = ({**entry(100, 0.5, trial=name), "face_encoder": name} for name in ("a", "b"))
    assert not run_of(tmp_path / "same", ("a", [entry(100, 0.5, trial="a")])).warnings
    assert "different face encoders" in run_of(tmp_path / "two", ("a", [one]), ("b", [other])).warnings[0]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    """The message says what a run folder holds and where we looked."""
    with pytest.raises(ValueError, match="trials/, found neither"):
        read_results(tmp_path / "nowhere")


def test_no_face_anywhere_is_said_instead_of_celebrated(tmp_path: Path) -> None:
    """A champion of faceless pictures is no finding."""
    verdict = read_results(build_run(tmp_path, num_trials=4, with_faces=False)).champion
    assert not verdict.is_finding
    assert "no checkpoint has a face in any picture" in verdict.caveats[0]


def test_no_trial_better_than_the_base_model_is_said(tmp_path: Path) -> None:
    """Where no difference from the base model is measurable, the scores rank nothing."""
    results = run_of(tmp_path, ("a", [entry(100, 0.101, trial="a", spread=0.05)]))
    assert not results.champion.is_finding
    assert "do not rank the settings" in results.champion.caveats[0]


def test_a_clear_champion_is_a_finding(tmp_path: Path) -> None:
    """Above the base model on every picture, and no reason against it."""
    results = run_of(tmp_path, ("a", [entry(100, 0.6, trial="a", spread=0.02)]))
    assert results.champion.is_finding
    assert results.champion.caveats == ()
    assert results.champion.versus_base is not None
    assert results.champion.versus_base.num_pictures == 8


def test_best_of_each_trial_is_one_row_a_trial_best_first(tmp_path: Path) -> None:
    """Trials without a scored checkpoint are not among them; asking for one says so."""
    results = read_results(build_run(tmp_path, num_trials=6, num_failed=1))
    best = results.best_of_each_trial()
    assert len({r.trial for r in best}) == len(best) == 5
    assert best[0] == results.champion.row
    failed = next(t.trial for t in results.trials if t.status == "failed")
    with pytest.raises(ValueError, match="no scored checkpoint"):
        results.best_of_trial(failed)
    with pytest.raises(ValueError, match="not in this run"):
        results.best_of_trial("nobody")


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "trials/../../outside"])
def test_a_path_that_leaves_the_run_folder_is_refused(tmp_path: Path, path: str) -> None:
    """trial.json may come from somebody else."""
    with pytest.raises(ValueError, match="inside the run folder"):
        RunFolder(tmp_path).inside(path)


def test_a_link_that_leaves_the_run_folder_is_refused(tmp_path: Path) -> None:
    """Following a link counts as leaving."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="inside the run folder"):
        RunFolder(tmp_path / "run").inside("link/secret")


def test_reading_results_loads_neither_ray_nor_torch() -> None:
    """`show` answers at once."""
    code = (
        "import sys, sweeps.results.results; print(sorted({'ray', 'torch', 'optuna', 'diffusers'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout  # noqa: S603
    assert output.strip() == "[]"


def test_trials_of_an_earlier_sweep_are_in_no_verdict(tmp_path: Path) -> None:
    """However good: neither champion, nor on the front, nor counted, nor before what the file asks for; and marked."""
    build_run(tmp_path / "ada", num_trials=8, num_failed=0)
    before = read_results(tmp_path / "ada")
    assert before.champion.row is not None
    assert not before.earlier
    settings = yaml.safe_load((tmp_path / "ada" / "sweep.yaml").read_text())
    ranks = {2, 4, 16, 128} - {before.champion.row.rank}
    settings["methods"]["lora"]["rank"] = {"choices": sorted(ranks)}
    (tmp_path / "ada" / "sweep.yaml").write_text(yaml.safe_dump(settings))
    after = read_results(tmp_path / "ada")
    gone = {row.trial for row in before.rows if row.rank == before.champion.row.rank}
    assert set(after.earlier) == {row.trial for row in after.rows if row.earlier} == gone
    assert after.champion.row is not None
    assert after.champion.row.trial not in gone
    assert not any(row.pareto or row.champion for row in after.rows if row.earlier)
    assert not gone & {row.trial for row in after.best_of_each_trial()}
    assert sum(after.num_by_status.values()) == len(before.trials) - 1 - len(gone)
    flags = [row.earlier for row in after.rows]
    assert flags == sorted(flags), "behind all others"
    written = list(csv.DictReader(io.StringIO(results_csv(after.rows))))
    assert {line["trial"] for line in written if line["earlier"] == "True"} == gone
    assert len(after.rows) == len(before.rows), "they are shown"


pictures = st.lists(st.floats(-0.2, 0.4), min_size=2, max_size=9)


@given(st.lists(pictures, max_size=6), st.lists(st.floats(-0.2, 0.2), min_size=9, max_size=9))
def test_the_caveats_are_those_of_all_checkpoints(trials: list[list[float]], of_base: list[float]) -> None:
    """Looked at one by one until one settles it, or all together."""

    def with_pictures(found: Row, scores: list[float]) -> Row:
        images = tuple(
            ImageScore(file=f"{i}.png", face_similarity=score, num_faces=1) for i, score in enumerate(scores)
        )
        return found.model_copy(update={"image_scores": images, "face_similarity": float(np.mean(scores))})

    zero = with_pictures(base(), of_base)
    rows = [with_pictures(row(f"t{i}", 0.0), scores) for i, scores in enumerate(trials)]
    family = Family([one.face_similarities for one in [zero, *best_first(rows, ChampionRule(0.02, 0.3))]])
    verdicts = {family.compare(one.face_similarities, zero.face_similarities).verdict for one in rows}
    said = " ".join(verdict_on([zero, *rows]).caveats)
    assert ("too few pictures" in said) == (verdicts == {"unknown"})
    assert ("measurably" in said) == bool(verdicts and "higher" not in verdicts and verdicts != {"unknown"})


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that goes on gives what a new one gives, and parses only what was written since."""
    run_dir = build_run(tmp_path / "run", num_trials=6, num_running=2, images_per_prompt=1, size=8)
    reader, parsed = TrialReader(), []

    def counted(content: bytes) -> TrialRecord:
        found = parse_record(content)
        parsed.append(found.trial)
        return found

    def agree() -> list[str]:
        parsed.clear()
        known = read_results(run_dir, reader)
        only = list(parsed)
        anew = read_results(run_dir)
        assert (known.rows, known.trials, known.warnings) == (anew.rows, anew.trials, anew.warnings)
        assert (known.champion, known.earlier) == (anew.champion, anew.earlier)
        return only

    monkeypatch.setattr(results, "parse_record", counted)
    assert len(agree()) == 7
    assert agree() == []
    best, other, damaged = (trial.trial for trial in read_results(run_dir).trials[1:4])
    folder = RunFolder(run_dir)
    record = folder.read(best)
    assert record is not None
    folder.write(record.model_copy(update={"status": "stopped"}))
    assert agree() == [best]
    folder.trial_file(other).unlink()
    folder.trial_file(damaged).write_text("{")
    assert agree() == []
    sweep = yaml.safe_load(folder.sweep_file.read_text())
    del sweep["methods"]["dreambooth"]
    folder.sweep_file.write_text(yaml.safe_dump(sweep))
    assert len(agree()) == 5, "which trials the sweep file asks for has changed"
    assert read_results(run_dir, reader).earlier


def test_trials_that_differ_in_an_option_are_told_apart_by_it(tmp_path: Path) -> None:
    """In every row, in the CSV and in the advice: open options as a sweep file has them, nothing fixed."""
    run = tmp_path / "run"
    write_sweep(run, "ada", PROMPTS, 2, [10])
    settings = yaml.safe_load((run / "sweep.yaml").read_text())
    space = {
        "rank": 4,
        "noise_offset": 0.1,
        "snr_gamma": {"choices": [None, 5]},
        "use_dora": {"choices": [True, False]},
    }
    settings["methods"] = {"lora": {**space, "learning_rate": {"low": 1e-4, "high": 1e-3}, "max_train_steps": 10}}
    (run / "sweep.yaml").write_text(yaml.safe_dump(settings))
    for number, (snr_gamma, use_dora) in enumerate([(None, True), (5, False)]):
        config = {"method": "lora", "rank": 4, "learning_rate": 1e-4, "max_train_steps": 10, "noise_offset": 0.1}
        record = {"trial": f"t{number}", "method": "lora", "status": "finished"}
        options = {"snr_gamma": snr_gamma, "use_dora": use_dora}
        write_trial(
            run, {**record, "config": {**config, **options}}, [entry(10, 0.5 + number / 10, trial=f"t{number}")]
        )
    write_trial(
        run, {"trial": "base", "method": "base", "status": "finished", "config": {}}, [entry(0, 0.1, trial="base")]
    )
    found = read_results(run)
    assert {row.trial: row.options for row in found.rows} == {
        "t0": "snr_gamma none, use_dora true",
        "t1": "snr_gamma 5, use_dora false",
        "base": "",
    }
    assert "learning rate 1e-4, snr_gamma 5, use_dora false, 10 steps" in advice_of(found).sentence
    (line,) = [row for row in csv.DictReader(io.StringIO(results_csv(found.rows))) if row["trial"] == "t1"]
    assert line["options"] == "snr_gamma 5, use_dora false"
