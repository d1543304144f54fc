"""A folder saved by this library or by transformers loads in the other, with the same weights and logits."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import persimmon_ext

NAMES = [
    "PersimmonModel",
    "PersimmonForCausalLM",
    "PersimmonForSequenceClassification",
    "PersimmonForTokenClassification",
]
FIELDS: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "num_labels": 3,
    "pad_token_id": 0,
}
SIZES = ["5GB", "10KB"]


def randomised(model: Any) -> Any:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    return model.eval()


def ours(name: str, **fields: Any) -> Any:
    config = persimmon_ext.PersimmonConfig(**{**FIELDS, **fields})
    return randomised(getattr(persimmon_ext, name)(config))


def theirs(name: str, **fields: Any) -> Any:
    config = transformers.PersimmonConfig(**{**FIELDS, **fields}, attn_implementation="eager")
    return randomised(getattr(transformers, name)(config))


@torch.no_grad()
def first_output(model: Any) -> torch.Tensor:
    output = model(input_ids=torch.tensor([[5, 9, 60, 2, 7], [1, 1, 33, 8, 4]]))
    result: torch.Tensor = output[0]
    return result


def assert_same(one: Any, other: Any) -> None:
    """Equal parameters, bit for bit, and outputs that differ by float32 rounding alone."""
    expected, found = dict(one.named_parameters()), dict(other.named_parameters())
    assert expected.keys() == found.keys()
    for name, parameter in expected.items():
        assert torch.equal(parameter, found[name]), name
    torch.testing.assert_close(first_output(one), first_output(other), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_ours(tmp_path: Path, name: str, tied: bool, size: str) -> None:
    model = ours(name, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size=size)
    loaded, report = getattr(transformers, name).from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    assert_same(model, loaded)
    assert torch.equal(first_output(model), first_output(getattr(persimmon_ext, name).from_pretrained(tmp_path)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_ours_loads_transformers(tmp_path: Path, name: str, tied: bool, size: str) -> None:
    model = theirs(name, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size != "5GB")
    assert_same(model, getattr(persimmon_ext, name).from_pretrained(tmp_path))


@pytest.mark.parametrize("sharded", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_ours_loads_transformers_bin(tmp_path: Path, name: str, tied: bool, sharded: bool) -> None:
    model = theirs(name, tie_word_embeddings=tied)
    model.config.save_pretrained(tmp_path)
    state = model.state_dict()
    if sharded:
        names = list(state)
        weight_map = {key: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, key in enumerate(names)}
        for file in set(weight_map.values()):
            torch.save({key: state[key] for key in names if weight_map[key] == file}, tmp_path / file)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same(model, getattr(persimmon_ext, name).from_pretrained(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_same_default_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs("PersimmonForCausalLM").to(dtype).save_pretrained(tmp_path)
    for edit in ({}, {"dtype": None}, {"dtype": "float32"}):
        config = {**json.loads((tmp_path / "config.json").read_text()), **edit}
        (tmp_path / "config.json").write_text(json.dumps(config))
        expected = transformers.PersimmonForCausalLM.from_pretrained(tmp_path)
        found = persimmon_ext.PersimmonForCausalLM.from_pretrained(tmp_path)
        assert {p.dtype for p in found.parameters()} == {p.dtype for p in expected.parameters()}


@pytest.mark.parametrize("name", NAMES[1:])
def test_base_model_of_a_transformers_head(tmp_path: Path, name: str) -> None:
    model = theirs(name)
    model.save_pretrained(tmp_path)
    assert_same(model.model, persimmon_ext.PersimmonModel.from_pretrained(tmp_path))


@pytest.mark.parametrize("assign", [False, True])
def test_state_dicts_are_exchanged_whatever_the_layout(assign: bool) -> None:
    model = theirs("PersimmonForCausalLM")
    mine = ours("PersimmonForCausalLM", rope_theta=10000.0)
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.zero_()
    mine.load_state_dict(model.state_dict(), assign=assign)
    assert mine.model.layers[0].mlp.dense_4h_to_h.weight.stride() == (1, FIELDS["hidden_size"])
    assert_same(model, mine)
    assert model.load_state_dict(mine.state_dict(), strict=True).missing_keys == []
    buffer = io.BytesIO()
    torch.save(mine.state_dict(), buffer)
    buffer.seek(0)
    other = theirs("PersimmonForCausalLM")
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert_same(other, mine)
