"""Models for the tests of quantised weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from helpers import SMALL

from persimmon_ext import PersimmonConfig, PersimmonForCausalLM

FORMATS = ["int8", "int4"]
MLP = "model.layers.0.mlp"


def make(model_class: type[Any] = PersimmonForCausalLM, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = model_class(PersimmonConfig(**{**SMALL, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
    return model.to(dtype).eval()


def dequantized(model: Any, dtype: torch.dtype | None = None) -> Any:
    """The same function with the weights that the codes stand for (by default in the model's dtype)."""
    state = {}
    for name, tensor in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if leaf == "codes":
            state[f"{owner}.weight"] = model.get_submodule(owner).dequantize()
        elif leaf != "scale":
            state[name] = tensor
    plain = type(model)(copy.deepcopy(model.config)).to(dtype or model.dtype).eval()
    plain.load_state_dict(state)
    return plain
