"""Generation on a GPU: steps are really captured as CUDA graphs, and looking at tokens late changes nothing there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generation_cases import left_padded, model_pair, prompt
from graph_helpers import Replays

from persimmon_ext.decode_graphs import DecodeGraphs
from persimmon_ext.generation import loop

pytestmark = pytest.mark.gpu


def model_on_gpu(dtype: torch.dtype = torch.bfloat16) -> Any:
    return model_pair()[1].to("cuda", dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", [None, "static", "int8"])
def test_steps_are_captured(implementation: str | None, dtype: torch.dtype) -> None:
    """Replayed graphs choose the tokens of the same steps run one by one over the same cache."""
    mine, stepwise = model_on_gpu(dtype), model_on_gpu(dtype)
    stepwise.decode_graphs = DecodeGraphs(Replays().capture)
    options = {"max_new_tokens": 20, "cache_implementation": implementation}
    for batch in (1, 3):
        for seed in (0, 1):
            ids = prompt(batch, 5, seed).cuda()
            assert torch.equal(mine.generate(ids, **options), stepwise.generate(ids, **options))
        assert mine.decode_graphs._free[batch].plan.is_captured
    graphs = {batch: entry.plan._captured for batch, entry in mine.decode_graphs._free.items()}
    ids, mask = (tensor.cuda() for tensor in left_padded([2, 7, 4]))
    options |= {"attention_mask": mask, "pad_token_id": 0}
    assert torch.equal(mine.generate(ids, **options), stepwise.generate(ids, **options))
    assert all(entry.plan._captured is graphs[batch] for batch, entry in mine.decode_graphs._free.items())


def test_float32_is_not_captured(caplog: pytest.LogCaptureFixture) -> None:
    model = model_on_gpu(torch.float32)
    model.generate(prompt().cuda(), max_new_tokens=4)
    assert not model.decode_graphs._free
    assert not any("can't be captured" in message for message in caplog.messages)


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 2.0, "seed": 3}])
def test_looking_late_changes_nothing(sampling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_on_gpu()
    ids, mask = (tensor.cuda() for tensor in left_padded([6, 2, 5]))
    options = {"attention_mask": mask, "eos_token_id": [*range(3, 20)], "pad_token_id": 0, "max_new_tokens": 30}
    assert loop.steps_between_looks(ids.device) > 1
    late = model.generate(ids, **options, **sampling)
    monkeypatch.setattr(loop, "steps_between_looks", lambda device: 1)
    assert torch.equal(model.generate(ids, **options, **sampling), late)
