"""Saving Hugging Face folders: which files, in which shards, and what a failure leaves behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_helpers import assert_same_tensors, contents, make_model, unmarked
from safetensors import safe_open

from persimmon_ext.checkpoints import load_pretrained, save_pretrained
from persimmon_ext.checkpoints.targets import parse_size
from persimmon_ext.heads import PersimmonForCausalLM


def test_config_says_class_and_dtype_and_the_models_own_is_untouched(tmp_path: Path) -> None:
    model = make_model().to(torch.bfloat16)
    save_pretrained(model, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["PersimmonForCausalLM"]
    assert written["dtype"] == "bfloat16"
    assert model.config.architectures is None


def test_shards_and_index(tmp_path: Path) -> None:
    model = make_model()
    save_pretrained(model, tmp_path, max_shard_size="4KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert names == [f"model-{number:05}-of-{len(names):05}.safetensors" for number in range(1, len(names) + 1)]
    assert len(names) > 2
    state = model.state_dict()
    assert index["weight_map"].keys() == state.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
    for name in names:
        with safe_open(tmp_path / name, framework="pt") as file:
            assert file.metadata().pop("format") == "pt"
            sizes = [file.get_tensor(key).nbytes for key in file.keys()]  # noqa: SIM118, not a dict
        assert sum(sizes) <= 4000 or len(sizes) == 1


@pytest.mark.parametrize("sizes", [("5GB", 3000), (3000, "5GB"), (3000, 6000)])
def test_saving_again_leaves_only_the_new_files(tmp_path: Path, sizes: tuple[Any, Any]) -> None:
    fresh = tmp_path / "fresh"
    model = make_model(seed=1)
    save_pretrained(model, fresh, max_shard_size=sizes[1])
    save_pretrained(make_model(), tmp_path / "used", max_shard_size=sizes[0])
    (tmp_path / "used" / "notes.txt").write_text("kept")
    save_pretrained(model, tmp_path / "used", max_shard_size=sizes[1])
    expected = {**contents(fresh), "notes.txt": b"kept"}
    assert unmarked(contents(tmp_path / "used")) == expected
    assert_same_tensors(model, load_pretrained(PersimmonForCausalLM, tmp_path / "used"))


def test_state_dict_replaces_the_models(tmp_path: Path) -> None:
    model, other = make_model(), make_model(seed=1)
    save_pretrained(model, tmp_path, state_dict=other.state_dict())
    assert_same_tensors(other, load_pretrained(PersimmonForCausalLM, tmp_path))


def test_views_of_one_storage_are_saved_apart(tmp_path: Path) -> None:
    model = make_model()
    state = model.state_dict()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    save_pretrained(model, tmp_path, state_dict=state)
    loaded = load_pretrained(PersimmonForCausalLM, tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.model.embed_tokens.weight)


def test_files_have_the_rights_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_pretrained(make_model(), tmp_path, max_shard_size=3000)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_parents_are_made(tmp_path: Path) -> None:
    save_pretrained(make_model(), str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b" / "model.safetensors").exists()


def test_pickles_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only safetensors files are written"):
        save_pretrained(make_model(), tmp_path, safe_serialization=False)
    assert not list(tmp_path.iterdir())


def test_target_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file"):
        save_pretrained(make_model(), tmp_path / "file")


def test_meta_tensors_have_no_values(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"meta device have no values to save: model\.embed_tokens\.weight"):
        save_pretrained(make_model().to("meta"), tmp_path)


def test_state_dict_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"got int for 'lm_head\.weight'"):
        save_pretrained(make_model(), tmp_path, state_dict={"lm_head.weight": 3})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state.clear(), r"it lacks model\.embed_tokens\.weight, .* and 26 more\.$"),
        (lambda state: state.pop("lm_head.weight"), r"it lacks lm_head\.weight\.$"),
        (lambda state: state.update(more=torch.ones(1)), "it has more"),
        (lambda state: state.update({"lm_head.weight": torch.ones(40, 15)}), r"lm_head\.weight \[40, 15\] instead of"),
        (
            lambda state: state.update({"lm_head.weight": torch.eye(40, 16).to_sparse()}),
            "Only dense tensors can be saved",
        ),
        (
            lambda state: state.update({"lm_head.weight": torch.ones(40, 16).int()}),
            r"dtype torch\.int32 can't be saved",
        ),
    ],
)
@pytest.mark.parametrize("trimmed", [False, True])
def test_state_dict_that_would_not_load(tmp_path: Path, change: Any, match: str, trimmed: bool) -> None:
    model = make_model()
    save_pretrained(model, tmp_path)
    if trimmed:
        model.trim_vocab(ids=[5, 9])
    state = dict(model.state_dict())
    change(state)
    with pytest.raises(ValueError, match=match):
        save_pretrained(model, tmp_path, state_dict=state)
    assert_same_tensors(make_model(), load_pretrained(PersimmonForCausalLM, tmp_path))


def test_negated_views(tmp_path: Path) -> None:
    model = make_model()
    state = {**model.state_dict(), "lm_head.weight": torch._neg_view(model.lm_head.weight.detach())}
    save_pretrained(model, tmp_path, state_dict=state)
    assert torch.equal(load_pretrained(PersimmonForCausalLM, tmp_path).lm_head.weight, -model.lm_head.weight)


@pytest.mark.parametrize(
    ("dtypes", "common"), [(("bfloat16", "float32"), "float32"), (("bfloat16", "float16"), "float32")]
)
def test_a_mixture_of_dtypes_loses_nothing(tmp_path: Path, dtypes: tuple[str, str], common: str) -> None:
    model = make_model().to(getattr(torch, dtypes[0]))
    model.model.final_layernorm.to(getattr(torch, dtypes[1])).weight.data.fill_(1.0009765625)
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(PersimmonForCausalLM, tmp_path)
    assert loaded.config.dtype == common
    assert_same_tensors(model.to(getattr(torch, common)), loaded)


def test_model_without_config(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"Linear\.config must be a PersimmonConfig, got None"):
        save_pretrained(torch.nn.Linear(1, 1), tmp_path)


def test_shard_sizes() -> None:
    assert [parse_size(size) for size in (7, "7B", "2KB", "1.5 MB", "5gb", "1KiB", "2GiB")] == [
        7,
        7,
        2000,
        1_500_000,
        5_000_000_000,
        1024,
        2**31,
    ]
    for bad in ("", "5", "GB", "5 apples", "-5GB", "0GB", 0, -1, "infGB"):
        with pytest.raises(ValueError, match="max_shard_size must be a number of bytes above 0"):
            parse_size(bad)
    for wrong in (5.0, None, True):
        with pytest.raises(TypeError, match="max_shard_size must be an int or a string"):
            parse_size(wrong)  # type: ignore[arg-type]
