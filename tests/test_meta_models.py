"""Models without memory: nothing is drawn for them, and nothing is imported to draw it."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from persimmon_ext import PersimmonConfig, PersimmonForCausalLM, PersimmonForTokenClassification
from persimmon_ext.meta_models import without_memory

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_parameters_have_shapes_and_no_memory() -> None:
    state = torch.random.get_rng_state()
    with without_memory():
        models = [kind(PersimmonConfig(**TINY)) for kind in (PersimmonForCausalLM, PersimmonForTokenClassification)]
    assert all(parameter.is_meta for model in models for parameter in model.parameters())
    assert models[0].lm_head.weight.shape == (PersimmonConfig().vocab_size, 64)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not nn.Linear(2, 2).weight.is_meta  # it ends with the block


def test_loading_leaves_the_compiler_alone() -> None:
    code = """
import sys, persimmon_ext
persimmon_ext.PersimmonForCausalLM.from_pretrained(persimmon_ext.embedded_checkpoint())
print("torch._dynamo" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False"]
