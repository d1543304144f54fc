"""One call of ``generate``, checked as a whole: what its settings mean together, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from persimmon_ext.generation.config import GenerationConfig
from persimmon_ext.generation.criteria import Criterion, MaxTime, StopStrings
from persimmon_ext.generation.loop import Streamer, Task, Trace
from persimmon_ext.generation.memory import CACHES
from persimmon_ext.generation.processors import Processor, penalties
from persimmon_ext.generation.prompt import Prompt
from persimmon_ext.generation.runner import Runner
from persimmon_ext.generation.sampling import Chooser, Greedy, Sampler, row_seeds
from persimmon_ext.generation.settings import (
    Beams,
    Distribution,
    Lengths,
    Penalties,
    SpecialTokens,
    check_integer,
    check_number,
    resolve_beams,
    resolve_distribution,
    resolve_lengths,
    resolve_penalties,
    resolve_special_tokens,
    resolve_stop_strings,
)
from persimmon_ext.generation.warning import warn

_DEFAULT_NGRAM = 3
_DEFAULT_DRAFTS = 5


@dataclass
class Request:
    """The settings of a call in the form that the loops use; `set_prompt` completes it."""

    config: GenerationConfig
    special: SpecialTokens
    distribution: Distribution
    penalties: Penalties
    beams: Beams
    stop_strings: tuple[str, ...]
    own_processors: tuple[Processor, ...]
    own_criteria: tuple[Criterion, ...]
    streamer: Streamer | None
    assistant: Any
    tokenizer: Any
    lengths: Lengths = field(default=Lengths(0))
    seeds: list[int] = field(default_factory=list)

    @property
    def copies(self) -> int:
        """Sequences that are made of each row of the prompt."""
        return max(self.beams.number, self.beams.results)

    @property
    def speculates(self) -> bool:
        """Whether tokens are drafted."""
        return self.assistant is not None or bool(self.config.prompt_lookup_num_tokens)

    @property
    def drafts(self) -> int:
        """Tokens that are drafted at a time."""
        asked = self.config.num_assistant_tokens if self.assistant is not None else self.config.prompt_lookup_num_tokens
        return int(asked or _DEFAULT_DRAFTS)

    @property
    def ngram_size(self) -> int:
        """The longest n-gram of prompt lookup."""
        return int(self.config.max_matching_ngram_size or _DEFAULT_NGRAM)

    @property
    def fill(self) -> int:
        """What stands after the end of a sequence in a beam search: as in transformers, the first end token where the
        padding token is 0."""
        if not self.special.ends:
            return -1
        return self.special.pad or self.special.ends[0]

    def set_prompt(self, prompt: Prompt, model_config: Any) -> None:
        """Checks what depends on the prompt. Raises TypeError or ValueError."""
        rows, length = len(prompt.ids), int(prompt.token_counts().max())
        max_positions = model_config.max_position_embeddings
        rope = getattr(model_config, "rope_parameters", None) or {}
        scales = rope.get("rope_type", "default") != "default"  # to texts longer than the model was made for
        if length > max_positions and not scales:
            raise ValueError(
                f"The prompt has {length} tokens and the model was made for {max_positions} "
                "(max_position_embeddings): shorten it."
            )
        self.lengths = resolve_lengths(prompt.ids.shape[1], max_positions, self.config)
        if self.streamer is not None and rows * self.copies > 1:
            raise ValueError(f"A streamer takes one row, and input_ids has {rows * self.copies}.")
        if self.speculates and rows * self.copies > 1:
            raise ValueError(f"Speculative decoding takes one row, and there are {rows * self.copies}.")
        if self.config.prefill_chunk_size is not None and self.config.use_cache is False:
            raise ValueError(
                f"prefill_chunk_size={self.config.prefill_chunk_size} has no effect with use_cache=False, which "
                "computes the whole sequence at each step; leave out one of them."
            )
        cache = prompt.cache
        if cache is not None and self.config.use_cache is False:
            raise ValueError("past_key_values was given with use_cache=False; leave out one of them.")
        if self.config.cache_implementation == "int8" and (cache is not None or self.config.use_cache is False):
            other = "use_cache=False" if cache is None else "past_key_values"
            raise ValueError(
                f"cache_implementation='int8' is for a cache that generate makes, and {other} was given; leave out one "
                "of them."
            )
        _check_room(cache, prompt.earlier + self.lengths.longest - 1)  # the last token is never fed back
        seed = self.config.seed
        number = rows if self.beams.number > 1 else rows * self.copies
        if self.distribution.sample or seed is not None:
            self.seeds = row_seeds(seed, number)

    def task(self, runner: Runner, prompt: Prompt) -> Task:
        """What the loops run."""
        config, copies = self.config, self.copies
        ends = torch.tensor(self.special.ends, dtype=torch.int64, device=prompt.ids.device)
        padding = prompt.padding()
        if padding is not None:
            padding = padding.repeat_interleave(copies)
        criteria: list[Criterion] = []
        if self.stop_strings:
            criteria.append(StopStrings(self.tokenizer, self.stop_strings))
        if config.max_time is not None:
            criteria.append(MaxTime(config.max_time))
        wanted = bool(config.return_dict_in_generate)
        keeps_scores = wanted and bool(config.output_scores)
        return Task(
            runner=runner,
            processors=penalties(self.penalties, self.lengths.shortest, ends, padding, self.own_processors),
            choose=self._chooser(prompt, keeps_scores),
            ends=self.special.ends,
            criteria=[*criteria, *self.own_criteria],
            pad=self.special.pad,
            longest=self.lengths.longest,
            copies=copies,
            streamer=self.streamer,
            trace=Trace(
                scores=[] if keeps_scores else None,
                logits=[] if wanted and config.output_logits else None,
                attentions=[] if wanted and config.output_attentions else None,
                hidden_states=[] if wanted and config.output_hidden_states else None,
            ),
        )

    def draft_task(self, task: Task, runner: Runner) -> Task:
        """`task` for the model that drafts: its own runner, nothing kept."""
        return replace(task, runner=runner, trace=Trace(), streamer=None)

    def rng(self, prompt: Prompt) -> Tensor | None:
        """Seed and counter of each row, int64 [B, 2], for a beam search that draws; None for one that doesn't."""
        if not self.distribution.sample:
            return None
        counts = prompt.token_counts()
        return torch.stack([torch.tensor(self.seeds, dtype=torch.int64, device=counts.device), counts], dim=1)

    def warn_of_length(self, length: int, positions: int) -> None:
        """Warns if a sequence of `length` tokens goes beyond the model's `positions`."""
        if length > positions:
            warn(
                f"The sequence has {length} tokens and the model was made for {positions} (max_position_embeddings): "
                "what follows the first of them may be poor."
            )

    def _chooser(self, prompt: Prompt, exposes_scores: bool) -> Chooser:
        if not self.distribution.sample or self.beams.number > 1:
            return Greedy()
        counts = prompt.token_counts().repeat_interleave(self.copies)
        return Sampler(self.distribution, self.seeds, counts, exposes_scores)


def prepare_request(
    vocab_size: int,
    config: GenerationConfig,
    *,
    logits_processor: Any,
    stopping_criteria: Any,
    streamer: Any,
    assistant_model: Any,
    tokenizer: Any,
) -> Request:
    """Checks everything that doesn't depend on the prompt. Raises TypeError or ValueError with the offending value."""
    kept = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    if any(getattr(config, name) for name in kept) and not config.return_dict_in_generate:
        asked = ", ".join(name for name in kept if getattr(config, name))
        warn(f"{asked} has no effect without return_dict_in_generate=True.")
    if config.max_time is not None and check_number("max_time", config.max_time) <= 0:
        raise ValueError(f"max_time must be above 0 seconds, got {config.max_time}.")
    for name in ("prefill_chunk_size", "prompt_lookup_num_tokens", "max_matching_ngram_size", "num_assistant_tokens"):
        check_integer(name, getattr(config, name), least=1)
    if config.cache_implementation not in (None, *CACHES):
        raise ValueError(
            f"cache_implementation must be one of {', '.join(CACHES)}, got {config.cache_implementation!r}."
        )
    request = Request(
        config=config,
        special=resolve_special_tokens(vocab_size, config),
        distribution=resolve_distribution(vocab_size, config),
        penalties=resolve_penalties(vocab_size, config),
        beams=resolve_beams(config),
        stop_strings=resolve_stop_strings(config.stop_strings, tokenizer),
        own_processors=_callables("logits_processor", logits_processor),
        own_criteria=_callables("stopping_criteria", stopping_criteria),
        streamer=streamer,
        assistant=assistant_model,
        tokenizer=tokenizer,
    )
    _check_streamer(streamer, request.beams.number)
    if request.speculates:
        _check_speculation(request, vocab_size)
    return request


def _check_streamer(streamer: Any, beams: int) -> None:
    if streamer is None:
        return
    if not (callable(getattr(streamer, "put", None)) and callable(getattr(streamer, "end", None))):
        raise TypeError(f"streamer must have the methods put and end, got {type(streamer).__name__}.")
    if beams > 1:
        raise ValueError(f"A streamer can't follow num_beams={beams}: which beam wins is known at the end only.")


def _check_speculation(request: Request, vocab_size: int) -> None:
    config, assistant = request.config, request.assistant
    if assistant is not None and config.prompt_lookup_num_tokens:
        raise ValueError("assistant_model and prompt_lookup_num_tokens both draft tokens; pass one of them.")
    if request.beams.number > 1:
        raise ValueError(f"Speculative decoding follows one sequence, and num_beams is {request.beams.number}.")
    if config.use_cache is False:
        raise ValueError("Speculative decoding needs the cache: leave out use_cache=False.")
    if config.return_dict_in_generate and (config.output_attentions or config.output_hidden_states):
        raise ValueError("output_attentions and output_hidden_states can't be had from speculative decoding.")
    if assistant is None:
        return
    if not hasattr(assistant, "config"):
        raise TypeError(f"assistant_model must be a causal language model, got {type(assistant).__name__}.")
    if assistant.config.vocab_size != vocab_size:
        raise ValueError(
            f"The assistant_model has a vocabulary of {assistant.config.vocab_size} tokens, the model {vocab_size}; "
            "it must be the same."
        )


def _check_room(cache: Any, needed: int) -> None:
    slots = int(cache.get_max_cache_shape()) if hasattr(cache, "get_max_cache_shape") else -1
    if 0 <= slots < needed:
        raise ValueError(
            f"past_key_values has room for {slots} tokens and this generation needs {needed}; "
            "make a larger cache or lower max_new_tokens."
        )


def _callables(name: str, given: Any) -> tuple[Any, ...]:
    if given is None:
        return ()
    # transformers' lists are callable themselves, but it is their members that are asked.
    members = list(given) if isinstance(given, Sequence) else [given]
    for member in members:
        if not callable(member):
            raise TypeError(f"{name} must hold functions, got {member!r}.")
    return tuple(members)
