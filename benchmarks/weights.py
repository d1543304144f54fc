"""Random tensors of the size of a model, made at the speed of copying."""

from __future__ import annotations

import torch
from torch import Tensor

from persimmon_ext.huge_pages import on_huge_pages

# Prime, so that no two rows of a matrix are equal before this many rows.
_BLOCK = 4_194_301


class Filler:
    """Fills tensors with normal numbers, from one block of them that is repeated from random places."""

    def __init__(self, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.block = torch.randn(_BLOCK, generator=self.generator).to(device)
        self.blocks: dict[tuple[torch.dtype, float], Tensor] = {}

    @torch.no_grad()
    def fill_(self, tensor: Tensor, spread: float = 1.0) -> Tensor:
        """Normal numbers of standard deviation `spread`. The tensor must be contiguous. Returns it."""
        key = (tensor.dtype, spread)
        if key not in self.blocks:
            self.blocks[key] = (self.block * spread).to(tensor.dtype)
        block, flat = self.blocks[key], tensor.view(-1)
        first = int(torch.randint(_BLOCK, (), generator=self.generator))
        done = 0
        while done < flat.numel():
            piece = block[first : first + flat.numel() - done]
            flat[done : done + piece.numel()] = piece
            done += piece.numel()
            first = 0
        return tensor

    def normal(self, *shape: int, dtype: torch.dtype, spread: float = 1.0) -> Tensor:
        """A new tensor of normal numbers."""
        return self.fill_(on_huge_pages(torch.empty(shape, dtype=dtype, device=self.block.device)), spread)


def copied(tensor: Tensor) -> Tensor:
    """A contiguous copy, in memory like that of a loaded weight."""
    return on_huge_pages(torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)).copy_(tensor)
