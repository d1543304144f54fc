"""Rotary position embedding: the frequencies of the six RoPE types, and the module that makes cos and sin.

A type is a pure function returning ``(inverse frequencies, attention scaling)``; the frequencies are fp32 [R/2] on the
CPU, whatever the model's dtype and the device context. Dims: B batch, T new tokens, R rotary dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from persimmon_ext.rope_parameters import PRETRAINED_LENGTH, check_rope_parameters

if TYPE_CHECKING:
    from persimmon_ext.config import PersimmonConfig

Frequencies = tuple[Tensor, float]


def _exponents(rotary_dim: int) -> Tensor:
    # The explicit device keeps real values under `with torch.device("meta")`.
    return torch.arange(0, rotary_dim, 2, dtype=torch.float32, device="cpu") / rotary_dim


def default_frequencies(parameters: Mapping[str, Any], rotary_dim: int, max_positions: int) -> Frequencies:
    """theta^(-2i/R), https://arxiv.org/abs/2104.09864."""
    return 1.0 / (parameters["rope_theta"] ** _exponents(rotary_dim)), 1.0


def linear_frequencies(parameters: Mapping[str, Any], rotary_dim: int, max_positions: int) -> Frequencies:
    """Position interpolation: all frequencies divided by ``factor``, https://arxiv.org/abs/2306.15595."""
    frequencies, scaling = default_frequencies(parameters, rotary_dim, max_positions)
    return frequencies / parameters["factor"], scaling


def yarn_frequencies(parameters: Mapping[str, Any], rotary_dim: int, max_positions: int) -> Frequencies:
    """YaRN: a ramp over the dims from extrapolation to interpolation, https://arxiv.org/abs/2309.00071."""
    theta, factor, length = (parameters[key] for key in ("rope_theta", "factor", PRETRAINED_LENGTH))

    def dim_of(rotations: float) -> float:
        # The dim whose wave turns `rotations` times within the pretrained length.
        return (rotary_dim * math.log(length / (rotations * 2 * math.pi))) / (2 * math.log(theta))

    low, high = dim_of(parameters.get("beta_fast", 32)), dim_of(parameters.get("beta_slow", 1))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    width = (high - low) or 0.001  # a step instead of a division by zero
    dims = torch.arange(rotary_dim // 2, dtype=torch.float32, device="cpu")
    extrapolated_share = 1 - ((dims - low) / width).clamp(0, 1)
    powers = theta ** _exponents(rotary_dim)
    frequencies = (1.0 / (factor * powers)) * (1 - extrapolated_share) + (1.0 / powers) * extrapolated_share
    return frequencies, _yarn_scaling(parameters)


def _yarn_scaling(parameters: Mapping[str, Any]) -> float:
    if "attention_factor" in parameters:
        return float(parameters["attention_factor"])

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(parameters["factor"]) + 1.0 if parameters["factor"] > 1 else 1.0

    weights = parameters.get("mscale", 0), parameters.get("mscale_all_dim", 0)
    if all(weights):
        return magnitude(weights[0]) / magnitude(weights[1])
    return magnitude(1)


def longrope_frequencies(
    parameters: Mapping[str, Any], rotary_dim: int, max_positions: int, *, long: bool = False
) -> Frequencies:
    """LongRoPE: one divisor a dim, a short and a long set, https://arxiv.org/abs/2402.13753."""
    divisors = torch.tensor(parameters["long_factor" if long else "short_factor"], dtype=torch.float32, device="cpu")
    frequencies = 1.0 / (divisors * parameters["rope_theta"] ** _exponents(rotary_dim))
    if "attention_factor" in parameters:
        return frequencies, float(parameters["attention_factor"])
    length = parameters[PRETRAINED_LENGTH]
    factor = parameters.get("factor", max_positions / length)
    return frequencies, math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0


def llama3_frequencies(parameters: Mapping[str, Any], rotary_dim: int, max_positions: int) -> Frequencies:
    """Llama 3.1: long waves divided by ``factor``, short ones kept, a blend between, https://arxiv.org/abs/2407.21783."""
    frequencies, scaling = default_frequencies(parameters, rotary_dim, max_positions)
    factor, low, high, length = (
        parameters[key] for key in ("factor", "low_freq_factor", "high_freq_factor", PRETRAINED_LENGTH)
    )
    waves = 2 * math.pi / frequencies
    kept_share = (length / waves - low) / (high - low)
    blended = (1 - kept_share) * frequencies / factor + kept_share * frequencies
    medium = (waves >= length / high) & (waves <= length / low)
    scaled = torch.where(waves > length / low, frequencies / factor, frequencies)
    return torch.where(medium, blended, scaled), scaling


def dynamic_frequencies(
    parameters: Mapping[str, Any], exponents: Tensor, max_positions: int, sequence_length: Tensor
) -> Tensor:
    """Dynamic NTK beyond `max_positions`: theta grows with the 0-d `sequence_length`; on its device, without a sync."""
    rotary_dim, factor = 2 * exponents.numel(), parameters["factor"]
    growth = (factor * sequence_length.float() / max_positions) - (factor - 1)
    theta: Tensor = parameters["rope_theta"] * growth ** (rotary_dim / (rotary_dim - 2))
    return 1.0 / theta**exponents


_FREQUENCIES: dict[str, Callable[[Mapping[str, Any], int, int], Frequencies]] = {
    "default": default_frequencies,
    "linear": linear_frequencies,
    "dynamic": default_frequencies,  # up to max_position_embeddings; beyond: dynamic_frequencies
    "yarn": yarn_frequencies,
    "longrope": longrope_frequencies,
    "llama3": llama3_frequencies,
}


class PersimmonRotaryEmbedding(nn.Module):
    """Makes the cos and sin of the rotary embedding from positions.

    The result depends on the positions of the call alone. ``dynamic`` and ``longrope`` choose their frequencies by the
    largest position of the call, as transformers does; transformers' ``dynamic`` also remembers the longest call so far
    until one below ``max_position_embeddings`` comes, which this module does not.
    """

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__()
        self.rope_type: str = config.rope_parameters["rope_type"]
        self.rope_parameters: dict[str, Any] = dict(config.rope_parameters)
        self.rotary_dim = config.rotary_dim
        self.max_positions = config.max_position_embeddings
        check_rope_parameters(self.rope_parameters, config.head_dim)
        shape = (self.rope_parameters, self.rotary_dim, self.max_positions)
        frequencies, self.attention_scaling = _FREQUENCIES[self.rope_type](*shape)
        beyond = frequencies
        if self.rope_type == "longrope":
            beyond, _ = longrope_frequencies(*shape, long=True)
        elif self.rope_type == "dynamic":
            beyond = _exponents(self.rotary_dim)
        # Plain attributes, not buffers: `model.to(dtype)` must not round them nor `to_empty` erase them.
        self._constants = (frequencies, beyond)
        self._by_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def _constants_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device.type == "cpu":
            return self._constants
        if device not in self._by_device:
            frequencies, beyond = self._constants
            self._by_device[device] = (frequencies.to(device), beyond.to(device))
        return self._by_device[device]

    @property
    def depends_on_longest(self) -> bool:
        """Whether the angle at a position depends on the largest position of the call too."""
        return self.rope_type in ("dynamic", "longrope")

    def _inverse_frequencies(self, position_ids: Tensor) -> Tensor:
        frequencies, beyond = self._constants_on(position_ids.device)
        if not self.depends_on_longest or position_ids.numel() == 0:
            return frequencies
        sequence_length = position_ids.max() + 1
        if self.rope_type == "longrope":
            return torch.where(sequence_length > self.rope_parameters[PRETRAINED_LENGTH], beyond, frequencies)
        grown = dynamic_frequencies(self.rope_parameters, beyond, self.max_positions, sequence_length)
        return torch.where(sequence_length > self.max_positions, grown, frequencies)

    @torch.no_grad()
    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cos and sin, fp32 [B, T, R/2], times the attention scaling, at `position_ids` [B, T] (integers).

        Column i belongs to the pair (i, i + R/2) of a head. Raises ValueError on another shape or dtype.
        """
        if position_ids.ndim != 2 or position_ids.is_floating_point() or position_ids.dtype == torch.bool:
            raise ValueError(
                f"position_ids must be integers of shape [B, T], got {position_ids.dtype} of shape "
                f"{list(position_ids.shape)}."
            )
        angles = position_ids[..., None].float() * self._inverse_frequencies(position_ids)
        return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling

    def extra_repr(self) -> str:
        return f"rope_type={self.rope_type!r}, rotary_dim={self.rotary_dim}"
