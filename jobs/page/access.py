"""Decides which requests the page answers: those with the token, to this machine, from the page."""

import secrets
import socket
from ipaddress import ip_address

from aiohttp import web

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Access:
    """The secrets of a server, and the names that it has."""

    def __init__(self, host: str, port: int) -> None:
        """Draw the secrets of a server that listens on a host and port."""
        self.token = secrets.token_urlsafe(24)
        self.cookie = f"prompt-{port}"
        self._once: str | None = secrets.token_urlsafe(24)
        self._host, self._port = host, port
        # Looked up once: a name service may take seconds.
        own = () if host in _LOOPBACK else (socket.gethostname(), socket.getfqdn())
        self._names = {name.lower() for name in (*_LOOPBACK, host, *own)}

    @property
    def address(self) -> str:
        """The address to open in a browser, with the token."""
        return f"{self._root}?token={self.token}"

    @property
    def address_once(self) -> str:
        """The address for the browser of this machine: what it has for a token is valid once."""
        return f"{self._root}?once={self._once}"

    @property
    def _root(self) -> str:
        name = socket.gethostname() if self._host in ("0.0.0.0", "::") else self._host
        name = f"[{name}]" if ":" in name else name
        return f"http://{name}:{self._port}/"

    def refusal(self, request: web.Request) -> str | None:
        """Return why a request is refused; None: it is not."""
        host = request.headers.get("Host", "")
        if not self._is_own_name(host):
            return f"{host} is not this server: open the address that was printed"
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != host:
            return f"requests from {origin} are not allowed"
        if not self._has_token(request):
            text = "was used already" if "once" in request.query else "has no token, or a wrong one"
            return f"this address {text}: open the address that jobs.prompt printed"
        return None

    def _has_token(self, request: web.Request) -> bool:
        """Return whether a request has the token, or what may be given once instead of it."""
        once = request.query.get("once")
        if once and request.path == "/" and request.method == "GET" and _equal(once, self._once):
            self._once = None
            return True
        given = request.query.get("token") or request.cookies.get(self.cookie, "")
        return _equal(given, self.token)

    def _is_own_name(self, host: str) -> bool:
        """Return whether a Host header names this machine, with any port: that of an SSH tunnel
        may differ."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        name = name.strip("[]").lower()
        if name in self._names or self._host in _LOOPBACK:
            return name in self._names
        try:
            ip_address(name)
        except ValueError:
            return False
        return True  # DNS rebinding needs a name; an IP address is safe


def _equal(given: str, secret: str | None) -> bool:
    given_bytes = given.encode(errors="replace")
    return secret is not None and secrets.compare_digest(given_bytes, secret.encode())
