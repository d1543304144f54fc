"""The training script of the embedded checkpoint runs and writes what it promises, on a few files and steps."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from persimmon_ext import PersimmonForCausalLM, PersimmonTokenizer

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
TOKENIZER = ROOT / "persimmon_ext" / "assets" / "tiny" / "tokenizer.model"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The script's functions, with the shipped tokenizer and a handful of files instead of the standard library."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import train_tokenizer  # noqa: PLC0415 (found through the path set above)

    training, held_out = train_tokenizer.split_files()
    monkeypatch.setattr(train_tokenizer, "split_files", lambda: (training[:6], held_out[:2]))
    monkeypatch.setattr(train_tokenizer, "train", lambda files: TOKENIZER.read_bytes())
    return runpy.run_path(str(EXAMPLES / "train_tiny.py"))


def test_training_writes_a_checkpoint_and_a_report(script, tmp_path, monkeypatch, capsys):
    output = tmp_path / "tiny"
    monkeypatch.setattr(sys, "argv", ["train_tiny.py", "--output", str(output), "--steps", "3", "--batch", "2"])
    assert script["main"]() == 0
    report = json.loads((output / "training.json").read_text())
    assert report["steps"] == 3
    assert 0 < report["held_out_loss"] < 10
    assert len(report["zeros_after_relu2"]) == 4
    assert all(0.2 < share < 0.8 for share in report["zeros_after_relu2"])  # untrained: about half
    model = PersimmonForCausalLM.from_pretrained(output)
    assert model.dtype == torch.bfloat16
    assert PersimmonTokenizer.from_pretrained(output).vocab_size == model.config.vocab_size
    assert "held-out loss" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "value"), [("--steps", "0"), ("--batch", "-1")])
def test_bad_options(script, tmp_path, monkeypatch, capsys, option, value):
    monkeypatch.setattr(sys, "argv", ["train_tiny.py", "--output", str(tmp_path), option, value])
    with pytest.raises(SystemExit) as caught:
        script["main"]()
    assert caught.value.code == 2
    assert value in capsys.readouterr().err


def test_learning_rate_rises_then_falls_to_zero(script):
    rates = [script["learning_rate"](step, 1000) for step in range(1000)]
    assert max(rates) == script["PEAK_LEARNING_RATE"]
    assert rates[0] < rates[50] < rates[99]
    assert rates[-1] < rates[500] < rates[110]
    assert rates[-1] == pytest.approx(script["PEAK_LEARNING_RATE"] / 900)
