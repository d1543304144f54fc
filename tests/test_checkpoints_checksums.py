"""Checksums: what is written, that pieces in any order make up the whole, and what damage becomes."""

from __future__ import annotations

import itertools
import random
import zlib
from pathlib import Path

import pytest
import torch
from checkpoint_helpers import WEIGHTS, assert_same_tensors, load, make_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from persimmon_ext import CheckpointError, PersimmonForCausalLM
from persimmon_ext.checkpoints.checksums import Tally
from persimmon_ext.checkpoints.inspection import open_checkpoint, tensor_facts

BIN = "pytorch_model.bin"


def damage(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("seed", range(5))
def test_pieces_in_any_order(seed: int) -> None:
    numbers = random.Random(seed)
    content = numbers.randbytes(5000)
    cuts = sorted({0, *(numbers.randrange(1, 5000) for _ in range(seed * 7)), 5000})
    pieces = list(itertools.pairwise(cuts))
    numbers.shuffle(pieces)
    tally = Tally(5000)
    for _ in range(2):  # it may be read again
        found = [tally.add(first, memoryview(content[first:last])) for first, last in pieces]
        assert found[:-1] == [None] * (len(pieces) - 1)
        assert found[-1] == zlib.crc32(content)


def test_what_is_written(tmp_path: Path) -> None:
    make_model().bfloat16().save_pretrained(tmp_path)
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
        for name in file.keys():  # noqa: SIM118, not a dict
            content = file.get_tensor(name).view(torch.uint8).numpy().tobytes()
            assert metadata[f"crc32:{name}"] == f"{zlib.crc32(content):08x}"


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_damaged_values(tmp_path: Path, dtype: str | None, quantization: str | None) -> None:
    model = make_model(hidden_size=64, intermediate_size=64)
    model.save_pretrained(tmp_path)
    damage(tmp_path / WEIGHTS, -1)
    last = list(load_file(tmp_path / WEIGHTS))[-1]
    with pytest.raises(CheckpointError, match=rf"Tensor {last} in .*model\.safetensors is damaged: .*verify=False"):
        load(tmp_path, dtype=dtype, quantization=quantization)
    loaded = PersimmonForCausalLM.from_pretrained(tmp_path, dtype=dtype, quantization=quantization, verify=False)
    assert loaded.model.embed_tokens.weight.shape == (40, 64)


def test_while_looking_into_it(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    damage(tmp_path / WEIGHTS, -1)
    with open_checkpoint(tmp_path) as opened:
        name = "lm_head.weight"
        with pytest.raises(CheckpointError, match=f"Tensor {name} in .* is damaged"):
            tensor_facts(name, opened.infos[name], opened.sources[name])


def test_a_program_that_keeps_the_metadata(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    file = tmp_path / WEIGHTS
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    state = load_file(file)
    save_file(state, file, {**metadata, "crc32:gone": "00000000"})
    with pytest.raises(CheckpointError, match=r"checksums that don't go with its tensors, at gone: .*verify=False"):
        load(tmp_path)
    save_file(state, file, {**metadata, "crc32:lm_head.weight": "zz"})
    with pytest.raises(CheckpointError, match=r"don't go with its tensors, at lm_head\.weight"):
        load(tmp_path)
    assert_same_tensors(make_model(), load(tmp_path, verify=False))


@pytest.mark.parametrize("at", ["values", "structure"])
def test_damaged_pickles(tmp_path: Path, at: str) -> None:
    model = make_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / BIN)
    content = (tmp_path / BIN).read_bytes()
    values = model.lm_head.weight.detach().numpy().tobytes()
    damage(tmp_path / BIN, content.index(values) + 7 if at == "values" else content.index(b"lm_head.weight") + 100)
    match = r"Tensor lm_head\.weight in .* is damaged" if at == "values" else r"checksum of its record .*data\.pkl"
    with pytest.raises(CheckpointError, match=match):
        load(tmp_path)


def test_pickles_without_checksums(tmp_path: Path) -> None:
    model = make_model()
    model.config.save_pretrained(tmp_path)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(model.state_dict(), tmp_path / BIN)
    finally:
        torch.serialization.set_crc32_options(before)
    assert_same_tensors(model, load(tmp_path))


def test_views_of_one_storage(tmp_path: Path) -> None:
    """Their record has a checksum, of more than either of them: it isn't compared."""
    model = make_model()
    model.config.save_pretrained(tmp_path)
    both = torch.stack([model.lm_head.weight.detach(), model.model.embed_tokens.weight.detach()])
    state = {**model.state_dict(), "lm_head.weight": both[0], "model.embed_tokens.weight": both[1]}
    torch.save(state, tmp_path / BIN)
    assert_same_tensors(model, load(tmp_path))
