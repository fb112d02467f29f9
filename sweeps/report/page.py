"""One self-contained report.html from a run folder: the verdict first, then all that it rests on.

The file asks the network for nothing: pictures are inlined, and a content security policy forbids the rest. Served by
`sweeps/watch`, the same page has its pictures by address and follows the run. Prompts, names and reasons come from
files and are escaped as text.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from evaluation.config import ScreeningConfig
from evaluation.scores import ImageScore, NearestPhoto
from sweeps.config import SweepConfig
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import TrialRecord
from sweeps.ledger.votes import read_votes
from sweeps.photo_remarks import remarks_on_faces
from sweeps.report import figures
from sweeps.report.learning_curves import CurvePoint, learning_curves
from sweeps.report.pictures import InlinedPictures, LinkedPictures, Picture, Pictures
from sweeps.results.advice import Advice, advice_of
from sweeps.results.champion import compare_prompt_alignment
from sweeps.results.intervals import Difference, Interval
from sweeps.results.leaderboard import Row, memorisation_gap, write_results_csv
from sweeps.results.preference import Preference, preference_of
from sweeps.results.results import Results, read_results, reference_photos
from sweeps.results.work_file import read_work
from sweeps.wording import duration_text, earlier_text, learning_rate_text, public_name, score_text, signed_text
from training.errors import UserError
from training.files import write_whole
from training.photos import prepared_record

MAX_LEADERBOARD_TRIALS = 25
MAX_ROWS = 1000
"""Of the table of all checkpoints; results.csv has every one."""
MAX_DRAWN = 2000
"""Checkpoints in a plot, about: more are one block to the eye, and a burden to the browser."""
MAX_FAILED = 100
MAX_CURVES = 25
MAX_SHOWN = 4
"""Prompts on the first screen."""
MAX_PHOTOS = 6
NORMAL_95 = 1.96
INTERVALS = (
    "95 %, Student's, with prompts as the unit since pictures of one prompt are alike; those of finalists also hold "
    "other training seeds, whose noise is pooled over the finalists' trainings. Without such trainings an interval "
    "knows nothing of another training seed, which may change more than it says. Comparisons of a search's checkpoints "
    "hold for all pairs together (max-T test by sign flips), those of finalists by Bonferroni"
)


def write_report(run_dir: Path | str) -> Path:
    """Write RUN/report.html (and results.csv, which goes with it); returns the page's path.

    Works on a sweep that is still running, or has no finished trial or render yet.

    Raises:
        UserError: `run_dir` is not a run folder.
        OSError: pictures are only in the sweep's storage, and it cannot be read.
    """
    results = read_results(run_dir)
    if results.config is not None and results.config.storage is not None:
        from sweeps.ledger.mirror import bring_here  # asked for only where there is a storage

        bring_here(results.folder, results.config.storage, *(row.images for row in results.rows if row.images))
    write_results_csv(results.run_dir, results.rows)
    path = results.folder.report_html
    write_whole(path, render_report(results))
    return path


def render_report(results: Results) -> str:
    """The page as one HTML file."""
    content = _content(results, InlinedPictures(results.run_dir))
    scripts = [asset("page.js"), *([asset("plotly.min.js")] if content["figures"] else [])]
    return (
        templates_of("sweeps.report")
        .get_template("report.html.j2")
        .render(
            **content,
            style=asset("page.css"),
            script=scripts[0],
            plotly=_packed(scripts[1]) if scripts[1:] else "",
            script_hashes=[_digest(script) for script in scripts],
        )
    )


def render_live_page(results: Results, assets: str, theme: str | None = None, index: str | None = None) -> str:
    """The same page, served: pictures by their address (`LinkedPictures`), and it follows the run.

    It asks `content` beside it for `render_live_content`, again and again.

    Args:
        results: the run.
        assets: address of the folder that has what `asset` returns, by name.
        theme: `light` or `dark`; None is the reader's own.
        index: address of the page of all runs, if there is one.
    """
    content = _content(results, LinkedPictures(results.run_dir))
    return (
        templates_of("sweeps.report")
        .get_template("live.html.j2")
        .render(**content, assets=assets, theme=theme, index=index)
    )


def render_live_content(results: Results) -> str:
    """What stands inside `<main>` of `render_live_page`."""
    return (
        templates_of("sweeps.report")
        .get_template("content.html.j2")
        .render(**_content(results, LinkedPictures(results.run_dir)))
    )


@cache
def asset(name: str) -> str:
    """What a page needs besides its HTML: `page.css`, `page.js`, or plotly.js as `plotly.min.js`."""
    if name == "plotly.min.js":
        return str(get_plotlyjs())
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """As a content security policy names the one script that it lets run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _packed(script: str) -> str:
    """Less than half as long, for a page that is mailed; its reader's browser unpacks it."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


@cache
def templates_of(package: str) -> Environment:
    """The templates of a package: escaped by default, an unknown name is an error, numbers are written one way."""
    environment = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        score=score_text,
        signed=signed_text,
        interval=interval_text,
        rate=learning_rate_text,
        label=figures.short_label,
        duration=duration_text,
    )
    return environment


def _content(results: Results, pictures: Pictures) -> dict[str, Any]:
    """What the templates say of a run."""
    best = results.best_of_each_trial()
    curves = learning_curves(results.folder, _trials_to_follow(results, best))
    on_leaderboard = {row.key for row in best[:MAX_LEADERBOARD_TRIALS]}
    table = [*results.rows[:MAX_ROWS], *(row for row in results.rows[MAX_ROWS:] if row.is_base)]
    drawn = drawn_trials(results.present_rows, best)
    failed = [trial for trial in results.present_trials if trial.status == "failed"]
    return {
        "results": results,
        "work": _work(results),
        "verdict": Verdict(results, pictures),
        "details": details,
        "preference": _preference(results),
        "best": best,
        "leaderboard": [row for row in results.rows if row.is_base or row.key in on_leaderboard],
        "max_leaderboard": MAX_LEADERBOARD_TRIALS,
        "full_table": table,
        "max_rows": MAX_ROWS,
        "admitted": results.rule.qualifies,
        "scale": BarScale.of(table),
        "figures": _figures(results, best, drawn, curves),
        "num_drawn": len(drawn),
        "underway": _underway(results, curves),
        "num_curves": MAX_CURVES,
        "grids": list(picture_grids(results, best, pictures)),
        "num_grid_trials": min(len(best), pictures.max_grid_trials),
        "grid_steps": sorted({row.step for row in results.present_rows if not row.is_base}),
        "sheets": [sheet for path in _sheets(results.folder) if (sheet := pictures.sheet(path))],
        "failed": failed[:MAX_FAILED],
        "num_failed": len(failed),
        "trials": results.present_trials,
        "earlier": earlier_text(len(results.earlier)) if results.earlier else "",
        "settings": settings(results),
        "photo_remarks": photo_remarks(results.folder),
        "method_names": figures.METHOD_NAMES,
        "pictures": pictures,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _preference(results: Results) -> Preference | None:
    """What people have voted on `dreamsweep judge`; None where nobody has, or the votes cannot be read."""
    try:
        return preference_of(read_votes(results.folder), results.rows)
    except UserError:
        return None


def _work(results: Results) -> str:
    """What was computed and what was saved; nothing while trials run: it is written when they have ended."""
    work = read_work(results.folder)
    return "" if work is None or results.num_by_status.get("running") else work.line()


@dataclass(frozen=True)
class Underway:
    """A trial that has not ended."""

    record: TrialRecord
    step: int
    """Steps taken, those since its newest score included."""
    num_steps: int
    """That it will take."""
    newest: Row | None
    """Its newest score."""


def _underway(results: Results, curves: Mapping[str, Sequence[CurvePoint]]) -> list[Underway]:
    """The trials that have not ended, the furthest first."""
    newest = {row.trial: row for row in sorted(results.rows, key=lambda row: row.step)}
    found = []
    for trial in results.present_trials:
        if trial.status == "running":
            curve, row = curves.get(trial.trial), newest.get(trial.trial)
            step = curve[-1].last_step if curve else row.step if row else 0
            found.append(Underway(trial, step, trial.method_config.max_train_steps, row))
    return sorted(found, key=lambda underway: (-underway.step / underway.num_steps, underway.record.trial))


def drawn_trials(rows: Sequence[Row], best: Sequence[Row]) -> set[str]:
    """The trials in the plots: all, or where they are too many the best, an even choice of the others, and the front.

    Args:
        rows: every checkpoint of the sweep.
        best: of each trial, best first.
    """
    if len(rows) <= MAX_DRAWN:
        return {row.trial for row in best}
    num_trials = MAX_DRAWN * len(best) // len(rows)
    foremost, others = best[: num_trials // 2], best[num_trials // 2 :]
    step = math.ceil(len(others) / max(1, num_trials - len(foremost)))
    return {row.trial for row in (*foremost, *others[::step], *(row for row in rows if row.pareto and not row.is_base))}


def _figures(
    results: Results, best: Sequence[Row], trials: Container[str], curves: Mapping[str, Sequence[CurvePoint]]
) -> dict[str, figures.Figure]:
    """The plots by their place on the page; those of scores come with the first score, those of training before."""
    drawn = {}
    if best:
        rows, limit = [row for row in results.present_rows if row.is_base or row.trial in trials], results.rule.limit
        best = [row for row in best if row.trial in trials]
        drawn = {
            "trade-off": figures.trade_off(rows, limit, levels_of(results)),
            "face-over-steps": figures.score_over_steps(rows, figures.FACE_LABEL, best[:MAX_CURVES]),
            "prompt-over-steps": figures.score_over_steps(rows, figures.PROMPT_LABEL, best[:MAX_CURVES], limit),
            "by-rank": figures.likeness_by_rank(rows, best),
            "by-learning-rate": figures.likeness_by_learning_rate(rows, best),
        }
    if curves:
        methods = {trial.trial: trial.method for trial in results.trials}
        champion = results.champion.row.trial if results.champion.row else None
        for field, label in (("loss", "training loss"), ("gradient_norm", "gradient norm")):
            name = field.replace("_", "-")
            drawn[name] = figures.training_curve(curves, methods, champion, field, label)
    return drawn


def levels_of(results: Results) -> dict[str, float]:
    """Face similarities that a reader can hold scores against: of another real photo, and of a stranger."""
    levels = {}
    try:
        photos = reference_photos(results.folder)
    except UserError:
        return {}
    if photos is not None and len(photos.similarities) > 1:
        levels["another photo of the person"] = sum(photos.similarities) / len(photos.similarities)
    base = results.base
    if base is not None and base.no_face_similarity:
        levels["a stranger"] = base.no_face_similarity
    return levels


def _trials_to_follow(results: Results, best: Sequence[Row]) -> list[str]:
    """Whose training is drawn: of those that run and those that failed as many as of the best."""
    unscored = [trial.trial for trial in results.present_trials if trial.status in ("running", "failed")]
    return list(dict.fromkeys([*(row.trial for row in best[:MAX_CURVES]), *unscored[:MAX_CURVES]]))


def interval_text(interval: Interval | None, signed: bool = False) -> str:
    """`[low, high]`; nothing where there are too few pictures for one."""
    if interval is None:
        return ""
    form = signed_text if signed else score_text
    return f"[{form(interval.low)}, {form(interval.high)}]"


@dataclass(frozen=True)
class BarScale:
    """Maps face similarities to percent of a bar's width."""

    low: float
    high: float

    @classmethod
    def of(cls, rows: Sequence[Row]) -> BarScale:
        """A scale that holds every row's interval."""
        intervals = [row.face_similarity_interval for row in rows]
        lows = [row.face_similarity if i is None else i.low for row, i in zip(rows, intervals, strict=True)]
        highs = [row.face_similarity if i is None else i.high for row, i in zip(rows, intervals, strict=True)]
        low, high = min([0.0, *lows]), max([0.0, *highs])
        return cls(low, high if high > low else low + 1)

    def percent(self, value: float) -> str:
        """Position of `value` from the left."""
        return f"{100 * (value - self.low) / (self.high - self.low):.1f}"


# --- pictures -----------------------------------------------------------------------------------------------------


def _sheets(folder: RunFolder) -> list[Path]:
    return sorted(folder.renders_dir.glob("sheet*.png"))


@dataclass(frozen=True)
class Shot:
    """One picture of a checkpoint with its own scores."""

    step: int
    picture: Picture | None
    face_similarity: float | None = None
    prompt_alignment: float | None = None


@dataclass(frozen=True)
class Cell:
    """The same prompt and noise at every scoring point of a trial."""

    row: Row
    """The trial's best checkpoint: what is shown first."""
    shots: tuple[Shot, ...]
    """By step."""


@dataclass(frozen=True)
class Grid:
    """The pictures of one seed: a row a prompt, a column a trial."""

    seed: int | None
    columns: tuple[Row, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    @property
    def is_empty(self) -> bool:
        """Whether not one picture is there."""
        return not any(shot.picture for _, cells in self.rows for cell in cells for shot in cell.shots)


def picture_grids(results: Results, best: Sequence[Row], pictures: Pictures) -> Iterator[Grid]:
    """The same prompts and starting noise side by side: the base model and the best trials, one grid a seed."""
    columns = (*([results.base] if results.base else []), *best[: pictures.max_grid_trials])
    if not best:
        return
    series: dict[str, list[Row]] = {column.trial: [] for column in columns}
    for row in sorted((row for row in results.rows if row.trial in series), key=lambda row: row.step):
        series[row.trial].append(row)
    known = {row.key: {image.key: image for image in row.image_scores} for rows in series.values() for row in rows}
    by_seed: dict[int | None, list[ImageScore]] = {}
    for image in best[0].image_scores:
        by_seed.setdefault(image.seed, []).append(image)
    for seed, images in by_seed.items():
        for wanted in images:  # where room is short, what is shown first has it first
            for column in columns:
                _shot(column, known[column.key].get(wanted.key), pictures)
        grid_rows = [
            (
                wanted.prompt or wanted.key,
                tuple(
                    Cell(column, tuple(_shot(row, known[row.key].get(wanted.key), pictures) for row in rows))
                    for column, rows in zip(columns, series.values(), strict=True)
                ),
            )
            for wanted in images
        ]
        grid = Grid(seed, columns, tuple(grid_rows))
        if not grid.is_empty:
            yield grid


def _shot(row: Row, image: ImageScore | None, pictures: Pictures) -> Shot:
    if image is None:
        return Shot(row.step, None)
    return Shot(row.step, pictures.of_row(row, image), image.face_similarity, image.prompt_alignment)


# --- the verdict --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A checkpoint whose pictures are on the first screen."""

    name: str
    row: Row


@dataclass(frozen=True)
class Copy:
    """A picture of the bare instance prompt and the trained photo that it is nearest to."""

    nearest: NearestPhoto
    shot: Shot
    photo: Picture | None


def details(row: Row) -> str:
    """What else is known of a checkpoint's faces and photos, in one line."""
    parts = [f"no face in {row.failure_rate:.0%} of its pictures"]
    if row.face_similarity_of_faces is not None:
        parts.append(f"face similarity {score_text(row.face_similarity_of_faces)} over those with one")
    if row.face_width is not None:
        parts.append(f"median face {row.face_width:.0f} px wide")
    if row.num_several_faces:
        parts.append(f"several faces in {row.num_several_faces}")
    if row.diversity is not None:
        parts.append(f"pictures of one prompt differ by {row.diversity:.3f}")
    if row.examination and row.examination.class_similarity is not None:
        parts.append(f"the class prompt's faces have {score_text(row.examination.class_similarity)}")
    return "; ".join(parts)


class Verdict:
    """What the first screen says: who wins by which rule, by how much, and whether to believe it."""

    def __init__(self, results: Results, pictures: Pictures) -> None:
        self.results = results
        self.champion = results.champion
        self._pictures = pictures

    @property
    def tone(self) -> str:
        """`good`, `doubtful` or `none`: the card's colour."""
        if self.champion.row is None:
            return "none"
        return "good" if self.champion.is_sure else "doubtful"

    @cached_property
    def advice(self) -> Advice:
        """The sentence, how sure it is, why, and what to do next."""
        return advice_of(self.results)

    @property
    def base_face_similarity(self) -> float | None:
        """The base model's on the pictures that the champion was named from."""
        base = self.results.confirmations.base if self.champion.confirmed else self.results.base
        return None if base is None else base.face_similarity

    @property
    def versus_base_alignment(self) -> Difference | None:
        """Prompt alignment of the champion minus the base model's."""
        if self.champion.confirmed is not None:
            return self.champion.confirmed.alignment_over_base
        row, base = self.champion.row, self.results.base
        return compare_prompt_alignment(row, base) if row and base else None

    @property
    def margin_in_noise(self) -> str:
        """The rule's margin in standard errors of the champion's difference to the base model; empty if not known."""
        difference, margin = self.versus_base_alignment, self.results.rule.margin
        interval = None if difference is None else difference.interval
        if interval is None or interval.high <= interval.low:
            return ""
        return f"{margin / ((interval.high - interval.low) / (2 * NORMAL_95)):.1f}"

    @property
    def likeness(self) -> float | None:
        """The champion's, on the calibrated scale; None where there is none."""
        row = self.champion.row
        if row is None:
            return None
        return row.likeness if self.champion.confirmed is None else row.confirmed_likeness

    @property
    def memory(self) -> str:
        """How much more the champion is like the photos it was trained on than like others, and whether it copies."""
        row, base = self.champion.row, self.results.base
        parts = []
        gap = None if row is None or base is None else memorisation_gap(row, base)
        if gap is not None:
            parts.append(f"to the photos trained on minus to others, beyond the base model's: {signed_text(gap)}")
        copies = row and row.examination and row.examination.copies
        if copies:
            parts.append(f"{copies.num_copies} of {len(copies.nearest)} bare pictures copy a photo")
        return "; ".join(parts)

    @property
    def shows_photos(self) -> bool:
        """Does the sweep file let this page show photos of the person?"""
        config = self.results.config
        return config is not None and config.report.show_photos and self._pictures.may_show_photos

    @cached_property
    def copies(self) -> list[Copy]:
        """The champion's bare pictures that are near trained photos, the nearest first; none where it is no copier."""
        row = self.champion.row
        check = row and row.examination and row.examination.copies
        if row is None or not check or not check.is_copying:
            return []
        photos = self._trained_photos() if self.shows_photos else {}
        nearest = sorted(check.nearest, key=lambda each: each.ratio)[:MAX_SHOWN]
        return [
            Copy(
                each,
                Shot(row.step, self._pictures.of_checkpoint(row, each.file)),
                self._pictures.photo(photos[each.photo]) if each.photo in photos else None,
            )
            for each in nearest
        ]

    def _trained_photos(self) -> dict[str, Path]:
        folder = self.results.folder.dataset_dir
        return {photo["source"]: folder / photo["file"] for photo in prepared_record(folder).get("photos", ())}

    @cached_property
    def columns(self) -> list[Column]:
        """What is shown side by side: base model, champion, runner-up."""
        named = (
            ("base model", self.results.base),
            ("champion", self.champion.row),
            ("runner-up", self.champion.runner_up),
        )
        return [Column(name, row) for name, row in named if row is not None and row.image_scores]

    @cached_property
    def shown(self) -> list[tuple[str, list[tuple[Shot, Column]]]]:
        """Prompt and pictures of the first seed, for up to four prompts; empty without the champion's pictures."""
        row = self.champion.row
        if row is None or self.results.base is None or not row.image_scores:
            return []
        known = [{image.key: image for image in column.row.image_scores} for column in self.columns]
        chosen = [image for image in row.image_scores if image.seed == row.image_scores[0].seed][:MAX_SHOWN]
        lines = [
            (
                image.prompt or image.key,
                [
                    (_shot(column.row, by_key.get(image.key), self._pictures), column)
                    for column, by_key in zip(self.columns, known, strict=True)
                ],
            )
            for image in chosen
        ]
        return [line for line in lines if any(shot.picture for shot, column in line[1] if column.row.champion)]

    @cached_property
    def photos(self) -> list[Picture]:
        """Some of the reference photos, where the sweep file lets the report show them."""
        config = self.results.config
        if config is None or not self.shows_photos:
            return []
        return self._pictures.photos(config.evaluation.face.references or config.subject.photos, MAX_PHOTOS)


def photo_remarks(folder: RunFolder) -> list[str]:
    """What the run found in its photos that bears on the scores, in sentences."""
    try:
        return remarks_on_faces(folder)
    except UserError as error:
        return [str(error)]


# --- settings -----------------------------------------------------------------------------------------------------


def _first_look(screening: ScreeningConfig) -> str:
    return (
        f"{screening.images_per_prompt} of each prompt for every checkpoint; the best {screening.keep:.0%} are then "
        "scored by all"
    )


def settings(results: Results) -> list[tuple[str, str]]:
    """What the numbers rest on, by name. Folders of the machine are shown by their last part alone."""
    config = results.config
    if config is None:
        return []
    evaluation = config.evaluation
    size = "the base model's own size"
    if evaluation.width or evaluation.height:
        size = f"width {evaluation.width or 'native'}, height {evaluation.height or 'native'} px"
    seeds = f"{evaluation.seed} to {evaluation.seed + evaluation.images_per_prompt - 1}"
    references = "the photos given as references" if evaluation.face.references else "the trials' own photos"
    entries = [
        ("base model", public_name(config.base_model)),
        ("instance prompt", config.subject.instance_prompt),
        ("class prompt", config.subject.class_prompt or "none"),
        ("photos", f"{config.subject.resolution} px squares, crop: {config.subject.crop}"),
        ("search", yaml.safe_dump(config.search.model_dump(exclude_none=True), default_flow_style=True).strip("{}\n ")),
        *((f"space of {name}", _space(space)) for name, space in config.methods.items()),
        ("prompts", "\n".join(evaluation.prompts)),
        ("negative prompt", evaluation.negative_prompt or "none"),
        ("pictures a checkpoint", f"{len(evaluation.prompts)} prompts x {evaluation.images_per_prompt}, seeds {seeds}"),
        *([("first look", _first_look(evaluation.screening))] if evaluation.screening else []),
        (
            "sampler",
            f"{evaluation.scheduler}, {evaluation.num_inference_steps} steps, "
            f"guidance {evaluation.guidance_scale:g}, {size}",
        ),
        ("reference photos", _references(results.folder)),
        ("face encoder", f"{_face_encoder(results, config)}; cosine to the mean of {references}, {_no_face(results)}"),
        ("CLIP", f"{_clip(results, config)}; raw cosine, not times 100, rare token left out"),
        ("intervals", INTERVALS),
        *sorted(_versions(results.folder).items()),
    ]
    return [(name, value) for name, value in entries if value]


def _references(folder: RunFolder) -> str:
    """How many photos the pictures were compared with; nothing where that is not known (yet)."""
    try:
        found = reference_photos(folder)
    except UserError:
        return ""
    return "" if found is None else f"{found.num_used} with a face, {len(found.without_face)} without"


def _face_encoder(results: Results, config: SweepConfig) -> str:
    """As the scores recorded it, crop included; else as the sweep file names it."""
    recorded = next((row.face_encoder for row in results.rows if row.face_encoder), None)
    return recorded or public_name(config.evaluation.face.encoder)


def _no_face(results: Results) -> str:
    similarity = results.base.no_face_similarity if results.base else 0.0
    return f"no face counts {similarity:g}" + (", as a stranger's does" if similarity else "")


def _clip(results: Results, config: SweepConfig) -> str:
    recorded = next((row.clip for row in results.rows if row.clip), None)
    names = [public_name(config.evaluation.clip.model), public_name(config.evaluation.clip.pretrained or "")]
    return recorded or " ".join(filter(None, names))


def _space(space: dict[str, Any]) -> str:
    """A method's fields, one a line: fixed values and what was searched."""
    lines = []
    for field, value in space.items():
        plain = value.model_dump(exclude_none=True, exclude_defaults=True) if hasattr(value, "model_dump") else value
        lines.append(f"{field}: {yaml.safe_dump(plain, default_flow_style=True, width=1000).splitlines()[0]}")
    return "\n".join(lines)


def _versions(folder: RunFolder) -> dict[str, str]:
    """Package versions that the sweep wrote into its sweep.yaml."""
    try:
        content = yaml.safe_load(folder.sweep_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    versions = content.get("versions") if isinstance(content, dict) else None
    return {str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {}
