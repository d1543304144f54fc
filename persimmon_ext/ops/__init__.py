"""The kernels as functions on tensors: each picks the compiled kernel, or the reference for what no kernel takes.

The raw operators are ``torch.ops.persimmon_ext.*``; they raise where these functions would fall back.
"""

from persimmon_ext.ops.attention import MAX_DECODE_TOKENS, attention, decode_attention_, decode_attention_int8_
from persimmon_ext.ops.layer_norm import add_layer_norm, layer_norm
from persimmon_ext.ops.linear import linear, sparse_linear
from persimmon_ext.ops.linear_cross_entropy import linear_cross_entropy
from persimmon_ext.ops.normed_products import norm_linear, norm_mlp
from persimmon_ext.ops.qk_norm_rope import qk_norm_rope, qk_norm_rope_append_
from persimmon_ext.ops.quantized import linear_int4, linear_int8, sparse_linear_int4, sparse_linear_int8
from persimmon_ext.ops.relu2 import relu2
from persimmon_ext.ops.sample import sample

__all__ = [
    "MAX_DECODE_TOKENS",
    "add_layer_norm",
    "attention",
    "decode_attention_",
    "decode_attention_int8_",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "linear_int4",
    "linear_int8",
    "norm_linear",
    "norm_mlp",
    "qk_norm_rope",
    "qk_norm_rope_append_",
    "relu2",
    "sample",
    "sparse_linear",
    "sparse_linear_int4",
    "sparse_linear_int8",
]
