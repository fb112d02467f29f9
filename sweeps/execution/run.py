"""Run a sweep on Ray: once-a-sweep stages, then the trials under Ray Tune; and again, from where it ended.

Every call is a fresh Tune experiment over what the ledger lacks. Tune's own restore is not used: it repeats finished
trials after a killed driver, starts silently afresh from a damaged state file, and unpickles what it finds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

from ray import tune
from rich.console import Console
from rich.text import Text

from sweeps.asked import num_planned
from sweeps.config import SweepConfig, load_sweep, rare_token, resolved_yaml
from sweeps.confirm import confirm_evaluation, confirm_of
from sweeps.execution.around_trials import AroundTrials, measure_here, write_work_of
from sweeps.execution.cluster import (
    TrialResources,
    check_cluster,
    check_shared,
    local_models,
    stage_resources,
    trials_at_once,
)
from sweeps.execution.examinations import unexamined
from sweeps.execution.failures import out_of_tune
from sweeps.execution.gauges import Gauges, sweep_id
from sweeps.execution.keeper import LedgerKeeper, trial_name_of
from sweeps.execution.live import Board, Display, fill_board, leaderboard_file
from sweeps.execution.machines import TRIALS_TO_SET_ASIDE, Machines, NoMachineLeft, alive_machines, asked_once_a_second
from sweeps.execution.rewind import rewind_damaged
from sweeps.execution.second_stage import due_stage
from sweeps.execution.servers import TrialServers
from sweeps.execution.session import ending_on_signals, keep_credentials_here, ray_session
from sweeps.execution.stopping import make_scheduler
from sweeps.execution.task import TrialTask
from sweeps.execution.trial import SweepTrial
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import claim_initial_weights, claim_subject, evaluation_key
from sweeps.ledger.mending import mend_ledger
from sweeps.ledger.mirror import open_run
from sweeps.ledger.privacy import open_to_all
from sweeps.plan import check_disk, check_sweep, failing_disk_explained
from sweeps.renders import due_renders
from sweeps.results.leaderboard import write_results_csv
from sweeps.results.results import read_results
from sweeps.results.rule import ChampionRule
from sweeps.results.screening import due_full_scores
from sweeps.search.listed import have_ended, is_complete, trials_asked_for
from sweeps.search.searcher import LedgerSearcher
from training.errors import UserError
from training.layout import STATE_FILE


def run_sweep(
    config: SweepConfig, out_dir: Path | str, address: str | None = None, console: Console | None = None
) -> Path:
    """Run a sweep to its end, going on from whatever the run folder holds.

    Args:
        config: the sweep.
        out_dir: the run folder is `out_dir/<name>`.
        address: a Ray cluster (`auto`, `host:port`); None is the surrounding job's, or else this machine.
        console: where to show progress; None shows nothing.

    Returns:
        The run folder.

    Raises:
        UserError: something that the user can mend, found before the first trial.
        SweepInterrupted: a signal ended it; the same call goes on.
        NoMachineLeft: every machine failed trial after trial; so does this.
    """
    return run_in(open_run(Path(out_dir) / config.name, config.storage), config, address, console)


def run_in(folder: RunFolder, config: SweepConfig, address: str | None = None, console: Console | None = None) -> Path:
    """`run_sweep` in a given run folder."""
    plan = check_sweep(config)
    for warning in plan.warnings:
        _say(console, f"mind: {warning}")
    with folder.lock(say=lambda text: _say(console, text)):
        if remark := open_to_all(folder.dir):
            _say(console, f"mind: {remark}")
        folder.pull(
            folder.sweep_file, folder.identity_file, folder.confirm_file, folder.dataset_dir, folder.renders_dir
        )
        for ledger in (folder, folder.confirm):
            ledger.pull(ledger.trials_dir, ending="trial.json")
            for mended in mend_ledger(ledger):
                _say(console, mended)
        claim_subject(folder, config.subject, config.evaluation.face.references, rare_token(config.subject))
        folder.claim("evaluation", evaluation_key(config.evaluation))
        if (confirm := confirm_of(config)) is not None:
            folder.claim("held_back_prompts", evaluation_key(confirm_evaluation(config, confirm, images_per_prompt=1)))
        claim_initial_weights(folder, config.initial_weights)
        folder.claim("storage", config.storage or "none")
        check_disk(plan, folder)
        if config.storage is None:  # with a storage, weights need not lie here
            for said in rewind_damaged(folder):
                _say(console, said)
        if not _is_done(config, folder):
            with failing_disk_explained(plan, folder):
                _run_on_ray(config, folder, address, console)
        _write_sweep(config, folder)
        folder.pull(folder.trials_dir, without=("checkpoint-*",))  # for the report, all pictures; of the weights,
        results = read_results(folder.dir)
        if (best := results.champion.row) is not None and best.checkpoint is not None:
            folder.pull(folder.dir / best.checkpoint, without=(STATE_FILE,))  # those that are exported
        folder.push(
            write_results_csv(folder.dir, results.rows),
            write_work_of(results, partial(measure_here, base_model=config.base)),
        )
    return folder.dir


def _is_done(config: SweepConfig, folder: RunFolder) -> bool:
    return (
        is_complete(config, folder)
        and _same_models(config, folder)
        and not due_full_scores(read_results(folder.dir), config.evaluation)
        and due_stage(config, folder) is None
        and not unexamined(read_results(folder.dir))
        and due_renders(config, folder) is None
    )


def _same_models(config: SweepConfig, folder: RunFolder) -> bool:
    """Do the models have the names that they had in the last run? If not, their content must be looked at."""
    try:
        last = load_sweep(folder.sweep_file)
    except UserError:  # derived, and written anew from the sweep that is asked for
        return False
    return (last.base, last.evaluation.face, last.evaluation.clip) == (
        config.base,
        config.evaluation.face,
        config.evaluation.clip,
    )


def _write_sweep(config: SweepConfig, folder: RunFolder) -> None:
    folder.write_sweep(resolved_yaml(config))
    folder.push(folder.sweep_file)


def _run_on_ray(config: SweepConfig, folder: RunFolder, address: str | None, console: Console | None) -> None:
    with ray_session(address, console, folder.dir), ending_on_signals(folder):
        resources = check_cluster(config.resources, config.methods)
        check_shared(folder, config.storage, local_models(config))
        if not folder.sweep_file.exists():
            _write_sweep(config, folder)
        sweep = sweep_id(folder)
        _say(console, f"in Ray's metrics it is sweep={sweep}")
        machines = Machines(asked_once_a_second(alive_machines))
        servers = _servers_for(config, resources, machines)
        for_jobs = stage_resources(resources.values())
        with Gauges(sweep) as gauges, closing(servers):
            around = AroundTrials(config, folder, servers, for_jobs, lambda text: _say(console, text))
            around.prepare()
            _write_sweep(config, folder)  # only now: what it replaces may be of a sweep that this one is not
            _run_trials(config, folder, resources, machines, servers, console, gauges)
            around.score_best_in_full()
            if (stage := due_stage(config, folder)) is not None:
                _say(console, f"training {len(stage.finalists)} finalists again: {len(stage.trainings)} trainings")
                around.score_base_for(stage)
                with Gauges(f"{sweep}-finalists") as of_finalists:  # whose trainings are not the search's trials
                    _run_trials(stage.config, folder.confirm, resources, machines, servers, console, of_finalists)
                around.draw_more_for(stage)
            around.examine_finalists()
            around.render_best()
            around.count_work()


def _servers_for(config: SweepConfig, resources: Mapping[str, TrialResources], machines: Machines) -> TrialServers:
    def at_once() -> int:
        limit, num_trials = config.search.max_concurrent_trials, num_planned(config)
        return trials_at_once(config.resources.autoscaling, resources.values(), limit, num_trials)

    return TrialServers(resources, asked_once_a_second(at_once), machines.to_avoid, config.resources.pack_size)


def _say(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(Text(text), soft_wrap=True)  # as it is: a folder may be called [bold]


def _run_trials(
    config: SweepConfig,
    folder: RunFolder,
    resources: Mapping[str, TrialResources],
    machines: Machines,
    servers: TrialServers,
    console: Console | None,
    gauges: Gauges,
) -> None:
    num_trials = num_planned(config)
    board = Board(config.name, config.champion, num_trials)
    known = trials_asked_for(config, folder)
    fill_board(board, folder.base(), known)
    for record in known:
        gauges.set_scores(record)
    gauges.set_sweep(board)
    if have_ended(known, num_trials):
        return
    display = Display(board, console, leaderboard_file(config.name))
    searcher = LedgerSearcher(
        config,
        folder,
        extra={"task": TrialTask.of(config, folder, resources)},
        at_once=lambda: config.search.max_concurrent_trials or num_trials,
        changed=board.put,
        places=servers,
        is_over=lambda: machines.none_left,
    )
    keeper = LedgerKeeper(folder, searcher, machines, display, board, gauges)
    scheduler = make_scheduler(config, known, ChampionRule.of(config.champion, folder.base()), keeper.is_taken_back)
    del known  # thousands of records with the scores of their pictures
    shutil.rmtree(folder.ray_dir, ignore_errors=True)
    # The searcher says how many run; without this, Tune would let workers start up one after another.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(num_trials)
    keep_credentials_here()
    with display.shown(), out_of_tune():
        tune.run(
            SweepTrial,
            name="tune",
            storage_path=str(folder.ray_dir),
            num_samples=-1,
            search_alg=searcher,
            scheduler=scheduler,
            max_failures=0,  # who tries again, where and how often is the keeper's to say
            trial_name_creator=trial_name_of,
            trial_dirname_creator=lambda trial: f"{trial_name_of(trial)}_{trial.trial_id}",
            callbacks=[keeper],
            raise_on_failed_trial=False,
            verbose=0,
        )
    if machines.none_left:
        reasons = "; ".join(sorted(set(machines.set_aside.values())))
        raise NoMachineLeft(
            f"every machine is set aside, for {TRIALS_TO_SET_ASIDE} failures in a row or what it lacks ({reasons}); "
            f"tracebacks are in {folder.trials_dir}/*/traceback.txt; the same command tries again"
        )
