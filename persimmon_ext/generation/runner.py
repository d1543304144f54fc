"""Runs a model over the tokens of one generation: prompts in chunks, then a few tokens at a time.

Dims: B batch, T tokens of a call, S all tokens (cached and new), V vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from persimmon_ext.inputs import drop_from

#: Tokens of all rows that one forward call of a prompt takes: bounds the memory of activations.
CHUNK_TOKENS = 4096
#: New tokens a row that a plan takes.
PLANNED_TOKENS = 8

Plan = Callable[[Tensor, int, Tensor | None, Any], Tensor]


@dataclass
class Recording:
    """What the forward calls return beside logits, for callers who asked."""

    attentions: bool = False
    hidden_states: bool = False

    def __bool__(self) -> bool:
        return self.attentions or self.hidden_states


@dataclass
class Recorded:
    """What a prompt's calls returned beside logits: of each layer [B, H, T, S] and [B, T, C]; None: not asked for."""

    attentions: tuple[Tensor, ...] | None
    hidden_states: tuple[Tensor, ...] | None


class Runner:
    """The model, its cache and the padding of one generation.

    `padding` int64 [B]: leading slots of each row that hold no token, or None. `slots`: the greatest S. `cache` is
    extended in place; None lets the model make one. `borrows`: whether the model lent it for this generation. `plan`
    runs few tokens faster than the model's forward.
    """

    def __init__(
        self,
        model: Any,
        *,
        padding: Tensor | None,
        slots: int,
        cache: Any,
        use_cache: bool = True,
        chunk: int | None = None,
        plan: Plan | None = None,
        recording: Recording | None = None,
        borrows: bool = False,
    ) -> None:
        self.model = model
        self._borrows = borrows
        self.cache = cache
        self.use_cache = use_cache
        self.recording = recording or Recording()
        #: What the latest call returned, where something is recorded.
        self.output: Any = None
        self._slots = slots
        self._chunk = chunk
        self._plan = plan if use_cache and not self.recording else None
        self._lends_logits = False
        self._set_padding(padding)

    def feed(self, tokens: Tensor, first: int, keep: int = 1) -> Tensor:
        """Runs tokens int64 [B, T] from slot `first` on; returns the last `keep` positions' logits, fp32 [B, keep, V]
        (see `lending_logits` for an exception).

        Without a cache, `tokens` is the whole sequence and `first` 0.
        """
        if self._plan is not None and tokens.shape[1] <= PLANNED_TOKENS:
            # Skips autograd's dispatch of each op; only the logits leave, as a copy that any mode can use.
            if self._lends_logits:
                return self._plan(tokens, first, self.padding, self.cache)
            with torch.inference_mode():
                logits = self._plan(tokens, first, self.padding, self.cache)
            return logits[:, -keep:].to(torch.float32, copy=True)
        done, last = 0, tokens.shape[1] - keep
        chunk = self._chunk_size(len(tokens))
        outputs: list[Any] = []
        while chunk is not None and done + chunk <= last:
            outputs.append(self._forward(self._decoder(), tokens[:, done : done + chunk], first + done))
            done += chunk
        output = self._forward(self.model, tokens[:, done:], first + done, logits_to_keep=keep)
        if self.recording:
            self.output = joined([*outputs, output]) if outputs else output
        logits = output.logits[:, -keep:].float()
        return logits

    @contextmanager
    def lending_logits(self) -> Iterator[None]:
        """Inside, `feed` may return logits in the model's dtype, of more positions than asked for, which the next call
        overwrites: for a caller that chooses tokens by them and no more. In inference mode, whose tensors must not get
        out."""
        self._lends_logits = True
        try:
            with torch.inference_mode():
                yield
        finally:
            self._lends_logits = False

    def repeat(self, copies: int) -> None:
        """Makes `copies` rows of each row, side by side."""
        if copies == 1:
            return
        if self.cache is not None:
            self.cache.batch_repeat_interleave(copies)
        self._set_padding(None if self.padding is None else self.padding.repeat_interleave(copies))

    def reorder(self, rows: Tensor) -> None:
        """Makes row i the present row ``rows[i]``, int64 [B]; padding must be the same in both."""
        if self.cache is not None:
            self.cache.reorder_cache(rows)

    def truncate(self, length: int) -> None:
        """Forgets the tokens in slots from `length` on."""
        if self.cache is not None and self.cache.get_seq_length() > length:
            drop_from(self.cache, length)

    def release(self, *, keeps_cache: bool) -> None:
        """Ends the use of a cache that the model lent; not `keeps_cache`: somebody else has it now."""
        graphs = getattr(self.model, "decode_graphs", None)
        if graphs is not None and self._borrows:
            graphs.give_back(self.cache, keeps=keeps_cache)

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """An exception inside, Ctrl-C too, leaves a given cache with the tokens that it had."""
        # A number, even where transformers keeps a tensor that counts on.
        length = 0 if self.cache is None else int(self.cache.get_seq_length())
        try:
            yield
        except BaseException:
            self.truncate(length)
            raise

    def _set_padding(self, padding: Tensor | None) -> None:
        self.padding = padding
        self._mask = self._positions = None
        if padding is not None:
            slots = torch.arange(self._slots, device=padding.device)
            self._mask = (slots >= padding[:, None]).long()
            self._positions = (slots - padding[:, None]).clamp(min=0)

    def _chunk_size(self, batch: int) -> int | None:
        if not self.use_cache:
            return None  # each call computes the whole sequence
        return self._chunk or max(CHUNK_TOKENS // batch, 1)

    def _decoder(self) -> Any:
        return getattr(self.model, getattr(self.model, "base_model_prefix", ""), self.model)

    def _forward(self, module: Any, tokens: Tensor, first: int, **options: Any) -> Any:
        end = first + tokens.shape[1]
        output = module(
            input_ids=tokens,
            attention_mask=None if self._mask is None else self._mask[:, :end],
            position_ids=None if self._positions is None else self._positions[:, first:end],
            past_key_values=self.cache,
            use_cache=self.use_cache,
            output_attentions=self.recording.attentions,
            output_hidden_states=self.recording.hidden_states,
            return_dict=True,
            **options,
        )
        if self.use_cache:
            self.cache = output.past_key_values
        return output


def joined(outputs: Sequence[Any]) -> Recorded:
    """What one call would have recorded that took the tokens of several, each after those before."""
    hidden = attentions = None
    if outputs[0].hidden_states is not None:
        hidden = tuple(torch.cat(layer, dim=1) for layer in zip(*(o.hidden_states for o in outputs), strict=True))
    if outputs[0].attentions is not None:
        S = outputs[-1].attentions[0].shape[-1]
        # No token sees those of later calls.
        padded = ([F.pad(a, (0, S - a.shape[-1])) for a in o.attentions] for o in outputs)
        attentions = tuple(torch.cat(layer, dim=2) for layer in zip(*padded, strict=True))
    return Recorded(attentions, hidden)
