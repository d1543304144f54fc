"""What HTTP needs beside the library: bodies of limited size, clients that leave, and server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from persimmon_ext.serving.errors import RequestError

_T = TypeVar("_T")


class ClientLeftError(Exception):
    """Nobody waits for the reply any more."""


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request; RequestError with status 413 as soon as it is known to have more than `limit` bytes.

    ClientLeftError if the client leaves before its end.
    """
    body = bytearray()
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdigit() else 0
    if size <= limit:
        try:
            async for chunk in request.stream():
                body += chunk
                size = len(body)
                if size > limit:
                    break
        except ClientDisconnect:
            raise ClientLeftError from None
    if size > limit:
        raise RequestError(f"The body of the request has {size} bytes or more; at most {limit} are read.", status=413)
    return bytes(body)


async def unless_left(receive: Receive, work: Awaitable[_T]) -> _T:
    """The result of `work`, which is cancelled if the client leaves: then raises ClientLeftError."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_departure(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeftError
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """A response of server-sent events, which stops when the client leaves; `closed` is called in any case."""

    def __init__(self, events: AsyncIterator[bytes], closed: Callable[[], None]) -> None:
        self._events = events
        self._closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events, each as soon as it comes. Raises ClientLeftError."""
        try:
            await unless_left(receive, self._send(send))
        finally:
            self._closed()

    async def _send(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": b"data: " + event + b"\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def to_json(value: Any) -> bytes:
    """JSON on one line, in UTF-8; halves of characters, which a request's JSON can hold, are escaped as there."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")
