"""Every checkpoint that cannot be loaded is a sentence that names what is wrong, and never runs anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_helpers import WEIGHTS, edit_config, edit_weights, load, make_model

from persimmon_ext import PersimmonForCausalLM, PersimmonTokenizer, embedded_checkpoint
from persimmon_ext.checkpoints import CheckpointError, save_pretrained
from persimmon_ext.config import PersimmonConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder with one weight file."""
    save_pretrained(make_model(), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


class TestFolder:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"There is no checkpoint folder '.*nowhere'\.$"):
            load(tmp_path / "nowhere")

    @pytest.mark.parametrize("path", ["./nowhere", "../nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
    def test_paths_are_no_names_on_the_hub(self, path: str) -> None:
        with pytest.raises(FileNotFoundError, match=r"There is no checkpoint folder '.*'\.$"):
            load(path)

    def test_file(self, folder: Path) -> None:
        with pytest.raises(NotADirectoryError, match=r"but .*model\.safetensors is a file"):
            load(folder / WEIGHTS)

    def test_no_config(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"There is no config\.json in .*checkpoint"):
            load(folder)

    def test_no_weights(self, folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        with pytest.raises(
            FileNotFoundError, match=r"There are no weights in .*checkpoint: none of model\.safetensors"
        ):
            load(folder)

    def test_empty_name_and_other_types(self) -> None:
        with pytest.raises(FileNotFoundError, match="There is no"):
            load("")
        with pytest.raises(TypeError):
            load(3)


class TestTarget:
    @pytest.mark.parametrize("dtype", ["float99", "int8", "bf16", "cuda", "", torch.int64, torch.complex64])
    def test_unknown_dtype(self, folder: Path, dtype: Any) -> None:
        with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, float64, got"):
            load(folder, dtype=dtype)

    def test_dtype_of_another_type(self, folder: Path) -> None:
        with pytest.raises(TypeError, match=r"dtype must be a string or a torch\.dtype, got 16"):
            load(folder, dtype=16)

    @pytest.mark.parametrize("device", ["gpu", "", "cuda:99", "xpu:99", "cpu:x", 3.5])
    def test_device_that_does_not_exist(self, folder: Path, device: Any) -> None:
        with pytest.raises(ValueError, match=f"device {device!r} cannot be used"):
            load(folder, device=device)

    def test_meta_device(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="'meta' holds no values"):
            load(folder, device="meta")


class TestTensors:
    def test_missing(self, folder: Path) -> None:
        edit_weights(folder, lambda state: [state.pop(name) for name in list(state) if "q_layernorm" in name] and None)
        expected = r"4 tensors missing: model\.layers\.0\.self_attn\.q_layernorm\.weight \[8\], "
        with pytest.raises(CheckpointError, match=expected):
            load(folder)

    def test_many_missing_are_counted(self, folder: Path) -> None:
        edit_weights(folder, lambda state: [state.pop(name) for name in list(state) if "layers" in name] and None)
        with pytest.raises(CheckpointError, match=r"32 tensors missing: (\S+ \[[\d, ]+\](, | and )){10}22 more"):
            load(folder)

    def test_unexpected(self, folder: Path) -> None:
        edit_weights(folder, lambda state: state.update({"model.layers.0.adapter.weight": torch.ones(2)}))
        with pytest.raises(CheckpointError, match=r"1 unexpected tensor: model\.layers\.0\.adapter\.weight"):
            load(folder)

    @pytest.mark.parametrize("shape", [(16, 40), (40, 17), (640,), (), (1, 40, 16), (0,)])
    def test_wrong_shape(self, folder: Path, shape: tuple[int, ...]) -> None:
        edit_weights(folder, lambda state: state.update({"lm_head.weight": torch.ones(shape)}))
        with pytest.raises(CheckpointError) as caught:
            load(folder)
        assert f"1 tensor of another shape: lm_head.weight {list(shape)} instead of [40, 16]" in str(caught.value)

    def test_everything_at_once_is_one_message(self, folder: Path) -> None:
        def edit(state: dict[str, torch.Tensor]) -> None:
            state["strange"] = state.pop("model.final_layernorm.bias")
            state["lm_head.weight"] = torch.ones(1)

        edit_weights(folder, edit)
        with pytest.raises(CheckpointError) as caught:
            load(folder)
        assert str(caught.value) == (
            f"The checkpoint {folder} does not fit PersimmonForCausalLM. "
            "1 tensor missing: model.final_layernorm.bias [16]; "
            "1 tensor of another shape: lm_head.weight [1] instead of [40, 16]; 1 unexpected tensor: strange."
        )

    def test_config_of_another_size(self, folder: Path) -> None:
        config = PersimmonConfig.from_pretrained(folder)
        config.num_hidden_layers = 3
        with pytest.raises(CheckpointError, match=r"16 tensors missing: model\.layers\.2\."):
            load(folder, config=config)


def test_a_config_nested_without_end(tmp_path: Path) -> None:
    save_pretrained(make_model(), tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json' is not valid JSON"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
def test_sizes_beyond_everything(folder: Path, name: str) -> None:
    edit_config(folder, **{name: 10**18})
    with pytest.raises(CheckpointError, match=rf"The config says {name} 10{{18}}, but the checkpoint .* has 36 tensor"):
        load(folder)


def test_labels_beyond_everything(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    for name in ("id2label", "label2id"):
        fields.pop(name, None)
    (folder / "config.json").write_text(json.dumps({**fields, "num_labels": 10**12}))
    with pytest.raises(ValueError, match="num_labels must be at most 1048576, got 1000000000000"):
        load(folder)


class TestTokenizer:
    """Fewer tokens than rows are padding; more are another model's tokenizer."""

    def with_tokenizer(self, folder: Path, rows: int) -> int:
        """Gives `folder` a model with `rows` and the embedded tokenizer; the number of its tokens."""
        tokenizer = PersimmonTokenizer.from_pretrained(embedded_checkpoint())
        save_pretrained(make_model(vocab_size=rows), folder)
        tokenizer.save_pretrained(folder)
        return len(tokenizer)

    def test_too_large(self, tmp_path: Path) -> None:
        tokens = self.with_tokenizer(tmp_path, 4095)
        with pytest.raises(ValueError, match=rf"The tokenizer in .* has {tokens} tokens, but .* has only 4095"):
            load(tmp_path)

    def test_added_tokens_count(self, tmp_path: Path) -> None:
        tokens = self.with_tokenizer(tmp_path, 4096)
        assert load(tmp_path).config.vocab_size == tokens == 4096
        file = tmp_path / "tokenizer_config.json"
        fields = json.loads(file.read_text())
        fields["added_tokens_decoder"][str(tokens)] = {"content": "<one more>", "special": True}
        file.write_text(json.dumps(fields))
        with pytest.raises(ValueError, match="has 4097 tokens, but the model's vocabulary has only 4096"):
            load(tmp_path)

    @pytest.mark.parametrize("content", [None, b"version https://git-lfs.github.com/spec/v1"])
    def test_padded_and_unreadable(self, tmp_path: Path, content: bytes | None) -> None:
        self.with_tokenizer(tmp_path, 4200)
        if content is not None:
            (tmp_path / "tokenizer.model").write_bytes(content)
        assert load(tmp_path).config.vocab_size == 4200


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "{", "\ud800", "[]"])
def test_a_generation_config_that_is_none(folder: Path, content: str) -> None:
    (folder / "generation_config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"generation_config\.json (is not JSON|must hold an object)"):
        PersimmonForCausalLM.from_pretrained(folder)


def test_names_that_no_terminal_takes(tmp_path: Path) -> None:
    make_model().config.save_pretrained(tmp_path)
    torch.save({**make_model().state_dict(), "\ud800": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"1 unexpected tensor: \\ud800") as caught:
        load(tmp_path)
    assert str(caught.value).encode()
