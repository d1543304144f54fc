"""The losses of the heads, with the meaning that transformers gives them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from persimmon_ext import ops

IGNORE_INDEX = -100


def next_token_labels(labels: Tensor) -> Tensor:
    """labels [B, T] -> the label of each position's next token [B, T], IGNORE_INDEX at the end of a row."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def _reduce(total: Tensor, counted: Tensor, num_items: Tensor | int | None) -> Tensor:
    if num_items is None:
        return total / counted
    return total / (num_items.to(total.device) if isinstance(num_items, Tensor) else num_items)


def causal_loss(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross entropy in float32 of each position's logits [B, T, V] with the next token of labels [B, T].

    Labels of IGNORE_INDEX don't count. The mean over the others, or the sum over `num_items_in_batch`.
    """
    targets = next_token_labels(labels).flatten().to(logits.device)
    total = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")
    return _reduce(total, (targets != IGNORE_INDEX).sum(), num_items_in_batch)


def causal_loss_without_logits(
    hidden: Tensor, head: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """:func:`causal_loss` of the logits hidden head^T, which are never all in memory. hidden [B, T, C]; head [V, C]."""
    targets = next_token_labels(labels).flatten().to(hidden.device)
    losses, _ = ops.linear_cross_entropy(hidden.flatten(0, 1), head, targets, IGNORE_INDEX)
    return _reduce(losses.sum(), (targets != IGNORE_INDEX).sum(), num_items_in_batch)


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy in float32 of logits [B, T, labels] with labels [B, T]."""
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().to(logits.device), ignore_index=IGNORE_INDEX)


def problem_type_of(labels: Tensor, num_labels: int) -> str:
    """What kind of problem labels of this dtype make, where the config doesn't say."""
    if num_labels == 1:
        return "regression"
    return "single_label_classification" if labels.dtype in (torch.long, torch.int) else "multi_label_classification"


def sequence_loss(logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """Loss of one prediction a sequence. logits [B, labels]; labels [B], or [B, labels] for several at once."""
    labels = labels.to(logits.device)
    if problem_type == "regression":
        return F.mse_loss(logits.squeeze(), labels.squeeze()) if logits.shape[-1] == 1 else F.mse_loss(logits, labels)
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE_INDEX)
    return F.binary_cross_entropy_with_logits(logits, labels)
