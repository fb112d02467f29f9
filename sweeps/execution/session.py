"""Ray, connected for one run and left as it was found; signals as an interruption."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.job_config import JobConfig
from rich.console import Console
from rich.text import Text

import evaluation
import sweeps
import training
from sweeps.demo import WHEEL_DATA
from sweeps.execution.ray_token import check_cluster_answers, open_token_file, where_the_token_is
from sweeps.ledger.folder import RunFolder
from sweeps.watch.grafana import GRAFANA_HOST, variables_for
from sweeps.watch.server import PageServer, open_page
from sweeps.wording import failure_text
from training.errors import UserError

INIT_ATTEMPTS = 3
"""A loaded machine may miss Ray's own deadline for starting up."""
OBJECT_STORE_BYTES = 150_000_000
"""Almost nothing passes through Ray's object store: pictures and weights go through the run folder."""


class SweepInterrupted(RuntimeError):  # noqa: N818 -- it says what happened, not that something is wrong
    """The sweep was told to end before it was done."""


QUIET: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False, "configure_logging": True}


@contextmanager
def ray_session(address: str | None, console: Console | None, run_dir: Path) -> Iterator[None]:
    """Ray, connected to `address` (None: the surrounding job's cluster, or else this machine).

    A Ray of our own has the run's live page beside it, and in its dashboard's Metrics tab; both end with the session.

    Args:
        address: of a cluster.
        console: where to say how to look at the run.
        run_dir: the run folder.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    with ExitStack() as at_the_end:
        at_the_end.callback(ray.shutdown)
        if address and address != "local":
            _connect(address, console, run_dir)
        else:
            _start(console, run_dir, at_the_end)
        if console is not None and _asks_for_token() and (warning := open_token_file(os.environ)):
            _say(console, f"mind: {warning}")
        yield


def _connect(address: str, console: Console | None, run_dir: Path) -> None:
    check_cluster_answers(address)
    _say_dashboard(console, _init_ray(address=address, runtime_env=our_runtime_env(), **QUIET))
    _say(console, f"watch it with: dreamsweep watch {run_dir}")


def _start(console: Console | None, run_dir: Path, at_the_end: ExitStack) -> None:
    page, remark = _live_page(run_dir)
    if page is not None:
        at_the_end.callback(page.close)
    variables = variables_for(page.root, page.address, os.environ) if page else {}
    with _environment_with(variables):  # which Ray's dashboard reads when it starts
        context = _init_ray(
            address="local",
            include_dashboard=True,
            object_store_memory=OBJECT_STORE_BYTES,
            job_config=JobConfig(metadata={"dreamsweep": version("dreamsweep"), "run": run_dir.name}),
            **QUIET,
        )
    _say_dashboard(console, context)
    in_dashboard = " (and in the dashboard's Metrics tab)" if GRAFANA_HOST in variables else ""
    _say(console, f"live page {page.page_address}{in_dashboard}" if page else f"no live page: {remark}")


def _live_page(run_dir: Path) -> tuple[PageServer | None, str]:
    """The page, answering; or None and why: a sweep does not end for it.

    Nobody has asked for it, and a run folder is its user's alone: so other users of the machine are not let in.
    """
    try:
        page = open_page(run_dir, for_anybody=False, is_run=True)
    except UserError as error:
        return None, str(error)
    page.start()
    return page, ""


@contextmanager
def _environment_with(variables: Mapping[str, str]) -> Iterator[None]:
    """While this lasts, variables that were not set are."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def _asks_for_token() -> bool:
    """Which Ray sets itself for a machine of its own."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def _say_dashboard(console: Console | None, context: Any) -> None:
    if context.dashboard_url:
        asks = f" (asks for a token: {where_the_token_is(os.environ)})" if _asks_for_token() else ""
        _say(console, f"dashboard http://{context.dashboard_url}{asks}")


def _say(console: Console | None, said: str) -> None:
    if console is not None:
        console.print(Text(said), soft_wrap=True)


def our_runtime_env() -> dict[str, Any]:
    """What a cluster's workers are sent: our code, and nothing else.

    No environment variables above all: what stands there is shown in clear by Ray's jobs API and in its logs, a hub's
    token too. The demo's pictures and models, which an installed wheel has beside the code, stay here.
    """
    packages = our_packages()
    env: dict[str, Any] = {"py_modules": packages}
    if any((Path(package) / WHEEL_DATA).is_dir() for package in packages):
        env["excludes"] = [f"/{WHEEL_DATA}"]  # said only where needed: Ray takes it from one side alone
    return env


def keep_credentials_here() -> None:
    """Have Tune send no credentials of ours to the trials' workers.

    By itself it puts the AWS keys of the driver's environment into its actors' `runtime_env`; each machine has its own.
    """
    from ray.tune.execution import class_cache  # Tune takes seconds, and a session is had without it

    class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}


def our_packages() -> list[str]:
    """Folders of the three packages, to be sent to the workers; photos, weights and runs lie outside of them."""
    return [str(Path(str(package.__file__)).parent) for package in (sweeps, evaluation, training)]


def _init_ray(**options: Any) -> Any:
    for attempt in range(1, INIT_ATTEMPTS + 1):
        try:
            return ray.init(**options)
        except (ConnectionError, TimeoutError, RuntimeError, RayError) as error:
            ray.shutdown()
            if attempt == INIT_ATTEMPTS or isinstance(error, RayError):  # of those a token that is not there is one
                where = options["address"]
                raise UserError(f"--address {where}: Ray must answer there: {failure_text(error)}") from None
            time.sleep(attempt)
    raise AssertionError("unreachable")


@contextmanager
def ending_on_signals(folder: RunFolder) -> Iterator[None]:
    """End at once on SIGTERM and SIGINT: everything that matters is on disk at any moment.

    Raises:
        SweepInterrupted: a signal came.
    """

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, signal.SIGINT)} if in_main_thread else {}
    try:
        yield
    except KeyboardInterrupt:
        raise SweepInterrupted(f"{folder.dir}: interrupted; the same command again goes on from here") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
