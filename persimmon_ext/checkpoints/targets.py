"""What a caller may ask of weights: their dtype, their device, and sizes in bytes."""

from __future__ import annotations

import re

import torch

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|[KMGT]I?)B", re.IGNORECASE)

WEIGHT_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
"""Name -> dtype of every dtype that weights may have."""


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Returns the dtype that `dtype` names: ``"bfloat16"``, ``"torch.bfloat16"`` or ``torch.bfloat16``.

    Raises ValueError for a dtype that weights cannot have, TypeError for something that is neither string nor dtype.
    """
    if not isinstance(dtype, (str, torch.dtype)):
        raise TypeError(f"dtype must be a string or a torch.dtype, got {dtype!r}.")
    name = str(dtype).removeprefix("torch.")
    if name not in WEIGHT_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(WEIGHT_DTYPES)}, got {dtype!r}.")
    return WEIGHT_DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The name of `dtype` as config.json spells it, such as ``"bfloat16"``."""
    return str(dtype).removeprefix("torch.")


def parse_device(device: str | int | torch.device | None) -> torch.device:
    """Returns the device that `device` names (None: torch's default device), having checked that it can hold tensors.

    Raises ValueError if torch does not know it or this machine does not have it.
    """
    if device is None:
        return torch.get_default_device()
    try:
        parsed = torch.device(device)
        torch.empty(0, device=parsed)
    # AssertionError is what a torch built without CUDA raises for "cuda".
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ValueError(f"device {device!r} cannot be used: {reason}") from error
    if parsed.type == "meta":
        raise ValueError("device 'meta' holds no values, so a checkpoint cannot be loaded there.")
    return parsed


def parse_size(size: int | str, what: str = "max_shard_size") -> int:
    """Returns the number of bytes that `size` says: an int, or a string such as "5GB" (10^9) or "5GiB" (2^30).

    Raises ValueError if it is not above 0 or not understood, TypeError for another type; `what` names it.
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(f"{what} must be an int or a string, got {size!r}.")
    parsed = size if isinstance(size, int) else 0
    if isinstance(size, str) and (match := _SIZE.fullmatch(size.strip())):
        parsed = int(float(match[1]) * _UNITS[match[2].upper()])
    if parsed <= 0:
        raise ValueError(f"{what} must be a number of bytes above 0, such as '5GB' or '500MiB', got {size!r}.")
    return parsed
