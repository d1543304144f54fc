"""from_pretrained with names on the Hugging Face Hub: what is downloaded, and what a failing network may not change."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from checkpoint_helpers import assert_same_tensors, make_model
from huggingface_hub import errors

from persimmon_ext import PersimmonForCausalLM, PersimmonTokenizer, embedded_checkpoint

NAME = "adept/persimmon-8b-base"


class Hub:
    """A Hub of one repository, in a folder; notes what it was asked."""

    def __init__(self, repository: Path, snapshot: Path) -> None:
        self.repository, self.snapshot = repository, snapshot
        self.asked: list[str] = []
        self.options: dict[str, Any] = {}

    def hf_hub_download(self, name: str, file: str, **options: Any) -> str:
        assert name == NAME
        self.options = options
        if not (self.repository / file).exists():
            raise errors.EntryNotFoundError(f"{file} is not there.")
        self.asked.append(file)
        self.snapshot.mkdir(exist_ok=True)
        return str(shutil.copy(self.repository / file, self.snapshot / file))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.chdir(tmp_path)
    stand_in = Hub(repository, tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", stand_in.hf_hub_download)
    return stand_in


@pytest.mark.parametrize("size", ["5GB", 3000])
def test_a_repository(hub: Hub, size: int | str, tmp_path: Path) -> None:
    model = make_model()
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(hub.repository, max_shard_size=size)
    (hub.repository / "README.md").write_text("not needed")
    torch.save(model.state_dict(), hub.repository / "pytorch_model.bin")
    loaded = PersimmonForCausalLM.from_pretrained(
        NAME, revision="main", cache_dir=tmp_path / "cache", local_files_only=True, token="secret"
    )
    assert_same_tensors(model, loaded)
    assert loaded.generation_config == model.generation_config
    assert hub.options == {
        "revision": "main",
        "cache_dir": tmp_path / "cache",
        "local_files_only": True,
        "token": "secret",
    }
    assert {"README.md", "pytorch_model.bin"}.isdisjoint(hub.asked)


def test_a_repository_of_pickles(hub: Hub) -> None:
    model = make_model()
    model.config.save_pretrained(hub.repository)
    torch.save(model.state_dict(), hub.repository / "pytorch_model.bin")
    assert_same_tensors(model, PersimmonForCausalLM.from_pretrained(NAME))


def test_a_folder_comes_first(hub: Hub, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / NAME)
    PersimmonForCausalLM.from_pretrained(NAME)
    assert not hub.asked


def test_a_repository_without_weights(hub: Hub) -> None:
    make_model().config.save_pretrained(hub.repository)
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint on the Hugging Face Hub: .*is not there"):
        PersimmonForCausalLM.from_pretrained(NAME)


def failing_for(hub: Hub, monkeypatch: pytest.MonkeyPatch, file: str, error: Exception) -> None:
    """Lets the stand-in raise `error` where it is asked for `file`."""

    def download(name: str, asked: str, **options: Any) -> str:
        if asked == file:
            raise error
        return hub.hf_hub_download(name, asked, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


@pytest.mark.parametrize("file", ["generation_config.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_network_that_fails_in_between(hub: Hub, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """Another form of the weights, of another age perhaps, is not taken for that."""
    model = make_model()
    model.config.save_pretrained(hub.repository)
    torch.save(model.state_dict(), hub.repository / "pytorch_model.bin")
    failing_for(hub, monkeypatch, file, errors.LocalEntryNotFoundError("connection reset"))
    with pytest.raises(FileNotFoundError, match=f"'{NAME}', {file} of .* is not in the Hub's cache, and"):
        PersimmonForCausalLM.from_pretrained(NAME)
    assert "pytorch_model.bin" not in hub.asked
    assert_same_tensors(model, PersimmonForCausalLM.from_pretrained(NAME, local_files_only=True))


@pytest.mark.parametrize("size", ["5GB", 3000])
def test_a_whole_cache_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int | str) -> None:
    """Of other programs, which don't ask for all that we do. A shard less, and it isn't whole."""
    cache = tmp_path / "cache" / "models--adept--persimmon-8b-base"
    snapshot = cache / "snapshots" / "abc"
    model = make_model()
    model.save_pretrained(snapshot, max_shard_size=size)
    (snapshot / "generation_config.json").unlink()
    PersimmonTokenizer.from_pretrained(embedded_checkpoint()).save_pretrained(tmp_path / "tokenizer")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")

    def out_of_reach(name: str, file: str, **options: Any) -> str:
        if (snapshot / file).is_file():
            return str(snapshot / file)
        raise errors.LocalEntryNotFoundError("connection reset")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", out_of_reach)
    assert_same_tensors(model, PersimmonForCausalLM.from_pretrained(NAME, cache_dir=tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model of the repository is not in"):
        PersimmonTokenizer.from_pretrained(NAME, cache_dir=tmp_path / "cache")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(tmp_path / "tokenizer" / name, snapshot)
    assert len(PersimmonTokenizer.from_pretrained(NAME, cache_dir=tmp_path / "cache")) > 256
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (snapshot / name).unlink()
    next(snapshot.glob("model*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match="is not in the Hub's cache, and the Hub is out of reach"):
        PersimmonForCausalLM.from_pretrained(NAME, cache_dir=tmp_path / "cache")


def test_a_cache_that_knows_of_no_safetensors(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the Hub once answered counts while it is out of reach."""
    model = make_model()
    model.config.save_pretrained(hub.repository)
    torch.save(model.state_dict(), hub.repository / "pytorch_model.bin")
    cache = tmp_path / "cache" / "models--adept--persimmon-8b-base"
    for folder in ("refs", ".no_exist/abc", "snapshots/abc"):
        (cache / folder).mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    (cache / ".no_exist" / "abc" / "model.safetensors").touch()
    failing_for(hub, monkeypatch, "model.safetensors", errors.LocalEntryNotFoundError("connection reset"))
    loaded = PersimmonForCausalLM.from_pretrained(NAME, cache_dir=tmp_path / "cache")
    assert_same_tensors(model, loaded)


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (errors.LocalEntryNotFoundError("no network"), r"There is no folder 'adept/.*, and the Hub is out of reach"),
        (errors.OfflineModeIsEnabled("offline"), r"neither in the Hub's cache nor can they be downloaded"),
        (errors.EntryNotFoundError("404"), r"no such checkpoint on the Hugging Face Hub at revision 'v9': 404"),
    ],
)
def test_what_cannot_be_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, match: str
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", failing)
    with pytest.raises(FileNotFoundError, match=match):
        PersimmonForCausalLM.from_pretrained(NAME, revision="v9")


def test_a_hub_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise errors.HfHubHTTPError("503 Server Error", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", failing)
    with pytest.raises(ConnectionError, match=r"Hub does not give 'adept/persimmon-8b-base' now: 503 Server Error"):
        PersimmonForCausalLM.from_pretrained(NAME)


def test_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"neither in the Hub's cache .*local_files_only is set"):
        PersimmonForCausalLM.from_pretrained(NAME, local_files_only=True, cache_dir=tmp_path)


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"There is no folder 'adept/persimmon-8b-base', and .*persimmon_ext\[hub\]"):
        PersimmonForCausalLM.from_pretrained(NAME)


def test_a_tokenizer_of_a_repository(hub: Hub, tmp_path: Path) -> None:
    tokenizer = PersimmonTokenizer.from_pretrained(embedded_checkpoint())
    tokenizer.save_pretrained(hub.repository)
    (hub.repository / "model.safetensors").write_text("not needed")
    loaded = PersimmonTokenizer.from_pretrained(NAME, revision="main", add_bos_token=False)
    assert hub.options["revision"] == "main"
    assert "model.safetensors" not in hub.asked
    assert loaded("def f(x):")["input_ids"] == tokenizer("def f(x):", add_special_tokens=False)["input_ids"]
    with pytest.raises(FileNotFoundError, match="adept"):
        PersimmonTokenizer.from_pretrained("./adept")


def test_a_repository_without_a_tokenizer(hub: Hub) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint on the Hugging Face Hub: .*is not there"):
        PersimmonTokenizer.from_pretrained(NAME)
