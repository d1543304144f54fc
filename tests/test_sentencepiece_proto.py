"""The reader of sentencepiece's files agrees with sentencepiece and refuses damaged ones."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_models import TINY, prefixed, processor, train

from persimmon_ext.sentencepiece_proto import BYTE, CONTROL, UNKNOWN, USER_DEFINED, parse_model


@pytest.mark.parametrize("model", [TINY.read_bytes, prefixed, train], ids=["embedded", "prefixed", "defaults"])
def test_pieces_are_sentencepieces(model):
    reference = processor(model())
    parsed = parse_model(model())
    assert len(parsed.pieces) == reference.get_piece_size()
    for index, piece in enumerate(parsed.pieces):
        assert (piece.text, piece.score) == (reference.id_to_piece(index), reference.get_score(index))
        assert (piece.type == BYTE) == reference.is_byte(index)
        assert (piece.type == CONTROL) == reference.is_control(index)
        assert (piece.type == UNKNOWN) == reference.is_unknown(index)
    assert any(piece.type == USER_DEFINED for piece in parsed.pieces) == (model is prefixed)


def test_specifications():
    defaults, like_persimmon, embedded = parse_model(train()), parse_model(prefixed()), parse_model(TINY.read_bytes())
    assert [spec.byte_fallback for spec in (defaults, like_persimmon, embedded)] == [False, True, True]
    assert [spec.add_dummy_prefix for spec in (defaults, like_persimmon, embedded)] == [True, True, False]
    assert [spec.remove_extra_whitespaces for spec in (defaults, like_persimmon, embedded)] == [True, False, False]
    assert [bool(spec.precompiled_charsmap) for spec in (defaults, like_persimmon, embedded)] == [True, False, False]
    assert not parse_model(TINY.read_bytes(), with_pieces=False).pieces


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60))
@example(data=b"\x0a\xff\xff\xff\xff\x0f")
@example(data=b"\x0a" + b"\xff" * 12)
@example(data=b"\x08\x01")
@example(data=b"\x0a\x02\x0a\x00")
@example(data=b"\x0a\x03\x0a\x01\xff")
@example(data=b"\x0a\x03\x12\x01\x00")
@example(data=b"\x0a\x02\x1a\x00")
@example(data=b"\x02\x00")
@example(data=b"\x0b")
def test_damage_is_a_value_error(data):
    try:
        parsed = parse_model(data)
    except ValueError:
        return
    assert parsed.pieces


@settings(max_examples=100, deadline=None)
@given(size=st.integers(0, len(TINY.read_bytes()) - 1))
def test_a_truncated_file_is_refused_or_shorter(size):
    try:
        parsed = parse_model(TINY.read_bytes()[:size])
    except ValueError:
        return
    assert parsed.pieces
