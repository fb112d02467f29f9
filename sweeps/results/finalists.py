"""Who is trained again, with other seeds: the best of the search, and whom somebody has asked for by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sweeps.config import SweepConfig
from sweeps.confirm import confirm_of, fresh_trainings
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import config_hash
from sweeps.ledger.records import TrialRecord
from sweeps.results.leaderboard import Row
from training.config import MethodConfig
from training.errors import UserError
from training.files import write_json


class Finalist(BaseModel):
    """A checkpoint's settings that are trained again, and how thoroughly; as `confirm.json` has it."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    trial: str
    step: int = Field(ge=1)
    seeds: int = Field(ge=1)
    images_per_prompt: int = Field(ge=1)


_ASKED = TypeAdapter(list[Finalist])


def settings_of(config: MethodConfig, step: int) -> str:
    """Equal for trainings that differ in their seed alone, up to a step."""
    return config_hash(config.model_copy(update={"seed": 0, "max_train_steps": step}))


def finalists_of(
    config: SweepConfig, rows: Iterable[Row], trials: Mapping[str, TrialRecord], asked: Iterable[Finalist] = ()
) -> list[Finalist]:
    """The best trial of each of the best settings, in the search's order, then whoever was asked for by name.

    Args:
        config: the sweep.
        rows: each trial's best checkpoint that the rule admits, best first by the search.
        trials: by name.
        asked: by `dreamsweep confirm`, of checkpoints that are there.
    """
    found: dict[str, Finalist] = {}
    confirm = confirm_of(config)
    for row in rows:
        if confirm is None or len(found) == confirm.finalists:
            break
        finalist = Finalist(
            trial=row.trial, step=row.step, seeds=confirm.seeds, images_per_prompt=confirm.images_per_prompt
        )
        found.setdefault(settings_of(trials[row.trial].method_config, row.step), finalist)
    for each in asked:
        key = settings_of(trials[each.trial].method_config, each.step)
        before = found.get(key, each)
        more = {name: max(getattr(before, name), getattr(each, name)) for name in ("seeds", "images_per_prompt")}
        found[key] = before.model_copy(update=more)
    return list(found.values())


def trainings_of(finalist: Finalist, trials: Mapping[str, TrialRecord]) -> list[MethodConfig]:
    """A finalist's trainings with fresh seeds, by which they are known in the second stage's ledger."""
    return fresh_trainings(trials[finalist.trial].method_config, finalist.step, finalist.seeds)


def read_asked(folder: RunFolder) -> list[Finalist]:
    """Whom `dreamsweep confirm` was asked for in this run.

    Raises:
        UserError: the file is there but is not whole.
    """
    try:
        return _ASKED.validate_json(folder.confirm_file.read_bytes())
    except FileNotFoundError:
        return []
    except ValidationError:
        raise UserError(
            f"{folder.confirm_file}: must be a whole list of what `dreamsweep confirm` was asked for; delete it and "
            "ask again"
        ) from None


def write_asked(folder: RunFolder, finalists: Iterable[Finalist]) -> Path:
    """Write RUN/confirm.json, to be gone on with by the same command and by `run`."""
    write_json(folder.confirm_file, [finalist.model_dump(mode="json") for finalist in finalists])
    return folder.confirm_file
