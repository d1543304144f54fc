"""Which device holds which part of a model, and how activations get from one to the next.

A model is split between its blocks: the embedding, each decoder layer, the final norm and the head. A block runs where
it lies; nothing is moved back and forth.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from persimmon_ext.checkpoints.targets import parse_device, parse_size

DeviceMap = Mapping[str, "str | int | torch.device"]

AUTO = "auto"
_LAYER = re.compile(r"((?:.*\.)?layers\.\d+)\..+")
_WITHOUT_WEIGHTS = "rotary_emb"  # a name in transformers' maps; its angles are made where they are used
_FREE_SHARE = 0.9  # of a GPU's free memory; the rest is for activations and the cache


def block_of(name: str) -> str:
    """The block that the parameter `name` belongs to, such as ``model.layers.3``."""
    layer = _LAYER.fullmatch(name)
    return layer[1] if layer else name.rpartition(".")[0]


def place(
    model: nn.Module,
    device_map: str | int | torch.device | DeviceMap,
    max_memory: Mapping[int | str, int | str] | None,
    sizes: Mapping[str, int],
) -> dict[str, torch.device]:
    """The device of each block of `model`.

    Args:
        device_map: "auto" (evenly over the GPUs, what doesn't fit on the CPU), one device, or a map from the names of
            modules to devices; the longest name that fits a block decides, "" fits all.
        max_memory: for "auto", the most bytes of weights on each device, by GPU number and "cpu": an int, or a string
            such as "20GiB". By default 90% of what a GPU has free, and all that is left on the CPU.
        sizes: bytes of each parameter by name; a tied one is under its first name.
    Raises: ValueError for a device that can't be used, a block without a device, one split between devices or tied
        to a block elsewhere; RuntimeError if the blocks don't fit.
    """
    blocks: dict[str, int] = {}
    tied: dict[str, str] = {}
    for name, first in _first_names(model).items():
        block = block_of(name)
        blocks[block] = blocks.get(block, 0) + (sizes.get(name, 0) if name == first else 0)
        if block_of(first) != block:
            tied[block] = block_of(first)
    if device_map == AUTO:
        free = {block: size for block, size in blocks.items() if block not in tied}
        chosen = spread(list(free.values()), _budgets(max_memory))
        placed = dict(zip(free, chosen, strict=True))
        placed |= {block: placed[other] for block, other in tied.items()}
    elif max_memory is not None:
        raise ValueError(f"max_memory limits device_map='auto'; it has no meaning with device_map={device_map!r}.")
    elif isinstance(device_map, Mapping):
        placed = _look_up(device_map, list(blocks))
    else:
        placed = dict.fromkeys(blocks, parse_device(device_map))
    for block, other in tied.items():
        if placed[block] != placed[other]:
            raise ValueError(f"{block} shares its weight with {other}, so device_map must place them together.")
    return {block: placed[block] for block in blocks}


def spread(sizes: Sequence[int], budgets: Sequence[tuple[torch.device, int | None]]) -> list[torch.device]:
    """The device of each of consecutive blocks of `sizes` bytes: evenly over all devices but the last, which takes what
    doesn't fit. A budget is in bytes, None without limit. Raises RuntimeError if the blocks don't fit."""
    chosen: list[torch.device] = []
    left = sum(sizes)
    for number, (device, budget) in enumerate(budgets):
        others = len(budgets) - 1 - number
        share = left / others if others else float("inf")
        used = 0
        while len(chosen) < len(sizes):
            size = sizes[len(chosen)]
            if (budget is not None and used + size > budget) or used + size / 2 > share:
                break
            chosen.append(device)
            used += size
        left -= used
    if len(chosen) < len(sizes):
        limits = ", ".join(f"{device} {budget}" for device, budget in budgets)
        raise RuntimeError(f"The model's {sum(sizes)} bytes of weights don't fit into the memory given: {limits}.")
    return chosen


def connect(model: nn.Module, placed: Mapping[str, torch.device]) -> None:
    """Makes each block of a model on several devices move its inputs to its own first, and notes the map as
    ``model.hf_device_map``, as transformers does."""
    model.hf_device_map = {block: str(device) for block, device in placed.items()}  # type: ignore[assignment]
    if len(set(placed.values())) == 1:
        return
    movers = {device: _Mover(device) for device in set(placed.values())}
    for block, device in placed.items():
        model.get_submodule(block).register_forward_pre_hook(movers[device], with_kwargs=True)


class _Mover:
    """A forward hook that moves what a module is called with to one device.

    All layers of a call get the same description of it (masks, angles): it is moved once for all layers of a device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.last: tuple[Any, Any] = (None, None)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(map(self.moved, args)), {name: self.moved(value) for name, value in kwargs.items()}

    def moved(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.device, non_blocking=True)
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            return value
        if self.last[0] is not value:
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            self.last = (value, dataclasses.replace(value, **{name: self.moved(item) for name, item in fields.items()}))
        return self.last[1]


def _first_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or saved buffer -> the first name of the same tensor."""
    first: dict[int, str] = {}
    saved = model.state_dict(keep_vars=True)
    return {name: first.setdefault(id(tensor), name) for name, tensor in saved.items()}


def _look_up(device_map: DeviceMap, blocks: Sequence[str]) -> dict[str, torch.device]:
    for name in device_map:
        fits = name.rpartition(".")[2] == _WITHOUT_WEIGHTS or any(_within(block, name) for block in blocks)
        if not fits and any(name.startswith(f"{block}.") for block in blocks):
            raise ValueError(f"device_map places {name!r}, but a layer is placed whole: name the layer.")
        if not fits:
            raise ValueError(f"device_map names {name!r}, which the model doesn't have.")
    placed = {}
    for block in blocks:
        names = [name for name in device_map if _within(block, name)]
        if not names:
            raise ValueError(f"device_map gives no device for {block}.")
        placed[block] = parse_device(device_map[max(names, key=len)])
    return placed


def _within(block: str, name: str) -> bool:
    return name in ("", block) or block.startswith(f"{name}.")


def _budgets(max_memory: Mapping[int | str, int | str] | None) -> list[tuple[torch.device, int | None]]:
    """The devices that "auto" may use with their bytes, the CPU last."""
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    if max_memory is None:
        free = {index: int(torch.cuda.mem_get_info(index)[0] * _FREE_SHARE) for index in gpus}
        return [*((torch.device("cuda", index), size) for index, size in free.items()), (torch.device("cpu"), None)]
    for key in max_memory:
        if key != "cpu" and key not in gpus:
            raise ValueError(f"max_memory names the device {key!r}; this machine has {list(gpus)} and 'cpu'.")
    limits: list[tuple[torch.device, int | None]] = [
        (torch.device("cuda", index), parse_size(max_memory[index], "max_memory"))
        for index in gpus
        if index in max_memory
    ]
    return [
        *limits,
        (torch.device("cpu"), parse_size(max_memory["cpu"], "max_memory") if "cpu" in max_memory else None),
    ]
