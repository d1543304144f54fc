"""Bytes flipped anywhere in small checkpoints: an error that says so, or exactly what the flipped bytes say."""

from __future__ import annotations

import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adept_releases import reference_model, tarred, write_release
from checkpoint_helpers import WEIGHTS, load, make_model
from safetensors.torch import load_file

from persimmon_ext.checkpoints import CheckpointError, convert_adept
from persimmon_ext.checkpoints.reading import open_weights

SMALL = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
#: What a damaged folder may raise: each is a sentence of ours, or of the config's.
ERRORS = (CheckpointError, ValueError, TypeError, FileNotFoundError)


def flip(content: bytes, random_numbers: random.Random, limit: int) -> bytes:
    """`content` with one to four bytes below `limit` replaced by others, or a bit of one turned."""
    flipped = bytearray(content)
    for _ in range(random_numbers.randint(1, 4)):
        place = random_numbers.randrange(limit)
        change = random_numbers.randrange(1, 256) if random_numbers.random() < 0.5 else 1 << random_numbers.randrange(8)
        flipped[place] ^= change
    return bytes(flipped)


def attempt(action: Callable[[], Any], errors: tuple[type[Exception], ...] = (CheckpointError,)) -> tuple[Any, str]:
    """What `action` returned, or None and the message of its error."""
    try:
        return action(), ""
    except errors as error:
        return None, str(error)


def read_everything(file: Path) -> dict[str, torch.Tensor]:
    with open_weights(file) as weights:
        return {name: weights.read(name) for name in weights.infos}


def each_flipped(file: Path, rounds: int, limit: int | None, check: Callable[[], None]) -> None:
    whole = file.read_bytes()
    random_numbers = random.Random(11)
    for _ in range(rounds):
        file.write_bytes(flip(whole, random_numbers, limit or len(whole)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a flipped name may be that of a head to be initialised
            check()
    file.write_bytes(whole)


@pytest.mark.parametrize("where", ["header", "anywhere"])
def test_safetensors(tmp_path: Path, where: str) -> None:
    make_model(**SMALL).save_pretrained(tmp_path)
    file = tmp_path / WEIGHTS
    counts = {"loaded": 0, "refused": 0}

    def check() -> None:
        found, message = attempt(lambda: read_everything(file))
        counts["refused" if message else "loaded"] += 1
        assert message.endswith(".") or found is not None
        if message:
            return
        expected = load_file(file)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert found[name].shape == tensor.shape
            assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name

    header = 8 + struct.unpack("<Q", file.read_bytes()[:8])[0]
    each_flipped(file, 1500, header if where == "header" else None, check)
    assert min(counts.values()) > 50, counts


def test_models(tmp_path: Path) -> None:
    make_model(**SMALL).save_pretrained(tmp_path)
    file = tmp_path / WEIGHTS

    def check() -> None:
        model, message = attempt(lambda: load(tmp_path), ERRORS)
        assert message or model is not None
        if message:
            return
        expected = load_file(file)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor.contiguous().view(torch.uint8), expected[name].float().view(torch.uint8)), name

    each_flipped(file, 300, None, check)


def test_pickles(tmp_path: Path) -> None:
    model = make_model(**SMALL)
    model.config.save_pretrained(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    torch.save(model.state_dict(), file)
    names = set(model.state_dict())

    def check() -> None:
        found, message = attempt(lambda: read_everything(file))
        assert message.endswith(".") or found is not None
        if message or found.keys() != names:
            return  # refused, or a name was hit
        try:
            expected = torch.load(file, weights_only=True)
        except Exception:
            return  # torch compares checksums of the values too
        for name, tensor in expected.items():
            assert torch.equal(found[name].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8)), name

    each_flipped(file, 1000, None, check)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json(tmp_path: Path, name: str) -> None:
    make_model(**SMALL).save_pretrained(tmp_path, max_shard_size=1000)

    def check() -> None:
        model, message = attempt(lambda: load(tmp_path), ERRORS)
        assert message or model is not None

    each_flipped(tmp_path / name, 200, None, check)


def test_tars(tmp_path: Path) -> None:
    tar = tarred(write_release(tmp_path / "release", reference_model()))

    def check() -> None:
        folder, message = attempt(lambda: convert_adept(tar, tmp_path / "converted", progress=False), ERRORS)
        assert message or folder is not None

    # The first blocks: headers, the tokenizer and the pickle's beginning lie there.
    each_flipped(tar, 150, 3000, check)
