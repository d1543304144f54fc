"""Speculative decoding: several drafted tokens are checked by one step of the model, and those it would have made stay.

A drafted token stays if it is the one that the model's own choice gives at its place: the likeliest, or the one drawn
with the noise that belongs to that place. So the result is that of the plain loop, drawn tokens included, whatever
the drafts are, where a step of several tokens rounds as single ones do. Source: Leviathan et al., "Fast inference from
transformers via speculative decoding", arXiv:2211.17192, with the choice coupled by common noise.

Dims: T tokens of the prompt, D drafted tokens, V vocab; there is one row.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from persimmon_ext.generation.criteria import Ending
from persimmon_ext.generation.drafts import Drafter
from persimmon_ext.generation.loop import Task
from persimmon_ext.generation.nan import NanWatch, from_model, raise_for_nan
from persimmon_ext.generation.pace import Pace
from persimmon_ext.generation.prompt import Prompt
from persimmon_ext.generation.sequences import common_beginning
from persimmon_ext.outputs import Speculation


def generate_speculatively(task: Task, prompt: Prompt, drafter: Drafter, pace: Pace) -> tuple[Tensor, Speculation]:
    """Returns the prompt and the new tokens, int64 [1, T + new], and how drafting went. `pace`: how many tokens to
    draft at a time."""
    tokens, logits = task.start(prompt)
    begin = prompt.ids.shape[1]
    with task.runner.lending_logits() if task.is_private else nullcontext():
        length, speculation = _go_on(task, tokens, begin, logits, prompt.earlier, drafter, pace)
    task.trace.shorten(length - begin)
    task.runner.truncate(prompt.earlier + length - 1)
    return tokens[:, :length].contiguous(), speculation


def _go_on(
    task: Task, tokens: Tensor, length: int, logits: Tensor, earlier: int, drafter: Drafter, pace: Pace
) -> tuple[int, Speculation]:
    """Writes new tokens into tokens int64 [1, longest] from `length` on, the first by `logits` [1, V]; returns the
    length, and how drafting went."""
    runner, drafted, accepted, steps = task.runner, 0, 0, 0
    ending = Ending(task.ends, task.criteria, task.pad, 1)
    watch = NanWatch(runner.model.dtype)
    drafts: list[int] = []
    logits = logits[:, None]  # [1, D + 1, V]
    while True:
        right, token = _choose(task, tokens, length, drafts, logits, watch)
        tokens[:, length + right] = token  # those before it stand there as drafts
        steps, drafted, accepted = steps + 1, drafted + len(drafts), accepted + right
        pace.learn(len(drafts), right)
        ending.look(tokens, length, length + right + 1, task.trace.scores_so_far())
        last = ending.longest(length + right + 1)
        if task.streamer is not None:
            for place in range(length, last):
                task.streamer.put(tokens[:, place].cpu())
        length = last
        if ending.all_ended or length == task.longest:
            return length, Speculation(drafted, accepted, steps)
        if right < len(drafts):
            runner.truncate(earlier + length - 1)
        # A step gives a token more than it checks.
        most = min(pace.drafts(), task.longest - length - 1)
        drafts = drafter.propose(tokens, length, most) if most else []
        if drafts:
            tokens[0, length : length + len(drafts)] = torch.tensor(drafts)
        fed = tokens.narrow(1, length - 1, 1 + len(drafts))
        logits = runner.feed(fed, earlier + length - 1, keep=fed.shape[1])


def _choose(
    task: Task, tokens: Tensor, length: int, drafts: list[int], logits: Tensor, watch: NanWatch
) -> tuple[int, Tensor]:
    """How many of the drafts, which follow the first `length` tokens, are the model's own choice, all before them being
    so too; and the token that it makes after them, int64 [1]. logits [1, D + 1, V]."""
    if task.processors or tokens.is_cpu:
        # Processors go by the ids before each place; and on the CPU a draw costs more than the wait for it. So places
        # after a rejected draft aren't worth it.
        for place in range(len(drafts) + 1):
            now = logits[:, place]
            choice = task.next_tokens(tokens, length + place, now, watch)
            watch.look(length + place)
            task.trace.note(now, choice.scores, None)
            if place == len(drafts) or int(choice.tokens) != drafts[place]:
                break
        return place, choice.tokens
    places = torch.arange(len(drafts) + 1, device=tokens.device)
    raise_for_nan(logits.amax(dim=-1), length, from_model(task.runner.model.dtype))
    choice = task.choose(logits[0], places)
    agreed = common_beginning(choice.tokens.tolist(), drafts)
    for place in range(agreed + 1):
        task.trace.note(logits[:, place], choice.scores[place : place + 1], None)
    task.choose.advance(agreed + 1)
    return agreed, choice.tokens[agreed : agreed + 1]
