"""An embedding and a head without the rows of ids that a tokenizer never produces. Ids stay what they are.

Persimmon-8B's release has about 70 thousand such rows, "unused embeddings for multimodal extensions"
(https://www.adept.ai/blog/persimmon-8b): 0.6 GB of each of its two matrices in 16 bits. The rows go to a temporary file
and come back from it, bit for bit, when the model is saved or restored.

Dimensions: V vocab, K ids that are kept, C hidden, T tokens.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from persimmon_ext.layers import Linear
from persimmon_ext.quantized_layers import QuantizedLinear

_ROWS = 512  # handled at a time


@dataclass(frozen=True)
class Trimmed:
    """What trimming a vocabulary has done."""

    kept: int
    dropped: int
    bytes_saved: int

    def __str__(self) -> str:
        return f"{self.dropped} of {self.kept + self.dropped} ids dropped, {self.bytes_saved / 1e6:.1f} MB saved"


class DroppedRows:
    """Rows of a tensor [V, …] in a temporary file, which goes when this does."""

    def __init__(self, tensor: Tensor, ids: Tensor) -> None:
        """Writes the rows `ids` of `tensor`."""
        self.dtype = tensor.dtype
        self.row_shape = tuple(tensor.shape[1:])
        self._row_bytes = tensor[:1].nbytes
        self._file = tempfile.TemporaryFile(prefix="persimmon-dropped-rows-")  # noqa: SIM115, lives as long as this
        for first in range(0, len(ids), _ROWS):
            rows = tensor.detach()[ids[first : first + _ROWS].to(tensor.device)].cpu().contiguous()
            self._file.write(memoryview(rows.view(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
        self._file.flush()

    def rows(self, first: int, count: int) -> Tensor:
        """Rows `first` and on, of those that were dropped, on the CPU: [count, …]."""
        content = bytearray(os.pread(self._file.fileno(), count * self._row_bytes, first * self._row_bytes))
        if not content:
            return torch.empty((0, *self.row_shape), dtype=self.dtype)
        return torch.frombuffer(content, dtype=torch.uint8).view(self.dtype).view(count, *self.row_shape)

    def __deepcopy__(self, memo: dict[int, Any]) -> DroppedRows:
        return self  # nothing in it changes

    def __reduce__(self) -> Any:
        raise TypeError(
            "A model with a trimmed vocabulary can't be pickled; restore_vocab() first, or save_pretrained."
        )


def whole_rows(kept: Tensor, dropped: DroppedRows, is_kept: Tensor) -> Iterator[Tensor]:
    """The rows of the whole tensor [V, …] in order, some at a time, on the CPU and in the dtype of `kept` [K, …].

    is_kept: bool [V], on the CPU.
    """
    kept_before = torch.cat([torch.zeros(1, dtype=torch.int64), is_kept.cumsum(0)]).tolist()
    for first in range(0, len(is_kept), _ROWS):
        here = is_kept[first : first + _ROWS]
        begin, end = kept_before[first], kept_before[first + len(here)]
        piece = torch.empty((len(here), *kept.shape[1:]), dtype=kept.dtype)
        piece[here] = kept.detach()[begin:end].cpu()
        piece[~here] = dropped.rows(first - begin, len(here) - (end - begin)).to(kept.dtype)
        yield piece


class TrimmedEmbedding(nn.Module):
    """``nn.Embedding`` that has the rows of some ids only. weight [K, C]."""

    def __init__(self, embedding: nn.Embedding, is_kept: Tensor) -> None:
        super().__init__()
        self.num_embeddings = embedding.num_embeddings
        self.embedding_dim = embedding.embedding_dim
        self.is_kept = is_kept
        kept, dropped = is_kept.nonzero().flatten(), (~is_kept).nonzero().flatten()
        weight = embedding.weight
        self.dropped = {"weight": DroppedRows(weight, dropped)}
        self.weight = nn.Parameter(weight.detach()[kept.to(weight.device)], requires_grad=weight.requires_grad)
        slots = torch.full((len(is_kept),), -1)
        slots[kept] = torch.arange(len(kept))
        self.slots: Tensor
        self.register_buffer("slots", slots.to(weight.device), persistent=False)
        padding = embedding.padding_idx
        self.padding_slot = int(slots[padding]) if padding is not None and is_kept[padding] else None

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids [B, T] -> [B, T, C]. Raises IndexError for an id that was dropped, where its value is at hand."""
        slots = self.slots[input_ids]
        if slots.device.type == "cpu" and not torch.compiler.is_compiling() and bool((slots < 0).any()):
            dropped = int(input_ids[slots < 0][0])
            raise IndexError(
                f"input_ids contains {dropped}, which trim_vocab has dropped: the tokenizer never makes it."
            )
        return F.embedding(slots, self.weight, self.padding_slot)

    def restored(self) -> nn.Embedding:
        """The whole embedding."""
        V, C = self.num_embeddings, self.embedding_dim
        padding = None if self.padding_slot is None else int((self.slots == self.padding_slot).nonzero()[0])
        embedding = nn.Embedding(V, C, padding, device="meta")
        weight = _whole(self.weight, self.dropped["weight"], self.is_kept)
        embedding.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        return embedding


class TrimmedHead(nn.Module):
    """A language-model head that has the rows of some ids only; the logits of the others are -inf."""

    ROWS = "rows"
    """The name of its submodule, a smaller head."""

    def __init__(self, head: nn.Module, is_kept: Tensor) -> None:
        super().__init__()
        self.is_kept = is_kept
        kept, dropped = is_kept.nonzero().flatten(), (~is_kept).nonzero().flatten()
        tensors: dict[str, Tensor] = dict(head.state_dict(keep_vars=True))
        self.dropped = {name: DroppedRows(tensor, dropped) for name, tensor in tensors.items()}
        rows = {name: tensor.detach()[kept.to(tensor.device)] for name, tensor in tensors.items()}
        self.rows = _head_like(head, rows)
        self.kept: Tensor
        self.register_buffer("kept", kept.to(next(iter(rows.values())).device), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., C] -> logits [..., V]."""
        logits: Tensor = self.rows(hidden)
        whole = logits.new_full((*logits.shape[:-1], len(self.is_kept)), float("-inf"))
        return whole.index_copy(-1, self.kept, logits)

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                "A head whose vocabulary is trimmed has no weight of all ids, which skip_logits needs; restore_vocab() "
                "brings it back."
            )
        return super().__getattr__(name)

    def restored(self) -> nn.Module:
        """The whole head."""
        parts = self.rows.state_dict(keep_vars=True)
        return _head_like(
            self.rows, {name: _whole(tensor, self.dropped[name], self.is_kept) for name, tensor in parts.items()}
        )


TRIMMED = (TrimmedEmbedding, TrimmedHead)


def trim(model: Any, ids: Sequence[int] | Tensor) -> Trimmed:
    """Drops the rows of all `ids` that aren't among these from the embedding and, where there is one, the
    language-model head, in place.

    Raises ValueError for an id outside the vocabulary, none at all, or a model that is trimmed already.
    """
    V = model.config.vocab_size
    kept = torch.as_tensor(ids, dtype=torch.int64).flatten()
    if kept.numel() == 0:
        raise ValueError("trim_vocab needs at least one id to keep.")
    low, high = int(kept.min()), int(kept.max())
    if low < 0 or high >= V:
        raise ValueError(f"trim_vocab can't keep the id {low if low < 0 else high}: ids go from 0 to {V - 1}.")
    embedding = model.get_input_embeddings()
    if isinstance(embedding, TrimmedEmbedding):
        raise ValueError("The vocabulary is trimmed already; restore_vocab() first.")
    if not isinstance(embedding, nn.Embedding):
        raise ValueError(
            f"The embedding is a {type(embedding).__name__}; only a plain one's vocabulary can be trimmed."
        )
    is_kept = torch.zeros(V, dtype=torch.bool)
    is_kept[kept] = True
    before = _bytes(model)
    head = getattr(model, "lm_head", None)
    tied = head is not None and getattr(head, "weight", None) is embedding.weight
    trimmed = TrimmedEmbedding(embedding, is_kept)
    if head is not None:
        model.lm_head = TrimmedHead(head, is_kept)
        if tied:
            model.lm_head.rows.weight = trimmed.weight
    model.decoder.embed_tokens = trimmed
    count = int(is_kept.sum())
    return Trimmed(count, V - count, before - _bytes(model))


def restore(model: Any) -> None:
    """Undoes :func:`trim`, in place. Nothing to do for a model that isn't trimmed."""
    embedding, head = model.get_input_embeddings(), getattr(model, "lm_head", None)
    if not isinstance(embedding, TrimmedEmbedding):
        return
    model.decoder.embed_tokens = embedding.restored()
    if isinstance(head, TrimmedHead):
        tied = getattr(head.rows, "weight", None) is embedding.weight
        model.lm_head = head.restored()
        if tied:
            model.lm_head.weight = model.decoder.embed_tokens.weight


def is_trimmed(model: nn.Module) -> bool:
    """Whether the model's vocabulary is trimmed."""
    return any(isinstance(module, TrimmedEmbedding) for module in model.modules())


def _head_like(head: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """A head of the same kind as `head` of other rows."""
    new: nn.Module
    if isinstance(head, QuantizedLinear):
        new = QuantizedLinear(
            head.in_features, len(tensors["scale"]), head.format.name, bias=False, device=torch.device("meta")
        )
        new.codes, new.scale = tensors["codes"], tensors["scale"]
        return new.train(head.training)
    weight = tensors["weight"]
    new = Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    requires_grad = next(head.parameters()).requires_grad
    new.weight = nn.Parameter(weight.detach(), requires_grad=requires_grad)
    return new.train(head.training)


def _whole(kept: Tensor, dropped: DroppedRows, is_kept: Tensor) -> Tensor:
    whole = torch.empty((len(is_kept), *kept.shape[1:]), dtype=kept.dtype, device=kept.device)
    first = 0
    for piece in whole_rows(kept, dropped, is_kept):
        whole[first : first + len(piece)] = piece.to(kept.device)
        first += len(piece)
    return whole


def _bytes(model: nn.Module) -> int:
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())
