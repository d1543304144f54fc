"""Checks that come before every timing: a fast wrong result is worth nothing."""

from __future__ import annotations

import torch
from torch import Tensor


class MismatchError(Exception):
    """The two sides of a comparison computed different things."""


def error(actual: Tensor, exact: Tensor) -> float:
    """Largest absolute difference; NaN where either holds one."""
    return float((actual.float() - exact.float()).abs().max())


def check_accurate(name: str, ours: Tensor, eager: Tensor, exact: Tensor) -> None:
    """Our error against the float32 result is at most twice the eager one's in the same dtype, plus half a spacing of
    the dtype at the largest value (in float32 8 spacings: `exact` is no more exact than the others then).

    Raises: MismatchError saying by how much; also for NaN and differing shapes.
    """
    if ours.shape != exact.shape:
        raise MismatchError(f"{name}: shape {list(ours.shape)}, expected {list(exact.shape)}.")
    if not ours.is_floating_point():
        if not torch.equal(ours, eager):
            raise MismatchError(f"{name}: {ours.flatten()[:8].tolist()}, expected {eager.flatten()[:8].tolist()}.")
        return
    spacing = torch.finfo(ours.dtype).eps * float(exact.abs().max())
    allowed = 2 * error(eager, exact) + spacing * (0.5 if ours.dtype.itemsize == 2 else 8.0)
    found = error(ours, exact)
    if not found <= allowed:
        raise MismatchError(f"{name}: error {found:.3e}, and {allowed:.3e} is allowed.")


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Root mean square of the difference over that of `theirs`."""
    difference = (ours.float() - theirs.float()).square().mean().sqrt()
    return float(difference / theirs.float().square().mean().sqrt())


def check_close(name: str, ours: Tensor, theirs: Tensor, limit: float) -> float:
    """Returns the relative difference. Raises MismatchError where it is above `limit` or NaN."""
    found = relative_difference(ours, theirs)
    if ours.shape != theirs.shape or not found <= limit:
        raise MismatchError(f"{name}: relative difference {found:.4f}, and {limit} is allowed.")
    return found
