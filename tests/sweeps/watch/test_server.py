"""Laws of the live page's server, asked over real sockets; and of the verb that starts it.

pytest tests/sweeps/watch/test_server.py     some ten seconds
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from sweeps.serving import server as server_module
from sweeps.watch.server import PORT, PageServer, open_page
from tests.sweeps.command import Command
from tests.sweeps.fake_run import build_run
from training.errors import UserError

LOOPBACK = "127.0.0.1"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that no test changes."""
    return build_run(tmp_path_factory.mktemp("runs") / "ada", num_trials=2, images_per_prompt=1)


@pytest.fixture
def page(run_dir: Path) -> Iterator[PageServer]:
    """Its page, served at a free port."""
    server = open_page(run_dir, port=0)
    server.start()
    yield server
    server.close()


def get(server: PageServer, target: str, method: str = "GET", **headers: str) -> HTTPResponse:
    connection = HTTPConnection(LOOPBACK, server.port, timeout=20)
    connection.request(method, target, headers=headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def raw(server: PageServer, said: bytes) -> bytes:
    """Everything that comes back for these bytes until the server ends the connection."""
    with socket.create_connection((LOOPBACK, server.port), timeout=20) as connection:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_one_connection_serves_one_request_after_another(page: PageServer) -> None:
    """A page, its content, the word that nothing has changed, and a head without a body."""
    connection = HTTPConnection(LOOPBACK, page.port, timeout=20)
    connection.request("GET", "/run/ada/content")
    first = connection.getresponse()
    body, place = first.read(), connection.sock
    assert first.version == 11
    assert len(body) == int(first.headers["Content-Length"])
    connection.request("GET", "/run/ada/content", headers={"If-None-Match": first.headers["ETag"]})
    same = connection.getresponse()
    assert (same.status, same.read()) == (304, b"")
    connection.request("HEAD", "/run/ada/content")
    head = connection.getresponse()
    assert (head.status, head.headers["Content-Length"], head.read()) == (200, str(len(body)), b"")
    connection.request("GET", "/run/ada/")
    assert connection.getresponse().status == 200
    assert connection.sock is place
    connection.close()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_refused_and_what_follows_is_no_request(page: PageServer, method: str) -> None:
    """A body is not read as the next request."""
    inner = b"GET /run/ada/ HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = f"{method} /run/ada/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(inner)}\r\n\r\n".encode()
    said = raw(page, head + inner)
    assert said.startswith(b"HTTP/1.1 405 ")
    assert said.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET /run/ada/picture/trials/../../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /run/ada/picture/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /run/ada/picture/trials/base/images-0/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET //etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /run/ada/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (b"GET /run/ada/ HTTP/1.1\r\n\r\n", 403),
        (b"GET /run/ada/ HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
        (b"GET / HTTP/9\r\n\r\n", 400),
        (b"\x16\x03\x01 / HTTP/1.1\r\n\r\n", 501),
        (b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
    ],
)
def test_hostile_requests_get_a_status_and_no_more(page: PageServer, said: bytes, status: int) -> None:
    """Whatever comes, the answer names no file, and the server lives."""
    answer = raw(page, said)
    assert str(status).encode() in answer.split()[:2]
    assert b"root:" not in answer
    assert b"Traceback" not in answer
    assert get(page, "/run/ada/").status == 200


def test_a_run_that_grows_is_followed(tmp_path: Path) -> None:
    """By everybody who looks, side by side, without an error."""
    run_dir = build_run(tmp_path / "ada", num_trials=1, images_per_prompt=1)
    page = open_page(run_dir, port=0)
    page.start()
    statuses: list[int] = []
    looking = [threading.Thread(target=lambda: statuses.append(get(page, "/run/ada/content").status)) for _ in range(8)]
    for thread in looking:
        thread.start()
    build_run(run_dir, num_trials=3, images_per_prompt=1)
    for thread in looking:
        thread.join()
    assert statuses == [200] * 8
    page.close()


def test_silent_clients_hold_nobody_up(page: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection more than there may be ends the one that has been silent longest, half a request or not."""
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 4)
    silent = [socket.create_connection((LOOPBACK, page.port), timeout=20) for _ in range(8)]
    for connection in silent:
        connection.sendall(b"GET /run/ada/ HTTP/1.1\r\nX: ")
    assert get(page, "/run/ada/").status == 200
    assert silent[0].recv(1) == b"", "it was ended"
    for connection in silent:
        connection.close()


def test_silence_ends_a_connection(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a request keeps its thread for so long and no longer."""
    monkeypatch.setattr(server_module._Handler, "timeout", 0.05)
    page = open_page(run_dir, port=0)
    page.start()
    with socket.create_connection((LOOPBACK, page.port), timeout=20) as connection:
        connection.sendall(b"GET /run")
        assert connection.recv(1) == b""
    page.close()


def test_a_page_that_fails_leaves_the_server_alone(
    page: PageServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line to who asked, nothing in the terminal of who runs the sweep."""

    def fail(*_: object) -> None:
        raise RuntimeError("told")

    monkeypatch.setattr(page.site, "respond", fail)
    assert get(page, "/run/ada/").status == 500
    monkeypatch.undo()
    assert get(page, "/run/ada/").status == 200
    assert capfd.readouterr() == ("", "")


def test_beyond_this_machine_every_address_has_a_token(run_dir: Path) -> None:
    """Another one each time, and not short enough to be guessed."""
    pages = [open_page(run_dir, "0.0.0.0", 0) for _ in range(2)]  # noqa: S104 -- that is the point
    tokens = [re.fullmatch(r"http://[^/]+:\d+/t/([\w-]{32})", page.address) for page in pages]
    assert all(tokens)
    assert tokens[0] != tokens[1]
    page = pages[0]
    page.start()
    assert get(page, "/run/ada/").status == 404
    assert get(page, "/").status == 404
    assert get(page, page.page_address.partition(f":{page.port}")[2]).status == 200
    for page in pages:
        page.close()


def test_a_taken_port_is_passed_over_or_refused(run_dir: Path) -> None:
    """Where a port was named it is that one or none; else any free one serves as well."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((LOOPBACK, PORT))
            holder.listen()
        except OSError:
            pass  # somebody holds it already, which serves as well
        page = open_page(run_dir)
        assert page.port != PORT
        with pytest.raises(UserError, match=rf"--port {page.port} on 127\.0\.0\.1: .*in use"):
            open_page(run_dir, port=page.port)
        page.close()
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1"):
        open_page(run_dir, "192.0.2.1", 0)
    with pytest.raises(UserError, match="--host no such host"):
        open_page(run_dir, "no such host", 0)


def test_the_verb_serves_until_it_is_told_to_end(run_dir: Path) -> None:
    """It says the address, writes nothing else, and ends with 0."""
    call = "from sweeps.cli import main; main()"
    for number, watched, address in (
        (signal.SIGINT, run_dir, r"http://127\.0\.0\.1:\d+/run/ada/"),
        (signal.SIGTERM, run_dir.parent, r"http://127\.0\.0\.1:\d+/"),
    ):
        with subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", call, "watch", str(watched), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        ) as verb:
            assert verb.stdout is not None
            line = verb.stdout.readline()
            assert re.fullmatch(rf"watch     {address}  \(Ctrl-C ends it\)\n", line)
            connection = HTTPConnection(LOOPBACK, int(re.findall(r":(\d+)/", line)[0]), timeout=20)
            connection.request("GET", "/run/ada/")
            assert connection.getresponse().status == 200
            verb.send_signal(number)
            out, err = verb.communicate(timeout=60)
            connection.close()
            assert (verb.returncode, out, err) == (0, "", "")


def test_the_verb_refuses_what_it_cannot_watch(dreamsweep: Command, run_dir: Path, tmp_path: Path) -> None:
    """A folder that is not there, a port that is taken: exit 2 and one line."""
    outcome = dreamsweep("watch", tmp_path / "nowhere")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "nowhere" in outcome.err
    with socket.create_server((LOOPBACK, 0)) as holder:
        outcome = dreamsweep("watch", run_dir, "--port", holder.getsockname()[1])
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "in use" in outcome.err
