"""The command line: parse, call, print. The one file of the project that does either.

Exit codes: 0 done; 2 the user can mend it (one or two lines on stderr, no traceback); 1 the work failed.
Torch, Ray and diffusers are imported inside the verbs, so that `--help`, `check` and `show` answer at once.
"""

from __future__ import annotations

import errno
import gc
import io
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from evaluation.rare_token import RARE_WORD
from sweeps.wording import bytes_text, earlier_text, failure_text, learning_rate_text
from training.errors import UserError
from training.names import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from evaluation.scores import Score
    from sweeps.compare import Asked, Compared, Comparison
    from sweeps.imports.write import Imported
    from sweeps.results.leaderboard import Row
    from sweeps.results.results import Results
    from sweeps.serving.server import SiteServer

app = typer.Typer(
    name="dreamsweep",
    help="Sweep DreamBooth and LoRA fine-tunes of Stable Diffusion 1.5, score every checkpoint, export the best.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="The sweep file.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/ada.")]
Top = Annotated[int | None, typer.Option("--top", min=1, metavar="N", help="Only the N best; a table has 1000 else.")]
MAX_ROWS = 1000
"""Of a table that nobody has given a length; so many take a second to print."""
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDR",
        help="The cluster's Ray dashboard, such as http://127.0.0.1:8265; else as RAY_API_SERVER_ADDRESS says.",
    ),
]
OutThere = Annotated[str, typer.Option("--out", metavar="DIR", help="The folder of runs on the cluster.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


MENDED_BY_THE_USER = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    }
)
"""A disk that is full, a folder that is not there or may not be written."""


class ExportFormat(StrEnum):
    """What people load: a pipeline folder, a LoRA file in either spelling, or one checkpoint file."""

    diffusers = "diffusers"
    lora = "lora"
    kohya = "kohya"
    checkpoint = "checkpoint"


@app.command()
def demo(out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the run goes.")] = Path("runs")) -> None:
    """Run the embedded sweep: no GPU, no download, a few minutes."""
    from sweeps.demo import demo_sweep_file
    from sweeps.export.export import export_checkpoint

    run_dir = _run(demo_sweep_file(), [], out, address=None)
    champion = _read(run_dir).champion.row
    if champion is not None:
        _say(f"exported  {export_checkpoint(run_dir, run_dir / 'export' / 'diffusers')}")
    _say(f"open {run_dir / 'report.html'}")


@app.command()
def check(
    sweep: SweepFile,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=v", help="Replace a value.")] = None,
    faces: Annotated[
        bool, typer.Option("--faces", help="Look for the faces in the photos too: loads the face encoder.")
    ] = False,
) -> None:
    """Validate a sweep file; print the trials, steps, pictures and disk that it will take."""
    from sweeps.config import load_sweep
    from sweeps.photo_remarks import look_for_faces, remarks_on_folders, remarks_on_photos
    from sweeps.plan import check_sweep, with_noise_of
    from sweeps.prompts import comments_in_texts

    config = load_sweep(sweep, overrides or [])
    plan = with_noise_of(check_sweep(config), Path("runs") / config.name)
    for remark in remarks_on_folders(config.subject.photos, config.evaluation.face.references):
        _complain(remark)
    for remark in remarks_on_photos(config):
        _complain(remark)
    if faces:
        from evaluation.face_encoders import load_face_encoder

        for remark in look_for_faces(config, load_face_encoder(config.evaluation.face.encoder, "cpu")):
            _complain(remark)
    for line in [*plan.lines(), *(f"mind: {warning}" for warning in comments_in_texts(sweep))]:
        _say(line)
    if not faces:
        _say("faces     not looked for: `run` does it before the first trial, `check --faces` now")


@app.command()
def run(
    sweep: SweepFile,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=v", help="Replace a value.")] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The run folder is DIR/<name>.")] = Path("runs"),
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="ADDR", help="A Ray cluster to use, such as `auto`; else this machine."),
    ] = None,
) -> None:
    """Run a sweep, render its best trials and write the report. The same command again resumes."""
    run_dir = _run(sweep, overrides or [], out, address)
    _say(f"export the champion with: dreamsweep export {run_dir} DEST")


def _run(sweep: Path, overrides: list[str], out: Path, address: str | None) -> Path:
    from sweeps.config import load_sweep
    from sweeps.execution.run import run_sweep
    from sweeps.prompts import comments_in_texts

    config = load_sweep(sweep, overrides)
    for warning in comments_in_texts(sweep):
        _complain(f"mind: {warning}")
    return _finish(lambda: run_sweep(config, out, address=address, console=Console(stderr=True)))


def _finish(run_it: Callable[[], Path]) -> Path:
    """Have a run folder filled, then write its report and say what came of it."""
    from sweeps.execution.machines import NoMachineLeft
    from sweeps.execution.session import SweepInterrupted
    from sweeps.report.page import write_report

    try:
        run_dir = run_it()
    except (SweepInterrupted, NoMachineLeft) as end:
        _complain(str(end))
        raise typer.Exit(1) from None
    report_path = write_report(run_dir)
    results = _read(run_dir)
    _print_leaderboard(results, top=10)
    _say(f"report    {report_path}")
    _say(f"look at it in a browser with: dreamsweep watch {run_dir}")
    missing = _what_is_missing(results)
    if missing:
        _complain(missing)
        raise typer.Exit(1)
    return run_dir


def _what_is_missing(results: Results) -> str | None:
    """What the sweep file asks for and the run did not come to have; None where all of it is there."""
    from sweeps.renders import due_renders
    from sweeps.results.screening import due_full_scores

    lost = [trial for trial in results.trials if trial.fault == "machine" and trial.trial not in results.earlier]
    if lost:
        return (
            f"{len(lost)} of the trials failed by no fault of their own ({lost[0].trial}: {lost[0].reason}); the same "
            "command tries them again, tracebacks are in trials/*/traceback.txt"
        )
    if not results.num_by_status.get("finished") and not results.num_by_status.get("stopped"):
        return "no trial finished; the reasons are in the table and in trials/*/trial.json"
    if results.config is not None and (due := due_full_scores(results, results.config.evaluation)):
        return f"{len(due)} checkpoints that could still win are not scored in full; the same command scores them"
    if results.finalists and not results.confirmations.is_whole:
        return "the finalists are not all trained again; the same command goes on"
    if results.config is not None and due_renders(results.config, results.folder) is not None:
        return f"the sweep asks for renders that are missing; repeat them with: dreamsweep render {results.run_dir}"
    return None


@app.command()
def show(run: RunDir, top: Top = None, as_json: AsJson = False) -> None:
    """Print the leaderboard, best first."""
    results = _read(run)
    if as_json:
        typer.echo(json.dumps([row.as_dict() for row in results.rows[:top]], indent=1, allow_nan=False))
    else:
        _print_leaderboard(results, top)


@app.command()
def confirm(
    run: RunDir,
    trials: Annotated[
        list[str] | None,
        typer.Option("--trials", metavar="ID", help="A trial whose best checkpoint is trained again; else the best."),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option("--images", min=1, metavar="N", help="Pictures of each training, those that are there counted."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=2, metavar="N", help="Trainings of each, those that are there counted."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="ADDR", help="A Ray cluster to use, such as `auto`; else this machine."),
    ] = None,
) -> None:
    """Train the best again with other seeds, score them on more pictures, and name the champion anew."""
    from sweeps.execution.confirm_run import confirm_run

    console = Console(stderr=True)
    _finish(lambda: confirm_run(run, trials or [], images, seeds, address, console))


# --- models and pictures from elsewhere ------------------------------------------------------------------------------

Photos = Annotated[Path, typer.Option("--photos", metavar="PHOTOS", help="Folder of reference photos of the person.")]
Face = Annotated[
    str, typer.Option("--face", metavar="ENC", help="vggface2, casia-webface, dlib, or a path to weights.")
]
Clip = Annotated[str, typer.Option("--clip", metavar="MODEL:PRETRAINED", help="An open_clip model and its weights.")]
LoraPath = Annotated[
    Path | None,
    typer.Option("--lora", metavar="FILE", help="A LoRA file of any trainer's (.safetensors), or a folder with one."),
]
CheckpointPath = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", metavar="MODEL", help="A whole fine-tune: a .safetensors file, a diffusers folder, a trial's."
    ),
]
BaseModel = Annotated[
    str | None,
    typer.Option("--base-model", metavar="BASE", help="What the LoRA changes: hub id, folder or .safetensors file."),
]
RareToken = Annotated[
    str,
    typer.Option("--rare-token", metavar="WORD", help="What names the person in the prompts; CLIP reads them without."),
]
ImagesPerPrompt = Annotated[int | None, typer.Option("--images-per-prompt", "--seeds", min=1, metavar="N", help="4.")]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, metavar="S", help="Picture i of a prompt starts from noise S + i; 0.")
]
Steps = Annotated[int | None, typer.Option("--num-inference-steps", min=1, metavar="N", help="25; renders 35.")]
Guidance = Annotated[float | None, typer.Option("--guidance-scale", min=0, metavar="X", help="7.5; renders 9.")]
Negative = Annotated[
    str | None, typer.Option("--negative-prompt", metavar="TEXT", help="What pictures shall not show.")
]
Sampler = Annotated[str | None, typer.Option("--scheduler", metavar="NAME", help="dpmsolver++ or ddim.")]
Width = Annotated[int | None, typer.Option("--width", min=8, metavar="PX", help="The base model's own.")]
Height = Annotated[int | None, typer.Option("--height", min=8, metavar="PX", help="The base model's own.")]
DEFAULT_CLIP = "ViT-B-32:laion2b_s34b_b79k"


@app.command()
def score(
    photos: Photos,
    images: Annotated[
        Path | None, typer.Argument(metavar="[IMAGES]", help="Folder of pictures to score; else a model is named.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="One line for all pictures, or one line a picture in order of name."
        ),
    ] = None,
    face: Face = "vggface2",
    clip: Clip = DEFAULT_CLIP,
    lora: LoraPath = None,
    checkpoint: CheckpointPath = None,
    base_model: BaseModel = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Keep a model's pictures here.")] = None,
    images_per_prompt: ImagesPerPrompt = None,
    seed: Seed = None,
    num_inference_steps: Steps = None,
    guidance_scale: Guidance = None,
    negative_prompt: Negative = None,
    scheduler: Sampler = None,
    width: Width = None,
    height: Height = None,
    rare_token: RareToken = RARE_WORD,
    as_json: AsJson = False,
) -> None:
    """Score any folder of pictures, or a model by the pictures that it makes of --prompts.

    By likeness to the photos and, with --prompts, by prompt alignment.
    """
    settings: dict[str, object] = {
        "images_per_prompt": images_per_prompt,
        "seed": seed,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "scheduler": scheduler,
        "width": width,
        "height": height,
    }
    model = _one_model(images, "IMAGES", lora, checkpoint, base_model)
    if images is not None:
        _refuse_options({**settings, "out": out}, "a folder of pictures")
        scored = _score_folder(images, photos, prompts, face, clip, rare_token)
        about: dict[str, object] = {}
    else:
        from sweeps.compare import score_one

        asked = _asked(prompts, photos, face, clip, rare_token, settings)
        with Console(stderr=True).status("loading") as status:
            of_model = score_one(model, base_model, asked, out, lambda line: status.update(Text(shown(line))))
        scored, about = of_model.score, of_model.about
    for remark in scored.remarks:
        _complain(remark)
    if as_json:
        typer.echo(
            json.dumps({**scored.model_dump(mode="json"), **about}, indent=1, allow_nan=False, ensure_ascii=False)
        )
        return
    _print_score(scored)
    if about.get("images_dir"):
        _say(f"pictures  {shown(str(about['images_dir']))}")


def _score_folder(images: Path, photos: Path, prompts: Path | None, face: str, clip: str, rare_token: str) -> Score:
    from evaluation.face_encoders import load_face_encoder
    from evaluation.prompt import load_clip, parse_clip
    from evaluation.score import score_folder

    judge = load_clip(parse_clip(clip)) if prompts else None
    return score_folder(images, photos, load_face_encoder(face), prompts, judge, rare_token)


def _one_model(
    place: Path | None, name: str, lora: Path | None, checkpoint: Path | None, base_model: str | None
) -> Path | None:
    """The model that is named beside or in place of `place`; None is the base model, or none at all."""
    named = {name: place, "--lora": lora, "--checkpoint": checkpoint}
    given = [option for option, value in named.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"need one of {name}, --lora and --checkpoint, got {' and '.join(given)}")
    if not given and base_model is None:
        raise UserError(f"need {name}, or a model: --lora FILE with --base-model, --checkpoint, or --base-model alone")
    if place is not None and base_model is not None:
        raise UserError(f"--base-model belongs to a model, got it beside {name}")
    return lora or checkpoint


def _refuse_options(options: dict[str, object], what: str) -> None:
    """Options that would change nothing are a mistake."""
    given = [name for name, value in options.items() if value not in (None, [])]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')}: {what} takes none, it is for a model")


def _asked(
    prompts: Path | None, photos: Path, face: str, clip: str, rare_token: str, settings: dict[str, object]
) -> Asked:
    from evaluation.prompt import parse_clip
    from sweeps.compare import Asked

    if prompts is None:
        raise UserError("--prompts: need a text file with a prompt a line, to make pictures of, got none")
    return Asked.of(prompts, photos, rare_token, {**settings, "face": {"encoder": face}, "clip": parse_clip(clip)})


@app.command()
def compare(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="LoRA files, whole checkpoints (file or folder), a trial's checkpoint."),
    ],
    base_model: Annotated[
        str, typer.Option("--base-model", metavar="BASE", help="What the LoRAs change; stands in the table too.")
    ],
    photos: Photos,
    prompts: Annotated[Path, typer.Option("--prompts", metavar="FILE", help="A prompt a line.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for pictures, sheet.png and comparison.json.")
    ] = Path("comparison"),
    face: Face = "vggface2",
    clip: Clip = DEFAULT_CLIP,
    images_per_prompt: ImagesPerPrompt = None,
    seed: Seed = None,
    num_inference_steps: Steps = None,
    guidance_scale: Guidance = None,
    negative_prompt: Negative = None,
    scheduler: Sampler = None,
    width: Width = None,
    height: Height = None,
    rare_token: RareToken = RARE_WORD,
    as_json: AsJson = False,
) -> None:
    """Compare models from anywhere on the same prompts and noise: one table, best first, and a sheet of pictures."""
    from sweeps.compare import compare_models

    settings: dict[str, object] = {
        "images_per_prompt": images_per_prompt,
        "seed": seed,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "scheduler": scheduler,
        "width": width,
        "height": height,
    }
    asked = _asked(prompts, photos, face, clip, rare_token, settings)
    with Console(stderr=True).status("loading") as status:
        comparison = compare_models(files, base_model, asked, out, lambda line: status.update(Text(shown(line))))
    for remark in comparison.remarks:
        _complain(remark)
    if as_json:
        typer.echo(json.dumps(comparison.as_dict(), indent=1, allow_nan=False, ensure_ascii=False))
    else:
        _print_comparison(comparison)


@app.command()
def render(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run folder, such as runs/ada; else a model is named.")
    ] = None,
    top: Top = None,
    reference: Annotated[
        list[Path] | None, typer.Option("--reference", metavar="IMG", help="A picture instead of render.references.")
    ] = None,
    lora: LoraPath = None,
    checkpoint: CheckpointPath = None,
    base_model: BaseModel = None,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Of a model's renders.")] = None,
    negative_prompt: Negative = None,
    controlnet: Annotated[
        str | None,
        typer.Option("--controlnet", metavar="NAME", help="Hub id or folder; lllyasviel/sd-controlnet-canny."),
    ] = None,
    detector: Annotated[str | None, typer.Option("--detector", metavar="NAME", help="canny.")] = None,
    resolution: Annotated[
        int | None, typer.Option("--resolution", min=64, metavar="PX", help="Longer side of a render; 512.")
    ] = None,
    seed: Seed = None,
    num_inference_steps: Steps = None,
    guidance_scale: Guidance = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for a model's renders; `renders`.")
    ] = None,
) -> None:
    """Render the best trials of a run, or a model from anywhere, with ControlNet."""
    settings = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "controlnet": controlnet,
        "detector": detector,
        "resolution": resolution,
        "seed": seed,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
    }
    model = _one_model(run, "RUN", lora, checkpoint, base_model)
    with Console(stderr=True).status("loading") as status:

        def progress(name: str) -> None:
            status.update(Text(f"rendering {shown(name)}"))

        if run is not None:
            from sweeps.rendering import render_run

            _refuse_options({**settings, "out": out}, "a run, which has its own settings,")
            sheet = render_run(run, top, reference or [], progress=progress)
        else:
            from sweeps.rendering import render_model
            from sweeps.renders import model_render_config

            if top is not None:
                raise UserError(f"--top: of the trials of a run, got {top} beside a model")
            render_settings = model_render_config(reference or [], settings)
            sheet = render_model(model, base_model, render_settings, out or Path("renders"), progress)
    _say(f"sheet     {shown(sheet)}")


@app.command()
def report(run: RunDir) -> None:
    """Write one self-contained report.html."""
    from sweeps.report.page import write_report

    _say(f"report    {write_report(run)}")


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/ada, or a folder of runs.")],
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, metavar="N", help="8266; where that is taken, a free one."),
    ] = None,
    host: Annotated[
        str,
        typer.Option("--host", metavar="H", help="Whoever can reach another address needs the token that is printed."),
    ] = "127.0.0.1",
) -> None:
    """Serve the report as a page that follows the run, for the users of this machine, until Ctrl-C."""
    from sweeps.watch.server import open_page

    if not run.is_dir():
        raise UserError(f"a run folder or a folder of runs must be there, to be watched: {run}")
    page = open_page(run, host, port)
    _serve(page, f"watch     {page.page_address}  (Ctrl-C ends it)")


@app.command()
def judge(
    run: RunDir,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, metavar="N", help="8267; where that is taken, a free one."),
    ] = None,
    trials: Annotated[
        list[str] | None,
        typer.Option(
            "--trials",
            metavar="ID",
            help="Compare this trial's best checkpoint, `base` for the base model; give it twice or more. "
            "Else the four best trials and the base model.",
        ),
    ] = None,
) -> None:
    """Ask which of two pictures is better, without saying whose they are, and rank by the votes, until Ctrl-C."""
    from sweeps.judge.server import open_judge

    results = _results(run)
    page = open_judge(results, port, trials or [])
    _warn(results)  # damaged votes are refused above, and not said twice
    _serve(page, f"judge     {page.page_address}  (Ctrl-C ends it)")


def _serve(page: SiteServer, said: str) -> None:
    """Say where, and answer until Ctrl-C or SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    page.start()
    _say(said)
    ended.wait()
    page.close()


@app.command()
def export(
    run: RunDir,
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Folder to write.")],
    trial: Annotated[
        str | None,
        typer.Option(
            "--trial",
            metavar="ID",
            help="This trial's best checkpoint, or a finalist's training with another seed; else the champion.",
        ),
    ] = None,
    format: Annotated[  # noqa: A002 -- the option's name
        ExportFormat,
        typer.Option("--format", help="A pipeline folder, a LoRA file in either spelling, or one checkpoint file."),
    ] = ExportFormat.diffusers,
) -> None:
    """Export the best checkpoint with a model card."""
    from sweeps.export.export import export_checkpoint

    _say(f"exported  {export_checkpoint(run, dest, trial=trial, format=format.value)}")


@app.command()
def submit(
    sweep: SweepFile,
    address: Address = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=v", help="Replace a value.")] = None,
    out: OutThere = "/mnt/dreamsweep/runs",
    follow: Annotated[
        bool, typer.Option("--follow", help="Show what it prints until it ends, and end with its exit code.")
    ] = False,
) -> None:
    """Run a sweep on a Ray cluster elsewhere, photos and all. The same command again resumes."""
    from sweeps.clusters.dashboard import Dashboard, dashboard_address
    from sweeps.clusters.submit import follow_job, stopped_following, submit_sweep, where_to_look
    from sweeps.config import load_sweep
    from sweeps.prompts import comments_in_texts

    config = load_sweep(sweep, overrides or [])
    for warning in comments_in_texts(sweep):
        _complain(f"mind: {warning}")
    dashboard = Dashboard(dashboard_address(address, os.environ))
    submitted = submit_sweep(config, sweep.resolve().parent, dashboard, out, _complain, to_follow=follow)
    for line in where_to_look(submitted, dashboard, config, out, sweep, overrides or []):
        _say(line)
    if follow:
        try:
            code = follow_job(dashboard, submitted.job, config.name, Console(), _say)
        except KeyboardInterrupt:
            _complain(stopped_following(submitted.job, dashboard))
            code = 1
        raise typer.Exit(code)


@app.command()
def fetch(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or its folder on the cluster.")],
    dest: Annotated[
        Path | None, typer.Argument(metavar="[DEST]", help="Folder to write; default: the run's name.")
    ] = None,
    address: Address = None,
    out: OutThere = "/mnt/dreamsweep/runs",
    trial: Annotated[
        str | None, typer.Option("--trial", metavar="ID", help="This trial's best weights; else the champion's.")
    ] = None,
    format: Annotated[  # noqa: A002 -- the option's name
        ExportFormat | None,
        typer.Option("--format", help="As `export` has it, made on the cluster; else the checkpoint as it is."),
    ] = None,
) -> None:
    """Bring a run's report, table, renders and best weights from a cluster."""
    from sweeps.clusters.dashboard import Dashboard, dashboard_address
    from sweeps.clusters.fetch import fetch_run, run_on_cluster

    there = run_on_cluster(run, out)
    dashboard = Dashboard(dashboard_address(address, os.environ))
    with Console(stderr=True).status("looking") as status:
        fetched = fetch_run(
            dashboard,
            there,
            dest or Path(Path(there).name),
            trial,
            None if format is None else format.value,
            progress=lambda here, all_: status.update(Text(f"{bytes_text(here)} of {bytes_text(all_)}")),
        )
    for remark in fetched.remarks:
        _complain(remark)
    _say(f"fetched   {fetched.dest}: {fetched.num_files} files, {bytes_text(fetched.num_bytes)}; {fetched.what}")


@app.command()
def doctor(
    address: Annotated[
        str | None, typer.Option("--address", metavar="ADDR", help="Look at the cluster with this Ray dashboard.")
    ] = None,
    sweep: Annotated[
        Path | None, typer.Option("--sweep", metavar="SWEEP.yaml", help="Look for what this sweep needs, too.")
    ] = None,
    out: OutThere = "/mnt/dreamsweep/runs",
    hub: Annotated[bool, typer.Option("--hub", help="Also ask whether the hub of models answers.")] = False,
) -> None:
    """Say what would go wrong on this machine or, with --address, on that cluster. Exit 0 if all is well, else 1."""
    from sweeps.clusters.doctor import look_at_cluster, look_here
    from sweeps.config import load_sweep

    config = None if sweep is None else load_sweep(sweep)
    if address is None:
        findings = look_here(config, ask_hub=hub)
    else:
        from sweeps.clusters.dashboard import dashboard_address
        from sweeps.clusters.submit import check_out

        check_out(out)
        findings = look_at_cluster(dashboard_address(address, os.environ), out, config)
    is_well = True
    for finding in findings:
        is_well = is_well and finding.is_well
        mark = typer.style("ok  ", fg="green") if finding.is_well else typer.style("mend", fg="red")
        typer.echo(f"{mark}  {finding.what:<12}{shown(finding.said)}")
    raise typer.Exit(0 if is_well else 1)


@app.command()
def init(
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS", help="Folder of 5 to 50 photos of one person.")],
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="TIME", help="At most so long: 2h, 90m, 1h30m.")
    ] = None,
    class_word: Annotated[
        str | None, typer.Option("--class-word", metavar="WORD", help="What kind of person: woman, man, old man.")
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", metavar="WORD", help=f"What will name the person; {RARE_WORD}.")
    ] = None,
    base_model: BaseModel = None,
    face: Annotated[
        str | None, typer.Option("--face", metavar="ENC", help="vggface2, casia-webface, dlib, or a path to weights.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Of the sweep; the folder's.")] = None,
    speed_of: Annotated[
        Path | None, typer.Option("--speed-of", metavar="RUN", help="Estimate by what this run took.")
    ] = None,
) -> None:
    """Print a sweep file that suits these photos, with its reasons; what is to be minded of them on standard error."""
    from sweeps.clusters.machine import gpus_here
    from sweeps.init.budget import parse_budget
    from sweeps.init.photos import look_at_photos
    from sweeps.init.speed import published_speed, speed_of_run
    from sweeps.init.write import STABLE_DIFFUSION_15, Wanted, name_or_path, write_sweep

    seconds = None if budget is None else parse_budget(budget)
    seen = look_at_photos(photos)
    named_token, _, named_class = (seen.named or "").partition(" ")
    if class_word is None:
        class_word = named_class or _ask_class_word()
    wanted = Wanted(
        class_word=class_word,
        token=token or (named_token if named_class else RARE_WORD),
        base_model=STABLE_DIFFUSION_15 if base_model is None else name_or_path("--base-model", base_model),
        face=None if face is None else name_or_path("--face", face),
        name=name,
    )
    gpus = gpus_here()
    speed = published_speed(gpus) if speed_of is None else speed_of_run(speed_of)
    written = write_sweep(seen, wanted, gpus, speed, seconds)
    for remark in written.remarks:
        _complain(remark)
    typer.echo(written.text, nl=False)


def _ask_class_word() -> str:
    """From whoever sits there; the question goes to standard error, for the file goes to standard output."""
    if not sys.stdin.isatty():
        raise UserError("--class-word: must be given where nobody can be asked: the kind of person, such as woman")
    answer: str = typer.prompt("What kind of person is it (woman, man, old man, ...)", err=True)
    return answer.strip()


@app.command(context_settings={"ignore_unknown_options": True})
def import_command(
    command: Annotated[
        list[str],
        typer.Argument(metavar="'accelerate launch ...'", help="The command, in quotes; `-` reads standard input."),
    ],
) -> None:
    """Print another trainer's run as a sweep file: a command of diffusers' DreamBooth scripts or kohya's trainers."""
    from sweeps.imports.command import import_command as read_command

    _print_imported(read_command([sys.stdin.read()] if command == ["-"] else command))


@app.command()
def import_config(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Of kohya (TOML), OneTrainer (JSON) or ai-toolkit.")],
    dataset_config: Annotated[
        Path | None, typer.Option("--dataset-config", metavar="FILE", help="Kohya's second file.")
    ] = None,
) -> None:
    """Print another trainer's run as a sweep file: a config file of kohya, OneTrainer or ai-toolkit."""
    from sweeps.imports.config_file import import_config as read_config

    _print_imported(read_config(file, dataset_config))


# --- printing --------------------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    typer.echo(text)


def _complain(text: str) -> None:
    typer.echo(f"dreamsweep: {text}", err=True)


def _print_imported(imported: Imported) -> None:
    typer.echo(imported.text, nl=False)
    for remark in imported.remarks:
        _complain(shown(remark))


def _read(run: Path) -> Results:
    """A run's results, and on standard error what is to be minded about them."""
    results = _results(run)
    _warn(results)
    return results


def _results(run: Path) -> Results:
    from sweeps.results.results import read_results

    results = read_results(run)
    gc.freeze()  # it stays until the command ends: a large run's records are not looked through for garbage again
    return results


def _warn(results: Results) -> None:
    for warning in results.warnings:
        _complain(warning)


def _print_leaderboard(results: Results, top: int | None) -> None:
    """The table, then the champion and the rule that named it, how sure it is, and what to do next."""
    from sweeps.results.advice import advice_of

    with_options = any(row.options for row in results.rows)
    table = Table(
        "",
        "trial",
        *(["options"] if with_options else []),
        "step",
        "rank",
        "learning rate",
        "face similarity",
        "likeness",
        "prompt alignment",
        "faces",
        "status",
    )
    limit = MAX_ROWS if top is None else top
    num_hidden = len(results.rows) - limit if top is None else 0
    zero_line = [row for row in results.rows[limit:] if row.is_base] if num_hidden > 0 else []
    for row in [*results.rows[:limit], *zero_line]:
        table.add_row(*map(Text, _cells(row, with_options)), style="dim" if row.is_base or row.earlier else None)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    if num_hidden > 0:
        console.print(f"the {limit} best of {len(results.rows)}; --top N shows N, --json all", highlight=False)
    failed = [trial for trial in results.trials if trial.status == "failed"]
    for trial in failed[:MAX_ROWS]:
        console.print(f"failed: {trial.trial}: {trial.reason}", markup=False, highlight=False)
    if len(failed) > MAX_ROWS:
        console.print(f"and {len(failed) - MAX_ROWS} more failed", highlight=False)
    _print_finalists(results, console)
    champion, advice = results.champion, advice_of(results, shown(str(results.run_dir)))
    lines = (
        [champion.reason]
        if champion.row is None
        else [
            f"champion: {champion.row.trial} at step {champion.row.step}: {champion.reason}",
            f"{advice.how_sure}: {advice.why}",
        ]
    )
    caveats = [*champion.caveats, *([earlier_text(len(results.earlier))] if results.earlier else [])]
    caveats += [results.weights] if results.weights else []
    for line in [*lines, f"rule: {champion.rule}", *(f"mind: {caveat}" for caveat in caveats)]:
        console.print(line, markup=False, highlight=False)
    for step in advice.next_steps:
        console.print(f"next: {step.text}", markup=False, highlight=False)
        if step.command:  # unbroken, to be copied
            console.print(f"  {step.command}", markup=False, highlight=False, soft_wrap=True)


def _print_finalists(results: Results, console: Console) -> None:
    """What their trainings with other seeds came to."""
    confirmations = results.confirmations
    if not confirmations.finalists:
        return
    title = "the finalists, trained again with other seeds" + ("" if confirmations.is_whole else " (not all of it)")
    table = Table("finalist", "step", "trainings", "face similarity", "in the search", "prompt alignment", title=title)
    for each in sorted(confirmations.finalists, key=lambda each: -each.face_similarity.mean):
        mean, interval = each.face_similarity.mean, each.face_similarity.interval
        bounds = f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else ""
        failed = f", {each.num_failed} failed" if each.num_failed else ""
        cells = [each.row.trial, str(each.row.step), f"{len(each.trainings)}{failed}", f"{mean:.3f}{bounds}"]
        cells += [f"{each.row.face_similarity:.3f}", f"{each.prompt_alignment.mean:.3f}, {each.standing}"]
        table.add_row(*map(Text, cells))
    console.print(table)


def _cells(row: Row, with_options: bool) -> list[str]:
    mark = "*" if row.champion else "+" if row.pareto else ""
    rank = "" if row.rank is None else str(row.rank)
    learning_rate = "" if row.learning_rate is None else learning_rate_text(row.learning_rate)
    faces = f"{row.num_faces}/{row.num_images}"
    likeness = "" if row.likeness is None else f"{row.likeness:.0%}"
    scores = [f"{row.face_similarity:.3f}", likeness, f"{row.prompt_alignment:.3f}"]
    status = f"{row.status}, earlier" if row.earlier else row.status
    options = [row.options.replace(", ", "\n")] if with_options else []
    return [mark, row.trial, *options, str(row.step), rank, learning_rate, *scores, faces, status]


def _print_score(scored: Score) -> None:
    file = Column("file", overflow="fold")  # a cut name might be another picture's
    table = Table(file, "face similarity", *([] if scored.prompt_alignment is None else ["prompt alignment"]))
    for image in scored.images:
        similarity = "no face" if image.face_similarity is None else f"{image.face_similarity:.3f}"
        alignment = [] if image.prompt_alignment is None else [f"{image.prompt_alignment:.3f}"]
        table.add_row(Text(shown(image.file)), similarity, *alignment)  # not as markup: files are called a [1].png
    longest = max(cell_len(shown(image.file)) for image in scored.images)
    Console(width=None if sys.stdout.isatty() else longest + 80).print(table)
    _say(
        f"face similarity {scored.face_similarity:.3f} by {shown(scored.face_encoder)}: "
        f"mean of {scored.num_images} pictures, {scored.num_faces} with a face "
        f"(one without counts as a stranger's, {scored.no_face_similarity:.2f})"
    )
    if scored.prompt_alignment is not None:
        _say(f"prompt alignment {scored.prompt_alignment:.3f}: mean raw cosine")


def _print_comparison(comparison: Comparison) -> None:
    """The table, then what it is of and how sure it is."""
    leader, *others = comparison.rows
    table = Table(
        "", Column("model", overflow="fold"), "what", "face similarity", "prompt alignment", "faces", "leader ahead by"
    )
    for row in comparison.rows:
        table.add_row(*map(Text, _comparison_cells(row, leader)), style="dim" if row.model is None else None)
    longest = max(cell_len(shown(row.name)) for row in comparison.rows)
    console = Console(width=None if sys.stdout.isatty() else longest + 160)
    console.print(table)
    lines = [f"rule: {comparison.rule}"]
    told = [row for row in others if row.lead is not None and row.lead.verdict != "unknown"]
    if len(told) < len(others):
        lines.append(
            "mind: too few pictures for intervals of differences; with 6 prompts or more they are of other prompts too"
        )
    for line in lines:
        console.print(line, markup=False, highlight=False)
    _say(f"sheet     {shown(comparison.sheet)}")


def _comparison_cells(row: Compared, leader: Compared) -> list[str]:
    score, interval, lead = row.score, row.interval, row.lead
    bounds = f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else ""
    ahead = "" if lead is None or lead.mean is None else f"{lead.mean:+.3f}"
    if lead is not None and lead.interval is not None:
        verdict = ", a tie" if lead.verdict == "tie" else ""
        ahead += f" [{lead.interval.low:+.3f}, {lead.interval.high:+.3f}]{verdict}"
    prompts = f"{score.prompt_alignment:.3f}" + ("" if row.follows_prompts else ", off prompt")
    return [
        "*" if row is leader else "",
        shown(row.name),
        "" if row.model is None else row.model.what,
        f"{score.face_similarity:.3f}{bounds}",
        prompts,
        f"{score.num_faces}/{score.num_images}",
        ahead,
    ]


def main() -> None:
    """Entry point of the `dreamsweep` command: exceptions become exit codes."""
    # On a machine without a GPU it warns of a kernel that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    _write_any_name()
    try:
        app()
    except UserError as error:
        _complain(" ".join(map(shown, str(error).split("\n")[:2])))
        sys.exit(2)
    except OSError as error:
        if error.errno not in MENDED_BY_THE_USER:
            _fail(error)
        place = f": {shown(str(error.filename))}" if error.filename else ""
        _complain(f"{error.strerror}{place}")
        sys.exit(2)
    except KeyboardInterrupt:
        _complain("interrupted; the same command again goes on from here")
        sys.exit(1)
    except Exception as error:  # the program's outermost edge: nothing is swallowed, all of it is kept
        _fail(error)


def _write_any_name() -> None:
    """What the terminal's encoding lacks is written as an escape; a file's name shall not end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(error: Exception) -> NoReturn:
    """The work failed by no fault of the user's: one line here, the whole traceback in a file, exit 1."""
    handle, name = tempfile.mkstemp(prefix="dreamsweep-", suffix=".traceback.txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.writelines(traceback.format_exception(error))
    _complain(f"failed: {failure_text(error)}; the whole traceback is in {name}")
    sys.exit(1)
