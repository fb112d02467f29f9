"""The live page's server: sockets and threads around a `Site`."""

from __future__ import annotations

import errno
import logging
import secrets
import socket
import threading
from collections import OrderedDict
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from sweeps.watch.messages import Request, Response, text
from sweeps.watch.runs import Runs
from sweeps.watch.site import Site
from sweeps.wording import failure_text
from training.errors import UserError

HOST = "127.0.0.1"
PORT = 8266
"""Beside that of Ray's dashboard."""
SECONDS_OF_SILENCE = 30.0
"""After which a connection ends, within a request or between two."""
MAX_CONNECTIONS = 64
"""One more ends the one that has been silent longest: a slow client holds nobody up."""
BYTES_AT_ONCE = 64_000
EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 -- names of it

logger = logging.getLogger(__name__)


class PageServer:
    """A live page that is listened for; `start` lets it answer.

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
        where = _resolved(host)
        token = None if for_anybody and ip_address(where[1]).is_loopback else secrets.token_urlsafe(24)
        self.runs, self.site = runs, Site(runs, token)
        self._server = _listen(where, host, port, self.site)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="live page", daemon=True
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    @property
    def root(self) -> str:
        """Of the server, without a slash at its end; whether it is well can be asked there without the token."""
        host = str(self._server.server_address[0])
        name = socket.gethostname() if host in EVERY_ADDRESS else f"[{host}]" if ":" in host else host
        return f"http://{name}:{self.port}"

    @property
    def address(self) -> str:
        """What all addresses of pages begin with, the token included."""
        return f"{self.root}{self.site.prefix}"

    @property
    def page_address(self) -> str:
        """Of the run's page, or of the page of all runs."""
        return f"{self.address}{self.site.start}"

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
        if self.headers.get("Content-Length", "0").strip() != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # what follows is no request
        request = Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        if len(self.headers.get_all("Host", [])) > 1:
            self._send(text(HTTPStatus.BAD_REQUEST, "one Host header is enough"))
        else:
            self._send(self._answer(request))
        self.server.heard_from(self.connection)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = do_GET  # noqa: N815

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


def _resolved(host: str) -> tuple[socket.AddressFamily, str]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: must be an address of this machine: {failure_text(error)}") from None
    return family, str(address[0])


def _listen(where: tuple[socket.AddressFamily, str], host: str, port: int | None, site: Site) -> _Server:
    try:
        return _Server(where, PORT if port is None else port, site)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        if port is None and number == errno.EADDRINUSE:
            return _listen(where, host, 0, site)
        if number == errno.EADDRNOTAVAIL:
            raise UserError(f"--host {host}: must be an address of this machine") from None
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--port {PORT if port is None else port} on {host}: cannot be listened at: {reason}") from None


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
