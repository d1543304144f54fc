"""One text under generation: what was asked, what came so far, and when it ends.

Dims: V vocab.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from persimmon_ext.serving.errors import RequestError
from persimmon_ext.serving.stop_text import StopText
from persimmon_ext.text_stream import IncrementalDecoder
from persimmon_ext.token_codec import TokenCodec

#: The likeliest tokens at a place, each with its log-probability.
Top = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Sampling:
    """How the logits of a row become its next token. The defaults take the likeliest.

    `temperature`: 0 takes the likeliest. `presence_penalty` and `frequency_penalty` are subtracted from the logits of
    tokens generated before, the latter once for each time; `repetition_penalty` divides the positive and multiplies
    the negative logits of all tokens before, the prompt's included. `bias` is added to the logits of its tokens.
    `seed`: int64, of this row's own random stream.
    """

    temperature: float = 0.0
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0

    @property
    def penalises(self) -> bool:
        """Whether the logits are changed before a token is chosen."""
        neutral = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) == (0, 0, 1)
        return not neutral or bool(self.bias)


@dataclass(frozen=True)
class Order:
    """What is to be made of one prompt.

    `prompt`: ids, at least one. `max_new_tokens`: 0 only scores the prompt. `ends`: ids that end the text and are no
    part of it. `stops`: strings that do. `top`: None for no log-probabilities, else how many of the likeliest tokens to
    tell at each place; `scores_prompt` asks for those of the prompt too. `streams`: deliver text as it comes.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    ends: frozenset[int] = frozenset()
    stops: tuple[str, ...] = ()
    top: int | None = None
    scores_prompt: bool = False
    streams: bool = False

    @property
    def slots(self) -> int:
        """Cache slots that the row needs at most."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True)
class Scored:
    """A token with its log-probability (None for a prompt's first one) and the likeliest tokens at its place.

    `offset`: where its text begins in that of the prompt, or in that of what is generated.
    """

    token: int
    logprob: float | None
    top: Top
    offset: int


@dataclass(frozen=True)
class Piece:
    """What a row delivers: text, the log-probabilities of its tokens if asked, and why it ended once it has.

    `finish_reason`: ``stop`` (an end token or stop string), ``length``, or None where there is more to come.
    """

    text: str = ""
    scored: tuple[Scored, ...] = ()
    finish_reason: str | None = None
    error: RequestError | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.finish_reason is not None or self.error is not None


class Row:
    """An order while it is served. Made by a request, then changed by the worker alone, but for `cancelled`.

    `deliver` is called in the worker's thread: with each piece of a row that streams, and with the last of any row.
    """

    def __init__(self, order: Order, tokenizer: TokenCodec, deliver: Callable[[Piece], None]) -> None:
        self.order = order
        self.tokens: list[int] = []
        self.text = ""
        self.scored: list[Scored] = []
        self.prompt_scored: list[Scored] = []
        self.finish_reason: str | None = None
        self.ended = False
        self.cancelled = False
        #: Seconds from here to the first token, and to the end.
        self.first_token_seconds: float | None = None
        self.seconds = 0.0
        self._begun = time.monotonic()
        self._deliver = deliver
        self._decoder = IncrementalDecoder(tokenizer, skip_special_tokens=True)
        # The prompt is context: a word after it keeps its space, and a character begun in it is completed.
        pieces = [self._decoder.put(token) for token in order.prompt]
        self.prompt_text = "".join(pieces)
        self._prompt_offsets = (
            list(itertools.accumulate(map(len, pieces[:-1]), initial=0)) if order.scores_prompt else []
        )
        self._stop = StopText(order.stops)
        self._decoded = 0  # characters, those included that are held back as a beginning of a stop string
        self._told, self._told_scored = 0, 0

    @property
    def length(self) -> int:
        """Number of tokens, the prompt's included."""
        return len(self.order.prompt) + len(self.tokens)

    @property
    def begun(self) -> bool:
        """Whether its prompt has been run."""
        return bool(self.tokens or self.prompt_scored)

    def last_tokens(self, number: int) -> list[int]:
        """The last `number` tokens, or all if there are fewer; the prompt's included."""
        new = self.tokens[-number:]
        before = number - len(new)
        return [*(self.order.prompt[-before:] if before else ()), *new]

    def take(self, token: int, logprob: float | None = None, top: Top = ()) -> None:
        """Appends a new token, and ends the row if it is the last."""
        if self.first_token_seconds is None:
            self.first_token_seconds = time.monotonic() - self._begun
        self.tokens.append(token)
        if self.order.top is not None:
            self.scored.append(Scored(token, logprob, top, self._decoded))
        if token in self.order.ends:
            return self._end("stop")
        text = self._decoder.put(token)
        self._decoded += len(text)
        self.text += self._stop.put(text)
        if self._stop.matched:
            return self._end("stop")
        if len(self.tokens) >= self.order.max_new_tokens:
            return self._end("length")
        if self.order.streams and self._told < len(self.text):
            # A token whose text is held back may turn out to be a part of a stop string.
            certain = sum(entry.offset < len(self.text) for entry in self.scored)
            self._tell(Piece(self._new_text(), self._new_scored(certain)))
        return None

    def take_prompt_scores(self, scores: Sequence[tuple[float, Top]]) -> None:
        """Keeps the log-probabilities of the prompt's tokens but the first; ends a row that asks for no more."""
        entries = zip(self.order.prompt, [(None, ()), *scores], self._prompt_offsets, strict=True)
        self.prompt_scored = [Scored(token, logprob, top, offset) for token, (logprob, top), offset in entries]
        if self.order.max_new_tokens == 0:
            self._end("length")

    def fail(self, error: RequestError) -> None:
        """Ends the row with an error, unless it has ended."""
        if not self.ended:
            self._close()
            self._tell(Piece(error=error))

    def drop(self) -> None:
        """Ends a row whose client has left; delivers nothing."""
        self._close()

    def _end(self, reason: str) -> None:
        if not self._stop.matched:
            self.text += self._stop.put(self._decoder.finish())
        if self._stop.matched:  # also by the characters that ended only now
            reason = "stop"
            self.scored = [entry for entry in self.scored if entry.offset < len(self.text)]
        self.text += self._stop.finish()
        self.finish_reason = reason
        self._close()
        self._tell(Piece(self._new_text(), self._new_scored(len(self.scored)), reason))

    def _close(self) -> None:
        self.ended, self.seconds = True, time.monotonic() - self._begun

    def _new_text(self) -> str:
        text, self._told = self.text[self._told :], len(self.text)
        return text

    def _new_scored(self, end: int) -> tuple[Scored, ...]:
        scored, self._told_scored = tuple(self.scored[self._told_scored : end]), end
        return scored

    def _tell(self, piece: Piece) -> None:
        if not self.cancelled:
            self._deliver(piece)
