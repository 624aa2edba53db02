"""Who may ask, and how much: keys, names of this machine, and bodies that are too large or too slow.

What goes wrong further in becomes an error object here too, so that no answer is anything else.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mistral_mlx.server.faults import Refusal, refusal
from mistral_mlx.server.running import ClientLeft
from mistral_mlx.server.settings import Settings

_OPEN = ("/health", "/docs", "/openapi.json")
_PORT = re.compile(r":[0-9]*$")
# A client that is still sending a body learns only after that why it is refused.
_LINGER_S = 2.0


def is_loopback(host: str) -> bool:
    """Whether that is a name or an address of this machine, which no other one reaches."""
    if host.lower() in ("localhost", "localhost."):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware: what passes it has a key, or comes from this machine, and its whole body."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._keys = [_hash(key) for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            self._check_key(scope["path"], headers)
            body = await self._body(headers, receive)
            await self._app(scope, _replay(body, receive), note)
        except ClientLeft:
            pass
        except Exception as error:
            record = scope["state"]["record"]
            refused = refusal(error, record.request_id)
            record.refused(refused)
            if begun:
                raise  # too late for a status: the connection is closed
            await refused.response()(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        """Without keys, a page on the web could reach the server under a name that it had made to mean this machine."""
        if self._keys or not self._settings.loopback:
            return
        host = headers.get("host", "")
        if not is_loopback(_PORT.sub("", host).strip("[]")):
            raise Refusal(
                403,
                f"This server answers to localhost only, not to {host!r}. Start it with --api-keys to use other names.",
                code="host_not_allowed",
            )

    def _check_key(self, path: str, headers: Headers) -> None:
        if not self._keys or path in _OPEN:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _hash(key.strip())
        # Each is compared, whatever the others say: how long it takes tells nothing.
        known = [hmac.compare_digest(given, each) for each in self._keys]
        if scheme.lower() != "bearer" or not any(known):
            what = "That API key is not one of this server's" if key else "There is no API key"
            raise Refusal(
                401,
                f"{what}: send one as Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body."""
        settings = self._settings
        length = headers.get("content-length", "")
        body = bytearray()
        try:
            async with asyncio.timeout(settings.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    body += message.get("body", b"")
                    if len(body) > settings.max_body or (length.isdigit() and int(length) > settings.max_body):
                        await _discard(message, receive)
                        raise Refusal(
                            413,
                            f"The body has more than {settings.max_body:,} bytes.",
                            code="body_too_large",
                            headers={"connection": "close"},
                        )
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise Refusal(
                408,
                f"The body did not arrive within {settings.body_s:g} seconds.",
                code="request_timeout",
                headers={"connection": "close"},
            ) from None


async def _discard(message: Message, receive: Receive) -> None:
    """Read on for a while, and keep nothing."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while message.get("more_body"):
                message = await receive()


def _replay(body: bytes, receive: Receive) -> Receive:
    """What gives a body that has been read, and then what follows it."""
    first: Iterable[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Message:
        for message in first:
            return message
        return await receive()

    return replay


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
