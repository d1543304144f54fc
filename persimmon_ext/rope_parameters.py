"""The ``rope_parameters`` of a config: one standard spelling, and the checks of every RoPE type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

REQUIRED_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
"""RoPE type -> the keys of ``rope_parameters`` that it cannot do without."""

PRETRAINED_LENGTH = "original_max_position_embeddings"
"""The key that the types of ``PRETRAINED_LENGTH_TYPES`` read the length before extension from."""

PRETRAINED_LENGTH_TYPES = ("yarn", "longrope", "llama3")

_NUMBERS = (
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
)
# transformers takes 0 for "not given" here, and published configs contain it.
_NUMBERS_OR_ZERO = ("mscale", "mscale_all_dim")


def standardize_rope_parameters(
    parameters: Mapping[str, Any] | None,
    *,
    rope_theta: float,
    partial_rotary_factor: float,
    max_position_embeddings: int,
) -> dict[str, Any]:
    """Returns a copy of `parameters` that spells out the type, theta, rotary share and pretrained length.

    The older spelling ``type`` becomes ``rope_type``. Values already in `parameters` win over the arguments.
    Raises TypeError if `parameters` is neither a mapping nor None.
    """
    if parameters is not None and not isinstance(parameters, Mapping):
        raise TypeError(f"rope_parameters must be a dictionary or None, got {parameters!r}.")
    given = dict(parameters or {})
    legacy_type = given.pop("type", None)
    standard: dict[str, Any] = {"rope_type": legacy_type or "default", "rope_theta": rope_theta}
    standard["partial_rotary_factor"] = partial_rotary_factor
    standard.update((key, value) for key, value in given.items() if value is not None)
    if standard["rope_type"] in PRETRAINED_LENGTH_TYPES:
        standard.setdefault(PRETRAINED_LENGTH, max_position_embeddings)
    return standard


def check_rope_parameters(parameters: Mapping[str, Any], head_dim: int) -> None:
    """Raises ValueError, naming the field and its value, unless `parameters` (standardized) describe a usable RoPE."""
    rope_type = parameters["rope_type"]
    if not isinstance(rope_type, str) or rope_type not in REQUIRED_KEYS:
        raise ValueError(f"rope_type must be one of {', '.join(REQUIRED_KEYS)}, got {rope_type!r}.")
    for key in REQUIRED_KEYS[rope_type]:
        if key not in parameters:
            raise ValueError(f"rope_type {rope_type!r} needs {key!r}, which is missing from {dict(parameters)!r}.")
    for key in _NUMBERS:
        if key in parameters:
            _check_positive(key, parameters[key])
    for key in _NUMBERS_OR_ZERO:
        if parameters.get(key, 0) != 0:
            _check_positive(key, parameters[key])
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            raise ValueError(f"rope_parameters must be the same for all layers, got {key!r}: {value!r}.")
    rotary_dim = _check_rotary_dim(parameters, head_dim)
    if rope_type == "longrope":
        _check_factor_lists(parameters, rotary_dim)
    _check_type(rope_type, parameters)


def _check_type(rope_type: str, parameters: Mapping[str, Any]) -> None:
    if rope_type in PRETRAINED_LENGTH_TYPES:
        length = parameters[PRETRAINED_LENGTH]
        if isinstance(length, bool) or not isinstance(length, int) or length < 2:
            raise ValueError(f"{PRETRAINED_LENGTH} must be an integer of at least 2, got {length!r}.")
    if rope_type == "yarn" and parameters["rope_theta"] == 1:
        raise ValueError("rope_theta must not be 1 for rope_type 'yarn', which divides by its logarithm.")
    if rope_type == "llama3" and parameters["high_freq_factor"] <= parameters["low_freq_factor"]:
        raise ValueError(
            f"high_freq_factor must be greater than low_freq_factor, got {parameters['high_freq_factor']!r} and "
            f"{parameters['low_freq_factor']!r}."
        )


def _check_rotary_dim(parameters: Mapping[str, Any], head_dim: int) -> int:
    share = parameters["partial_rotary_factor"]
    if share > 1:
        raise ValueError(f"partial_rotary_factor must be at most 1, got {share!r}.")
    rotary_dim = int(head_dim * share)
    # Dynamic NTK divides by R - 2.
    least = 4 if parameters["rope_type"] == "dynamic" else 2
    if rotary_dim < least or rotary_dim % 2:
        raise ValueError(
            f"partial_rotary_factor {share!r} of head dim {head_dim} gives a rotary dim of {rotary_dim}, which must be "
            f"even and at least {least} for rope_type {parameters['rope_type']!r}."
        )
    return rotary_dim


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 < value < math.inf):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}.")


def _check_factor_lists(parameters: Mapping[str, Any], rotary_dim: int) -> None:
    for key in ("short_factor", "long_factor"):
        factors = parameters[key]
        if not isinstance(factors, (list, tuple)) or len(factors) != rotary_dim // 2:
            raise ValueError(
                f"{key} must be a list of {rotary_dim // 2} numbers (half the rotary dim), got {factors!r}."
            )
        for index, factor in enumerate(factors):
            _check_positive(f"{key}[{index}]", factor)
