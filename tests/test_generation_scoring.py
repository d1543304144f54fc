"""score() gives the log-probabilities of transformers' logits, in batches, with shared prefixes, and without [T, V]."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generation_cases import VOCAB, model_pair

from persimmon_ext import PersimmonForCausalLM, PersimmonTokenizer, embedded_checkpoint
from persimmon_ext.generation import scoring


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    return model_pair()


def random_ids(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def expected(model: Any, prompt: list[int], continuation: list[int]) -> tuple[torch.Tensor, bool]:
    """Log-probabilities from transformers' logits of one row alone."""
    ids = torch.tensor([prompt + continuation])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1].double()
    wanted = torch.tensor(continuation)
    return logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0], bool((logits.argmax(-1) == wanted).all())


def check(models: tuple[Any, Any], found: Any, prompt: list[int], continuation: list[int]) -> None:
    logprobs, greedy = expected(models[0], prompt, continuation)
    assert found.tokens == tuple(continuation)
    assert found.logprobs.dtype == torch.float32
    torch.testing.assert_close(found.logprobs.double(), logprobs, rtol=1e-4, atol=1e-4)
    assert found.is_greedy == greedy
    assert abs(found.total - float(logprobs.sum())) < 1e-3 * len(logprobs)
    assert found.perplexity == pytest.approx(float((-logprobs.mean()).exp()), rel=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_prompt_each(models: tuple[Any, Any], batch_size: int) -> None:
    prompts, continuations = random_ids(3, 9, 1, 20, 5), random_ids(4, 1, 12, 2, 70, seed=1)
    found = models[1].score(continuations, prompts=prompts, batch_size=batch_size)
    for one, prompt, continuation in zip(found, prompts, continuations, strict=True):
        check(models, one, prompt, continuation)


@pytest.mark.parametrize("cached", [None, 3, 6, 7])
def test_one_prompt_is_computed_once(models: tuple[Any, Any], cached: int | None) -> None:
    prompt, continuations = random_ids(7)[0], random_ids(4, 1, 12, seed=1)
    cache = None
    if cached is not None:
        with torch.no_grad():
            cache = models[1](torch.tensor([prompt[:cached]]), use_cache=True).past_key_values
    fed: list[int] = []
    handle = models[1].model.register_forward_hook(lambda _m, inputs, _o: fed.append(inputs[0].numel()))
    found = models[1].score(continuations, prompts=torch.tensor(prompt), past_key_values=cache)
    handle.remove()
    for one, continuation in zip(found, continuations, strict=True):
        check(models, one, prompt, continuation)
    # All but the prompt's last token once, or what the cache lacks of them; then 12 tokens of each of three rows.
    assert sum(fed) == max(6 - (cached or 0), 0) + 3 * 12
    assert cache is None or cache.get_seq_length() == cached


def test_without_a_prompt_from_bos(models: tuple[Any, Any]) -> None:
    for one, continuation in zip(models[1].score(random_ids(3, 5)), random_ids(3, 5), strict=True):
        check(models, one, [1], continuation)


def test_few_logits_at_a_time(models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_HEAD_ROWS", 7)
    monkeypatch.setattr(scoring, "_BATCH_TOKENS", 40)
    rows: list[int] = []
    handle = models[1].lm_head.register_forward_hook(lambda _m, inputs, _o: rows.append(inputs[0].shape[0]))
    continuations = random_ids(30, 25, 3, 3, seed=2)
    found = models[1].score(continuations)
    handle.remove()
    assert max(rows) == 7
    assert sum(rows) == sum(map(len, continuations))
    for one, continuation in zip(found, continuations, strict=True):
        check(models, one, [1], continuation)


def test_the_greedy_continuation_is_greedy(models: tuple[Any, Any]) -> None:
    prompt = random_ids(5)[0]
    best = models[1].generate(torch.tensor([prompt]), max_new_tokens=6)[0, 5:].tolist()
    assert [one.is_greedy for one in models[1].score([best, [3] * 6], prompts=prompt)] == [True, False]


def test_texts() -> None:
    folder = embedded_checkpoint()
    tokenizer, model = PersimmonTokenizer.from_pretrained(folder), PersimmonForCausalLM.from_pretrained(folder)
    model.float()
    prompt, texts = "def read_lines(path):\n", ["    with open(path) as file:\n", "    elephants are grey\n"]
    found = model.score(texts, prompts=prompt, tokenizer=tokenizer)
    assert found[0].logprobs.mean() > found[1].logprobs.mean() + 1
    for one, text in zip(found, texts, strict=True):
        whole = tokenizer(prompt + text)["input_ids"]
        ids = whole[len(whole) - len(one.tokens) :]
        again = model.score([ids], prompts=whole[: len(whole) - len(ids)])[0]
        torch.testing.assert_close(one.logprobs, again.logprobs, rtol=1e-4, atol=1e-4)
    assert [one.tokens for one in model.score(texts, prompts=[prompt, prompt], tokenizer=tokenizer)] == [
        one.tokens for one in found
    ]


@pytest.mark.parametrize(
    ("continuations", "options", "kind", "words"),
    [
        ("abc", {}, TypeError, "continuations must be a list of texts or of ids, got str"),
        (["abc"], {}, ValueError, "Texts need the tokenizer"),
        ([[5, 6], []], {}, ValueError, "Continuation 1 is empty"),
        ([[5, VOCAB]], {}, ValueError, f"Row 0 holds {VOCAB}, outside the vocabulary"),
        ([[5, 0.5]], {}, TypeError, "ids must be an integer, got 0.5"),
        ([[5]], {"prompts": [[1], [2]]}, ValueError, "There are 2 prompts for 1 continuations"),
        ([[5]], {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ([[5]], {"past_key_values": object()}, ValueError, "pass that prompt, one for all"),
        ([[5]], {"prompts": [4], "past_key_values": 3}, TypeError, "past_key_values must be a cache"),
    ],
)
def test_errors(models: tuple[Any, Any], continuations: Any, options: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        models[1].score(continuations, **options)


def test_nothing_to_score(models: tuple[Any, Any]) -> None:
    assert models[1].score([]) == []


def test_nan_is_an_error() -> None:
    _, model = model_pair()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(ValueError, match="logits of scored token 0 of a batch are NaN"):
        model.score([[5, 6]])
