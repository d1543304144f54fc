"""The loading benchmark at a tiny size: what it writes, and that it cleans up after itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import loading, report, resident
from persimmon_ext import PersimmonForCausalLM

SHAPE = ["--layers=2", "--hidden=128", "--ffn=256", "--heads=2", "--vocab=211"]


def test_measures_and_cleans_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    loading.run([*SHAPE, "--folder", str(tmp_path), "--json", str(file)])
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    result = json.loads(file.read_text())
    (row,) = result["results"]
    assert result["checkpoint_bytes"] == row["model_bytes"] > 100_000
    assert "from_pretrained" in capsys.readouterr().out
    report.run([str(file)])
    assert "## Loading" in capsys.readouterr().out


def test_the_checkpoint_is_whole(tmp_path: Path) -> None:
    chosen = loading.PersimmonConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=1
    )
    loading.write_checkpoint(tmp_path, chosen, loading.random_sources(chosen, seed=0))
    model = PersimmonForCausalLM.from_pretrained(tmp_path)
    assert all(parameter.count_nonzero() > 0.8 * parameter.numel() for parameter in model.parameters())


def test_too_little_room(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"The checkpoint needs 10\d+\.0 GB, and .* has .* GB free"):
        resident.check_room(tmp_path, disk=10**15, memory=1)
