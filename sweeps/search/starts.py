"""The first trials of a search that learns: another run's best settings, then published ones. Without Optuna or Ray.

What is started from is values, never scores: those of another person are on another scale, for every face has its own
distance to the base model's and its own spread between photos (docs/design/019-priors.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeps.asked import is_listed, num_planned
from sweeps.config import SweepConfig
from sweeps.ledger.folder import RunFolder
from sweeps.priors import PUBLISHED
from sweeps.results.results import Results, read_results
from sweeps.space import Choices, Range, Scalar, contains
from training.config import MethodConfig
from training.errors import UserError
from training.names import shown

SHARE = 3
"""At most one trial in so many is given: the others are for what the search finds by itself."""
MOST_FROM_ANOTHER_RUN = 4
"""The best differ by less than another person does."""


@dataclass(frozen=True)
class Start:
    """A trial that is given to a search."""

    source: str
    """Whose settings these are, in words."""
    values: Mapping[str, Scalar]
    """By the names that the search has for what it draws: `method`, `lora/rank`. What is missing is drawn as ever."""


def starts_of(config: SweepConfig) -> list[Start]:
    """The first trials, in order: of `search.warm_start`, then of `search.priors`; none where all are decided.

    The same for the same sweep file and the same ledger of the other run.

    Raises:
        UserError: the other run is missing or has no scored trial.
    """
    if is_listed(config):
        return []
    found: dict[tuple[tuple[str, Scalar], ...], Start] = {}
    limit = max(1, num_planned(config) // SHARE)
    for start in _candidates(config):
        if len(found) == limit:
            break
        found.setdefault(tuple(sorted(start.values.items(), key=lambda each: each[0])), start)
    return list(found.values())


def starts_warnings(config: SweepConfig) -> list[str]:
    """What of the first trials cannot be as the sweep file asks, a line each.

    Raises:
        UserError: the other run is missing or has no scored trial.
    """
    if is_listed(config):
        return []
    warnings = []
    if config.search.warm_start is not None and not any(_of_another_run(config, config.search.warm_start)):
        warnings.append(f"search.warm_start: the space holds none of the best settings of {config.search.warm_start}")
    if config.search.priors == "published" and not any(_published(config)):
        warnings.append("search.priors: the space holds none of the published settings")
    return warnings


def refuse_own_run(config: SweepConfig, run_dir: Path) -> None:
    """Refuse a run that is to start from itself: what it begins with would follow from what came of it.

    Raises:
        UserError: names the folder.
    """
    other = config.search.warm_start
    if other is not None and other.resolve() == run_dir.resolve():
        raise UserError(f"search.warm_start: must be another run, got this one's own folder {shown(other)}")


def _candidates(config: SweepConfig) -> Iterator[Start]:
    if config.search.warm_start is not None:
        yield from _of_another_run(config, config.search.warm_start)
    if config.search.priors == "published":
        yield from _published(config)


def _published(config: SweepConfig) -> Iterator[Start]:
    for setting in PUBLISHED:
        if setting.method not in config.methods:
            continue
        values = setting.held_by(config.methods[setting.method])
        if values is not None:
            yield Start(setting.source, _named(config, setting.method, values))


def _of_another_run(config: SweepConfig, run_dir: Path) -> Iterator[Start]:
    """Best first by that run's leaderboard, of each setting its best checkpoint; none that has lost its prompts."""
    results = _read(run_dir)
    num_found, seen = 0, set()
    configs = {trial.trial: trial for trial in results.trials}
    for row in results.rows:
        if row.is_base or not results.rule.qualifies(row) or row.standing == "off prompt":
            continue
        values = _held(config, configs[row.trial].method_config)
        key = None if values is None else tuple(values.items())
        if values is None or key in seen:
            continue
        seen.add(key)
        yield Start(f"{row.trial} of {results.name}", values)
        num_found += 1
        if num_found == MOST_FROM_ANOTHER_RUN:
            return


def _read(run_dir: Path) -> Results:
    if not RunFolder(run_dir).dir.is_dir():
        raise UserError(f"search.warm_start: no such run folder: {shown(run_dir)}")
    try:
        results = read_results(run_dir)
    except UserError as error:
        raise UserError(f"search.warm_start: {error}") from None
    if all(row.is_base for row in results.rows):
        raise UserError(f"search.warm_start: needs a run with scored trials, got none in {shown(run_dir)}")
    return results


def _held(config: SweepConfig, other: MethodConfig) -> dict[str, Scalar] | None:
    """The other trial's values of what this space leaves open; None where the space does not hold one of them.

    What this sweep file fixes stays as it says: it is another sweep, and fixed for a reason.
    """
    space = config.methods.get(other.method)
    if space is None:
        return None
    opened = {name: value for name, value in space.items() if isinstance(value, Choices | Range)}
    values = {name: getattr(other, name) for name in opened}
    if not all(contains(opened[name], value) for name, value in values.items()):
        return None
    return _named(config, other.method, values)


def _named(config: SweepConfig, method: str, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    chosen: dict[str, Scalar] = {"method": method} if len(config.methods) > 1 else {}
    return {**chosen, **{f"{method}/{name}": value for name, value in values.items()}}
