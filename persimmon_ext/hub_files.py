"""Downloads files of a repository of the Hugging Face Hub, where huggingface_hub is installed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # not ./folder, nor ../folder


@dataclass(frozen=True)
class HubRequest:
    """What of a repository to download, and how."""

    revision: str | None = None
    """A branch, a tag or a commit; None is the main branch."""
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    token: str | bool | None = None


def find_or_download(
    path: str | os.PathLike[str],
    request: HubRequest,
    download: Callable[[Callable[[str], Path], Any], Path],
    is_whole: Callable[[Callable[[str], Path | None]], bool],
) -> str | os.PathLike[str]:
    """Returns `path` if it exists or can't be a name on the Hub, else the folder that `download` returns.

    `download` gets a function from the name of a file of the repository to where it is now, and huggingface_hub's
    errors; a file that the repository lacks raises their EntryNotFoundError, as does one that the cache lacks where
    nothing may be downloaded; a network that fails raises FileNotFoundError, unless the cache has all that is needed.
    That is what `is_whole` tells, of a function from the name of a file to where the cache has it, or None.

    Raises FileNotFoundError, saying why, if the repository can't be had: it is not there, private, or there is no
    network; ConnectionError if the Hub fails; ImportError if huggingface_hub is missing.
    """
    if not isinstance(path, str) or os.path.lexists(path) or not _HUB_NAME.fullmatch(path):
        return path
    try:
        import huggingface_hub as hub  # noqa: PLC0415, optional
        from huggingface_hub import errors  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            f"There is no folder {path!r}, and to download it from the Hugging Face Hub needs huggingface_hub: "
            "pip install 'persimmon_ext[hub]'."
        ) from error

    cache_dir = None if request.cache_dir is None else Path(request.cache_dir)
    place: dict[str, Any] = {"revision": request.revision, "cache_dir": cache_dir}

    def unreachable(reason: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"There is no folder {path!r}, and its files are neither in the Hub's cache nor can they be downloaded "
            f"({reason})."
        )

    def cached(name: str) -> Path | None:
        found = hub.try_to_load_from_cache(path, name, **place)
        return Path(found) if isinstance(found, str) else None

    def fetch(name: str) -> Path:
        only_local, token = request.local_files_only, request.token
        try:
            return Path(hub.hf_hub_download(path, name, **place, local_files_only=only_local, token=token))
        except errors.LocalEntryNotFoundError as error:
            # What is in no cache may be in no repository either: without a network by intent, beside a whole download,
            # or where the cache remembers an answer of the Hub, that is taken for one that isn't there. A failure
            # isn't: other weights, of another age perhaps, would take the place of these.
            is_offline = only_local or isinstance(error.__cause__, errors.OfflineModeIsEnabled)
            if is_offline or hub.try_to_load_from_cache(path, name, **place) is not None or is_whole(cached):
                raise
            raise FileNotFoundError(
                f"There is no folder {path!r}, {name} of the repository is not in the Hub's cache, and the Hub is out "
                "of reach; local_files_only=True takes what the cache has."
            ) from error

    try:
        return download(fetch, errors)
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        is_asked = request.local_files_only
        raise unreachable("local_files_only is set" if is_asked else "the Hub is out of reach") from error
    except errors.GatedRepoError as error:
        raise FileNotFoundError(f"{path} is gated on the Hugging Face Hub: accept its terms and pass token.") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        revision = "" if request.revision is None else f" at revision {request.revision!r}"
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"There is no folder {path!r}, and no such checkpoint on the Hugging Face Hub{revision}: {reason}"
        ) from error
    except errors.HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConnectionError(f"The Hugging Face Hub does not give {path!r} now: {reason}") from error
