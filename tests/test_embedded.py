"""The checkpoint that ships with the package: trained weights, against transformers on the same folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from helpers import assert_accurate, exact_twin

import persimmon_ext
from persimmon_ext import PersimmonForCausalLM, PersimmonTokenizer

PROMPTS = ["def read_lines(path):", "class Stack:\n    def", "import os\nimport ", '"""Parse ', "for i in range(", "x"]


@pytest.fixture(scope="module")
def folder():
    return persimmon_ext.embedded_checkpoint()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return PersimmonTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def pair(folder):
    ours = PersimmonForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return ours, transformers.PersimmonForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_size(folder):
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 12e6


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_are_transformers(pair, tokenizer, prompt):
    ours, theirs = pair
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    options = {"max_new_tokens": 96, "do_sample": False}
    assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, **options, use_cache=True))


def test_greedy_batch_with_left_padding(pair, folder):
    ours, theirs = pair
    tokenizer = PersimmonTokenizer.from_pretrained(folder, pad_token="<unk>")
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    options = {"attention_mask": batch.attention_mask, "max_new_tokens": 48, "do_sample": False}
    assert torch.equal(ours.generate(batch.input_ids, **options), theirs.generate(batch.input_ids, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits(folder, tokenizer, dtype):
    text = "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total\n"
    ids = tokenizer(text, return_tensors="pt").input_ids
    ours = PersimmonForCausalLM.from_pretrained(folder, dtype=dtype)
    theirs = transformers.PersimmonForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        exact, eager = exact_twin(theirs)(ids), theirs(ids)
        mine = ours(ids)
    assert_accurate(mine.logits, eager.logits, exact.logits)
    assert float(ours(ids, labels=ids).loss) < 4.0  # untrained: ln 4096 = 8.3


def test_same_ids_in_transformers(folder, tokenizer):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in [*PROMPTS, "héllo 🙂\t\n  x = 1", ""]:
        assert tokenizer(text).input_ids == theirs(text).input_ids


def test_activations_are_sparse_as_reported(pair, folder, tokenizer):
    """The share of zeros after the squared ReLU is near what training.json says, on code that it didn't train on."""
    ours, _ = pair
    report = json.loads((folder / "training.json").read_text())
    shares: list[float] = []
    hooks = [
        layer.mlp.dense_4h_to_h.register_forward_pre_hook(
            lambda _, inputs: shares.append(float((inputs[0] == 0).float().mean()))
        )
        for layer in ours.model.layers
    ]
    with torch.no_grad():
        ours(tokenizer(Path(__file__).read_text(), return_tensors="pt").input_ids[:, :512])
    for hook in hooks:
        hook.remove()
    for share, reported in zip(shares, report["zeros_after_relu2"], strict=True):
        assert abs(share - reported) < 0.1
