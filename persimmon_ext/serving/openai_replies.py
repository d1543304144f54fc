"""OpenAI's reply objects: whole ones, and the chunks of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from persimmon_ext.serving.openai_fields import OpenAIRequest
from persimmon_ext.serving.row import Piece, Row, Scored
from persimmon_ext.token_codec import TokenCodec
from persimmon_ext.vocabulary import SPACE_SYMBOL


class Replies(Protocol):
    """Makes the replies to one request; see `CompletionReplies` and `ChatReplies`."""

    def whole(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The reply to a request that doesn't stream."""

    def opening(self) -> list[dict[str, Any]]:
        """The chunks that a stream begins with."""

    def chunk(self, index: int, piece: Piece) -> dict[str, Any] | None:
        """The chunk with what a row delivered, or None where that is nothing that is shown."""

    def usage_chunk(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The last chunk of a stream that is asked to count tokens."""


@dataclass
class _Envelope:
    """What all replies to a request share."""

    request: OpenAIRequest
    tokenizer: TokenCodec
    model: str
    identity: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def wrap(self, prefix: str, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{prefix}-{self.identity}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def usage(self, rows: Sequence[Row]) -> dict[str, int]:
        made = sum(len(row.tokens) for row in rows)
        prompt = self.request.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


class CompletionReplies:
    """Replies of ``/v1/completions``."""

    def __init__(self, request: OpenAIRequest, tokenizer: TokenCodec, model: str) -> None:
        self._envelope = _Envelope(request, tokenizer, model)

    def whole(self, rows: Sequence[Row]) -> dict[str, Any]:
        """See `Replies`."""
        choices = [self._whole_choice(index, row) for index, row in enumerate(rows)]
        return {**self._wrap(choices), "usage": self._envelope.usage(rows)}

    def opening(self) -> list[dict[str, Any]]:
        """See `Replies`."""
        return []

    def chunk(self, index: int, piece: Piece) -> dict[str, Any] | None:
        """See `Replies`."""
        asked = self._envelope.request.orders[index].top is not None
        logprobs = self._logprobs(piece.scored, 0) if asked else None
        return self._wrap([_completion_choice(index, piece.text, logprobs, piece.finish_reason)])

    def usage_chunk(self, rows: Sequence[Row]) -> dict[str, Any]:
        """See `Replies`."""
        return {**self._wrap([]), "usage": self._envelope.usage(rows)}

    def _wrap(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._envelope.wrap("cmpl", "text_completion", choices)

    def _whole_choice(self, index: int, row: Row) -> dict[str, Any]:
        echo = self._envelope.request.echo
        logprobs = None
        if row.order.top is not None:
            logprobs = self._logprobs(row.scored, len(row.prompt_text) if echo else 0)
            if echo:
                prompt = self._logprobs(row.prompt_scored, 0)
                logprobs = {name: [*prompt[name], *values] for name, values in logprobs.items()}
        text = row.prompt_text + row.text if echo else row.text
        return _completion_choice(index, text, logprobs, row.finish_reason)

    def _logprobs(self, scored: Sequence[Scored], before: int) -> dict[str, list[Any]]:
        """The entries of tokens whose text begins `before` characters into that of the reply."""
        tokenizer = self._envelope.tokenizer
        return {
            "tokens": [token_text(tokenizer, entry.token) for entry in scored],
            "token_logprobs": [entry.logprob for entry in scored],
            "top_logprobs": [
                {token_text(tokenizer, token): value for token, value in entry.top}
                if entry.logprob is not None
                else None
                for entry in scored
            ],
            "text_offset": [before + entry.offset for entry in scored],
        }


class ChatReplies:
    """Replies of ``/v1/chat/completions``. The space between ``adept:`` and the answer is no part of the answer."""

    def __init__(self, request: OpenAIRequest, tokenizer: TokenCodec, model: str) -> None:
        self._envelope = _Envelope(request, tokenizer, model)
        self._begun = [False] * len(request.orders)

    def whole(self, rows: Sequence[Row]) -> dict[str, Any]:
        """See `Replies`."""
        choices = []
        for index, row in enumerate(rows):
            message = {"role": "assistant", "content": row.text.lstrip(), "refusal": None}
            choices.append(self._choice(index, "message", message, row.scored, row.finish_reason))
        reply = self._envelope.wrap("chatcmpl", "chat.completion", choices)
        return {**reply, "usage": self._envelope.usage(rows)}

    def opening(self) -> list[dict[str, Any]]:
        """See `Replies`."""
        delta = {"role": "assistant", "content": ""}
        return [self._wrap([self._choice(index, "delta", delta, (), None)]) for index in range(len(self._begun))]

    def chunk(self, index: int, piece: Piece) -> dict[str, Any] | None:
        """See `Replies`."""
        text = piece.text if self._begun[index] else piece.text.lstrip()
        self._begun[index] = self._begun[index] or bool(text)
        if not (text or piece.scored or piece.is_last):
            return None
        delta = {"content": text} if text else {}
        return self._wrap([self._choice(index, "delta", delta, piece.scored, piece.finish_reason)])

    def usage_chunk(self, rows: Sequence[Row]) -> dict[str, Any]:
        """See `Replies`."""
        return {**self._wrap([]), "usage": self._envelope.usage(rows)}

    def _wrap(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._envelope.wrap("chatcmpl", "chat.completion.chunk", choices)

    def _choice(
        self, index: int, kind: str, content: dict[str, Any], scored: Sequence[Scored], reason: str | None
    ) -> dict[str, Any]:
        logprobs = None
        if self._envelope.request.orders[index].top is not None:
            logprobs = {"content": [self._entry(entry) for entry in scored], "refusal": None}
        return {"index": index, kind: content, "logprobs": logprobs, "finish_reason": reason}

    def _entry(self, entry: Scored) -> dict[str, Any]:
        tokenizer = self._envelope.tokenizer

        def one(token: int, logprob: float | None) -> dict[str, Any]:
            return {
                "token": token_text(tokenizer, token),
                "logprob": logprob,
                "bytes": list(token_bytes(tokenizer, token)),
            }

        return {**one(entry.token, entry.logprob), "top_logprobs": [one(*likely) for likely in entry.top]}


def token_bytes(tokenizer: TokenCodec, token: int) -> bytes:
    """The UTF-8 that a token stands for: a part of a character, for a token that is a byte."""
    special = tokenizer.special_tokens.content(token)
    if special is not None:
        return special[0].encode()
    surface = tokenizer.vocabulary.surface(token)
    return bytes([surface]) if isinstance(surface, int) else surface.replace(SPACE_SYMBOL, " ").encode()


def token_text(tokenizer: TokenCodec, token: int) -> str:
    """The text of a token; of one that is part of a character, its bytes as OpenAI writes them."""
    content = token_bytes(tokenizer, token)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _completion_choice(
    index: int, text: str, logprobs: dict[str, list[Any]] | None, reason: str | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
