"""The config that the authors' command-line arguments stand for, and the tensors that a model of it has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from persimmon_ext.checkpoints.errors import CheckpointError
from persimmon_ext.config import PersimmonConfig

# Arguments that change the function, with the only value that this architecture has.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "pos_emb": ("rotary",),
    "sq_relu": (True,),
    "apply_residual_connection_post_layernorm": (False, None),
    "num_experts": (None,),
}
_PLAIN = (bool, int, str, type(None))
_QK_LAYERNORM = {"weights_per_layer": True, "none": False}


def config_of(
    arguments: Mapping[str, Any], vocab_size: int, *, bos_token_id: int | None, eos_token_id: int | None
) -> PersimmonConfig:
    """The config of a release.

    Args:
        arguments: as its files have them.
        vocab_size: rows of its embedding.
        bos_token_id, eos_token_id: of its tokenizer.
    Raises: CheckpointError for an argument that is missing or that Persimmon's architecture doesn't have.
    """
    for name, allowed in _REQUIRED.items():
        value = arguments.get(name, allowed[0])
        if not isinstance(value, _PLAIN) or value not in allowed:
            raise CheckpointError(f"The release was trained with {name}={value!r}; Persimmon has {allowed[0]!r}.")
    norms = arguments.get("qk_layernorm", "none")
    if not isinstance(norms, str) or norms not in _QK_LAYERNORM:
        raise CheckpointError(
            f"The release was trained with qk_layernorm={norms!r}; only {', '.join(_QK_LAYERNORM)} fit."
        )
    untied = arguments.get("untie_embeddings")
    if not isinstance(untied, _PLAIN):
        raise CheckpointError(f"The release's argument untie_embeddings must be true or false, got {untied!r}.")
    C, H = _integer(arguments, "hidden_size"), _integer(arguments, "num_attention_heads")
    width = _integer(arguments, "kv_channels", C // H)
    if width * H != C:
        raise CheckpointError(f"The release has heads of {width!r} channels; {C} over {H} heads make {C / H:g}.")
    return PersimmonConfig(
        vocab_size=vocab_size,
        hidden_size=C,
        intermediate_size=_integer(arguments, "ffn_hidden_size", 4 * C),
        num_hidden_layers=_integer(arguments, "num_layers"),
        num_attention_heads=H,
        max_position_embeddings=_integer(arguments, "max_position_embeddings"),
        initializer_range=_number(arguments, "init_method_std") or 0.02,
        layer_norm_eps=_number(arguments, "layernorm_epsilon") or 1e-5,
        tie_word_embeddings=not untied,
        qk_layernorm=_QK_LAYERNORM[norms],
        hidden_dropout=_number(arguments, "hidden_dropout"),
        attention_dropout=_number(arguments, "attention_dropout"),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": _number(arguments, "rotary_emb_base") or 25000.0,
            "partial_rotary_factor": _number(arguments, "rotary_pct") or 1.0,
        },
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
        architectures=["PersimmonForCausalLM"],
    )


def expected_shapes(config: PersimmonConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a checkpoint of PersimmonForCausalLM."""
    C, F, V, D = config.hidden_size, config.intermediate_size, config.vocab_size, config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.query_key_value.weight": (3 * C, C),
        "self_attn.query_key_value.bias": (3 * C,),
        "self_attn.dense.weight": (C, C),
        "self_attn.dense.bias": (C,),
        "mlp.dense_h_to_4h.weight": (F, C),
        "mlp.dense_h_to_4h.bias": (F,),
        "mlp.dense_4h_to_h.weight": (C, F),
        "mlp.dense_4h_to_h.bias": (C,),
    }
    norms = {"input_layernorm": C, "post_attention_layernorm": C}
    if config.qk_layernorm:
        norms |= {"self_attn.q_layernorm": D, "self_attn.k_layernorm": D}
    layer |= {f"{norm}.{leaf}": (size,) for norm, size in norms.items() for leaf in ("weight", "bias")}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, C)}
    for number in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes |= {"model.final_layernorm.weight": (C,), "model.final_layernorm.bias": (C,)}
    return shapes if config.tie_word_embeddings else {**shapes, "lm_head.weight": (V, C)}


def _integer(arguments: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = arguments.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"The release's argument {name} must be a positive integer, got {value!r}.")
    return value


def _number(arguments: Mapping[str, Any], name: str) -> float:
    """0 where the argument is missing or None."""
    value = arguments.get(name)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise CheckpointError(f"The release's argument {name} must be a number of at least 0, got {value!r}.")
    return float(value)
