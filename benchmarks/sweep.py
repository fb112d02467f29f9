"""What the demo's whole sweep takes of a machine, and how much of that is neither training nor scoring.

    python benchmarks/sweep.py                                         Linux, on a machine that does nothing else
    python benchmarks/sweep.py --steps 1200 --set render=null          ten times the demo's steps
    python benchmarks/sweep.py --trees . ../before                     against another checkout, one after the other

CPU seconds are those of the whole machine while the command runs: Ray's processes are many, and not all are found again
when they have ended. Training is the sum of the steps' own seconds; the pictures' seconds, of trials and of the base
model, hold loading the models. The rest is overhead: imports, Ray, preparation, renders, the report.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.alternating import table

ROOT = Path(__file__).parents[1]
HEADER = ("checkout", "wall, s", "CPU, s", "training, s", "scoring, s", "overhead, s", "overhead, part")


def busy_seconds() -> float:
    """CPU seconds that all processes of this machine have used since it started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _iowait, interrupts, soft_interrupts = fields[:7]
    ticks: int = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + interrupts + soft_interrupts) / ticks


def measure(tree: Path, overrides: Sequence[str]) -> list[str]:
    """A line of the table: one sweep by the code of a checkout."""
    with TemporaryDirectory() as out:
        settings = [part for override in overrides for part in ("--set", override)]
        command = [sys.executable, "-m", "sweeps", "run", "examples/demo/sweep.yaml", "--out", out, *settings]
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        since, busy_before = time.monotonic(), busy_seconds()
        subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
        wall, busy = time.monotonic() - since, busy_seconds() - busy_before
        training = scoring = 0.0
        for file in Path(out).glob("*/trials/*/trial.json"):
            stats = file.with_name("stats.jsonl")
            steps = [json.loads(line)["seconds"] for line in stats.read_text().splitlines()] if stats.exists() else []
            training += sum(steps)
            scoring += json.loads(file.read_text())["seconds"] - sum(steps)
    overhead = busy - training - scoring
    numbers = [f"{seconds:.0f}" for seconds in (wall, busy, training, scoring, overhead)]
    return [tree.name, *numbers, f"{overhead / busy:.1%}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", nargs="+", type=Path, default=[ROOT], metavar="CHECKOUT")
    parser.add_argument("--steps", type=int, help="of each trial, scored at every third of them")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args(arguments)
    if asked.steps is not None:
        asked.overrides += [f"methods.{method}.max_train_steps={asked.steps}" for method in ("lora", "dreambooth")]
        asked.overrides.append(f"evaluation.at_steps={[asked.steps * part // 3 for part in (1, 2, 3)]}")
    trees = [tree.resolve() for tree in asked.trees]
    print(table(HEADER, [measure(tree, asked.overrides) for _ in range(asked.rounds) for tree in trees]))


if __name__ == "__main__":
    main()
