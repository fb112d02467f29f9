"""Laws of report.html: self-contained, safe, honest, and there whatever state the run is in. About ten seconds."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from plotly.offline import get_plotlyjs

from evaluation.references import References
from sweeps.ledger.folder import RunFolder
from sweeps.report import pictures as report_pictures
from sweeps.report.page import (
    BarScale,
    drawn_trials,
    interval_text,
    render_live_content,
    render_report,
    write_report,
)
from sweeps.report.pictures import data_uri
from sweeps.results.leaderboard import Row
from sweeps.results.results import read_results
from sweeps.wording import score_text
from tests.sweeps.fake_run import PROMPTS, build_run, write_stats

HOSTILE = '<script>alert("x")</script><img src=//evil.example/x onerror=alert(1)>'


class Page(HTMLParser):
    """Every tag with its attributes, and the text of scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in_script = False
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the tag."""
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 -- the base class's signature
        """Scripts hold no tags, so any end ends one."""
        self._in_script = False

    def handle_data(self, data: str) -> None:
        """Keep what is read as text apart from what is run."""
        if self._in_script:
            self.scripts.append(data)
        else:
            self.text += data

    @property
    def images(self) -> list[str]:
        """Addresses of all pictures."""
        return [attrs["src"] or "" for tag, attrs in self.tags if tag == "img"]

    @property
    def headings(self) -> list[str]:
        """Section headings in their order."""
        return re.findall(r"<h2>(.*?)</h2>", self.html)


def page_of(run_dir: Path) -> Page:
    return Page(write_report(run_dir))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A finished sweep with one failed trial."""
    return page_of(build_run(tmp_path_factory.mktemp("runs") / "ada", num_trials=7, num_failed=1))


def test_the_page_asks_the_network_for_nothing(page: Page) -> None:
    """No address but data in any attribute, and a policy that forbids the rest."""
    links = [
        v for _, attrs in page.tags for k, v in attrs.items() if k in {"src", "href", "action", "data-enlarged"} and v
    ]
    assert links
    assert {urlsplit(link).scheme for link in links} == {"data"}
    assert "@import" not in page.html
    assert "url(" not in page.html
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy


def test_the_only_scripts_are_ours_and_plotlys_and_the_policy_names_their_hashes(page: Page) -> None:
    """A policy that does not fit a script would switch it off; plotly.js is packed and comes out as it was."""
    figures, packed, ours = page.scripts
    plotly = gzip.decompress(base64.b64decode(packed)).decode()
    assert plotly == get_plotlyjs()
    assert json.loads(figures)["trade-off"]["data"]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in (ours, plotly)]
    assert "script-src " + " ".join(f"'sha256-{digest}'" for digest in digests) + ";" in page.html
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    kinds = [attrs.get("type") for tag, attrs in page.tags if tag == "script"]
    assert kinds == ["application/json", "text/plain", None]


def test_it_says_the_verdict_first_and_the_rest_in_order(page: Page) -> None:
    """Verdict, leaderboard, plots, pictures, renders, failures, settings."""
    assert page.headings == [
        "Leaderboard",
        "Likeness against prompt alignment",
        "Over training steps",
        "Rank and learning rate",
        "Learning curves",
        "The same prompt and starting noise",
        "ControlNet renders",
        "Failed trials",
        "What the numbers rest on",
    ]
    assert page.html.index('class="verdict') < page.html.index("<h2>")
    drawn = [attrs["data-figure"] for _, attrs in page.tags if "data-figure" in attrs]
    assert sorted(drawn) == sorted(json.loads(page.scripts[0]))


def test_it_shows_the_champion_its_rule_its_numbers_and_the_zero_line(tmp_path: Path) -> None:
    """What `show` names is what the page names."""
    build_run(tmp_path, num_trials=5)
    page, verdict = page_of(tmp_path), read_results(tmp_path).champion
    assert verdict.row is not None
    text = " ".join(page.text.split())
    for part in (verdict.row.trial, verdict.rule, verdict.reason, score_text(verdict.row.face_similarity)):
        assert part in text
    assert interval_text(verdict.row.face_similarity_interval) in text
    assert "base model" in text
    assert (tmp_path / "results.csv").is_file()


def test_settings_encoders_scale_and_versions_are_printed(page: Page) -> None:
    """A number without its encoder and scale cannot be compared."""
    for part in ("vggface2", "ViT-B-32 laion2b_s34b_b79k", "raw cosine", "2.14.1", *PROMPTS):
        assert part in page.text


def test_failed_trials_are_listed_with_their_reasons(page: Page) -> None:
    """A failure is a result."""
    assert "the loss is not finite at step 37" in page.text


def test_prompts_and_reasons_are_text_never_markup(tmp_path: Path) -> None:
    """A hostile prompt, reason, status line and file name stay letters."""
    build_run(tmp_path, num_trials=4, num_failed=1, prompts=[HOSTILE, "$\\frac{1}{0}$"])
    for file in sorted(tmp_path.glob("trials/*/trial.json")):
        content = json.loads(file.read_text())
        if content["status"] == "failed":
            content["reason"] = HOSTILE
        file.write_text(json.dumps(content))
        if content["method"] == "dreambooth" or content["config"].get("rank") == 16:
            file.parent.rename(file.parent.with_name(f"{content['config'].get('rank')}&<b id=evil>'\""))
    page = page_of(tmp_path)
    assert page.text.count("onerror=alert(1)>") >= 3
    assert len(page.scripts) == 3
    assert "evil.example" not in " ".join(
        v or "" for tag, a in page.tags for k, v in a.items() if k not in {"alt", "data-trial", "title"}
    )
    assert "16&<b id=evil>'\"" in page.text
    assert not [attrs for _, attrs in page.tags if attrs.get("id") == "evil"]


def test_a_hostile_sweep_name_is_refused_as_settings_and_shown_as_text(tmp_path: Path) -> None:
    """The page still comes, with the warning escaped."""
    build_run(tmp_path / "run", num_trials=2, name=HOSTILE)
    page = page_of(tmp_path / "run")
    assert "What could not be read" in page.headings
    assert len(page.scripts) == 3


@pytest.mark.parametrize(
    ("options", "headline"),
    [
        ({"num_trials": 0, "with_renders": False}, "No champion"),
        ({"num_trials": 1, "with_renders": False}, "LoRA of rank 2"),
        ({"num_trials": 2, "num_failed": 2}, "No champion"),
        ({"num_trials": 4, "num_running": 3}, "LoRA of rank"),
        ({"num_trials": 3, "with_base": False}, "No champion"),
        ({"num_trials": 3, "at_steps": (100,)}, "rank"),
        ({"num_trials": 4, "with_faces": False}, "not a finding"),
        ({"num_trials": 4, "likeness": 0.0}, "not a finding"),
        ({"num_trials": 4, "images_per_prompt": 1}, "not a finding"),
    ],
)
def test_every_state_of_a_run_has_its_page(tmp_path: Path, options: dict[str, object], headline: str) -> None:
    """Nothing finished, one trial, all failed, still running, no base model, no faces, no effect, few pictures."""
    page = page_of(build_run(tmp_path, **options))  # type: ignore[arg-type]
    assert headline in re.findall(r"<h1>(.*?)</h1>", page.html)[0]
    assert "nan" not in page.text.lower().split()


@pytest.mark.parametrize(("num_running", "eyebrow"), [(2, "not ended yet"), (0, "nothing to bet on")])
def test_only_a_run_that_has_ended_has_nothing_to_bet_on(tmp_path: Path, num_running: int, eyebrow: str) -> None:
    """While trials run, a champion may still come."""
    page = page_of(build_run(tmp_path, num_trials=3, with_base=False, num_running=num_running))
    assert re.findall(r'<p class="eyebrow">(.*?)</p>', page.html) == [eyebrow]


def test_a_run_that_nobody_goes_on_with_says_so(tmp_path: Path) -> None:
    """`running` in the ledger outlives a killed driver."""
    folder = RunFolder(build_run(tmp_path, num_trials=3, num_running=1))
    assert "interrupted" in page_of(tmp_path).text
    with folder.lock():
        assert "interrupted" not in page_of(tmp_path).text


def test_a_trial_that_has_not_ended_is_shown_with_the_steps_it_took(tmp_path: Path) -> None:
    """Those after its newest score included; one that has taken none waits; a run that has ended has no such part."""
    run_dir = build_run(tmp_path / "ada", num_trials=3, num_running=2)
    first, second = [trial.trial for trial in RunFolder(run_dir).trials() if trial.status == "running"]
    write_stats(run_dir, first, 1e-4, range(1, 238))
    (run_dir / "trials" / second / "stats.jsonl").unlink()
    record = json.loads((run_dir / "trials" / second / "trial.json").read_text())
    (run_dir / "trials" / second / "trial.json").write_text(json.dumps({**record, "checkpoints": []}))
    page = page_of(run_dir)
    assert "Not ended yet" in page.headings
    assert "237 of 800" in page.text
    assert "waits" in page.text
    assert "1 of 24 trials ended" in page.text
    assert "Not ended yet" not in page_of(build_run(tmp_path / "ended", num_trials=2)).headings


def test_missing_and_broken_pictures_leave_gaps(tmp_path: Path) -> None:
    """A picture that is gone, truncated or no picture is said to be missing."""
    build_run(tmp_path, num_trials=3, with_renders=False)
    pictures = sorted(tmp_path.glob("trials/*/images-*/000-0.png"))
    for i, picture in enumerate(pictures):
        if i % 3 == 0:
            picture.unlink()
        else:
            picture.write_bytes(picture.read_bytes()[: 40 if i % 3 == 1 else 4])
    assert "no picture" in page_of(tmp_path).text


def test_no_picture_is_read_from_outside_the_run(tmp_path: Path) -> None:
    """A path in trial.json that leaves the folder shows nothing."""
    build_run(tmp_path / "run", num_trials=1, with_renders=False)
    secret = tmp_path / "secret"
    secret.mkdir()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(secret / "000-0.png")
    wanted = data_uri(secret / "000-0.png", 256)
    file = next(p for p in tmp_path.glob("run/trials/lora*/trial.json"))
    content = json.loads(file.read_text())
    for checkpoint in content["checkpoints"]:
        checkpoint["images"] = "../secret"
    file.write_text(json.dumps(content))
    assert wanted
    assert wanted not in page_of(tmp_path / "run").html


def test_a_large_sweep_stays_a_page_that_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures stop at the budget, those of the first seed come first, and the page says what it left out."""
    monkeypatch.setattr(report_pictures, "PICTURE_BUDGET_BYTES", 60_000)
    page = page_of(build_run(tmp_path, num_trials=12, size=160, with_renders=False))
    assert sum(len(uri) for uri in page.images) < 200_000
    assert "too large" in page.text
    assert page.images


def test_inlined_pictures_are_small_and_carry_nothing_but_pixels(tmp_path: Path) -> None:
    """Text chunks of a picture stay behind; its longer side is reduced."""
    path = tmp_path / "x.png"
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a private prompt")
    Image.effect_noise((600, 300), 60).save(path, pnginfo=info)
    uri = data_uri(path, 256)
    assert uri is not None
    content = base64.b64decode(uri.partition(",")[2])
    assert b"private" not in content
    path.with_suffix(".jpg").write_bytes(content)
    with Image.open(path.with_suffix(".jpg")) as reduced:
        assert reduced.size == (256, 128)


def test_a_bar_shows_a_value_by_its_place() -> None:
    """In percent of the width."""
    assert BarScale(0.0, 0.5).percent(0.25) == "50.0"


def test_two_reports_of_one_run_are_equal_but_for_their_time(tmp_path: Path) -> None:
    """Nothing random goes into the page."""
    build_run(tmp_path, num_trials=3)
    first, second = (re.sub(r"as of [\d: -]+UTC", "", page_of(tmp_path).html) for _ in range(2))
    assert first == second


def test_no_id_stands_twice(page: Page) -> None:
    """A part of the page that follows a run is found by its id."""
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_photos_that_were_special_are_named(tmp_path: Path) -> None:
    """Without a face, with several, likely a stranger's: with their names as text, and how many counted."""
    run_dir = build_run(tmp_path / "ada", num_trials=2)
    assert "About the photos" not in page_of(run_dir).headings
    faces = np.eye(8, dtype=np.float32)[[0, 0, 0, 1]]
    References("a judge", faces, ("a.png", "b.png", "c.png", HOSTILE), ("",) * 4, ("d [1].png",), ("b.png",)).save(
        run_dir / "dataset" / "reference_embedding.safetensors"
    )
    page = page_of(run_dir)
    assert "About the photos" in page.headings
    assert "left out of the mean: d [1].png" in page.text
    assert "with several faces, the largest counts: b.png" in page.text
    assert f"likely somebody else's: {HOSTILE}" in page.text
    assert "4 with a face, 1 without" in page.text
    (run_dir / "dataset" / "reference_embedding.safetensors").write_bytes(b"cut")
    assert "not a whole file of reference faces" in page_of(run_dir).text


def test_a_page_of_thousands_of_trials_shows_the_best_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table and plots are bounded, have champion, zero line and front, and name how many there are."""
    run_dir = build_run(tmp_path, num_trials=40, num_failed=6, images_per_prompt=1, size=8)
    assert "Drawn are" not in render_report(read_results(run_dir))
    monkeypatch.setattr("sweeps.report.page.MAX_ROWS", 10)
    monkeypatch.setattr("sweeps.report.page.MAX_DRAWN", 30)
    monkeypatch.setattr("sweeps.report.page.MAX_FAILED", 4)
    results = read_results(run_dir)
    html, best = render_report(results), results.best_of_each_trial()
    drawn = drawn_trials(results.present_rows, best)
    assert f"Drawn are {len(drawn)} of {len(best)} trials" in html
    front = {row.trial for row in results.rows if row.pareto and not row.is_base}
    assert {row.trial for row in best[:4]} | front <= drawn
    assert len(drawn - front) <= 10
    assert drawn_trials(results.present_rows[:30], best[:9]) == {row.trial for row in best[:9]}, "few are all there"
    assert f"The 10 best of {len(results.rows)} scored checkpoints" in html
    _, _, table = html.partition("<summary>The 10 best of")
    rows = re.findall(r'<tr data-trial="([^"]+)" data-step', table.partition("</details>")[0])
    assert rows[:10] == [row.trial for row in results.rows[:10]]
    assert rows[10:] == ["base"], "the zero line stands in every table"
    assert "2 further ones are in the run folder" in html


def test_a_page_looks_at_its_rows_a_fixed_number_of_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the trials, twice the looks: no row asks all others for something."""
    num_looks = 0

    def counted(row: Row) -> bool:
        nonlocal num_looks
        num_looks += 1
        return row.method == "base"

    def looks(num_trials: int) -> int:
        nonlocal num_looks
        run_dir = build_run(tmp_path / str(num_trials), num_trials=num_trials, images_per_prompt=1, size=8)
        num_looks = 0
        render_live_content(read_results(run_dir))
        return num_looks

    monkeypatch.setattr(Row, "is_base", property(counted))
    assert 0 < looks(80) <= 2 * looks(40)
