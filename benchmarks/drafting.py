"""The parts of ``benchmarks.generate`` that draft tokens: speculation against plain decoding, and a check's cost."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import persimmon_ext
from benchmarks import copying_texts, models
from benchmarks.sides import QUIET, compare, embedded_models, same_tokens
from benchmarks.timing import measure


def speculation(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Drafts looked up in the text against plain decoding, on repetitive code."""
    model, _, ids = embedded_models(device)
    model.float()
    drafts = {"prompt_lookup_num_tokens": chosen.drafts}
    sides: dict[str, Callable[[], Tensor]] = {
        "speculative": lambda: model.generate(ids, max_new_tokens=chosen.new_tokens, **QUIET, **drafts),
        "plain": lambda: model.generate(ids, max_new_tokens=chosen.new_tokens, **QUIET),
    }
    same_tokens("speculation", sides)
    report = model.generate(
        ids, max_new_tokens=chosen.new_tokens, return_dict_in_generate=True, **QUIET, **drafts
    ).speculation
    model.bfloat16()
    result = compare("speculation", sides, chosen.new_tokens, chosen, device)
    return result | _drafting(report, chosen.new_tokens)


def drawn(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Drafts looked up in the text against plain decoding where tokens are drawn, so that few drafts hold."""
    model, _, ids = embedded_models(device)
    options = {"max_new_tokens": chosen.new_tokens, "do_sample": True, "top_p": 0.95, "temperature": 0.8, "top_k": 0}
    options |= {"seed": chosen.seed, **QUIET}
    drafts = {"prompt_lookup_num_tokens": chosen.drafts}
    model.float()
    sides: dict[str, Callable[[], Tensor]] = {
        "speculative": lambda: model.generate(ids, **options, **drafts),
        "plain": lambda: model.generate(ids, **options),
    }
    same_tokens("drawn", sides)
    report = model.generate(ids, return_dict_in_generate=True, **options, **drafts).speculation
    return compare("drawn", sides, chosen.new_tokens, chosen, device) | _drafting(report, chosen.new_tokens)


def editing(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Speculation against plain decoding on layers of the given shape, both made to write an edit of code."""
    return _forced("editing", chosen, device)


def quoting(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Speculation against plain decoding on layers of the given shape, both made to write a summary with quotes."""
    return _forced("quoting", chosen, device)


def _forced(name: str, chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    tokenizer = persimmon_ext.PersimmonTokenizer.from_pretrained(persimmon_ext.embedded_checkpoint())
    vocab = max(chosen.vocab, len(tokenizer))
    model = models.build(argparse.Namespace(**{**vars(chosen), "only_ours": True, "vocab": vocab}), device).ours
    prompt, whole = (ids.to(device) for ids in copying_texts.encode(name, tokenizer))
    new = whole.shape[1] - prompt.shape[1]
    options = {"max_new_tokens": new, "logits_processor": [copying_texts.Oracle(whole)], **QUIET}
    drafts = {"prompt_lookup_num_tokens": chosen.drafts}
    sides: dict[str, Callable[[], Tensor]] = {
        "speculative": lambda: model.generate(prompt, **options, **drafts),
        "plain": lambda: model.generate(prompt, **options),
    }
    same_tokens(name, {**sides, "the text": lambda: whole})
    report = model.generate(prompt, return_dict_in_generate=True, **options, **drafts).speculation
    return compare(name, sides, new, chosen, device) | _drafting(report, new)


def _drafting(report: Any, tokens: int) -> dict[str, float]:
    return {"acceptance_rate": report.acceptance_rate, "tokens_per_step": tokens / report.steps}


def checking(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What a step of several tokens costs on layers of the given shape: what speculation pays for its drafts."""
    model = models.build(argparse.Namespace(**{**vars(chosen), "only_ours": True}), device).ours
    generator = torch.Generator().manual_seed(chosen.seed)
    prompt = models.random_ids(1, chosen.context, chosen.vocab, generator).to(device)
    cache = model.make_cache(1, chosen.context + 8)
    model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
    plan = model.decode_plan(chosen.context + 8, cache)
    draft = models.random_ids(1, 8, chosen.vocab, generator).to(device)

    def step(tokens: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.inference_mode():
                logits: Tensor = plan(draft[:, :tokens], chosen.context, None, cache)
            cache.truncate(chosen.context)
            return logits.argmax(-1)

        return run

    sides = {f"{tokens} tokens": step(tokens) for tokens in (1, 2, 4, 8)}
    samples = measure(sides, device=device, repeats=max(chosen.repeats, 5))
    one = samples["1 tokens"].median
    return {
        "part": "checking",
        "tokens": 1,
        "sides": {
            name: sample.as_dict() | {"tokens_per_s": int(name.split()[0]) / sample.median}
            for name, sample in samples.items()
        },
        "ratio": samples["8 tokens"].median / one,
    }
