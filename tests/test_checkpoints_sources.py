"""from_pretrained on what is no plain Persimmon folder: Fuyu's, and configs that the caller changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoint_helpers import assert_same_tensors, edit_config, make_model

from persimmon_ext import (
    CheckpointError,
    PersimmonForCausalLM,
    PersimmonForSequenceClassification,
    PersimmonModel,
)

IDS = torch.tensor([[5, 9, 30, 2, 7]])


# ---- Fuyu ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fuyu(tmp_path: Path) -> tuple[Path, Any]:
    """A Fuyu model's folder, and the model."""
    sizes = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
    }
    text = {"model_type": "persimmon", **sizes, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}
    config = transformers.FuyuConfig(**sizes, text_config=text, image_size=30, patch_size=3, image_token_id=39)
    model = transformers.FuyuForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    return tmp_path, model


@torch.no_grad()
def test_the_language_model_of_a_fuyu_folder(fuyu: tuple[Path, Any]) -> None:
    folder, theirs = fuyu
    left = r"left unread: vision_embed_tokens\.bias, vision_embed_tokens\.weight\.$"
    with pytest.warns(UserWarning, match=left):
        ours = PersimmonForCausalLM.from_pretrained(folder)
    assert ours.config.rope_parameters["rope_theta"] == 300.0
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, rtol=1e-5, atol=1e-5)
    with pytest.warns(UserWarning, match=left):
        decoder = PersimmonModel.from_pretrained(folder)
    assert_same_tensors(ours.model, decoder)


def test_an_early_fuyu_config(fuyu: tuple[Path, Any]) -> None:
    folder, _ = fuyu
    file = folder / "config.json"
    fields = json.loads(file.read_text())
    text = fields.pop("text_config")
    for early in ({**fields, **text}, {**fields, **text, "text_config": {"model_type": "persimmon"}}):
        file.write_text(json.dumps({**early, "model_type": "fuyu"}))
        with pytest.warns(UserWarning, match="left unread"):
            loaded = PersimmonForCausalLM.from_pretrained(folder)
        assert loaded.config.model_type == "persimmon"
        assert loaded.config.rope_parameters["rope_theta"] == 300.0


def test_a_fuyu_config_of_another_language_model(fuyu: tuple[Path, Any]) -> None:
    folder, _ = fuyu
    edit_config(folder, text_config={"model_type": "llama"})
    with pytest.raises(ValueError, match="model_type must be 'persimmon' for this Persimmon model, got 'llama'"):
        PersimmonForCausalLM.from_pretrained(folder)
    edit_config(folder, text_config=3)
    with pytest.raises(ValueError, match=r"text_config in .*config\.json must be an object, got 3"):
        PersimmonForCausalLM.from_pretrained(folder)


# ---- the config that the caller changes ------------------------------------------------------------------------------


def test_fields_of_the_config(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="newly initialised"):
        model = PersimmonForSequenceClassification.from_pretrained(tmp_path, num_labels=5, pad_token_id=0)
    assert model.score.weight.shape == (5, 16)
    assert model.config.pad_token_id == 0
    model = PersimmonForCausalLM.from_pretrained(tmp_path, rope_theta=77.0, config=make_model().config)
    assert model.config.rope_parameters["rope_theta"] == 77.0


def test_a_missing_head(tmp_path: Path) -> None:
    make_model(PersimmonModel).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"1 tensor missing: lm_head\.weight .*tie_word_embeddings=True uses"):
        PersimmonForCausalLM.from_pretrained(tmp_path)
    model = PersimmonForCausalLM.from_pretrained(tmp_path, tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_an_argument_that_does_not_exist(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="unexpected argument 'trust_remote_code'"):
        PersimmonForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    with pytest.raises(ValueError, match="both say where to load"):
        PersimmonForCausalLM.from_pretrained(tmp_path, device="cpu", device_map="auto")
