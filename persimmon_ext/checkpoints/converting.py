"""Converts the authors' release of Persimmon-8B to a Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from persimmon_ext.checkpoints.adept import MD5, Rank, Release, find_release
from persimmon_ext.checkpoints.adept_config import config_of, expected_shapes
from persimmon_ext.checkpoints.errors import CheckpointError
from persimmon_ext.checkpoints.folder import SAFETENSORS_INDEX_NAME
from persimmon_ext.checkpoints.merging import check_shapes, merged
from persimmon_ext.checkpoints.reading import open_weights
from persimmon_ext.checkpoints.replacing import holds_weights, publish, staged, sync
from persimmon_ext.checkpoints.safetensors_writer import Source, write_safetensors
from persimmon_ext.checkpoints.targets import dtype_name, parse_dtype, parse_size
from persimmon_ext.checkpoints.writing import shard_names, split, write_index
from persimmon_ext.config import CONFIG_NAME, GENERATION_CONFIG_NAME, PersimmonConfig
from persimmon_ext.special_tokens import END_OF_TEXT
from persimmon_ext.tokenizer import PersimmonTokenizer
from persimmon_ext.vocabulary import check_fits

_STAGING = "converted"
_PLAN = "plan.json"
_HASHED_AT_A_TIME = 2**22


def convert_adept(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    md5: bool | str = False,
    progress: bool = True,
) -> Path:
    """Writes the authors' release as a Hugging Face folder that transformers and this library load.

    Safetensors shards with an index, config.json from the arguments that the release was trained with, the tokenizer's
    files and generation_config.json. A few megabytes are in memory at a time. Ranks of tensor parallelism are merged.
    Interrupted, it goes on with the shard that it was at when it is run again, having compared those that are finished
    with their checksums; the files appear when all are whole.

    Args:
        source: the tar, or the folder that it unpacks to. Nothing in it is run.
        folder: is made if missing; weights that it holds are replaced.
        dtype: of the converted tensors; None leaves them as they are.
        md5: True checks that `source` is one of the two public tars; a checksum, that it is that file.
        progress: show a bar.
    Returns: `folder`.
    Raises: FileNotFoundError if there is no release, CheckpointError for one that is damaged, of another architecture
        or that asks for more than plain data, ValueError for a tokenizer of another model, BlockingIOError if another
        process writes to `folder`, OSError if the disk is full.
    """
    source, folder = Path(source), Path(folder)
    limit = parse_size(max_shard_size)
    chosen = None if dtype is None else parse_dtype(dtype)
    if os.path.lexists(folder) and not folder.is_dir():
        raise NotADirectoryError(f"A checkpoint is converted to a folder, but {folder} is a file.")
    release = find_release(source)
    if md5 is not False:
        check_md5(source, md5, progress=progress)
    tokenizer = release_tokenizer(source, release)
    with release.opened() as ranks:
        config, sources = released_model(source, ranks, tokenizer, chosen)
        check_fits(len(tokenizer), config.vocab_size, f"The tokenizer of {source}")
        shards = split(sources, limit)
        plan = _plan(release, shards, config.dtype)
        with staged(folder, resumed=_STAGING) as staging:
            # Of the plan, so that the next run finds what this one has written.
            mark = f"{zlib.crc32(json.dumps(plan).encode()):08x}" if holds_weights(folder) else ""
            contents = dict(zip(shard_names(len(shards), mark=mark), shards, strict=True))
            done = _resume(staging, {**plan, "shards": contents}, sources)
            total = sum(source.nbytes for source in sources.values())
            with tqdm(desc="Converting", total=total, unit="B", unit_scale=True, disable=not progress) as bar:
                for name, shard in contents.items():
                    if name in done:
                        bar.update(sum(sources[key].nbytes for key in shard))
                        continue
                    unfinished = staging / f"{name}.part"
                    write_safetensors(unfinished, {key: sources[key] for key in shard}, bar)
                    sync(unfinished)
                    os.replace(unfinished, staging / name)
            config.save_pretrained(staging)
            written = [Path(file).name for file in tokenizer.save_pretrained(staging)]
            ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
            (staging / GENERATION_CONFIG_NAME).write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
            published = [CONFIG_NAME, GENERATION_CONFIG_NAME, *written, *contents]
            if len(shards) > 1:
                write_index(staging / SAFETENSORS_INDEX_NAME, sources, contents)
                published.append(SAFETENSORS_INDEX_NAME)
            publish(staging, folder, published)
    return folder


def check_md5(path: Path, expected: bool | str, *, progress: bool = False) -> None:
    """Raises CheckpointError unless the file has the checksum `expected`, or for True one of the public tars'."""
    if not isinstance(expected, (bool, str)):
        raise TypeError(f"md5 must be True, False or a checksum, got {expected!r}.")
    if path.is_dir():
        raise ValueError(f"md5 is the checksum of a tar, and {path} is a folder.")
    digest = hashlib.md5(usedforsecurity=False)
    size = path.stat().st_size
    with (
        path.open("rb") as file,
        tqdm(desc="Checking", total=size, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        while block := file.read(_HASHED_AT_A_TIME):
            digest.update(block)
            bar.update(len(block))
    found = digest.hexdigest()
    if isinstance(expected, str) and found != expected.lower():
        raise CheckpointError(f"The md5 of {path} is {found}, not {expected}: it is damaged, or another file.")
    if expected is True and found not in MD5:
        public = " nor ".join(f"{md5} ({name})" for md5, name in MD5.items())
        raise CheckpointError(f"The md5 of {path} is {found}, neither {public}: it is damaged, or another file.")


def release_tokenizer(source: Path, release: Release) -> PersimmonTokenizer:
    """The tokenizer of a release found at `source`. Raises FileNotFoundError where it has none."""
    if release.vocabulary is None:
        raise FileNotFoundError(f"{source} holds no adept_vocab.model, the tokenizer of the release.")
    tokenizer = PersimmonTokenizer(release.vocabulary.read())
    if tokenizer.special_tokens.find(END_OF_TEXT) is not None:  # what the authors begin and end documents with
        tokenizer.bos_token = tokenizer.eos_token = END_OF_TEXT
    return tokenizer


def released_model(
    source: Path, ranks: Sequence[Rank], tokenizer: PersimmonTokenizer, dtype: torch.dtype | None = None
) -> tuple[PersimmonConfig, dict[str, Source]]:
    """The config and the whole tensors, in `dtype` (None: as they are), of the release at `source`.

    Raises CheckpointError where the tensors aren't those that the release's arguments ask for.
    """
    sources = merged(ranks, dtype)
    embedding = sources.get("model.embed_tokens.weight")
    if embedding is None:
        raise CheckpointError(f"{source} holds no word embeddings.")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = config_of(ranks[0].arguments, embedding.shape[0], **ids)
    config.dtype = dtype_name(embedding.dtype)
    if config.tie_word_embeddings:
        sources.pop("lm_head.weight", None)  # Megatron's last stage saves a copy
    check_shapes(ranks, sources, expected_shapes(config))
    return config, sources


def _plan(release: Release, shards: list[list[str]], dtype: str | None) -> dict[str, Any]:
    """What decides the contents of the shards: those of an interrupted run are kept if it hasn't changed."""
    files = [(str(member.path.resolve()), member.start, member.path.stat()) for member in release.weights]
    return {
        "weights": [[path, start, status.st_size, status.st_mtime_ns] for path, start, status in files],
        "shards": shards,
        "dtype": dtype,
    }


def _resume(staging: Path, plan: dict[str, Any], sources: Mapping[str, Source]) -> set[str]:
    """The names of the shards that an interrupted run of the same conversion has finished; clears away any other."""
    file = staging / _PLAN
    try:
        same = json.loads(file.read_text(encoding="utf-8")) == plan
    except (OSError, ValueError, RecursionError):
        same = False
    shards = plan["shards"] if same else {}
    kept = {
        path.name
        for path in staging.iterdir()
        if path.name in shards
        and not path.is_symlink()
        and _is_whole(path, {key: sources[key] for key in shards[path.name]})
    }
    for path in staging.iterdir():
        if path.name not in kept:
            path.unlink()
    file.write_text(json.dumps(plan), encoding="utf-8")
    return kept


def _is_whole(path: Path, sources: Mapping[str, Source]) -> bool:
    """Whether a finished shard still holds what was written to it. Reads all of it."""
    try:
        with open_weights(path) as weights:
            found = {name: (info.shape, info.dtype) for name, info in weights.infos.items()}
            if not weights.has_checksums or found != {name: (s.shape, s.dtype) for name, s in sources.items()}:
                return False
            for name in found:
                for _ in weights.pieces(name):  # compares the checksum with the last one
                    pass
    except CheckpointError:
        return False
    return True
