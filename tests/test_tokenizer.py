"""Ids, text and batches of the tokenizer."""

from __future__ import annotations

import copy
import pickle
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_models import SPACE, TEXTS, TINY, prefixed, processor, source, tiny, train

from persimmon_ext.tokenizer import PersimmonTokenizer

MANY = settings(max_examples=100, deadline=None)


@pytest.fixture
def tokenizer() -> PersimmonTokenizer:
    """The embedded tokenizer with a padding token, free to be changed."""
    return PersimmonTokenizer.from_pretrained(TINY, pad_token="</s>")


@pytest.mark.parametrize("model", [TINY.read_bytes, prefixed, train], ids=["embedded", "prefixed", "defaults"])
@MANY
@given(text=TEXTS)
def test_ids_and_text_are_sentencepieces(model, text):
    ours = PersimmonTokenizer(model(), split_special_tokens=True)
    reference = processor(model())
    ids = reference.encode(text)
    assert ours.encode(text, add_special_tokens=False) == ids
    assert ours.encode(text) == [1, *ids]
    if ours.unk_token_id not in ids:
        assert ours.decode(ids) == reference.decode(ids)


@MANY
@given(ids=st.lists(st.integers(3, 4095) | st.integers(5, 260), max_size=30))
def test_decoding_any_ids_is_sentencepieces(ids):
    ids = [index for index in ids if index != tiny().convert_tokens_to_ids("|ENDOFTEXT|")]
    assert tiny().decode(ids) == processor(tiny().vocabulary.model).decode(ids)


@pytest.mark.parametrize("model", [prefixed, train], ids=["prefixed", "defaults"])
@MANY
@given(data=st.data())
def test_decoding_consumes_prefixes_as_sentencepiece_does(model, data):
    reference = processor(model())
    ours = PersimmonTokenizer(model(), additional_special_tokens=[])
    spaces = [index for index in range(3, len(ours)) if reference.id_to_piece(index).startswith(SPACE)]
    ids = data.draw(st.lists(st.sampled_from(spaces) | st.integers(3, len(ours) - 1), max_size=12))
    assert ours.decode(ids) == reference.decode(ids)


@pytest.mark.parametrize("model", [TINY.read_bytes, prefixed], ids=["embedded", "prefixed"])
@MANY
@given(text=TEXTS)
def test_text_comes_back(model, text):
    tokenizer = PersimmonTokenizer(model())
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text.replace(SPACE, " ")
    assert tokenizer.decode(tokenizer.encode(text)) == "<s>" + text.replace(SPACE, " ")


def test_source_code_comes_back():
    text = source(textwrap)
    ids = tiny().encode(text, add_special_tokens=False)
    assert ids == processor(tiny().vocabulary.model).encode(text)
    assert tiny().decode(ids) == text


def test_the_space_symbol_is_a_space():
    assert tiny().decode(tiny().encode(f"a{SPACE}b"), skip_special_tokens=True) == "a b"


def test_special_tokens_in_text_are_one_id():
    end = tiny().convert_tokens_to_ids("|ENDOFTEXT|")
    ids = tiny().encode("x</s>|ENDOFTEXT|<s>y", add_special_tokens=False)
    assert ids == [*tiny().encode("x", add_special_tokens=False), 2, end, 1, *tiny().encode("y")[1:]]
    assert tiny().decode(ids) == "x</s>|ENDOFTEXT|<s>y"
    assert tiny().decode(ids, skip_special_tokens=True) == "xy"


def test_special_tokens_can_be_left_to_sentencepiece():
    ours = PersimmonTokenizer(TINY, split_special_tokens=True)
    ids = ours.encode("</s>", add_special_tokens=False)
    assert 2 not in ids
    assert ours.decode(ids) == "</s>"


def test_the_longest_special_token_wins():
    ours = PersimmonTokenizer(TINY, added_tokens={"<a>": 4096, "<a><b>": 4097})
    assert ours.encode("<a><b><a>", add_special_tokens=False) == [4097, 4096]


def test_special_token_attributes(tokenizer):
    roles = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    assert roles == ("<s>", "</s>", "<unk>", "</s>")
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
    assert ids == (1, 2, 0, 2)
    end = tokenizer.convert_tokens_to_ids("|ENDOFTEXT|")
    assert tokenizer.all_special_tokens == ["<unk>", "<s>", "</s>", "|ENDOFTEXT|"]
    assert tokenizer.all_special_ids == [0, 1, 2, end]
    tokenizer.pad_token = "|ENDOFTEXT|"
    assert tokenizer.pad_token_id == end
    tokenizer.eos_token_id = end
    assert tokenizer.eos_token == "|ENDOFTEXT|"
    tokenizer.pad_token = None
    assert tokenizer.pad_token_id is None


def test_vocabulary(tokenizer):
    assert tokenizer.vocab_size == len(tokenizer) == 4096
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == 4096
    assert all(tokenizer.convert_tokens_to_ids(token) == index for token, index in vocabulary.items())
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<unk>", "<s>", "</s>"]
    assert tokenizer.convert_ids_to_tokens(2) == "</s>"
    assert tokenizer.convert_ids_to_tokens([1, 2, 9], skip_special_tokens=True) == ["<0x04>"]
    assert tokenizer.convert_tokens_to_ids(["</s>", "no such token", "\ud800"]) == [2, 0, 0]
    assert tokenizer.tokenize("return </s>") == ["return", SPACE, "</s>"]


def test_added_tokens_follow_the_vocabulary():
    ours = PersimmonTokenizer(TINY, added_tokens={"<pad>": 4096, "<think>": 4097}, pad_token="<pad>")
    assert (len(ours), ours.vocab_size, ours.pad_token_id) == (4098, 4096, 4096)
    ids = ours.encode("a<think>b<pad>", add_special_tokens=False)
    assert ids[1] == 4097
    assert ids[-1] == 4096
    assert ours.decode(ids) == "a<think>b<pad>"
    assert ours.decode(ids, skip_special_tokens=True) == "a<think>b"
    assert ours.convert_ids_to_tokens([4096]) == ["<pad>"]


def test_one_text_or_several(tokenizer):
    one = tokenizer("def f")
    assert one["input_ids"] == tokenizer.encode("def f")
    assert one.attention_mask == [1] * len(one.input_ids)
    several = tokenizer(["def f", ""])
    assert several.input_ids == [one.input_ids, [1]]
    assert tokenizer([]) == {"input_ids": [], "attention_mask": []}
    assert list(tokenizer("x", return_attention_mask=False)) == ["input_ids"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["pt", "np", None])
def test_padding(tokenizer, side, kind):
    texts = ["", "def f(x):", "return"]
    batch = tokenizer(texts, padding=True, padding_side=side, return_tensors=kind)
    rows = [tokenizer.encode(text) for text in texts]
    longest = max(map(len, rows))
    for ids, mask, row in zip(np.asarray(batch.input_ids), np.asarray(batch.attention_mask), rows, strict=True):
        filling = [2] * (longest - len(row))
        expected = filling + row if side == "left" else row + filling
        assert ids.tolist() == expected
        assert mask.sum() == len(row)
        assert mask[-1 if side == "left" else 0] == 1
    if kind == "pt":
        assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64
        assert batch.to("cpu") is batch
    elif kind == "np":
        assert batch.input_ids.dtype == np.int64


def test_padding_to_a_length(tokenizer):
    assert tokenizer("x", padding="max_length", max_length=7, return_tensors="pt").input_ids.shape == (1, 7)
    assert len(tokenizer("x", padding=True, pad_to_multiple_of=8).input_ids) == 8
    assert tokenizer([], padding=True, return_tensors="pt").input_ids.shape == (0, 0)
    long = tokenizer("x y z", padding="max_length", max_length=2).input_ids
    assert len(long) > 2, "padding never cuts"


def test_truncation(tokenizer):
    ids = tokenizer.encode("a b c d e f", add_special_tokens=False)
    assert tokenizer.encode("a b c d e f", truncation=True, max_length=4) == [1, *ids[:3]]
    assert tokenizer.encode("a b c d e f", max_length=4) == [1, *ids[:3]]
    assert tokenizer.encode("a b c d e f", truncation=False, max_length=4) == [1, *ids]
    assert tokenizer.encode("a b", truncation=True) == [1, *ids[:2]]
    tokenizer.truncation_side = "left"
    tokenizer.add_eos_token = True
    assert tokenizer.encode("a b c d e f", truncation=True, max_length=5) == [1, *ids[-3:], 2]
    tokenizer.model_max_length = 3
    assert tokenizer.encode("a b c d e f", truncation=True) == [1, ids[-1], 2]
    assert tokenizer("a", padding="max_length").input_ids == [1, ids[0], 2]


def test_affixes_can_be_turned_off(tokenizer):
    tokenizer.add_bos_token = False
    assert tokenizer.encode("x") == tokenizer.encode("x", add_special_tokens=False)


def test_decode_takes_tensors_arrays_and_ints(tokenizer):
    ids = tokenizer.encode("return é")
    for form in (ids, tuple(ids), torch.tensor(ids), np.array(ids), iter(ids), torch.tensor(ids, dtype=torch.int32)):
        assert tokenizer.decode(form, skip_special_tokens=True) == "return é"
    assert tokenizer.decode(2) == tokenizer.decode(torch.tensor(2)) == tokenizer.decode(np.int64(2)) == "</s>"
    assert tokenizer.decode([]) == ""
    assert tokenizer.batch_decode(torch.tensor([ids, ids])) == ["<s>return é"] * 2
    assert tokenizer.batch_decode([ids, []], skip_special_tokens=True) == ["return é", ""]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies(duplicate):
    twin = duplicate(tiny())
    text = "def f():\n    return '☃'</s>"
    assert twin.encode(text) == tiny().encode(text)
    assert twin.decode(twin.encode(text)) == "<s>" + text


def test_a_deep_copy_is_independent(tokenizer):
    twin = copy.deepcopy(tokenizer)
    twin.pad_token = "|ENDOFTEXT|"
    assert tokenizer.pad_token == "</s>"
