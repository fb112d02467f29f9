"""What the live page costs its server, on a run that is drawn by code.

python -m tests.sweeps.watch.cost --trials 300
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sweeps.ledger.folder import RunFolder
from sweeps.report.page import render_live_content
from sweeps.results.results import read_results
from sweeps.watch.runs import read_stamps
from tests.sweeps.fake_run import build_run


def main() -> None:
    """Print CPU seconds and bytes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=250)
    num_trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as place:
        run_dir = build_run(Path(place) / "ada", num_trials=num_trials, images_per_prompt=2, size=16)
        results = read_results(run_dir)
        print(f"{len(results.trials)} trials, {len(results.rows)} checkpoints")  # noqa: T201
        say("read again", lambda: read_results(run_dir))
        say("look at the files' times", lambda: read_stamps(RunFolder(run_dir)))
        render_live_content(results)
        say("render", lambda: render_live_content(results))
        content = render_live_content(results).encode()
        say("compress", lambda: gzip.compress(content, compresslevel=6))
        print(f"{len(content) / 1e6:.1f} MB, {len(gzip.compress(content, compresslevel=6)) / 1e6:.2f} MB compressed")  # noqa: T201


def say(what: str, work: Callable[[], object]) -> None:
    """The median of five times."""
    times = []
    for _ in range(5):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    print(f"{what}: {sorted(times)[2]:.3f} s")  # noqa: T201


if __name__ == "__main__":
    main()
