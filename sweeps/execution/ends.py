"""How a trial's work ends that neither finished nor failed by its settings; light, as every process knows it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sweeps.wording import bytes_text

SHARE_OF_OTHERS = 0.05
"""Of a GPU's memory that may be in other hands (the desktop, the driver itself) for a trial to count as alone on it."""


class Preempted(Exception):  # noqa: N818 -- it says what happened
    """The worker was told to end (SIGTERM): what it had trained since the last scoring point is in a checkpoint."""


class OutOfGpuMemory(RuntimeError):  # noqa: N818 -- it says what happened
    """A worker's GPU has no room left.

    Args:
        message: torch's.
        others: bytes of that GPU in the hands of other processes.
        total: bytes that it has.
    """

    def __init__(self, message: str, others: int, total: int) -> None:
        super().__init__(message, others, total)
        self.message, self.others, self.total = message, others, total

    def __str__(self) -> str:
        """The message alone."""
        return self.message

    @property
    def is_the_trials_own(self) -> bool:
        """Was it alone on the GPU, so that the same settings would meet it again on any like it?"""
        return self.others <= SHARE_OF_OTHERS * self.total

    @property
    def reason(self) -> str:
        """Who has the memory."""
        return f"out of GPU memory, of which others hold {bytes_text(self.others)} of {bytes_text(self.total)}"


@contextmanager
def heeding_sigterm(stop: Callable[[], None]) -> Iterator[None]:
    """While this lasts, SIGTERM calls `stop` in place of ending the process: machines that go send it beforehand."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
