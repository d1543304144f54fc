"""Fused CPU and CUDA kernels for Adept's Persimmon-8B, and a drop-in for transformers' Persimmon classes."""

from __future__ import annotations

import torch

try:
    from persimmon_ext import _C
except ImportError as error:
    raise ImportError(
        f"persimmon_ext's compiled part could not be loaded with torch {torch.__version__}: {error}. "
        "Build it against the installed torch: `pip install --no-build-isolation .` in the source folder."
    ) from error

if _C.torch_version.split("+")[0] != torch.__version__.split("+")[0]:
    raise ImportError(
        f"persimmon_ext was built against torch {_C.torch_version}, and torch {torch.__version__} is installed. "
        "Build it again: `pip install --no-build-isolation .` in the source folder."
    )

from persimmon_ext import ops
from persimmon_ext.assets import embedded_checkpoint
from persimmon_ext.cache import DynamicCache, StaticCache
from persimmon_ext.cache_int8 import Int8Cache
from persimmon_ext.checkpoints import CheckpointError
from persimmon_ext.classification import PersimmonForSequenceClassification, PersimmonForTokenClassification
from persimmon_ext.config import PersimmonConfig
from persimmon_ext.conversation import Conversation
from persimmon_ext.generation import GenerationConfig, plan_memory
from persimmon_ext.heads import PersimmonForCausalLM
from persimmon_ext.modeling import PersimmonModel
from persimmon_ext.pretrained import PersimmonPreTrainedModel
from persimmon_ext.text_stream import TextStreamer
from persimmon_ext.tokenizer import PersimmonTokenizer

__version__: str = _C.version

__all__ = [
    "CheckpointError",
    "Conversation",
    "DynamicCache",
    "GenerationConfig",
    "Int8Cache",
    "PersimmonConfig",
    "PersimmonForCausalLM",
    "PersimmonForSequenceClassification",
    "PersimmonForTokenClassification",
    "PersimmonModel",
    "PersimmonPreTrainedModel",
    "PersimmonTokenizer",
    "StaticCache",
    "TextStreamer",
    "__version__",
    "embedded_checkpoint",
    "ops",
    "plan_memory",
]
