"""A trainer's config file as a sweep file: kohya's TOML, OneTrainer's JSON, ai-toolkit's YAML or JSON."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sweeps.imports.ai_toolkit import ai_toolkit_run
from sweeps.imports.arguments import typed
from sweeps.imports.flags import DB, KOHYA, NETWORK, flags_of
from sweeps.imports.kohya import kohya_run
from sweeps.imports.launch import Launch
from sweeps.imports.onetrainer import onetrainer_run
from sweeps.imports.run import Notes, Run
from sweeps.imports.write import Imported, imported
from sweeps.wording import shorten, unknown_key
from training.errors import UserError

MAX_BYTES = 1_000_000


def import_config(file: Path, dataset_config: Path | None = None) -> Imported:
    """The sweep file whose one trial is the run of a config file.

    Args:
        file: of kohya's `--config_file`, OneTrainer's or ai-toolkit's.
        dataset_config: kohya's second file; else the one that the first names.

    Raises:
        UserError: it cannot be read or is nobody's, or the sweep would not be that run: all reasons in one line.
    """
    raw = read_file(file)
    if dataset_config is not None and file.suffix.lower() != ".toml":
        raise UserError(f"--dataset-config goes with kohya's TOML, got {file}")
    notes = Notes()
    run = _run(raw, file, dataset_config, notes)
    notes.refuse(str(file))
    return imported(run)


def _run(raw: Mapping[str, Any], file: Path, dataset_config: Path | None, notes: Notes) -> Run:
    if file.suffix.lower() == ".toml":
        return kohya_config_run(raw, file, dataset_config, notes)
    if isinstance(raw.get("config"), dict) and "process" in raw["config"]:
        return ai_toolkit_run(raw, notes)
    if "training_method" in raw or "concept_file_name" in raw or "model_type" in raw:
        return onetrainer_run(raw, file.parent, notes)
    keys = ", ".join(map(str, list(raw)[:5]))
    raise UserError(f"{file}: must be kohya's TOML, OneTrainer's JSON or ai-toolkit's YAML or JSON, got keys {keys}")


def read_file(file: Path) -> dict[str, Any]:
    """A TOML, JSON or YAML file as plain values.

    Raises:
        UserError: it is not there, too large, or broken; the text names the place.
    """
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{file}: a config file has at most {MAX_BYTES} bytes, got {size}")
        text = file.read_text(encoding="utf-8-sig")
        suffix = file.suffix.lower()
        if suffix == ".toml":
            raw: Any = tomllib.loads(text)
        elif suffix == ".json":
            raw = json.loads(text)
        else:
            raw = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: must be UTF-8 text, got byte {error.object[error.start]:#04x}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "nested too deep"
        raise UserError(f"{file}: must be {file.suffix.lstrip('.').upper() or 'YAML'}: {reason}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file}: must hold settings by their names, got {shorten(raw)}")
    return raw


# --- kohya ------------------------------------------------------------------------------------------------------------


def kohya_config_run(raw: Mapping[str, Any], file: Path, dataset_config: Path | None, notes: Notes) -> Run:
    """The run of a `--config_file`; problems are left in `notes`.

    Raises:
        UserError: it is a dataset config, which says nothing of the training.
    """
    if "datasets" in raw:
        raise UserError(f"{file}: is the dataset config; give the training's own file and --dataset-config {file}")
    flat = flattened(raw)
    script = NETWORK if any(name.startswith("network_") for name in flat) else DB
    given = kohya_settings(script, flat, notes)
    return kohya_run(script, given, Launch(), notes, dataset_of(given, dataset_config, file.parent))


def flattened(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Settings out of their sections, whose names mean nothing to kohya."""
    flat: dict[str, Any] = {}
    for name, value in raw.items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat


def kohya_settings(script: str, flat: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    """A config file's settings as their parser would type them; unknown ones become problems."""
    flags = flags_of(KOHYA, script)
    given = {}
    for name, value in flat.items():
        if name not in flags:
            notes.problem(unknown_key(str(name), list(flags)))
        else:
            given[name] = typed(flags[name], value, notes)
    return given


def dataset_of(given: Mapping[str, Any], dataset_config: Path | None, folder: Path) -> dict[str, Any] | None:
    """What the dataset config holds; None where there is none.

    Args:
        given: the training's settings.
        dataset_config: the file, if the user names it.
        folder: beside which the file may lie that `given` names, where it is not at its place.

    Raises:
        UserError: it cannot be read.
    """
    if dataset_config is not None:
        return read_file(dataset_config)
    if not given.get("dataset_config"):
        return None
    path = Path(given["dataset_config"]).expanduser()
    beside = folder / path.name
    if not path.is_file() and beside.is_file():
        return read_file(beside)
    if not path.is_file():
        raise UserError(f"dataset_config {given['dataset_config']}: not here; say where with --dataset-config")
    return read_file(path)
