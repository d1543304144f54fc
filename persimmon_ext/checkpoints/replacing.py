"""Replaces the weights of a folder so that all of the new files appear or none, to any reader.

New files are written to a folder beside the old ones. Once they are whole, a journal there says so, and they move:

1. Shards, under names that no other save has used, or a conversion of the same files, whose shards have equal bytes:
   no index speaks of them yet, or only of what they hold.
2. Where the config or another file beside the weights changes, the old model.safetensors or index goes: for a moment,
   or until someone comes by if the process is killed right then, the folder has no weights.
3. The files beside the weights.
4. model.safetensors or the index, in one rename: from here on the folder holds the new model.
5. What was the old one's is removed.

So at every moment the folder holds the old model, none, or the new one; but for a pytorch_model.bin beside them, which
is nobody's to remove, and which readers find while a folder has no safetensors. Whoever finds a journal (the next of
this library to save or load there) finishes what it says. A lock on the folder, which dies with its process, keeps two
who save apart.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import filecmp
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from persimmon_ext.checkpoints.errors import CheckpointError, listing
from persimmon_ext.checkpoints.folder import QUANTIZED_NAMES, SAFETENSORS_INDEX_NAME, SAFETENSORS_NAME, WEIGHT_NAMES
from persimmon_ext.config import CONFIG_NAME

_STAGING_PREFIX = ".saving-"
_JOURNAL = "files.json"
_FIXED_NAMES = (SAFETENSORS_NAME, SAFETENSORS_INDEX_NAME, *QUANTIZED_NAMES)
_SHARD = re.compile(r"(model|quantized)(-[0-9a-f]{8})?-\d{5}-of-\d{5}\.safetensors")


@contextmanager
def staged(folder: Path, resumed: str | None = None) -> Iterator[Path]:
    """Makes `folder` if need be, locks it, and yields a folder inside it to write to, removed at the end.

    It lies on the same file system, so that `publish` only renames. If writing fails, no file of `folder` has changed.

    Args:
        resumed: a name by which the same staging folder is found again: it then outlives an error, and holds what an
            interrupted run left.
    Raises: BlockingIOError if another process is writing to `folder`, CheckpointError for a link by that name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, wait=False):
        _settle_locked(folder, keep=resumed)
        if resumed is None:
            staging = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=folder))
            # Whoever loads from the folder looks for a journal there, and its files get the group that setgid says.
            staging.chmod(stat.S_IMODE(folder.stat().st_mode))
        else:
            staging = folder / f"{_STAGING_PREFIX}{resumed}"
            if staging.is_symlink():
                raise CheckpointError(f"{staging} is a link, and nothing is written or removed behind it; remove it.")
            staging.mkdir(exist_ok=True)
        try:
            yield staging
        except BaseException:
            # With a journal, the files are whole: what couldn't be moved now can be later.
            if not _has_journal(staging) and (resumed is None or not any(staging.iterdir())):
                shutil.rmtree(staging, ignore_errors=True)
            raise
        shutil.rmtree(staging, ignore_errors=True)


def holds_weights(folder: Path) -> bool:
    """Whether `folder` has weight files by the names that a save gives: the shards of another one need other names."""
    return any(path.name in _FIXED_NAMES or _SHARD.fullmatch(path.name) for path in folder.iterdir())


def publish(staging: Path, folder: Path, names: Sequence[str]) -> None:
    """Moves the files `names` from `staging` into `folder`, over any of the same name, and removes weight files of an
    earlier save that aren't among them.

    Raises IsADirectoryError, before anything has changed, if a folder has one of the names.
    """
    for name in names:
        if _is_folder(folder / name):
            raise IsADirectoryError(
                f"{folder / name} is a folder, where a file of the checkpoint shall be; move it away."
            )
    # All bytes reach the disk before the first rename: a power cut leaves no file that is there but empty.
    for name in names:
        sync(staging / name)
    unfinished = staging / f"{_JOURNAL}.tmp"
    with unfinished.open("w", encoding="utf-8") as journal:
        json.dump(list(names), journal)
        journal.flush()
        os.fsync(journal.fileno())
    os.replace(unfinished, staging / _JOURNAL)
    _finish(staging, folder)


def sync(file: Path) -> None:
    """Has the contents of `file` on the disk when it returns."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def settle(path: str | os.PathLike[str]) -> None:
    """Finishes a save to the folder `path` that was interrupted while its files took their names: for whoever loads it,
    before looking for any file there. Nothing happens where there is no folder.

    Raises CheckpointError if that can't be done.
    """
    folder = Path(path)
    if not _is_interrupted(folder):
        return
    try:
        with _locked(folder, wait=True):
            _settle_locked(folder, finish_only=True)
    except OSError as error:
        raise CheckpointError(
            f"A save to {folder} was interrupted while its files took their names, and they can't now: {error}."
        ) from error


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """A context for reading `folder`. Raises CheckpointError if its files were replaced meanwhile: what was read may be
    of two models, and what failed may have failed for that. A lock would not do: those who save hold it for as long as
    they write, and the old files can be read all that time."""
    before = _file_states(folder)
    replaced = CheckpointError(f"Another model was saved to {folder} while it was being loaded; load it again.")
    try:
        yield
    except (OSError, ValueError) as error:  # a CheckpointError, or a tokenizer that doesn't fit the model
        now = _file_states(folder)
        # Other files by the same names, not the same ones cut short: of that, the error itself tells.
        same = {name: state[:2] for name, state in now.items()} == {name: state[:2] for name, state in before.items()}
        if _is_interrupted(folder) or not same:
            raise replaced from error
        raise
    # The journal first: a save that has finished by then has changed the states.
    if _is_interrupted(folder) or _file_states(folder) != before:
        raise replaced


def _file_states(folder: Path) -> dict[str, tuple[int, ...]]:
    """Device, inode, size and time of what tells in `folder` that a model was saved or downloaded: its config and its
    weights. Not of pickled shards, which no save writes and whose index tells, nor of the tokenizer, which is no part
    of a model's save."""
    fixed = (CONFIG_NAME, *WEIGHT_NAMES, *QUANTIZED_NAMES)
    names = [*fixed, *(path.name for path in folder.iterdir() if _SHARD.fullmatch(path.name))]
    states: dict[str, tuple[int, ...]] = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            status = (folder / name).stat()
            states[name] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return states


def _stagings(folder: Path) -> list[Path]:
    """The folders that a save of this library makes in `folder`; a link by such a name isn't one."""
    return [path for path in sorted(folder.glob(f"{_STAGING_PREFIX}*")) if _is_folder(path)]


def _has_journal(staging: Path) -> bool:
    journal = staging / _JOURNAL
    return os.path.isfile(journal) and not journal.is_symlink()  # not where others may not look


def _is_interrupted(folder: Path) -> bool:
    return any(map(_has_journal, _stagings(folder)))


def _settle_locked(folder: Path, *, keep: str | None = None, finish_only: bool = False) -> None:
    for staging in _stagings(folder):
        if _has_journal(staging):
            _finish(staging, folder)
        elif finish_only or staging.name == f"{_STAGING_PREFIX}{keep}":
            continue
        shutil.rmtree(staging, ignore_errors=True)  # what a killed process left


def _finish(staging: Path, folder: Path) -> None:
    """Takes the steps 1 to 5, or those that an interrupted process has left."""
    names = _journalled(staging, folder)
    shards = [name for name in names if _SHARD.fullmatch(name)]
    entries = [name for name in names if name in _FIXED_NAMES]
    beside = [name for name in names if name not in shards and name not in entries]
    _move(shards, staging, folder)
    if not all(_is_settled(staging / name, folder / name) for name in beside):
        _remove(folder, _FIXED_NAMES)
    _move(beside, staging, folder)
    _move(entries, staging, folder)
    # Without model.safetensors, an index counts: where that is the new one, this is the moment.
    _remove(folder, [name for name in _FIXED_NAMES if name not in names])
    _remove(folder, [path.name for path in folder.iterdir() if _SHARD.fullmatch(path.name) and path.name not in names])
    (staging / _JOURNAL).unlink()


def _journalled(staging: Path, folder: Path) -> list[str]:
    """The file names in the journal. The folder may come from anywhere: nothing in it may move files about elsewhere,
    or make a load delete weights. Raises CheckpointError for anything else."""
    try:
        names = json.loads((staging / _JOURNAL).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # the latter: thousands of nested brackets
        names = None
    if not isinstance(names, list) or not all(map(_is_file_name, names)):
        raise CheckpointError(f"{staging / _JOURNAL} is no list of file names: {names!r}.")
    if not any(name in _FIXED_NAMES for name in names):
        raise CheckpointError(f"{staging / _JOURNAL} names no weights, as every save does: {names!r}.")
    lost = [name for name in names if not any(os.path.lexists(place / name) for place in (staging, folder))]
    if lost:
        raise CheckpointError(
            f"{staging / _JOURNAL} names {listing(lost)}, which are neither beside it nor in {folder}."
        )
    return names


def _is_settled(new: Path, old: Path) -> bool:
    """Whether moving `new` to `old` changes nothing: it has been moved, or the two are equal."""
    return not os.path.lexists(new) or (old.is_file() and filecmp.cmp(new, old, shallow=False))


def _move(names: Iterable[str], staging: Path, folder: Path) -> None:
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # it has its name already
            os.replace(staging / name, folder / name)


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if not _is_folder(folder / name):  # which is never read as weights
            (folder / name).unlink(missing_ok=True)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()  # a link is replaced or removed itself


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and os.path.basename(name) == name


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise BlockingIOError(
                    f"Another process is saving to {folder} right now; wait until it is done, or save elsewhere."
                ) from None
            # Some network file systems have no locks: one saver at a time is then up to the user.
        yield
    finally:
        os.close(descriptor)
