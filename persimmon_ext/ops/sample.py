"""Draws the next token on the device: no sort, no host sync, reproducible per row."""

from __future__ import annotations

import torch
from torch import Tensor

from persimmon_ext import reference
from persimmon_ext.ops.native import takes

_ops = torch.ops.persimmon_ext


def sample(
    logits: Tensor,
    rng: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Tensor:
    """One token per row from softmax(logits / temperature), after top-k, top-p and min-p in this order.

    Args:
        logits: [B, V].
        rng: int64 [B, 2], (seed, counter) of each row: the same pair draws the same noise, whatever the other rows are.
        temperature: 0 takes the highest logit (the first of equals).
        top_k: keep the k highest (equals of the k-th too); 0 keeps all.
        top_p: keep the fewest highest-probability tokens that hold this much probability; 1 keeps all.
        min_p: keep tokens with at least this share of the highest probability; 0 keeps all.
    Returns: int64 [B].
    Raises: ValueError naming a parameter out of range, or a row without a finite logit or with a NaN or inf; on a CUDA
        device, where raising would wait for it, such a row gives -1 instead.
    Source: Gumbel-max (Gumbel 1954) on Philox4x32-10 noise (Salmon et al. 2011).
    """
    if takes("sample", logits):
        return _ops.sample(logits, rng, temperature, top_k, top_p, min_p)
    for name, value, fits in (
        ("temperature", temperature, 0 <= temperature < float("inf")),
        ("top_k", top_k, top_k >= 0),
        ("top_p", top_p, 0 < top_p <= 1),
        ("min_p", min_p, 0 <= min_p <= 1),
    ):
        if not fits:
            raise ValueError(f"{name} is out of range: {value}.")
    return reference.sample(logits, rng, temperature, top_k, top_p, min_p)


@torch.library.register_fake("persimmon_ext::sample")
def _(logits: Tensor, rng: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.int64)
