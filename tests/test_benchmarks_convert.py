"""The benchmark of conversions at a tiny size: what it measures, and that it cleans up after itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import convert, report
from persimmon_ext import PersimmonForCausalLM
from persimmon_ext.checkpoints import convert_adept

SHAPE = {"layers": 2, "hidden": 128, "ffn": 256, "heads": 2, "vocab": 4099}


def test_measures_and_cleans_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    shape = [f"--{name}={value}" for name, value in SHAPE.items()]
    convert.run([*shape, "--max-shard-size=1MB", "--folder", str(tmp_path), "--json", str(file)])
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    result = json.loads(file.read_text())
    assert str(tmp_path) not in json.dumps(result["results"])
    actions = [(row["action"], row["form"]) for row in result["results"]]
    forms = ["tar", "safetensors", "torch.save", "torch.save before 1.6", "int8"]
    assert actions == [("convert", "tar"), *(("inspect", form) for form in forms)]
    assert result["largest_shard_bytes"] >= 2 * SHAPE["vocab"] * SHAPE["hidden"]
    assert "inspect" in capsys.readouterr().out
    report.run([str(file)])
    assert "## Convert" in capsys.readouterr().out


def test_the_conversion_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = [f"--{name}={value}" for name, value in SHAPE.items()]
    convert.run([*shape, "--convert-only", "--folder", str(tmp_path)])
    assert not list(tmp_path.iterdir())
    assert "inspect" not in capsys.readouterr().out


def test_the_release_is_one(tmp_path: Path) -> None:
    config = convert.PersimmonConfig(
        vocab_size=4099, hidden_size=64, intermediate_size=96, num_attention_heads=2, num_hidden_layers=1
    )
    convert.write_release(tmp_path / "release.tar", config, seed=0)
    folder = convert_adept(tmp_path / "release.tar", tmp_path / "converted", progress=False)
    model = PersimmonForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert all(parameter.count_nonzero() > 0.8 * parameter.numel() for parameter in model.parameters())
