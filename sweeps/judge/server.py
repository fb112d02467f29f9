"""The judge's page, listened for on this machine alone."""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence

from sweeps.judge.pairs import contenders_of
from sweeps.judge.session import Session
from sweeps.judge.site import Site
from sweeps.results.results import Results
from sweeps.serving.server import HOST, SiteServer

PORT = 8267
"""Beside that of the live page."""


class JudgeServer(SiteServer):
    """A page on which one person compares; `start` lets it answer.

    Args:
        session: what is asked.
        port: None is `PORT`, or a free one where that is taken; 0 is a free one.

    Raises:
        UserError: it cannot listen there.
    """

    def __init__(self, session: Session, port: int | None = None) -> None:
        self.site = Site(session, secrets.token_urlsafe(24))
        super().__init__(self.site, HOST, port, PORT)

    @property
    def page_address(self) -> str:
        """Of the page. Other users of this machine do not know it."""
        return f"{self.root}{self.site.prefix}/"


def open_judge(
    results: Results, port: int | None = None, trials: Sequence[str] = (), rng: random.Random | None = None
) -> JudgeServer:
    """Listen for the page on which checkpoints of a run are compared.

    Args:
        results: of the run.
        port: see `JudgeServer`.
        trials: see `contenders_of`.
        rng: decides sides and order; None is one that nobody can foresee.

    Raises:
        UserError: there is nothing to compare, the votes so far are damaged, or it cannot listen there.
        OSError: pictures are only in the sweep's storage, and it cannot be read.
    """
    session = Session(results, contenders_of(results, trials), rng or random.SystemRandom())
    return JudgeServer(session, port)
