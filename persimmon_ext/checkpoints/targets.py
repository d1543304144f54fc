"""What a caller may ask of loaded weights: their dtype and their device."""

from __future__ import annotations

import torch

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
