"""Filling tensors on a GPU through pinned buffers, with the CPU in the GPU's place: what is copied from where, and that
no buffer is filled again before the copy out of it is done."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_helpers import make_model
from torch import Tensor
from torch.overrides import TorchFunctionMode

from persimmon_ext import PersimmonForCausalLM
from persimmon_ext.checkpoints import filling
from persimmon_ext.checkpoints.filling import Filler
from persimmon_ext.checkpoints.reading import open_weights
from persimmon_ext.quantized_layers import QuantizedLinear, empty_quantized

GPU = torch.device("cuda", 0)


class PretendedGpu(TorchFunctionMode):
    """Takes some CPU tensors for tensors on a GPU, whose copies are done when its stream is synchronised."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[int, Tensor] = {}  # kept, so that no other tensor gets its address
        self.pinned: dict[int, Tensor] = {}
        self.queue: list[Callable[[], Any]] = []
        self.runs = False  # whether what happens, happens on the GPU
        self.transfers = 0

    def empty_strided(self, shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of NaNs there."""
        tensor = torch.empty_strided(shape, strides, dtype=dtype).fill_(float("nan"))
        self.memory[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def is_there(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.memory

    def synchronize(self) -> None:
        self.runs = True
        while self.queue:
            self.queue.pop(0)()
        self.runs = False

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        if self.runs:
            return function(*arguments, **options)
        if function is Tensor.is_pinned:
            return arguments[0].untyped_storage().data_ptr() in self.pinned
        if function == Tensor.device.__get__ and self.is_there(arguments[0]):
            return GPU
        if function is Tensor.to and arguments[1:] == (GPU,):
            assert options == {"non_blocking": True}
            return self.transferred(arguments[0])
        if function is Tensor.copy_ and self.is_there(arguments[0]) and self.is_there(arguments[1]):
            self.queue.append(lambda: function(*arguments))
            return arguments[0]
        if self.queue and function.__name__ != "__get__" and any(map(self.is_there, filter(is_tensor, arguments))):
            self.synchronize()  # what a stream is given later sees what it was given before
        pinned, is_made_there = options.pop("pin_memory", False), options.get("device") == GPU
        result = function(*arguments, **{**options, **({"device": "cpu"} if is_made_there else {})})
        if pinned or is_made_there:
            (self.pinned if pinned else self.memory)[result.untyped_storage().data_ptr()] = result
        return result

    def transferred(self, source: Tensor) -> Tensor:
        assert source.untyped_storage().data_ptr() in self.pinned  # else the copy would not be asynchronous
        self.transfers += 1
        copied = self.empty_strided(source.shape, source.stride(), source.dtype)
        self.queue.append(lambda: copied.copy_(source))
        return copied


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


class OneThread:
    """A pool that does everything at once, in the thread that asks for it."""

    def __init__(self, threads: int) -> None:
        assert threads > 0

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done

    def shutdown(self, *, cancel_futures: bool) -> None:
        pass


class Progress:
    done = 0

    def update(self, size: int) -> None:
        self.done += size


@pytest.mark.parametrize("piece", [64, 300, 2**22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["safetensors", "pickle"])
def test_through_pinned_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, dtype: torch.dtype, piece: int
) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    if form == "pickle":
        file = tmp_path / "pytorch_model.bin"
        torch.save(model.state_dict(), file)
    gpu, progress = PretendedGpu(), Progress()
    monkeypatch.setattr(filling, "_PIECE", piece)
    monkeypatch.setattr(filling, "ThreadPoolExecutor", OneThread)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: gpu if device == GPU else None)
    targets: dict[str, Tensor] = {}
    with gpu, open_weights(file) as weights, Filler(progress) as filler:
        for name, tensor in model.state_dict().items():
            targets[name] = gpu.empty_strided(tensor.shape, tensor.stride(), dtype)
            filler.fill(weights, name, targets[name])
        filler.wait()
    assert not gpu.queue
    for name, tensor in model.state_dict().items():
        assert torch.equal(targets[name], tensor.to(dtype)), name
    total = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert progress.done == total
    assert gpu.transfers >= len(targets) - 2  # a pickle's two hidden-major weights are copied whole, and at once
    assert len(gpu.pinned) <= 3  # the buffer of the thread, made anew where a row didn't fit


@pytest.mark.parametrize("piece", [64, 2**22])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantised_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str, piece: int) -> None:
    """The weights go through pinned buffers, and the codes are made on the GPU."""
    model = make_model(hidden_size=64, intermediate_size=128)
    model.save_pretrained(tmp_path)
    gpu = PretendedGpu()
    monkeypatch.setattr(filling, "_PIECE", piece)
    monkeypatch.setattr(filling, "ThreadPoolExecutor", OneThread)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: gpu if device == GPU else None)
    expected = make_model(hidden_size=64, intermediate_size=128).quantize(quantization)
    with torch.device("meta"):
        empty = PersimmonForCausalLM(expected.config)
    empty_quantized(empty, quantization)
    layers = {name: layer for name, layer in empty.named_modules() if isinstance(layer, QuantizedLinear)}
    with gpu, open_weights(tmp_path / "model.safetensors") as weights, Filler(Progress()) as filler:
        for name, layer in layers.items():
            filler.quantize(weights, f"{name}.weight", layer, GPU)
        filler.wait()
    assert not gpu.queue
    assert gpu.transfers >= len(layers)
    for name, layer in layers.items():
        assert gpu.is_there(layer.codes)
        assert gpu.is_there(layer.scale)
        assert torch.equal(layer.codes, expected.get_submodule(name).codes), name
        assert torch.equal(layer.scale, expected.get_submodule(name).scale), name
