"""Beam search: the likeliest sequences of a row, kept side by side.

Scores are sums of processed log-probabilities; a sequence that ended is ranked by its score over a power of its length.
Source: Graves, "Sequence transduction", arXiv:1211.3711; which sequences count as ended and when the search stops is
transformers' rule. Dims: B rows, K beams of a row, N candidates of a row, T tokens of the prompt, V vocab.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from persimmon_ext.generation.criteria import Criterion, EndTokens, ended_rows
from persimmon_ext.generation.loop import Task
from persimmon_ext.generation.nan import AFTER_PROCESSORS, from_model, raise_for_nan
from persimmon_ext.generation.prompt import Prompt
from persimmon_ext.generation.sampling import filter_scores, sample_distinct
from persimmon_ext.generation.settings import Beams, Distribution, SpecialTokens

_NEVER = -1e9  # finite, so that a sequence that can't win still has a rank


@dataclass
class Hypotheses:
    """Sequences of each row: `ids` int64 [B, N, longest], `scores` fp32 [B, N], `origins` int64 [B, N, new], the flat
    beam that each new token continued (-1: none), and `ended` bool [B, N]."""

    ids: Tensor
    scores: Tensor
    origins: Tensor
    ended: Tensor

    def select(self, indices: Tensor) -> Hypotheses:
        """Those at `indices` int64 [B, N'] of each row."""
        along = indices[:, :, None]
        return Hypotheses(
            torch.take_along_dim(self.ids, along, 1),
            self.scores.gather(1, indices),
            torch.take_along_dim(self.origins, along, 1),
            self.ended.gather(1, indices),
        )

    def merged(self, other: Hypotheses) -> Hypotheses:
        """These and then those of `other`."""
        return Hypotheses(
            torch.cat([self.ids, other.ids], 1),
            torch.cat([self.scores, other.scores], 1),
            torch.cat([self.origins, other.origins], 1),
            torch.cat([self.ended, other.ended], 1),
        )


@dataclass
class BeamResult:
    """`sequences` int64 [B * results, T + new], `scores` fp32 [B * results], `origins` int64 [B * results, new]."""

    sequences: Tensor
    scores: Tensor
    origins: Tensor


class BeamSearch:
    """One search. `special`: tokens that end sequences. `fill`: what stands after an end. `rng` int64 [B, 2], seed and
    counter of each row, for a search that draws its candidates by `distribution`."""

    def __init__(
        self,
        task: Task,
        beams: Beams,
        special: SpecialTokens,
        fill: int,
        distribution: Distribution,
        rng: Tensor | None,
    ) -> None:
        self._task = task
        self._beams = beams
        self._fill = fill
        self._distribution = distribution
        self._rng = rng
        ends = torch.tensor(special.ends, dtype=torch.int64, device=task.runner.model.device)
        by_token: list[Criterion] = [EndTokens(ends)] if special.ends else []
        self._criteria = [*by_token, *task.criteria]
        # Were all of the best candidates to end, as many would still be there to go on.
        self._kept_tokens = max(2, 1 + len(special.ends))
        self._candidates = self._kept_tokens * beams.number

    def run(self, prompt: Prompt) -> BeamResult:
        """Searches from `prompt` until no row can improve, or the greatest length."""
        task, K = self._task, self._beams.number
        flat, logits = task.start(prompt)
        begin = length = prompt.ids.shape[1]
        B = len(prompt.ids)
        flat[:, begin:] = self._fill
        live = Hypotheses(
            ids=flat.view(B, K, -1),
            scores=logits.new_tensor([0.0] + [_NEVER] * (K - 1)).expand(B, K),  # all beams are equal at first
            origins=flat.new_full((B, K, task.longest - begin), -1),
            ended=torch.zeros(B, K, dtype=torch.bool, device=flat.device),
        )
        done = Hypotheses(live.ids.clone(), torch.full_like(live.scores, _NEVER), live.origins, live.ended)
        can_improve = torch.ones(B, 1, dtype=torch.bool, device=flat.device)
        while True:
            raise_for_nan(logits.amax(dim=-1), length, from_model(task.runner.model.dtype))
            candidates = self._extend(live, logits, length, begin)
            live = self._next_beams(candidates)
            done = self._collect(done, candidates, can_improve, length + 1 - begin)
            task.runner.reorder(live.origins[:, :, length - begin].flatten())
            length += 1
            can_improve = can_improve & self._may_improve(live, done, length - begin, task.longest - begin)
            full = self._beams.early_stopping is True and bool(done.ended.all())
            if full or not bool(can_improve.any()) or bool(candidates.ended.all()):
                break
            logits = task.next_logits(live.ids.flatten(0, 1), length, prompt.earlier)
        return self._best(done, begin)

    def _extend(self, live: Hypotheses, logits: Tensor, length: int, begin: int) -> Hypotheses:
        """The best (or drawn) continuations of each row by one token, best first."""
        task, (B, K) = self._task, live.scores.shape
        logprobs = task.process(live.ids.flatten(0, 1)[:, :length], logits.log_softmax(dim=-1))
        if task.processors:
            raise_for_nan(logprobs.amax(dim=-1), length, AFTER_PROCESSORS)
        if self._rng is not None:
            logprobs = filter_scores(logprobs, self._distribution, self._kept_tokens)
        task.trace.note(logits, logprobs, task.runner.output)
        V = logprobs.shape[-1]
        totals = (logprobs.view(B, K, V) + live.scores[:, :, None]).flatten(1)
        if self._rng is None:
            scores, chosen = totals.topk(self._candidates, dim=-1)
        else:
            chosen = sample_distinct(totals, self._rng, self._candidates)
            self._rng[:, 1] += 1
            scores = totals.gather(1, chosen)
        beam = chosen // V
        candidates = live.select(beam)
        candidates.ids[:, :, length] = chosen % V
        candidates.origins[:, :, length - begin] = beam + torch.arange(B, device=beam.device)[:, None] * K
        candidates.scores = scores
        if length + 1 == task.longest:
            candidates.ended = torch.ones_like(candidates.ended)
        else:
            ids = candidates.ids.flatten(0, 1)[:, : length + 1]
            candidates.ended = ended_rows(self._criteria, ids, task.trace.scores_so_far()).view(B, -1)
        return candidates

    def _next_beams(self, candidates: Hypotheses) -> Hypotheses:
        """The best candidates that go on."""
        scores = candidates.scores + candidates.ended * _NEVER
        best = scores.topk(self._beams.number, dim=-1).indices
        live = candidates.select(best)
        live.scores = scores.gather(1, best)
        return live

    def _collect(self, done: Hypotheses, candidates: Hypotheses, can_improve: Tensor, new: int) -> Hypotheses:
        """The best sequences that have ended, after `new` tokens; of the candidates, only the first K can."""
        K = self._beams.number
        ended = candidates.ended.clone()
        ended[:, K:] = False
        closed = ~can_improve
        if self._beams.early_stopping is True:
            closed = closed | done.ended.all(dim=1, keepdim=True)
        ranked = candidates.scores / new**self._beams.length_penalty
        ranked = ranked + closed * _NEVER + ~ended * _NEVER
        merged = done.merged(Hypotheses(candidates.ids, ranked, candidates.origins, ended))
        return merged.select(merged.scores.topk(K, dim=-1).indices)

    def _may_improve(self, live: Hypotheses, done: Hypotheses, new: int, most: int) -> Tensor:
        """Whether the best live sequence of a row could still replace the worst that ended, bool [B, 1].

        A guess with a positive length penalty, as scores may rise with the length; not with "never".
        """
        penalty = self._beams.length_penalty
        length = most if self._beams.early_stopping == "never" and penalty > 0 else new
        possible = live.scores[:, :1] / length**penalty
        worst = done.scores.min(dim=1, keepdim=True).values
        return (possible > torch.where(done.ended, worst, _NEVER)).any(dim=1, keepdim=True)

    def _best(self, done: Hypotheses, begin: int) -> BeamResult:
        results = self._beams.results
        origins = done.origins[:, :results].flatten(0, 1)
        new = int((origins >= 0).sum(dim=1).max())
        sequences = done.ids[:, :results].flatten(0, 1)[:, : begin + new].contiguous()
        return BeamResult(sequences, done.scores[:, :results].flatten(), origins[:, :new])
