"""The live page's server."""

from __future__ import annotations

import secrets
from ipaddress import ip_address
from pathlib import Path

from sweeps.serving.server import HOST, SiteServer, resolved
from sweeps.watch.runs import Runs
from sweeps.watch.site import Site

PORT = 8266
"""Beside that of Ray's dashboard."""


class PageServer(SiteServer):
    """A live page that is listened for; `start` lets it answer.

    Whether it is well can be asked at its `root` without the token.

    Args:
        runs: what it shows.
        host: the address of this machine that it listens at.
        port: None is `PORT`, or a free one where that is taken; 0 is a free one.
        for_anybody: lets all users of this machine in. Else, and always where it listens beyond the machine's own
            loopback, every address of the page has a random token.

    Raises:
        UserError: it cannot listen there.
    """

    def __init__(self, runs: Runs, host: str = HOST, port: int | None = None, *, for_anybody: bool = True) -> None:
        _, address = resolved(host)
        token = None if for_anybody and ip_address(address).is_loopback else secrets.token_urlsafe(24)
        self.runs, self.site = runs, Site(runs, token)
        super().__init__(self.site, address, port, PORT)

    @property
    def address(self) -> str:
        """What all addresses of pages begin with, the token included."""
        return f"{self.root}{self.site.prefix}"

    @property
    def page_address(self) -> str:
        """Of the run's page, or of the page of all runs."""
        return f"{self.address}{self.site.start}"


def open_page(
    path: Path | str, host: str = HOST, port: int | None = None, *, for_anybody: bool = True, is_run: bool = False
) -> PageServer:
    """Listen for the page of a run folder, or of a folder of runs.

    Args:
        path: the folder.
        host: see `PageServer`.
        port: see `PageServer`.
        for_anybody: see `PageServer`.
        is_run: it is a run's folder, although nothing may lie in it yet.

    Raises:
        UserError: it cannot listen there.
    """
    return PageServer(Runs(Path(path), is_run=is_run), host, port, for_anybody=for_anybody)
