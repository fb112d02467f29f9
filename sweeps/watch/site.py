"""What is at which address of the live page: from a request to its answer, without a socket.

    /                              all runs, or on to the run where there is one
    /content                       what that page follows
    /run/<name>/                   a run's page
    /run/<name>/content            what it follows
    /run/<name>/picture/<path>     a picture that it shows, reduced with ?side=
    /assets/<version>/<file>       scripts and styles
    /card/<kind>/                  a small page for the frames on the Overview of Ray's dashboard
    /api/..., /d/..., /d-solo/...  what Ray's dashboard asks (see `grafana`)

With a token all of it stands below `/t/<token>`, and any other address has nothing, `/api/...` excepted. It is
read-only, and of a run folder nothing is sent but pages made from it and pictures made by it, each written anew.
"""

from __future__ import annotations

import hashlib
from functools import cache
from http import HTTPStatus
from importlib.metadata import version
from urllib.parse import urlsplit

from sweeps.report.page import asset
from sweeps.report.pictures import SHEET_SIDE, THUMBNAIL_SIDE, picture_file
from sweeps.serving.addresses import Query, Segments, is_same, is_this_machine, query_of, segments_of
from sweeps.serving.messages import (
    KEPT,
    MUST_ASK_AGAIN,
    NOT_KEPT,
    Body,
    Request,
    Response,
    elsewhere,
    nothing_here,
    security_headers,
    text,
)
from sweeps.watch import grafana, pages
from sweeps.watch.runs import Latest, Runs, WatchedRun
from sweeps.watch.thumbnails import Thumbnails

SIDES = {str(side): side for side in (THUMBNAIL_SIDE, SHEET_SIDE)}
THEMES = ("light", "dark")
ASSETS = {
    "page.css": "text/css",
    "watch.css": "text/css",
    "page.js": "text/javascript",
    "plotly.min.js": "text/javascript",
}
ON_THIS_MACHINE = "'self' http://127.0.0.1:* http://localhost:*"
"""Whose frames may show a page: Ray's dashboard listens beside it."""


class Site:
    """The addresses of a server.

    Args:
        runs: what it shows.
        token: what an address must begin with, `/t/<token>`; None lets everybody in who reaches the server.
    """

    max_body_bytes = 0

    def __init__(self, runs: Runs, token: str | None = None) -> None:
        self._runs, self._token = runs, token
        self.prefix = f"/t/{token}" if token else ""
        self._thumbnails = Thumbnails()
        self._index = {theme: Latest[Body]() for theme in (None, *THEMES)}
        self._index_content = {theme: Latest[Body]() for theme in (None, *THEMES)}

    @property
    def start(self) -> str:
        """Path of the page that everything begins with, below the prefix."""
        single = self._runs.single
        return "/" if single is None else self._address_of(single)

    def respond(self, request: Request) -> Response:
        """Answer a request."""
        if request.method not in ("GET", "HEAD"):
            answer = text(HTTPStatus.METHOD_NOT_ALLOWED, "this page is read-only", Allow="GET, HEAD")
        elif self._token is None and not is_this_machine(request.headers.get("host", "")):
            # The page of another site whose name was turned to this machine would be let in by the browser.
            answer = text(HTTPStatus.FORBIDDEN, "this page answers to 127.0.0.1, localhost and [::1]")
        else:
            answer = self._find(request)
        return Response(answer.status, answer.body, {**self._headers_of_all(), **answer.headers})

    def _headers_of_all(self) -> dict[str, str]:
        # Whoever has the token is let in, by whatever name the dashboard's machine has.
        return security_headers(ON_THIS_MACHINE if self._token is None else "*")

    def _find(self, request: Request) -> Response:
        try:
            target = urlsplit(request.target)
            segments = segments_of(target)
            query = query_of(target)
        except ValueError:
            return nothing_here()
        if self._token is not None:
            if segments[:1] == ("api",):  # what Ray asks says nothing of a run
                return self._health(segments, query)
            if segments[:1] != ("t",) or not is_same("".join(segments[1:2]), self._token):
                return nothing_here()
            segments = segments[2:] or ("",)
        return self._at(request, segments, query)

    def _at(self, request: Request, segments: Segments, query: Query) -> Response:
        theme = query.get("theme") if query.get("theme") in THEMES else None
        match segments:
            case [""]:
                return self._start(request, theme)
            case ["content"]:
                return self._index_body(theme, whole=False).response(request, MUST_ASK_AGAIN)
            case ["run", name, *rest]:
                run = self._runs.named(name)
                return nothing_here() if run is None else self._of_run(request, run, rest, query, theme)
            case ["assets", _, name]:
                return nothing_here() if name not in ASSETS else asset_body(name).response(request, KEPT)
            case ["card", kind, ""]:
                return self._card(kind, theme).response(request, NOT_KEPT)
            case ["d", *_]:
                return self._to(self._where_something_happens(), theme)
            case ["d-solo", *_]:
                return self._to(f"/card/{pages.CARDS.get(query.get('panelId', ''), 'other')}/", theme)
            case ["api", *_]:
                return self._health(segments, query)
            case _:
                return nothing_here()

    def _health(self, segments: Segments, query: Query) -> Response:
        match segments:
            case ["api", "health"]:
                return grafana.grafana_health()
            case ["api", "v1", "query"]:
                return grafana.prometheus_answer(query.get("query", ""))
            case _:
                return nothing_here()

    def _of_run(self, request: Request, run: WatchedRun, rest: Segments, query: Query, theme: str | None) -> Response:
        match rest:
            case []:
                return self._to(self._address_of(run), theme)
            case [""]:
                index = None if self._runs.single else f"../../{_kept(theme)}"
                return run.page(f"../../{assets_folder()}", theme, index).response(request, NOT_KEPT)
            case ["content"]:
                return run.content().response(request, MUST_ASK_AGAIN)
            case ["picture", *parts]:
                return self._picture(run, parts, query)
            case _:
                return nothing_here()

    def _picture(self, run: WatchedRun, parts: Segments, query: Query) -> Response:
        path = picture_file(run.folder, "/".join(parts))
        if path is None or query.get("side") not in (None, *SIDES):
            return nothing_here()
        found = self._thumbnails.get(path, SIDES.get(query.get("side", "")))
        if found is None:
            return nothing_here()
        kind, content = found
        kept = KEPT if "v" in query else NOT_KEPT
        return Response(HTTPStatus.OK, content, {"Content-Type": f"image/{kind}", "Cache-Control": kept})

    # --- pages of all runs

    def _start(self, request: Request, theme: str | None) -> Response:
        if self._runs.single is not None:
            return self._to(self.start, theme)
        return self._index_body(theme, whole=True).response(request, NOT_KEPT)

    def _index_body(self, theme: str | None, *, whole: bool) -> Body:
        cards = [run.card() for run in self._runs.all()]
        if whole:
            return self._index[theme].get(cards, lambda: Body.of_html(pages.index_page(cards, assets_folder(), theme)))
        return self._index_content[theme].get(cards, lambda: Body.of_html(pages.index_content(cards, theme)))

    def _card(self, kind: str, theme: str | None) -> Body:
        cards = [run.card() for run in self._runs.in_brief()]
        return Body.of_html(pages.card_page(kind, cards, f"../../{assets_folder()}", "../../", theme))

    def _where_something_happens(self) -> str:
        """The page of the run that goes on, or of the newest; where several go on, the page of all."""
        runs = self._runs.in_brief()
        return self._address_of(runs[0]) if len(runs) == 1 else "/"

    def _address_of(self, run: WatchedRun) -> str:
        return f"/run/{pages.address_part(run.name)}/"

    def _to(self, address: str, theme: str | None) -> Response:
        return elsewhere(f"{self.prefix}{address}{_kept(theme)}")


@cache
def asset_body(name: str) -> Body:
    """A script or style sheet."""
    return Body((pages.style() if name == "watch.css" else asset(name)).encode(), f"{ASSETS[name]}; charset=utf-8")


@cache
def assets_folder() -> str:
    """`assets/<version>`: another one when any of them has other content, as browsers keep them for good."""
    ours = [asset_body(name).digest for name in ASSETS if name != "plotly.min.js"]
    content = " ".join([*ours, version("plotly")])
    return f"assets/{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _kept(theme: str | None) -> str:
    return f"?theme={theme}" if theme else ""
