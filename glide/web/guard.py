"""The guard of all routes. It refuses a request that writes, has an unknown host name, or lacks the token."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glide.errors import InputError

COOKIE = "glide-session"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
METHODS = ("GET", "HEAD")
BACKLOG = 4096  # number of connections that may wait until the server accepts them
TOKEN_NEEDED = (
    "This page needs a token. Open it once as /?token=…, with the token from the file that `glide web` named when it"
    " started. If you have just done that by a link, reload the page. Programs send it as Authorization: Bearer …\n"
)


@dataclass(frozen=True)
class Guard:
    """Pass a request to the application if all these conditions are true:

    - The method of the request is GET or HEAD.
    - The request uses a known host name or an IP address.
    - The request has the token or the session cookie. If no token is configured, this condition is always true.

    The check of the host name prevents DNS rebinding. In this attack, a hostile web site makes its own host name
    resolve to this machine. Requests from the site's pages carry the site's host name, so the guard refuses them.

    Args:
        names: host names that requests may use, besides localhost and IP addresses.
        token: the token that clients must send; empty if they need no token.
        session: value of the cookie that a browser gets in exchange for the token. A browser sends the cookie to
            all ports of this host, so other programs on this host can receive the cookie. Therefore the value is not
            the token itself.
    """

    app: ASGIApp
    names: Collection[str] = ()
    token: str = field(default="", repr=False)
    session: str = field(default_factory=secrets.token_urlsafe, repr=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close"})

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._refusal(scope) or self.app
        await answer(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the guard's own answer: a refusal or a login. Return None if the application must answer."""
        if scope["method"] not in METHODS:
            return PlainTextResponse("These pages are read-only.\n", 405, {"Allow": ", ".join(METHODS)})
        if not self._is_ours(Headers(scope=scope).get("host", "")):
            return PlainTextResponse("Unknown host name; use the address that `glide web` has printed.\n", 421)
        if not self.token:
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if any(name == "token" and _equal(value, self.token) for name, value in query):
            return self._log_in(scope["path"], [each for each in query if each[0] != "token"])
        request = HTTPConnection(scope)
        kind, _, bearer = request.headers.get("authorization", "").partition(" ")
        by_program = kind.lower() == "bearer" and _equal(bearer.strip(), self.token)
        in_a_browser = _equal(request.cookies.get(COOKIE, ""), self.session)
        if by_program or in_a_browser:
            return None
        return PlainTextResponse(TOKEN_NEEDED, 401, {"WWW-Authenticate": "Bearer"})

    def _is_ours(self, host: str) -> bool:
        name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        with suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return name.lower() in {"localhost", *(each.lower() for each in self.names)}

    def _log_in(self, path: str, query: list[tuple[str, str]]) -> Response:
        """Return an answer that sets the session cookie, and redirects to the same address without the token."""
        whole = f"/{path.lstrip('/')}"  # if the path were //NAME, browsers would go to the host NAME
        answer = RedirectResponse(f"{whole}?{urlencode(query)}" if query else whole, 303)
        answer.set_cookie(COOKIE, self.session, httponly=True, samesite="strict")
        return answer


def _equal(shown: str, expected: str) -> bool:
    return hmac.compare_digest(shown.encode(), expected.encode())


def is_loopback(host: str) -> bool:
    """Return whether an address or host name can be reached only from this machine."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return all(ipaddress.ip_address(str(each[4][0]).partition("%")[0]).is_loopback for each in found)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket on which a server listens.

    Raises:
        InputError: the address is not one of this machine, or another program has the port.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio recognises a TCP socket by its protocol number, which socket.create_server does not set. Without it,
        # each answer would wait 40 ms for an acknowledgement of its first part (Nagle's algorithm).
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
        return listening
    except OSError as error:
        raise InputError(f"cannot listen on {host} port {port}: {error.strerror}") from None
