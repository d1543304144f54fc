"""What the loops of generation share, and the plain one: a token a row and step, until every row has ended.

Dims: B batch, T tokens of the prompt, V vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from persimmon_ext.generation.criteria import Criterion, Ending
from persimmon_ext.generation.nan import NanWatch
from persimmon_ext.generation.processors import Processor
from persimmon_ext.generation.prompt import Prompt
from persimmon_ext.generation.runner import Runner
from persimmon_ext.generation.sampling import Choice, Chooser


class Streamer(Protocol):
    """Receives tokens while they are made; transformers' streamers are such objects."""

    def put(self, value: Tensor) -> None:
        """Called with the prompt [1, T] on the CPU, then with each new token [1]."""

    def end(self) -> None:
        """Called after the last token."""


@dataclass
class Trace:
    """What is kept of each step, for callers who asked: fp32 [B, V], or a tuple over layers; None is not kept."""

    scores: list[Tensor] | None = None
    logits: list[Tensor] | None = None
    attentions: list[Any] | None = None
    hidden_states: list[Any] | None = None

    def note(self, logits: Tensor, scores: Tensor, output: Any) -> None:
        """Keeps what is asked for; `output`: the model's, where it is needed."""
        for kept, value in ((self.logits, logits), (self.scores, scores)):
            if kept is not None:
                kept.append(value)
        if self.attentions is not None:
            self.attentions.append(output.attentions)
        if self.hidden_states is not None:
            self.hidden_states.append(output.hidden_states)

    def shorten(self, steps: int) -> None:
        """Forgets all but the first `steps`."""
        for kept in (self.scores, self.logits, self.attentions, self.hidden_states):
            if kept is not None:
                del kept[steps:]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept."""
        return self.scores is self.logits is self.attentions is self.hidden_states is None

    def scores_so_far(self) -> tuple[Tensor, ...] | None:
        """In the form that stopping criteria get."""
        return None if self.scores is None else tuple(self.scores)


@dataclass
class Task:
    """What every loop needs: how logits become tokens, and when rows end: by one of the ids `ends`, or `criteria`.

    `longest`: length of the result at most, prompt included. `copies`: results a row, which share its prompt's cache.
    """

    runner: Runner
    processors: Sequence[Processor]
    choose: Chooser
    ends: Sequence[int]
    criteria: Sequence[Criterion]
    pad: int | None
    longest: int
    copies: int = 1
    streamer: Streamer | None = None
    trace: Trace = field(default_factory=Trace)

    @property
    def is_private(self) -> bool:
        """Whether nobody but the loop sees logits."""
        return not self.processors and not self.criteria and self.trace.is_empty

    def process(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Scores fp32 [B, V] from ids [B, S] and logits fp32 [B, V], which stay as they are where they are kept.

        Raises TypeError or ValueError if a processor returns no tensor, or one of another shape.
        """
        scores = logits.clone() if self.trace.logits is not None and self.processors else logits
        for process in self.processors:
            scores = process(ids, scores)
            if not isinstance(scores, Tensor):
                raise TypeError(f"A logits_processor must return scores, got {scores!r} from {process!r}.")
            if scores.shape != logits.shape:
                raise ValueError(
                    f"A logits_processor must return scores of shape {list(logits.shape)}, got {list(scores.shape)} "
                    f"from {process!r}."
                )
        return scores

    def next_tokens(self, tokens: Tensor, length: int, logits: Tensor, watch: NanWatch) -> Choice:
        """Chooses a token a row from logits fp32 [B, V], which follow the first `length` of tokens int64 [B, ...].

        Raises ValueError, now or when `watch` looks, where logits or scores are NaN.
        """
        scores = logits
        if self.processors:
            watch.note(logits.amax(dim=-1))
            scores = self.process(tokens[:, :length], logits)
        try:
            choice = self.choose(scores)
        except ValueError:
            watch.note(scores.amax(dim=-1), processed=bool(self.processors))
            watch.look(length)
            raise
        if choice.peak is not None:
            watch.note(choice.peak, processed=bool(self.processors))
        return choice

    def start(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """Runs the prompt. Returns the buffer of results, int64 [B', longest] whose first T are filled, and the first
        logits, fp32 [B', V]; B' is B times the copies."""
        ids, runner = prompt.ids, self.runner
        if not runner.use_cache:  # each row is computed anew at each step anyway
            runner.repeat(self.copies)
            ids = ids.repeat_interleave(self.copies, dim=0)
        skip = prompt.skip if runner.use_cache else 0
        logits = runner.feed(ids[:, skip:], prompt.earlier + skip)[:, -1]
        if runner.use_cache and self.copies > 1:
            runner.repeat(self.copies)
            ids, logits = (tensor.repeat_interleave(self.copies, dim=0) for tensor in (ids, logits))
        tokens = ids.new_empty((len(ids), self.longest))
        tokens[:, : ids.shape[1]] = ids
        return tokens, logits

    def next_logits(self, tokens: Tensor, length: int, earlier: int) -> Tensor:
        """The logits fp32 [B, V] that follow the first `length` of tokens [B, ...], all but the last being cached."""
        first = length - 1 if self.runner.use_cache else 0
        return self.runner.feed(tokens.narrow(1, first, length - first), earlier + first)[:, -1]


def steps_between_looks(device: torch.device) -> int:
    """After how many tokens the host looks at them: on a GPU each look waits for all work that is under way."""
    return 1 if device.type == "cpu" else 8


def generate_plainly(task: Task, prompt: Prompt) -> Tensor:
    """Greedy search or sampling: returns the prompt and the new tokens, int64 [B', T + new]."""
    tokens, logits = task.start(prompt)
    begin = prompt.ids.shape[1]
    if task.is_private:
        with task.runner.lending_logits():
            length = _go_on(task, tokens, begin, logits, prompt.earlier)
    else:
        length = _go_on(task, tokens, begin, logits, prompt.earlier)
    task.trace.shorten(length - begin)
    task.runner.truncate(prompt.earlier + length - 1)
    return tokens[:, :length].contiguous()


def _go_on(task: Task, tokens: Tensor, length: int, logits: Tensor, earlier: int) -> int:
    """Writes new tokens into tokens int64 [B', longest] from `length` on, the first by `logits` [B', V]; returns the
    length of the longest row."""
    runner, streamer, looked = task.runner, task.streamer, length
    ending = Ending(task.ends, task.criteria, task.pad, len(tokens))
    watch = NanWatch(runner.model.dtype)
    interval = 1 if streamer is not None else steps_between_looks(tokens.device)
    while True:
        choice = task.next_tokens(tokens, length, logits, watch)
        task.trace.note(logits, choice.scores, runner.output)
        tokens[:, length] = ending.fill(choice.tokens)
        length += 1
        if length - looked >= interval or length == task.longest:
            watch.look(looked)
            if streamer is not None:
                streamer.put(tokens[:, looked].cpu())
            ending.look(tokens, looked, length, task.trace.scores_so_far())
            looked = length
            if ending.all_ended or length == task.longest:
                return ending.longest(length)
        logits = task.next_logits(tokens, length, earlier)
