"""Saving over a checkpoint, looked at between any two of its steps: a reader that knows nothing of this library finds
the old model, the new one, or none. Never some of each."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoint_helpers import INDEX, WEIGHTS, assert_same_tensors, load, make_model

OLD, NEW, NONE = "old", "new", "none"


class StoppedError(BaseException):
    """Stands for the death of the process."""


def stopping_before(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Lets the `step`-th call that renames or removes a file raise StoppedError, and every one after it. What was
    called is noted in the list."""
    done: list[str] = []

    def stopping(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if len(done) >= step:
                raise StoppedError
            done.append(function.__name__)
            return function(*arguments, **options)

        return call

    for name in ("replace", "unlink"):
        monkeypatch.setattr(os, name, stopping(getattr(os, name)))
    return done


def found_by_transformers(folder: Path, old: Any, new: Any) -> str:
    """Which of the two models is there, by config and every weight. None is one that transformers doesn't read."""
    if not any((folder / name).exists() for name in (WEIGHTS, INDEX)):
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            transformers.PersimmonForCausalLM.from_pretrained(folder)
        return NONE
    found = transformers.PersimmonForCausalLM.from_pretrained(folder)
    matches = [
        name
        for name, model in ((OLD, old), (NEW, new))
        if model is not None
        and found.config.rope_parameters["rope_theta"] == model.config.rope_parameters["rope_theta"]
        and all(torch.equal(tensor, found.state_dict()[key]) for key, tensor in model.state_dict().items())
    ]
    assert len(matches) == 1, "a mixture of two models"
    return matches[0]


def moments(before: Path, new: Any, size: int | str, look: Callable[[Path, bool], str]) -> list[str]:
    """What `look`, given the folder and whether it has a journal, says of a copy of `before` in which the save of `new`
    stopped before its first step, its second, and so on to its end."""
    seen: list[str] = []
    ended = False
    while not ended:
        folder = before.parent / str(len(seen))
        shutil.copytree(before, folder)
        with pytest.MonkeyPatch.context() as patch:
            done = stopping_before(patch, len(seen))
            try:
                new.save_pretrained(folder, max_shard_size=size)
                ended = True
            except StoppedError:
                pass
        assert len(done) < 50
        seen.append(look(folder, any(folder.glob(".saving-*/files.json"))))
    assert len(seen) > 4
    return seen


@pytest.mark.parametrize("theta", [25000.0, 300.0])
@pytest.mark.parametrize("sizes", [("5GB", "5GB"), ("5GB", 6000), (6000, "5GB"), (6000, 6000), (6000, 9000)])
def test_every_moment_of_a_save(tmp_path: Path, sizes: tuple[Any, Any], theta: float) -> None:
    """With an equal config, there is a model at all times."""
    old, new = make_model(), make_model(seed=1, rope_theta=theta)
    old.save_pretrained(tmp_path / "before", max_shard_size=sizes[0])

    def look(folder: Path, journal: bool) -> str:
        found = found_by_transformers(folder, old, new)
        # And who loads it with this library has a whole one: the new one, once a journal says so.
        assert_same_tensors(new if journal or found == NEW else old, load(folder))
        return found

    seen = moments(tmp_path / "before", new, sizes[1], look)
    assert seen == sorted(seen, key=[OLD, NONE, NEW].index), seen
    assert (NONE in seen) == (theta != 25000.0)
    assert {OLD, NEW} <= set(seen)


@pytest.mark.parametrize("to_quantized", [False, True])
def test_every_moment_of_a_save_of_another_kind(tmp_path: Path, to_quantized: bool) -> None:
    """Between int8 and 16 bits, whose files have different names: transformers reads one of them, or nothing."""
    sizes = {"hidden_size": 64, "intermediate_size": 64}
    plain, quantized = make_model(**sizes), make_model(seed=1, **sizes).quantize("int8")
    old, new = (plain, quantized) if to_quantized else (quantized, plain)
    old.save_pretrained(tmp_path / "before", max_shard_size=30_000)

    def look(folder: Path, journal: bool) -> str:
        found = found_by_transformers(folder, *((plain, None) if to_quantized else (None, plain)))
        state = json.loads((folder / "config.json").read_text()).get("quantization")
        assert_same_tensors(new if journal or (state is not None) == to_quantized else old, load(folder))
        return found

    seen = moments(tmp_path / "before", new, 30_000, look)
    assert seen == sorted(seen, key=[OLD, NONE, NEW].index), seen
    assert set(seen) == ({OLD, NONE} if to_quantized else {NONE, NEW})


def test_shards_of_different_saves_have_different_names(tmp_path: Path) -> None:
    """So that one who has read the old index never reads shards of the new model: the old ones are there, or gone."""
    names: set[str] = set()
    for seed in range(4):
        make_model(seed=seed).save_pretrained(tmp_path, max_shard_size=6000)
        shards = {path.name for path in tmp_path.glob("model-*.safetensors")}
        assert len(shards) > 2
        assert not shards & names
        names |= shards
    assert "model-00001-of-00005.safetensors" in names  # of the first
    transformers.PersimmonForCausalLM.from_pretrained(tmp_path).save_pretrained(tmp_path, max_shard_size=9000)
    assert not {path.name for path in tmp_path.iterdir()} & names, "transformers clears away the shards"
    assert_same_tensors(make_model(seed=3), load(tmp_path))
