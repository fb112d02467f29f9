"""What a sweep of thousands of trials costs its driver, and what its run folder costs those who read it.

python -m tests.sweeps.scale --trials 300 --at-once 50              on Ray, in about a minute
python -m tests.sweeps.scale --trials 10000 --without-ray           the run folder written by code, then read

The driver is the product's own: `_run_trials` with its searcher, keeper, board, display, gauges and ledger, over Ray
Tune with a placement group a trial and an actor's task a scoring point. Not the product's own:

- **Actors.** A process a trial would take 200 times 0.5 GB, and 8 s of CPU time each for its imports. `packed_actors`
  gives Tune handles on trials that are objects in two real actors; each call is a real task of Ray. So the seconds that
  a new process takes are in no figure here.
- **Trials.** `FakeTrial` is `SweepTrial` with a worker that waits, then leaves what a real one leaves (a line a step
  of `stats.jsonl`, a folder of pictures a scoring point), but for the weights. `trial.json` is `SweepTrial`'s.
- No stage before or after the trials, no dashboard, no live page beside the driver.

Seconds are of whatever machine it runs on; the growth from a small number of trials to a large one is the finding.
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import math
import os
import pstats
import re
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import ray

import sweeps.execution  # noqa: F401 -- it sets what Ray reads from the environment
from sweeps.asked import listed_trials
from sweeps.config import SweepConfig
from sweeps.ledger.folder import RunFolder
from tests.sweeps.logged_trial import read_log
from tests.sweeps.scale.driver import drive
from tests.sweeps.scale.fake_trial import CPUS_PER_TRIAL, new_run, write_trial
from tests.sweeps.scale.meter import HEADING, Meter, gap_lines, seconds_between

NUM_STRETCHES = 10
READERS = {
    "read_results": "from sweeps.results.results import read_results; read_results(run)",
    "results.csv": "from sweeps.results.results import read_results as r; "
    "from sweeps.results.leaderboard import write_results_csv as w; print(w(run, r(run).rows).stat().st_size)",
    "show": "from sweeps.cli import app; app(['show', run], standalone_mode=False)",
    "show --json": "from sweeps.cli import app; app(['show', run, '--json'], standalone_mode=False)",
    "report": "from sweeps.report.page import write_report; print(write_report(run).stat().st_size)",
    "live page": "from sweeps.results.results import read_results; "
    "from sweeps.report.page import render_live_content; print(len(render_live_content(read_results(run)).encode()))",
    "live page, twice": "from pathlib import Path; from sweeps.watch.runs import WatchedRun as W; "
    "watched = W('run', Path(run), now=iter(range(0, 10**9, 10**6)).__next__); watched.content(); "
    "file = next(Path(run).glob('trials/lora*/trial.json')); file.write_bytes(file.read_bytes() + b' '); "
    "import time; start = time.process_time(); size = len(watched.content().content); "
    "print(size, f'the second time {time.process_time() - start:.1f} s of CPU time')",
    "ready to go on": "from sweeps.config import load_sweep; from sweeps.ledger.folder import RunFolder as F; "
    "from sweeps.ledger.mending import mend_ledger; from sweeps.execution.rewind import rewind_damaged; "
    "from sweeps.search.listed import is_complete; from sweeps.search.searcher import LedgerSearcher; "
    "f = F(run); c = load_sweep(f.sweep_file); mend_ledger(f); list(rewind_damaged(f)); is_complete(c, f); "
    "LedgerSearcher(c, f, extra={}, at_once=lambda: 1, changed=lambda _: None)",
}
"""Each in a process of its own, with the run folder as `run`; what they print last is a size or a remark."""


SAY_PEAK = "import sys; sys.stderr.write(open('/proc/self/status').read())"
"""The most memory that the process had; `wait4` would count what it inherited."""


def main() -> None:
    """Simulate a sweep, then read its run folder, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--points", type=int, default=5, help="scoring points of a trial")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a scoring point takes")
    parser.add_argument("--sampler", default="tpe", choices=["tpe", "nsga2", "random"])
    parser.add_argument("--without-ray", action="store_true", help="write the run folder by code; it is only read")
    parser.add_argument("--readers", nargs="*", default=list(READERS), choices=list(READERS))
    parser.add_argument("--read", type=Path, metavar="RUN", help="read a run folder that is there, and do nothing else")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the run folder goes and stays")
    parser.add_argument("--profile", action="store_true", help="say where the driver's time went")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run_dir = asked.read or (asked.keep or Path(place)).resolve() / "scale"
        if asked.read is None:
            sampler = "random" if asked.without_ray else asked.sampler
            config = new_run(run_dir, sampler, asked.trials, asked.at_once, asked.points)
            if asked.without_ray:
                write_run(config, run_dir)
            else:
                simulate(config, run_dir, asked.at_once, asked.seconds, asked.profile)
        for name in asked.readers:
            say(read(name, run_dir))


def write_run(config: SweepConfig, run_dir: Path) -> None:
    """A run folder in which all trials of a random search have ended."""
    for number, trial in enumerate(listed_trials(config)):
        write_trial(RunFolder(run_dir), number, trial, config.evaluation.at_steps)


def simulate(config: SweepConfig, run_dir: Path, at_once: int, seconds: float, with_profile: bool) -> None:
    """Run the sweep's trials, and print what it took over time."""
    meter, profile = Meter(run_dir), cProfile.Profile()
    stretch = max(1, (config.search.num_trials or 0) // NUM_STRETCHES)

    def ended(num_ended: int) -> None:
        if num_ended % stretch == 0:
            meter.sample(num_ended)
            say(meter.line())

    ray.init(
        address="local",
        num_cpus=math.ceil(at_once * CPUS_PER_TRIAL) + 1,
        include_dashboard=False,
        object_store_memory=150_000_000,
        logging_level=logging.CRITICAL,
        log_to_driver=False,
    )
    meter.sample(0)
    say(HEADING)
    with profile if with_profile else nullcontext():
        drive(config, run_dir, at_once, seconds, ended)
    ray.shutdown()
    say("from a trial's end to the next one's start")
    say("\n".join(gap_lines(seconds_between(read_log(run_dir), at_once), NUM_STRETCHES)))
    if with_profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(70)


def read(name: str, run_dir: Path) -> str:
    """One of the readers, in a process of its own: seconds of CPU time, memory, and what it printed."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(  # noqa: S603 -- our own text
            [sys.executable, "-c", f"run = {str(run_dir)!r}; {READERS[name]}; {SAY_PEAK}"],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stderr is not None
        said = child.stderr.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = status
        output.seek(0)
        printed = output.read()
    peak = int(found[-1]) if (found := re.findall(r"VmHWM:\s+(\d+)", said)) else 0
    remark = printed.decode().strip().splitlines()[-1] if 0 < len(printed) < 200 else f"{len(printed)} bytes printed"
    cpu = used.ru_utime + used.ru_stime
    failed = f"  FAILED {status}" if status else ""
    return (
        f"{name:18} {cpu:6.1f} s of CPU time, {time.monotonic() - start:6.1f} s, {peak / 1e3:6.0f} MB  {remark}{failed}"
    )


def say(text: str) -> None:
    """Print."""
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
