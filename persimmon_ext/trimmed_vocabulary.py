"""An embedding and a head without the rows of ids that a tokenizer never produces. Ids stay what they are.

Persimmon-8B's release has about 70 thousand such rows, "unused embeddings for multimodal extensions"
(https://www.adept.ai/blog/persimmon-8b): 0.6 GB of each of its two matrices in 16 bits. The rows go to a temporary file
and come back from it, bit for bit, when the model is saved or restored.

Dimensions: V vocab, K ids that are kept, C hidden, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from persimmon_ext.dropped_rows import DroppedRows, whole_tensor
from persimmon_ext.layers import Linear
from persimmon_ext.quantized_layers import QuantizedLinear


@dataclass(frozen=True)
class TrimReport:
    """What trimming a vocabulary has done."""

    kept: int
    dropped: int
    bytes_saved: int

    def __str__(self) -> str:
        return f"{self.dropped} of {self.kept + self.dropped} ids dropped, {self.bytes_saved / 1e6:.1f} MB saved"


class Trimmed(nn.Module):
    """A module whose tensors have the rows of some ids only.

    Its state_dict is that of the whole module, and so is what it loads: the rows that it hasn't are read from the file
    and written to it. With ``keep_vars``, which asks for the variables themselves, a state_dict has the kept rows.
    """

    ROWS = ""
    """What stands before the names of its own tensors: those of a submodule, or none."""

    def __init__(self, is_kept: Tensor, whole: Mapping[str, Tensor]) -> None:
        """is_kept: bool [V]; whole: the tensors [V, …] by name, whose dropped rows go to a file."""
        super().__init__()
        self.is_kept = is_kept
        dropped = (~is_kept).nonzero().flatten()
        self.dropped = {name: DroppedRows(tensor, dropped) for name, tensor in whole.items()}
        self.register_load_state_dict_pre_hook(_take_rows)  # type: ignore[no-untyped-call]

    def kept_rows(self) -> dict[str, Tensor]:
        """The tensors [K, …] by the names that the whole ones have."""
        raise NotImplementedError

    def whole(self) -> dict[str, Tensor]:
        """The tensors [V, …]."""
        return {
            name: whole_tensor(tensor, self.dropped[name], self.is_kept) for name, tensor in self.kept_rows().items()
        }

    def state_dict(self, *arguments: Any, prefix: str = "", keep_vars: bool = False, **options: Any) -> Any:
        state = super().state_dict(*arguments, prefix=prefix, keep_vars=keep_vars, **options)
        if not keep_vars:
            for name in self.dropped:
                del state[f"{prefix}{self.ROWS}{name}"]
            state.update({f"{prefix}{name}": tensor for name, tensor in self.whole().items()})
        return state


def _take_rows(module: Trimmed, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Puts the kept rows of whole tensors in `state` in their place, for `module` to load, and the others in files."""
    for name, dropped in list(module.dropped.items()):
        tensor = state.get(f"{prefix}{name}")
        if isinstance(tensor, Tensor) and tensor.shape == (len(module.is_kept), *dropped.row_shape):
            del state[f"{prefix}{name}"]
            is_kept = module.is_kept.to(tensor.device)
            state[f"{prefix}{module.ROWS}{name}"] = tensor[is_kept]
            module.dropped[name] = DroppedRows(tensor, (~is_kept).nonzero().flatten())


class TrimmedEmbedding(Trimmed):
    """``nn.Embedding`` that has the rows of some ids only. weight [K, C]."""

    def __init__(self, embedding: nn.Embedding, is_kept: Tensor) -> None:
        weight = embedding.weight
        super().__init__(is_kept, {"weight": weight})
        self.num_embeddings = embedding.num_embeddings
        self.embedding_dim = embedding.embedding_dim
        self.padding_idx = embedding.padding_idx
        kept = is_kept.nonzero().flatten()
        self.weight = nn.Parameter(weight.detach()[kept.to(weight.device)], requires_grad=weight.requires_grad)
        slots = torch.full((len(is_kept),), -1)
        slots[kept] = torch.arange(len(kept))
        padding = self.padding_idx
        self.padding_slot = int(slots[padding]) if padding is not None and is_kept[padding] else None
        self.slots: Tensor
        self.register_buffer("slots", slots.to(weight.device), persistent=False)

    def kept_rows(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids [B, T] -> [B, T, C].

        Raises IndexError for an id that was dropped, where its value is at hand; where looking would wait for the
        device, or be traced, its embedding is NaN: nothing computed from it looks like a result.
        """
        slots = self.slots[input_ids]
        dropped = slots < 0
        if slots.device.type == "cpu" and not torch.compiler.is_compiling():
            if bool(dropped.any()):
                raise IndexError(
                    f"input_ids contains {int(input_ids[dropped][0])}, which trim_vocab has dropped: the tokenizer "
                    "never makes it."
                )
            return F.embedding(slots, self.weight, self.padding_slot)
        embedded = F.embedding(slots.clamp(min=0), self.weight, self.padding_slot)
        return embedded.masked_fill(dropped[..., None], float("nan"))

    def restored(self) -> nn.Embedding:
        """The whole embedding."""
        embedding = nn.Embedding(self.num_embeddings, self.embedding_dim, self.padding_idx, device="meta")
        embedding.weight = nn.Parameter(self.whole()["weight"], requires_grad=self.weight.requires_grad)
        return embedding.train(self.training)


class TrimmedHead(Trimmed):
    """A language-model head that has the rows of some ids only; the logits of the others are -inf."""

    ROWS = "rows."

    def __init__(self, head: nn.Module, is_kept: Tensor) -> None:
        tensors: dict[str, Tensor] = dict(head.state_dict(keep_vars=True))
        super().__init__(is_kept, tensors)
        kept = is_kept.nonzero().flatten()
        rows = {name: tensor.detach()[kept.to(tensor.device)] for name, tensor in tensors.items()}
        self.rows = _head_like(head, rows)
        self.kept: Tensor
        self.register_buffer("kept", kept.to(next(iter(rows.values())).device), persistent=False)

    def kept_rows(self) -> dict[str, Tensor]:
        return dict(self.rows.state_dict(keep_vars=True))

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

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":  # the embedding's, by tie_weights: it has the same rows
            self.rows.weight = value
        else:
            super().__setattr__(name, value)

    def restored(self) -> nn.Module:
        """The whole head."""
        return _head_like(self.rows, self.whole())


def standard_name(name: str) -> str:
    """The name that the tensor `name` of a model has where no vocabulary is trimmed."""
    return name.replace(f"lm_head.{TrimmedHead.ROWS}", "lm_head.")


def trim(model: Any, ids: Sequence[int] | Tensor) -> TrimReport:
    """Drops the rows of all `ids` that aren't among these from the embedding and, where there is one, the
    language-model head, in place.

    Raises ValueError for an id outside the vocabulary, none at all, or a model that is trimmed already; TypeError for
    ids that aren't integers.
    """
    V = model.config.vocab_size
    kept = _checked_ids(ids, V)
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
    return TrimReport(count, V - count, before - _bytes(model))


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


def _checked_ids(ids: Sequence[int] | Tensor, V: int) -> Tensor:
    try:
        kept = torch.as_tensor(ids).flatten().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"trim_vocab takes ids as integers: {error}.") from error
    if kept.numel() == 0:
        raise ValueError("trim_vocab needs at least one id to keep.")
    if kept.dtype == torch.bool:
        raise TypeError("trim_vocab takes ids as integers, got a mask; mask.nonzero().flatten() are its ids.")
    if kept.is_floating_point() or kept.is_complex():
        raise TypeError(f"trim_vocab takes ids as integers, got {kept.dtype}.")
    kept = kept.long()
    low, high = int(kept.min()), int(kept.max())
    if low < 0 or high >= V:
        raise ValueError(f"trim_vocab can't keep the id {low if low < 0 else high}: ids go from 0 to {V - 1}.")
    return kept


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


def _bytes(model: nn.Module) -> int:
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())
