"""Property tests: any attention mask, fed in any pieces, through any path, gives transformers' result."""

from __future__ import annotations

import torch
from helpers import max_error, model_pair, random_ids
from hypothesis import given, settings
from hypothesis import strategies as st

import persimmon_ext

OURS, THEIRS = model_pair(attention="sdpa", num_hidden_layers=1)


@st.composite
def masks(draw) -> torch.Tensor:
    B, S = draw(st.integers(1, 3)), draw(st.integers(1, 14))
    rows = draw(st.lists(st.lists(st.booleans(), min_size=S, max_size=S), min_size=B, max_size=B))
    return torch.tensor(rows)


@st.composite
def padded(draw) -> torch.Tensor:
    """Real tokens in one run per row: what the kernels take."""
    B, S = draw(st.integers(1, 3)), draw(st.integers(1, 14))
    mask = torch.zeros(B, S, dtype=torch.bool)
    for row in mask:
        begin = draw(st.integers(0, S))
        row[begin : draw(st.integers(begin, S))] = True
    return mask


@settings(max_examples=60)
@given(st.one_of(masks(), padded()), st.integers(0, 99))
def test_any_mask(mask, seed):
    ids = random_ids(*mask.shape, seed=seed)
    expected = THEIRS(ids, attention_mask=mask.long()).logits
    with torch.no_grad():
        assert max_error(OURS(ids, attention_mask=mask).logits, expected) < 1e-4
    assert max_error(OURS(ids, attention_mask=mask.long()).logits, expected) < 1e-4


@settings(max_examples=40)
@given(st.one_of(masks(), padded()), st.data())
def test_any_pieces(mask, data):
    """Caches filled in pieces, with the mask of what is there so far, give what one call gives."""
    B, S = mask.shape
    ids = random_ids(B, S)
    cut = data.draw(st.lists(st.integers(1, S), max_size=3)) if S > 1 else []
    ends = sorted({*cut, S})
    static = data.draw(st.booleans())
    cache = persimmon_ext.StaticCache(OURS.config, S) if static else persimmon_ext.DynamicCache()
    with torch.no_grad():
        whole = OURS(ids, attention_mask=mask).logits
        begin = 0
        for end in ends:
            piece = OURS(ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache).logits
            # One layer: a position's logits depend on the keys it sees alone, so later padding changes nothing.
            assert max_error(piece, whole[:, begin:end]) < 1e-4
            begin = end


@settings(max_examples=40)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 12), st.booleans())
def test_any_shape(B, T, past, static):
    ids = random_ids(B, past + T)
    cache = persimmon_ext.StaticCache(OURS.config, past + T) if static else persimmon_ext.DynamicCache()
    with torch.no_grad():
        if past:
            OURS(ids[:, :past], past_key_values=cache)
        last = OURS(ids[:, past:], past_key_values=cache).logits
    assert max_error(last, THEIRS(ids).logits[:, past:]) < 1e-4
    assert cache.get_seq_length() == past + T
