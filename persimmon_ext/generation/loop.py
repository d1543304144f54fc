"""The decode loop: run the model, choose a token a row, until every row has ended or the length is reached.

Dims: B batch, T tokens of the prompt, V vocab.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from persimmon_ext.generation.processors import Processor
from persimmon_ext.generation.prompt import PaddedInputs, Prompt
from persimmon_ext.generation.sampling import Chooser
from persimmon_ext.generation.warning import warn


class Streamer(Protocol):
    """Receives tokens while they are made; transformers' streamers are such objects."""

    def put(self, value: Tensor) -> None:
        """Called with the prompt [1, T] on the CPU, then with each new token [1]."""

    def end(self) -> None:
        """Called after the last token."""


@dataclass
class Trace:
    """What the loop keeps a new token, for callers who asked: fp32 [B, V] each; None is not kept."""

    scores: list[Tensor] | None = None
    logits: list[Tensor] | None = None


@dataclass
class Decoder:
    """One generation: the model and how its logits become tokens.

    `ends` int64 [E]: tokens that end a row, which is then filled with `pad`. `longest`: length of the result at most,
    prompt included. `cache` is used and extended in place; None with `use_cache` lets the model make one.
    """

    model: Any
    processors: list[Processor]
    choose: Chooser
    ends: Tensor
    pad: int | None
    longest: int
    cache: Any = None
    use_cache: bool = True
    streamer: Streamer | None = None
    trace: Trace = field(default_factory=Trace)

    def run(self, prompt: Prompt) -> Tensor:
        """Returns the prompt and the new tokens, int64 [B, T + new], and leaves the cache in `cache`."""
        batch, length = prompt.ids.shape
        tokens = prompt.ids.new_empty((batch, self.longest))
        tokens[:, :length] = prompt.ids
        inputs = prompt.padded_inputs(self.longest - length)
        finished = torch.zeros(batch, dtype=torch.bool, device=tokens.device)
        if self.streamer is not None:
            self.streamer.put(prompt.ids.cpu())
        first = prompt.skip if self.use_cache else 0
        try:
            while length < self.longest:
                place = slice(prompt.earlier + first, prompt.earlier + length)
                logits = self._forward(tokens[:, first:length], inputs, place)
                chosen = self._next_tokens(tokens[:, :length], logits)
                if self.ends.numel():
                    chosen = chosen.masked_fill(finished, self.pad if self.pad is not None else 0)
                    finished |= torch.isin(chosen, self.ends)
                tokens[:, length] = chosen
                first, length = length if self.use_cache else 0, length + 1
                if self.streamer is not None:
                    self.streamer.put(chosen.cpu())
                if self.ends.numel() and bool(finished.all()):
                    break
        finally:
            # Also after an error or Ctrl-C: a reader in another thread would wait for ever.
            if self.streamer is not None:
                self.streamer.end()
        self._warn_of_length(prompt.earlier + length)
        return tokens[:, :length].contiguous()

    def _forward(self, tokens: Tensor, inputs: PaddedInputs | None, place: slice) -> Tensor:
        """Feeds `tokens` [B, T], which stand at `place` in the sequence; returns the last logits, fp32 [B, V]."""
        output = self.model(
            input_ids=tokens,
            attention_mask=None if inputs is None else inputs.mask[:, : place.stop],
            position_ids=None if inputs is None else inputs.positions[:, place],
            past_key_values=self.cache,
            use_cache=self.use_cache,
            logits_to_keep=1,
            return_dict=True,
        )
        if self.use_cache:
            self.cache = output.past_key_values
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _next_tokens(self, ids: Tensor, logits: Tensor) -> Tensor:
        invalid = logits.amax(dim=-1).isnan()  # the maximum of a row with a NaN is NaN
        if bool(invalid.any()):
            row = int(invalid.nonzero()[0])
            raise ValueError(
                f"The model's logits of row {row} are NaN at token {ids.shape[1]}: its weights hold NaN, or values "
                f"overflow in {self.model.dtype}."
            )
        scores = logits
        for process in self.processors:
            scores = process(ids, scores)
        chosen, scores = self.choose(ids, scores)
        if self.trace.logits is not None:
            self.trace.logits.append(logits)
        if self.trace.scores is not None:
            self.trace.scores.append(scores)
        return chosen

    def _warn_of_length(self, length: int) -> None:
        positions = self.model.config.max_position_embeddings
        if length > positions:
            warn(
                f"The sequence has {length} tokens and the model was made for {positions} (max_position_embeddings): "
                "what follows the first of them may be poor."
            )
