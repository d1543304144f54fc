"""Which ids a tokenizer can produce: trimming the vocabulary keeps those."""

from __future__ import annotations

import struct

import sentencepiece
from hypothesis import given
from tokenizer_models import TEXTS, prefixed, tiny, train

from persimmon_ext import PersimmonTokenizer
from persimmon_ext.sentencepiece_proto import NORMAL, UNUSED, iterate_fields, parse_model


def varint(number: int) -> bytes:
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def edited(model: bytes, changes: dict[int, tuple[float, int]]) -> bytes:
    """A serialized sentencepiece model with other scores and types of some pieces."""
    out, index = b"", 0
    for number, value, start, end in iterate_fields(model):
        if number != 1:
            out += model[start:end]
            continue
        if index in changes:
            assert isinstance(value, bytes)
            score, kind = changes[index]
            text = parse_model(model).pieces[index].text.encode()
            piece = b"\x0a" + varint(len(text)) + text + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind)
            out += b"\x0a" + varint(len(piece)) + piece
        else:
            out += model[start:end]
        index += 1
    return out


@given(TEXTS)
def test_no_id_outside_is_ever_produced(text: str) -> None:
    producible = set(tiny().vocabulary.producible()) | set(tiny().all_special_ids)
    assert set(tiny()(text).input_ids) <= producible


def test_pieces_that_others_beat_and_unused_ones() -> None:
    model = prefixed()
    pieces = parse_model(model).pieces
    long = [index for index, piece in enumerate(pieces) if piece.type == NORMAL and len(piece.text) >= 3]
    beaten, unused = long[:20], long[20:40]
    changes = dict.fromkeys(beaten, (-500.0, NORMAL)) | {index: (pieces[index].score, UNUSED) for index in unused}
    crafted = PersimmonTokenizer(edited(model, changes))
    missing = set(range(len(crafted))) - set(crafted.vocabulary.producible())
    assert set(beaten) | set(unused) <= missing
    processor = sentencepiece.SentencePieceProcessor(model_proto=crafted.vocabulary.model)
    for index in missing:
        text = pieces[index].text.replace("▁", " ")
        for around in (text, f"a{text}b", f" {text} {text}"):
            assert index not in processor.encode(around)


def test_a_bpe_model_keeps_what_it_has() -> None:
    model = train(model_type="bpe")
    assert PersimmonTokenizer(model).vocabulary.producible() == list(range(len(parse_model(model).pieces)))
