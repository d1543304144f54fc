"""Damaged and hostile weight files: each is a sentence that names the file, and nothing in it is run."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_helpers import INDEX, WEIGHTS, edit_records, edit_weights, load, make_model
from safetensors.torch import load_file, save_file

from persimmon_ext.checkpoints import CheckpointError, loading, reading, save_pretrained


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


def pickled(folder: Path, content: Any) -> Path:
    """Replaces the weights of `folder` by `content` in a pytorch_model.bin."""
    (folder / WEIGHTS).unlink()
    torch.save(content, folder / "pytorch_model.bin")
    return folder


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
        "name", ["/etc/passwd", "../x.safetensors", "a/../../x.safetensors", "..", "", ".", "a\0b", 3, None, ["a"]]
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
    """Linked files are how a Hugging Face cache looks; they load."""

    def test_snapshot_of_links(self, sharded: Path, tmp_path: Path) -> None:
        snapshot = tmp_path / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        for path in sharded.iterdir():
            (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
        assert torch.equal(load(snapshot).lm_head.weight, make_model().lm_head.weight)

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


class RunsACommand:
    """Unpickles to the result of os.system: what a hostile .bin holds."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


class TestPickle:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_does_not_run(self, folder: Path, tmp_path: Path, zipped: bool) -> None:
        (folder / WEIGHTS).unlink()
        content = {"lm_head.weight": torch.ones(2), "evil": RunsACommand(f"touch {tmp_path}/ran")}
        torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            CheckpointError, match=r"pytorch_model\.bin was refused: it asks for posix\.system.*Nothing was"
        ):
            load(folder)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("kept", [0, 1, 100, 3000, -1])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_truncated(self, folder: Path, kept: int, zipped: bool) -> None:
        (folder / WEIGHTS).unlink()
        path = folder / "pytorch_model.bin"
        torch.save(make_model().state_dict(), path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin (is not a readable|was refused)"):
            load(folder)

    @pytest.mark.parametrize("content", [b"garbage", b"\x80\x02.", b"PK\x03\x04" + b"\0" * 100])
    def test_garbage(self, folder: Path, content: bytes) -> None:
        (folder / WEIGHTS).unlink()
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not a readable torch\.save file"):
            load(folder)

    def test_compressed(self, folder: Path) -> None:
        path = pickled(folder, make_model().state_dict()) / "pytorch_model.bin"
        edit_records(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is compressed"):
            load(folder)

    def test_a_record_shorter_than_its_tensor(self, folder: Path) -> None:
        path = pickled(folder, make_model().state_dict()) / "pytorch_model.bin"
        edit_records(path, lambda name, content: content[:-4] if name.endswith("data/0") else content)
        with pytest.raises(CheckpointError, match=r"dense tensors, which it does not at 'model\.embed_tokens\.weight'"):
            load(folder)

    @pytest.mark.parametrize("order", [b"big", b"", b"litt\xff"])
    def test_another_byte_order(self, folder: Path, order: bytes) -> None:
        path = pickled(folder, make_model().state_dict()) / "pytorch_model.bin"
        edit_records(path, lambda name, content: order if name.endswith("byteorder") else content)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin holds values in the byte order '.*', but this"):
            load(folder)

    def test_no_dictionary(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match=r"must hold a dictionary of tensors, but holds a list"):
            load(pickled(folder, [torch.ones(2)]))

    def test_empty_dictionary(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin holds no tensors"):
            load(pickled(folder, {}))

    @pytest.mark.parametrize(
        "value", [3, "text", {"nested": torch.ones(1)}, torch.eye(2).to_sparse(), torch.ones(2, device="meta")]
    )
    def test_value_that_is_no_dense_tensor(self, folder: Path, value: Any) -> None:
        with pytest.raises(CheckpointError, match=r"must map names to dense tensors, which it does not at 'step'"):
            load(pickled(folder, {"lm_head.weight": torch.ones(2), "step": value}))

    def test_name_that_is_no_string(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match="which it does not at 7"):
            load(pickled(folder, {7: torch.ones(2)}))

    def test_integers(self, folder: Path) -> None:
        state = {**make_model().state_dict(), "lm_head.weight": torch.ones(40, 16, dtype=torch.int32)}
        with pytest.raises(
            CheckpointError, match=r"Tensor lm_head\.weight in .*\.bin has dtype torch\.int32; weights must"
        ):
            load(pickled(folder, state))
