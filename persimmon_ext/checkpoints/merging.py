"""Puts the ranks of a tensor-parallel release together, under the names of a Hugging Face checkpoint.

A column-parallel weight is split by rows (the output features; of query_key_value, whole heads), a row-parallel one by
columns, an embedding by rows. All ranks have the same norms, and the same biases behind row-parallel weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from persimmon_ext.checkpoints.adept import Rank
from persimmon_ext.checkpoints.errors import CheckpointError, listing
from persimmon_ext.checkpoints.safetensors_writer import Source, differences
from persimmon_ext.checkpoints.targets import WEIGHT_DTYPES
from persimmon_ext.checkpoints.weight_file import TensorInfo

_BY_ROWS = (
    "embed_tokens.weight",
    "lm_head.weight",
    "query_key_value.weight",
    "query_key_value.bias",
    "dense_h_to_4h.weight",
    "dense_h_to_4h.bias",
)
_BY_COLUMNS = ("self_attn.dense.weight", "dense_4h_to_h.weight")
_DROPPED = "rotary_emb.inv_freq"
_RANKS = "tensor_model_parallel_size"  # the argument
_PREFIXES = {
    "language_model.embedding.word_embeddings.": "model.embed_tokens.",
    "language_model.encoder.": "model.",
    "word_embeddings_for_head.": "lm_head.",
}
_PIECE = 2**22  # bytes of a rank read at a time


def hugging_face_name(name: str) -> str | None:
    """The name of the authors' tensor `name` in a Hugging Face checkpoint; None for a buffer that none has."""
    if name.endswith(_DROPPED):
        return None
    for prefix, replacement in _PREFIXES.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix).replace(".self_attention.", ".self_attn.")
    return name


def merged(ranks: Sequence[Rank], dtype: torch.dtype | None) -> dict[str, Source]:
    """The whole tensors of a release by their new names, in `dtype` (None: as they are); their values are read when
    they are asked for.

    Raises CheckpointError if the ranks differ in more than their share.
    """
    first = ranks[0].weights
    names: dict[str, str] = {}
    for name in first.infos:
        new = hugging_face_name(name)
        if new is None:
            continue
        if new in names:
            raise CheckpointError(f"{first.name} holds {names[new]} and {name}, both of which become {new}.")
        names[new] = name
    for rank in ranks[1:]:
        odd = [
            name
            for name in set(rank.weights.infos) ^ set(ranks[0].weights.infos)
            if hugging_face_name(name) is not None
        ]
        if odd:
            raise CheckpointError(f"{ranks[0].weights.name} and {rank.weights.name} differ in having {listing(odd)}.")
    return {new: _merged_tensor(ranks, name, new, dtype) for new, name in names.items()}


def check_shapes(ranks: Sequence[Rank], sources: Mapping[str, Source], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError, naming the tensors, unless `sources`, merged from `ranks`, are those of the config.

    The shapes decide, not the number of ranks that the arguments state: it may be that of the training, where the
    release was merged since.
    """
    problems = []
    missing, unknown, wrong = differences(sources, expected)
    if missing:
        problems.append(f"lacks {listing(missing)}")
    if unknown:
        problems.append(f"has {listing(unknown)}, which Persimmon hasn't")
    if wrong:
        problems.append(f"has other shapes than its arguments say: {listing(wrong)}")
        stated = ranks[0].arguments.get(_RANKS)
        if isinstance(stated, int) and stated != len(ranks):
            problems.append(f"was saved by {stated} ranks ({_RANKS}), of which {len(ranks)} are there")
    if problems:
        raise CheckpointError(f"The release {'; it '.join(problems)}.")


def _merged_tensor(ranks: Sequence[Rank], name: str, new: str, dtype: torch.dtype | None) -> Source:
    parts = [rank.weights.infos[name] for rank in ranks]
    first = parts[0]
    if first.dtype not in WEIGHT_DTYPES.values() or any(part.dtype != first.dtype for part in parts):
        raise CheckpointError(f"Tensor {name} has the dtypes {listing(str(part.dtype) for part in parts)}.")
    dim = 0 if new.endswith(_BY_ROWS) else 1 if new.endswith(_BY_COLUMNS) else None
    if any(len(part.shape) <= (dim or 0) for part in parts):
        raise CheckpointError(
            f"Tensor {name} has the shapes {listing(str(list(part.shape)) for part in parts)}: too few dimensions."
        )
    if dim is None:
        _check_same(ranks, name)
        ranks, parts, dim = ranks[:1], parts[:1], 0
    rest = [(*part.shape[:dim], *part.shape[dim + 1 :]) for part in parts]
    if any(shape != rest[0] for shape in rest):
        raise CheckpointError(
            f"Tensor {name} can't be merged from shapes {listing(str(list(p.shape)) for p in parts)}."
        )
    shape = (*first.shape[:dim], sum(part.shape[dim] for part in parts), *first.shape[dim + 1 :])

    def pieces() -> Iterator[Tensor]:
        read = _row_after_row if dim == 0 else _side_by_side
        for piece in read(ranks, name):
            yield piece if dtype is None else piece.to(dtype)

    return Source(shape, dtype or first.dtype, pieces)


def _row_after_row(ranks: Sequence[Rank], name: str) -> Iterator[Tensor]:
    for rank in ranks:
        info = rank.weights.infos[name]
        step = _rows_at_a_time(info)
        for first in range(0, info.shape[0], step):
            yield _rows(rank, name, first, step)


def _side_by_side(ranks: Sequence[Rank], name: str) -> Iterator[Tensor]:
    info = ranks[0].weights.infos[name]
    step = _rows_at_a_time(info)
    for first in range(0, info.shape[0], step):
        yield torch.cat([_rows(rank, name, first, step) for rank in ranks], dim=1)


def _check_same(ranks: Sequence[Rank], name: str) -> None:
    if len(ranks) == 1:
        return
    reference = ranks[0].weights.read(name)
    for rank in ranks[1:]:
        if not torch.equal(reference, rank.weights.read(name)):
            raise CheckpointError(f"{ranks[0].weights.name} and {rank.weights.name} have different values of {name}.")


def _rows_at_a_time(info: TensorInfo) -> int:
    return max(1, _PIECE // max(1, _row_size(info) * info.dtype.itemsize))


def _row_size(info: TensorInfo) -> int:
    return torch.Size(info.shape[1:]).numel()


def _rows(rank: Rank, name: str, first: int, count: int) -> Tensor:
    info = rank.weights.infos[name]
    piece = torch.empty((min(count, info.shape[0] - first), *info.shape[1:]), dtype=info.dtype)
    rank.weights.fill(name, first * _row_size(info), piece)
    return piece
