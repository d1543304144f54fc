"""Which ops have a kernel where, and the fallback to :mod:`persimmon_ext.reference` for what they don't take."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("persimmon_ext")

#: dtypes that the kernels take; anything else runs the reference.
NATIVE_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})

#: Head and rotary dimension that the CUDA kernels are written for, Persimmon's; other sizes run the reference there.
CUDA_HEAD_DIM, CUDA_ROTARY_DIM = 64, 32

#: (op, dispatch key) of every kernel in this build.
KERNELS = frozenset(
    (name.removeprefix("persimmon_ext::"), key)
    for name in torch._C._dispatch_get_all_op_names()  # _C has just registered ours
    if name.startswith("persimmon_ext::")
    for key in ("CPU", "CUDA")
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
)


def has_kernels(device: torch.device, *names: str) -> bool:
    """Whether every op of `names` has a kernel for `device` in this build (the meta device runs the fakes)."""
    return device.type == "meta" or all((name, device.type.upper()) in KERNELS for name in names)


def takes(op: str, x: Tensor, *others: Tensor | None, backward: str | None = None, fits_cuda: bool = True) -> bool:
    """Whether the kernel of `op` takes these tensors; otherwise the caller runs the reference.

    x's dtype must be native and shared by `others`; where gradients are on, the kernel of `backward` must exist too.
    `fits_cuda`: whether the sizes are those of the CUDA kernel, if it is written for some only.
    """
    # Written for speed: this runs before every op of a decode step, on caches that the op before has emptied.
    dtype, same = x.dtype, True
    for other in others:
        if other is not None and other.dtype != dtype:
            same = False
    transformed = torch._C._are_functorch_transforms_active()
    if same and x.is_cpu and dtype in NATIVE_DTYPES and not transformed:  # every op has a CPU kernel
        return True
    needed = (op, backward) if backward is not None and torch.is_grad_enabled() else (op,)
    if transformed:
        reason = "torch.func transforms go through PyTorch's own operators"
    elif not has_kernels(x.device, *needed):
        reason = f"no {' and '.join(needed)} kernel for {x.device.type}"
    elif x.is_cuda and not fits_cuda:
        reason = "no CUDA kernel for these sizes"
    elif dtype not in NATIVE_DTYPES:
        reason = f"no kernel for {dtype}"
    elif not same:
        reason = "tensors of different dtypes"
    else:
        return True
    if not torch.compiler.is_compiling():
        log_fallback(op, reason)
    return False


def run(op: Callable[..., Any], *arguments: Any) -> Any:
    """Calls an op of ``torch.ops.persimmon_ext``; where no gradient is recorded, not through autograd's Python code."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def refuse_gradients(op: str, *tensors: Tensor | None) -> None:
    """Raises where a gradient would be lost without a word, in an op that writes in place."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise RuntimeError(f"{op} is not differentiable, and an argument requires a gradient: use torch.no_grad().")


def register_once_differentiable(op: str) -> None:
    """Makes second derivatives through the backward kernel `op` an error instead of a silent zero."""

    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            f"persimmon_ext::{op} has no derivative: second derivatives need float64, or transformers' model."
        )

    torch.library.register_autograd(f"persimmon_ext::{op}", backward)


@cache
def log_fallback(op: str, reason: str) -> None:
    logger.debug("%s runs the PyTorch reference: %s", op, reason)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that matrix products run in under :func:`torch.autocast` for x's device; None outside of it."""
    if not torch._C._is_any_autocast_enabled():
        return None
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All tensors in their widest dtype: autocast leaves 16-bit activations beside float32 parameters."""
    dtype, mixed = tensors[0].dtype, False
    for t in tensors[1:]:
        if t.dtype != dtype:
            dtype, mixed = torch.promote_types(dtype, t.dtype), True
    return tuple(t.to(dtype) for t in tensors) if mixed else tensors
