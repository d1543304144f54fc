"""Releases that can't be converted: each is a sentence, nothing in them runs, and nothing is written."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adept_releases import WEIGHTS, convert, megatron, reference_model, refused, tarred, write_release
from checkpoint_helpers import edit_records

import persimmon_ext
from persimmon_ext.checkpoints import CheckpointError
from persimmon_ext.cli import main


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path / "8b_base_model_release", reference_model())


class Hostile:
    """Unpickles to what a function returns, when it may be called."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_code_does_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    hostile = Hostile(os.system, f"touch {ran}")
    release = write_release(tmp_path / "release", reference_model(), extra={"evil": hostile})
    refused(release, r"mp_rank_00/model_optim_rng\.pt was refused: it asks for posix\.system.*Nothing was run")
    refused(tarred(release), r"was refused: it asks for posix\.system; only tensors and plain arguments")
    assert not ran.exists()


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", reference_model(), path=Hostile(Path, "x"))
    refused(release, r"it asks for pathlib\.(_local\.)?Path")


def test_truncated_weights(release: Path) -> None:
    weights = release / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-2000])
    refused(release, "is not a readable torch.save file")


def test_another_byte_order(release: Path) -> None:
    edit_records(release / WEIGHTS, lambda name, content: b"big" if name.endswith("byteorder") else content)
    refused(release, "holds values in the byte order 'big', but this machine's is")


def test_no_release(tmp_path: Path, release: Path) -> None:
    refused(tmp_path / "nowhere", "There is no release at", FileNotFoundError)
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no iter_", FileNotFoundError)
    (release / "adept_vocab.model").unlink()
    refused(release, r"holds no adept_vocab\.model", FileNotFoundError)


def test_missing_rank(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", reference_model(), 4)
    (release / "iter_0001251" / "mp_rank_01").rename(tmp_path / "elsewhere")
    refused(release, "lacks mp_rank_01")


@pytest.mark.parametrize("stated", [4, None])
@pytest.mark.parametrize("left", [1, 3])
def test_missing_last_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str], left: int, stated: int | None) -> None:
    release = write_release(tmp_path / "release", reference_model(), 4, tensor_model_parallel_size=stated)
    for number in range(left, 4):
        shutil.rmtree(release / "iter_0001251" / f"mp_rank_{number:02}")
    match = r"has other shapes than its arguments say: .*query_key_value\.weight \[\d+, 32\] instead of \[96, 32\]"
    if stated is not None:
        match += rf".*; it was saved by 4 ranks \(tensor_model_parallel_size\), of which {left} are there"
    refused(release, match)
    assert main(["inspect", str(release)]) == 1
    assert re.search(match, capsys.readouterr().err)


def test_a_release_that_was_merged_since(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", reference_model(), 1, tensor_model_parallel_size=8)
    assert convert(release, tmp_path / "converted").is_dir()


def test_two_tensors_that_become_one(release: Path) -> None:
    with megatron():
        content = torch.load(release / WEIGHTS, weights_only=False)
        content["model"]["lm_head.weight"] = torch.ones(1)
        torch.save(content, release / WEIGHTS)
    refused(release, r"holds .*, both of which become lm_head\.weight")


@pytest.mark.parametrize("number", ["99999999999", "9" * 200])
def test_a_rank_of_no_release(release: Path, number: str) -> None:
    (release / WEIGHTS).parent.rename(release / "iter_0001251" / f"mp_rank_{number}")
    refused(release, "holds no iter_", FileNotFoundError)


def test_ranks_that_differ(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", reference_model(), 2)
    other = reference_model()
    other.model.final_layernorm.bias.data[3] += 1
    write_release(tmp_path / "other", other, 2)
    second = Path("iter_0001251") / "mp_rank_01" / "model_optim_rng.pt"
    (release / second).write_bytes((tmp_path / "other" / second).read_bytes())
    refused(release, r"have different values of language_model\.encoder\.final_layernorm\.bias")


def test_ranks_of_different_models(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", reference_model(), 2)
    write_release(tmp_path / "other", reference_model(num_hidden_layers=1), 2)
    second = Path("iter_0001251") / "mp_rank_01" / "model_optim_rng.pt"
    (release / second).write_bytes((tmp_path / "other" / second).read_bytes())
    refused(release, r"differ in having .*layers\.1\.")


@pytest.mark.parametrize(("name", "shape"), [("final_layernorm.bias", ()), ("self_attention.dense.weight", (4,))])
def test_too_few_dimensions(release: Path, name: str, shape: tuple[int, ...]) -> None:
    with megatron():
        content = torch.load(release / WEIGHTS, weights_only=False)
        encoder = content["model"]["language_model"]["encoder"]
        encoder[next(key for key in encoder if key.endswith(name))] = torch.ones(shape)
        torch.save(content, release / WEIGHTS)
    refused(release, rf"{name} has the shapes .*: too few dimensions")


def test_a_dtype_of_no_weight(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", reference_model(torch.float32).to(torch.float8_e4m3fn))
    refused(release, "has the dtypes torch.float8_e4m3fn")


def test_pipeline_parallel(release: Path) -> None:
    (release / WEIGHTS).parent.rename(release / "iter_0001251" / "mp_rank_00_000")
    refused(release, "is of a pipeline-parallel release")


def test_several_iterations(release: Path, tmp_path: Path) -> None:
    other = release / "iter_0000100"
    write_release(tmp_path / "other", reference_model(torch.float16))
    (tmp_path / "other" / "iter_0001251").rename(other)
    folder = convert(release, tmp_path / "converted")
    assert persimmon_ext.PersimmonConfig.from_pretrained(folder).dtype == "bfloat16"
    (release / "latest_checkpointed_iteration.txt").write_text("7")
    refused(release, "holds the iterations 100, 1251, and no latest_checkpointed_iteration.txt with one")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"pos_emb": "learned"}, "trained with pos_emb='learned'; Persimmon has 'rotary'"),
        ({"sq_relu": False}, "trained with sq_relu=False"),
        ({"qk_layernorm": "weights_per_attention_head_and_layer"}, "qk_layernorm='weights_per_attention_head"),
        ({"kv_channels": 16}, "heads of 16 channels; 32 over 4 heads make 8"),
        ({"hidden_size": None}, "argument hidden_size must be a positive integer, got None"),
        ({"num_layers": 3}, r"lacks model\.layers\.2\."),
        ({"num_layers": 1}, r"has model\.layers\.1\..*which Persimmon hasn't"),
        ({"qk_layernorm": [1]}, r"trained with qk_layernorm=\[1\]; only weights_per_layer, none fit"),
        ({"pos_emb": torch.ones(2)}, "trained with pos_emb=tensor"),
        ({"sq_relu": torch.ones(2)}, "trained with sq_relu=tensor"),
        ({"untie_embeddings": torch.ones(1)}, "untie_embeddings must be true or false, got tensor"),
        ({"rotary_emb_base": "abc"}, "rotary_emb_base must be a number of at least 0, got 'abc'"),
        ({"rotary_emb_base": [1]}, r"rotary_emb_base must be a number of at least 0, got \[1\]"),
        ({"init_method_std": "x"}, "init_method_std must be a number"),
        ({"kv_channels": {}}, "kv_channels must be a positive integer, got {}"),
        ({"rotary_pct": float("nan")}, "rotary_pct must be a number of at least 0, got nan"),
        ({"ffn_hidden_size": 64}, r"other shapes than its arguments say: .*\[48, 32\] instead of \[64, 32\]"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path: Path, arguments: dict[str, Any], match: str) -> None:
    refused(write_release(tmp_path / "release", reference_model(), **arguments), match)


@pytest.mark.parametrize("version", [0, 1.0, 4.0, "3.0", [3.0], torch.ones(1)])
def test_another_checkpoint_version(tmp_path: Path, version: Any) -> None:
    release = write_release(tmp_path / "release", reference_model(), extra={"checkpoint_version": version})
    refused(release, "says checkpoint_version .*: only 2.0, 3.0 have the order of features in query_key_value")


@pytest.mark.parametrize("version", [2, 3.0, None])
def test_checkpoint_versions_that_are_read(tmp_path: Path, version: Any) -> None:
    release = write_release(tmp_path / "release", reference_model(), extra={"checkpoint_version": version})
    assert convert(release, tmp_path / "converted").is_dir()


def test_two_tensors_of_one_name(release: Path) -> None:
    with megatron():
        content = torch.load(release / WEIGHTS, weights_only=False)
        content["model"] |= {"x.y": torch.ones(1), "x": {"y": torch.ones(1)}}
        torch.save(content, release / WEIGHTS)
    refused(release, r"holds two tensors called x\.y")


def test_a_model_that_holds_itself(release: Path) -> None:
    with megatron():
        content = torch.load(release / WEIGHTS, weights_only=False)
        content["model"]["language_model"]["again"] = content["model"]
        torch.save(content, release / WEIGHTS)
    refused(release, r"holds the dictionary .* of its model a second time")


@pytest.mark.parametrize("negated", [False, True])
def test_a_tensor_that_is_not_stored_row_by_row(release: Path, negated: bool) -> None:
    with megatron():
        content = torch.load(release / WEIGHTS, weights_only=False)
        head = content["model"]["word_embeddings_for_head"]
        head["weight"] = torch._neg_view(head["weight"]) if negated else head["weight"].T.contiguous().T
        torch.save(content, release / WEIGHTS)
    refused(release, r"Tensor word_embeddings_for_head\.weight in .* isn't stored row by row")


def test_damaged_values(release: Path) -> None:
    content = bytearray((release / WEIGHTS).read_bytes())
    norm = reference_model().model.final_layernorm.bias.detach().view(torch.uint8).numpy().tobytes()
    content[content.index(norm) + 3] ^= 1
    (release / WEIGHTS).write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"Tensor language_model\.encoder\.final_layernorm\.bias in .* is damaged"
    ):
        convert(release, release.parent / "converted")
    assert [path.name for path in (release.parent / "converted").iterdir()] == [".saving-converted"]


def test_tokenizer_of_another_size(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", reference_model(vocab_size=500))
    refused(release, "has 600 tokens, but the model's vocabulary has only 500", ValueError)


def test_contents_of_another_kind(release: Path) -> None:
    for content, match in [([1], "no dictionary with a model"), ({"model": {}}, "holds no args")]:
        torch.save(content, release / WEIGHTS)
        refused(release, match)
    torch.save({"model": {}}, release / WEIGHTS, _use_new_zipfile_serialization=False)
    refused(release, r"is not a file of torch 1\.6 or later")


def test_target_is_a_file(release: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="converted to a folder, but"):
        convert(release, tmp_path / "file")
