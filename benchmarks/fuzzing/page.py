"""Random requests to the page of `jobs.prompt`, with and without a sound token, and random values
through its manifests.

A request that is answered with another status than those below, a request without a sound token
that is not refused, an answer without the headers that protect the page, and a change that was
accepted but is not read again are faults.
"""

import atexit
import http.client
import io
import json
import socket
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode

import cv2

from jobs.page import videos as prompt_videos
from jobs.page.formats import read_records
from jobs.page.server import Server
from jobs.page.session import Session
from jobs.page.store import Store
from masking.manifest.faults import ManifestError
from masking.manifest.rows import COLUMNS, given
from masking.video.writer import Film
from tests.moving import SIZE, picture, segmenter

_ANSWERED = {200, 303, 304}
_REFUSED = {400, 403, 404, 405, 409, 410, 411, 413, 415, 417, 422, 501, 505}
_TEXTS = [
    "", "a", "b", "still", "a.mp4", "../../etc/passwd", "\0", "a\rb", "a\r\nb", "a\nb", "\ud800",
    "é", "日本", ",", '"', '""', "'", ";", "\t", " ", " x ", "\ufeff", "\u2028", "\x85", "\x1b[2J",
    "x" * 5000, "x" * 140_000, "=1+1", "NaN", "nan", "inf", "None", "null", "true", "1", "1.0",
    "1e5", "-0", "1_0", "\uff11", "{}", "[]", "%00", "%ff", "<b>", "init", "correct", "accept",
    "end", "absent", "point", "box", "normalized", "pixel", "positive", "0",
]  # fmt: skip
_NUMBERS = [
    0, 1, 2, 5, -1, 65_535, 65_536, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**70, -(2**70), 10**400,
    0.0, -0.0, 0.5, 2.5, 30.25, 1e-320, 1e300, 1e18, float("inf"), float("-inf"), float("nan"),
]  # fmt: skip
_OTHERS = [
    None, True, False, [], {}, [1, "a"], [[[]]], {"a": 1}, {"$parquet": "UEFSMQ=="},
    {"$parquet": {"$parquet": 0}}, {"$$parquet": 1}, [{"$parquet": "x"}],
]  # fmt: skip
_REQUESTS = {
    ("GET", "/"): (), ("GET", "/page/app.js"): (), ("GET", "/page/x"): (), ("GET", "/x"): (),
    ("GET", "/api/project"): (), ("GET", "/api/video"): ("id",), ("GET", "/api/rows"): ("id",),
    ("GET", "/api/timestamps"): ("id", "start"), ("GET", "/api/masks"): ("id", "index"),
    ("GET", "/api/frame"): ("id", "index", "version"), ("GET", "/api/thumbnail"): ("id",),
    ("POST", "/api/encode"): ("id", "index", "version"),
    ("PUT", "/api/rows"): ("id", "revision", "rows"),
    ("POST", "/api/undo"): ("id", "revision", "redo"),
    ("POST", "/api/preview"): ("id", "index", "version", "objects"),
    ("POST", "/api/track"): ("id", "frame", "count"), ("GET", "/api/track"): ("id", "since"),
    ("DELETE", "/api/track"): ("id",),
}  # fmt: skip
_CONTENT_TYPES = [
    "application/json", "application/json; charset=utf-8", "application/json; charset=utf-16",
    "application/json; charset=klingon", "application/json; charset=\xff", "text/plain", "", "x/;;",
    "multipart/form-data", "application/x-www-form-urlencoded",
]  # fmt: skip


_FOLDER = TemporaryDirectory(prefix="fuzz-page-", ignore_cleanup_errors=True)  # until the end


class RefusedError(Exception):
    """The page refused a request, or the store a change."""


REFUSALS = (RefusedError, ManifestError)


def attempt(random: Random, folder: Path) -> object:
    """Send a request, or write and read a manifest."""
    if random.random() < 0.2:
        return _round_trip(random, folder)
    server, store = _served()
    _empty(store)
    allowed = random.random() < 0.8
    odd = random.random() < 0.15
    request = _raw(random, server) if odd else _request(random, server, allowed)
    if random.random() < 0.1:
        request, odd = _mutated(random, request), True
    allowed = server.token.encode() in request
    status, headers, body = _send(server, request, 0.1 if odd else 9)
    _check(status, headers, body, allowed)
    again = read_records(store.path.name, store.path.read_bytes()) if store.path.exists() else []
    if not _equal([row for video_id in store.videos for row in store.rows(video_id)], again):
        raise AssertionError(f"{store.path} is read as {again}")
    if status not in _ANSWERED:
        raise RefusedError(f"{status}: {body[:200]!r}")
    return status


@cache
def _served() -> tuple[Server, Store]:
    """Start a server for two videos and a folder of images, once for each process."""
    folder = Path(_FOLDER.name)
    frames = [picture({1: (30 + 2 * t, 40, 13)})[0] for t in range(4)]
    for name in ("a.mp4", "b.mp4"):
        with Film(folder / name, "overlay", SIZE) as film:
            for index, image in enumerate(frames):
                film.write(image, index / 25)
    (folder / "still").mkdir()
    for index, image in enumerate(frames):
        cv2.imwrite(str(folder / "still" / f"{index}.png"), image)
    path = folder / "m.csv"
    store = Store(path)
    clips = prompt_videos.find(str(folder), path, None).clips
    server = Server(Session(store, clips, segmenter(), None), "127.0.0.1", 0)
    atexit.register(_end, server)
    return server, store


def _end(server: Server) -> None:
    server.stop()
    server.wait()


def _empty(store: Store) -> None:
    """Let each input find the same manifest."""
    row = {"uri": "a.mp4", "video_id": "a", "object_id": 1, "frame": 0, "x": 30, "y": 40}
    for video_id, rows in (("a", [row]), ("b", []), ("still", [])):
        store.replace(video_id, store.revision(video_id), rows)


# Requests


def _value(random: Random) -> Any:
    return random.choice(random.choice([_TEXTS, _NUMBERS, _OTHERS]))


def _row(random: Random) -> Any:
    if random.random() < 0.05:
        return _value(random)
    row = {"object_id": 1, "frame": random.randrange(4), "x": 30, "y": random.choice([1, 2.5])}
    if random.random() < 0.3:
        row = {"row": random.choice([0, 0, 0, 1, -1, _value(random)])}
    for _ in range(random.choice([0, 1, 1, 2])):
        name = random.choice([*COLUMNS]) if random.random() < 0.9 else str(_value(random))
        row[name] = _value(random)
    return row


def _object(random: Random) -> Any:
    click: dict[str, Any] = {"x": random.choice([30, 300, 0.5]), "y": 40, "label": 1}
    if random.random() < 0.3:
        click |= {"x2": 60, "y2": 70}
    if random.random() < 0.3:
        click[random.choice([*click])] = _value(random)
    clicks = [click] if random.random() < 0.9 else _value(random)
    found = {"object_id": random.choice([1, _value(random)]), "clicks": clicks}
    return found if random.random() < 0.9 else _value(random)


def _argument(random: Random, name: str, server: Server) -> Any:
    if random.random() < 0.2:
        return _value(random)
    session, video_id = server.session, random.choice(["a", "a", "b", "still"])
    sound = {
        "id": lambda: video_id,
        "version": lambda: session.state(video_id)["version"],
        "revision": lambda: session.store.revision(random.choice(["a", "b"])),
        "rows": lambda: [_row(random) for _ in range(random.choice([0, 1, 1, 2]))],
        "objects": lambda: [_object(random) for _ in range(random.choice([0, 1, 2]))],
        "redo": lambda: random.random() < 0.5,
    }
    return sound[name]() if name in sound else random.choice([0, 1, 3, 4, -1, 10**6])


def _request(random: Random, server: Server, allowed: bool) -> bytes:
    (method, path), names = random.choice([*_REQUESTS.items()])
    arguments = {name: _argument(random, name, server) for name in names if random.random() < 0.95}
    arguments |= {"id": "a"} if "id" in arguments and random.random() < 0.5 else {}
    headers, body = {"Host": f"127.0.0.1:{server.port}"}, b""
    query = {}
    if allowed:
        query["token"] = server.token
    elif random.random() < 0.5:
        query[random.choice(["token", "once"])] = random.choice([*_TEXTS, server.token[:-1]])[:2000]
    else:
        headers["Cookie"] = f"prompt-{server.port}={random.choice(_TEXTS)[:200]}"
    if method == "GET":
        query |= {name: str(value) for name, value in arguments.items()}
    elif random.random() < 0.9:
        body = json.dumps(arguments, ensure_ascii=random.random() < 0.8).encode(errors="replace")
    else:
        deep = random.randrange(800, 1000)
        nested = b'{"id": "a", "revision": "0", "rows": [{"x": %s}]}' % (b"[" * deep + b"]" * deep)
        bodies = [b"", b"{", b"[" * 100_000, b"\xff", b"1e999", b"[]", b"null", b'"a"', nested]
        body = random.choice(bodies)
    if not allowed and random.random() < 0.3:
        headers |= random.choice([{"Host": "evil.example"}, {"Origin": "null"}, {"Host": ""}])
    return _message(random, method, path, query, headers, body)


def _message(
    random: Random, method: str, path: str, query: dict[str, str], headers: dict[str, str],
    body: bytes,
) -> bytes:  # fmt: skip
    if body:
        headers["Content-Length"] = str(len(body))
        headers["Content-Type"] = random.choice([_CONTENT_TYPES[0], random.choice(_CONTENT_TYPES)])
    if random.random() < 0.02:
        headers["Content-Encoding"] = random.choice(["gzip", "br", "deflate", "x"])
    address = f"{path}?{urlencode(query, errors='replace')}"
    lines = [f"{method} {address[:7000]} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
    head = "\r\n".join(lines).encode("utf-8", "replace")
    return head + b"\r\nConnection: close\r\n\r\n" + body


def _raw(random: Random, server: Server) -> bytes:
    """Return a request that is no sound HTTP, or one whose names are odd."""
    name = "".join(chr(random.choice([*range(1, 128), 0xE9, 0x4E00])) for _ in range(20))
    lines = [
        f"GET /page/../prompt.py?token={server.token} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        f"GET /{name} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: {name}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: {name}\r\n\r\n",
        f"GET /?token={name} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n", "\r\n\r\n", f"{name}\r\n\r\n",
        "POST /api/rows HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        f"{name} / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    ]  # fmt: skip
    return random.choice(lines).encode()


def _mutated(random: Random, request: bytes) -> bytes:
    content = bytearray(request)
    for _ in range(random.choice([1, 2, 5])):
        content[random.randrange(len(content))] = random.randrange(256)
    return bytes(
        content[: random.randrange(1, len(content) + 1)] if random.random() < 0.2 else content
    )


def _send(server: Server, request: bytes, wait: float) -> tuple[int, dict[str, str], bytes]:
    """Send bytes; return status, headers and body; 400 where the server closed without answer.

    After `wait` seconds the request ends: the server may wait for more of one that is no HTTP.
    """
    content = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as connection:
        try:
            connection.sendall(request)
            while part := connection.recv(1 << 16):
                content += part
        except TimeoutError:
            if wait > 1:
                raise
        except ConnectionError:  # it was refused before all of it was sent
            return 400, {}, b""
    if not content:
        return 400, {}, b""
    response = http.client.HTTPResponse(_Answer(content))  # type: ignore[arg-type]
    response.begin()
    return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()


class _Answer:
    """What `http.client` takes for a socket."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self._content)


def _check(status: int, headers: dict[str, str], body: bytes, allowed: bool) -> None:
    if status not in _ANSWERED | _REFUSED:
        raise AssertionError(f"status {status}: {body[:200]!r}")
    if not allowed and status in _ANSWERED:
        raise AssertionError(f"answered without a token: {body[:200]!r}")
    if status in (403, 404) and headers.get("x-content-type-options") != "nosniff":
        raise AssertionError(f"{status} without headers: {headers}")
    if headers.get("content-type", "").startswith("application/json"):
        json.loads(body, parse_constant=lambda name: 1 / 0)  # a browser reads no NaN


# Manifests


def _round_trip(random: Random, folder: Path) -> object:
    """Write odd rows in a random format, read them again, and undo them."""
    path = folder / f"m{random.choice(['.csv', '.jsonl', '.parquet', '.CSV'])}"
    store, uri = Store(path), random.choice(["a.mp4", "a\rb.mp4", 'é,".mp4', "\n.mp4"])
    states = [store.rows("a")]
    for _ in range(3):
        row = {"uri": uri, "video_id": "a", "object_id": 1, "frame": 0, "x": 1, "y": 2}
        for _ in range(random.choice([0, 1, 1, 2])):
            name = random.choice([*COLUMNS][2:]) if random.random() < 0.5 else str(_value(random))
            row[name] = _value(random)
        rows = [*store.rows("a"), row]
        random.shuffle(rows)
        try:
            store.replace("a", store.revision("a"), rows)
        except ManifestError:
            continue
        states.append(store.rows("a"))
    for expected in reversed(states):
        store.close()
        store = Store(path)
        if not _equal(expected, store.rows("a")):
            raise AssertionError(f"{expected} is read as {store.rows('a')}")
        store.undo("a", store.revision("a"))
    store.close()
    if len(states) == 1:
        raise RefusedError("every change")
    return len(states)


def _equal(rows: list[dict[str, Any]], again: list[dict[str, Any]]) -> bool:
    """Return whether rows mean the same; CSV gives back the text of a number."""

    def plain(value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if number else str(value)

    def meaning(row: dict[str, Any]) -> dict[str, str]:
        return {name: str(value) for name, value in row.items() if given(value)}

    def numbers(row: dict[str, Any]) -> dict[str, Any]:
        return {name: plain(value) for name, value in row.items() if given(value)}

    return len(rows) == len(again) and all(
        meaning(one) == meaning(two) or numbers(one) == numbers(two)
        for one, two in zip(rows, again, strict=True)
    )
