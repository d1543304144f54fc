"""Linear layers whose weight is int8 or int4 codes, and turning a model's linear layers into them.

Inference only: the codes have no gradient. What goes through a quantised layer does, so that what lies around it (a
classification head, an adapter, the embedded prompt) can be trained.

Dimensions: N output features, K input features; C hidden size and F ffn size for the hidden-major form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from persimmon_ext import ops, quantization
from persimmon_ext.huge_pages import on_huge_pages
from persimmon_ext.layers import HiddenMajorLinear, Linear, Operands
from persimmon_ext.quantization import Format, parse_format

_TRAINED_HEAD = "score"  # small, and often still to be trained: stays as it is


class QuantizedLinear(nn.Module):
    """:class:`persimmon_ext.layers.Linear` on int8 or int4 weights.

    Buffers: codes (int8 [N, K], or uint8 [N, K/2]) and scale (float32 [N], or [N, K/64]); the bias stays a parameter.
    Both keep their dtypes when the module's changes.
    """

    fuses = True
    hidden_major = False
    codes: Tensor
    scale: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        quantization: str,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.format: Format = parse_format(quantization)
        self.format.check_shape(out_features, in_features, hidden_major=self.hidden_major)
        codes, scale = self.buffer_shapes()
        self.register_buffer("codes", torch.zeros(codes, dtype=self.format.codes_dtype, device=device))
        self.register_buffer("scale", torch.zeros(scale, dtype=torch.float32, device=device))
        zeros = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device), requires_grad=False)
        self.bias = zeros if bias else None

    def buffer_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of codes and scale."""
        N, K = self.out_features, self.in_features
        rows, columns = (K, N) if self.hidden_major else (N, K)
        if self.format.group_size is None:
            return (rows, columns), (N,)
        return (rows, columns // 2), (rows, columns // self.format.group_size)

    @torch.no_grad()
    def set_weight(self, weight: Tensor, device: torch.device | None = None) -> None:
        """Quantises weight [N, K], of any floating dtype, and keeps the result on `device` (None: the weight's).

        Raises ValueError for another shape, or an infinity or NaN.
        """
        if weight.shape != (self.out_features, self.in_features):
            expected = [self.out_features, self.in_features]
            raise ValueError(f"The weight must have shape {expected}, got {list(weight.shape)}.")
        codes, scale = self.quantizer()(weight)
        self.codes, self.scale = codes.to(device), scale.to(device)

    def allocate(self, device: torch.device) -> None:
        """Gives codes and scale memory on `device`, for :meth:`set_rows` to write to."""
        codes, scale = self.buffer_shapes()
        self.codes = on_huge_pages(torch.empty(codes, dtype=self.format.codes_dtype, device=device))
        self.scale = on_huge_pages(torch.empty(scale, dtype=torch.float32, device=device))

    @property
    def rows_together(self) -> int:
        """:meth:`set_rows` takes a multiple of this many rows."""
        return 1

    @torch.no_grad()
    def set_rows(self, first: int, weight: Tensor) -> None:
        """Quantises rows `first` and on of the weight, [n, K] of any floating dtype on the layer's device, as
        :meth:`set_weight` does all of them. Raises ValueError for an infinity or NaN."""
        last = first + len(weight)
        self.codes[first:last], self.scale[first:last] = self.quantizer()(weight)

    def quantizer(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return quantization.quantize_int8 if self.format.bits == 8 else quantization.quantize_int4

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [N, K] that the codes stand for."""
        if self.format.bits == 8:
            return quantization.dequantize_int8(self.codes, self.scale, dtype)
        return quantization.dequantize_int4(self.codes, self.scale, dtype)

    def forward(self, x: Tensor, *, relu2: bool = False, residual: Tensor | None = None) -> Tensor:
        """act(x W^T + bias) + residual, act being the squared ReLU or nothing. x [..., K]; residual [..., N]."""
        op = ops.linear_int8 if self.format.bits == 8 else ops.linear_int4
        return op(x, self.codes, self.scale, self.bias, relu2=relu2, residual=residual)

    def operands(self) -> Operands:
        return self.codes, self.scale, self.bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        codes, scale = self.codes, self.scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # fn moves to another device, dtype, or both. In 16 bits the scales would lose what no later .float() restores.
        self.codes = _in_own_dtype(codes, self.codes)
        self.scale = _in_own_dtype(scale, self.scale)
        return self

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                f"A layer quantised to {self.format.name} has no weight to read or train: it holds codes and scale, "
                "for inference. dequantize() returns the weight that they stand for."
            )
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.format.name}, bias={bias}"


class QuantizedHiddenMajorLinear(QuantizedLinear):
    """:class:`persimmon_ext.layers.HiddenMajorLinear` on int8 or int4 weights: reads only the rows of W^T whose
    activation isn't zero. Buffers: codes (int8 [F, C], or uint8 [F, C/2]) and scale (float32 [C], or [F, C/64])."""

    fuses = True
    hidden_major = True

    @property
    def rows_together(self) -> int:
        return self.format.group_size or 1

    @torch.no_grad()
    def set_rows(self, first: int, weight: Tensor) -> None:
        codes, scale = self.quantizer()(weight)  # [F, n] or [F, n/2], and [n] or [F, n/64]
        packed, group = self.out_features // self.codes.shape[1], self.format.group_size
        self.codes[:, first // packed : first // packed + codes.shape[1]] = codes
        if group is None:
            self.scale[first : first + len(scale)] = scale
        else:
            self.scale[:, first // group : first // group + scale.shape[1]] = scale

    def quantizer(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        if self.format.bits == 8:
            return quantization.quantize_hidden_major_int8
        return quantization.quantize_hidden_major_int4

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [C, F] that the codes stand for, in hidden-major strides."""
        if self.format.bits == 8:
            return (self.codes.float() * self.scale).to(dtype).T
        return super().dequantize(dtype).T

    def forward(self, x: Tensor, *, relu2: bool = False, residual: Tensor | None = None) -> Tensor:
        """x W^T + bias + residual. x [..., F]; residual [..., C]."""
        if relu2:
            raise ValueError("The second product of an MLP has no activation after it; relu2 must be False.")
        op = ops.sparse_linear_int8 if self.format.bits == 8 else ops.sparse_linear_int4
        return op(x, self.codes, self.scale, self.bias, residual=residual)


def _in_own_dtype(before: Tensor, after: Tensor) -> Tensor:
    return after if after.dtype == before.dtype else before.to(after.device)


# ---- models ----------------------------------------------------------------------------------------------------------


def quantized_format(model: nn.Module) -> Format | None:
    """The format of the model's quantised layers; None if it has none."""
    return next((module.format for module in model.modules() if isinstance(module, QuantizedLinear)), None)


def quantizable(model: nn.Module) -> list[str]:
    """The names of the linear layers that :func:`quantize_model` replaces: all but a classification head."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (Linear, HiddenMajorLinear)) and name.split(".")[0] != _TRAINED_HEAD
    ]


def quantize_model(model: nn.Module, quantization: str) -> None:
    """Replaces the model's linear layers in place, one after the other: each weight is freed before the next one is
    quantised. What stays in 16 bits (embedding, norms, biases) is frozen; a tied head becomes a layer of its own; the
    model is in eval mode.

    Raises ValueError, before anything has changed, for an unknown format, a model that is quantised already, and a
    layer whose size isn't a multiple of the group or whose weight isn't finite.
    """
    names = replaceable(model, quantization)
    for name in names:
        weight = linear_at(model, name).weight
        if weight.numel() and not all(bool(extreme.isfinite()) for extreme in weight.detach().aminmax()):
            raise ValueError(f"{name} can't be quantised: its weight holds an infinity or NaN.")
    for name in names:
        linear = linear_at(model, name)
        replacement = empty_like(linear, quantization, device="meta")  # no memory before there are codes
        replacement.set_weight(linear.weight)
        replacement.bias = linear.bias
        model.set_submodule(name, replacement)
    freeze(model)
    model.eval()


def empty_quantized(model: nn.Module, quantization: str) -> None:
    """:func:`quantize_model` without the weights, for a model on the meta device: zeros of the same shapes."""
    for name in replaceable(model, quantization):
        linear = linear_at(model, name)
        model.set_submodule(name, empty_like(linear, quantization, device=linear.weight.device))
    freeze(model)


def replaceable(model: nn.Module, quantization: str) -> list[str]:
    """:func:`quantizable`, having checked that each of them can be quantised so."""
    chosen = parse_format(quantization)
    present = quantized_format(model)
    if present is not None:
        raise ValueError(f"The model is quantised already, to {present.name}; quantise the 16-bit one instead.")
    names = quantizable(model)
    for name in names:
        linear = linear_at(model, name)
        try:
            hidden_major = isinstance(linear, HiddenMajorLinear)
            chosen.check_shape(linear.out_features, linear.in_features, hidden_major=hidden_major)
        except ValueError as error:
            raise ValueError(f"{name} can't be quantised to {quantization}: {error}") from error
    return names


def linear_at(model: nn.Module, name: str) -> nn.Linear:
    return cast(nn.Linear, model.get_submodule(name))


def empty_like(linear: nn.Linear, quantization: str, device: torch.device | str) -> QuantizedLinear:
    """A quantised layer of zeros on `device`, of the shape, bias and dtype of `linear`."""
    kind = QuantizedHiddenMajorLinear if isinstance(linear, HiddenMajorLinear) else QuantizedLinear
    return kind(
        linear.in_features,
        linear.out_features,
        quantization,
        bias=linear.bias is not None,
        dtype=linear.weight.dtype,
        device=device,
    )


def freeze(model: nn.Module) -> None:
    """Turns off the gradients of everything but a classification head, and unties a language-model head in the config:
    it is a quantised copy, and the embedding stays as it is."""
    for name, parameter in model.named_parameters():
        if name.split(".")[0] != _TRAINED_HEAD:
            parameter.requires_grad_(False)
    config: Any = model.config
    if hasattr(model, "lm_head"):
        config.tie_word_embeddings = False
