"""How many tokens are drafted at a time, so that drafting gains where it can and loses next to nothing elsewhere.

The rule goes by counts alone, never by a clock: how the tokens of a text are divided into steps decides how products
round, and the same call shall give the same text each time.
"""

from __future__ import annotations

from typing import Any

#: What a drafted token adds to a step, in steps of one token, by the format of the weights: the fewer bytes a weight
#: has, the sooner products with several rows wait for arithmetic instead of memory. Measured on a CPU (steps of 2 to 8
#: tokens of the 8B shape: 0.03 to 0.09, 0.14 to 0.20, 0.36 to 0.42; docs/generation.md), never on a GPU.
_CHECKING = {None: 0.1, "int8": 0.2, "int4": 0.4}
#: The same for weights that stay in a processor's caches, on the safe side of the 0.16 to 0.22 measured at the embedded
#: model's shape, and how many bytes those may have.
_CHECKING_IN_CACHE, _CACHE_BYTES = 0.35, 1 << 25


def draft_cost(model: Any, assistant: Any = None) -> float:
    """What a token that `assistant` drafts, or nobody's model, costs in steps of `model` over one token."""
    size = _bytes(model)
    cost = _CHECKING[getattr(model, "quantization", None)]
    if size <= _CACHE_BYTES:
        cost = max(cost, _CHECKING_IN_CACHE)
    return cost if assistant is None else cost + _bytes(assistant) / size


def _bytes(model: Any) -> int:
    return sum(tensor.nbytes for tensors in (model.parameters(), model.buffers()) for tensor in tensors)


class Pace:
    """How many tokens to draft for the next step, at most `most`, where each adds `cost` steps of one token.

    As many as make the most tokens for the time, going by how often the latest drafts were right; and only what is to
    be had on credit: accepted drafts and, a little, every token made add to it, and drafts take from it. So however
    wrong the drafts are, they take at most `START` steps and a share `EARNED` of the time. What comes out
    doesn't depend on it, but for the rounding above. Source of the expected gain: Leviathan et al., arXiv:2211.17192,
    section 3.3.
    """

    START, EARNED = 1.0, 0.01
    _MOST = 4.0  # credit: what a text that stops to repeat itself may lose
    _MEMORY = 0.8  # weight of all drafts before a step in the rate at which they are right
    _PRIOR_RIGHT, _PRIOR_TRIED = 1.5, 2.0

    def __init__(self, most: int, cost: float) -> None:
        self._most = most
        self._cost = cost
        self._credit = self.START
        self._right, self._tried = self._PRIOR_RIGHT, self._PRIOR_TRIED

    def drafts(self) -> int:
        """Tokens to draft for the next step; 0 without credit."""
        affordable = int(self._credit / self._cost)
        return min(self._best(), affordable) if affordable else 0

    def learn(self, drafted: int, accepted: int) -> None:
        """Takes note of a step that checked so many drafts, of which the first ones were right."""
        earned = self.EARNED * (accepted + 1) + accepted - self._cost * drafted
        self._credit = min(self._credit + earned, self._MOST)
        if drafted:  # those behind a wrong one were not tried
            self._right = self._MEMORY * self._right + accepted
            self._tried = self._MEMORY * self._tried + min(accepted + 1, drafted)

    def _best(self) -> int:
        """The number that is expected to give the most tokens for the time of a step; 1, as a trial, if none pays."""
        rate = self._right / self._tried
        tokens = kept = 1.0
        best, most = 1, 0.0
        for number in range(1, self._most + 1):
            kept *= rate
            tokens += kept
            speed = tokens / (1 + self._cost * number)
            if speed > most:
                best, most = number, speed
        return best
