"""persimmon-ext inspect: the facts of every format, and the share of zero activations with one layer in memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from adept_releases import reference_model, tarred, write_release
from checkpoint_helpers import edit_config, make_model
from safetensors.torch import save_file

from persimmon_ext import PersimmonForCausalLM, PersimmonTokenizer, embedded_checkpoint, zero_activations
from persimmon_ext.checkpoints.inspection import open_checkpoint
from persimmon_ext.cli import main
from persimmon_ext.zero_activations import zero_shares

TEXT = "def read_lines(path):\n    return path"


def inspect(capsys: pytest.CaptureFixture[str], path: Path, *options: str, status: int = 0) -> dict[str, Any]:
    assert main(["inspect", str(path), "--json", *options]) == status
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def damaged_model(**fields: Any) -> Any:
    """A model with 2 NaNs, 1 infinity and 3 rows of zeros in its embedding."""
    model = make_model(**fields)
    weight = model.model.embed_tokens.weight.data
    weight[[3, 8, 9]] = 0
    weight[5, :2] = float("nan")
    weight[6, 4] = float("-inf")
    return model


@pytest.mark.parametrize("form", ["safetensors", "shards", "bin", "legacy bin", "one file"])
def test_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    model = damaged_model()
    path = tmp_path
    model.save_pretrained(tmp_path, max_shard_size=3000 if form == "shards" else "5GB")
    if "bin" in form:
        (tmp_path / "model.safetensors").unlink()
        zipped = form == "bin"
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    if form == "one file":
        path = tmp_path / "model.safetensors"
    facts = inspect(capsys, path, status=1)
    assert facts["problems"] == ["2 NaNs and 1 infinities in model.embed_tokens.weight"]
    state = model.state_dict()
    assert facts["parameters"] == sum(tensor.numel() for tensor in state.values())
    assert facts["bytes"] == sum(tensor.nbytes for tensor in state.values())
    tensors = {tensor["name"]: tensor for tensor in facts["tensors"]}
    assert {name: tensor["shape"] for name, tensor in tensors.items()} == {n: list(t.shape) for n, t in state.items()}
    embedding = tensors["model.embed_tokens.weight"]
    assert (embedding["nans"], embedding["infinities"], embedding["zero_rows"]) == (2, 1, 3)
    assert tensors["lm_head.weight"]["zero_rows"] == tensors["lm_head.weight"]["nans"] == 0
    assert tensors["model.final_layernorm.bias"]["zero_rows"] is None
    assert (facts["config"] is None) == (form == "one file")


def test_tensors_without_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {"scalar": (), "no rows": (0, 5), "no columns": (5, 0), "nothing": (0, 0, 3), "row": (1, 4)}
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.bin")
    for path in (tmp_path / "x.safetensors", tmp_path / "x.bin"):
        found = {tensor["name"]: tensor for tensor in inspect(capsys, path)["tensors"]}
        assert {name: tuple(tensor["shape"]) for name, tensor in found.items()} == shapes
        assert {name: tensor["zero_rows"] for name, tensor in found.items() if len(tensor["shape"]) == 2} == {
            "no rows": 0,
            "no columns": 0,
            "row": 0,
        }


def test_quick_reads_no_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged_model().save_pretrained(tmp_path)
    facts = inspect(capsys, tmp_path, "--quick")
    assert {tensor["nans"] for tensor in facts["tensors"]} == {None}
    assert facts["parameters"] == sum(p.numel() for p in make_model().parameters())


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantised(tmp_path: Path, capsys: pytest.CaptureFixture[str], quantization: str) -> None:
    model = make_model(hidden_size=64, intermediate_size=64, num_attention_heads=2)
    parameters = model.num_parameters()
    with torch.no_grad():
        model.lm_head.weight[[2, 5]] = 0
    model.quantize(quantization).save_pretrained(tmp_path)
    facts = inspect(capsys, tmp_path)
    zero_rows = {tensor["name"]: tensor["zero_rows"] for tensor in facts["tensors"] if tensor["name"].endswith("codes")}
    assert zero_rows.pop("lm_head.codes") == 2
    assert set(zero_rows.values()) == {0}
    assert facts["parameters"] == parameters
    assert quantization in facts["format"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_release(tmp_path: Path, capsys: pytest.CaptureFixture[str], packed: bool) -> None:
    model = reference_model()
    release = write_release(tmp_path / "release", model, ranks=2)
    facts = inspect(capsys, tarred(release) if packed else release, "--text", TEXT)
    assert facts["format"] == "the authors' release, 2 rank(s)"
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["config"]["hidden_size"] == 32
    assert facts["tokenizer"]["eos"] == "|ENDOFTEXT|"
    assert len(facts["zero_activations"]) == 2


@pytest.fixture
def fuyu(tmp_path: Path) -> Path:
    """A Fuyu model's folder, with a tokenizer."""
    sizes = {"vocab_size": 4096, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text = {"model_type": "persimmon", **sizes, "num_attention_heads": 4}
    config = transformers.FuyuConfig(text_config=text, image_size=30, patch_size=3, image_token_id=39, **sizes)
    transformers.FuyuForCausalLM(config).save_pretrained(tmp_path)
    shutil.copy(embedded_checkpoint() / "tokenizer.model", tmp_path)
    return tmp_path


def test_fuyu(fuyu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="vision_embed_tokens"):
        model = PersimmonForCausalLM.from_pretrained(fuyu)
    facts = inspect(capsys, fuyu, "--text", TEXT)
    assert "of a Fuyu model" in facts["format"]
    assert "vision_embed_tokens.weight" in {tensor["name"] for tensor in facts["tensors"]}
    assert facts["config"]["hidden_size"] == 32
    assert facts["zero_activations"] == pytest.approx(shares_of(model, fuyu), abs=2e-3)


@pytest.mark.parametrize("zipped", [True, False])
def test_text_through_pickled_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str], zipped: bool) -> None:
    model = make_model(vocab_size=4096)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    shutil.copy(embedded_checkpoint() / "tokenizer.model", tmp_path)
    facts = inspect(capsys, tmp_path, "--text", TEXT)
    assert facts["zero_activations"] == pytest.approx(shares_of(model, tmp_path), abs=2e-3)


@torch.no_grad()
def shares_of(model: Any, folder: Path) -> list[float]:
    """The share of zeros before each second product of the whole model, run on TEXT."""
    shares: list[float] = []
    for layer in model.model.layers:
        layer.mlp.dense_4h_to_h.register_forward_pre_hook(
            lambda _, arguments: shares.append(float((arguments[0] == 0).double().mean()))
        )
    model(torch.tensor([PersimmonTokenizer.from_pretrained(folder).encode(TEXT)]))
    return shares


@torch.no_grad()
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_zero_activations_are_those_of_the_whole_model(tmp_path: Path, quantization: str | None) -> None:
    folder = embedded_checkpoint()
    model = PersimmonForCausalLM.from_pretrained(folder)
    tokenizer = PersimmonTokenizer.from_pretrained(folder)
    if quantization is not None:
        folder = tmp_path
        model.quantize(quantization).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    expected = shares_of(model, folder)
    with open_checkpoint(folder) as opened:
        assert zero_shares(opened, torch.tensor(tokenizer.encode(TEXT))) == pytest.approx(expected, abs=2e-3)
    assert min(expected) > 0.5


def test_one_layer_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    read = zero_activations._read_into_memory
    held: list[int] = []

    def reading(model: Any, *arguments: Any) -> None:
        read(model, *arguments)
        held.append(sum(not next(layer.parameters()).is_meta for layer in model.layers if list(layer.parameters())))

    monkeypatch.setattr(zero_activations, "_read_into_memory", reading)
    with open_checkpoint(embedded_checkpoint()) as opened:
        zero_shares(opened, torch.tensor([5, 6]))
    assert held == [1, 1, 1, 1]


def test_for_a_reader(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    assert main(["inspect", str(embedded_checkpoint()), "--file", str(tmp_path / "text")]) == 0
    printed = capsys.readouterr().out
    for expected in ("5,257,728 parameters, 10,515,456 bytes, 68 tensors", "hidden_size: 256", "type: unigram"):
        assert expected in printed
    assert "zero activations: 9" in printed


def test_a_tokenizer_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model().save_pretrained(tmp_path)
    shutil.copy(embedded_checkpoint() / "tokenizer.model", tmp_path)
    facts = inspect(capsys, tmp_path, status=1)
    assert facts["problems"] == ["a tokenizer of 4096 tokens, which don't fit its embedding of 40 rows"]
    assert main(["inspect", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out.endswith("problems\n  a tokenizer of 4096 tokens, which don't fit its embedding of 40 rows\n")
    assert printed.err.endswith("has a tokenizer of 4096 tokens, which don't fit its embedding of 40 rows.\n")
    assert main(["inspect", str(tmp_path), "--text", TEXT]) == 1
    assert "The text must give ids from 0 to 39" in capsys.readouterr().err


def test_what_cannot_be_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model().save_pretrained(tmp_path / "whole")
    weights = tmp_path / "whole" / "model.safetensors"
    (tmp_path / "garbage").write_text("no tar")
    (tmp_path / "empty").mkdir()
    cases = [
        ([str(tmp_path / "nowhere")], 1, "There is no release at"),
        ([str(tmp_path / "garbage")], 1, "is not a readable tar"),
        ([str(tmp_path / "empty")], 1, "There is no config.json in"),
        ([str(weights), "--text", "x"], 2, "has no tokenizer"),
        ([str(weights), "--text", "x", "--file", "y"], 2, "--text and --file were both given"),
    ]
    for arguments, status, message in cases:
        assert main(["inspect", *arguments]) == status
        assert message in capsys.readouterr().err
    edit_config(tmp_path / "whole", hidden_size=3)
    assert main(["inspect", str(tmp_path / "whole")]) == 1
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["inspect", str(weights)]) == 1
    assert "cut short" in capsys.readouterr().err
