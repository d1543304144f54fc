"""Rows, stop strings, the engine's order, caches that are joined, and the formats of metrics and fields."""

from __future__ import annotations

import time
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_helpers import alone, embedded, wait_for

from persimmon_ext import DynamicCache
from persimmon_ext.serving import memory
from persimmon_ext.serving.batch import Batch, join_caches
from persimmon_ext.serving.engine import Engine, Limits
from persimmon_ext.serving.errors import RequestError
from persimmon_ext.serving.metrics import Counter, Histogram, Metrics
from persimmon_ext.serving.row import Order, Piece, Row, Sampling
from persimmon_ext.serving.sampling import Penalties
from persimmon_ext.serving.scoring import score_prompt
from persimmon_ext.serving.stop_text import StopText


def row(order: Order) -> tuple[Row, list[Piece]]:
    pieces: list[Piece] = []
    return Row(order, embedded()[1], pieces.append), pieces


def order(prompt: str = "x = ", tokens: int = 50, **changes: object) -> Order:
    return Order(tuple(embedded()[1](prompt)["input_ids"]), tokens, **changes)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
@settings(max_examples=200, deadline=None)
def test_text_ends_before_the_first_stop_string_however_it_is_cut(text: str, stops: list[str], data: st.DataObject):
    stop, shown, rest = StopText(stops), "", text
    while rest and not stop.matched:
        size = data.draw(st.integers(1, len(rest)))
        shown += stop.put(rest[:size])
        rest = rest[size:]
        assert text.startswith(shown)
    shown += stop.finish()
    # Found as the text comes: of all that occur, those that end first; of these, the one that begins first.
    seen = text[: len(text) - len(rest)]
    places = [seen.find(one) for one in stops if one in seen]
    assert stop.matched == any(one in text for one in stops)
    assert shown == (seen[: min(places)] if places else text)


def test_a_row_streams_whole_characters_only():
    tokenizer = embedded()[1]
    text = "é日🙂!"
    ids = tokenizer.vocabulary.encode(text)
    assert len(ids) > len(text), "some character is to be made of several tokens"
    streamed, pieces = row(order(tokens=len(ids), streams=True))
    for token in ids:
        streamed.take(token)
    assert "".join(piece.text for piece in pieces) == text
    assert all(len(piece.text) == len(piece.text.encode().decode()) and "\ufffd" not in piece.text for piece in pieces)
    assert pieces[-1].finish_reason == "length"


def test_a_character_that_stays_incomplete_is_a_replacement():
    tokenizer = embedded()[1]
    (first,) = tokenizer.convert_tokens_to_ids(["<0xF0>"])
    held, pieces = row(order(tokens=2, streams=True))
    held.take(first)
    assert pieces == []
    held.take(first)
    assert pieces == [Piece("\ufffd\ufffd", (), "length")]


def test_a_character_begun_in_the_prompt_is_completed():
    tokenizer = embedded()[1]
    first, second = tokenizer.convert_tokens_to_ids(["<0xC3>", "<0xA9>"])
    begun, pieces = row(Order((1, first), 1))
    begun.take(second)
    assert pieces == [Piece("é", (), "length")]


def test_an_end_token_is_no_text_and_frees_what_was_held_back():
    ended, pieces = row(order(ends=frozenset([2]), stops=("\n\n",)))
    for token in [*embedded()[1].vocabulary.encode("y\n"), 2]:
        ended.take(token)
    assert pieces == [Piece("y\n", (), "stop")]
    assert ended.ended


def test_log_probabilities_are_of_the_tokens_before_the_stop_string():
    tokens = embedded()[1].vocabulary.encode("x = (1)\n\ny")
    scored, pieces = row(order(stops=("\n\n",), top=0, streams=True))
    for token in tokens:
        if not scored.ended:
            scored.take(token, -1.0)
    assert scored.text == "x = (1)"
    told = [entry for piece in pieces for entry in piece.scored]
    assert told == scored.scored
    assert embedded()[1].decode([entry.token for entry in told]).rstrip("\n") == "x = (1)"
    assert all(scored.text[entry.offset :] for entry in told)


def test_nothing_is_delivered_after_the_client_left():
    left, pieces = row(order(tokens=2, streams=True))
    left.cancelled = True
    left.take(5)
    left.take(5)
    left.fail(RequestError("late"))
    assert pieces == []


def test_caches_join_at_their_ends():
    caches = []
    for index, (batch, length) in enumerate([(3, 4), (1, 7)]):
        cache = DynamicCache()
        keys = torch.arange(batch * length, dtype=torch.float32).view(batch, 1, length, 1) + 100 * index + 1
        for layer in range(2):
            cache.update(keys * 10**layer, -keys, layer)
        caches.append((cache, keys))
    joined = join_caches([cache for cache, _ in caches], [[2, 0], [0]], 5)
    expected = torch.zeros(3, 1, 5, 1)
    expected[:2, :, 1:] = caches[0][1][[2, 0]]
    expected[2:] = caches[1][1][:, :, 2:]
    for layer in range(2):
        assert torch.equal(joined.layers[layer].keys, expected * 10**layer)
        assert torch.equal(joined.layers[layer].values, -expected)
    assert joined.get_seq_length() == 5
    assert all(layer.capacity == 0 for cache, _ in caches for layer in cache.layers), "the old ones are freed"


def test_prompts_of_several_steps_are_scored(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("persimmon_ext.serving.scoring._STEP_TOKENS", 7)
    model = embedded()[0]
    ids = tuple(range(3, 25))
    cache = DynamicCache(model.config)
    scores = score_prompt(model, ids, 2, cache)
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    exact = logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor([value for value, _ in scores]), exact, atol=1e-4, rtol=0)
    assert [[token for token, _ in top] for _, top in scores] == logprobs[:-1].topk(2).indices.tolist()
    assert cache.get_seq_length() == len(ids) - 1


def test_rows_run_in_the_order_in_which_they_came_as_far_as_the_cache_holds():
    model, tokenizer = embedded()
    ended: list[int] = []
    orders = [order("import os\n" * 8, 30), order(tokens=20), order(tokens=5)]
    # The first two don't fit together: each row of a cache has as many slots as the longest.
    limits = Limits(batch=8, slots=2 * orders[0].slots - 1)
    engine = Engine(model, limits, Metrics())
    rows = [Row(one, tokenizer, lambda piece, index=index: ended.append(index)) for index, one in enumerate(orders)]
    engine.start()
    engine.submit(rows)
    wait_for(lambda: len(ended) == 3)
    engine.drain(1)
    assert engine.join(5)
    assert ended == [0, 2, 1]
    assert [made.text for made in rows] == [
        alone(one, n)[0] for one, n in [("import os\n" * 8, 30), ("x = ", 20), ("x = ", 5)]
    ]


def test_a_drained_engine_takes_nothing_and_gives_up_in_time():
    model, tokenizer = embedded()
    engine = Engine(model, Limits(), Metrics())
    pieces: list[Piece] = []
    engine.start()
    engine.submit([Row(order(tokens=400), tokenizer, pieces.append)])
    engine.drain(0.1)
    begin = time.monotonic()
    assert engine.join(5)
    assert time.monotonic() - begin < 3
    assert pieces[-1].error is not None
    assert pieces[-1].error.status == 503
    with pytest.raises(RequestError, match="shutting down"):
        engine.submit([row(order())[0]])


def test_a_row_that_fails_costs_the_others_nothing():
    class Failing(Row):
        def take(self, *arguments: object) -> None:
            if len(self.tokens) == 3:
                raise ValueError("broken")
            super().take(*arguments)

    model, tokenizer = embedded()
    told: list[tuple[int, Piece]] = []
    orders = [order("import os\n", 12), order(tokens=12), order("def f(x):", 12, top=0, scores_prompt=True)]
    rows = [
        kind(one, tokenizer, lambda piece, index=index: told.append((index, piece)))
        for index, (kind, one) in enumerate(zip((Row, Failing, Row), orders, strict=True))
    ]
    metrics = Metrics()
    engine = Engine(model, Limits(), metrics)
    engine.start()
    engine.submit(rows)
    wait_for(lambda: len(told) == 3)
    engine.drain(1)
    assert engine.join(5)
    errors = {index: piece.error and piece.error.message for index, piece in told}
    assert errors == {0: None, 1: "The model failed: broken.", 2: None}
    assert [rows[0].text, rows[2].text] == [alone("import os\n", 12)[0], alone("def f(x):", 12)[0]]
    prompts = sum(len(one.prompt) for one in orders)
    assert f"persimmon_prompt_tokens_total {prompts}" in metrics.render(), "each prompt counts once"


def test_the_cache_of_a_row_whose_client_left_is_given_up():
    model = embedded()[0]
    rows = [row(order(tokens=40))[0] for _ in range(4)]
    batch = Batch(model)
    batch.add(rows)
    rows[0].cancelled = True
    batch.decode(lambda: False)
    assert [len(one.tokens) for one in rows] == [1, 2, 2, 2], "the stretch ends with the step that saw it"
    with mock.patch.object(model, "generate", wraps=model.generate) as generate:
        batch.decode(lambda: False)
    assert len(generate.call_args.args[0]) == 3, "rows that are computed"
    assert [one.text for one in rows[1:]] == [alone("x = ", 40)[0]] * 3


def test_penalties_stay_finite():
    harsh, _ = row(order(sampling=Sampling(repetition_penalty=0.01)))
    V = embedded()[0].config.vocab_size
    logits = torch.full((1, V), 1e38).index_fill(1, torch.arange(V // 2), -1e38)
    scores = Penalties([harsh], [0], V, torch.device("cpu"))(torch.tensor([harsh.order.prompt]), logits)
    assert scores.isfinite().all()


def test_the_cache_takes_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**9)
    assert memory.slots_that_fit(embedded()[0]) == 5 * 10**8 // (2 * 4 * 256 * 4)
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    with pytest.raises(RuntimeError, match="pass --cache-tokens"):
        memory.slots_that_fit(embedded()[0])


def test_metrics_are_prometheus_text():
    counter = Counter("asked_total", "Questions.", ("who",))
    counter.add(2, 'a "b"\n')
    assert counter.lines() == [
        "# HELP asked_total Questions.",
        "# TYPE asked_total counter",
        'asked_total{who="a \\"b\\"\\n"} 2',
    ]
    histogram = Histogram("wait_seconds", "Waiting.", bounds=(1, 2))
    for value in (0.5, 1, 1.5, 9):
        histogram.observe(value)
    assert histogram.lines()[2:] == [
        'wait_seconds_bucket{le="1"} 2',
        'wait_seconds_bucket{le="2"} 3',
        'wait_seconds_bucket{le="+Inf"} 4',
        "wait_seconds_sum 12",
        "wait_seconds_count 4",
    ]


def test_a_prompt_of_several_rows_runs_once():
    model = embedded()[0]
    asked = [order("def read(path):", 6, sampling=Sampling(temperature=1.0, seed=seed)) for seed in (3, 4, 5)]
    rows = [row(one)[0] for one in [*asked, order("x = ", 6)]]
    batch, fed = Batch(model), []
    generate = model.generate

    def spy(ids: torch.Tensor, **arguments: object) -> object:
        fed.append(tuple(ids.shape))
        return generate(ids, **arguments)

    with mock.patch.object(model, "generate", spy):
        batch.add(rows)
    assert sorted(fed) == [(1, len(rows[3].order.prompt)), (3, 1)]
    while not all(one.ended for one in rows):
        batch.decode(lambda: False)
    for one in rows[:3]:
        single = row(one.order)[0]
        alone_batch = Batch(model)
        alone_batch.add([single])
        while not single.ended:
            alone_batch.decode(lambda: False)
        assert one.tokens == single.tokens
