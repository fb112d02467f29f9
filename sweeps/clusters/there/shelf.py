"""A run laid out to be fetched: links in Ray's log folder to what may be taken, from where the dashboard serves them.

Nothing is copied but an export that is asked for. The links are gone when the job ends.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeps.config import load_sweep
from sweeps.ledger.mirror import bring_here, open_run
from sweeps.ledger.privacy import make_run_dir
from sweeps.results.leaderboard import Row, write_results_csv
from sweeps.results.results import Results, read_results
from sweeps.results.weights import weights_problem
from training.errors import UserError
from training.files import sha256_of, write_json, write_whole
from training.layout import STATE_FILE

MANIFEST = "manifest.json"
SECONDS_AT_LEAST, BYTES_A_SECOND = 600.0, 1e6
"""How long a shelf stands if nobody says that it is done: a slow line's time."""


def lay_out_run(asked: Mapping[str, Any], folder: Path) -> int:
    """Put a run's report and champion on the shelf, and leave them there until the job is stopped.

    Args:
        asked: `run` (its folder), `shelf` (name of the folder of links), `trial` and `format` (None: the checkpoint).
        folder: the job's working directory, three levels below Ray's session.

    Raises:
        UserError: there is no such run, or what is asked of it is not there.
    """
    shelf = folder.parents[2] / "logs" / asked["shelf"]
    own = Path(asked["run"]) / f".{asked['shelf']}"
    try:
        num_bytes = put_on_shelf(asked, shelf, own)
        time.sleep(SECONDS_AT_LEAST + num_bytes / BYTES_A_SECOND)  # until the job is stopped
    finally:
        shutil.rmtree(shelf, ignore_errors=True)
        shutil.rmtree(own, ignore_errors=True)
    return 0


def put_on_shelf(asked: Mapping[str, Any], shelf: Path, own: Path) -> int:
    """Make the folder of links; its manifest comes last.

    Args:
        asked: see `lay_out_run`.
        shelf: the folder to make.
        own: a folder in the run folder for what is made for it.

    Returns:
        Bytes on it.

    Raises:
        UserError: see `lay_out_run`.
    """
    run_dir = Path(asked["run"])
    results = _read(run_dir)
    row, remarks = _chosen(results, asked["trial"])
    make_run_dir(own)
    files = {
        **dict(_of_ledger(results)),
        **_derived(results, own),
        **dict(_below(results.folder.renders_dir, "renders")),
    }
    if row is not None and asked["format"] is None:
        files |= _of_checkpoint(results, row)
    elif row is not None:
        files |= _of_export(results, row, asked["format"], own)
    _fill(shelf, files, {"name": run_dir.name, "what": _what(row, asked["format"]), "remarks": remarks})
    return sum(path.stat().st_size for path in files.values())


def _read(run_dir: Path) -> Results:
    if not run_dir.is_dir():
        raise UserError(f"a run must be there to be fetched, and the cluster has no folder {run_dir}; see --out")
    storage = load_sweep(run_dir / "sweep.yaml").storage if (run_dir / "sweep.yaml").is_file() else None
    folder = open_run(run_dir, storage)
    folder.pull(folder.sweep_file, folder.renders_dir)
    folder.pull(folder.trials_dir, without=("checkpoint-*",))
    return read_results(run_dir)


def _chosen(results: Results, trial: str | None) -> tuple[Row | None, list[str]]:
    """The row whose weights are wanted, and what the user should know."""
    remarks = list(results.warnings)
    if trial is not None:
        row = results.best_of_trial(trial)
        if row.is_base:
            raise UserError(f"{trial!r} is the untouched base model; name a trained trial")
        return row, remarks
    if results.champion.row is None:
        return None, [*remarks, f"no champion, so no weights: {results.champion.reason}"]
    if results.num_ended < results.num_planned:
        remarks.append(
            f"{results.num_ended} of {results.num_planned} trials have ended: the champion is the best so far"
        )
    return results.champion.row, remarks


def _of_ledger(results: Results) -> Iterator[tuple[str, Path]]:
    """Name -> file of what a run writes while it goes on: it comes first, so that it is here before it changes."""
    folder = results.folder
    yield from (
        (f"trials/{path.parent.name}/trial.json", path) for path in sorted(folder.trials_dir.glob("*/trial.json"))
    )
    if folder.sweep_file.is_file():
        yield folder.sweep_file.name, folder.sweep_file


def _derived(results: Results, own: Path) -> dict[str, Path]:
    """Report and table: the run's, or made anew where there are none or the ledger has gone on since; and its work."""
    folder = results.folder
    files = {path.name: path for path in (folder.report_html, folder.results_csv)}
    newest = max((path.stat().st_mtime_ns for path in folder.trials_dir.glob("*/trial.json")), default=0)
    if not all(path.is_file() and path.stat().st_mtime_ns >= newest for path in files.values()):
        from sweeps.report.page import render_report

        files = {name: own / name for name in files}
        write_whole(files[folder.report_html.name], render_report(results))
        write_results_csv(own, results.rows)
    if folder.work_json.is_file() and folder.work_json.stat().st_mtime_ns >= newest:
        files[folder.work_json.name] = folder.work_json
    return files


def _of_checkpoint(results: Results, row: Row) -> dict[str, Path]:
    """The weights, without what only going on would need."""
    assert row.checkpoint is not None, "a trained row has one"
    folder = results.folder
    bring_here(folder, results.config.storage if results.config else None, row.checkpoint)
    if problem := weights_problem(folder, row, digests=True):
        raise UserError(f"{folder.dir}: {problem}")
    found = _below(folder.inside(row.checkpoint), row.checkpoint)
    return {name: path for name, path in found if path.name != STATE_FILE}


def _of_export(results: Results, row: Row, format: str, own: Path) -> dict[str, Path]:  # noqa: A002 -- the option's name
    from sweeps.export.export import export_checkpoint

    export_checkpoint(results.run_dir, own / "export", trial=row.trial, format=format)
    return dict(_below(own / "export", "export"))


def _below(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield f"{name}/{path.relative_to(folder).as_posix()}", path


def _what(row: Row | None, format: str | None) -> str:  # noqa: A002
    if row is None:
        return "no weights"
    return f"{row.trial} at step {row.step}, as {'its checkpoint' if format is None else format}"


def _fill(shelf: Path, files: Mapping[str, Path], said: Mapping[str, Any]) -> None:
    shelf.mkdir(mode=0o700)
    entries = []
    for number, (name, path) in enumerate(files.items()):
        (shelf / str(number)).symlink_to(path.resolve())
        entries.append({"path": name, "size": path.stat().st_size, "sha256": sha256_of(path)})
    write_json(shelf / MANIFEST, {**said, "files": entries})
