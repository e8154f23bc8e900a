"""A proxy of the S3 server that fails every ninth request and cuts off every ninth answer."""

import http.client
import itertools
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

EVERY = 9
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


def body_of(request):
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    parts = []
    while size := int(request.rfile.readline().split(b";")[0], 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    while request.rfile.readline().strip():  # trailers
        pass
    return b"".join(parts)


@contextmanager
def flaky(endpoint):
    """Pass requests on to `endpoint`; yields (host:port, what happened to how many requests)."""
    numbers, seen, lock = itertools.count(1), Counter(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            with lock:
                place = next(numbers) % EVERY
                what = {4: "refused", 8: "cut"}.get(place, "passed on")
                seen[what] += 1
            body = body_of(self)
            if what == "refused":
                self.reply(503, [("Content-Type", "application/xml")], _SLOW_DOWN)
                return
            target = http.client.HTTPConnection(urlsplit(endpoint).netloc)
            dropped = ("transfer-encoding", "expect", "content-length")
            headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
            target.request(self.command, self.path, body, headers)
            response = target.getresponse()
            content = response.read()
            target.close()
            if what == "cut":  # half of the answer; of a PUT, which was done, not a word
                self.reply(response.status, response.getheaders(), content, len(content) // 2)
                self.close_connection = True
                return
            self.reply(response.status, response.getheaders(), content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815

        def reply(self, status, headers, content, most=None):
            if most == 0:
                return
            self.send_response(status)
            dropped = ("transfer-encoding", "connection", "content-length")
            length = [value for name, value in headers if name.lower() == "content-length"]
            for name, value in headers:
                if name.lower() not in dropped:
                    self.send_header(name, value)
            head = self.command == "HEAD"
            self.send_header("Content-Length", length[0] if head and length else len(content))
            self.end_headers()
            if not head:
                self.wfile.write(content[:most])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
