"""Losses and gradients of every parameter equal transformers', in every dtype, and the training switches."""

from __future__ import annotations

import pytest
import torch
from helpers import DTYPES, assert_accurate, exact_twin, max_error, model_pair, random_ids

from persimmon_ext import reference


def sdpa_pair(*arguments: object, **changes: object):
    """transformers with its default attention, which gives zeros where a query sees no key, as ours does."""
    return model_pair(*arguments, attention="sdpa", **changes)


def gradients(model: torch.nn.Module, **inputs: object) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_gradients(ours, theirs, **inputs) -> None:
    exact_model = exact_twin(theirs)
    exact_inputs = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    mine, eager, exact = gradients(ours, **inputs), gradients(theirs, **inputs), gradients(exact_model, **exact_inputs)
    assert mine.keys() == eager.keys()
    for name, gradient in mine.items():
        assert_accurate(gradient, eager[name], exact[name], factor=3.0, name=name)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_causal_gradients(dtype, padding):
    ours, theirs = sdpa_pair(dtype=dtype)
    ids = random_ids(2, 19)
    mask = torch.ones_like(ids)
    if padding != "none":
        mask[1, slice(0, 5) if padding == "left" else slice(14, 19)] = 0
    labels = ids.masked_fill(mask == 0, -100)
    check_gradients(ours, theirs, input_ids=ids, attention_mask=mask, labels=labels)


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_layernorm": False},
        {"tie_word_embeddings": True},
        {"hidden_act": "gelu"},
        {"hidden_size": 16, "num_attention_heads": 2},
    ],
    ids=str,
)
def test_gradients_of_other_configurations(changes):
    ours, theirs = sdpa_pair(**changes)
    ids = random_ids(2, 11)
    check_gradients(ours, theirs, input_ids=ids, labels=ids)


@pytest.mark.parametrize("num_items", [None, 7, torch.tensor(7)])
def test_causal_loss(num_items):
    ours, theirs = sdpa_pair()
    ids = random_ids(2, 9)
    labels = ids.clone()
    labels[0, 3:6] = -100
    options = {} if num_items is None else {"num_items_in_batch": num_items}
    expected = theirs(ids, labels=labels, **options).loss
    assert max_error(ours(ids, labels=labels, **options).loss, expected) < 1e-5
    skipping = ours(ids, labels=labels, skip_logits=True, **options)
    assert max_error(skipping.loss, expected) < 1e-5
    assert skipping.logits is None


def test_gradients_without_logits():
    ours, _ = model_pair()
    ids = random_ids(2, 9)
    full = gradients(ours, input_ids=ids, labels=ids)
    for name, gradient in gradients(ours, input_ids=ids, labels=ids, skip_logits=True).items():
        torch.testing.assert_close(gradient, full[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("kind", ["int", "float"])
def test_sequence_classification(num_labels, kind):
    ours, theirs = sdpa_pair("ForSequenceClassification", num_labels=num_labels)
    ids = random_ids(3, 8)
    ids[1, :3], ids[2, 6:] = 0, 0  # pad_token_id: left and right padding
    mask = (ids != 0).long()
    if kind == "int":
        labels = torch.tensor([0, 2, 1]) if num_labels > 1 else torch.tensor([0.5, -1.0, 2.0])
    else:
        labels = torch.rand(3, num_labels)
    a, b = (m(ids, attention_mask=mask, labels=labels) for m in (ours, theirs))
    assert max_error(a.logits, b.logits) < 1e-5
    assert max_error(a.loss, b.loss) < 1e-5
    check_gradients(ours, theirs, input_ids=ids, attention_mask=mask, labels=labels)


@pytest.mark.parametrize("problem", ["regression", "single_label_classification", "multi_label_classification"])
def test_stated_problem_type(problem):
    ours, theirs = sdpa_pair("ForSequenceClassification", num_labels=3, problem_type=problem)
    labels = torch.tensor([1]) if problem.startswith("single") else torch.tensor([[0.0, 1.0, 1.0]])
    ids = random_ids(1, 5)
    assert max_error(ours(ids, labels=labels).loss, theirs(ids, labels=labels).loss) < 1e-5


def test_sequence_classification_from_embeddings():
    ours, theirs = sdpa_pair("ForSequenceClassification")
    embeds = ours.get_input_embeddings()(random_ids(2, 5)).detach()
    assert max_error(ours(inputs_embeds=embeds).logits, theirs(inputs_embeds=embeds).logits) < 1e-5


def test_token_classification():
    ours, theirs = sdpa_pair("ForTokenClassification", num_labels=5)
    ids = random_ids(2, 7)
    labels = torch.randint(0, 5, (2, 7))
    labels[0, :2] = -100
    a, b = (m(ids, labels=labels) for m in (ours, theirs))
    assert max_error(a.logits, b.logits) < 1e-5
    assert max_error(a.loss, b.loss) < 1e-5
    check_gradients(ours, theirs, input_ids=ids, labels=labels)


def test_gradient_checkpointing_changes_nothing():
    ours, _ = model_pair()
    ours.train()
    ids = random_ids(2, 9)
    plain = gradients(ours, input_ids=ids, labels=ids)
    ours.gradient_checkpointing_enable()
    assert ours.is_gradient_checkpointing
    with pytest.warns(UserWarning, match="use_cache is off"):
        again = gradients(ours, input_ids=ids, labels=ids)
    ours.gradient_checkpointing_disable()
    assert not ours.is_gradient_checkpointing
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name


def test_checkpointing_refuses_a_cache():
    ours, _ = model_pair()
    ours.train().gradient_checkpointing_enable()
    with torch.no_grad():
        cache = ours.eval()(random_ids(1, 3)).past_key_values
    with pytest.raises(ValueError, match="gradient checkpointing"):
        ours.train()(random_ids(1, 3), past_key_values=cache, use_cache=False)


def test_dropout_only_in_training():
    ours, _ = model_pair(hidden_dropout=0.3, attention_dropout=0.3)
    ids = random_ids(2, 9)
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, ours(ids).logits)
        ours.train()
        first, second = ours(ids).logits, ours(ids).logits
    assert not torch.equal(first, second)
    assert torch.isfinite(first).all()


def test_dropout_is_unbiased():
    """The mean over many dropped runs of one layer's attention approaches the run without dropout."""
    q, k, v = (torch.randn(1, 1, 4, 8) for _ in range(3))
    mask = reference.visible_keys(4, 4, q.device)
    plain, _ = reference.masked_attention(q, k, v, mask, 0.3)
    runs = torch.stack([reference.masked_attention(q, k, v, mask, 0.3, dropout=0.5)[0] for _ in range(4000)])
    assert max_error(runs.mean(0), plain) < 6 * float(runs.std(0).max()) / 4000**0.5


@pytest.mark.parametrize("skip_logits", [False, True])
def test_autocast(skip_logits):
    ours, theirs = sdpa_pair()
    ids = random_ids(2, 17)
    exact = gradients(exact_twin(theirs), input_ids=ids, labels=ids)
    with torch.autocast("cpu", torch.bfloat16):
        theirs(input_ids=ids, labels=ids).loss.backward()
        ours(input_ids=ids, labels=ids, skip_logits=skip_logits).loss.backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_accurate(mine.grad, other.grad, exact[name], factor=3.0, name=name)


def test_gradients_through_a_cache():
    """Keys kept from an earlier differentiable call receive gradients, as in transformers."""
    ours, theirs = sdpa_pair()
    ids = random_ids(2, 10)
    for model in (ours, theirs):
        first = model(ids[:, :6])
        model(ids[:, 6:], past_key_values=first.past_key_values, labels=ids[:, 6:]).loss.backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)
