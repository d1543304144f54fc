"""Bytes flipped anywhere in small checkpoints: a sentence that says so, or the model that was saved. Never a crash.

Where a format has no checksums (safetensors of others, torch.save before 1.6, JSON), what is loaded is exactly what the
flipped bytes say, by another reader's account.
"""

from __future__ import annotations

import json
import random
import struct
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adept_releases import reference_model, tarred, write_release
from checkpoint_helpers import INDEX, WEIGHTS, load, make_model
from safetensors.torch import load_file, save_file

from persimmon_ext import PersimmonConfig, PersimmonForCausalLM
from persimmon_ext.checkpoints import CheckpointError
from persimmon_ext.checkpoints.inspection import open_checkpoint
from persimmon_ext.checkpoints.reading import open_weights

SMALL = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
QUANTISED = {"vocab_size": 8, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
#: What a damaged folder may raise: each is a sentence of ours, or of the config's.
ERRORS = (CheckpointError, ValueError, TypeError, FileNotFoundError)

Tensors = dict[str, torch.Tensor]


def flipped(content: bytes, numbers: random.Random, zones: list[tuple[int, int]]) -> bytes:
    """`content` with one to four bytes of one of the `zones` replaced by others, or a bit of one turned."""
    changed = bytearray(content)
    first, last = numbers.choice(zones)
    for _ in range(numbers.randint(1, 4)):
        change = numbers.randrange(1, 256) if numbers.random() < 0.5 else 1 << numbers.randrange(8)
        changed[numbers.randrange(first, last)] ^= change
    return bytes(changed)


def fuzz(
    file: Path,
    rounds: int,
    action: Callable[[], Any],
    check: Callable[[Any], None],
    errors: tuple[type[Exception], ...] = (CheckpointError,),
    zones: list[tuple[int, int]] | None = None,
) -> Counter[str]:
    """Runs `action` on `rounds` damaged versions of `file`, and `check` on what it returns. Anything raised beside
    `errors` fails the test. How often it was refused and loaded."""
    whole = file.read_bytes()
    numbers = random.Random(11)
    counts: Counter[str] = Counter()
    for _ in range(rounds):
        file.write_bytes(flipped(whole, numbers, zones or [(0, len(whole))]))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a flipped name may be that of a head to be initialised
                result = action()
        except errors as error:
            counts["refused" if str(error).strip() else "without a word"] += 1
        else:
            check(result)
            counts["loaded"] += 1
    file.write_bytes(whole)
    assert not counts["without a word"]
    return counts


def same_bits(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


def read_everything(file: Path) -> Tensors:
    with open_weights(file) as weights:
        return {name: weights.read(name) for name in weights.infos}


def halves(file: Path) -> list[tuple[int, int]]:
    """Header and values of a safetensors file: each is damaged as often."""
    content = file.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    return [(0, header), (header, len(content))]


def fuzz_load(file: Path, rounds: int, saved: Tensors, zones: list[tuple[int, int]]) -> Counter[str]:
    """`fuzz` with loading the folder of `file`, which must fail or give the tensors `saved`."""
    folder = file.parent
    return fuzz(
        file, rounds, lambda: dict(load(folder).state_dict()), lambda found: same_bits(found, saved), ERRORS, zones
    )


@pytest.mark.parametrize("form", ["one file", "shards", "int8", "int4"])
def test_weights_that_we_saved(tmp_path: Path, form: str) -> None:
    model = make_model(**SMALL)
    if form.startswith("int"):
        model = make_model(**QUANTISED).quantize(form)
    model.save_pretrained(tmp_path, max_shard_size=800 if form == "shards" else "5GB")
    saved = dict(model.state_dict())
    for file in sorted(tmp_path.glob("*.safetensors"))[:2]:
        counts = fuzz_load(file, 350, saved, halves(file))
        assert counts["refused"] > 340


def test_safetensors_of_others(tmp_path: Path) -> None:
    make_model(**SMALL).save_pretrained(tmp_path)
    file = tmp_path / WEIGHTS
    save_file(load_file(file), file)
    counts = fuzz(
        file, 1000, lambda: read_everything(file), lambda found: same_bits(found, load_file(file)), zones=halves(file)
    )
    assert min(counts.values()) > 50, counts


@pytest.mark.parametrize("zone", ["anywhere", "structure"])
def test_pickles(tmp_path: Path, zone: str) -> None:
    state = make_model(**SMALL).state_dict()
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file)
    content = file.read_bytes()
    first_values = content.index(b"data/0")
    structure = [(0, first_values), (content.rindex(b"serialization_id") - 5000, len(content))]
    counts = fuzz(
        file,
        800,
        lambda: read_everything(file),
        lambda found: same_bits(found, dict(state)),
        zones=structure if zone == "structure" else None,
    )
    assert min(counts.values()) > 10, counts


def test_legacy_pickles(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(make_model(**SMALL).state_dict(), file, _use_new_zipfile_serialization=False)

    def check(found: Tensors) -> None:
        try:
            expected = torch.load(file, weights_only=True)
        except Exception:
            return  # torch objects to more than the bytes of the tensors
        same_bits(found, expected)

    values = file.read_bytes().rindex(b"lm_head")
    counts = fuzz(file, 800, lambda: read_everything(file), check, zones=[(0, values), (values, file.stat().st_size)])
    assert min(counts.values()) > 50, counts


def test_index(tmp_path: Path) -> None:
    model = make_model(**SMALL)
    model.save_pretrained(tmp_path, max_shard_size=800)
    saved = dict(model.state_dict())
    file = tmp_path / INDEX
    names = file.read_bytes().index(b"weight_map")
    counts = fuzz_load(file, 500, saved, [(0, names), (names, file.stat().st_size)])
    assert counts["refused"] > 400, counts
    assert counts["loaded"] > 20, counts  # with another total_size, say, which nothing depends on


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_config(tmp_path: Path, quantization: str | None) -> None:
    model = make_model(**SMALL) if quantization is None else make_model(**QUANTISED).quantize(quantization)
    model.save_pretrained(tmp_path)
    saved = dict(model.state_dict())
    file = tmp_path / "config.json"

    def check(found: PersimmonForCausalLM) -> None:
        # Meant to be edited, so without a checksum: the model is as the file says, and has the weights that were saved.
        stated = PersimmonConfig.from_dict(json.loads(file.read_text()))
        stated.extra.pop("quantization", None)
        stated.dtype = found.config.dtype
        stated.tie_word_embeddings = found.config.tie_word_embeddings
        assert found.config == stated
        for name, tensor in found.state_dict().items():
            assert torch.equal(tensor, saved[name].to(tensor.dtype)), name

    counts = fuzz(file, 500, lambda: load(tmp_path), check, ERRORS)
    assert counts["refused"] > 400, counts
    assert counts["loaded"] > 20, counts


def test_generation_config(tmp_path: Path) -> None:
    model = make_model(**SMALL)
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path)
    file = tmp_path / "generation_config.json"

    def check(found: PersimmonForCausalLM) -> None:
        stated = json.loads(file.read_text())
        for name, value in found.generation_config.to_dict().items():
            assert stated[name] == value

    counts = fuzz(file, 300, lambda: PersimmonForCausalLM.from_pretrained(tmp_path), check, ERRORS)
    assert counts["refused"] > 200, counts
    assert counts["loaded"] > 20, counts


def released(path: Path) -> tuple[Tensors, bytes]:
    with open_checkpoint(path) as opened:
        assert opened.tokenizer is not None
        tensors = {
            name: torch.cat([piece.reshape(-1) for piece in source.pieces()]).view(source.shape)
            for name, source in opened.sources.items()
        }
        return tensors, opened.tokenizer.vocabulary.model


def test_releases(tmp_path: Path) -> None:
    tar = tarred(write_release(tmp_path / "release", reference_model()))
    expected, vocabulary = released(tar)
    with tarfile.open(tar) as archive:
        files = {Path(entry.name).name: entry for entry in archive if entry.isreg()}
    tokenizer, weights = files["adept_vocab.model"], files["model_optim_rng.pt"]
    place = slice(tokenizer.offset_data, tokenizer.offset_data + tokenizer.size)
    pickled = weights.offset_data + tar.read_bytes()[weights.offset_data :].index(b"data/0")

    def check(found: tuple[Tensors, bytes]) -> None:
        same_bits(found[0], expected)
        assert found[1] == tar.read_bytes()[place]  # has no checksum but that of the whole tar, --md5

    zones = {
        "headers": [
            (0, 512),
            (tokenizer.offset_data - 512, tokenizer.offset_data),
            (weights.offset_data - 512, weights.offset_data),
        ],
        "tokenizer": [(place.start, place.stop)],
        "pickle": [(weights.offset_data, pickled)],
        "values and directory": [(pickled, weights.offset_data + weights.size)],
    }
    for name, places in zones.items():
        counts = fuzz(tar, 250, lambda: released(tar), check, ERRORS, places)
        assert counts["refused"] > 50, (name, counts)
    assert check((expected, vocabulary)) is None
