"""Types for argparse: each turns an argument's text into a value within its range, or says what is wrong with it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}


def integer(least: int | None = None) -> Callable[[str], int]:
    """Returns a type for integers of at least `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
        if least is not None and value < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    return parse


def number(above: float = 0.0, most: float = math.inf, *, inclusive: bool = False) -> Callable[[str], float]:
    """Returns a type for finite numbers above `above` (or equal to it if `inclusive`) and at most `most`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        large_enough = value >= above if inclusive else value > above
        if not (math.isfinite(value) and large_enough and value <= most):
            least = f"at least {above:g}" if inclusive else f"above {above:g}"
            raise argparse.ArgumentTypeError(
                f"{text} must be {least}" + ("" if math.isinf(most) else f" and at most {most:g}")
            )
        return value

    return parse


def dtype(text: str) -> torch.dtype:
    """Parses the name of a dtype."""
    if text not in DTYPES:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(DTYPES)}")
    return DTYPES[text]


def device(text: str) -> torch.device:
    """Parses a device such as cpu, cuda or cuda:1."""
    try:
        parsed = torch.device(text)
    except RuntimeError:
        parsed = None
    if parsed is None or parsed.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device such as cpu, cuda or cuda:1")
    return parsed
