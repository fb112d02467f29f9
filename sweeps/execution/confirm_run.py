"""`dreamsweep confirm`: ask for more trainings and pictures of some trials, and let the run go on to have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sweeps.config import ConfirmConfig
from sweeps.confirm import confirm_evaluation, confirm_of
from sweeps.execution.run import run_in
from sweeps.ledger.mirror import open_run
from sweeps.ledger.records import BASE_TRIAL
from sweeps.results.finalists import Finalist, read_asked, write_asked
from sweeps.results.results import Results, read_results
from training.errors import UserError


def confirm_run(
    run_dir: Path,
    trials: Sequence[str],
    images: int | None,
    seeds: int | None,
    address: str | None = None,
    console: Console | None = None,
) -> Path:
    """Train settings again and name the champion from that.

    Numbers are of all that a setting then has, so that the same command again goes on and asks for nothing new.

    Args:
        run_dir: the run folder.
        trials: whose best checkpoint's settings are trained again; none: the search's best.
        images: of each training, at least; default: one or as many as the sweep file says of each prompt.
        seeds: trainings of each, at least; default: 3 or as many as the sweep file says.
        address: a Ray cluster; None is this machine.
        console: where to show progress.

    Returns:
        The run folder.

    Raises:
        UserError: there is no such trial, none has a score yet, or what `run_sweep` refuses.
    """
    results = read_results(run_dir)
    if results.config is None:
        raise UserError(f"{results.folder.sweep_file}: must be readable to train anything again; `run` writes it anew")
    config = results.config
    folder = open_run(run_dir, config.storage)
    asked = asked_for_by_hand(results, trials, images, seeds)
    with folder.lock():
        folder.pull(folder.confirm_file)
        folder.push(write_asked(folder, [*read_asked(folder), *asked]))
    return run_in(folder, config, address, console)


def asked_for_by_hand(results: Results, trials: Sequence[str], images: int | None, seeds: int | None) -> list[Finalist]:
    """What a command asks for, as the run folder keeps it.

    Raises:
        UserError: there is no such trial, or nothing that could be trained again.
    """
    assert results.config is not None, "it was read"
    confirm = confirm_of(results.config) or ConfirmConfig()
    num_prompts = len(confirm_evaluation(results.config, confirm).prompts)
    known = {finalist.trial: finalist.step for finalist in results.finalists}
    if BASE_TRIAL in trials:
        raise UserError(f"--trials: must be trained trials, got {BASE_TRIAL!r}, which is the untouched base model")
    named = {trial: known.get(trial) or results.best_of_trial(trial).step for trial in trials}
    if not trials:
        best = [row for row in results.best_of_each_trial() if results.rule.qualifies(row)]
        named = known or {row.trial: row.step for row in best[: confirm.finalists]}
    if not named:
        raise UserError(f"{results.run_dir}: no trial has a score that the rule admits, so there is nothing to confirm")
    images_per_prompt = confirm.images_per_prompt if images is None else max(1, -(-images // num_prompts))
    return [
        Finalist(trial=trial, step=step, seeds=seeds or confirm.seeds, images_per_prompt=images_per_prompt)
        for trial, step in named.items()
    ]
