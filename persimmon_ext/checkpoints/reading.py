"""Opens weight files: safetensors, or a pickle of tensors and nothing else."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from persimmon_ext.checkpoints import checksums, pickles
from persimmon_ext.checkpoints.errors import CheckpointError, listing
from persimmon_ext.checkpoints.legacy_pickles import unpickle_legacy
from persimmon_ext.checkpoints.region import Region
from persimmon_ext.checkpoints.targets import WEIGHT_DTYPES
from persimmon_ext.checkpoints.weight_file import Place, TensorInfo, WeightFile

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,  # codes of quantised weights
    "U8": torch.uint8,
}
_HEADER_LENGTH_BYTES = 8


def open_weights(path: Path, *, verify: bool = True) -> WeightFile:
    """Opens a weight file by the kind of its name: ``.bin`` is a pickle, anything else safetensors.

    `verify`: compare tensors with the checksums that the file has of them, if any, as they are read.

    Raises CheckpointError if it is damaged, holds anything but tensors, or one of another dtype than float32, bfloat16,
    float16, float64 and, in safetensors, int8 and uint8.
    """
    region = Region(path)
    try:
        return _pickle(region, verify) if path.suffix == ".bin" else _safetensors(region, verify)
    except BaseException:
        region.close()
        raise


# ---- safetensors -----------------------------------------------------------------------------------------------------


def _safetensors(region: Region, verify: bool) -> WeightFile:
    """https://github.com/huggingface/safetensors: the library checks the header; the bytes are read from here."""
    path = region.path
    length = _header_length(region)
    try:
        with safe_open(path, framework="pt", device="cpu") as checked:
            stored = {name: checked.get_slice(name) for name in checked.keys()}  # noqa: SIM118, not a dict
            described = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in stored.items()}
            metadata = checked.metadata() or {}
    except (SafetensorError, OSError) as error:
        reason = str(error)
        if "IncompleteBuffer" in reason or "incomplete metadata" in reason:
            reason = "its header does not describe the bytes that follow (the file may be cut short)"
        raise CheckpointError(f"{path} is not a readable safetensors file: {reason}.") from error
    header = _header(region, length)
    known = checksums.from_metadata(metadata, described, path) if verify else {}
    infos, places = {}, {}
    for name, (dtype, shape) in described.items():
        if dtype not in _SAFETENSORS_DTYPES:
            raise CheckpointError(wrong_dtype(path, name, dtype))
        infos[name] = TensorInfo(shape, _SAFETENSORS_DTYPES[dtype], path)
        offset = _HEADER_LENGTH_BYTES + length + header[name]["data_offsets"][0]
        places[name] = Place(offset, checksum=known.get(name))
    return WeightFile(region, infos, places, metadata)


def _header_length(region: Region) -> int:
    # Checked here because the library's own message does not say how the two lengths differ.
    following = region.size - _HEADER_LENGTH_BYTES
    if following < 0:
        raise CheckpointError(f"{region.name} is not a readable safetensors file: it has only {region.size} bytes.")
    length = int(struct.unpack("<Q", region.read(0, _HEADER_LENGTH_BYTES))[0])
    if length > following:
        raise CheckpointError(
            f"{region.name} is not a readable safetensors file: its header claims {length} bytes, but only "
            f"{following} follow (the file may be cut short)."
        )
    return length


def _header(region: Region, length: int) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        if twice:
            raise CheckpointError(f"{region.name} is not a readable safetensors file: it has {listing(twice)} twice.")
        return dict(pairs)

    header: dict[str, Any] = json.loads(region.read(_HEADER_LENGTH_BYTES, length), object_pairs_hook=once)
    return header


# ---- pickles ---------------------------------------------------------------------------------------------------------


def _pickle(region: Region, verify: bool) -> WeightFile:
    if pickles.is_zip(region):
        records = pickles.records(region)
        content = pickles.unpickle(region)
    else:
        content, records = unpickle_legacy(region)
    return placed_tensors(region, named_tensors(region, content), records, verify=verify)


def named_tensors(region: Region, content: Any) -> dict[str, Tensor]:
    """`content`, if it is a dictionary of tensors of dtypes that weights have; else raises CheckpointError."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{region.name} must hold a dictionary of tensors, but holds a {type(content).__name__}.")
    strange = [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strange:
        raise CheckpointError(not_dense(region, strange))
    for name, tensor in content.items():
        if tensor.dtype not in WEIGHT_DTYPES.values():
            raise CheckpointError(wrong_dtype(region.name, name, tensor.dtype))
    return content


def placed_tensors(
    region: Region, tensors: Mapping[str, Tensor], records: Mapping[int, pickles.Record], *, verify: bool = True
) -> WeightFile:
    """The values, in `region`, of `tensors` on the meta device. Takes `region` over.

    Raises CheckpointError for one that isn't dense, or doesn't lie in one of the `records`.
    """
    infos, places = {}, {}
    strange = []
    for name, tensor in tensors.items():
        place = pickles.place_of(tensor, records)
        if place is None:
            strange.append(name)
            continue
        places[name] = place if verify else replace(place, checksum=None)
        infos[name] = TensorInfo(tuple(tensor.shape), tensor.dtype, region.path, row_major=place.strides is None)
    if strange:
        raise CheckpointError(not_dense(region, strange))
    return WeightFile(region, infos, places)


def not_dense(region: Region, names: Iterable[Any]) -> str:
    """The sentence that says so."""
    return f"{region.name} must map names to dense tensors, which it does not at {listing(map(repr, names))}."


def wrong_dtype(file: object, name: str, dtype: object) -> str:
    """The sentence that says so."""
    return f"Tensor {name} in {file} has dtype {dtype}; weights must be {', '.join(WEIGHT_DTYPES)}."
