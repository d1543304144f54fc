"""What all interfaces share: the model with its tokenizer and engine, and the wait for what it makes."""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from persimmon_ext.serving.engine import Engine, Limits
from persimmon_ext.serving.errors import RequestError
from persimmon_ext.serving.metrics import Metrics
from persimmon_ext.serving.row import Order, Piece, Row
from persimmon_ext.tokenizer import PersimmonTokenizer

#: Texts that one request may ask for, as in the original release.
MOST_TEXTS = 128
#: Ends a document of the training data; the released models end their answers with it.
_END_OF_TEXT = "|ENDOFTEXT|"


class Service:
    """A model that is served under a name.

    `context`: tokens that a text may have at most, by the model and by the limit of cache slots. `ends`: ids that end
    a text.
    """

    def __init__(self, model: Any, tokenizer: PersimmonTokenizer, name: str, limits: Limits) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.metrics = Metrics()
        self.engine = Engine(model, limits, self.metrics)
        self.vocab_size = int(model.config.vocab_size)
        self.positions = int(model.config.max_position_embeddings)
        self.context = min(self.positions, limits.slots)
        ends = [tokenizer.eos_token_id, tokenizer.special_tokens.find(_END_OF_TEXT)]
        for config in (model.config, getattr(model, "generation_config", None)):
            configured = getattr(config, "eos_token_id", None)
            ends += configured if isinstance(configured, (list, tuple)) else [configured]
        self.ends = frozenset(end for end in ends if end is not None)

    def encode(self, text: str, param: str, *, special: bool = True) -> list[int]:
        """The ids of a text, with the tokens that belong around it if `special`; RequestError for half a character."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            wrong = text[error.start]
            raise RequestError(f"{param} holds {wrong!r}, which is half of a character.", param=param) from None
        ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def check_prompt(self, ids: Sequence[int], param: str) -> None:
        """Raises RequestError for a prompt without a token, with one outside the vocabulary, or with too many."""
        if not ids:
            raise RequestError(f"{param} must have at least one token, got none.", param=param)
        for extreme in (min(ids), max(ids)):
            if not 0 <= extreme < self.vocab_size:
                raise RequestError(
                    f"{param} holds the token {extreme}, outside the vocabulary of {self.vocab_size}.", param=param
                )
        if len(ids) > self.context:
            raise self._too_long(f"{param} has {len(ids)} tokens", param)

    def new_tokens(self, prompt: int, asked: int | None, default: int, param: str) -> int:
        """Tokens to make after `prompt` ones: those asked for, else `default`, but no more than there is room for.

        Raises RequestError if so many were `asked` for that they have no room, or if there is room for none.
        """
        room = self.context - prompt
        if asked is not None and asked > room:
            raise self._too_long(
                f"The prompt has {prompt} tokens and {param} is {asked}, together {prompt + asked}", param
            )
        if room < 1 and asked != 0:
            raise self._too_long(f"The prompt has {prompt} tokens, which leaves room for none", param)
        if asked is not None:
            return asked
        return min(default, room)

    def seed(self, asked: int | None) -> int:
        """The seed asked for, or a new one."""
        return secrets.randbits(63) if asked is None else asked

    def _too_long(self, finding: str, param: str) -> RequestError:
        reason = "the context of the model" if self.context == self.positions else "the memory for caches"
        return RequestError(
            f"{finding}: a text may have {self.context} tokens here, by {reason}.",
            param=param,
            code="context_length_exceeded",
        )


class Ticket:
    """The rows of a request, as the event loop sees them. May be made in any thread; is then used in that of `loop`."""

    def __init__(self, service: Service, orders: Sequence[Order], loop: asyncio.AbstractEventLoop) -> None:
        self._engine = service.engine
        self._loop = loop
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self.rows = [
            Row(order, service.tokenizer, functools.partial(self._deliver, index)) for index, order in enumerate(orders)
        ]

    def submit(self) -> None:
        """Puts the rows in the queue. Raises RequestError as `Engine.submit` does."""
        self._engine.submit(self.rows)

    def cancel(self) -> None:
        """Gives up the rows that have not ended."""
        self._engine.cancel(self.rows)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yields the index of a row and what it delivers, until all have ended. Raises the RequestError of a row."""
        going = len(self.rows)
        while going:
            index, piece = await self._pieces.get()
            if piece.error is not None:
                raise piece.error
            going -= piece.is_last
            yield index, piece

    async def finish(self) -> list[Row]:
        """Waits until all rows have ended, and returns them."""
        async for _ in self.pieces():
            pass
        return self.rows

    def _deliver(self, index: int, piece: Piece) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))
