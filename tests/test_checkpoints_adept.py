"""Converting the authors' release: what comes out equals transformers, and nothing in it runs."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from adept_releases import VOCABULARY, megatron, reference_model, tarred, vocabulary, write_release
from checkpoint_helpers import edit_records
from safetensors.torch import load_file

import persimmon_ext
from persimmon_ext.checkpoints import CheckpointError, adept, convert_adept, converting
from persimmon_ext.cli import main

WEIGHTS = Path("iter_0001251") / "mp_rank_00" / "model_optim_rng.pt"
IDS = torch.tensor([[5, 9, 60, 2, 7], [1, 1, 33, 8, 4]])


def convert(source: Path, folder: Path, **options: Any) -> Path:
    return convert_adept(source, folder, progress=False, **options)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path / "8b_base_model_release", reference_model())


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_equals_the_model_that_was_released(tmp_path: Path, packed: bool, ranks: int) -> None:
    model = reference_model(torch.float32)
    release = write_release(tmp_path / "release", model, ranks)
    source = tarred(release) if packed else release
    folder = convert(source, tmp_path / "converted", max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    theirs, report = transformers.PersimmonForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    ours = persimmon_ext.PersimmonForCausalLM.from_pretrained(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert torch.equal(theirs(IDS).logits, model(IDS).logits)
    torch.testing.assert_close(ours(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_config_tokenizer_and_generation_config(release: Path, tmp_path: Path) -> None:
    folder = convert(release, tmp_path / "converted")
    config = transformers.PersimmonConfig.from_pretrained(folder)
    tokenizer = persimmon_ext.PersimmonTokenizer(vocabulary())
    end = tokenizer.convert_tokens_to_ids("|ENDOFTEXT|")
    assert (config.bos_token_id, config.eos_token_id) == (end, end)
    assert config.vocab_size == VOCABULARY
    assert config.intermediate_size == 48
    assert config.rope_parameters["rope_theta"] == 25000.0
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    assert config.initializer_range == 0.01
    assert config.dtype == torch.bfloat16
    assert config.architectures == ["PersimmonForCausalLM"]
    assert json.loads((folder / "generation_config.json").read_text()) == {"bos_token_id": end, "eos_token_id": end}
    text = "def read_lines(path):\n    return path"
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = persimmon_ext.PersimmonTokenizer.from_pretrained(folder)
    assert theirs(text).input_ids == ours(text).input_ids == [end, *tokenizer.encode(text, add_special_tokens=False)]
    assert transformers.PersimmonForCausalLM.from_pretrained(folder).generation_config.eos_token_id == end


def test_other_arguments(tmp_path: Path) -> None:
    model = reference_model(qk_layernorm=False, tie_word_embeddings=True)
    release = write_release(
        tmp_path / "release",
        model,
        2,
        qk_layernorm="none",
        untie_embeddings=None,
        rotary_emb_base=10000,
        rotary_pct=1.0,
    )
    folder = convert(release, tmp_path / "converted")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    config = persimmon_ext.PersimmonConfig.from_pretrained(folder)
    assert config.tie_word_embeddings
    assert not config.qk_layernorm
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    loaded = persimmon_ext.PersimmonForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("ranks", [1, 2])
def test_dtype(tmp_path: Path, ranks: int) -> None:
    model = reference_model(torch.float32)
    release = write_release(tmp_path / "release", model, ranks)
    folder = convert(release, tmp_path / "converted", dtype="bfloat16")
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor.bfloat16(), stored[name]) for name, tensor in model.state_dict().items())
    assert persimmon_ext.PersimmonConfig.from_pretrained(folder).dtype == "bfloat16"


def test_the_command(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tarred(release)), str(tmp_path / "converted"), "--dtype", "fp16"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "converted")
    assert "Converting: 100%" in printed.err
    assert persimmon_ext.PersimmonForCausalLM.from_pretrained(tmp_path / "converted").dtype == torch.float16
    assert main(["convert", str(release), str(tmp_path / "x"), "--max-shard-size", "much"]) == 1
    assert "max_shard_size must be" in capsys.readouterr().err


class TestInterruption:
    def test_goes_on_with_the_next_shard(self, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "converted"
        write, written = converting.write_safetensors, []

        def interrupted(path: Path, *arguments: Any) -> None:
            if len(written) == 2:
                path.write_bytes(b"half")
                raise KeyboardInterrupt
            write(path, *arguments)
            written.append(path.name)

        monkeypatch.setattr(converting, "write_safetensors", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(release, folder, max_shard_size="20KB")
        assert [path.name for path in folder.iterdir()] == [".saving-converted"]  # nothing that a reader would find
        done = list(written)
        written.clear()
        written.append("")  # so that the second run isn't interrupted
        monkeypatch.setattr(
            converting, "write_safetensors", lambda path, *rest: (write(path, *rest), written.append(path.name))
        )
        convert(release, folder, max_shard_size="20KB")
        assert not set(done) & set(written)
        convert(release, tmp_path / "fresh", max_shard_size="20KB")
        assert contents(folder) == contents(tmp_path / "fresh")

    def test_begins_again_when_the_release_has_changed(
        self, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "converted"
        with monkeypatch.context() as patch:
            patch.setattr(converting, "publish", full_disk)
            with pytest.raises(OSError, match="No space left"):
                convert(release, folder)
        other = reference_model(torch.float16)
        write_release(release, other)
        convert(release, folder)
        assert persimmon_ext.PersimmonForCausalLM.from_pretrained(folder).dtype == torch.float16

    def test_a_failure_leaves_what_was_there(
        self, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = convert(release, tmp_path / "converted")
        before = contents(folder)
        monkeypatch.setattr(converting, "write_safetensors", full_disk)
        with pytest.raises(OSError, match="No space left"):
            convert(release, folder, dtype="float32")
        assert contents(folder) == before


def full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class TestMd5:
    def test_of_the_users(self, release: Path, tmp_path: Path) -> None:
        tar = tarred(release)
        right = hashlib.md5(tar.read_bytes()).hexdigest()
        convert(tar, tmp_path / "converted", md5=right.upper())
        with pytest.raises(CheckpointError, match=rf"The md5 of .*\.tar is {right}, not {'0' * 32}"):
            convert(tar, tmp_path / "other", md5="0" * 32)
        assert not (tmp_path / "other").exists()

    def test_of_the_public_tars(
        self, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tar = tarred(release)
        assert main(["convert", str(tar), str(tmp_path / "other"), "--quiet", "--md5"]) == 1
        assert r"neither cd0320cba9efad9ccd18e9ec4d16ae1b (8b_base_model_release.tar) nor" in capsys.readouterr().err
        monkeypatch.setitem(adept.MD5, hashlib.md5(tar.read_bytes()).hexdigest(), "this one")
        convert(tar, tmp_path / "converted", md5=True)

    @pytest.mark.parametrize("md5", [None, 1])
    def test_of_another_type(self, release: Path, tmp_path: Path, md5: Any) -> None:
        with pytest.raises(TypeError, match=f"md5 must be True, False or a checksum, got {md5}"):
            convert(release, tmp_path / "converted", md5=md5)

    def test_of_a_folder(self, release: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"md5 is the checksum of a tar, and .* is a folder"):
            convert(release, tmp_path / "converted", md5=True)


class Hostile:
    """Unpickles to what a function returns, when it may be called."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class TestBadReleases:
    def refused(self, source: Path, match: str, error: type[Exception] = CheckpointError) -> None:
        folder = source.parent / "refused"
        with pytest.raises(error, match=match):
            convert(source, folder)
        assert not folder.exists() or not list(folder.iterdir())

    def test_code_does_not_run(self, tmp_path: Path) -> None:
        ran = tmp_path / "ran"
        hostile = Hostile(os.system, f"touch {ran}")
        release = write_release(tmp_path / "release", reference_model(), extra={"evil": hostile})
        self.refused(release, r"mp_rank_00/model_optim_rng\.pt was refused: it asks for posix\.system.*Nothing was run")
        self.refused(tarred(release), r"was refused: it asks for posix\.system; only tensors and plain arguments")
        assert not ran.exists()

    def test_an_unknown_class_is_named(self, tmp_path: Path) -> None:
        release = write_release(tmp_path / "release", reference_model(), path=Hostile(Path, "x"))
        self.refused(release, r"it asks for pathlib\.Path")

    @pytest.mark.parametrize("kept", [0.999, 0.7, 0.3, 0.001])
    def test_truncated_tar(self, release: Path, kept: float) -> None:
        tar = tarred(release)
        with tarfile.open(tar) as archive:
            last = max(entry.offset_data + entry.size for entry in archive)
        tar.write_bytes(tar.read_bytes()[: int(last * kept)])
        self.refused(tar, r"is cut short|is not a readable tar|holds no", (CheckpointError, FileNotFoundError))

    def test_truncated_weights(self, release: Path) -> None:
        weights = release / WEIGHTS
        weights.write_bytes(weights.read_bytes()[:-2000])
        self.refused(release, "is not a readable torch.save file")

    def test_another_byte_order(self, release: Path) -> None:
        edit_records(release / WEIGHTS, lambda name, content: b"big" if name.endswith("byteorder") else content)
        self.refused(release, "holds values in the byte order 'big', but this machine's is")

    def test_compressed_tar(self, release: Path) -> None:
        tar = tarred(release, "w:gz").rename(release.with_suffix(".tar.gz"))
        self.refused(tar, "is not a readable tar: .*decompress it first")

    def test_no_release(self, tmp_path: Path, release: Path) -> None:
        self.refused(tmp_path / "nowhere", "There is no release at", FileNotFoundError)
        (tmp_path / "empty").mkdir()
        self.refused(tmp_path / "empty", "holds no iter_", FileNotFoundError)
        (release / "adept_vocab.model").unlink()
        self.refused(release, r"holds no adept_vocab\.model", FileNotFoundError)

    def test_missing_rank(self, tmp_path: Path) -> None:
        release = write_release(tmp_path / "release", reference_model(), 4)
        (release / "iter_0001251" / "mp_rank_01").rename(tmp_path / "elsewhere")
        self.refused(release, "lacks mp_rank_01")

    def test_ranks_that_differ(self, tmp_path: Path) -> None:
        release = write_release(tmp_path / "release", reference_model(), 2)
        other = reference_model()
        other.model.final_layernorm.bias.data[3] += 1
        write_release(tmp_path / "other", other, 2)
        second = Path("iter_0001251") / "mp_rank_01" / "model_optim_rng.pt"
        (release / second).write_bytes((tmp_path / "other" / second).read_bytes())
        self.refused(release, r"have different values of language_model\.encoder\.final_layernorm\.bias")

    def test_ranks_of_different_models(self, tmp_path: Path) -> None:
        release = write_release(tmp_path / "release", reference_model(), 2)
        write_release(tmp_path / "other", reference_model(num_hidden_layers=1), 2)
        second = Path("iter_0001251") / "mp_rank_01" / "model_optim_rng.pt"
        (release / second).write_bytes((tmp_path / "other" / second).read_bytes())
        self.refused(release, r"differ in having .*layers\.1\.")

    @pytest.mark.parametrize(("name", "shape"), [("final_layernorm.bias", ()), ("self_attention.dense.weight", (4,))])
    def test_too_few_dimensions(self, release: Path, name: str, shape: tuple[int, ...]) -> None:
        with megatron():
            content = torch.load(release / WEIGHTS, weights_only=False)
            encoder = content["model"]["language_model"]["encoder"]
            encoder[next(key for key in encoder if key.endswith(name))] = torch.ones(shape)
            torch.save(content, release / WEIGHTS)
        self.refused(release, rf"{name} has the shapes .*: too few dimensions")

    def test_a_dtype_of_no_weight(self, tmp_path: Path) -> None:
        release = write_release(tmp_path / "release", reference_model(torch.float32).to(torch.float8_e4m3fn))
        self.refused(release, "has the dtypes torch.float8_e4m3fn")

    def test_pipeline_parallel(self, release: Path) -> None:
        (release / WEIGHTS).parent.rename(release / "iter_0001251" / "mp_rank_00_000")
        self.refused(release, "is of a pipeline-parallel release")

    def test_several_iterations(self, release: Path, tmp_path: Path) -> None:
        other = release / "iter_0000100"
        write_release(tmp_path / "other", reference_model(torch.float16))
        (tmp_path / "other" / "iter_0001251").rename(other)
        folder = convert(release, tmp_path / "converted")
        assert persimmon_ext.PersimmonConfig.from_pretrained(folder).dtype == "bfloat16"
        (release / "latest_checkpointed_iteration.txt").write_text("7")
        self.refused(release, "holds the iterations 100, 1251, and no latest_checkpointed_iteration.txt with one")

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
            ({"ffn_hidden_size": 64}, r"other shapes than its arguments say: .*\[48, 32\] instead of \[64, 32\]"),
        ],
    )
    def test_arguments_that_do_not_fit(self, tmp_path: Path, arguments: dict[str, Any], match: str) -> None:
        self.refused(write_release(tmp_path / "release", reference_model(), **arguments), match)

    def test_tokenizer_of_another_size(self, tmp_path: Path) -> None:
        release = write_release(tmp_path / "release", reference_model(vocab_size=500))
        self.refused(release, "has 600 tokens, but the model's vocabulary has only 500", ValueError)

    def test_contents_of_another_kind(self, release: Path) -> None:
        for content, match in [([1], "no dictionary with a model"), ({"model": {}}, "holds no args")]:
            torch.save(content, release / WEIGHTS)
            self.refused(release, match)
        torch.save({"model": {}}, release / WEIGHTS, _use_new_zipfile_serialization=False)
        self.refused(release, r"is not a file of torch 1\.6 or later")

    def test_target_is_a_file(self, release: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(NotADirectoryError, match="converted to a folder, but"):
            convert(release, tmp_path / "file")
