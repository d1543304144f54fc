"""Speculative decoding: several drafted tokens are checked by one step of the model, and those it would have made stay.

A drafted token stays if it is the one that the model's own choice gives at its place: the likeliest, or the one drawn
with the noise that belongs to that place. So the result is that of the plain loop, drawn tokens included, whatever
the drafts are. Source: Leviathan et al., "Fast inference from transformers via speculative decoding",
arXiv:2211.17192, with the choice coupled by common noise.

Dims: T tokens of the prompt, D drafted tokens, V vocab; there is one row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from persimmon_ext.generation.criteria import Ending
from persimmon_ext.generation.drafts import Drafter, Pace
from persimmon_ext.generation.loop import Task
from persimmon_ext.generation.nan import NanWatch, from_model, raise_for_nan
from persimmon_ext.generation.prompt import Prompt
from persimmon_ext.generation.sequences import common_beginning
from persimmon_ext.outputs import Speculation


def generate_speculatively(task: Task, prompt: Prompt, drafter: Drafter, pace: Pace) -> tuple[Tensor, Speculation]:
    """Returns the prompt and the new tokens, int64 [1, T + new], and how drafting went. `pace`: how many tokens to
    draft at a time."""
    runner, drafted, accepted, steps = task.runner, 0, 0, 0
    tokens, logits = task.start(prompt)
    begin = length = prompt.ids.shape[1]
    ending = Ending(task.ends, task.criteria, task.pad, 1)
    drafts: list[int] = []
    logits = logits[:, None]  # [1, D + 1, V]
    while True:
        chosen = _choose(task, tokens, length, drafts, logits)
        kept = len(chosen)
        tokens[0, length : length + kept] = chosen
        steps, drafted, accepted = steps + 1, drafted + len(drafts), accepted + kept - 1
        pace.learn(len(drafts), kept - 1)
        ending.look(tokens, length, length + kept, task.trace.scores_so_far())
        last = ending.longest(length + kept)
        if task.streamer is not None:
            for place in range(length, last):
                task.streamer.put(tokens[:, place].cpu())
        length = last
        if ending.all_ended or length == task.longest:
            break
        runner.truncate(prompt.earlier + length - 1)
        # A step gives a token more than it checks.
        most = min(pace.drafts(), task.longest - length - 1)
        drafts = drafter.propose(tokens, length, most) if most else []
        if drafts:
            tokens[0, length : length + len(drafts)] = torch.tensor(drafts)
        fed = tokens[:, length - 1 : length + len(drafts)]
        logits = runner.feed(fed, prompt.earlier + length - 1, keep=fed.shape[1])
    task.trace.shorten(length - begin)
    runner.truncate(prompt.earlier + length - 1)
    return tokens[:, :length].contiguous(), Speculation(drafted, accepted, steps)


def _choose(task: Task, tokens: Tensor, length: int, drafts: list[int], logits: Tensor) -> Tensor:
    """The tokens that the model makes after the first `length`: drafts, which follow there, as long as they are its own
    choice, and the first that isn't drafted, int64 [1 .. D + 1]. logits [1, D + 1, V]."""
    places = torch.arange(len(drafts) + 1, device=tokens.device)
    dtype = task.runner.model.dtype
    if task.processors:  # they go by the ids before each place, so places after a rejected draft aren't worth it
        own, watch = [], NanWatch(dtype)
        for place in range(len(drafts) + 1):
            now = logits[:, place]
            choice = task.next_tokens(tokens, length + place, now, watch, places[place : place + 1])
            watch.look(length + place)
            task.trace.note(now, choice.scores, None)
            own.append(choice.tokens)
            if place == len(drafts) or int(choice.tokens) != drafts[place]:
                break
        kept = torch.cat(own)
    else:
        raise_for_nan(logits.amax(dim=-1), length, from_model(dtype))
        choice = task.choose(logits[0], places)
        agreed = common_beginning(choice.tokens.tolist(), drafts)
        kept = choice.tokens[: agreed + 1]
        for place in range(agreed + 1):
            task.trace.note(logits[:, place], choice.scores[place : place + 1], None)
    task.choose.advance(len(kept))
    return kept
