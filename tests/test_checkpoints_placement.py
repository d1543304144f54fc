"""device_map: which block goes where, and that activations follow. Several GPUs are stood in for by the meta device,
on which an operation with a tensor of another device is an error, as it is between GPUs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_helpers import CLASSES, assert_same_tensors, make_model

from persimmon_ext import DynamicCache
from persimmon_ext.checkpoints import placement

CPU, META = torch.device("cpu"), torch.device("meta")
BLOCKS = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.final_layernorm", "lm_head"]
IDS = torch.tensor([[5, 9, 30, 2, 7]])


def gpus(*sizes: int | None) -> list[tuple[torch.device, int | None]]:
    """Budgets of so many GPUs, and a CPU without a limit."""
    return [*((torch.device("cuda", index), size) for index, size in enumerate(sizes)), (CPU, None)]


def spread(sizes: list[int], budgets: list[tuple[torch.device, int | None]]) -> list[str]:
    return [str(device) for device in placement.spread(sizes, budgets)]


class TestSpread:
    def test_one_device(self) -> None:
        assert spread([1, 2, 3], gpus()) == ["cpu"] * 3
        assert spread([1, 2, 3], gpus(100)) == ["cuda:0"] * 3
        assert spread([], gpus(100)) == []

    def test_evenly(self) -> None:
        assert spread([10] * 8, gpus(1000, 1000)) == ["cuda:0"] * 4 + ["cuda:1"] * 4
        assert spread([10] * 9, gpus(1000, 1000, 1000)) == ["cuda:0"] * 3 + ["cuda:1"] * 3 + ["cuda:2"] * 3
        assert spread([21, 2, 2, 2, 2, 1, 21], gpus(1000, 1000)) == ["cuda:0"] * 3 + ["cuda:1"] * 4

    def test_what_does_not_fit_goes_on(self) -> None:
        assert spread([10] * 6, gpus(10, 1000)) == ["cuda:0"] + ["cuda:1"] * 5
        assert spread([10] * 6, gpus(20, 20)) == ["cuda:0"] * 2 + ["cuda:1"] * 2 + ["cpu"] * 2
        assert spread([30, 10], gpus(20)) == ["cpu", "cpu"]

    def test_no_room(self) -> None:
        with pytest.raises(
            RuntimeError, match=r"40 bytes of weights don't fit into the memory given: cuda:0 20, cpu 10"
        ):
            placement.spread([10] * 4, [(torch.device("cuda", 0), 20), (CPU, 10)])


class TestMap:
    def place(self, device_map: Any, max_memory: Any = None, **fields: Any) -> dict[str, str]:
        model = make_model(**fields)
        sizes = {name: tensor.nbytes for name, tensor in model.state_dict().items()}
        placed = placement.place(model, device_map, max_memory, sizes)
        return {block: str(device) for block, device in placed.items()}

    @pytest.mark.parametrize(
        "device_map",
        [
            "auto",
            "cpu",
            CPU,
            {"": "cpu"},
            {"model": "cpu", "lm_head": "cpu"},
            dict.fromkeys([*BLOCKS, "model.rotary_emb"], "cpu"),
        ],
    )
    def test_everything_on_the_cpu(self, device_map: Any) -> None:
        assert self.place(device_map) == dict.fromkeys(BLOCKS, "cpu")

    def test_the_longest_name_decides(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(placement, "parse_device", torch.device)
        placed = self.place({"": "cpu", "model.layers": "cuda:0", "model.layers.1": "cuda:1"})
        assert list(placed.values()) == ["cpu", "cuda:0", "cuda:1", "cpu", "cpu"]

    def test_auto_with_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (10**9, 10**9))
        assert set(self.place("auto").values()) == {"cuda:0", "cuda:1"}
        assert self.place("auto", {0: "1B", 1: "20KB"})["lm_head"] == "cpu"
        assert self.place("auto", {1: "1GB"}) == dict.fromkeys(BLOCKS, "cuda:1")
        tied = self.place("auto", tie_word_embeddings=True)
        assert tied["lm_head"] == tied["model.embed_tokens"] == "cuda:0"

    @pytest.mark.parametrize(
        ("device_map", "match"),
        [
            ({"model": "cpu"}, "gives no device for lm_head"),
            ({"": "cpu", "model.layers.7": "cpu"}, r"names 'model\.layers\.7', which the model doesn't have"),
            ({"": "cpu", "model.layers.1.mlp": "cpu"}, r"places 'model\.layers\.1\.mlp', but a layer is placed whole"),
            ({"": "cuda:99"}, "device 'cuda:99' cannot be used"),
            ({"": "meta"}, "'meta' holds no values"),
            ({"": "disk"}, "device 'disk' cannot be used"),
            ("balanced", "device 'balanced' cannot be used"),
        ],
    )
    def test_bad_maps(self, device_map: Any, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            self.place(device_map)

    def test_bad_limits(self) -> None:
        with pytest.raises(ValueError, match=r"max_memory names the device 5; this machine has \[\] and 'cpu'"):
            self.place("auto", {5: "1GB"})
        with pytest.raises(ValueError, match="max_memory must be a number of bytes above 0"):
            self.place("auto", {"cpu": "much"})
        with pytest.raises(ValueError, match="max_memory limits device_map='auto'"):
            self.place({"": "cpu"}, {"cpu": "1GB"})
        with pytest.raises(RuntimeError, match="don't fit into the memory given: cpu 5"):
            self.place("auto", {"cpu": 5})

    def test_a_tied_head_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(placement, "parse_device", torch.device)
        with pytest.raises(ValueError, match=r"lm_head shares its weight with model\.embed_tokens"):
            self.place({"model": "cpu", "lm_head": "cuda:0"}, tie_word_embeddings=True)


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, 0])
def test_loading(tmp_path: Path, model_class: type[Any], device_map: Any) -> None:
    model = make_model(model_class)
    model.save_pretrained(tmp_path)
    if device_map == 0:
        with pytest.raises(ValueError, match="device 0 cannot be used"):
            model_class.from_pretrained(tmp_path, device_map=device_map)
        return
    loaded = model_class.from_pretrained(tmp_path, device_map=device_map)
    assert_same_tensors(model, loaded)
    assert set(loaded.hf_device_map.values()) == {"cpu"}
    assert not any(module._forward_pre_hooks for module in loaded.modules())


def split_model(*elsewhere: str) -> Any:
    """A model whose blocks `elsewhere` are on the meta device."""
    model = make_model()
    for block in elsewhere:
        model.get_submodule(block).to(META)
    placement.connect(model, {block: META if block in elsewhere else CPU for block in BLOCKS})
    return model


@torch.no_grad()
@pytest.mark.parametrize("first", range(1, 5))
def test_activations_follow(first: int) -> None:
    model = split_model(*BLOCKS[first:])
    assert model.hf_device_map[BLOCKS[first]] == "meta"
    cache = DynamicCache(model.config)
    mask = torch.tensor([[0, 1, 1, 1, 1]])
    output = model(IDS, attention_mask=mask, past_key_values=cache, output_hidden_states=True)
    assert output.logits.device == META
    assert output.logits.shape == (1, 5, 40)
    assert cache.layers[0].keys.device == (META if first == 1 else CPU)
    assert cache.layers[1].keys.device == (META if first <= 2 else CPU)
    assert model(IDS[:, :1], past_key_values=cache).logits.shape == (1, 1, 40)


@torch.no_grad()
def test_equal_results_through_hooks() -> None:
    model = make_model()
    expected = model(IDS).logits
    hooked = copy.deepcopy(model)
    mover = placement._Mover(CPU)
    for block in BLOCKS:
        hooked.get_submodule(block).register_forward_pre_hook(mover, with_kwargs=True)
    assert torch.equal(hooked(IDS).logits, expected)
    assert torch.equal(hooked.generate(IDS, max_new_tokens=4), model.generate(IDS, max_new_tokens=4))


def test_the_head_of_another_class() -> None:
    assert placement.block_of("layers.11.mlp.dense_h_to_4h.weight") == "layers.11"
    assert placement.block_of("model.layers.0.input_layernorm.bias") == "model.layers.0"
    assert placement.block_of("score.weight") == "score"
    assert placement.block_of("lm_head.codes") == "lm_head"
