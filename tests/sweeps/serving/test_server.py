"""Laws of what a server takes: a body no longer than its site reads, and what comes after it as the next request.

pytest tests/sweeps/serving/test_server.py     a second
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from sweeps.serving.messages import Request, Response, text
from sweeps.serving.server import HOST, SiteServer


class Echo:
    """Says what it was sent."""

    max_body_bytes = 10

    def respond(self, request: Request) -> Response:
        """Method, path and body."""
        return text(200, f"<{request.method} {request.target} {request.body.decode('latin-1')}>")


@pytest.fixture
def server() -> Iterator[SiteServer]:
    """An echo at a free port."""
    opened = SiteServer(Echo(), HOST, 0, 0)
    opened.start()
    yield opened
    opened.close()


def raw(server: SiteServer, said: bytes) -> bytes:
    """Everything that comes back for these bytes until the server ends the connection."""
    with socket.create_connection((HOST, server.port), timeout=20) as connection:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_body_is_read_and_the_next_request_after_it(server: SiteServer) -> None:
    """Two on one connection, the first as long as may be."""
    first = b"POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n0123456789"
    answer = raw(server, first + b"GET /b HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"<POST /a 0123456789>" in answer
    assert b"<GET /b >" in answer


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 11\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: \xb2\r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_a_body_of_another_length_is_not_read_and_ends_the_connection(server: SiteServer, head: bytes) -> None:
    """What follows it is no request, whatever it looks like."""
    inner = b"GET /inner HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = raw(server, b"POST /a HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n" + inner)
    assert b"<POST /a >" in answer
    assert b"Connection: close" in answer
    assert answer.count(b"HTTP/1.1") == 1


def test_a_body_that_was_cut_short_is_none(server: SiteServer) -> None:
    """A sender that goes in its middle."""
    assert b"<POST /a >" in raw(server, b"POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n012")
