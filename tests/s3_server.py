"""An S3 server on this machine for tests: moto's, which keeps objects in memory, with a log of who asked for what.

Who asked is told by the access key: a test gives every machine its own. Nothing checks the keys; what a machine may not
do, and what goes wrong on the way, is the test's to say (`S3Server.weather`).
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NoReturn
from wsgiref.types import StartResponse, WSGIEnvironment

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

CREDENTIAL = re.compile(r"Credential=([^/]+)/")
Weather = Literal["fine", "internal error", "slow down", "denied", "reset", "lost", "cut"]
"""How the connection may break: `reset` with half of the request read, `lost` when it has been carried out and before
it is answered, `cut` with half of the answer sent."""
ERRORS = {
    "internal error": ("500 Internal Server Error", "InternalError"),
    "slow down": ("503 Slow Down", "SlowDown"),
    "denied": ("403 Forbidden", "AccessDenied"),
}


@dataclass
class Request:
    """A line of the access log."""

    who: str
    """The access key; empty where the request is not signed."""
    method: str
    path: str
    """`/bucket/key`, as it is, not quoted."""
    query: str
    acl: str | None
    """What the request asks to open the object to; None where it does not."""
    received: int
    """Bytes of its body."""
    sent: int = 0
    """Bytes of the answer's body."""
    status: int = 0
    """0 where the connection was broken."""


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002 -- werkzeug's name
        """The log is the server's own."""


class S3Server:
    """A server at a free port of 127.0.0.1, once it is started."""

    def __init__(self) -> None:
        self.log: list[Request] = []
        self.weather: Callable[[Request], Weather] = lambda _: "fine"
        """Asked for every request before it is carried out."""
        self._port = 0
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server: BaseWSGIServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def endpoint(self) -> str:
        """As `AWS_ENDPOINT_URL` wants it."""
        return f"http://127.0.0.1:{self._port}"

    def environment(self, who: str) -> dict[str, str]:
        """What a machine's environment says of the storage."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": who,
            "AWS_SECRET_ACCESS_KEY": "secret-of-" + who,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/nonexistent",  # nor is anything read of whoever runs the tests
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, who: str = "tester") -> Any:
        """Amazon's own client, which knows nothing of fsspec's caches."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=who,
            aws_secret_access_key="secret",  # noqa: S106 -- nothing checks it
            region_name="us-east-1",
        )

    def start(self) -> None:
        """Answer; the objects of before are still there."""
        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True, request_handler=_Quiet)
        self._server.daemon_threads = True  # type: ignore[attr-defined]
        self._port = self._server.port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nobody listens any more."""
        assert self._server is not None
        assert self._thread is not None
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def new_storage(self, prefix: str = "sweeps") -> str:
        """Address of a place in a bucket of its own."""
        bucket = f"test-{uuid.uuid4().hex}"
        self.client().create_bucket(Bucket=bucket)
        return f"s3://{bucket}/{prefix}"

    def asked(self, **like: str) -> list[Request]:
        """Requests so far whose attributes hold these texts."""
        return [entry for entry in list(self.log) if all(text in getattr(entry, name) for name, text in like.items())]

    @contextmanager
    def under(self, weather: Callable[[Request], Weather]) -> Iterator[None]:
        """While this lasts, that is the weather."""
        before, self.weather = self.weather, weather
        try:
            yield
        finally:
            self.weather = before

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        entry = _entry_of(environ)
        weather = self.weather(entry)
        self.log.append(entry)
        if weather in ERRORS:
            environ["wsgi.input"].read(entry.received)
            line, code = ERRORS[weather]
            entry.status = int(line[:3])
            start_response(line, [("Content-Type", "application/xml")])
            said = f"<Error><Code>{code}</Code><Message>as the test says</Message></Error>"
            return [] if entry.method == "HEAD" else [said.encode()]
        if weather == "reset":
            environ["wsgi.input"].read(entry.received // 2)
            _break(environ)

        def begin(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            entry.status = int(status[:3])
            return start_response(status, headers, exc_info)

        answer = b"".join(self._app(environ, begin))
        entry.sent = len(answer)
        if weather == "lost":
            _break(environ)
        return _cut(environ, answer) if weather == "cut" else [answer]


def _entry_of(environ: Mapping[str, Any]) -> Request:
    credential = CREDENTIAL.search(environ.get("HTTP_AUTHORIZATION", ""))
    return Request(
        who=credential[1] if credential else "",
        method=environ["REQUEST_METHOD"],
        path=environ["PATH_INFO"].encode("latin-1").decode(),
        query=environ.get("QUERY_STRING", ""),
        acl=environ.get("HTTP_X_AMZ_ACL"),
        received=int(environ.get("CONTENT_LENGTH") or 0),
    )


def _cut(environ: WSGIEnvironment, answer: bytes) -> Iterator[bytes]:
    yield answer[: len(answer) // 2]
    _break(environ)


def _break(environ: WSGIEnvironment) -> NoReturn:
    connection: socket.socket = environ["werkzeug.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
    connection.shutdown(socket.SHUT_RD)
    connection.close()
    raise ConnectionResetError  # which werkzeug takes for a client that has gone
