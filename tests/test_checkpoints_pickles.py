"""Pickled weights: which load, and that damaged and hostile ones are a sentence and run nothing."""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_helpers import WEIGHTS, assert_same_tensors, edit_records, load, make_model

from persimmon_ext.checkpoints import CheckpointError, save_pretrained
from persimmon_ext.checkpoints.reading import open_weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder with one weight file."""
    save_pretrained(make_model(), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def pickled(folder: Path, content: Any, zipped: bool = True) -> Path:
    """Replaces the weights of `folder` by `content` in a pytorch_model.bin."""
    (folder / WEIGHTS).unlink()
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    return folder


class RunsACommand:
    """Unpickles to the result of os.system: what a hostile .bin holds."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


class Rebuilt:
    """Unpickles to a tensor of any size and strides over a storage."""

    def __init__(self, storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.arguments = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


@pytest.mark.parametrize("zipped", [True, False])
class TestTensors:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_layouts(self, folder: Path, zipped: bool, dtype: torch.dtype) -> None:
        """Transposed, negated, repeated, a part of a storage, a parameter, and without elements."""
        tensors = {
            "transposed": torch.randn(5, 7).T,
            "negated": torch._neg_view(torch.randn(3, 4)),
            "both": torch._neg_view(torch.randn(3, 4).T),
            "repeated": torch.randn(1).expand(3, 4),
            "part": torch.randn(10, 10)[3:5, 2:],
            "strided": torch.randn(10, 10)[::3, ::2],
            "parameter": torch.nn.Parameter(torch.randn(3)),
            "scalar": torch.randn(()),
            "empty": torch.randn(0, 5),
            "without columns": torch.randn(5, 0),
        }
        tensors = {name: tensor.to(dtype) if name != "parameter" else tensor for name, tensor in tensors.items()}
        path = pickled(folder, tensors, zipped) / "pytorch_model.bin"
        expected = torch.load(path, weights_only=True)
        with open_weights(path) as weights:
            for name, tensor in expected.items():
                assert torch.equal(weights.read(name), tensor), name
                pieces = [torch.empty(0, dtype=tensor.dtype), *weights.pieces(name)]
                assert torch.equal(torch.cat(pieces).view(tensor.shape), tensor), name

    def test_a_negated_weight(self, folder: Path, zipped: bool) -> None:
        state = make_model().state_dict()
        state["lm_head.weight"] = torch._neg_view(state["lm_head.weight"].clone())
        loaded = load(pickled(folder, state, zipped))
        assert torch.equal(loaded.lm_head.weight, -make_model().lm_head.weight)

    @pytest.mark.parametrize(
        ("offset", "shape", "strides"),
        [
            (0, (40, 16), (16, -1)),
            (0, (40, 16), (16, -2)),
            (1, (40, 16), (16, 1)),
            (0, (40, 16), (2**60, 1)),
            (-5, (40, 16), (16, 1)),
            (2**62, (40, 16), (16, 1)),
            (0, (-1, 16), (16, 1)),
            (0, (2**40, 2**40), (0, 0)),
        ],
    )
    def test_places_that_do_not_exist(
        self, folder: Path, zipped: bool, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        state: dict[str, Any] = dict(make_model().state_dict())
        state["lm_head.weight"] = Rebuilt(torch.arange(640.0)._typed_storage(), offset, shape, strides)
        with pytest.raises(CheckpointError, match=r"not at 'lm_head\.weight'|is not a readable torch\.save file"):
            load(pickled(folder, state, zipped))


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


class TestLegacy:
    """Files of torch before 1.6."""

    def test_another_byte_order(self, folder: Path) -> None:
        path = pickled(folder, make_model().state_dict(), zipped=False) / "pytorch_model.bin"
        content = path.read_bytes()
        swapped = content.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89", 1)
        assert swapped != content
        path.write_bytes(swapped)
        with pytest.raises(CheckpointError, match="holds values in the byte order 'big', but this machine's is"):
            load(folder)

    def test_values_cut_short(self, folder: Path) -> None:
        path = pickled(folder, make_model().state_dict(), zipped=False) / "pytorch_model.bin"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match="isn't as long as the pickle says"):
            load(folder)

    def test_shared_storages(self, folder: Path) -> None:
        model = make_model()
        both = torch.stack([model.lm_head.weight.detach(), model.model.embed_tokens.weight.detach()])
        state = {**model.state_dict(), "lm_head.weight": both[0], "model.embed_tokens.weight": both[1]}
        assert_same_tensors(model, load(pickled(folder, state, zipped=False)))
