"""Loading Hugging Face folders: what goes where, in which dtype and layout."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_helpers import CLASSES, assert_same_tensors, edit_config, make_model
from safetensors.torch import load_file, save_file

from persimmon_ext.checkpoints import CheckpointError, load_pretrained, save_pretrained
from persimmon_ext.classification import PersimmonForSequenceClassification, PersimmonForTokenClassification
from persimmon_ext.config import PersimmonConfig
from persimmon_ext.heads import PersimmonForCausalLM
from persimmon_ext.modeling import PersimmonModel

HIDDEN_MAJOR = "model.layers.0.mlp.dense_4h_to_h.weight"


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("size", ["5GB", 3000])
def test_round_trip_is_bit_equal(tmp_path: Path, model_class: type[Any], size: int | str) -> None:
    model = make_model(model_class)
    save_pretrained(model, tmp_path, max_shard_size=size)
    loaded = load_pretrained(model_class, tmp_path)
    assert_same_tensors(model, loaded)
    assert type(loaded) is model_class
    assert not loaded.training
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert (tmp_path / "model.safetensors").exists() == (size == "5GB")


def test_memory_layout_is_the_constructors_and_disk_layout_is_row_major(tmp_path: Path) -> None:
    model = make_model()
    assert model.get_parameter(HIDDEN_MAJOR).stride() == (1, 16)
    save_pretrained(model, tmp_path)
    assert load_pretrained(PersimmonForCausalLM, tmp_path).get_parameter(HIDDEN_MAJOR).stride() == (1, 16)
    stored = load_file(tmp_path / "model.safetensors")[HIDDEN_MAJOR]
    assert stored.is_contiguous()
    assert torch.equal(stored, model.get_parameter(HIDDEN_MAJOR))


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_dtype_spellings(tmp_path: Path, dtype: str | torch.dtype) -> None:
    model = make_model()
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(PersimmonForCausalLM, tmp_path, dtype=dtype)
    assert_same_tensors(model.to(torch.bfloat16), loaded)
    assert loaded.config.dtype == "bfloat16"
    assert loaded.get_parameter(HIDDEN_MAJOR).stride() == (1, 16)


@pytest.mark.parametrize("dtype", [None, "auto"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_default_dtype_is_the_configs_then_the_files(tmp_path: Path, dtype: str | None, stored: torch.dtype) -> None:
    save_pretrained(make_model().to(stored), tmp_path)
    assert load_pretrained(PersimmonForCausalLM, tmp_path, dtype=dtype).lm_head.weight.dtype == stored
    edit_config(tmp_path, dtype=None, torch_dtype=None)
    assert load_pretrained(PersimmonForCausalLM, tmp_path, dtype=dtype).lm_head.weight.dtype == stored
    edit_config(tmp_path, dtype="float16")
    assert load_pretrained(PersimmonForCausalLM, tmp_path, dtype=dtype).lm_head.weight.dtype == torch.float16


def test_a_given_config_is_copied_and_used(tmp_path: Path) -> None:
    save_pretrained(make_model(), tmp_path)
    config = PersimmonConfig.from_pretrained(tmp_path)
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 99.0}
    loaded = load_pretrained(PersimmonForCausalLM, tmp_path, config=config, dtype="float64")
    assert loaded.config.rope_parameters["rope_theta"] == 99.0
    assert loaded.config.dtype == "float64"
    assert config.dtype == "float32"


def test_device_argument(tmp_path: Path) -> None:
    save_pretrained(make_model(), tmp_path)
    for device in ("cpu", torch.device("cpu"), None):
        assert load_pretrained(PersimmonForCausalLM, tmp_path, device=device).lm_head.weight.device.type == "cpu"


@pytest.mark.parametrize("piece", [8, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, piece: int) -> None:
    model = make_model()
    save_pretrained(model, tmp_path)
    monkeypatch.setattr("persimmon_ext.checkpoints.filling._PIECE", piece)
    monkeypatch.setattr("persimmon_ext.checkpoints.filling._TRANSPOSED_ROWS", 3)
    assert_same_tensors(model.to(dtype), load_pretrained(PersimmonForCausalLM, tmp_path, dtype=dtype))


def test_progress_bar_is_for_slow_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pretrained(make_model(), tmp_path)
    load_pretrained(PersimmonForCausalLM, tmp_path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("persimmon_ext.checkpoints.loading._SILENT_SECONDS", 0.0)
    load_pretrained(PersimmonForCausalLM, tmp_path, progress=False)
    assert capsys.readouterr().err == ""
    load_pretrained(PersimmonForCausalLM, tmp_path)
    assert "Loading weights: 100%" in capsys.readouterr().err


class TestTiedHead:
    def test_is_saved_once_and_stays_one_tensor(self, tmp_path: Path) -> None:
        model = make_model(tie_word_embeddings=True)
        save_pretrained(model, tmp_path)
        assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
        loaded = load_pretrained(PersimmonForCausalLM, tmp_path)
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
        assert_same_tensors(model, loaded)

    @pytest.mark.parametrize("kept", ["both", "head", "embedding"])
    def test_loads_from_either_name(self, tmp_path: Path, kept: str) -> None:
        model = make_model(tie_word_embeddings=True)
        save_pretrained(model, tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        if kept != "embedding":
            state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
        if kept == "head":
            del state["model.embed_tokens.weight"]
        save_file(state, tmp_path / "model.safetensors")
        loaded = load_pretrained(PersimmonForCausalLM, tmp_path)
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
        assert_same_tensors(model, loaded)

    def test_both_names_with_nans(self, tmp_path: Path) -> None:
        model = make_model(tie_word_embeddings=True)
        model.lm_head.weight.data[3] = float("nan")
        save_pretrained(model, tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        save_file(
            {**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors"
        )
        loaded = load_pretrained(PersimmonForCausalLM, tmp_path)
        assert torch.equal(loaded.lm_head.weight.nan_to_num(7.0), model.lm_head.weight.nan_to_num(7.0))

    def test_different_values_under_both_names_are_an_error(self, tmp_path: Path) -> None:
        save_pretrained(make_model(), tmp_path)
        edit_config(tmp_path, tie_word_embeddings=True)
        with pytest.raises(CheckpointError, match=r"ties model\.embed_tokens\.weight and lm_head\.weight"):
            load_pretrained(PersimmonForCausalLM, tmp_path)

    def test_an_untied_model_needs_its_head(self, tmp_path: Path) -> None:
        save_pretrained(make_model(tie_word_embeddings=True), tmp_path)
        edit_config(tmp_path, tie_word_embeddings=False)
        with pytest.raises(CheckpointError, match=r"1 tensor missing: lm_head\.weight \[40, 16\]"):
            load_pretrained(PersimmonForCausalLM, tmp_path)


class TestOtherClass:
    """A folder that another class saved."""

    @pytest.mark.parametrize("saved", CLASSES[1:])
    def test_base_from_head(self, tmp_path: Path, saved: type[Any]) -> None:
        model = make_model(saved)
        save_pretrained(model, tmp_path)
        assert_same_tensors(model.model, load_pretrained(PersimmonModel, tmp_path))

    @pytest.mark.parametrize("loaded", CLASSES[2:])
    @pytest.mark.parametrize("saved", CLASSES[:2])
    def test_a_new_classification_head_is_initialised(
        self, tmp_path: Path, saved: type[Any], loaded: type[Any]
    ) -> None:
        model = make_model(saved, hidden_size=256, initializer_range=0.5)
        save_pretrained(model, tmp_path)
        torch.manual_seed(1)
        with pytest.warns(UserWarning, match=r"has no score\.weight.*newly initialised") as caught:
            head = load_pretrained(loaded, tmp_path)
        assert len(caught) == 1
        assert_same_tensors(model if saved is PersimmonModel else model.model, head.model)
        assert head.score.weight.std().item() == pytest.approx(0.5, rel=0.2)
        assert head.score.bias is None or not head.score.bias.any()

    def test_causal_model_from_tied_base(self, tmp_path: Path) -> None:
        model = make_model(PersimmonModel, tie_word_embeddings=True)
        save_pretrained(model, tmp_path)
        loaded = load_pretrained(PersimmonForCausalLM, tmp_path)
        assert_same_tensors(model, loaded.model)
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight

    @pytest.mark.parametrize("saved", [PersimmonModel, PersimmonForSequenceClassification])
    def test_causal_model_needs_its_head(self, tmp_path: Path, saved: type[Any]) -> None:
        save_pretrained(make_model(saved), tmp_path)
        with pytest.raises(CheckpointError, match=r"does not fit PersimmonForCausalLM. 1 tensor missing: lm_head"):
            load_pretrained(PersimmonForCausalLM, tmp_path)

    def test_sequence_head_from_token_head(self, tmp_path: Path) -> None:
        save_pretrained(make_model(PersimmonForTokenClassification), tmp_path)
        with pytest.raises(CheckpointError, match=r"1 unexpected tensor: score\.bias"):
            load_pretrained(PersimmonForSequenceClassification, tmp_path)


def test_legacy_rotary_buffers_are_ignored(tmp_path: Path) -> None:
    model = make_model()
    save_pretrained(model, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({**state, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}, tmp_path / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_tensors(model, load_pretrained(PersimmonForCausalLM, tmp_path))


class TestPickledWeights:
    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("sharded", [True, False])
    def test_load(self, tmp_path: Path, zipped: bool, sharded: bool) -> None:
        model = make_model(tie_word_embeddings=True)
        model.config.save_pretrained(tmp_path)
        state = model.state_dict()
        parts = [dict(list(state.items())[:5]), dict(list(state.items())[5:])] if sharded else [state]
        names = ["pytorch_model-1.bin", "pytorch_model-2.bin"] if sharded else ["pytorch_model.bin"]
        for name, part in zip(names, parts, strict=True):
            torch.save(part, tmp_path / name, _use_new_zipfile_serialization=zipped)
        if sharded:
            weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
            (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        assert_same_tensors(model, load_pretrained(PersimmonForCausalLM, tmp_path))

    def test_safetensors_come_first(self, tmp_path: Path) -> None:
        model = make_model()
        save_pretrained(model, tmp_path)
        torch.save(make_model(seed=1).state_dict(), tmp_path / "pytorch_model.bin")
        assert_same_tensors(model, load_pretrained(PersimmonForCausalLM, tmp_path))

    def test_one_file_comes_before_shards(self, tmp_path: Path) -> None:
        save_pretrained(make_model(), tmp_path, max_shard_size=3000)
        model = make_model(seed=1)
        save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors"
        )
        assert_same_tensors(model, load_pretrained(PersimmonForCausalLM, tmp_path))
