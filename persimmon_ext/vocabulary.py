"""The sentencepiece model behind the tokenizer: text to ids, ids to pieces, and how pieces become text."""

from __future__ import annotations

from typing import Any

import sentencepiece

from persimmon_ext.sentencepiece_proto import MODEL_TYPES, NORMAL, UNIGRAM, UNUSED, parse_model

SPACE_SYMBOL = "\u2581"
_ROUNDING = 1e-3  # more than sums of scores differ by in float32


class SentencePieceVocabulary:
    """A loaded sentencepiece model. Keeps its serialized bytes, so it can be saved, pickled and copied.

    ``consumes_prefix``: decoding drops the first space symbol, because encoding put one there or removed it.
    ``consumes_all_leading``: every leading piece loses its space symbol, not only the first.
    """

    def __init__(self, model: bytes, source: str = "the sentencepiece model"):
        """Loads a serialized model; ``source`` names it in errors. Raises ValueError when it cannot be used."""
        try:
            spec = parse_model(model, with_pieces=False)
        except ValueError as error:
            raise ValueError(f"{source} is not a sentencepiece model: {error}.") from error
        if spec.denormalizes:
            raise ValueError(
                f"{source} rewrites text after decoding (a denormalization rule), which streaming cannot follow; "
                "train the model without denormalization_rule_tsv."
            )
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{source} is not a usable sentencepiece model: {error}.") from error
        self._model = model
        self._processor = processor
        self.model_type = MODEL_TYPES.get(spec.model_type, str(spec.model_type))
        self.consumes_prefix = spec.add_dummy_prefix or spec.remove_extra_whitespaces
        self.consumes_all_leading = spec.remove_extra_whitespaces
        self.unk_surface = spec.unk_surface

    def __len__(self) -> int:
        return self._processor.get_piece_size()

    @property
    def model(self) -> bytes:
        """The model as it was loaded, byte for byte."""
        return self._model

    def named_piece(self, name: str) -> str | None:
        """The piece that the model itself calls ``unk``, ``bos``, ``eos`` or ``pad``; None where it has none."""
        index = getattr(self._processor, f"{name}_id")()
        return None if index < 0 else self._processor.id_to_piece(index)

    def control_pieces(self) -> list[str]:
        """Pieces that sentencepiece never finds in a text, such as ``<s>``, in the order of their ids."""
        return [self.piece(index) for index in range(len(self)) if self._processor.is_control(index)]

    def encode(self, text: str) -> list[int]:
        """sentencepiece's own ids of ``text``. Raises ValueError for a lone surrogate, which no encoding can hold."""
        if not _is_unicode(text):
            position = next(i for i, character in enumerate(text) if not _is_unicode(character))
            raise ValueError(f"The text has a lone surrogate, {text[position]!r}, at position {position}.")
        ids: list[int] = self._processor.encode(text)
        return ids

    def piece(self, index: int) -> str:
        """The piece of one id, the space symbol included; the id must be in range."""
        return self._processor.id_to_piece(index)

    def find(self, piece: str) -> int | None:
        """The id of exactly this piece, or None."""
        if not _is_unicode(piece):
            return None
        index = self._processor.piece_to_id(piece)
        # sentencepiece answers the unknown id for what it does not know.
        return index if self._processor.id_to_piece(index) == piece else None

    def producible(self) -> list[int]:
        """The ids that encoding some text may give, control pieces included.

        Left out: pieces marked as unused and, in a unigram model, those that are less likely than some way to write
        them with other pieces, since the likeliest way is what encoding takes. Where neither can be told, an id stays.
        """
        spec = parse_model(self._model)
        scores = {piece.text: piece.score for piece in spec.pieces if piece.type == NORMAL}
        return [
            index
            for index, piece in enumerate(spec.pieces)
            if piece.type != UNUSED
            and not (spec.model_type == UNIGRAM and piece.type == NORMAL and _is_beaten(piece.text, scores))
        ]

    def surface(self, index: int) -> str | int:
        """What an id stands for before spaces are restored: a byte (int) of a split character, or a text."""
        if self._processor.is_byte(index):
            return int(self._processor.id_to_piece(index)[3:-1], 16)
        if self._processor.is_control(index):
            return ""
        if self._processor.is_unknown(index):
            return self.unk_surface
        return self._processor.id_to_piece(index)

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self._model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model"])  # type: ignore[misc]


def check_fits(tokens: int, rows: int, what: str) -> None:
    """Raises ValueError if the tokenizer `what` has more tokens than the model's vocabulary has rows."""
    if tokens > rows:
        raise ValueError(
            f"{what} has {tokens} tokens, but the model's vocabulary has only {rows}: they don't belong together."
        )


def _is_beaten(text: str, scores: dict[str, float]) -> bool:
    """Whether two or more pieces that make up `text` have a higher score than it has as one."""
    best = [0.0] + [float("-inf")] * len(text)
    longest = len(text)
    for end in range(1, longest + 1):
        for begin in range(end):
            part = text[begin:end]
            if len(part) < longest and part in scores:
                best[end] = max(best[end], best[begin] + scores[part])
    return best[-1] > scores[text] + _ROUNDING * max(1.0, abs(scores[text]))


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
