"""Small releases in the authors' format, made from a transformers model."""

from __future__ import annotations

import argparse
import enum
import sys
import tarfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizer_models import train
from torch import Tensor

from persimmon_ext.checkpoints import CheckpointError, convert_adept

WEIGHTS = Path("iter_0001251") / "mp_rank_00" / "model_optim_rng.pt"
ARGUMENTS: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "kv_channels": 8,
    "max_position_embeddings": 64,
    "seq_length": 64,
    "pos_emb": "rotary",
    "rotary_pct": 0.5,
    "rotary_emb_base": 25000,
    "untie_embeddings": True,
    "sq_relu": True,
    "qk_layernorm": "weights_per_layer",
    "layernorm_epsilon": 1e-5,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "init_method_std": 0.01,
    "apply_residual_connection_post_layernorm": False,
    "num_experts": None,
    "params_dtype": torch.bfloat16,
}
VOCABULARY = 640
BY_ROWS = ("query_key_value", "dense_h_to_4h", "word_embeddings", "word_embeddings_for_head")


def vocabulary() -> bytes:
    """A sentencepiece model as the authors': 600 pieces, one of them their end of text."""
    return train(
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols="|ENDOFTEXT|",
    )


def reference_model(dtype: torch.dtype = torch.bfloat16, **fields: Any) -> Any:
    """The transformers model whose weights a release holds."""
    config = transformers.PersimmonConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5},
            **fields,
        },
        attn_implementation="eager",
    )
    model = transformers.PersimmonForCausalLM(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype).eval()


def authors_state(model: Any) -> dict[str, Any]:
    """The nested dictionary that the authors' code saves of a model."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tied = model.config.tie_word_embeddings
    head = state.pop("lm_head.weight")
    embedding = state.pop("model.embed_tokens.weight")
    encoder = {
        name.removeprefix("model.").replace("self_attn", "self_attention"): tensor for name, tensor in state.items()
    }
    for layer in range(model.config.num_hidden_layers):
        encoder[f"layers.{layer}.self_attention.rotary_emb.inv_freq"] = torch.ones(2)
    whole: dict[str, Any] = {
        "language_model": {"embedding": {"word_embeddings": {"weight": embedding}}, "encoder": encoder}
    }
    return whole if tied else {**whole, "word_embeddings_for_head": {"weight": head}}


def part(state: Any, rank: int, ranks: int, name: str = "") -> Any:
    """What tensor-parallel rank `rank` of `ranks` has of :func:`authors_state`."""
    if isinstance(state, dict):
        return {key: part(value, rank, ranks, f"{name}.{key}") for key, value in state.items()}
    tensor: Tensor = state
    owner = name.split(".")[-2]
    if owner in BY_ROWS:
        return tensor.chunk(ranks, dim=0)[rank].clone()
    if owner in ("dense", "dense_4h_to_h") and name.endswith("weight"):
        return tensor.chunk(ranks, dim=1)[rank].clone()
    return tensor.clone()


@contextmanager
def megatron() -> Iterator[Any]:
    """The authors' library in as much as pickling its enum needs it: there while a release is made, not afterwards."""
    module = types.ModuleType("megatron.model.enums")
    kind = enum.Enum("ModelType", {"encoder_or_decoder": 1}, module=module.__name__)
    module.ModelType = kind  # type: ignore[attr-defined]
    names = {"megatron": types.ModuleType("megatron"), "megatron.model": types.ModuleType("megatron.model")}
    sys.modules.update({**names, module.__name__: module})
    try:
        yield kind
    finally:
        for name in (*names, module.__name__):
            del sys.modules[name]


def write_release(
    folder: Path, model: Any, ranks: int = 1, *, extra: dict[str, Any] | None = None, **changes: Any
) -> Path:
    """Writes the unpacked release of `model` to `folder`. `changes` are arguments, `extra` further contents."""
    state = authors_state(model)
    with megatron() as model_type:
        arguments = argparse.Namespace(
            **{**ARGUMENTS, "tensor_model_parallel_size": ranks, "model_type": model_type(1), **changes}
        )
        for rank in range(ranks):
            place = folder / "iter_0001251" / f"mp_rank_{rank:02}"
            place.mkdir(parents=True, exist_ok=True)
            content = {
                "args": arguments,
                "checkpoint_version": 3.0,
                "iteration": 1251,
                "model": part(state, rank, ranks),
                "rng_state": [{"np_rng_state": np.random.RandomState(1).get_state(), "torch_rng_state": torch.ones(3)}],
                **(extra or {}),
            }
            torch.save(content, place / "model_optim_rng.pt")
    (folder / "adept_vocab.model").write_bytes(vocabulary())
    (folder / "latest_checkpointed_iteration.txt").write_text("1251")
    return folder


def convert(source: Path, folder: Path, **options: Any) -> Path:
    return convert_adept(source, folder, progress=False, **options)


def tarred(folder: Path, mode: str = "w") -> Path:
    """The release `folder` as a tar beside it."""
    path = folder.with_suffix(".tar")
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, arcname=folder.name)
    return path


def refused(source: Path, match: str, error: type[Exception] = CheckpointError) -> None:
    folder = source.parent / "refused"
    with pytest.raises(error, match=match):
        convert(source, folder)
    assert not folder.exists() or not list(folder.iterdir())
