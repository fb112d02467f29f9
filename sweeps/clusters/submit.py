"""A sweep as a job on a cluster: sent there, followed, and told where to look."""

from __future__ import annotations

import platform
import shlex
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from ray.job_submission import JobStatus
from rich.console import Console
from rich.live import Live
from rich.text import Text

from sweeps.clusters.dashboard import Dashboard, exit_code, start_there, token_remark
from sweeps.clusters.parcel import pack_sweep
from sweeps.config import SweepConfig, installed_versions
from sweeps.wording import bytes_text
from training.errors import UserError

OUT = "/mnt/dreamsweep/runs"
"""The folder of runs on a cluster of `cluster.yaml`."""
RUNNING_LINE = "Running entrypoint for job"
"""Of Ray, in a job's log: what comes after it is the job's."""

STATE_DUMP = "[state-dump]"
"""Stands in each of the hundred lines that Ray puts into every driver's log when a machine is lost."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Submitted:
    """A job that runs, or waits to."""

    job: str
    is_new: bool
    """False where the same sweep runs already."""


def submit_sweep(
    config: SweepConfig, sweep_dir: Path, dashboard: Dashboard, out: str, say: Say, *, to_follow: bool
) -> Submitted:
    """Send a sweep to a cluster and start it there; it goes on from whatever its run folder there holds.

    Args:
        config: from `load_sweep`.
        sweep_dir: the sweep file's folder.
        dashboard: the cluster's.
        out: the folder of runs there, which all its machines see.
        say: told what is done.
        to_follow: the job of the same sweep that runs already is as good.

    Raises:
        UserError: what cannot be sent or would not work there, or the same sweep runs there already.
    """
    check_out(out)
    for remark in _remarks_on_cluster(dashboard):
        say(remark)
    with tempfile.TemporaryDirectory(prefix="dreamsweep-") as folder:
        into = Path(folder)
        parcel = pack_sweep(config, sweep_dir, out, into)
        for remark in parcel.remarks:
            say(remark)
        running = _running_job(dashboard, parcel.sweep, out)
        if running is not None:
            if to_follow:
                return Submitted(running, is_new=False)
            raise UserError(
                f"{config.name} is being run already on {dashboard.address}, by job {running}; see --follow"
            )
        job = f"dreamsweep-{parcel.sweep}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        asked = {
            "out": out,
            "models": dict(parcel.models),
            "versions": {"python": platform.python_version(), **installed_versions()},
        }
        say(f"sending   {bytes_text(parcel.num_bytes)} and dreamsweep's own code, which the cluster runs, not its own")
        start_there(dashboard, job, "sweep", asked, into, {"sweep": parcel.sweep, "out": out})
    return Submitted(job, is_new=True)


def check_out(out: str) -> None:
    """Refuse a folder that is none on a cluster.

    Raises:
        UserError: it is not absolute, or leaves itself.
    """
    if not PurePosixPath(out).is_absolute() or ".." in PurePosixPath(out).parts or not out.isprintable():
        raise UserError(
            f"--out {out}: must be an absolute path on the cluster that all its machines see, such as {OUT}"
        )


def _remarks_on_cluster(dashboard: Dashboard) -> list[str]:
    remarks = [f"mind: {remark}"] if (remark := token_remark(dashboard)) else []
    if dashboard.ray_version != version("ray"):
        remarks.append(f"mind: the cluster has Ray {dashboard.ray_version}, this machine {version('ray')}")
    return remarks


def _running_job(dashboard: Dashboard, sweep: str, out: str) -> str | None:
    for job in dashboard.jobs():
        metadata = job.metadata or {}
        if not job.status.is_terminal() and (metadata.get("sweep"), metadata.get("out")) == (sweep, out):
            return str(job.submission_id)
    return None


def where_to_look(
    submitted: Submitted, dashboard: Dashboard, config: SweepConfig, out: str, sweep: Path, overrides: Sequence[str]
) -> Sequence[str]:
    """Lines for people."""
    again = shlex.join([str(sweep), *(part for override in overrides for part in ("--set", override))])
    root, address = dashboard.address, f"--address {dashboard.address}"
    at = "" if out == OUT else f" --out {out}"
    what = "submitted" if submitted.is_new else "running  "
    return [
        f"{what} {submitted.job}",
        f"job       {root}/#/jobs/{submitted.job}",
        f"metrics   {root}/#/metrics, which is the live page where the cluster shows it (dreamsweep watch {out}, 8266)",
        f"follow    dreamsweep submit {again} {address}{at} --follow",
        f"fetch     dreamsweep fetch {config.name} {address}{at}",
    ]


def follow_job(dashboard: Dashboard, job: str, name: str, console: Console, say: Say) -> int:
    """Show what a job prints until it ends, and in a terminal its leaderboard below.

    Args:
        dashboard: the cluster's.
        job: its submission id.
        name: of the sweep.
        console: where the leaderboard stands if it is a terminal.
        say: told the job's lines.

    Returns:
        0 done, 2 the user can mend it, 1 anything else.
    """
    with ExitStack() as at_the_end:
        table = at_the_end.enter_context(_Table(dashboard, job, name, console)) if console.is_terminal else None
        lines = _Lines(say if table is None else table.say)
        for text in dashboard.follow(job):
            lines.add(text)
            if table is not None:
                table.refresh()
        lines.end()
    details = dashboard.job(job)
    if details.status == JobStatus.STOPPED:
        say(f"{job} was stopped; the same command goes on from there")
    elif details.status == JobStatus.FAILED and details.driver_exit_code is None:
        say(f"{job} failed: {str(details.message).strip().splitlines()[0] if details.message else 'Ray says nothing'}")
    return exit_code(details)


class _Lines:
    """A job's log in whole lines, without what Ray writes before it and from the inside of a machine that was lost."""

    def __init__(self, say: Say) -> None:
        self._say, self._rest, self._has_begun = say, "", False

    def add(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if self._has_begun and STATE_DUMP not in line:
                self._say(line)
            self._has_begun = self._has_begun or line.startswith(RUNNING_LINE)

    def end(self) -> None:
        if self._rest and self._has_begun:
            self._say(self._rest)


class _Table:
    """The leaderboard that the sweep keeps in its machine's log folder, live below the job's lines."""

    def __init__(self, dashboard: Dashboard, job: str, name: str, console: Console) -> None:
        self._dashboard, self._job, self._console = dashboard, job, console
        self._file = f"sweep_{name}_leaderboard.log"
        self._node: str | None = None
        self._is_there = False
        self._live = Live(Text(""), console=console, auto_refresh=False)

    def __enter__(self) -> _Table:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(None, None, None)

    def say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

    def refresh(self) -> None:
        try:
            self._node = self._node or self._dashboard.job(self._job).driver_node_id
            if self._node and not self._is_there:
                self._is_there = self._dashboard.has_file(self._node, self._file)
            if self._node and self._is_there:
                text = self._dashboard.read_file(self._node, self._file).decode("utf-8", "replace")
                self._live.update(Text(text, no_wrap=True), refresh=True)
        except UserError:
            return  # the lines say it if it lasts


def stopped_following(job: str, dashboard: Dashboard) -> str:
    """What is said when the user looks away."""
    return (
        f"{job} goes on; the same command follows it again, and "
        f"`ray job stop --address {dashboard.address} {job}` ends it"
    )
