"""The ASGI application: addresses, errors, counts and the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from persimmon_ext.serving import metrics, openai_fields, release_api
from persimmon_ext.serving.errors import RequestError
from persimmon_ext.serving.fields import parse_object
from persimmon_ext.serving.http import ClientLeftError, EventStream, read_body, to_json, unless_left
from persimmon_ext.serving.openai_fields import OpenAIRequest
from persimmon_ext.serving.openai_replies import ChatReplies, CompletionReplies, Replies
from persimmon_ext.serving.row import Order, Row
from persimmon_ext.serving.service import Service, Ticket

_log = logging.getLogger(__name__)

_CLIENT_LEFT = 499  # not in the standard; what servers commonly count such requests as
_RETRY_SECONDS = {429: "1", 503: "5"}
_OPENAI_KINDS = {404: "not_found_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}

Asked = TypeVar("Asked")


class Interface:
    """The endpoints. `body_limit`: bytes that the body of a request may have."""

    def __init__(self, service: Service, body_limit: int) -> None:
        self._service = service
        self._body_limit = body_limit
        self._started = int(time.time())

    async def put_api(self, request: Request) -> Response:
        """``PUT /api``, the release's."""
        asked, ticket = await self._read(request, release_api.read_request, lambda asked: asked.orders)
        request.state.no_log = asked.no_log
        rows = await self._finish(request, ticket)
        return _json(await asyncio.to_thread(release_api.reply, self._service, asked, rows))

    async def completions(self, request: Request) -> Response | EventStream:
        """``POST /v1/completions``."""
        return await self._complete(request, openai_fields.read_completion, CompletionReplies)

    async def chat_completions(self, request: Request) -> Response | EventStream:
        """``POST /v1/chat/completions``."""
        return await self._complete(request, openai_fields.read_chat, ChatReplies)

    async def models(self, request: Request) -> Response:
        """``GET /v1/models``."""
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """``GET /v1/models/{model}``."""
        name = request.path_params["model"]
        if name != self._service.name:
            raise openai_fields.unknown_model(self._service, name)
        return _json(self._model())

    async def healthz(self, request: Request) -> Response:
        """``GET /healthz``, the release's: whether the process answers."""
        return _json({"success": True})

    async def health(self, request: Request) -> Response:
        """``GET /health``: whether requests are served; status 503 during the shutdown."""
        serving = self._service.engine.is_serving
        return _json({"status": "serving" if serving else "shutting down"}, 200 if serving else 503)

    async def show_metrics(self, request: Request) -> Response:
        """``GET /metrics``, for Prometheus."""
        return Response(self._service.metrics.render(), media_type=metrics.CONTENT_TYPE)

    async def _read(
        self,
        request: Request,
        read: Callable[[Service, dict[str, Any]], Asked],
        orders: Callable[[Asked], list[Order]],
    ) -> tuple[Asked, Ticket]:
        """The checked request and a ticket for it. Encoding a long prompt takes time, so not in the event loop."""
        body = await read_body(request, self._body_limit)
        loop = asyncio.get_running_loop()

        def work() -> tuple[Asked, Ticket]:
            asked = read(self._service, parse_object(body))
            return asked, Ticket(self._service, orders(asked), loop)

        return await asyncio.to_thread(work)

    async def _finish(self, request: Request, ticket: Ticket) -> list[Row]:
        try:
            ticket.submit()
            return await unless_left(request.receive, ticket.finish())
        finally:
            ticket.cancel()

    async def _complete(
        self,
        request: Request,
        read: Callable[[Service, dict[str, Any]], OpenAIRequest],
        make_replies: Callable[..., Replies],
    ) -> Response | EventStream:
        asked, ticket = await self._read(request, read, lambda asked: asked.orders)
        replies = make_replies(asked, self._service.tokenizer, self._service.name)
        if not asked.stream:
            return _json(replies.whole(await self._finish(request, ticket)))
        ticket.submit()
        return EventStream(_events(asked, ticket, replies), ticket.cancel)

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._service.name,
            "object": "model",
            "created": self._started,
            "owned_by": "persimmon_ext",
            "max_model_len": self._service.context,
        }


async def _events(asked: OpenAIRequest, ticket: Ticket, replies: Replies) -> AsyncIterator[bytes]:
    for chunk in replies.opening():
        yield to_json(chunk)
    try:
        async for index, piece in ticket.pieces():
            delta = replies.chunk(index, piece)
            if delta is not None:
                yield to_json(delta)
    except RequestError as error:  # too late for a status
        yield to_json(_openai_error(error))
        return
    if asked.include_usage:
        yield to_json(replies.usage_chunk(ticket.rows))
    yield b"[DONE]"


def make_app(service: Service, *, body_limit: int, origins: Sequence[str] = ()) -> ASGIApp:
    """The application. `origins`: those whose pages may call it from a browser; ``*`` is all."""
    interface = Interface(service, body_limit)
    routes = [
        Route("/api", interface.put_api, methods=["PUT"]),
        Route("/v1/completions", interface.completions, methods=["POST"]),
        Route("/v1/chat/completions", interface.chat_completions, methods=["POST"]),
        Route("/v1/models", interface.models),
        Route("/v1/models/{model:path}", interface.model),
        Route("/healthz", interface.healthz),
        Route("/health", interface.health),
        Route("/metrics", interface.show_metrics),
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.engine.start()
        yield
        service.engine.drain(0)
        await asyncio.to_thread(service.engine.join, 1)

    cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app = Starlette(
        routes=routes,
        middleware=[cors] if origins else [],
        exception_handlers={RequestError: _refusal, HTTPException: _refusal, Exception: _failure},
        lifespan=lifespan,
    )
    return Observed(app, service, frozenset(route.path for route in routes))


class Observed:
    """An application whose requests are counted and logged."""

    def __init__(self, app: ASGIApp, service: Service, paths: Collection[str]) -> None:
        self._app = app
        self._requests = service.metrics.requests
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application. A client that leaves is no error here."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status, begin = _CLIENT_LEFT, time.monotonic()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except ClientLeftError:
            status = _CLIENT_LEFT
        finally:
            path = scope["path"]
            known = path if path in self._paths else "other"  # clients could make any number of others
            self._requests.add(1, known, str(status))
            if not scope.get("state", {}).get("no_log"):
                client = (scope.get("client") or ("-",))[0]
                _log.info("%s %s %s %d %.3f s", client, scope["method"], path, status, time.monotonic() - begin)
        return None


async def _refusal(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        method, path = request.method, request.url.path
        reason = f"There is nothing at {path}." if error.status_code == 404 else f"{method} is no method of {path}."
        error = RequestError(reason, status=error.status_code)
    if not isinstance(error, RequestError):
        return await _failure(request, error)
    headers = {"retry-after": _RETRY_SECONDS[error.status]} if error.status in _RETRY_SECONDS else None
    if request.url.path == "/api":
        return _json(error.message, error.status, headers)
    return _json(_openai_error(error), error.status, headers)


async def _failure(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientLeftError):
        return Response(status_code=_CLIENT_LEFT)
    return await _refusal(request, RequestError("The server made a mistake; its log tells more.", status=500))


def _openai_error(error: RequestError) -> dict[str, Any]:
    kind = _OPENAI_KINDS.get(error.status, "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, "application/json")
