"""Looks into a checkpoint of any format without loading it: a few megabytes are in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from persimmon_ext.checkpoints.adept import find_release
from persimmon_ext.checkpoints.configs import fuyu_fields, read_config
from persimmon_ext.checkpoints.converting import release_tokenizer, released_model
from persimmon_ext.checkpoints.folder import WeightFiles, checkpoint_folder, find_weights
from persimmon_ext.checkpoints.loading import stored_tensors
from persimmon_ext.checkpoints.quantized import QUANTIZATION_FIELD, stored_format
from persimmon_ext.checkpoints.reading import open_weights
from persimmon_ext.checkpoints.replacing import settle
from persimmon_ext.checkpoints.safetensors_writer import Source
from persimmon_ext.checkpoints.weight_file import TensorInfo
from persimmon_ext.config import CONFIG_NAME, PersimmonConfig
from persimmon_ext.tokenizer import PersimmonTokenizer
from persimmon_ext.tokenizer_files import MODEL_FILE

_WEIGHT_SUFFIXES = (".safetensors", ".bin")
_PACKED = torch.uint8  # two weights a byte
_PACKED_ZEROS = 0x88


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose tensors can be read a piece at a time."""

    path: Path
    format: str
    infos: Mapping[str, TensorInfo]
    sources: Mapping[str, Source]
    config: PersimmonConfig | None
    tokenizer: PersimmonTokenizer | None
    quantization: str | None = None


@dataclass(frozen=True)
class TensorFacts:
    """What is known of one tensor; the counts are None where its values weren't read."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int
    file: Path
    nans: int | None = None
    infinities: int | None = None
    zero_rows: int | None = None
    """Rows of nothing but zeros, of a matrix."""

    @property
    def parameters(self) -> int:
        """How many weights it holds."""
        return torch.Size(self.shape).numel() * (2 if self.dtype == _PACKED else 1)


@contextmanager
def open_checkpoint(path: str | os.PathLike[str]) -> Iterator[Opened]:
    """Opens a Hugging Face folder, a lone file of weights, or the authors' release (a tar or its folder).

    Raises FileNotFoundError where there is none of them, CheckpointError for one that is damaged.
    """
    path = Path(path)
    settle(path)
    with ExitStack() as stack:
        if path.is_file() and path.suffix in _WEIGHT_SUFFIXES:
            yield _opened_files(stack, path, WeightFiles((path,)), f"a {path.suffix} file")
        elif path.is_dir() and not _is_release(path):
            folder = checkpoint_folder(path)
            stored = stored_format(folder)
            files = find_weights(folder, quantized=stored is not None)
            kind = f"Hugging Face folder, {files.files[0].suffix[1:]}, {len(files.files)} file(s)"
            kind += f", {stored}" if stored else ""
            kind += ", of a Fuyu model" if fuyu_fields(folder / CONFIG_NAME) is not None else ""
            opened = _opened_files(stack, path, files, kind)
            config = read_config(folder, {})
            config.extra.pop(QUANTIZATION_FIELD, None)
            has_tokenizer = (folder / MODEL_FILE).is_file()
            tokenizer = PersimmonTokenizer.from_pretrained(folder) if has_tokenizer else None
            yield replace(opened, config=config, tokenizer=tokenizer, quantization=stored)
        else:
            yield _opened_release(stack, path)


def tensor_facts(name: str, info: TensorInfo, source: Source | None) -> TensorFacts:
    """The facts of one tensor. source: where its values are read from; None leaves them unread."""
    facts = TensorFacts(name, info.shape, info.dtype, info.nbytes, info.file)
    if source is None:
        return facts
    nans = infinities = zero_rows = 0
    for piece in source.pieces():
        if piece.is_floating_point():
            finite = piece.isfinite()
            if not finite.all():
                nan = int(piece.isnan().sum())
                nans, infinities = nans + nan, infinities + int((~finite).sum()) - nan
        if len(info.shape) == 2 and piece.numel():
            zero = _PACKED_ZEROS if piece.dtype == _PACKED else 0
            zero_rows += int((piece.view(-1, info.shape[1]) == zero).all(dim=1).sum())
    return replace(facts, nans=nans, infinities=infinities, zero_rows=zero_rows if len(info.shape) == 2 else None)


def fill(source: Source, target: Tensor) -> None:
    """Copies a stored tensor into `target`, of any dtype and layout."""
    first = 0
    for piece in source.pieces():
        rows = piece.view(-1, *target.shape[1:])
        target[first : first + len(rows)] = rows
        first += len(rows)


def read_rows(opened: Opened, name: str, rows: Tensor) -> Tensor:
    """Some rows of a stored matrix: [len(rows), columns]. Reads the matrix once, a piece at a time."""
    source = opened.sources[name]
    found = torch.empty((len(rows), *source.shape[1:]), dtype=source.dtype)
    first = 0
    for piece in source.pieces():
        part = piece.view(-1, *source.shape[1:])
        here = (rows >= first) & (rows < first + len(part))
        found[here] = part[rows[here] - first]
        first += len(part)
    return found


def _is_release(folder: Path) -> bool:
    return not (folder / CONFIG_NAME).is_file() and any(folder.rglob("mp_rank_*"))


def _opened_files(stack: ExitStack, path: Path, files: WeightFiles, kind: str) -> Opened:
    infos = stored_tensors(files)
    handles = {file: stack.enter_context(open_weights(file)) for file in files.files}
    sources = {
        name: Source(info.shape, info.dtype, partial(handles[info.file].pieces, name)) for name, info in infos.items()
    }
    return Opened(path, kind, infos, sources, None, None)


def _opened_release(stack: ExitStack, path: Path) -> Opened:
    release = find_release(path)
    ranks = stack.enter_context(release.opened())
    tokenizer = release_tokenizer(path, release)
    config, sources = released_model(path, ranks, tokenizer)
    infos = {name: TensorInfo(source.shape, source.dtype, path) for name, source in sources.items()}
    kind = f"the authors' release, {len(ranks)} rank(s)"
    return Opened(path, kind, infos, sources, config, tokenizer)
