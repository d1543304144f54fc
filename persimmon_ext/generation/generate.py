"""``generate``: the arguments of transformers' method of that name, with the same meaning.

Dims: B batch, T tokens of the prompt, V vocab.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from persimmon_ext.cache import Cache
from persimmon_ext.generation.beam import BeamResult, BeamSearch
from persimmon_ext.generation.config import combine
from persimmon_ext.generation.drafts import Drafter, DraftModel, PromptLookup
from persimmon_ext.generation.loop import Streamer, Task, generate_plainly
from persimmon_ext.generation.memory import check_cache, check_ids
from persimmon_ext.generation.pace import Pace, draft_cost
from persimmon_ext.generation.prompt import Prompt, prepare_prompt
from persimmon_ext.generation.request import Request, prepare_request
from persimmon_ext.generation.runner import Recording, Runner
from persimmon_ext.generation.speculative import generate_speculatively
from persimmon_ext.outputs import GenerateBeamOutput, GenerateOutput, Speculation, SpeculativeGenerateOutput


# Not inference_mode: its tensors could not be used in training afterwards.
@torch.no_grad()
def generate(
    model: Any,
    input_ids: Tensor | None = None,
    *,
    inputs: Tensor | None = None,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    generation_config: Any = None,
    logits_processor: Sequence[Any] | None = None,
    stopping_criteria: Sequence[Any] | None = None,
    streamer: Streamer | None = None,
    assistant_model: Any = None,
    tokenizer: Any = None,
    **settings: Any,
) -> Tensor | GenerateOutput | GenerateBeamOutput:
    """Continues each row of `input_ids`, by the likeliest tokens, beam search or sampling, without gradients.

    Args:
        model: a causal language model with a ``config``; its training mode is left as it is.
        input_ids: integers [B, T], left-padded. None starts from ``bos_token_id``.
        inputs: another name of `input_ids`, as in transformers.
        attention_mask: [B, T], 1 for a token and 0 for padding at the left. None: tokens equal to ``pad_token_id`` are
            padding, unless it also ends sequences.
        past_key_values: a cache to continue from and to extend. `input_ids` is then the whole sequence, or the new
            tokens with an `attention_mask` that covers the cached ones too. A cache of one row is copied to all B; with
            `num_beams` or `num_return_sequences` above 1 every cache is copied. The given one stays as it is then.
        generation_config: settings, as a :class:`GenerationConfig` (transformers' will do) or a dictionary.
        logits_processor: functions of ids [B, S] and scores fp32 [B, V] that return new scores, after our own and
            before sampling's filters; transformers' processors are such functions.
        stopping_criteria: functions of ids [B, S] and scores that say which rows end, bool [B].
        streamer: gets the prompt, then each token, as transformers' streamers do. For one row, without beams.
        assistant_model: a smaller model with the same vocabulary that drafts tokens. For one row, without beams.
        tokenizer: reads ids for ``stop_strings``.
        settings: the fields of :class:`persimmon_ext.GenerationConfig`; they win over the other sources.

    Returns: int64 [B * results, T + new] with the prompt first, on the device of `input_ids`, or a `GenerateOutput`.

    Raises: TypeError for a value of the wrong kind or an unknown argument; ValueError for one outside its
        range, or if the model's logits become NaN; MemoryError for a cache that doesn't fit.
    """
    if inputs is not None:
        if input_ids is not None:
            raise ValueError("inputs and input_ids are the same argument; pass one of them.")
        input_ids = inputs
    config = combine(model, generation_config, settings)
    request = prepare_request(
        model.config.vocab_size,
        config,
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        streamer=streamer,
        assistant_model=assistant_model,
        tokenizer=tokenizer,
    )
    _check_drafting(settings, request)
    prompt = prepare_prompt(
        input_ids,
        attention_mask,
        past_key_values,
        bos=config.bos_token_id,
        vocab_size=model.config.vocab_size,
        device=model.device,
        special=request.special,
    )
    request.set_prompt(prompt, model.config)
    check_ids(model.device, len(prompt.ids) * request.copies, request.lengths.longest)
    runner = _make_runner(model, request, prompt, past_key_values)
    task = request.task(runner, prompt)
    speculation = result = None
    if streamer is not None:
        streamer.put(prompt.ids.cpu())
    try:
        with runner.undone_on_error():
            if request.beams.number > 1:
                rng = request.rng(prompt)
                search = BeamSearch(task, request.beams, request.special, request.fill, request.distribution, rng)
                result = search.run(prompt)
                sequences = result.sequences
            elif request.speculates:
                drafter = _drafter(request, task, prompt)
                pace = Pace(request.drafts, draft_cost(model, request.assistant))
                sequences, speculation = generate_speculatively(task, prompt, drafter, pace)
            else:
                sequences = generate_plainly(task, prompt)
    finally:
        # Also after an error or Ctrl-C: a reader in another thread would wait for ever.
        if streamer is not None:
            streamer.end()
        runner.release(keeps_cache=not config.return_dict_in_generate)
    longest = int(prompt.token_counts().max()) + sequences.shape[1] - prompt.ids.shape[1]
    request.warn_of_length(longest, model.config.max_position_embeddings)
    if input_ids is not None:
        sequences = sequences.to(input_ids.device)
    if not config.return_dict_in_generate:
        return sequences
    return _output(sequences, task, result, speculation)


def _make_runner(model: Any, request: Request, prompt: Prompt, cache: Any, *, lends: bool = True) -> Runner:
    config = request.config
    use_cache = config.use_cache is not False
    slots = prompt.earlier + request.lengths.longest
    given = cache is not None
    if given:
        cache = _own_rows(model, cache, len(prompt.ids), request.copies, slots)
    elif use_cache:
        # A lent cache has as many rows as the prompt. Another library's model makes its own.
        make = getattr(model, "lend_cache" if lends and request.copies == 1 else "make_cache", None)
        rows = len(prompt.ids) * request.copies
        cache = make(rows, slots, config.cache_implementation) if make is not None else None
    recording = Recording(bool(config.output_attentions), bool(config.output_hidden_states))
    plan = getattr(model, "decode_plan", None)
    return Runner(
        model,
        padding=prompt.slot_padding(),
        slots=slots,
        cache=cache,
        use_cache=use_cache,
        chunk=config.prefill_chunk_size,
        plan=plan(slots, cache) if plan is not None and use_cache else None,
        recording=recording if config.return_dict_in_generate else None,
        borrows=not given,
    )


def _check_drafting(arguments: dict[str, Any], request: Request) -> None:
    # Of the call's own arguments: older transformers wrote these settings into every checkpoint's file.
    for name in ("num_assistant_tokens", "max_matching_ngram_size"):
        if arguments.get(name) is not None and not request.speculates:
            raise ValueError(
                f"{name}={arguments[name]} has no effect without drafting: pass assistant_model or "
                "prompt_lookup_num_tokens too."
            )


def _own_rows(model: Any, cache: Any, rows: int, copies: int, slots: int) -> Any:
    """`cache`, or a copy where this generation needs other rows than the caller's cache has.

    Raises MemoryError for a copy that doesn't fit, or a given cache that has to grow to what doesn't.
    """
    if isinstance(cache, Cache) and hasattr(model, "make_cache"):
        spreads = rows > 1 and cache.batch_size == 1
        if spreads or copies > 1:
            check_cache(model, rows * copies, slots, advice="Lower max_new_tokens or the batch.")
            return cache.broadcast(rows, reserve=slots)
        if cache.max_cache_len < 0:  # as the storage that is outgrown lives until its content is copied
            needed = slots - 1 if slots - 1 > cache.capacity else 0
            check_cache(model, rows, needed, advice="Lower max_new_tokens.")
        return cache
    return copy.deepcopy(cache) if copies > 1 else cache


def _drafter(request: Request, task: Task, prompt: Prompt) -> Drafter:
    if request.assistant is None:
        return PromptLookup(request.ngram_size)
    alone = Prompt(prompt.ids, None if prompt.mask is None else prompt.mask[:, prompt.earlier :])
    runner = _make_runner(request.assistant, request, alone, None, lends=False)
    return DraftModel(request.draft_task(task, runner))


def _output(
    sequences: Tensor, task: Task, beams: BeamResult | None, speculation: Speculation | None
) -> GenerateOutput | GenerateBeamOutput:
    trace = task.trace
    kept: dict[str, Any] = {
        name: None if values is None else tuple(values)
        for name, values in (
            ("scores", trace.scores),
            ("logits", trace.logits),
            ("attentions", trace.attentions),
            ("hidden_states", trace.hidden_states),
        )
    }
    kept |= {"sequences": sequences, "past_key_values": task.runner.cache}
    if beams is not None:
        scores = None if trace.scores is None else beams.scores
        return GenerateBeamOutput(sequences_scores=scores, beam_indices=beams.origins, **kept)
    if speculation is not None:
        return SpeculativeGenerateOutput(speculation=speculation, **kept)
    return GenerateOutput(**kept)
