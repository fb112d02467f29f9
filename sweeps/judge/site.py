"""What is at which address of the judge's page: from a request to its answer, without a socket.

    /t/<token>/                            the page
    /t/<token>/content                     what stands in its `<main>`: a question, or the result
    /t/<token>/picture/<question>/<side>   a picture of the question that is shown, written anew
    /t/<token>/answer                      POST: an answer; what comes back is the content after it
    /t/<token>/assets/<file>               scripts and styles

Until the result is asked for, nothing that is sent says whose pictures they are. A page of another site cannot vote: it
knows no address, and a vote has the token in a header besides, which a browser lets no other site set.
"""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from sweeps.judge.session import Answer, Session
from sweeps.report.page import asset, templates_of
from sweeps.serving.addresses import Segments, is_same, is_this_machine, segments_of
from sweeps.serving.messages import (
    MUST_ASK_AGAIN,
    NOT_KEPT,
    Body,
    Request,
    Response,
    nothing_here,
    security_headers,
    text,
)

TOKEN_HEADER = "X-Dreamsweep-Token"  # noqa: S105 -- its name
ASSETS = {"page.css": "text/css", "judge.css": "text/css", "judge.js": "text/javascript"}


class Reply(BaseModel):
    """What the page sends."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    """The id of the question that was shown; empty after the last."""
    answer: Answer


class Site:
    """The addresses of a server.

    Args:
        session: what is asked and answered.
        token: what an address must begin with, `/t/<token>`, and an answer must have in its header.
    """

    max_body_bytes = 1000

    def __init__(self, session: Session, token: str) -> None:
        self._session, self._token = session, token
        self.prefix = f"/t/{token}"

    def respond(self, request: Request) -> Response:
        """Answer a request."""
        if is_this_machine(request.headers.get("host", "")):
            answer = self._find(request)
        else:
            # The page of another site whose name was turned to this machine would be let in by the browser.
            answer = text(HTTPStatus.FORBIDDEN, "this page answers to 127.0.0.1, localhost and [::1]")
        return Response(answer.status, answer.body, {**security_headers("'none'"), **answer.headers})

    def _find(self, request: Request) -> Response:
        try:
            start, token, *rest = segments_of(urlsplit(request.target))
        except ValueError:
            return nothing_here()
        if start != "t" or not is_same(token, self._token):
            return nothing_here()
        if rest == ["answer"]:
            return self._answered(request)
        if request.method not in ("GET", "HEAD"):
            return text(HTTPStatus.METHOD_NOT_ALLOWED, "this address is read-only", Allow="GET, HEAD")
        return self._read(request, rest)

    def _read(self, request: Request, segments: Segments) -> Response:
        match segments:
            case [""]:
                return Body.of_html(self._rendered("page.html.j2")).response(request, NOT_KEPT)
            case ["content"]:
                return self._content(request)
            case ["picture", question, side]:
                return self._picture(question, side)
            case ["assets", name] if name in ASSETS:
                return _asset(name).response(request, MUST_ASK_AGAIN)
            case _:
                return nothing_here()

    def _picture(self, question: str, side: str) -> Response:
        asked = self._session.asked
        if asked is None or asked.question.id != question or side not in ("left", "right"):
            return nothing_here()
        headers = {"Content-Type": f"image/{asked.kind}", "Cache-Control": NOT_KEPT}
        return Response(HTTPStatus.OK, asked.left if side == "left" else asked.right, headers)

    def _answered(self, request: Request) -> Response:
        if request.method != "POST":
            return text(HTTPStatus.METHOD_NOT_ALLOWED, "an answer is posted", Allow="POST")
        if not is_same(request.headers.get(TOKEN_HEADER.lower(), ""), self._token):
            return text(HTTPStatus.FORBIDDEN, f"an answer has the token of the page in its header {TOKEN_HEADER}")
        try:
            reply = Reply.model_validate_json(request.body)
        except ValidationError:
            return text(HTTPStatus.BAD_REQUEST, "this is no answer to a question")
        self._session.answer(reply.question, reply.answer)
        return self._content(request)

    def _content(self, request: Request) -> Response:
        return Body.of_html(self._rendered("content.html.j2")).response(request, NOT_KEPT)

    def _rendered(self, template: str) -> str:
        asked = self._session.asked
        outcome = self._session.outcome() if asked is None else None
        return (
            templates_of("sweeps.judge")
            .get_template(template)
            .render(name=self._session.name, token=self._token, asked=asked, outcome=outcome)
        )


@cache
def _asset(name: str) -> Body:
    own = Path(__file__).parent / "templates" / name
    content = own.read_text(encoding="utf-8") if own.is_file() else asset(name)
    return Body(content.encode(), f"{ASSETS[name]}; charset=utf-8")
