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
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from persimmon_ext.checkpoints import pickles
from persimmon_ext.checkpoints.errors import CheckpointError, listing
from persimmon_ext.checkpoints.reading import placed_tensors
from persimmon_ext.checkpoints.region import Region
from persimmon_ext.checkpoints.weight_file import WeightFile

MD5 = {
    "cd0320cba9efad9ccd18e9ec4d16ae1b": "8b_base_model_release.tar",
    "663aeace07269c44e90f4e8bcd07f32a": "8b_chat_model_release.tar",
}
"""The checksums of the two public tars, from the README of the authors' repository."""

_WEIGHTS = re.compile(r"(?:.*/)?iter_(\d{1,9})/mp_rank_(\d{1,4})(_\d+)?/model_optim_rng\.pt")
_LATEST = "latest_checkpointed_iteration.txt"
_VOCABULARY = "adept_vocab.model"
_DEEPEST = 4  # folders between the one that is named and a file of the release
_MOST_NESTED = 32  # dictionaries, of a model's parts
# Of Megatron's formats: before 2 the features of query_key_value had another order. The authors' library writes none.
_VERSIONS = (2.0, 3.0)


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
            return region.read(0, region.size)


@dataclass(frozen=True)
class Rank:
    """What one rank's file holds."""

    weights: WeightFile
    """By the names in the file, joined by dots; each row-major."""
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
            yield [_open_rank(stack, member) for member in self.weights]


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
    found: dict[str, Member] = {}
    try:
        with Region(path) as region, region.stream() as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for entry in archive:
                if entry.islnk() and entry.linkname in found:
                    found[entry.name] = replace(found[entry.linkname], name=entry.name)
                elif entry.isreg():
                    found[entry.name] = _tar_member(path, entry, region.size)
                else:
                    continue
                yield found[entry.name]
    except CheckpointError:
        raise
    # tarfile lets some damage through as errors of what it calls: of int() and of seek().
    except (tarfile.TarError, EOFError, ValueError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # of opening the tar
            raise
        hint = "; if it is compressed, decompress it first" if path.suffix not in (".tar", "") else ""
        raise CheckpointError(f"{path} is not a readable tar: {error}{hint}.") from error


def _tar_member(path: Path, entry: tarfile.TarInfo, size: int) -> Member:
    if entry.sparse is not None:
        raise CheckpointError(f"{entry.name} in {path} is stored sparsely; unpack the tar, give its folder.")
    if entry.size < 0:
        raise CheckpointError(f"{path} is not a readable tar: {entry.name} has {entry.size} bytes.")
    if entry.offset_data + entry.size > size:
        raise CheckpointError(
            f"{path} is cut short: {entry.name} goes to byte {entry.offset_data + entry.size}, but the file ends at "
            f"{size}."
        )
    return Member(entry.name, path, entry.offset_data, entry.size)


def _open_rank(stack: ExitStack, member: Member) -> Rank:
    region = stack.enter_context(member.open())
    if not pickles.is_zip(region):
        raise CheckpointError(f"{region.name} is not a file of torch 1.6 or later.")
    records = pickles.records(region)
    content = pickles.unpickle(region, _STAND_INS, purpose="tensors and plain arguments")
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(f"{region.name} holds no dictionary with a model.")
    arguments = content.get("args")
    if not isinstance(arguments, PlainObject):
        raise CheckpointError(f"{region.name} holds no args, from which the config is made.")
    version = content.get("checkpoint_version")
    if version is not None and not (isinstance(version, (int, float)) and version in _VERSIONS):
        raise CheckpointError(
            f"{region.name} says checkpoint_version {version!r}: only {listing(map(str, _VERSIONS))} have the order of "
            "features in query_key_value that is read here."
        )
    weights = placed_tensors(region, _by_name(region, content["model"]), records)
    for name, info in weights.infos.items():
        if not info.row_major:
            raise CheckpointError(f"Tensor {name} in {region.name} isn't stored row by row.")
    return Rank(weights, vars(arguments))


def _by_name(region: Region, model: Mapping[Any, Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in _flat(region, model, "", set()):
        if name in tensors:
            raise CheckpointError(f"{region.name} holds two tensors called {name}.")
        tensors[name] = tensor
    return tensors


def _flat(region: Region, nested: Mapping[Any, Any], prefix: str, entered: set[int]) -> Iterator[tuple[str, Tensor]]:
    if id(nested) in entered:  # in itself, or in so many others that walking them all would take for ever
        raise CheckpointError(f"{region.name} holds the dictionary {prefix[:-1]} of its model a second time.")
    if prefix.count(".") > _MOST_NESTED:
        raise CheckpointError(f"{region.name} nests its model's dictionaries more than {_MOST_NESTED} deep.")
    entered.add(id(nested))
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(region, value, f"{name}.", entered)
        elif isinstance(value, Tensor):
            yield name, value
        elif value is not None:
            raise CheckpointError(f"{name} in {region.name} is a {type(value).__name__}, not a tensor.")
