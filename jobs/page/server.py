"""Serves the page over HTTP, for one person on this machine or behind an SSH tunnel.

A request is answered only if it has the token (first in the address, then in a cookie), names this
server as its host (against DNS rebinding), and does not come from the page of another site. The
address for the browser of this machine has a text instead that is valid once, because all users of
a machine can read the command lines of others. Videos are requested by id, so that no request can
name a path. Each request is answered on a thread of its own, which does not keep the process from
ending.
"""

import asyncio
import errno
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from jobs.page.access import Access
from jobs.page.arguments import read_arguments
from jobs.page.connections import STRANGERS, Connections
from jobs.page.opened import UnknownVideoError
from jobs.page.session import ENDING, Session
from jobs.page.store import StaleError
from jobs.run.config import ConfigError
from masking.video.frame import VideoError

_LOGGER = logging.getLogger(__name__)
PAGE = Path(__file__).with_name("web")
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_WAITING = 512  # connections that wait to be accepted
_LARGEST = 16 << 20  # bytes of a request
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:;"
    " frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_PICTURE = "private, max-age=3600"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")


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
        self.session = session
        self._socket = _listening(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._access = Access(host, self.port)
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._busy: set[threading.Thread] = set()  # threads that answer a request
        self._thread = threading.Thread(target=self._serve, name="server", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """The address to open in a browser, with the token."""
        return self._access.address

    @property
    def address_once(self) -> str:
        """The address for the browser of this machine: what it has for a token is valid once."""
        return self._access.address_once

    @property
    def token(self) -> str:
        """What every request must have, in its address or in a cookie."""
        return self._access.token

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
            self.session.close()
            # A thread that comes back from C++ while Python ends would end the process by a signal.
            deadline = time.monotonic() + ENDING
            for thread in [*self._busy]:
                thread.join(max(0.0, deadline - time.monotonic()))
            self._loop.close()

    async def _serve_until_ended(self) -> None:
        _LOGGER.addFilter(_is_ours)
        app = web.Application(middlewares=[self._guard, _answer_errors], client_max_size=_LARGEST)
        app.on_response_prepare.append(_add_headers)
        app.add_routes(self._routes())
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True, logger=_LOGGER
        )
        await runner.setup()
        assert runner.server is not None
        self._connections = Connections(runner.server)
        # Few connections are accepted at a time, so that those too many are closed in between;
        # more may wait.
        server = await self._loop.create_server(
            self._connections, sock=self._socket, backlog=STRANGERS // 2
        )
        self._socket.listen(_WAITING)
        await self._ended.wait()
        server.close()
        await runner.cleanup()

    def _routes(self) -> list[web.RouteDef]:
        """Return the requests that are answered."""
        handle, picture = self._handler, partial(self._handler, cached=_PICTURE)
        return [
            web.get("/", self._page),
            web.get("/page/{name}", self._page),
            web.get("/api/project", self._project),
            web.get("/api/video", handle(Session.state)),
            web.get("/api/rows", handle(Session.rows)),
            web.get("/api/timestamps", handle(Session.timestamps, start=int)),
            # The address has the version of the file, so that the picture may be cached.
            web.get("/api/frame", picture(Session.frame, index=int, version=str)),
            web.get("/api/thumbnail", self._handler(Session.thumbnail, cached="no-cache")),
            web.post("/api/encode", handle(Session.encode_ahead, index=int, version=str)),
            web.get("/api/masks", handle(Session.masks, index=int)),
            web.put("/api/rows", handle(Session.change, revision=str, rows=list)),
            web.post("/api/undo", handle(Session.undo, revision=str, redo=bool)),
            web.post("/api/preview", handle(Session.preview, index=int, version=str, objects=list)),
            web.post("/api/track", handle(Session.track, frame=int, count=int)),
            web.get("/api/track", handle(Session.tracked, since=int)),
            web.delete("/api/track", handle(Session.cancel)),
            web.post("/api/done", self._done),
        ]

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse requests that do not come from the page."""
        reason = self._access.refusal(request)
        if reason is not None:  # it may repeat what is no text
            text = reason.encode(errors="replace").decode() + "\n"
            return web.Response(status=403, text=text)
        self._connections.admit(request.transport)
        return await handler(request)

    def _handler(self, call: Callable[..., Any], cached: str = "", **kinds: type) -> Handler:
        """Return a handler that calls a method of `Session` with the video's id.

        Args:
            call: the method; returns what JSON can hold, or bytes of a picture.
            cached: the Cache-Control header of a picture.
            kinds: names and types of its other arguments, in the query or in JSON. A preview also
                gets an event that is set once the page no longer waits for it.
        """

        async def handle(request: web.Request) -> web.Response:
            values = await read_arguments(request, {"id": str, **kinds})
            video_id, gone = values.pop("id"), threading.Event()
            if call is Session.preview:
                values["gone"] = gone
            try:
                found = await self._in_thread(partial(call, self.session, video_id, **values))
            except asyncio.CancelledError:
                gone.set()
                raise
            if not cached:
                return web.json_response(found)
            headers = {"Cache-Control": cached}
            return web.Response(body=found, content_type="image/jpeg", headers=headers)

        return handle

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """Return what a call returns on a thread of its own."""
        answer: asyncio.Future[T] = self._loop.create_future()

        def settle(found: T | None, error: BaseException | None) -> None:
            if answer.done():  # the request was cancelled
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(found)  # type: ignore[arg-type]

        def run() -> None:
            found, failure = None, None
            try:
                found = call()
            except BaseException as error:
                failure = error
            with suppress(RuntimeError):  # the server has ended meanwhile
                self._loop.call_soon_threadsafe(settle, found, failure)
            self._busy.discard(thread)

        thread = threading.Thread(target=run, name="prompt", daemon=True)
        self._busy.add(thread)
        thread.start()
        return await answer

    async def _project(self, request: web.Request) -> web.Response:
        videos = await self._in_thread(self.session.videos)
        reviewing = self.session.run is not None
        manifest = str(self.session.store.path)
        return web.json_response({"manifest": manifest, "review": reviewing, "videos": videos})

    async def _page(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info.get("name", "")
        if (
            not name and {"token", "once"} & request.query.keys()
        ):  # moved to a cookie: people share addresses
            moved = web.Response(status=303, headers={"Location": "/"})
            # Lax, because a notebook, a page of another site, may link here. Requests that change
            # something are no GETs, and `_guard` checks their Origin.
            moved.set_cookie(self._access.cookie, self.token, httponly=True, samesite="Lax")
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
    except web.RequestPayloadError as error:
        return _failure(400, f"the body cannot be read: {error}")
    except ValueError as error:  # of arguments, manifests, clicks and tracks
        return _failure(400, str(error))


def _failure(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def _is_ours(record: logging.LogRecord) -> bool:
    """Return whether an error is worth a person's time; what is no HTTP was refused with 400."""
    refused = (HttpProcessingError, web.RequestPayloadError)
    return not (record.exc_info and isinstance(record.exc_info[1], refused))


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add what protects the page to every response."""
    response.headers.update(_HEADERS)


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
