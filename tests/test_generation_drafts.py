"""A draft model whose cache follows the text, whatever became of its guesses; and what checking them costs."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from persimmon_ext.generation.drafts import DraftModel
from persimmon_ext.generation.pace import _CHECKING
from persimmon_ext.generation.sampling import Greedy
from persimmon_ext.quantization import FORMATS

V = 100


class CountingRunner:
    """A model that goes on counting; `seen`: the tokens in its cache."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def truncate(self, length: int) -> None:
        del self.seen[length:]

    def feed(self, tokens: Tensor, first: int) -> Tensor:
        assert first == len(self.seen)
        self.seen += tokens[0].tolist()
        return torch.nn.functional.one_hot(tokens[:, -1:] + 1, V).float()


def drafter() -> tuple[DraftModel, CountingRunner]:
    runner = CountingRunner()
    task = SimpleNamespace(runner=runner, process=lambda ids, logits: logits, choose=Greedy())
    return DraftModel(task), runner  # type: ignore[arg-type]


def test_guesses_that_were_wrong_are_forgotten_after_a_pause() -> None:
    model, runner = drafter()
    text = torch.tensor([[*range(10), 10, 50, *range(51, 60)]])  # the second guess is wrong
    assert model.propose(text, 10, 4) == [10, 11, 12, 13]
    assert model.propose(text, 20, 2) == [59, 60]  # steps without drafts have made the tokens in between
    assert runner.seen == [*text[0, :20].tolist(), 59]


def test_guesses_that_were_right_are_not_computed_again() -> None:
    model, runner = drafter()
    fed: list[int] = []
    feed = runner.feed
    runner.feed = lambda tokens, first: (fed.append(tokens.shape[1]), feed(tokens, first))[1]  # type: ignore[method-assign]
    text = torch.arange(20)[None]
    model.propose(text, 10, 4)
    model.propose(text, 15, 1)
    assert fed == [10, 1, 1, 1, 2]  # the fourth guess was never fed, nor was the token behind it


def test_every_format_has_its_cost_of_checking() -> None:
    assert set(_CHECKING) == {None, *FORMATS}
