"""Which ops have a kernel where, and the fallback to :mod:`persimmon_ext.reference` for what they don't take."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

logger = logging.getLogger("persimmon_ext")

#: dtypes that the kernels take; anything else runs the reference.
NATIVE_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})

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


def takes(op: str, x: Tensor, *others: Tensor | None, backward: str | None = None) -> bool:
    """Whether the kernel of `op` takes these tensors; otherwise the caller runs the reference.

    x's dtype must be native and shared by `others`; where gradients are on, the kernel of `backward` must exist too.
    """
    needed = (op, backward) if backward is not None and torch.is_grad_enabled() else (op,)
    if not has_kernels(x.device, *needed):
        reason = f"no {' and '.join(needed)} kernel for {x.device.type}"
    elif x.dtype not in NATIVE_DTYPES:
        reason = f"no kernel for {x.dtype}"
    elif any(other is not None and other.dtype != x.dtype for other in others):
        reason = "tensors of different dtypes"
    else:
        return True
    if not torch.compiler.is_compiling():
        log_fallback(op, reason)
    return False


@cache
def log_fallback(op: str, reason: str) -> None:
    logger.debug("%s runs the PyTorch reference: %s", op, reason)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that matrix products run in under :func:`torch.autocast` for x's device; None outside of it."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All tensors in their widest dtype: autocast leaves 16-bit activations beside float32 parameters."""
    dtype = tensors[0].dtype
    for t in tensors[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return tuple(t.to(dtype) for t in tensors)
