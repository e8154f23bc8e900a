"""Limits on connections that have not sent a sound token, so that they cannot use up the files that
a process may have open."""

import asyncio
from collections.abc import Callable

STRANGERS = 32
"""Connections without a sound token that may be open; a further one closes the oldest."""
SECONDS = 10.0
"""Time in which a connection has to send the head of a request with a sound token."""


class Connections:
    """Closes connections that send no request with a token, in time or as further ones come."""

    def __init__(self, serve: Callable[[], asyncio.Protocol]) -> None:
        """Take the function that makes the protocol of a connection, such as aiohttp's server."""
        self._serve = serve
        self._strangers: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        return _Connection(self._serve(), self)

    def admit(self, transport: asyncio.BaseTransport | None) -> None:
        """Let a connection stay: it has sent a request with a sound token, or it is closed."""
        timer = None if transport is None else self._strangers.pop(transport, None)
        if timer is not None:
            timer.cancel()

    def watch(self, transport: asyncio.Transport) -> None:
        """Give a new connection its time; close the oldest one if there are too many."""
        if len(self._strangers) >= STRANGERS:
            oldest = next(iter(self._strangers))
            self.admit(oldest)
            oldest.abort()  # type: ignore[attr-defined]
        timer = asyncio.get_running_loop().call_later(SECONDS, transport.abort)
        self._strangers[transport] = timer


class _Connection(asyncio.Protocol):
    """Passes everything on to a protocol, and reports the begin and the end of the connection."""

    def __init__(self, inner: asyncio.Protocol, connections: Connections) -> None:
        self._inner, self._connections = inner, connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.watch(transport)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.admit(self._transport)
        self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
