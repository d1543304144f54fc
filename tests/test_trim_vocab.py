"""Trimming the vocabulary: that nothing else changes, and that it comes back."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoint_helpers import CLASSES, assert_same_tensors, load, make_model
from tokenizer_models import TINY, tiny

from persimmon_ext import (
    PersimmonConfig,
    PersimmonForCausalLM,
    PersimmonModel,
    PersimmonTokenizer,
    embedded_checkpoint,
)

KEPT = [0, 1, 2, 5, 9, 10, 11, 30, 39]
IDS = torch.tensor([[5, 9, 30, 2, 39], [1, 1, 10, 11, 0]])
DROPPED = [index for index in range(40) if index not in KEPT]


# ---- what trimming does ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_logits_and_tokens(tied: bool) -> None:
    model = make_model(tie_word_embeddings=tied)
    expected = model(IDS).logits
    before = sum(parameter.nbytes for parameter in model.parameters())
    trimmed = model.trim_vocab(ids=KEPT)
    assert (trimmed.kept, trimmed.dropped) == (len(KEPT), len(DROPPED))
    rows = len(DROPPED) * 16 * 4 * (1 if tied else 2)
    assert before - sum(parameter.nbytes for parameter in model.parameters()) == rows
    indices = 8 * (40 + len(KEPT))
    assert trimmed.bytes_saved == rows - indices
    assert str(trimmed).startswith(f"{len(DROPPED)} of 40 ids dropped, ")
    logits = model(IDS).logits
    assert torch.equal(logits[..., KEPT], expected[..., KEPT])
    assert torch.isneginf(logits[..., DROPPED]).all()
    assert (model.lm_head.rows.weight is model.model.embed_tokens.weight) == tied
    tokens = model.generate(IDS[:1], max_new_tokens=8)
    assert set(tokens[0].tolist()) <= set(KEPT)
    sampled = model.generate(IDS[:1], max_new_tokens=8, do_sample=True, seed=1)
    assert set(sampled[0].tolist()) <= set(KEPT)


def test_with_a_tokenizer() -> None:
    """Its vocabulary is made larger by rows of no token, which look likely: they may not be chosen."""
    folder = embedded_checkpoint()
    small, tokenizer = PersimmonForCausalLM.from_pretrained(folder), PersimmonTokenizer.from_pretrained(folder)
    V, unused = small.config.vocab_size, 100
    model = PersimmonForCausalLM(PersimmonConfig.from_dict({**small.config.to_dict(), "vocab_size": V + unused}))
    state = small.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], -state[name][:unused]])
    model.to(small.dtype).load_state_dict(state)
    prompt = tokenizer("def read_lines(path):", return_tensors="pt").input_ids
    expected = small.generate(prompt, max_new_tokens=12)
    assert not torch.equal(model.generate(prompt, max_new_tokens=12), expected)
    trimmed = model.trim_vocab(tokenizer)
    assert trimmed.dropped == unused
    assert trimmed.kept >= len(set(tokenizer.vocabulary.producible()))
    assert torch.equal(model.generate(prompt, max_new_tokens=12), expected)


def test_scoring_rows_of_several_lengths() -> None:
    """What fills the shorter ones up may be no id that was dropped."""
    model = make_model()
    whole = copy.deepcopy(model)
    model.trim_vocab(ids=[5, 9, 11])
    texts = [[9], [5, 9, 11, 9]]
    found, expected = model.score(texts, prompts=[5]), whole.score(texts, prompts=[5])
    # Of the dropped ids, none takes a share of the probability.
    assert all(bool((mine.logprobs >= theirs.logprobs).all()) for mine, theirs in zip(found, expected, strict=True))
    assert torch.equal(model.score([texts[0]], prompts=[5])[0].logprobs, found[0].logprobs)


def test_a_padded_vocabulary(tmp_path: Path) -> None:
    tokenizer = PersimmonTokenizer(TINY)
    model = make_model(vocab_size=len(tokenizer) + 100, pad_token_id=len(tokenizer) + 7)
    trimmed = model.trim_vocab(tokenizer)
    assert trimmed.dropped >= 99
    assert model.model.embed_tokens(torch.tensor([len(tokenizer) + 7])).shape == (1, 16)


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("tied", [False, True])
def test_restoring(model_class: type[Any], tied: bool) -> None:
    model = make_model(model_class, tie_word_embeddings=tied, pad_token_id=2)
    whole = copy.deepcopy(model)
    model.trim_vocab(ids=KEPT)
    assert model.restore_vocab() is model
    assert_same_tensors(whole, model)
    assert model.decoder.embed_tokens.padding_idx == 2
    assert all(parameter.requires_grad for parameter in model.parameters())
    if model_class is PersimmonForCausalLM:
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert_same_tensors(whole, model.restore_vocab())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", ["5GB", 3000])
@torch.no_grad()
def test_saving_writes_all_rows(tmp_path: Path, tied: bool, size: int | str) -> None:
    model = make_model(tie_word_embeddings=tied)
    whole = copy.deepcopy(model)
    model.trim_vocab(ids=KEPT)
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert_same_tensors(whole, load(tmp_path))
    theirs = transformers.PersimmonForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(theirs(IDS).logits[..., KEPT], model(IDS).logits[..., KEPT], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_saving_a_state_dict_of_before(tmp_path: Path, tied: bool) -> None:
    model = make_model(tie_word_embeddings=tied)
    whole = make_model(seed=1, tie_word_embeddings=tied)
    model.trim_vocab(ids=KEPT)
    model.save_pretrained(tmp_path, state_dict=whole.state_dict())
    assert_same_tensors(whole, load(tmp_path))


@pytest.mark.parametrize("shape", [(), (40,), (len(KEPT) + 1, 16), (len(KEPT), 15)])
def test_a_state_dict_of_other_rows(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = make_model()
    model.trim_vocab(ids=KEPT)
    state = {**model.state_dict(), "model.embed_tokens.weight": torch.ones(shape)}
    with pytest.raises(ValueError, match=r"other shapes: model\.embed_tokens\.weight .* instead of \[40, 16\]"):
        model.save_pretrained(tmp_path, state_dict=state)


def test_of_another_dtype(tmp_path: Path) -> None:
    model = make_model()
    expected = copy.deepcopy(model).bfloat16()
    model.trim_vocab(ids=KEPT)
    model.bfloat16().save_pretrained(tmp_path)
    assert_same_tensors(expected, load(tmp_path))
    assert_same_tensors(expected, model.restore_vocab())


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@torch.no_grad()
def test_a_quantised_model(tmp_path: Path, quantization: str) -> None:
    model = make_model(hidden_size=64, intermediate_size=64, num_attention_heads=2).quantize(quantization)
    whole = copy.deepcopy(model)
    expected = model(IDS).logits
    model.trim_vocab(ids=KEPT)
    assert torch.equal(model(IDS).logits[..., KEPT], expected[..., KEPT])
    assert model.quantization == quantization
    model.save_pretrained(tmp_path)
    assert_same_tensors(whole, load(tmp_path))
    assert_same_tensors(whole, model.restore_vocab())
    assert torch.equal(model(IDS).logits, expected)


@pytest.mark.parametrize("padding", [2, 3])
def test_the_padding_row(padding: int) -> None:
    """Of an id that is kept, and of one that is dropped."""
    model = make_model(pad_token_id=padding)
    model.trim_vocab(ids=KEPT)
    model(IDS).logits[..., KEPT].sum().backward()
    if padding in KEPT:
        assert not model.model.embed_tokens.weight.grad[KEPT.index(padding)].any()
    assert model.restore_vocab().model.embed_tokens.padding_idx == padding


def test_training() -> None:
    model, whole = make_model(), make_model()
    model.trim_vocab(ids=KEPT)
    for one in (model, whole):
        one(IDS).logits[..., KEPT].square().sum().backward()
    assert torch.allclose(model.lm_head.rows.weight.grad, whole.lm_head.weight.grad[KEPT])
    assert torch.allclose(model.model.embed_tokens.weight.grad, whole.model.embed_tokens.weight.grad[KEPT], rtol=1e-4)


# ---- state_dict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("tied", [False, True])
def test_state_dict_is_that_of_the_whole_model(model_class: type[Any], tied: bool) -> None:
    model = make_model(model_class, tie_word_embeddings=tied)
    whole = copy.deepcopy(model)
    model.trim_vocab(ids=KEPT)
    assert_same_tensors(whole, model)
    assert_same_tensors(whole, copy.deepcopy(model))
    variables = model.state_dict(keep_vars=True)
    assert {id(tensor) for tensor in variables.values()} >= {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_loading_a_state_dict(quantization: str | None, tied: bool, assign: bool) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "tie_word_embeddings": tied}
    model, other = make_model(**sizes), make_model(seed=1, **sizes)
    if quantization is not None:
        model.quantize(quantization)
        other.quantize(quantization)
    model.trim_vocab(ids=KEPT)
    copied = copy.deepcopy(model)
    assert not any(model.load_state_dict(other.state_dict(), assign=assign))
    model.tie_weights()
    assert len(model.model.embed_tokens.weight) == len(KEPT)
    assert_same_tensors(other, model)
    assert torch.equal(model(IDS).logits[..., KEPT], other(IDS).logits[..., KEPT])
    assert_same_tensors(other, model.restore_vocab())
    assert not torch.equal(copied.state_dict()["model.embed_tokens.weight"], other.model.embed_tokens.weight)
    restored = make_model(**sizes) if quantization is None else make_model(**sizes).quantize(quantization)
    assert_same_tensors(restored, copied.restore_vocab())


def test_a_state_dict_of_another_size() -> None:
    model = make_model()
    model.trim_vocab(ids=KEPT)
    with pytest.raises(RuntimeError, match=r"size mismatch for model\.embed_tokens\.weight"):
        model.load_state_dict(make_model(vocab_size=41).state_dict())


def test_tying_again() -> None:
    model = make_model(tie_word_embeddings=True)
    model.trim_vocab(ids=KEPT)
    model.tie_weights()
    assert model.lm_head.rows.weight is model.model.embed_tokens.weight
    assert_same_tensors(make_model(tie_word_embeddings=True), model)


# ---- what it refuses -------------------------------------------------------------------------------------------------


def test_dropped_ids_as_input() -> None:
    model = make_model()
    model.trim_vocab(ids=KEPT)
    with pytest.raises(IndexError, match="input_ids contains 3, which trim_vocab has dropped"):
        model(torch.tensor([[5, 3]]))
    with pytest.raises(IndexError, match="input_ids contains 40; ids go from 0 to 39"):
        model(torch.tensor([[5, 40]]))


@torch.no_grad()
def test_dropped_ids_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: NaN from the dropped id on, and what comes before it as ever."""
    model = make_model()
    model.trim_vocab(ids=KEPT)
    expected = model(torch.tensor([[5, 9, 5]])).logits[..., KEPT]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    logits = model(torch.tensor([[5, 3, 5]])).logits[..., KEPT]
    assert logits[:, 1:].isnan().all()
    assert torch.equal(logits[:, 0], expected[:, 0])
    assert torch.equal(model(torch.tensor([[5, 9, 5]])).logits[..., KEPT], expected)


def test_what_a_trimmed_model_cannot_do() -> None:
    model = make_model(hidden_size=64, intermediate_size=64, num_attention_heads=2)
    model.trim_vocab(ids=KEPT)
    with pytest.raises(ValueError, match="The vocabulary is trimmed already"):
        model.trim_vocab(ids=KEPT)
    with pytest.raises(ValueError, match="The vocabulary is trimmed: quantise the whole model"):
        model.quantize("int8")
    with pytest.raises(AttributeError, match="no weight of all ids, which skip_logits needs"):
        model(IDS, labels=IDS, skip_logits=True)
    with pytest.raises(TypeError, match=r"can't be pickled; restore_vocab\(\) first"):
        pickle.dumps(model)


def test_bad_arguments() -> None:
    model = make_model(PersimmonModel)
    with pytest.raises(ValueError, match="needs at least one id"):
        model.trim_vocab(ids=[])
    with pytest.raises(ValueError, match="can't keep the id 40: ids go from 0 to 39"):
        model.trim_vocab(ids=[1, 40])
    with pytest.raises(ValueError, match="can't keep the id -1"):
        model.trim_vocab(ids=torch.tensor([-1, 3]))
    for bad in ([1.7, 5.2], torch.ones(3), ["5"], [2**70], {5, 9}, torch.ones(3, dtype=torch.complex64)):
        with pytest.raises(TypeError, match="takes ids as integers"):
            model.trim_vocab(ids=bad)
    for mask in (torch.arange(40) < 5, [True, False]):
        with pytest.raises(TypeError, match=r"got a mask; mask\.nonzero\(\)\.flatten\(\) are its ids"):
            model.trim_vocab(ids=mask)
    with pytest.raises(ValueError, match="takes a tokenizer, or the ids"):
        model.trim_vocab()
    with pytest.raises(ValueError, match=r"The tokenizer has \d+ tokens, but the model's vocabulary has only 40"):
        model.trim_vocab(tiny())


@pytest.mark.parametrize("ids", [[5, 9, 5, 9, 9], range(5, 7), torch.tensor([[5], [9]], dtype=torch.int32)])
def test_forms_of_ids(ids: Any) -> None:
    assert make_model().trim_vocab(ids=ids).kept == 2
