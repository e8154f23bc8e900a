"""What the tests of storage share: an empty folder in each storage, a cache, a web server."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jobs.storage import cache as fetching
from jobs.storage.location import Location


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """An empty folder, on disk and in S3."""
    text = request.getfixturevalue("s3") if request.param == "s3" else str(tmp_path)
    return Location.parse(text) / "run"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, and no waiting between attempts."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PATCHRAY_CACHE", str(folder))
    monkeypatch.setattr(fetching, "RETRY_WAITS", (0, 0, 0))
    return folder


class Web:
    """A web server with a few bad habits."""

    def __init__(self):
        self.files = {}
        self.requests = []  # (path, value of Range)
        self.ranges = True
        self.truncate = []  # bytes after which each of the next responses breaks off
        self.status = []  # of the next responses, in place of a file
        handler = type("Handler", (_Handler,), {"web": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def url(self, path):
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def sha256(self, path):
        return hashlib.sha256(self.files[path]).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        web, wanted = self.web, self.headers.get("Range")
        web.requests.append((self.path, wanted))
        data = web.files.get(self.path)
        if web.status or data is None:
            self.send_error(web.status.pop(0) if web.status else 404)
            return
        start = int(wanted[len("bytes=") : -1]) if wanted and web.ranges else 0
        if start >= len(data) > 0:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: web.truncate.pop(0) if web.truncate else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def web():
    web = Web()
    thread = threading.Thread(target=web.server.serve_forever, args=(0.01,))
    thread.start()
    yield web
    web.server.shutdown()
    web.server.server_close()
    thread.join()
