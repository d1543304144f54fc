"""Tars that hold no whole release, or not as plain files: a sentence for each, and links that are followed."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from adept_releases import WEIGHTS, convert, reference_model, refused, tarred, write_release

from persimmon_ext import PersimmonForCausalLM
from persimmon_ext.checkpoints import CheckpointError


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path / "8b_base_model_release", reference_model())


@pytest.mark.parametrize("kept", [0.999, 0.7, 0.3, 0.001])
def test_truncated_tar(release: Path, kept: float) -> None:
    tar = tarred(release)
    with tarfile.open(tar) as archive:
        last = max(entry.offset_data + entry.size for entry in archive)
    tar.write_bytes(tar.read_bytes()[: int(last * kept)])
    refused(tar, r"is cut short|is not a readable tar|holds no", (CheckpointError, FileNotFoundError))


def test_compressed_tar(release: Path) -> None:
    tar = tarred(release, "w:gz").rename(release.with_suffix(".tar.gz"))
    refused(tar, "is not a readable tar: .*decompress it first")


def test_hard_links(release: Path, tmp_path: Path) -> None:
    """The second name of a file comes without contents."""
    os.link(release / WEIGHTS, release / "aa.pt")
    tar = release.with_suffix(".tar")
    with tarfile.open(tar, "w") as archive:
        for name in ("aa.pt", "adept_vocab.model", str(WEIGHTS)):
            archive.add(release / name)
        assert [entry.islnk() for entry in archive] == [False, False, True]
    loaded = PersimmonForCausalLM.from_pretrained(convert(tar, tmp_path / "converted"))
    assert torch.equal(loaded.lm_head.weight, reference_model().lm_head.weight)


def with_header(path: Path, **fields: Any) -> Path:
    """A tar of one small file in the place of the weights, with `fields` in its pax header."""
    entry = tarfile.TarInfo(str(WEIGHTS))
    content = b"zz\nqq\n" + bytes(600)
    entry.size = len(content)
    entry.pax_headers = fields
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, "is not a readable tar: invalid literal"),
        ({"GNU.sparse.map": "a,b"}, "is not a readable tar: invalid literal"),
        ({"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"}, "is stored sparsely; unpack the tar"),
        ({"size": "-5"}, "is not a readable tar"),
        ({"size": "9" * 30}, "is cut short: .* goes to byte"),
    ],
)
def test_strange_headers(tmp_path: Path, fields: dict[str, str], match: str) -> None:
    refused(with_header(tmp_path / "x.tar", **fields), match)


def test_a_negative_size(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo(str(WEIGHTS)).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" + (2**88 - 1024).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(2048))
    refused(tmp_path / "x.tar", "is not a readable tar")


def test_pipes_and_devices(release: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")  # opening it would wait for ever
    refused(tmp_path / "x.tar", r"x\.tar is no regular file")
    (release / WEIGHTS).unlink()
    os.mkfifo(release / WEIGHTS)
    refused(release, r"model_optim_rng\.pt is no regular file")
    with pytest.raises(CheckpointError, match="/dev/zero is no regular file"):
        convert(Path("/dev/zero"), tmp_path / "converted")
