"""What only a GPU does, on the CPU: looking at tokens a few steps late, and replaying captured steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from generation_cases import VOCAB, left_padded, model_pair, prompt
from graph_helpers import Replays
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

from persimmon_ext import PersimmonConfig, PersimmonForCausalLM
from persimmon_ext.decode_graphs import DecodeGraphs, GraphedPlan
from persimmon_ext.decode_plan import DecodePlan
from persimmon_ext.generation import loop, memory
from persimmon_ext.ops import native


@pytest.fixture(scope="module")
def model() -> Any:
    return model_pair()[1]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    interval=st.integers(2, 9),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    ends=st.lists(st.integers(3, VOCAB - 1), min_size=1, max_size=20),
    most=st.integers(1, 20),
    sampling=st.sampled_from([{}, {"do_sample": True, "temperature": 2.0, "seed": 3}]),
    modulus=st.integers(5, 60),
    seed=st.integers(0, 99),
)
def test_looking_late_changes_nothing(
    *, model: Any, interval: int, lengths: list[int], ends: list[int], most: int, sampling: Any, modulus: int, seed: int
) -> None:
    def by_a_sum(ids: Tensor, scores: Any) -> Tensor:
        return ids.sum(dim=1) % modulus == 0

    ids, mask = left_padded(lengths, seed=seed)
    options = {
        **{"attention_mask": mask, "eos_token_id": ends, "pad_token_id": 0, "max_new_tokens": most, **sampling},
        **{"stopping_criteria": [by_a_sum], "return_dict_in_generate": True, "output_scores": True},
    }
    expected = model.generate(ids, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "steps_between_looks", lambda device: interval)
        result = model.generate(ids, **options)
    assert torch.equal(result.sequences, expected.sequences)
    assert len(result.scores) == len(expected.scores)
    assert result.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()


def test_nan_is_found_late_and_said_where(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_pair()[1]
    third = int(model.generate(prompt(), max_new_tokens=3)[0, -1])
    with torch.no_grad():
        model.model.embed_tokens.weight[third] = float("nan")
    monkeypatch.setattr(loop, "steps_between_looks", lambda device: 8)
    with pytest.raises(ValueError, match="logits of row 0 are NaN at token 9"):
        model.generate(prompt(), max_new_tokens=30)


@pytest.fixture
def graphed(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Replays]:
    mine, replays = model_pair()[1], Replays()
    mine.decode_graphs = DecodeGraphs(replays.capture)
    # As if it were on a GPU.
    monkeypatch.setattr(DecodePlan, "can_be_captured", lambda model, *, int8_cache: model is mine)
    return mine, replays


def small_model(dtype: torch.dtype, **fields: Any) -> PersimmonForCausalLM:
    sizes = {"vocab_size": VOCAB, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2}
    return PersimmonForCausalLM(PersimmonConfig(**{**sizes, "num_attention_heads": 2, **fields})).to(dtype)


@contextmanager
def pretended_on_gpu(model: PersimmonForCausalLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`model` with fake weights on CUDA, where there may be no GPU, and every op with a kernel there."""
    monkeypatch.setattr(native, "KERNELS", native.KERNELS | {(op, "CUDA") for op, _ in native.KERNELS})
    with FakeTensorMode():
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                fake = torch.empty(weight.shape, dtype=weight.dtype, device="cuda")
                module.register_parameter(name, Parameter(fake))
        yield


@pytest.mark.parametrize(
    ("dtype", "fields", "expected"),
    [
        (torch.bfloat16, {}, True),
        (torch.float16, {}, True),
        (torch.float32, {}, False),
        (torch.bfloat16, {"num_attention_heads": 4}, False),  # heads of 32
        (torch.bfloat16, {"partial_rotary_factor": 0.25}, False),
        (torch.bfloat16, {"qk_layernorm": False}, False),
    ],
)
@pytest.mark.parametrize("int8_cache", [False, True])
def test_what_can_be_captured(
    dtype: torch.dtype, fields: Any, expected: bool, int8_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention without a kernel looks at values, so no capture is tried."""
    model = small_model(dtype, **fields)
    assert not DecodePlan.can_be_captured(model, int8_cache=int8_cache), "it is on the CPU"
    with pretended_on_gpu(model, monkeypatch):
        assert DecodePlan.can_be_captured(model, int8_cache=int8_cache) == expected


def test_attention_of_another_kind_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(torch.bfloat16)
    model.model.layers[1].self_attn = torch.nn.Identity()
    with pretended_on_gpu(model, monkeypatch):
        assert not DecodePlan.can_be_captured(model, int8_cache=False)


def test_only_what_can_be_captured_is_kept(monkeypatch: pytest.MonkeyPatch, graphed: tuple[Any, Replays]) -> None:
    mine, replays = graphed
    cache = mine.lend_cache(1, 64)
    assert isinstance(mine.decode_plan(64, cache), GraphedPlan)
    assert mine.decode_graphs.plan(mine.lend_cache(1, 64, "dynamic")) is None
    monkeypatch.setattr(DecodePlan, "can_be_captured", lambda model, *, int8_cache: False)
    assert mine.decode_graphs.plan(mine.lend_cache(1, 64)) is None
    mine.generate(prompt(), max_new_tokens=4)
    assert replays.captures == 0


def test_the_plan_says_whether_it_is_captured(graphed: tuple[Any, Replays]) -> None:
    mine, _ = graphed
    cache = mine.lend_cache(1, 64, None)
    plan = mine.decode_plan(64, cache)
    assert not plan.is_captured
    mine.generate(prompt(), past_key_values=cache, max_new_tokens=3)
    assert plan.is_captured


def test_replayed_steps_give_the_same(model: Any, graphed: tuple[Any, Replays]) -> None:
    mine, replays = graphed
    for batch in (1, 3):
        for seed, most in ((0, 10), (1, 30)):
            ids = prompt(batch, 5, seed)
            assert torch.equal(mine.generate(ids, max_new_tokens=most), model.generate(ids, max_new_tokens=most))
    assert replays.captures == 2, "once a batch size, whatever the prompts and lengths"
    assert replays.replays == 2 * (9 + 29)
    ids, mask = left_padded([2, 7, 4])
    options = {"attention_mask": mask, "max_new_tokens": 12, "pad_token_id": 0}
    assert torch.equal(mine.generate(ids, **options), model.generate(ids, **options))
    assert replays.captures == 2


def test_replayed_steps_over_an_int8_cache(model: Any, graphed: tuple[Any, Replays]) -> None:
    mine, replays = graphed
    for implementation in ("int8", "int8", "static"):
        options = {"max_new_tokens": 12, "cache_implementation": implementation}
        assert torch.equal(mine.generate(prompt(2, 5), **options), model.generate(prompt(2, 5), **options))
    assert replays.captures == 2, "once a kind of cache"
    assert replays.replays == 3 * 11


def test_a_returned_cache_is_not_used_again(model: Any, graphed: tuple[Any, Replays]) -> None:
    mine, replays = graphed
    first = mine.generate(prompt(), max_new_tokens=5, return_dict_in_generate=True)
    content = first.past_key_values.layers[0].keys.clone()
    mine.generate(prompt(1, 6, seed=8), max_new_tokens=5)
    assert torch.equal(first.past_key_values.layers[0].keys, content)
    assert replays.captures == 2
    more = mine.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=4)
    assert torch.equal(more, model.generate(prompt(), max_new_tokens=9))


def test_other_weights_are_captured_anew(graphed: tuple[Any, Replays]) -> None:
    mine, replays = graphed
    mine.generate(prompt(), max_new_tokens=4)
    mine.lm_head.weight = torch.nn.Parameter(-mine.lm_head.weight.detach())
    plain = model_pair()[1]
    plain.load_state_dict(mine.state_dict())
    assert torch.equal(mine.generate(prompt(), max_new_tokens=4), plain.generate(prompt(), max_new_tokens=4))
    assert replays.captures == 2
    assert isinstance(copy.deepcopy(mine).decode_graphs, DecodeGraphs)


def test_an_error_gives_the_cache_back(graphed: tuple[Any, Replays]) -> None:
    mine, replays = graphed
    expected = mine.generate(prompt(), max_new_tokens=6)

    def fail(ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] > 8:
            raise KeyboardInterrupt
        return scores

    with pytest.raises(KeyboardInterrupt):
        mine.generate(prompt(), max_new_tokens=6, logits_processor=[fail])
    assert torch.equal(mine.generate(prompt(), max_new_tokens=6), expected)
    assert replays.captures == 1


def test_where_capture_is_impossible(model: Any, graphed: tuple[Any, Replays], caplog: Any) -> None:
    mine, _ = graphed

    def refuse(step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        raise RuntimeError("operation not permitted when stream is capturing")

    mine.decode_graphs = DecodeGraphs(refuse)
    for _ in range(2):
        assert torch.equal(mine.generate(prompt(), max_new_tokens=6), model.generate(prompt(), max_new_tokens=6))
    assert sum("can't be captured" in message for message in caplog.messages) == 1


def test_beyond_the_positions_it_goes_on(graphed: tuple[Any, Replays]) -> None:
    mine, _ = graphed
    plain = model_pair()[1]
    with pytest.warns(UserWarning, match="made for 128"):
        result = mine.generate(prompt(), max_new_tokens=140)
    with pytest.warns(UserWarning, match="made for 128"):
        assert torch.equal(result, plain.generate(prompt(), max_new_tokens=140))
    assert torch.equal(mine.generate(prompt(), max_new_tokens=9), plain.generate(prompt(), max_new_tokens=9))


def test_the_batch_sizes_used_last_are_kept(graphed: tuple[Any, Replays]) -> None:
    mine, replays = graphed
    mine.decode_graphs = DecodeGraphs(replays.capture, most=2)
    for batch in (1, 2, 1, 3, 1):
        mine.generate(prompt(batch), max_new_tokens=3)
    assert replays.captures == 3
    mine.generate(prompt(2), max_new_tokens=3)  # of 1, 2 and 3 rows, 2 were used first
    assert replays.captures == 4
    mine.generate(prompt(1), max_new_tokens=3)
    assert replays.captures == 4


def test_kept_caches_make_room_for_others(graphed: tuple[Any, Replays], monkeypatch: pytest.MonkeyPatch) -> None:
    mine, replays = graphed
    mine.generate(prompt(1), max_new_tokens=3)
    mine.generate(prompt(2), max_new_tokens=3)
    one_row = 128 * memory.cache_bytes_per_token(mine.config, mine.dtype)

    def available(device: torch.device) -> int:
        kept = sum(entry.cache.batch_size for entry in mine.decode_graphs._free.values())
        return (4 - kept) * one_row

    monkeypatch.setattr(memory, "SMALL_BYTES", 0)
    monkeypatch.setattr(memory, "available_bytes", available)
    mine.generate(prompt(3), max_new_tokens=3)
    assert replays.captures == 3
    with pytest.raises(MemoryError, match="A cache of 5 x 128 tokens"):
        mine.generate(prompt(5), max_new_tokens=3)


def test_a_conversation_replays_too(graphed: tuple[Any, Replays]) -> None:
    mine, replays = graphed
    cache = mine.lend_cache(1, 64, None)  # as a conversation holds one over its turns
    first = mine.generate(prompt(), past_key_values=cache, max_new_tokens=6)
    mine.generate(torch.cat([first, prompt(seed=4)], dim=1), past_key_values=cache, max_new_tokens=6)
    assert (replays.captures, replays.replays) == (1, 10)
