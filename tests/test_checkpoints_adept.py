"""Converting the authors' release: what comes out equals transformers' model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from adept_releases import VOCABULARY, convert, reference_model, tarred, vocabulary, write_release
from safetensors.torch import load_file

import persimmon_ext
from persimmon_ext.checkpoints import CheckpointError, adept
from persimmon_ext.cli import main

IDS = torch.tensor([[5, 9, 60, 2, 7], [1, 1, 33, 8, 4]])


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path / "8b_base_model_release", reference_model())


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_equals_the_model_that_was_released(tmp_path: Path, packed: bool, ranks: int) -> None:
    model = reference_model(torch.float32)
    release = write_release(tmp_path / "release", model, ranks)
    source = tarred(release) if packed else release
    folder = convert(source, tmp_path / "converted", max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    theirs, report = transformers.PersimmonForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    ours = persimmon_ext.PersimmonForCausalLM.from_pretrained(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert torch.equal(theirs(IDS).logits, model(IDS).logits)
    torch.testing.assert_close(ours(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_config_tokenizer_and_generation_config(release: Path, tmp_path: Path) -> None:
    folder = convert(release, tmp_path / "converted")
    config = transformers.PersimmonConfig.from_pretrained(folder)
    tokenizer = persimmon_ext.PersimmonTokenizer(vocabulary())
    end = tokenizer.convert_tokens_to_ids("|ENDOFTEXT|")
    assert (config.bos_token_id, config.eos_token_id) == (end, end)
    assert config.vocab_size == VOCABULARY
    assert config.intermediate_size == 48
    assert config.rope_parameters["rope_theta"] == 25000.0
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    assert config.initializer_range == 0.01
    assert config.dtype == torch.bfloat16
    assert config.architectures == ["PersimmonForCausalLM"]
    assert json.loads((folder / "generation_config.json").read_text()) == {"bos_token_id": end, "eos_token_id": end}
    text = "def read_lines(path):\n    return path"
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = persimmon_ext.PersimmonTokenizer.from_pretrained(folder)
    assert theirs(text).input_ids == ours(text).input_ids == [end, *tokenizer.encode(text, add_special_tokens=False)]
    assert transformers.PersimmonForCausalLM.from_pretrained(folder).generation_config.eos_token_id == end


def test_other_arguments(tmp_path: Path) -> None:
    model = reference_model(qk_layernorm=False, tie_word_embeddings=True)
    release = write_release(
        tmp_path / "release",
        model,
        2,
        qk_layernorm="none",
        untie_embeddings=None,
        rotary_emb_base=10000,
        rotary_pct=1.0,
    )
    folder = convert(release, tmp_path / "converted")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    config = persimmon_ext.PersimmonConfig.from_pretrained(folder)
    assert config.tie_word_embeddings
    assert not config.qk_layernorm
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    loaded = persimmon_ext.PersimmonForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("ranks", [1, 2])
def test_dtype(tmp_path: Path, ranks: int) -> None:
    model = reference_model(torch.float32)
    release = write_release(tmp_path / "release", model, ranks)
    folder = convert(release, tmp_path / "converted", dtype="bfloat16")
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor.bfloat16(), stored[name]) for name, tensor in model.state_dict().items())
    assert persimmon_ext.PersimmonConfig.from_pretrained(folder).dtype == "bfloat16"


def test_the_command(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tarred(release)), str(tmp_path / "converted"), "--dtype", "fp16"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "converted")
    assert "Converting: 100%" in printed.err
    assert persimmon_ext.PersimmonForCausalLM.from_pretrained(tmp_path / "converted").dtype == torch.float16
    assert main(["convert", str(release), str(tmp_path / "x"), "--max-shard-size", "much"]) == 1
    assert "max_shard_size must be" in capsys.readouterr().err


class TestMd5:
    def test_of_the_users(self, release: Path, tmp_path: Path) -> None:
        tar = tarred(release)
        right = hashlib.md5(tar.read_bytes()).hexdigest()
        convert(tar, tmp_path / "converted", md5=right.upper())
        with pytest.raises(CheckpointError, match=rf"The md5 of .*\.tar is {right}, not {'0' * 32}"):
            convert(tar, tmp_path / "other", md5="0" * 32)
        assert not (tmp_path / "other").exists()

    def test_of_the_public_tars(
        self, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tar = tarred(release)
        assert main(["convert", str(tar), str(tmp_path / "other"), "--quiet", "--md5"]) == 1
        assert r"neither cd0320cba9efad9ccd18e9ec4d16ae1b (8b_base_model_release.tar) nor" in capsys.readouterr().err
        monkeypatch.setitem(adept.MD5, hashlib.md5(tar.read_bytes()).hexdigest(), "this one")
        convert(tar, tmp_path / "converted", md5=True)

    @pytest.mark.parametrize("md5", [None, 1])
    def test_of_another_type(self, release: Path, tmp_path: Path, md5: Any) -> None:
        with pytest.raises(TypeError, match=f"md5 must be True, False or a checksum, got {md5}"):
            convert(release, tmp_path / "converted", md5=md5)

    def test_of_a_folder(self, release: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"md5 is the checksum of a tar, and .* is a folder"):
            convert(release, tmp_path / "converted", md5=True)
