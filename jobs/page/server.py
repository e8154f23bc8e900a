"""Serves the page over HTTP, for one person on this machine or behind an SSH tunnel.

A request is answered only if it has the token (first in the address, then in a cookie), names this
server as its host (against DNS rebinding), and does not come from the page of another site. Videos
are requested by id, so that no request can name a path.
"""

import asyncio
import errno
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from aiohttp import web

from jobs.page.session import Session, UnknownVideoError
from jobs.page.store import StaleError
from jobs.run.config import ConfigError
from masking.video.frame import VideoError

PAGE = Path(__file__).with_name("web")
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_LARGEST = 16 << 20  # bytes of a request
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:;"
    " frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """An HTTP server for a session, in a thread of its own."""

    def __init__(self, session: Session, host: str, port: int) -> None:
        """Start the server.

        Args:
            session: answers the requests; the server closes it at the end.
            host: address to listen on.
            port: port to listen on; 0: any free port.

        Raises:
            ConfigError: the server cannot listen on this address and port.
        """
        self.session, self.host = session, host
        self.token = secrets.token_urlsafe(24)
        self._socket = _listening(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._cookie = f"prompt-{self.port}"
        self._threads = ThreadPoolExecutor(32, thread_name_prefix="prompt")
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="server", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """The address to open in a browser, with the token."""
        name = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        name = f"[{name}]" if ":" in name else name
        return f"http://{name}:{self.port}/?token={self.token}"

    def wait(self) -> None:
        """Wait until Done is pressed in the page, or `stop` is called."""
        while self._thread.is_alive():
            self._thread.join(0.2)  # a join without timeout would delay signals

    def stop(self) -> None:
        """End the server; all acknowledged changes are on disk."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ended.set)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve_until_ended())
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self.session.close()
            self._loop.close()

    async def _serve_until_ended(self) -> None:
        self._loop.set_default_executor(self._threads)
        encode = self._handler(Session.encode_ahead, index=int, version=str)
        preview = self._handler(Session.preview, index=int, version=str, objects=list)
        app = web.Application(middlewares=[self._guard, _answer_errors], client_max_size=_LARGEST)
        app.add_routes(
            [
                web.get("/", self._page),
                web.get("/page/{name}", self._page),
                web.get("/api/project", self._project),
                web.get("/api/video", self._handler(Session.state)),
                web.get("/api/rows", self._handler(Session.rows)),
                web.get("/api/timestamps", self._handler(Session.timestamps, start=int)),
                web.get("/api/frame", self._frame),
                web.get("/api/thumbnail", self._thumbnail),
                web.post("/api/encode", encode),
                web.get("/api/masks", self._handler(Session.masks, index=int)),
                web.put("/api/rows", self._handler(Session.change, revision=str, rows=list)),
                web.post("/api/undo", self._handler(Session.undo, revision=str, redo=bool)),
                web.post("/api/preview", preview),
                web.post("/api/track", self._handler(Session.track, frame=int, count=int)),
                web.get("/api/track", self._handler(Session.tracked, since=int)),
                web.delete("/api/track", self._handler(Session.cancel)),
                web.post("/api/done", self._done),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await web.SockSite(runner, self._socket).start()
        await self._ended.wait()
        await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse requests that do not come from the page."""
        if not self._is_own_name(request.host):
            return web.Response(
                status=403,
                text=f"{request.host} is not this server: open the address that was printed\n",
            )
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            return web.Response(status=403, text=f"requests from {origin} are not allowed\n")
        given = request.query.get("token") or request.cookies.get(self._cookie, "")
        if not secrets.compare_digest(given.encode(), self.token.encode()):
            return web.Response(
                status=403, text="the token is missing: open the address that jobs.prompt printed\n"
            )
        response = await handler(request)
        response.headers.update(_HEADERS)
        return response

    def _is_own_name(self, host: str) -> bool:
        """Return whether a Host header names this machine, with any port: that of an SSH tunnel
        may differ."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        name = name.strip("[]").lower()
        if name in _LOOPBACK or name == self.host.lower():
            return True
        if self.host in _LOOPBACK:
            return False
        try:
            ip_address(name)
        except ValueError:
            return name in (socket.gethostname().lower(), socket.getfqdn().lower())
        return True  # DNS rebinding needs a name; an IP address is safe

    def _handler(self, call: Callable[..., Any], **arguments: type) -> Handler:
        """Return a handler that calls a method of `Session` with the video's id.

        Args:
            call: the method.
            arguments: names and types of its other arguments, in the query or in JSON.
        """

        async def handle(request: web.Request) -> web.Response:
            given = dict(request.query) if not request.can_read_body else await request.json()
            values = {}
            for name, kind in arguments.items():
                value = int(given[name]) if kind is int else given[name]
                if not isinstance(value, kind):
                    raise ValueError(f"{name} is {value!r}; expected {kind.__name__}")
                values[name] = value
            found = await asyncio.to_thread(call, self.session, str(given["id"]), **values)
            return web.json_response(found)

        return handle

    async def _project(self, request: web.Request) -> web.Response:
        videos = await asyncio.to_thread(self.session.videos)
        reviewing = self.session.run is not None
        manifest = str(self.session.store.path)
        return web.json_response({"manifest": manifest, "review": reviewing, "videos": videos})

    async def _frame(self, request: web.Request) -> web.Response:
        query = request.query
        which = query["id"], int(query["index"]), query["version"]
        # The address has the version of the file, so that the picture may be cached.
        return _picture(
            await asyncio.to_thread(self.session.frame, *which), "private, max-age=3600"
        )

    async def _thumbnail(self, request: web.Request) -> web.Response:
        content = await asyncio.to_thread(self.session.thumbnail, request.query["id"])
        return _picture(content, "no-cache")

    async def _page(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info.get("name", "")
        if not name and "token" in request.query:  # moved to a cookie: people share addresses
            moved = web.Response(status=303, headers={"Location": "/"})
            # Lax, because a notebook, a page of another site, may link here. Requests that change
            # something are no GETs, and `_guard` checks their Origin.
            moved.set_cookie(self._cookie, self.token, httponly=True, samesite="Lax")
            return moved
        files = {file.name: file for file in PAGE.iterdir() if file.suffix in _TYPES}
        file = files.get(name or "index.html")
        if file is None:
            raise web.HTTPNotFound
        kind = _TYPES[file.suffix]
        return web.Response(
            body=file.read_bytes(), content_type=kind, charset="utf-8",
            headers={"Cache-Control": "no-cache"},
        )  # fmt: skip

    async def _done(self, request: web.Request) -> web.Response:
        self._loop.call_later(0.3, self._ended.set)  # after this response was sent
        return web.json_response({})


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn errors into responses with a message for the page."""
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except UnknownVideoError as error:
        return _failure(404, f"there is no video {error.args[0]!r}")
    except StaleError as error:
        return _failure(409, str(error))
    except VideoError as error:
        return _failure(410 if error.code == "changed" else 422, str(error))
    except (OSError, MemoryError) as error:
        return _failure(500, str(error) or "the machine is out of memory")
    except KeyError as error:
        return _failure(400, f"{error.args[0]} is missing")
    except (ValueError, TypeError) as error:  # from manifests, clicks, and invalid JSON
        return _failure(400, str(error))


def _failure(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def _picture(content: bytes, kept: str) -> web.Response:
    headers = {"Cache-Control": kept}
    return web.Response(body=content, content_type="image/jpeg", headers=headers)


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {port} is in use on {host}; choose another one, or 0 for any free port"
            ) from error
        raise ConfigError(f"cannot listen on --host {host}, --port {port}: {error}") from error
