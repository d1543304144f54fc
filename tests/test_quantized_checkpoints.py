"""Checkpoints of int8 and int4 weights: bits, formats, damage, and what is read at a time."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoint_helpers import assert_same_tensors, edit_config
from helpers import random_ids
from quantized_helpers import FORMATS, MLP, make
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from persimmon_ext import (
    CheckpointError,
    PersimmonConfig,
    PersimmonForCausalLM,
    PersimmonForTokenClassification,
    PersimmonModel,
)
from persimmon_ext.checkpoints import filling, loading
from persimmon_ext.checkpoints.weight_file import WeightFile

WEIGHTS = "quantized.safetensors"
INDEX = "quantized.safetensors.index.json"


@pytest.fixture(params=FORMATS)
def name(request) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path: Path, name: str) -> Path:
    make(dtype=torch.bfloat16).quantize(name).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("size", ["5GB", 40_000])
def test_save_and_load_are_bit_equal(tmp_path, name, size):
    model = make(dtype=torch.bfloat16).quantize(name)
    model.save_pretrained(tmp_path, max_shard_size=size)
    loaded = PersimmonForCausalLM.from_pretrained(tmp_path)
    assert_same_tensors(model, loaded)
    assert loaded.quantization == name
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    ids = random_ids(1, 9)
    assert torch.equal(model(ids).logits, loaded(ids).logits)
    assert_same_tensors(model, PersimmonForCausalLM.from_pretrained(tmp_path, quantization=name))
    assert (tmp_path / INDEX).exists() == (size != "5GB")
    stated = json.loads((tmp_path / "config.json").read_text())
    expected = {"format": name, "bits": int(name[3:]), "group_size": 64 if name == "int4" else None, "version": 1}
    assert stated["quantization"] == expected
    assert stated["dtype"] == "bfloat16"


@pytest.mark.parametrize("kind", [PersimmonModel, PersimmonForCausalLM, PersimmonForTokenClassification])
def test_quantising_while_loading_equals_quantising_after(tmp_path, name, kind):
    make(kind, torch.bfloat16).save_pretrained(tmp_path / "plain", max_shard_size=40_000)
    after = kind.from_pretrained(tmp_path / "plain").quantize(name)
    loaded = kind.from_pretrained(tmp_path / "plain", quantization=name)
    assert_same_tensors(after, loaded)
    assert loaded.quantization == name
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in after.parameters()]
    loaded.save_pretrained(tmp_path / "saved")
    assert_same_tensors(after, kind.from_pretrained(tmp_path / "saved"))


def test_quantising_while_loading_rounds_the_stored_values_once(tmp_path, name):
    make().save_pretrained(tmp_path)
    loaded = PersimmonForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, quantization=name)
    best = make().quantize(name)
    assert torch.equal(loaded.lm_head.codes, best.lm_head.codes)
    assert torch.equal(loaded.lm_head.scale, best.lm_head.scale)
    assert loaded.dtype == torch.bfloat16


def test_decoder_of_a_quantised_causal_model(folder, name):
    decoder = PersimmonModel.from_pretrained(folder, dtype=torch.float32)
    whole = PersimmonForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = random_ids(1, 4)
    assert torch.equal(decoder(ids)[0], whole.model(ids)[0])
    with pytest.warns(UserWarning, match="newly initialised"):
        assert PersimmonForTokenClassification.from_pretrained(folder).quantization == name


def test_saving_over_another_kind_leaves_one(tmp_path, name):
    model = make()
    model.save_pretrained(tmp_path, max_shard_size=40_000)
    quantized = copy.deepcopy(model).quantize(name)
    quantized.save_pretrained(tmp_path, max_shard_size=40_000)
    assert not list(tmp_path.glob("model*"))
    quantized.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "generation_config.json", WEIGHTS]
    model.save_pretrained(tmp_path)
    names = ["config.json", "generation_config.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert PersimmonForCausalLM.from_pretrained(tmp_path).quantization is None


def test_config_of_a_quantised_folder_makes_a_plain_model(folder, tmp_path):
    model = PersimmonForCausalLM(PersimmonConfig.from_pretrained(folder))
    assert model.quantization is None
    model.save_pretrained(tmp_path / "plain")
    assert "quantization" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_transformers_refuses(folder):
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        transformers.PersimmonForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": None},
        {"version": True},
        {"version": 1.0},
        {"format": "int3"},
        {"format": ["int8"]},
        {"bits": 2},
        {"group_size": 32},
        {"extra": 1},
    ],
)
def test_unknown_format(folder, name, change):
    fields = {"format": name, "bits": int(name[3:]), "group_size": 64 if name == "int4" else None, "version": 1}
    edit_config(folder, quantization={**fields, **change})
    with pytest.raises(CheckpointError, match=r"config\.json says that the weights are quantised as .*; this version"):
        PersimmonForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("stated", [True, "int8", [], {}])
def test_quantization_field_of_another_type(folder, stated):
    edit_config(folder, quantization=stated)
    with pytest.raises(CheckpointError, match="this version reads"):
        PersimmonForCausalLM.from_pretrained(folder)


def test_field_removed_or_files_of_another_kind(folder):
    edit_config(folder, quantization=None)
    with pytest.raises(FileNotFoundError, match=r"none of model\.safetensors"):
        PersimmonForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).rename(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: .*unexpected tensors"):
        PersimmonForCausalLM.from_pretrained(folder)


def test_weights_of_another_library(tmp_path):
    make().save_pretrained(tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match=r"quantization_config \(gptq\)"):
        PersimmonForCausalLM.from_pretrained(tmp_path)


def test_another_format_than_the_stored_one(folder, name):
    other = "int4" if name == "int8" else "int8"
    with pytest.raises(ValueError, match=f"is '{other}', but .* is quantised to {name} already"):
        PersimmonForCausalLM.from_pretrained(folder, quantization=other)
    for wrong, error in (("int3", ValueError), (8, TypeError)):
        with pytest.raises(error, match="must be one of int8, int4, got"):
            PersimmonForCausalLM.from_pretrained(folder, quantization=wrong)


def test_damaged_tensors(folder, name):
    stored = load_file(folder / WEIGHTS)
    codes, scale = f"{MLP}.dense_4h_to_h.codes", f"{MLP}.dense_4h_to_h.scale"
    cases = [
        (codes, stored[codes].float(), f"dtype float32; it must be {'u' * (name == 'int4')}int8"),
        (scale, stored[scale].bfloat16(), "dtype bfloat16; it must be float32"),
        (scale, stored[scale][:-1].clone(), "another shape"),
        (codes, stored[codes][:, :-1].contiguous(), "another shape"),
        (f"{MLP}.dense_4h_to_h.bias", torch.zeros(128, dtype=torch.int8), "has dtype int8; weights must be"),
        (f"{MLP}.dense_4h_to_h.weight", torch.zeros(128, 256), "unexpected tensor"),
    ]
    for key, tensor, message in cases:
        save_file({**stored, key: tensor}, folder / WEIGHTS)
        with pytest.raises(CheckpointError, match=message):
            PersimmonForCausalLM.from_pretrained(folder)
    save_file({key: tensor for key, tensor in stored.items() if key != scale}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"1 tensor missing: .*scale"):
        PersimmonForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="cut short"):
        PersimmonForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("piece", [64, 2**22])
@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), torch.float32), (1e300, torch.float64)])
def test_a_weight_that_is_not_finite(tmp_path, name, monkeypatch, piece, value, dtype):
    """Or isn't in float32, which scales and codes are made from."""
    monkeypatch.setattr(filling, "_PIECE", piece)
    model = make()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    weight = f"{MLP}.dense_4h_to_h.weight"
    state[weight] = state[weight].to(dtype)
    state[weight][67, 7] = value
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"dense_4h_to_h\.weight can't be quantised: there is .* NaN in its row 67\.$"
    ):
        PersimmonForCausalLM.from_pretrained(tmp_path, quantization=name)
    model.load_state_dict(state)
    with pytest.raises(ValueError, match=r"dense_4h_to_h can't be quantised: its weight holds an infinity or NaN"):
        model.quantize(name)
    assert model.quantization is None


@pytest.mark.parametrize("piece", [64, 20_000])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_quantised_from_pieces(tmp_path, name, monkeypatch, tied, piece):
    """No weight is in memory whole before it is codes; what comes out doesn't depend on the pieces."""
    make(dtype=torch.bfloat16, tie_word_embeddings=tied).save_pretrained(tmp_path)
    expected = PersimmonForCausalLM.from_pretrained(tmp_path).quantize(name)
    read: list[int] = []
    fill = WeightFile.fill

    def filling_noted(self: WeightFile, stored: str, first: int, target: torch.Tensor) -> None:
        read.append(target.nbytes)
        fill(self, stored, first, target)

    monkeypatch.setattr(WeightFile, "fill", filling_noted)
    monkeypatch.setattr(filling, "_PIECE", piece)
    loaded = PersimmonForCausalLM.from_pretrained(tmp_path, quantization=name)
    assert_same_tensors(expected, loaded)
    row_bytes = 2 * 256  # of the second product of an MLP; a group of int4 is 64 of its rows
    assert max(read) <= max(piece, 64 * row_bytes if name == "int4" else row_bytes)
    weights = (weight.nbytes for key, weight in make(dtype=torch.bfloat16).state_dict().items() if "mlp" in key)
    assert max(weights) > max(read)  # so a weight that was read whole would have been noticed


@pytest.mark.parametrize("tied", [False, True])
def test_progress_ends_at_its_total(tmp_path, name, monkeypatch, tied):
    """A tied weight is read for the embedding, and once more to be quantised for the head."""
    make(tie_word_embeddings=tied).save_pretrained(tmp_path)
    bars: list[Any] = []

    def bar(**options: Any) -> Any:
        bars.append(tqdm(**{**options, "file": io.StringIO(), "disable": False}))
        return bars[-1]

    monkeypatch.setattr(loading, "tqdm", bar)
    PersimmonForCausalLM.from_pretrained(tmp_path, quantization=name)
    assert bars[0].n == bars[0].total > 0


def test_a_pickled_weight_of_another_layout(tmp_path, name):
    """It is read whole: our own state_dict has the second matrix of an MLP hidden-major."""
    model = make(dtype=torch.bfloat16)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_tensors(model.quantize(name), PersimmonForCausalLM.from_pretrained(tmp_path, quantization=name))
