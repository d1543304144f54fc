"""Shared by the tests: the tolerance rule, seeded inputs, and a pair of equal models."""

from __future__ import annotations

import copy

import torch
import transformers
from torch import Tensor

import persimmon_ext
from persimmon_ext import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def max_error(actual: Tensor, exact: Tensor) -> float:
    """Largest absolute difference; NaN where either holds one, and NaN compares as failed."""
    if exact.numel() == 0:
        return 0.0
    actual, exact = actual.detach().double(), exact.detach().double()
    both_infinite = torch.isinf(exact) & (actual == exact)
    return float((actual - exact).masked_fill(both_infinite, 0.0).abs().max())


def assert_accurate(ours: Tensor, eager: Tensor, exact: Tensor, *, factor: float = 2.0, name: str = "result") -> None:
    """Our error against the exact result is at most `factor` times the eager one's in the same dtype, plus a tiny
    absolute term: a quarter of the dtype's spacing at the largest value; 4 spacings in float32, where eager results may
    be exact by luck; 4 float32 spacings in float64 too, as transformers' softmax and angles are float32 even then."""
    assert ours.shape == exact.shape, f"{name}: shape {list(ours.shape)}, expected {list(exact.shape)}"
    assert ours.dtype == eager.dtype, f"{name}: dtype {ours.dtype}, expected {eager.dtype}"
    error, allowed = max_error(ours, exact), factor * max_error(eager, exact)
    finite = exact.detach()[torch.isfinite(exact)]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    spacing = torch.finfo(ours.dtype if ours.dtype.itemsize == 2 else torch.float32).eps * largest
    allowed += spacing * (0.25 if ours.dtype.itemsize == 2 else 4.0)
    assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e} (largest value {largest:.3e})"


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Seeded normal numbers that every dtype holds exactly, so that all precisions see the same input."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).bfloat16().to(dtype)


SMALL = {
    "vocab_size": 131,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "initializer_range": 0.08,  # wide enough for attention and argmax to matter
    "rope_parameters": {"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5},
}


def model_pair(
    head: str = "ForCausalLM",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    attention: str = "eager",
    **changes: object,
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(ours, transformers'), both in eval mode, with the same random weights (biases too)."""
    settings = {**SMALL, **changes}
    config = transformers.PersimmonConfig(**settings)
    config._attn_implementation = attention
    theirs = getattr(transformers, f"Persimmon{head}")(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            centre, spread = (1.0, 0.2) if "layernorm.weight" in name else (0.0, config.initializer_range)
            parameter.copy_((centre + spread * noise).bfloat16())  # exact in every dtype
    ours = getattr(persimmon_ext, f"Persimmon{head}")(persimmon_ext.PersimmonConfig(**settings))
    ours.load_state_dict(theirs.state_dict())
    # A plain .to(dtype) would round transformers' rotary frequencies too; from_pretrained(dtype=…) keeps them float32.
    rotary = getattr(theirs, "model", theirs).rotary_emb
    frequencies = rotary.inv_freq
    theirs = theirs.to(dtype).eval()
    rotary.inv_freq = frequencies
    return ours.to(dtype).eval(), theirs


def exact_twin(model: torch.nn.Module) -> torch.nn.Module:
    """The same model in float64."""
    return copy.deepcopy(model).double()


def float64_mask(mask: Tensor | None, T: int) -> Tensor | None:
    """A [B, S] mask as what transformers adds to the scores of the last T tokens, for :func:`exact_twin`.

    Given the mask itself, transformers in float64 adds the lowest float64, which its float32 softmax turns into NaN.
    """
    if mask is None:
        return None
    visible = reference.visible_keys(T, mask.shape[1], mask.device) & (mask != 0)[:, None, None, :]
    return torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -1e30)


def random_ids(B: int, T: int, V: int = SMALL["vocab_size"], seed: int = 0) -> Tensor:
    return torch.randint(1, V, (B, T), generator=torch.Generator().manual_seed(seed))
