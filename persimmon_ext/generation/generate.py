"""``generate``: the arguments of transformers' method of that name, with the same meaning.

Dims: B batch, T tokens of the prompt, V vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from persimmon_ext.generation.loop import Decoder, Streamer, Trace
from persimmon_ext.generation.processors import penalties
from persimmon_ext.generation.prompt import Prompt, prepare_prompt
from persimmon_ext.generation.sampling import Greedy, Sampler, row_seeds
from persimmon_ext.generation.settings import (
    DEFAULT_TOP_K,
    resolve_distribution,
    resolve_lengths,
    resolve_special_tokens,
)
from persimmon_ext.generation.warning import warn
from persimmon_ext.outputs import GenerateOutput


# Not inference_mode: its tensors could not be used in training afterwards.
@torch.no_grad()
def generate(
    model: Any,
    input_ids: Tensor | None = None,
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    min_new_tokens: int | None = None,
    min_length: int | None = None,
    do_sample: bool = False,
    temperature: float | None = 1.0,
    top_k: int | None = DEFAULT_TOP_K,
    top_p: float | None = 1.0,
    min_p: float | None = None,
    repetition_penalty: float | None = 1.0,
    seed: int | Sequence[int] | None = None,
    eos_token_id: int | Sequence[int] | Literal["config"] | None = "config",
    pad_token_id: int | Literal["config"] | None = "config",
    streamer: Streamer | None = None,
    past_key_values: Any = None,
    use_cache: bool = True,
    return_dict_in_generate: bool = False,
    output_scores: bool = False,
    output_logits: bool = False,
) -> Tensor | GenerateOutput:
    """Continues each row of `input_ids`, by the likeliest tokens or by sampling, without gradients.

    Args:
        model: a causal language model with a ``config``; its training mode is left as it is.
        input_ids: integers [B, T], left-padded. None starts from the config's ``bos_token_id``.
        attention_mask: [B, T], 1 for a token and 0 for padding at the left. None: tokens equal to `pad_token_id` are
            padding, unless it also ends sequences.
        max_new_tokens: new tokens at most. Wins over `max_length`; 20 if neither is given.
        max_length: tokens at most, prompt included.
        min_new_tokens: new tokens before a row may end. Wins over `min_length`.
        min_length: tokens before a row may end, prompt included.
        do_sample: draw tokens from the distribution that the next four arguments shape, in their order.
        temperature: divides the logits, above 0.
        top_k: keep that many likeliest tokens; 0 or None keeps all. Note the default of 50, as in transformers.
        top_p: keep the fewest likeliest tokens of at least this probability in sum, in (0, 1].
        min_p: keep tokens at least this many times as likely as the likeliest, in [0, 1].
        repetition_penalty: above 1 makes tokens that occurred less likely, sampling or not.
        seed: an integer, or one a row. The same seed gives the same tokens; each row has its own random stream, which
            goes by the place of a token in its sequence. None: from torch's global generator.
        eos_token_id: tokens that end a row. None or an empty list: no token does.
        pad_token_id: fills rows after their end. None: the first of `eos_token_id`.
        streamer: gets the prompt, then each token, as transformers' streamers do. For one row.
        past_key_values: a cache to continue from and to extend. `input_ids` is then the whole sequence, or the new
            tokens with an `attention_mask` that covers the cached ones too.
        use_cache: False computes the whole sequence at each step.
        return_dict_in_generate: return a `GenerateOutput` with the sequences and the cache.
        output_scores: add the scores that each token was chosen by, fp32 [B, V] with -inf for what was filtered out.
        output_logits: add the model's logits, fp32 [B, V].

    Returns: int64 [B, T + new] with the prompt first, on the device of `input_ids`, or a `GenerateOutput`.

    Raises: TypeError for a value of the wrong kind or an unknown argument; ValueError for one outside its
        range, or if the model's logits become NaN.
    """
    config = model.config
    if (output_scores or output_logits) and not return_dict_in_generate:
        warn("output_scores and output_logits have no effect without return_dict_in_generate=True.")
    special = resolve_special_tokens(config, eos_token_id, pad_token_id)
    device = model.device
    prompt = prepare_prompt(input_ids, attention_mask, past_key_values, config=config, device=device, special=special)
    lengths = resolve_lengths(
        prompt.ids.shape[1],
        config.max_position_embeddings,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        min_new_tokens=min_new_tokens,
        min_length=min_length,
    )
    distribution = resolve_distribution(
        config.vocab_size,
        do_sample=do_sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    _check_cache(past_key_values, use_cache, prompt, lengths.longest)
    _check_streamer(streamer, len(prompt.ids))
    keep_scores = return_dict_in_generate and output_scores
    seeds = row_seeds(seed, len(prompt.ids)) if distribution.sample or seed is not None else []
    ends = torch.tensor(special.ends, dtype=torch.int64, device=device)
    decoder = Decoder(
        model=model,
        processors=penalties(distribution, lengths.shortest, ends, prompt.padding()),
        choose=Sampler(distribution, seeds, prompt.token_counts(), keep_scores) if distribution.sample else Greedy(),
        ends=ends,
        pad=special.pad,
        longest=lengths.longest,
        cache=past_key_values,
        use_cache=use_cache,
        streamer=streamer,
        trace=Trace([] if keep_scores else None, [] if return_dict_in_generate and output_logits else None),
    )
    sequences = decoder.run(prompt)
    if input_ids is not None:
        sequences = sequences.to(input_ids.device)
    if not return_dict_in_generate:
        return sequences
    return GenerateOutput(
        sequences=sequences,
        scores=None if decoder.trace.scores is None else tuple(decoder.trace.scores),
        logits=None if decoder.trace.logits is None else tuple(decoder.trace.logits),
        past_key_values=decoder.cache,
    )


def _check_cache(cache: Any, use_cache: bool, prompt: Prompt, longest: int) -> None:
    if cache is None:
        return
    if not use_cache:
        raise ValueError("past_key_values was given with use_cache=False; leave out one of them.")
    slots = int(cache.get_max_cache_shape()) if hasattr(cache, "get_max_cache_shape") else -1
    needed = prompt.earlier + longest - 1  # the last token is never fed back
    if 0 <= slots < needed:
        raise ValueError(
            f"past_key_values has room for {slots} tokens and this generation needs {needed}; "
            "make a larger cache or lower max_new_tokens."
        )


def _check_streamer(streamer: Any, batch: int) -> None:
    if streamer is None:
        return
    if not (callable(getattr(streamer, "put", None)) and callable(getattr(streamer, "end", None))):
        raise TypeError(f"streamer must have the methods put and end, got {type(streamer).__name__}.")
    if batch > 1:
        raise ValueError(f"A streamer takes one row, and input_ids has {batch}.")
