"""What is asked over HTTP and what is answered, without a socket."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import Any

MUST_ASK_AGAIN = "private, no-cache"
NOT_KEPT = "no-store"
KEPT = "private, max-age=31536000, immutable"
"""For what has another address as soon as it has other content."""


@dataclass(frozen=True)
class Request:
    """One request."""

    method: str
    target: str
    """Path and query, as they were asked for."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """By their names in lower case."""
    body: bytes = b""
    """Empty where it was longer than the site takes."""

    @property
    def takes_gzip(self) -> bool:
        """Whether the answer may be compressed."""
        for coding in self.headers.get("accept-encoding", "").lower().split(","):
            name, _, quality = coding.partition(";")
            if name.strip() == "gzip":
                return quality.replace(" ", "").rstrip("0.") != "q="
        return False

    def has(self, etag: str) -> bool:
        """Whether the asker has this version already."""
        known = self.headers.get("if-none-match", "").split(",")
        return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in known)


@dataclass(frozen=True)
class Response:
    """One answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Body:
    """Content that is sent again and again: hashed and compressed once.

    Args:
        content: its bytes.
        kind: its media type.
    """

    def __init__(self, content: bytes, kind: str) -> None:
        self.content, self.kind = content, kind

    @classmethod
    def of_html(cls, html: str) -> Body:
        """A page or a part of one; what no UTF-8 can hold (a name of other bytes) is written as an escape."""
        return cls(html.encode("utf-8", "backslashreplace"), "text/html; charset=utf-8")

    @cached_property
    def digest(self) -> str:
        """What no other content has."""
        return hashlib.sha256(self.content).hexdigest()[:32]

    @cached_property
    def _compressed(self) -> bytes:
        return gzip.compress(self.content, compresslevel=6, mtime=0)

    def response(self, request: Request, cache_control: str, **headers: str) -> Response:
        """All of it, or that the asker has it already."""
        compressed = request.takes_gzip
        etag = f'"{self.digest}-gzip"' if compressed else f'"{self.digest}"'
        headers = {"Cache-Control": cache_control, "Vary": "Accept-Encoding", **headers}
        if cache_control != NOT_KEPT:
            headers["ETag"] = etag
            if request.has(f'"{self.digest}-gzip"') or request.has(f'"{self.digest}"'):
                return Response(HTTPStatus.NOT_MODIFIED, headers=headers)
        headers["Content-Type"] = self.kind
        if compressed:
            headers["Content-Encoding"] = "gzip"
        return Response(HTTPStatus.OK, self._compressed if compressed else self.content, headers)


def text(status: int, said: str, **headers: str) -> Response:
    """A line for people."""
    kind = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": NOT_KEPT}
    return Response(status, f"{said}\n".encode("utf-8", "backslashreplace"), {**kind, **headers})


def as_json(value: Any) -> Response:
    """A value for programs."""
    headers = {"Content-Type": "application/json", "Cache-Control": NOT_KEPT}
    return Response(HTTPStatus.OK, json.dumps(value).encode(), headers)


def nothing_here() -> Response:
    """One answer to all that is not there, so that it gives no hint of what is."""
    return text(HTTPStatus.NOT_FOUND, "there is nothing here")


def elsewhere(address: str) -> Response:
    """Go there instead, this time."""
    return Response(HTTPStatus.FOUND, headers={"Location": address, "Cache-Control": NOT_KEPT})


def security_headers(frame_ancestors: str) -> dict[str, str]:
    """Of every answer: a page runs its server's own scripts, talks to its server alone, and no other site reads it.

    Args:
        frame_ancestors: whose frames may show it, as a content security policy says it.
    """
    return {
        "Content-Security-Policy": "default-src 'none'; img-src 'self' data: blob:; style-src 'self' "
        "'unsafe-inline'; script-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors {frame_ancestors}",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
