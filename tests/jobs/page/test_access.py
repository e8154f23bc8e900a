"""Who is answered by the page: tokens, addresses that are valid once, connections of strangers."""

import http.client
import json
import resource
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from jobs import prompt
from jobs.page import connections
from jobs.page.server import Server
from jobs.page.session import Session
from tests.jobs.page.test_server import ask

HEADERS = ("Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy")


@pytest.fixture
def server(session):
    found = Server(session, "127.0.0.1", 0)
    yield found
    found.stop()
    found.wait()


@pytest.mark.parametrize(
    ("path", "token", "headers", "expected"),
    [
        ("/api/project", True, {}, 200),
        ("/api/project", False, {}, 403),
        ("/api/project", True, {"Host": "evil.example"}, 403),
        ("/api/project", True, {"Origin": "http://evil.example"}, 403),
        ("/page/none.js", True, {}, 404),
        ("/none", True, {}, 404),
        ("/none", False, {}, 403),
        ("/api/video?id=none", True, {}, 404),
    ],
)
def test_every_answer_has_the_headers_that_protect_the_page(server, path, token, headers, expected):
    status, _, found = ask(server, path, token=token, **headers)
    assert status == expected
    assert [name for name in HEADERS if name not in found] == []
    assert found["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("name", ["Host", "Origin", "Cookie"])
def test_headers_that_are_no_text_are_refused(server, name):
    """They cannot be written in UTF-8, which an answer that repeats them is in."""
    given = {"Host": f"127.0.0.1:{server.port}"} | {name: b"\xff\xe9"}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("GET", "/", skip_host=True)
    for key, value in given.items():
        connection.putheader(key, value)
    connection.endheaders()
    assert connection.getresponse().status == 403


def test_the_address_for_the_browser_is_valid_once_and_has_not_the_token(
    server, monkeypatch, tmp_path
):
    """The command line of a browser can be read by every user of a machine."""
    opened = []
    monkeypatch.setattr(prompt.webbrowser, "open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    prompt.show(prompt.PromptConfig(videos="v", out=str(tmp_path / "m.csv")), server)
    (address,) = opened
    assert server.token not in address
    path = address.removeprefix(f"http://127.0.0.1:{server.port}")
    assert ask(server, path.replace("/?", "/api/project?"), token=False)[0] == 403
    assert ask(server, path, "HEAD", token=False)[0] == 403
    status, _, headers = ask(server, path, token=False)
    assert (status, headers["Location"]) == (303, "/")
    cookie = headers["Set-Cookie"].partition(";")[0]
    assert ask(server, "/api/project", token=False, Cookie=cookie)[0] == 200
    status, body, _ = ask(server, path, token=False)
    assert (status, b"was used already" in body) == (403, True)
    assert ask(server, "/?once=None", token=False)[0] == 403
    assert ask(server, "/?once=", token=False)[0] == 403


def test_half_open_requests_are_closed_and_the_page_is_not(server, monkeypatch):
    monkeypatch.setattr(connections, "SECONDS", 0.3)
    page = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    page.request("GET", f"/api/project?token={server.token}")
    page.getresponse().read()
    with ExitStack() as stack:
        begun = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            for _ in range(3)
        ]
        for number, connection in enumerate(begun):
            connection.settimeout(10)
            connection.sendall(b"GET / HTTP/1.1\r\nHost:"[: number * 20])
        assert [_read(connection) for connection in begun] == [b""] * 3
        # A request without a token is answered, but does not keep its connection.
        other = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        other.settimeout(10)
        other.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert other.recv(1 << 16).startswith(b"HTTP/1.1 403")
        assert _read(other) == b""
    page.request("GET", "/api/rows?id=a&token=" + server.token)
    assert page.getresponse().status == 200


def _read(connection):
    try:
        return connection.recv(1 << 16)
    except ConnectionResetError:
        return b""


def test_a_preview_is_given_up_when_the_page_drops_its_request(session, monkeypatch):
    asked, given_up = threading.Event(), threading.Event()

    def preview(session, video_id, index, version, objects, gone):
        asked.set()
        assert gone.wait(20)
        given_up.set()

    monkeypatch.setattr(Session, "preview", preview)
    server = Server(session, "127.0.0.1", 0)
    try:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        body = json.dumps({"id": "a", "index": 0, "version": "1", "objects": []})
        connection.request("POST", f"/api/preview?token={server.token}", body)
        assert asked.wait(20)
        connection.close()
        assert given_up.wait(20)
    finally:
        server.stop()
        server.wait()


FLOOD = """
import socket, sys
strangers = []
for _ in range(400):
    stranger = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20)
    stranger.setblocking(False)
    try:
        stranger.send(b"GET / HTTP/1.1\\r\\nHost: 127.0.0.1")
    except OSError:
        pass  # closed already
    strangers.append(stranger)
    if len(strangers) % 100 == 0:
        print("open", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on open files")
def test_saves_go_on_while_a_stranger_opens_connections(server, capfd):
    """With room for 100 more files, and 400 connections that send half of a request."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    flood = subprocess.Popen(
        [sys.executable, "-c", FLOOD, str(server.port)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 100, limits[1]))
    try:
        for number in range(4):
            assert flood.stdout.readline() == "open\n"
            _save(server, number)
            flood.stdin.write("\n")
            flood.stdin.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        flood.communicate(timeout=30)
    assert [row["x"] for row in server.session.store.rows("a")] == [0, 1, 2, 3]
    assert capfd.readouterr().err == ""


def _save(server, number):
    """Add a click; a request whose connection was closed is sent again, as browsers do."""

    def ask_again(*request):
        for _ in range(5):
            with suppress(ConnectionError, http.client.BadStatusLine):
                return ask(server, *request)
            time.sleep(0.1)
        raise AssertionError("no answer")

    rows = json.loads(ask_again("/api/rows?id=a")[1])
    present = [{"row": row["row"]} for row in rows["rows"]]
    click = {"object_id": 1, "frame": 0, "x": number, "y": 4}
    body = {"id": "a", "revision": rows["revision"], "rows": [*present, click]}
    status, answer, _ = ask_again("/api/rows", "PUT", body)
    assert status == 200, answer
