"""The authors' release of Persimmon-8B: a tar, or the folder that it unpacks to.

    iter_NNNNNNN/mp_rank_NN/model_optim_rng.pt    weights and arguments, one file for each tensor-parallel rank
    adept_vocab.model                             the sentencepiece model
    latest_checkpointed_iteration.txt             where there are several iterations, the one that counts

A tar is read where it stands: its members are stretches of one file. Nothing of it is unpacked, and nothing in the
pickles runs: their classes are replaced by stand-ins that keep attributes and do nothing.
https://github.com/persimmon-ai-labs/adept-inference
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from persimmon_ext.checkpoints import pickles
from persimmon_ext.checkpoints.errors import CheckpointError, listing
from persimmon_ext.checkpoints.region import Region

MD5 = {
    "cd0320cba9efad9ccd18e9ec4d16ae1b": "8b_base_model_release.tar",
    "663aeace07269c44e90f4e8bcd07f32a": "8b_chat_model_release.tar",
}
"""The checksums of the two public tars, from the README of the authors' repository."""

_WEIGHTS = re.compile(r"(?:.*/)?iter_(\d+)/mp_rank_(\d+)(_\d+)?/model_optim_rng\.pt")
_LATEST = "latest_checkpointed_iteration.txt"
_VOCABULARY = "adept_vocab.model"
_DEEPEST = 4  # folders between the one that is named and a file of the release


class PlainObject:
    """Stands for an object of a class that isn't imported: has its attributes, and no behaviour."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


# What Megatron's checkpoints hold beside tensors and builtins: arguments, and the state of random number generators.
_STAND_INS = [
    (PlainObject, name)
    for name in (
        "argparse.Namespace",
        "megatron.model.enums.ModelType",
        "megatron.model.enums.LayerType",
        "megatron.model.enums.AttnType",
        "megatron.model.enums.AttnMaskType",
        "numpy.ndarray",
        "numpy.dtype",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
    )
]


@dataclass(frozen=True)
class Member:
    """One file of the release."""

    name: str
    path: Path
    start: int = 0
    size: int | None = None

    def open(self) -> Region:
        """Its bytes; to be closed."""
        return Region(self.path, self.start, self.size, name=self.name)

    def read(self) -> bytes:
        """All of a small file."""
        with self.open() as region:
            content = bytearray(region.size)
            region.read_into(memoryview(content), 0)
        return bytes(content)


@dataclass(frozen=True)
class Rank:
    """What one rank's file holds."""

    region: Region
    tensors: Mapping[str, Tensor]
    """On the meta device; by the names in the file, joined by dots."""
    places: Mapping[str, pickles.Place]
    arguments: Mapping[str, Any]
    """The authors' command-line arguments, by which the model was trained."""


@dataclass(frozen=True)
class Release:
    """The files that matter, in the order of their ranks."""

    weights: tuple[Member, ...]
    vocabulary: Member | None

    @contextmanager
    def opened(self) -> Iterator[list[Rank]]:
        """The ranks' tensors, without their values. Raises CheckpointError for a file that is damaged, or asks for
        anything that isn't plain data."""
        with ExitStack() as stack:
            yield [_open_rank(stack.enter_context(member.open())) for member in self.weights]


def find_release(path: Path) -> Release:
    """Looks through a tar or a folder. Raises FileNotFoundError where there is no release, CheckpointError for a tar
    that is damaged or compressed, several iterations without a word on which, or a pipeline-parallel release."""
    if not os.path.lexists(path):
        raise FileNotFoundError(f"There is no release at {str(path)!r}; give the authors' tar or its folder.")
    members = list(_folder_members(path) if path.is_dir() else _tar_members(path))
    found: dict[int, dict[int, Member]] = {}
    for member in members:
        match = _WEIGHTS.fullmatch(member.name)
        if match is None:
            continue
        if match[3]:
            raise CheckpointError(f"{member.name} in {path} is of a pipeline-parallel release, which can't be merged.")
        ranks = found.setdefault(int(match[1]), {})
        if int(match[2]) in ranks:
            raise CheckpointError(f"{path} holds two releases: {ranks[int(match[2])].name} and {member.name}.")
        ranks[int(match[2])] = member
    if not found:
        raise FileNotFoundError(f"{path} holds no iter_…/mp_rank_…/model_optim_rng.pt, so it is no release.")
    ranks = found[_iteration(path, members, found)]
    missing = [f"mp_rank_{number:02}" for number in range(max(ranks)) if number not in ranks]
    if missing:
        raise CheckpointError(f"{path} lacks {listing(missing)}: every rank up to the last is needed.")
    vocabulary = next((member for member in members if PurePosixPath(member.name).name == _VOCABULARY), None)
    return Release(tuple(ranks[number] for number in sorted(ranks)), vocabulary)


def _iteration(path: Path, members: Iterable[Member], found: Iterable[int]) -> int:
    iterations = sorted(found)
    if len(iterations) == 1:
        return iterations[0]
    latest = next((member for member in members if PurePosixPath(member.name).name == _LATEST), None)
    stated = "" if latest is None else latest.read().decode("utf-8", "replace").strip()
    if stated.isdecimal() and int(stated) in iterations:
        return int(stated)
    raise CheckpointError(f"{path} holds the iterations {listing(map(str, iterations))}, and no {_LATEST} with one.")


def _folder_members(folder: Path) -> Iterator[Member]:
    for place, folders, files in os.walk(folder):
        inside = Path(place).relative_to(folder)
        if len(inside.parts) >= _DEEPEST:
            folders.clear()
        for name in files:
            yield Member((inside / name).as_posix(), Path(place) / name)


def _tar_members(path: Path) -> Iterator[Member]:
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for entry in archive:
                if not entry.isreg():
                    continue
                if entry.sparse is not None:
                    raise CheckpointError(
                        f"{entry.name} in {path} is stored sparsely; unpack the tar, give its folder."
                    )
                if entry.offset_data + entry.size > size:
                    raise CheckpointError(
                        f"{path} is cut short: {entry.name} goes to byte {entry.offset_data + entry.size}, but the "
                        f"file ends at {size}."
                    )
                yield Member(entry.name, path, entry.offset_data, entry.size)
    except (tarfile.TarError, EOFError) as error:
        hint = "; if it is compressed, decompress it first" if path.suffix not in (".tar", "") else ""
        raise CheckpointError(f"{path} is not a readable tar: {error}{hint}.") from error


def _open_rank(region: Region) -> Rank:
    if not pickles.is_zip(region):
        raise CheckpointError(f"{region.name} is not a file of torch 1.6 or later.")
    sizes = pickles.records(region)
    content = pickles.unpickle(region, _STAND_INS, purpose="tensors and plain arguments")
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(f"{region.name} holds no dictionary with a model.")
    arguments = content.get("args")
    if not isinstance(arguments, PlainObject):
        raise CheckpointError(f"{region.name} holds no args, from which the config is made.")
    tensors = dict(_flat(region, content["model"]))
    places = {}
    for name, tensor in tensors.items():
        place = pickles.place_of(tensor, sizes)
        if place is None or not tensor.is_contiguous():
            raise CheckpointError(f"Tensor {name} in {region.name} isn't stored whole and row by row.")
        places[name] = place
    return Rank(region, tensors, places, vars(arguments))


def _flat(region: Region, nested: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(region, value, f"{name}.")
        elif isinstance(value, Tensor):
            yield name, value
        elif value is not None:
            raise CheckpointError(f"{name} in {region.name} is a {type(value).__name__}, not a tensor.")
