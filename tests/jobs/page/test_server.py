"""The server of `jobs.prompt`: requests, paths, ports, and how the job begins and ends."""

import http.client
import json
import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from jobs import prompt
from jobs.page.server import Server
from jobs.run.config import ConfigError
from masking.tracking.masking import mask_video
from tests.moving import segmenter


@pytest.fixture
def server(session):
    found = Server(session, "127.0.0.1", 0)
    yield found
    found.stop()
    found.wait()


def ask(server, path, method="GET", body=None, token=True, raw=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    if token:
        path += ("&" if "?" in path else "?") + f"token={server.token}"
    content = raw if body is None else json.dumps(body)
    given = {"Host": f"127.0.0.1:{server.port}"} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    connection.request(method, path, content, given)
    response = connection.getresponse()
    return response.status, response.read(), response.headers


def test_who_is_answered(server):
    project = "/api/project"
    own = f"http://127.0.0.1:{server.port}"
    assert ask(server, project)[0] == 200
    assert ask(server, project, Origin=own)[0] == 200
    assert ask(server, project, Host="localhost:9999")[0] == 200  # an SSH tunnel
    assert ask(server, project, token=False)[0] == 403
    assert ask(server, project + "?token=guess", token=False)[0] == 403
    assert ask(server, project, Host="evil.example")[0] == 403
    assert ask(server, project, Host=f"evil.example:{server.port}")[0] == 403
    assert ask(server, project, Host="192.168.0.7")[0] == 403
    assert ask(server, project, Origin="http://evil.example")[0] == 403
    assert ask(server, project, Origin="null")[0] == 403
    assert ask(server, project, Origin="http://127.0.0.1:1")[0] == 403
    status, _, headers = ask(server, "/")
    assert status == 303
    assert headers["Location"] == "/"
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie  # the address may be followed from a notebook
    status, page, headers = ask(server, "/", token=False, Cookie=cookie.partition(";")[0])
    assert status == 200
    assert b"/page/app.js" in page
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert b"http://" not in page.replace(b"http://www.w3.org", b"")  # nothing from elsewhere


@pytest.mark.parametrize(
    "path",
    ["/page/../prompt.py", "/page/..%2fprompt.py", "/page/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
     "/../../etc/passwd", "/page/", "/etc/passwd"],
)  # fmt: skip
def test_no_path_leads_out(server, path):
    assert ask(server, path)[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("GET", "/api/video?id=../../etc/passwd", None, 404, "there is no video"),
        ("GET", "/api/frame?id=a&index=99&version={version}", None, 422, "a.mp4 has no frame"),
        ("GET", "/api/frame?id=a&index=-1&version={version}", None, 422, "a.mp4 has no frame"),
        ("GET", "/api/frame?id=a&index=one", None, 400, "expected a whole number"),
        ("GET", "/api/frame?id=a&index=1", None, 400, "version is missing"),
        ("GET", "/api/frame?id=a&index=1&version=1-2", None, 410, "the file was replaced"),
        ("GET", "/api/frame?id=a", None, 400, "index is missing"),
        ("PUT", "/api/rows", {"id": "a", "revision": "0", "rows": []}, 409, "another tab"),
        ("PUT", "/api/rows", {"id": "a", "revision": "0", "rows": 1}, 400, "expected a list"),
        ("PUT", "/api/rows", {"id": "a"}, 400, "revision is missing"),
        ("PUT", "/api/rows", {"id": ["a"], "revision": "0", "rows": []}, 400, "expected text"),
        ("PUT", "/api/rows", [], 400, "expected a JSON object"),
        ("PUT", "/api/rows", {"id": "a", "revision": "0", "rows": ["x"]}, 400, "by name of column"),
        ("PUT", "/api/rows", {"id": "a", "revision": "0", "rows": [{"row": ""}]}, 400, "row is ''"),
        ("POST", "/api/undo", {"id": "a", "revision": "0", "redo": 1}, 400, "true or false"),
        ("POST", "/api/track", {"id": "a", "frame": True, "count": 1}, 400, "frame is True"),
        ("POST", "/api/track", {"id": "a", "frame": 0, "count": -1}, 400, "nothing to track"),
        ("POST", "/api/track", {"id": "a", "frame": 10**30, "count": 1}, 400, "a whole number"),
        ("GET", "/api/timestamps?id=a&start=-1", None, 400, "the number of a frame, from 0"),
        ("GET", "/api/track?id=x&since=0", None, 404, "there is no video"),
        ("POST", "/api/track", {"id": "a", "frame": 0, "count": 5}, 400, "click on an object"),
    ],
)
def test_bad_requests_are_told_why(server, session, method, path, body, status, message):
    path = path.format(version=session.state("a")["version"])
    found, content, _ = ask(server, path, method, body)
    assert (found, message in json.loads(content)["error"]) == (status, True), content


PREVIEW = b'{"id": "a", "index": 0, "version": "{version}", "objects": [{objects}]}'


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"id": "a", "index": Infinity, "version": "1"}', "Infinity' is not a finite number"),
        (b'{"id": "a", "index": 1e999, "version": "1"}', "'1e999' is not a finite number"),
        (b"[" * 100_000, "nested too deeply"),
        *((b'{"id":' + b"[" * deep + b"]" * deep + b"}", "") for deep in range(900, 1000, 3)),
        (b'{"id": "\xff"}', "no JSON in UTF-8"),
        (b'{"id": "\\ud800"}', "id is '\\ud800'; expected text that UTF-8 can encode"),
        (b'{"id": "a", ', "no JSON in UTF-8"),
        (PREVIEW.replace(b"{objects}", b"7"), "7 is no object with object_id, clicks"),
        (PREVIEW.replace(b"{objects}", b'{"object_id": 1}'), "clicks is missing"),
        (PREVIEW.replace(b"{objects}", b'{"object_id": "1", "clicks": []}'), "object_id is '1'"),
        (PREVIEW.replace(b"{objects}", b'{"object_id": 1, "clicks": [{"x": []}]}'), "x is []"),
        (
            PREVIEW.replace(b"{objects}", b'{"object_id": 1, "clicks": [{"x":1,"y":2,"label":7}]}'),
            "label is 7; expected 1 or 0",
        ),
    ],
)
def test_json_that_is_odd_is_told_why(server, session, body, message):
    body = body.replace(b"{version}", session.state("a")["version"].encode())
    status, content, _ = ask(server, "/api/preview", "POST", raw=body)
    assert (status, message in json.loads(content)["error"]) == (400, True), content


def test_json_of_another_charset_is_refused(server):
    kind = "application/json; charset=klingon"
    status, content, _ = ask(server, "/api/preview", "POST", {"id": "a"}, Content_Type=kind)
    assert (status, b"klingon" in content) == (400, True)


def test_a_save_over_http_is_on_disk(server, session):
    rows = json.loads(ask(server, "/api/rows?id=a")[1])
    click = {"object_id": 1, "frame": 2, "x": 3, "y": 4, "label": 1}
    body = {"id": "a", "revision": rows["revision"], "rows": [click]}
    status, content, _ = ask(server, "/api/rows", "PUT", body)
    assert status == 200
    assert json.loads(content)["rows"][0]["x"] == 3
    assert session.store.path.read_text().splitlines()[1].split(",")[1:] == [
        "a", "1", "", "2", "3", "4", "1",
    ]  # fmt: skip
    assert ask(server, "/api/rows", "PUT", body)[0] == 409
    version = session.state("a")["version"]
    status, content, headers = ask(server, f"/api/frame?id=a&index=2&version={version}")
    assert (status, headers["Content-Type"], content[:2]) == (200, "image/jpeg", b"\xff\xd8")
    status, _, headers = ask(server, "/api/thumbnail?id=b")
    assert (status, headers["Cache-Control"]) == (200, "no-cache")  # its address has no version


def test_a_port_that_is_taken_is_said(server, session):
    with pytest.raises(ConfigError, match=f"--port {server.port} is in use"):
        Server(session, "127.0.0.1", server.port)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["{videos}", "--out", "{tmp}/m.txt"], "the name of a manifest must end in .csv"),
        (["{tmp}/empty", "--out", "{tmp}/m.csv"], "does not exist; expected videos"),
        (["{tmp}/bad.csv", "--out", "{tmp}/m.csv"], "has 2 faults"),
        (["{videos}", "--out", "{tmp}/bad.csv"], "has 2 faults"),
        (["{videos}", "--out", "/proc/m.csv"], "/proc"),
        (["{videos}", "--out", "{tmp}/m.csv", "--weights", "gone.pth"], "gone.pth: neither a name"),
        (["{videos}", "--out", "{tmp}/m.csv", "--port", "70000"], "--port is 70000"),
        (["{videos}", "--out", "s3://b/m.csv"], "a local file is needed"),
    ],
)
def test_bad_input_is_said_before_anything_starts(videos, tmp_path, capsys, flags, message):
    (tmp_path / "bad.csv").write_text("uri,object_id,frame,x,y\na.mp4,0,0,3,4\na.mp4,1,-2,3,4\n")
    argv = [flag.format(videos=videos, tmp=tmp_path) for flag in flags]
    if "70000" in argv or "s3://b/m.csv" in argv:  # of the config itself
        with pytest.raises(SystemExit, match="2"):
            prompt.main([*argv, "--no-browser"])
    else:
        assert prompt.main([*argv, "--no-browser"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "m.csv").exists()


def test_sigterm_ends_a_start_that_takes_too_long(tmp_path, monkeypatch):
    """A folder on a disk that does not answer, for example."""
    begun, gate = threading.Event(), threading.Event()

    def start(config):
        begun.set()
        gate.wait(60)

    def end():
        assert begun.wait(30)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(prompt, "start", start)
    monkeypatch.setattr(prompt, "_PATIENCE", 0.1)
    threading.Thread(target=end).start()
    assert prompt.main([str(tmp_path), "--out", str(tmp_path / "m.csv")]) == 143
    gate.set()


def test_a_notebook_gets_a_table(videos, tmp_path, monkeypatch, capsys):
    """Two lines there; the page is played by a thread."""
    started = []
    monkeypatch.setattr(prompt, "show", lambda config, server: started.append(server))

    def play():
        while not started:
            time.sleep(0.02)
        (server,) = started
        rows = json.loads(ask(server, "/api/rows?id=b")[1])
        click = {"object_id": 1, "object_name": "disc", "frame": 1, "x": 31, "y": 40, "label": 1}
        ask(server, "/api/rows", "PUT", {"id": "b", "revision": rows["revision"], "rows": [click]})
        ask(server, "/api/done", "POST", {})

    threading.Thread(target=play).start()
    table = prompt.click(videos, tmp_path / "clicks.csv", port=0, browser=False)
    assert table[["video_id", "object_name", "frame", "x"]].values.tolist() == [
        ["b", "disc", 1, 31]
    ]
    found = next(iter(mask_video(videos / "b.mp4", table.drop(columns="uri"), segmenter())))
    assert found.masks[0].any()
    prompt.conclude(started[0], prompt.PromptConfig(videos=str(videos), out="m.csv"))
    output = capsys.readouterr().out
    assert "1 clicks on 1 objects of 1 videos" in output
    clicks = tmp_path / "clicks.csv"
    assert f"next: python -m jobs.mask --manifest {clicks} --out runs/masks\n" in output
    elsewhere = prompt.PromptConfig(videos=str(videos), out="m.csv", root="/some clips")
    prompt.conclude(started[0], elsewhere)
    assert f"--manifest {clicks} --root '/some clips' --out" in capsys.readouterr().out
    assert replace(prompt.PromptConfig(videos="v", out="m.csv"), port=0).browser
