"""The share of zeros behind the squared ReLU of each layer, on a text: what the sparse product of the MLP lives on.

One layer is in memory at a time, so that a model far larger than the memory can be looked at.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from persimmon_ext.checkpoints.inspection import Opened, fill, read_rows
from persimmon_ext.checkpoints.names import assign, tensor_at
from persimmon_ext.checkpoints.targets import parse_dtype
from persimmon_ext.meta_models import without_memory
from persimmon_ext.modeling import PersimmonModel
from persimmon_ext.quantized_layers import empty_quantized

_EMBEDDING = "embed_tokens.weight"


@torch.no_grad()
def zero_shares(opened: Opened, ids: Tensor) -> list[float]:
    """The share of hidden units that are zero in each layer's MLP, over all of a text's tokens.

    ids: int64 [T], of a text. Raises ValueError where the checkpoint has no config or `ids` don't fit it.
    """
    config = opened.config
    if config is None:
        raise ValueError(f"{opened.path} has no config, so its model can't be run.")
    if ids.numel() == 0 or int(ids.max()) >= config.vocab_size or int(ids.min()) < 0:
        raise ValueError(f"The text must give ids from 0 to {config.vocab_size - 1}, at least one.")
    with without_memory():
        model = PersimmonModel(config).eval()
    if opened.quantization is not None:
        empty_quantized(model, opened.quantization)
    sources = assign(model, opened.infos, opened.path).sources
    dtype = opened.sources[sources[_EMBEDDING]].dtype if config.dtype is None else parse_dtype(config.dtype)
    x = read_rows(opened, sources[_EMBEDDING], ids).to(dtype)[None]
    step = model.plan(x, None, None, None, None, False)
    shares: list[float] = []

    def count(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        shares.append(float((arguments[0] == 0).double().mean()))

    layer: Any
    for number, layer in enumerate(model.layers):
        _read_into_memory(model, f"layers.{number}.", sources, opened, dtype)
        layer.mlp.dense_4h_to_h.register_forward_pre_hook(count)
        x, _ = layer(x, step)
        model.layers[number] = nn.Identity()  # frees the layer
    return shares


def _read_into_memory(
    model: nn.Module, prefix: str, sources: dict[str, str], opened: Opened, dtype: torch.dtype
) -> None:
    """Gives the tensors of one layer, of a model on the meta device, memory and their stored values."""
    for name in [name for name in sources if name.startswith(prefix)]:
        meta = tensor_at(model, name)
        is_parameter = isinstance(meta, nn.Parameter)
        memory = torch.empty_strided(
            meta.shape, meta.stride(), dtype=dtype if is_parameter else meta.dtype, device="cpu"
        )
        fill(opened.sources[sources[name]], memory)
        owner, _, leaf = name.rpartition(".")
        tensor = nn.Parameter(memory, requires_grad=False) if is_parameter else memory
        setattr(model.get_submodule(owner), leaf, tensor)
