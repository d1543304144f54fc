"""Damaged and hostile weight files: each is a sentence that names the file, and nothing in it is run."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_helpers import INDEX, WEIGHTS, edit_weights, load, make_model
from safetensors.torch import load_file, save_file

from persimmon_ext import GenerationConfig, PersimmonConfig, PersimmonTokenizer, embedded_checkpoint
from persimmon_ext.checkpoints import CheckpointError, loading, reading, save_pretrained
from persimmon_ext.checkpoints.inspection import open_checkpoint
from persimmon_ext.tokenizer_files import TOKENIZER_FILES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder with one weight file."""
    save_pretrained(make_model(), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A sound folder with several weight files."""
    save_pretrained(make_model(), tmp_path / "sharded", max_shard_size=5000)
    return tmp_path / "sharded"


def edit_index(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((folder / INDEX).read_text())
    edit(index)
    (folder / INDEX).write_text(json.dumps(index))


class TestSafetensors:
    @pytest.mark.parametrize("kept", [0, 3, 8, 100, -1, -100])
    def test_truncated(self, folder: Path, kept: int) -> None:
        whole = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match=r"model\.safetensors is not a readable safetensors file"):
            load(folder)

    def test_header_length_beyond_the_file(self, folder: Path) -> None:
        whole = (folder / WEIGHTS).read_bytes()
        for length in (len(whole), 2**63, 2**64 - 1):
            (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + whole[8:])
            with pytest.raises(
                CheckpointError, match=f"header claims {length} bytes, but only {len(whole) - 8} follow"
            ):
                load(folder)

    def test_a_tensor_twice(self, folder: Path) -> None:
        whole = (folder / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", whole[:8])[0]
        header = whole[8 : 8 + length].rstrip()
        entry = json.dumps({"lm_head.weight": json.loads(header)["lm_head.weight"]})
        header = header[:-1] + b"," + entry[1:].encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + whole[8 + length :])
        with pytest.raises(CheckpointError, match=r"is not a readable .*: it has lm_head\.weight twice"):
            load(folder)

    def test_many_names_twice(self, folder: Path) -> None:
        """Seconds, where each were compared with each."""
        names = [f"t{number}" for number in range(20_000)]
        entries = ",".join(f'"{name}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for name in names * 2)
        header = f"{{{entries}}}".encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(CheckpointError, match=r"it has t0, t1, .* and 19990 more twice"):
            load(folder)

    def test_a_file_that_shrinks_while_it_is_read(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = reading.open_weights

        def shrinking(path: Path, **options: Any) -> Any:
            weights = opened(path, **options)
            if path.stat().st_size > 3000 and "reading" in calls:
                os.truncate(path, 3000)
            calls.append("reading")
            return weights

        calls: list[str] = []
        monkeypatch.setattr(loading, "open_weights", shrinking)
        with pytest.raises(CheckpointError, match=r"model\.safetensors became shorter while it was read"):
            load(folder)

    def test_trailing_bytes(self, folder: Path) -> None:
        with (folder / WEIGHTS).open("ab") as file:
            file.write(b"more")
        with pytest.raises(CheckpointError, match="its header does not describe the bytes that follow"):
            load(folder)

    @pytest.mark.parametrize(
        "content", [b"\0" * 64, b"garbage " * 20, struct.pack("<Q", 2) + b"{}", b"version https://git"]
    )
    def test_garbage(self, folder: Path, content: bytes) -> None:
        (folder / WEIGHTS).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors (is not a readable|holds no tensors)"):
            load(folder)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn])
    def test_dtype_that_weights_cannot_have(self, folder: Path, dtype: torch.dtype) -> None:
        edit_weights(folder, lambda state: state.update({"lm_head.weight": torch.ones(40, 16).to(dtype)}))
        with pytest.raises(
            CheckpointError, match=r"Tensor lm_head\.weight in .*model\.safetensors has dtype \w+; weights"
        ):
            load(folder)


class TestIndex:
    @pytest.mark.parametrize("content", ["", "not json", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass")])
    def test_not_json(self, sharded: Path, content: str | bytes) -> None:
        (sharded / INDEX).write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json is not valid JSON"):
            load(sharded)

    @pytest.mark.parametrize("content", ["[]", "3", "null", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
    def test_no_weight_map(self, sharded: Path, content: str) -> None:
        (sharded / INDEX).write_text(content)
        with pytest.raises(CheckpointError, match=r"index\.json has no weight_map"):
            load(sharded)

    def test_shard_missing(self, sharded: Path) -> None:
        shard = sorted(sharded.glob("model-*.safetensors"))[1]
        shard.unlink()
        with pytest.raises(FileNotFoundError, match=rf"index\.json names {shard.name}, which .*sharded does not have"):
            load(sharded)

    def test_shard_is_not_a_regular_file(self, sharded: Path) -> None:
        shard = sorted(sharded.glob("model-*.safetensors"))[1]
        shard.unlink()
        os.mkfifo(shard)  # opening it would wait for ever
        with pytest.raises(FileNotFoundError, match=shard.name):
            load(sharded)

    @pytest.mark.parametrize(
        "name",
        [
            *["/etc/passwd", "../x.safetensors", "a/../../x.safetensors", "..", "", ".", "a\0b", 3, None, ["a"]],
            *["\ud800", "\ud800/x"],
        ],
    )
    def test_name_outside_the_folder(self, sharded: Path, name: Any) -> None:
        edit_index(sharded, lambda index: index["weight_map"].update({"lm_head.weight": name}))
        with pytest.raises(CheckpointError, match=r"index\.json names the file .*, which is not inside .*sharded"):
            load(sharded)

    def test_name_through_a_linked_folder(self, sharded: Path, folder: Path) -> None:
        (sharded / "link").symlink_to(folder)
        edit_index(sharded, lambda index: index["weight_map"].update({"lm_head.weight": f"link/{WEIGHTS}"}))
        with pytest.raises(CheckpointError, match="which is not inside"):
            load(sharded)

    def test_name_through_a_link_to_itself(self, sharded: Path) -> None:
        (sharded / "loop").symlink_to("loop")
        edit_index(sharded, lambda index: index["weight_map"].update({"lm_head.weight": "loop/x"}))
        with pytest.raises(CheckpointError, match="which is not inside"):
            load(sharded)

    def test_very_long_name(self, sharded: Path) -> None:
        edit_index(sharded, lambda index: index["weight_map"].update({"lm_head.weight": "a" * 5000}))
        with pytest.raises(FileNotFoundError, match=r"index\.json names a{5000}"):
            load(sharded)

    def test_tensor_in_another_shard(self, sharded: Path) -> None:
        first = sorted(sharded.glob("model-*.safetensors"))[0].name
        name = "model.layers.1.mlp.dense_h_to_4h.bias"
        edit_index(sharded, lambda index: index["weight_map"].update({name: first}))
        with pytest.raises(CheckpointError, match=rf"places tensor {name} in {first}, but model-.* holds it"):
            load(sharded)

    def test_tensor_in_no_shard(self, sharded: Path) -> None:
        first = sorted(sharded.glob("model-*.safetensors"))[0].name
        edit_index(sharded, lambda index: index["weight_map"].update({"extra": first}))
        with pytest.raises(CheckpointError, match=rf"places tensor extra in {first}, which does not hold it"):
            load(sharded)

    def test_tensor_twice(self, sharded: Path) -> None:
        first, second, *_ = sorted(sharded.glob("model-*.safetensors"))
        save_file({**load_file(second), **load_file(first)}, second)
        with pytest.raises(CheckpointError, match=r"both hold model\.embed_tokens\.weight"):
            load(sharded)


class TestLinks:
    """Linked files are how a Hugging Face cache looks, and only there do they lead out of the folder."""

    def snapshot(self, folder: Path, cache: Path, blobs: str = "models--a--b/blobs") -> Path:
        """A snapshot of `folder` as the Hub's cache has it, of links to its files, which go to `blobs`."""
        snapshot = cache / "models--a--b" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (cache / blobs).mkdir(parents=True)
        for number, path in enumerate(folder.iterdir()):
            blob = path.rename(cache / blobs / str(number))
            (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
        return snapshot

    @pytest.mark.parametrize("linked", [False, True])
    def test_snapshot_in_the_cache(self, sharded: Path, tmp_path: Path, linked: bool) -> None:
        snapshot = self.snapshot(sharded, tmp_path / "cache")
        if linked:  # the whole cache
            (tmp_path / "link").symlink_to(tmp_path / "cache")
            snapshot = tmp_path / "link" / snapshot.relative_to(tmp_path / "cache")
        assert torch.equal(load(snapshot).lm_head.weight, make_model().lm_head.weight)

    @pytest.mark.parametrize("blobs", ["models--other/blobs", "models--a--b/else", "models--a--b/blobs/deeper"])
    def test_snapshot_of_another_models_files(self, sharded: Path, tmp_path: Path, blobs: str) -> None:
        snapshot = self.snapshot(sharded, tmp_path / "cache", blobs)
        with pytest.raises(CheckpointError, match=r"config\.json is a link to .*, outside its folder"):
            load(snapshot)

    def test_blobs_that_are_a_link(self, sharded: Path, tmp_path: Path) -> None:
        snapshot = self.snapshot(sharded, tmp_path / "cache")
        blobs = tmp_path / "cache" / "models--a--b" / "blobs"
        blobs.rename(tmp_path / "elsewhere")
        blobs.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CheckpointError, match=r"config\.json is a link to .*, outside its folder"):
            load(snapshot)

    def test_an_index_that_names_a_link(self, sharded: Path, folder: Path) -> None:
        shard = sorted(sharded.glob("model-*.safetensors"))[1]
        shard.rename(folder / "elsewhere.safetensors")
        shard.symlink_to(folder / "elsewhere.safetensors")
        with pytest.raises(CheckpointError, match=rf"names the file '{shard.name}', which is not inside .*sharded"):
            load(sharded)

    def test_a_link_inside_the_folder(self, sharded: Path) -> None:
        shard = sorted(sharded.glob("model-*.safetensors"))[1]
        (sharded / "deeper").mkdir()
        shard.rename(sharded / "deeper" / "elsewhere")
        shard.symlink_to("deeper/elsewhere")
        assert torch.equal(load(sharded).lm_head.weight, make_model().lm_head.weight)

    @pytest.mark.parametrize(
        "name",
        ["config.json", "generation_config.json", WEIGHTS, *TOKENIZER_FILES],
    )
    def test_other_files_that_are_links(self, folder: Path, tmp_path: Path, name: str) -> None:
        (tmp_path / "elsewhere").write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"{}")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CheckpointError, match=rf"{name} is a link to .*elsewhere, outside its folder; files that"):
            load(folder)
        with pytest.raises(CheckpointError, match="is a link to"), open_checkpoint(folder):
            pass

    @pytest.mark.parametrize(
        ("name", "read"),
        [
            ("config.json", PersimmonConfig.from_pretrained),
            ("generation_config.json", GenerationConfig.from_folder),
            *((name, PersimmonTokenizer.from_pretrained) for name in TOKENIZER_FILES),
        ],
        ids=str,
    )
    def test_links_for_who_reads_one_of_the_files(self, tmp_path: Path, name: str, read: Callable[[Path], Any]) -> None:
        folder = tmp_path / "folder"
        shutil.copytree(embedded_checkpoint(), folder)
        if not (folder / name).exists():
            (folder / name).write_text("{}")
        read(folder)
        (folder / name).rename(tmp_path / "elsewhere")
        (folder / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ValueError, match=rf"{name} is a link to .*elsewhere, outside its folder; files that"):
            read(folder)

    def test_an_index_that_is_a_link(self, sharded: Path, tmp_path: Path) -> None:
        (sharded / INDEX).rename(tmp_path / "elsewhere")
        (sharded / INDEX).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CheckpointError, match="is a link to"):
            load(sharded)

    def test_linked_folder(self, sharded: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(sharded)
        assert torch.equal(load(tmp_path / "link").lm_head.weight, make_model().lm_head.weight)

    def test_saving_over_a_link_leaves_its_target(self, folder: Path, tmp_path: Path) -> None:
        before = (folder / WEIGHTS).read_bytes()
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / WEIGHTS).symlink_to(folder / WEIGHTS)
        other = load(folder)
        other.lm_head.weight.data.zero_()
        save_pretrained(other, tmp_path / "other")
        assert (folder / WEIGHTS).read_bytes() == before
