"""Reads the serialized form of a sentencepiece model without the protobuf package.

Field numbers are those of ``sentencepiece_model.proto`` in the sentencepiece sources; only the fields that decide
ids and text are kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM = 1
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary: its text, its log probability and one of the piece types above."""

    text: str
    score: float
    type: int = NORMAL


@dataclass
class ModelProto:
    """What a sentencepiece model file says; the defaults are sentencepiece's own for absent fields."""

    pieces: list[Piece] = field(default_factory=list)
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    treat_whitespace_as_suffix: bool = False
    unk_surface: str = " \u2047 "
    precompiled_charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    denormalizes: bool = False


def iterate_fields(data: bytes) -> Iterator[tuple[int, int | bytes, int, int]]:
    """Yields ``(field number, value, start, end)`` of a protobuf message; ``data[start:end]`` is the whole field.

    Values are int for varints and raw bytes for everything else. Raises ValueError where the bytes are not a message.
    """
    position = 0
    while position < len(data):
        start = position
        key, position = _read_varint(data, position)
        number, wire_type = key >> 3, key & 7
        value: int | bytes
        if wire_type == _VARINT:
            value, position = _read_varint(data, position)
        elif wire_type in (_FIXED32, _FIXED64, _BYTES):
            if wire_type == _BYTES:
                size, position = _read_varint(data, position)
            else:
                size = 4 if wire_type == _FIXED32 else 8
            value = data[position : position + size]
            if len(value) != size:
                raise ValueError(f"the file ends inside a field: {size} bytes announced at offset {position}")
            position += size
        else:
            raise ValueError(f"unknown protobuf wire type {wire_type} at offset {start}")
        if number == 0:
            raise ValueError(f"protobuf field number 0 at offset {start}")
        yield number, value, start, position


def parse_model(data: bytes, with_pieces: bool = True) -> ModelProto:
    """Parses the bytes of a ``tokenizer.model`` file; ``with_pieces=False`` reads only the specifications.

    Raises ValueError with the reason when they are not a sentencepiece model.
    """
    model = ModelProto()
    has_pieces = False
    for number, value, _, _ in iterate_fields(data):
        if number == 1:
            has_pieces = True
            if with_pieces:
                model.pieces.append(parse_piece(_message(value)))
        elif number == 2:
            _read_trainer_spec(model, _message(value))
        elif number == 3:
            _read_normalizer_spec(model, _message(value))
        elif number == 5:
            rules = (inner for inner_number, inner, _, _ in iterate_fields(_message(value)) if inner_number == 2)
            model.denormalizes = any(rules)
    if not has_pieces:
        raise ValueError("the model holds no pieces")
    return model


def parse_piece(data: bytes) -> Piece:
    """Parses one ``SentencePiece`` message."""
    text, score, kind = "", 0.0, NORMAL
    for number, value, _, _ in iterate_fields(data):
        if number == 1:
            text = _message(value).decode("utf-8")
        elif number == 2:
            if len(_message(value)) != 4:
                raise ValueError("a piece's score is not a 32-bit float")
            (score,) = struct.unpack("<f", _message(value))
        elif number == 3:
            kind = _integer(value)
    return Piece(text, score, kind)


def _read_trainer_spec(model: ModelProto, data: bytes) -> None:
    for number, value, _, _ in iterate_fields(data):
        if number == 3:
            model.model_type = _integer(value)
        elif number == 24:
            model.treat_whitespace_as_suffix = bool(value)
        elif number == 35:
            model.byte_fallback = bool(value)
        elif number == 44:
            model.unk_surface = _message(value).decode("utf-8")


def _read_normalizer_spec(model: ModelProto, data: bytes) -> None:
    for number, value, _, _ in iterate_fields(data):
        if number == 2:
            model.precompiled_charsmap = _message(value)
        elif number == 3:
            model.add_dummy_prefix = bool(value)
        elif number == 4:
            model.remove_extra_whitespaces = bool(value)
        elif number == 5:
            model.escape_whitespaces = bool(value)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    result = 0
    for index in range(10):
        if position >= len(data):
            raise ValueError(f"the file ends inside a number at offset {position}")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return result, position
    raise ValueError(f"a number longer than 10 bytes ends at offset {position}")


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError(f"a message was expected where the file holds the number {value}")
    return value


def _integer(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError(f"a number was expected where the file holds {len(value)} bytes")
    return value
