"""A server for pages: sockets and threads around a site, which says what is at which address."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections import OrderedDict
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Protocol

from sweeps.serving.messages import Request, Response, text
from sweeps.wording import failure_text
from training.errors import UserError

HOST = "127.0.0.1"
SECONDS_OF_SILENCE = 30.0
"""After which a connection ends, within a request or between two."""
MAX_CONNECTIONS = 64
"""One more ends the one that has been silent longest: a slow client holds nobody up."""
BYTES_AT_ONCE = 64_000
EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 -- names of it

logger = logging.getLogger(__name__)


class Site(Protocol):
    """What is at which address."""

    @property
    def max_body_bytes(self) -> int:
        """Of a request's body, all of which must lie within; a longer one is not read. 0 for a site that only reads."""

    def respond(self, request: Request) -> Response:
        """Answer a request; called by many threads."""


class SiteServer:
    """A site that is listened for; `start` lets it answer.

    Args:
        site: what answers.
        host: the address of this machine that it listens at.
        port: None is `usual_port`, or a free one where that is taken; 0 is a free one.
        usual_port: of this kind of site.

    Raises:
        UserError: it cannot listen there.
    """

    def __init__(self, site: Site, host: str, port: int | None, usual_port: int) -> None:
        self._server = _listen(host, port, usual_port, site)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="pages", daemon=True
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    @property
    def root(self) -> str:
        """Of the server, without a slash at its end."""
        host = str(self._server.server_address[0])
        name = socket.gethostname() if host in EVERY_ADDRESS else f"[{host}]" if ":" in host else host
        return f"http://{name}:{self.port}"

    def start(self) -> None:
        """Answer, in threads that end with the process."""
        self._thread.start()

    def close(self) -> None:
        """Answer no more, not on a connection that is open either, and let go of the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._server.hang_up()


class _Server(ThreadingHTTPServer):
    """A bounded number of connections, a thread each."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, where: tuple[socket.AddressFamily, str], port: int, site: Site) -> None:
        self.site = site
        self.address_family = where[0]
        self._connections: OrderedDict[socket.socket, None] = OrderedDict()
        """The one that has been silent longest is first."""
        self._connections_lock = threading.Lock()
        super().__init__((where[1], port), _Handler)

    def server_bind(self) -> None:
        """Without looking up the machine's name, which takes seconds where no name server answers."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "dreamsweep", int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Let the newest connection in, and end the one that has been silent longest where there are too many."""
        with self._connections_lock:
            self._connections[request] = None
            if len(self._connections) > MAX_CONNECTIONS:
                silent, _ = self._connections.popitem(last=False)
                with suppress(OSError):
                    silent.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def heard_from(self, connection: socket.socket) -> None:
        """It has asked and taken its answer."""
        with self._connections_lock:
            if connection in self._connections:
                self._connections.move_to_end(connection)

    def hang_up(self) -> None:
        """End all connections."""
        with self._connections_lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """The connection has ended."""
        with self._connections_lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, *_: Any) -> None:
        """Of a connection, mostly one that was cut: nobody's terminal is written into."""
        logger.debug("a connection ended early", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 around the site."""

    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "dreamsweep", ""
    timeout = SECONDS_OF_SILENCE
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def do_GET(self) -> None:
        """Answer, whatever the method: the site says which it takes."""
        body = self._body()
        if body is None:
            self.close_connection = True  # what follows is no request
        if len(self.headers.get_all("Host", [])) > 1:
            self._send(text(HTTPStatus.BAD_REQUEST, "one Host header is enough"))
        else:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self._send(self._answer(Request(self.command, self.path, headers, body or b"")))
        self.server.heard_from(self.connection)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = do_GET  # noqa: N815

    def _body(self) -> bytes | None:
        """What comes with the request; None where that is longer than the site takes, or its length is not plain."""
        lengths = self.headers.get_all("Content-Length", ["0"])
        length = lengths[0].strip()
        if "Transfer-Encoding" in self.headers or len(lengths) > 1 or not (length.isascii() and length.isdecimal()):
            return None
        if len(length) > 9 or int(length) > self.server.site.max_body_bytes:
            return None
        body = self.rfile.read(int(length))
        return body if len(body) == int(length) else None

    def _answer(self, request: Request) -> Response:
        try:
            return self.server.site.respond(request)
        except Exception as error:  # the outermost edge: a page that fails leaves the server and the sweep alone
            logger.debug("a page failed", exc_info=True)  # its address is not said: it may have the token in it
            return text(HTTPStatus.INTERNAL_SERVER_ERROR, f"this page failed: {failure_text(error)}")

    def _send(self, answer: Response) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            for start in range(0, len(answer.body), BYTES_AT_ONCE):  # each in its own time: a slow line is no silence
                self.wfile.write(answer.body[start : start + BYTES_AT_ONCE])

    def log_message(self, *_: Any) -> None:
        """Nowhere: addresses may have the token in them."""


def resolved(host: str) -> tuple[socket.AddressFamily, str]:
    """The address that a name stands for, and its family.

    Raises:
        UserError: it stands for none.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: must be an address of this machine: {failure_text(error)}") from None
    return family, str(address[0])


def _listen(host: str, port: int | None, usual_port: int, site: Site) -> _Server:
    wanted = usual_port if port is None else port
    try:
        return _Server(resolved(host), wanted, site)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        if port is None and number == errno.EADDRINUSE:
            return _listen(host, 0, usual_port, site)
        if number == errno.EADDRNOTAVAIL:
            raise UserError(f"--host {host}: must be an address of this machine") from None
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--port {wanted} on {host}: cannot be listened at: {reason}") from None
