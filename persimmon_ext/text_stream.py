"""Text from token ids as they come: never half a character, and in the end exactly what ``decode`` returns."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from persimmon_ext.vocabulary import SPACE_SYMBOL

if TYPE_CHECKING:
    from persimmon_ext.token_codec import TokenCodec

_REPLACEMENT = "\ufffd"


class IncrementalDecoder:
    """Turns ids into text piece by piece.

    Characters that the model spells in bytes are held back until complete; bytes that are no UTF-8 become U+FFFD one
    by one, as in sentencepiece. Each special token starts a new text, because encoding cuts there too.
    """

    def __init__(self, tokenizer: TokenCodec, skip_special_tokens: bool = False):
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._bytes = bytearray()
        self._at_start = True

    def put(self, ids: int | Iterable[int] | Any) -> str:
        """Takes one id or several (int, iterable, 1-D tensor or array) and returns the text that is now certain.

        Raises TypeError for what is not an id and ValueError for an id outside the vocabulary; nothing is taken then.
        """
        return "".join([self._put(index) for index in self._tokenizer.check_ids(ids)])

    def finish(self) -> str:
        """Ends the text: returns what was held back (U+FFFD for each byte of a broken character) and starts anew."""
        rest = self._drain(final=True)
        self._at_start = True
        return rest

    def _put(self, index: int) -> str:
        special = self._tokenizer.special_tokens.content(index)
        if special is not None:
            content, skippable = special
            return self.finish() + ("" if skippable and self._skip_special_tokens else content)
        vocabulary = self._tokenizer.vocabulary
        surface = vocabulary.surface(index)
        if isinstance(surface, int):
            self._bytes.append(surface)
            self._at_start = False
            return self._drain(final=False)
        before = self._drain(final=True)
        if self._at_start:
            consumed = vocabulary.consumes_prefix and surface.startswith(SPACE_SYMBOL)
            surface = surface[consumed:]
            self._at_start = not surface and not (consumed and not vocabulary.consumes_all_leading)
        return before + surface.replace(SPACE_SYMBOL, " ")

    def _drain(self, final: bool) -> str:
        characters = []
        while self._bytes:
            size = _character_size(self._bytes[0])
            head = bytes(self._bytes[:size])
            if len(head) < size and not final and all(0x80 <= byte < 0xC0 for byte in head[1:]):
                break
            try:
                character = head.decode("utf-8")
            except UnicodeDecodeError:
                character, size = _REPLACEMENT, 1
            characters.append(character)
            del self._bytes[:size]
        return "".join(characters)


def _character_size(lead: int) -> int:
    """Bytes of the UTF-8 character that ``lead`` opens; 1 for a byte that opens none."""
    if 0xC2 <= lead <= 0xDF:
        return 2
    if 0xE0 <= lead <= 0xEF:
        return 3
    return 4 if 0xF0 <= lead <= 0xF4 else 1


class TextStreamer:
    """Prints the text of ``generate`` while it is made: pass it as ``streamer``.

    Args:
        tokenizer: decodes the ids.
        skip_prompt: print only what is generated. The prompt still counts as context, so that the first printed
            word keeps its space.
        skip_special_tokens: leave out tokens such as ``</s>``.
        stream: where to write; None is ``sys.stdout`` at the time of writing.
        end: written after the text.

    Override ``on_finalized_text`` to send the text elsewhere.
    """

    def __init__(
        self,
        tokenizer: TokenCodec,
        skip_prompt: bool = False,
        skip_special_tokens: bool = False,
        stream: TextIO | None = None,
        end: str = "\n",
    ):
        self.skip_prompt = skip_prompt
        self._decoder = IncrementalDecoder(tokenizer, skip_special_tokens)
        self._stream = stream
        self._end = end
        self._expects_prompt = True

    def put(self, value: Any) -> None:
        """Takes ids: a tensor [T] or [1, T], an int or a list. The first call of a text is its prompt.

        Raises ValueError for a batch of several sequences.
        """
        shape = tuple(getattr(value, "shape", ()))
        if len(shape) > 1:
            if len(shape) > 2 or shape[0] != 1:
                raise ValueError(f"A TextStreamer prints one sequence, but ids of shape {list(shape)} arrived.")
            value = value[0]
        text = self._decoder.put(value)
        is_prompt, self._expects_prompt = self._expects_prompt, False
        if text and not (is_prompt and self.skip_prompt):
            self.on_finalized_text(text)

    def end(self) -> None:
        """Ends the text: prints what was held back and ``end``, and is ready for the next prompt."""
        self._expects_prompt = True
        self.on_finalized_text(self._decoder.finish(), stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Writes ``text`` (and ``end`` after the last one) and flushes, so that it is seen at once."""
        print(text, end=self._end if stream_end else "", file=self._stream or sys.stdout, flush=True)
