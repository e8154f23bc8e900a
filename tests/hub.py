"""A server that answers as the Hugging Face hub does, for the two requests of a download."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Repositories with files at revisions, some of them behind a gate."""

    def __init__(self):
        self.files = {}  # (repository, revision, file): bytes
        self.gated = set()  # repositories that no token opens
        self.truncate = []  # bytes after which the next answers break off
        self.gets = []  # (file, header Range) of each download
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    def add(self, published, folder):
        """Publish the files of a folder as a repository at its revision."""
        for file in folder.iterdir():
            key = (published.repository, published.revision, file.name)
            self.files[key] = file.read_bytes()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        hub = self.hub
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        known = [key for key in hub.files if key[0] == repository]
        if repository in hub.gated:
            return self.refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo")
        if not known:
            return self.refuse(404, "RepoNotFound")
        if not any(key[1] == revision for key in known):
            return self.refuse(404, "RevisionNotFound")
        if (repository, revision, file) not in hub.files:
            return self.refuse(404, "EntryNotFound")
        data, wanted = hub.files[repository, revision, file], self.headers.get("Range")
        start = int(wanted[len("bytes=") :].rstrip("-")) if wanted else 0
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", revision)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            hub.gets.append((file, wanted))
            self.wfile.write(data[start:][: hub.truncate.pop(0) if hub.truncate else None])
        return None

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass
