"""A conversation with a model, turn by turn: its history, what of it is in the cache, and replies as they are made."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from persimmon_ext.chat import beginning_of_a_turn
from persimmon_ext.generation.sequences import common_beginning
from persimmon_ext.outputs import Speculation
from persimmon_ext.text_stream import TextStreamer


@dataclass(frozen=True)
class Reply:
    """What the model said: its `text`, how many `tokens` that took in how many `seconds`, and whether Ctrl-C ended it.

    `forgotten`: earlier messages that were dropped for it to fit. `speculation`: how drafting went, None without it or
    after Ctrl-C.
    """

    text: str
    tokens: int
    seconds: float
    interrupted: bool
    forgotten: int
    speculation: Speculation | None = None


class Conversation:
    """Keeps the messages and the cache of their tokens, so that a turn computes what is new alone.

    Args:
        model: a causal language model of this library.
        tokenizer: its tokenizer, whose chat template says how turns are written.
        system: a first message of that role.
        context: tokens of history and reply at most; None: the model's ``max_position_embeddings``.
        max_new_tokens: of a reply.
        cache_implementation: as for ``generate``.
        settings: for ``generate``.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        system: str | None = None,
        context: int | None = None,
        max_new_tokens: int = 256,
        cache_implementation: str | None = None,
        **settings: Any,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._context = context or model.config.max_position_embeddings
        self._max_new_tokens = max_new_tokens
        self._settings = settings
        self._first = [] if system is None else [{"role": "system", "content": system}]
        self._stop = beginning_of_a_turn(tokenizer)
        self._cache = model.lend_cache(1, self._context, cache_implementation)
        weakref.finalize(self, model.decode_graphs.give_back, self._cache, keeps=True)
        self._cached: list[int] = []
        self.messages: list[dict[str, str]] = list(self._first)

    def reset(self) -> None:
        """Forgets all but the system message."""
        self.messages = list(self._first)

    def say(self, text: str, show: Callable[[str], None]) -> Reply:
        """Adds a message of the user and the reply to it, whose text `show` gets piece by piece.

        Ctrl-C ends the reply; what it said so far stays. After any error the conversation is as before. Raises
        ValueError for a message that leaves no room for a reply.
        """
        begin = time.perf_counter()
        before = self.messages
        messages = [*before, {"role": "user", "content": text}]
        messages, ids = self._fit(messages)
        kept = min(common_beginning(ids, self._cached), len(ids) - 1)
        self._cache.truncate(kept)
        self._cached = self._cached[:kept]
        streamer = _ReplyStreamer(self._tokenizer, self._stop, show)
        interrupted, speculation = False, None
        try:
            made = self._model.generate(
                torch.tensor([ids]),
                past_key_values=self._cache,
                streamer=streamer,
                tokenizer=self._tokenizer,
                stop_strings=self._stop or None,
                max_new_tokens=min(self._max_new_tokens, self._context - len(ids)),
                return_dict_in_generate=True,
                **self._settings,
            )
            speculation = getattr(made, "speculation", None)
            self._cached = made.sequences[0, :-1].tolist()  # the last token is not fed back
        except KeyboardInterrupt:
            interrupted = True
        reply = "".join(streamer.said).strip()
        if reply or not interrupted:
            self.messages = [*messages, {"role": "assistant", "content": reply}]
        seconds = time.perf_counter() - begin
        forgotten = len(before) + 1 - len(messages)
        return Reply(reply, streamer.tokens, seconds, interrupted, forgotten, speculation)

    def _fit(self, messages: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[int]]:
        """The messages without as many of the oldest turns as leaves room for a reply, and their ids."""
        first = len(self._first)
        room = min(self._max_new_tokens, self._context // 2)
        while True:
            encoded = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            ids = list(encoded["input_ids"])
            if len(ids) + room <= self._context:
                return messages, ids
            if len(messages) <= first + 1:
                raise ValueError(
                    f"The message makes a prompt of {len(ids)} tokens, and of the context's {self._context} a reply "
                    f"needs {room}: shorten it."
                )
            messages = [*messages[:first], *messages[first + 2 :]]


class _ReplyStreamer(TextStreamer):
    """Shows a reply up to `stop`, of which no beginning is shown before it is clear that it's something else."""

    def __init__(self, tokenizer: Any, stop: str, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._stop = stop
        self._show = show
        self._held = ""
        self._stopped = False
        self._calls = 0
        self.said: list[str] = []

    @property
    def tokens(self) -> int:
        """New tokens so far."""
        return max(self._calls - 1, 0)

    def put(self, value: Any) -> None:
        """See `TextStreamer`; the first call is the prompt."""
        self._calls += 1
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Shows what is certain."""
        if self._stopped:
            return
        self._held += text
        before, found, _ = self._held.partition(self._stop) if self._stop else (self._held, "", "")
        self._stopped = bool(found)
        if not found and not stream_end:
            ends = (size for size in range(len(self._stop) - 1, 0, -1) if self._held.endswith(self._stop[:size]))
            before = self._held[: len(self._held) - next(ends, 0)]
        self._held = self._held[len(before) :]
        if before:
            self.said.append(before)
            self._show(before)
