"""A run laid out to be fetched: links in Ray's log folder to what may be taken, from where the dashboard serves them.

Nothing is copied but an export that is asked for. The links are gone when the job ends.
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeps.config import load_sweep
from sweeps.ledger.mirror import bring_here, open_run
from sweeps.ledger.privacy import make_run_dir
from sweeps.results.leaderboard import Row
from sweeps.results.results import Results, read_results
from sweeps.results.weights import weights_problem
from training.errors import UserError
from training.files import sha256_of, write_json
from training.layout import STATE_FILE

MANIFEST = "manifest.json"
SECONDS_AT_LEAST, BYTES_A_SECOND = 600.0, 1e6
"""How long a shelf stands if nobody says that it is done: a slow line's time."""


def lay_out_run(asked: Mapping[str, Any], folder: Path) -> int:
    """Put a run's report and champion on the shelf, and leave them there until told to end.

    Args:
        asked: `run` (its folder), `shelf` (name of the folder of links), `trial` and `format` (None: the checkpoint).
        folder: the job's working directory, three levels below Ray's session.

    Raises:
        UserError: there is no such run, or what is asked of it is not there.
    """
    is_over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_over.set())
    shelf = folder.parents[2] / "logs" / asked["shelf"]
    export = Path(asked["run"]) / f".{asked['shelf']}"
    try:
        num_bytes = put_on_shelf(asked, shelf, export)
        is_over.wait(SECONDS_AT_LEAST + num_bytes / BYTES_A_SECOND)
    finally:
        shutil.rmtree(shelf, ignore_errors=True)
        shutil.rmtree(export, ignore_errors=True)
    return 0


def put_on_shelf(asked: Mapping[str, Any], shelf: Path, export: Path) -> int:
    """Make the folder of links; its manifest comes last.

    Args:
        asked: see `lay_out_run`.
        shelf: the folder to make.
        export: where an export may be made.

    Returns:
        Bytes on it.

    Raises:
        UserError: see `lay_out_run`.
    """
    run_dir = Path(asked["run"])
    results = _read(run_dir)
    row, remarks = _chosen(results, asked["trial"])
    files = dict(_of_all(results))
    if row is not None and asked["format"] is None:
        files |= _of_checkpoint(results, row)
    elif row is not None:
        files |= _of_export(results, row, asked["format"], export)
    _fill(shelf, files, {"name": run_dir.name, "what": _what(row, asked["format"]), "remarks": remarks})
    return sum(path.stat().st_size for path in files.values())


def _read(run_dir: Path) -> Results:
    if not run_dir.is_dir():
        raise UserError(f"a run must be there to be fetched, and the cluster has no folder {run_dir}; see --out")
    storage = load_sweep(run_dir / "sweep.yaml").storage if (run_dir / "sweep.yaml").is_file() else None
    folder = open_run(run_dir, storage)
    folder.pull(folder.sweep_file, folder.renders_dir)
    folder.pull(folder.trials_dir, ending="trial.json")
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


def _of_all(results: Results) -> Iterator[tuple[str, Path]]:
    """Name -> file; those that a run still writes come first, so that they are fetched before they change."""
    folder = results.folder
    if not folder.report_html.is_file():
        from sweeps.report.page import write_report

        write_report(folder.dir)
    yield from ((f"trials/{path.parent.name}/trial.json", path) for path in folder.trials_dir.glob("*/trial.json"))
    for path in (folder.sweep_file, folder.results_csv, folder.report_html):
        if path.is_file():
            yield path.name, path
    yield from _below(folder.renders_dir, "renders")


def _of_checkpoint(results: Results, row: Row) -> dict[str, Path]:
    """The weights, without what only going on would need."""
    assert row.checkpoint is not None, "a trained row has one"
    folder = results.folder
    bring_here(folder, results.config.storage if results.config else None, row.checkpoint)
    if problem := weights_problem(folder, row, digests=True):
        raise UserError(f"{folder.dir}: {problem}")
    found = _below(folder.inside(row.checkpoint), row.checkpoint)
    return {name: path for name, path in found if path.name != STATE_FILE}


def _of_export(results: Results, row: Row, format: str, to: Path) -> dict[str, Path]:  # noqa: A002 -- the option's name
    from sweeps.export.export import export_checkpoint

    make_run_dir(to)
    export_checkpoint(results.run_dir, to / "export", trial=row.trial, format=format)
    return dict(_below(to / "export", "export"))


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
