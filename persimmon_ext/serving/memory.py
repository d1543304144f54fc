"""How many tokens of cache the memory holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_CGROUP = Path("/sys/fs/cgroup")
#: What of the free memory caches may take: the rest is for activations, and for making a cache anew of old ones.
_CACHE_SHARE = 0.5


def slot_bytes(model: Any) -> int:
    """Bytes of K and V of one token, in all layers."""
    config = model.config
    heads = config.num_attention_heads * config.head_dim
    return int(2 * config.num_hidden_layers * heads * model.dtype.itemsize)


def slots_that_fit(model: Any) -> int:
    """Tokens, of all rows together, whose K and V fit in the share of the device's free memory that is for them."""
    return max(int(free_memory(model.device) * _CACHE_SHARE) // slot_bytes(model), 1)


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on `device` now: of the CPU's, what the system and this process's group have left."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit, used = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    return free if limit is None or used is None else min(free, max(limit - used, 0))


def _number(file: Path) -> int | None:
    """The number in a file of the control group; None for no limit, or no such file."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
