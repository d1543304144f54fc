"""Small models and folders for the tests of checkpoints."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from persimmon_ext.checkpoints import load_pretrained
from persimmon_ext.classification import PersimmonForSequenceClassification, PersimmonForTokenClassification
from persimmon_ext.config import PersimmonConfig
from persimmon_ext.heads import PersimmonForCausalLM
from persimmon_ext.modeling import PersimmonModel

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CLASSES = [
    PersimmonModel,
    PersimmonForCausalLM,
    PersimmonForSequenceClassification,
    PersimmonForTokenClassification,
]


def make_model(model_class: type[Any] = PersimmonForCausalLM, seed: int = 0, **fields: Any) -> Any:
    config = PersimmonConfig(
        **{
            "vocab_size": 40,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_labels": 3,
            **fields,
        }
    )
    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.eval()


def assert_same_tensors(one: torch.nn.Module, other: torch.nn.Module) -> None:
    expected, found = one.state_dict(), other.state_dict()
    assert list(expected) == list(found)
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype
        assert torch.equal(tensor, found[name]), name


def load(folder: Any, **arguments: Any) -> PersimmonForCausalLM:
    return load_pretrained(PersimmonForCausalLM, folder, **arguments)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of `folder`, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def unmarked(files: dict[str, bytes]) -> dict[str, bytes]:
    """:func:`contents` without the marks that keep the shards of two saves to one folder apart."""
    marks = re.compile(rb"-[0-9a-f]{8}(?=-\d{5}-of-\d{5})")
    return {marks.sub(b"", name.encode()).decode(): marks.sub(b"", content) for name, content in files.items()}


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS)


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_records(path: Path, edit: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Rewrites a zip file with edit(name, content) for each record."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, edit(name, content))
