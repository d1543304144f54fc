"""Log-probabilities of a prompt's own tokens. Dims: T tokens of a step, V vocab."""

from __future__ import annotations

from typing import Any

import torch

from persimmon_ext.cache import Cache
from persimmon_ext.serving.row import Top

#: Tokens whose logits [T, V] are in memory at a time.
_STEP_TOKENS = 128


@torch.no_grad()
def score_prompt(model: Any, prompt: tuple[int, ...], top: int, cache: Cache) -> list[tuple[float, Top]]:
    """The log-probability of each of `prompt` but the first given those before, and the `top` likeliest at its place.

    `cache`, empty, holds all of the prompt but its last token afterwards, so that generation can go on from it.
    Raises ValueError if the logits are NaN.
    """
    ids = torch.tensor([prompt], device=model.device)
    scores: list[tuple[float, Top]] = []
    for first in range(0, len(prompt) - 1, _STEP_TOKENS):
        last = min(first + _STEP_TOKENS, len(prompt) - 1)
        logits = model(input_ids=ids[:, first:last], past_key_values=cache, use_cache=True).logits[0].float()
        logprobs = logits.log_softmax(dim=-1)
        chosen = logprobs.gather(1, ids[0, first + 1 : last + 1, None])[:, 0]
        if bool(chosen.isnan().any()):
            raise ValueError(f"The model's logits are NaN between tokens {first} and {last} of the prompt.")
        values, tokens = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
        rows = zip(chosen.tolist(), tokens.tolist(), values.tolist(), strict=True)
        scores.extend((logprob, tuple(zip(likeliest, their, strict=True))) for logprob, likeliest, their in rows)
    return scores
