"""Text generation for any causal model with transformers' forward signature.

`config` holds what the caller asks for; `settings` and `request` check it; `prompt` is the tokens to start from.
`runner` runs the model, `processors` and `sampling` turn logits into tokens, `criteria` end rows; `loop`, `beam` and
`speculative` are the ways to go on from there. Imports neither the model nor its heads.
"""

from persimmon_ext.generation.config import GenerationConfig
from persimmon_ext.generation.generate import generate
from persimmon_ext.generation.memory import MemoryPlan, make_cache, plan_memory
from persimmon_ext.generation.scoring import Score, score

__all__ = ["GenerationConfig", "MemoryPlan", "Score", "generate", "make_cache", "plan_memory", "score"]
