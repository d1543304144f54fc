"""Runs the application on a socket until a signal comes, and then finishes what runs."""

from __future__ import annotations

import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from persimmon_ext.serving.engine import Engine

_BACKLOG = 2048
_REPLY_SECONDS = 5  # what is cut off at the end of the grace still gets its reply


class Server(uvicorn.Server):
    """The first SIGINT or SIGTERM ends it after `grace` seconds at most; a second one, at once."""

    def __init__(self, app: ASGIApp, engine: Engine, grace: float) -> None:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=int(grace) + _REPLY_SECONDS
        )
        super().__init__(config)
        self._engine = engine
        self._grace = grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuses new requests, waits for the others, and closes what is left then."""
        self._engine.drain(self._grace)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called at a signal, which is not raised again in the end: an end that was asked for is no error."""
        self.force_exit = self.should_exit
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at `host` (a name or address) and `port`, 0 for a free one; OSError if it can't."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
    )[0]
    # Not socket.create_server, whose sockets don't name their protocol: asyncio then leaves Nagle's algorithm on, and
    # a reply's body waits 40 ms for the client's acknowledgement of its head.
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
