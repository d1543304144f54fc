"""Text generation for any causal model with transformers' forward signature.

`settings` holds and checks what the caller asks for, `prompt` the tokens that generation starts from, `processors` and
`sampling` turn logits into a token, and `loop` runs the model. Imports neither the model nor its heads.
"""

from persimmon_ext.generation.generate import generate

__all__ = ["generate"]
