"""Who may read the pages, and how: the same for every route."""

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

COOKIE = "glide-session"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
METHODS = ("GET", "HEAD")
ASKS = (
    "This page asks for a token. Open it once as /?token=…, with what is in the file that `glide web` named when it"
    " started; reload it if you have just done so by a link. Programs send it as Authorization: Bearer …\n"
)


@dataclass(frozen=True)
class Guard:
    """Lets through what reads, names this machine, and shows the token where there is one.

    A page of another site whose name is made to resolve to this machine (DNS rebinding) still sends its own name.

    Args:
        names: host names that requests may be for, besides localhost and IP addresses.
        token: empty where none is asked for.
        session: what a browser has instead; it sends that to every port of this host.
    """

    app: ASGIApp
    names: Collection[str] = ()
    token: str = field(default="", repr=False)
    session: str = field(default_factory=secrets.token_urlsafe, repr=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
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
        """What to answer instead of the page; None where the page may be seen."""
        if scope["method"] not in METHODS:
            return PlainTextResponse("These pages can only be read.\n", 405, {"Allow": ", ".join(METHODS)})
        if not self._is_ours(Headers(scope=scope).get("host", "")):
            return PlainTextResponse("This is another host; use the address that `glide web` has printed.\n", 421)
        if not self.token:
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if any(name == "token" and _same(value, self.token) for name, value in query):
            return self._logged_in(scope["path"], [each for each in query if each[0] != "token"])
        request = HTTPConnection(scope)
        kind, _, bearer = request.headers.get("authorization", "").partition(" ")
        by_program = kind.lower() == "bearer" and _same(bearer.strip(), self.token)
        in_a_browser = _same(request.cookies.get(COOKIE, ""), self.session)
        return None if by_program or in_a_browser else PlainTextResponse(ASKS, 401, {"WWW-Authenticate": "Bearer"})

    def _is_ours(self, host: str) -> bool:
        name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        with suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return name.lower() in {"localhost", *(each.lower() for each in self.names)}

    def _logged_in(self, path: str, query: list[tuple[str, str]]) -> Response:
        """The same page, without the token in its address."""
        whole = f"/{path.lstrip('/')}"  # two slashes would name another host
        answer = RedirectResponse(f"{whole}?{urlencode(query)}" if query else whole, 303)
        answer.set_cookie(COOKIE, self.session, httponly=True, samesite="strict")
        return answer


def _same(shown: str, expected: str) -> bool:
    return hmac.compare_digest(shown.encode(), expected.encode())


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that is bound to this address or name."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return all(ipaddress.ip_address(str(each[4][0]).partition("%")[0]).is_loopback for each in found)
