"""The output dataclasses behave as transformers' ModelOutput does."""

import copy
import dataclasses
import pickle

import pytest
import torch
import transformers.modeling_outputs
from torch.utils import _pytree

from persimmon_ext import outputs

LOSS, LOGITS, HIDDEN = torch.tensor(1.0), torch.arange(6.0).view(2, 3), (torch.zeros(1), torch.ones(1))
NAMES = [
    "BaseModelOutputWithPast",
    "CausalLMOutputWithPast",
    "SequenceClassifierOutputWithPast",
    "TokenClassifierOutput",
]
VALUES = {"loss": LOSS, "logits": LOGITS, "hidden_states": HIDDEN, "last_hidden_state": LOGITS}


@pytest.mark.parametrize("name", NAMES)
def test_fields_are_transformers(name):
    ours, theirs = getattr(outputs, name), getattr(transformers.modeling_outputs, name)
    assert [field.name for field in dataclasses.fields(ours)] == [field.name for field in dataclasses.fields(theirs)]


def test_generate_fields_are_transformers():
    theirs = transformers.generation.GenerateDecoderOnlyOutput
    ours = outputs.GenerateOutput
    assert [field.name for field in dataclasses.fields(ours)] == [field.name for field in dataclasses.fields(theirs)]


@pytest.mark.parametrize("name", NAMES)
def test_behaves_as_model_output(name):
    ours, theirs = getattr(outputs, name), getattr(transformers.modeling_outputs, name)
    values = {key: value for key, value in VALUES.items() if key in ours.__dataclass_fields__}
    mine, other = ours(**values), theirs(**values)
    assert list(mine) == list(other)
    assert list(mine.keys()) == list(other.keys())
    assert len(mine) == len(other)
    for position in range(len(other)):
        assert mine[position] is other[position]
    assert mine[-1] is HIDDEN
    assert all(a is b for a, b in zip(mine[:2], other[:2], strict=True))
    assert all(a is b for a, b in zip(mine.to_tuple(), other.to_tuple(), strict=True))
    assert all(a is b for a, b in zip(mine.values(), other.values(), strict=True))
    assert {key: id(value) for key, value in mine.items()} == {key: id(value) for key, value in other.items()}
    assert dict(**mine).keys() == dict(**other).keys()
    for key, value in values.items():
        assert mine[key] is value
        assert getattr(mine, key) is value
        assert key in mine
    for missing in (99, "no_such_field", "attentions"):
        for output in (mine, other):
            with pytest.raises((IndexError, KeyError)):
                output[missing]
        assert mine.get(missing) is None
    assert mine.attentions is None
    assert isinstance(mine, dict)


def test_assignment():
    theirs = transformers.modeling_outputs.CausalLMOutputWithPast(logits=LOGITS)
    ours = outputs.CausalLMOutputWithPast(logits=LOGITS)
    for output in (ours, theirs):
        output.logits = LOGITS + 1
        output["hidden_states"] = HIDDEN
        assert output.hidden_states is HIDDEN
        assert torch.equal(output[0], LOGITS + 1)
        output.loss = LOSS
        assert output["loss"] is LOSS
    assert list(ours) == list(theirs)
    ours.loss = None
    assert list(ours) == ["logits", "hidden_states"]
    with pytest.raises(KeyError, match="loss"):
        ours["loss"]
    with pytest.raises(KeyError, match=r"no field 'los'.*logits"):
        ours["los"] = LOSS


def test_refuses_what_would_separate_keys_from_fields():
    output = outputs.TokenClassifierOutput(logits=LOGITS)
    attempts = [
        lambda: output.pop("logits"),
        output.popitem,
        lambda: output.update(loss=LOSS),
        lambda: output.setdefault("loss", LOSS),
        output.clear,
        lambda: output.__delitem__("logits"),
    ]
    for attempt in attempts:
        with pytest.raises(TypeError, match="TokenClassifierOutput does not support"):
            attempt()
    assert list(output) == ["logits"]


def test_unpacking_a_tuple():
    loss, logits = outputs.CausalLMOutputWithPast(loss=LOSS, logits=LOGITS).to_tuple()
    assert loss is LOSS
    assert logits is LOGITS
    assert outputs.CausalLMOutputWithPast().to_tuple() == ()


def test_rebuilt_from_a_mapping_as_libraries_do():
    values = {"loss": LOSS, "logits": LOGITS}
    for kind in (outputs.CausalLMOutputWithPast, transformers.modeling_outputs.CausalLMOutputWithPast):
        output = kind(dict(values))
        assert output.loss is LOSS
        assert output.logits is LOGITS
        assert list(output) == ["loss", "logits"]
    with pytest.raises(KeyError, match="nonsense"):
        outputs.CausalLMOutputWithPast({"nonsense": 1})


def test_copies_pickles_replaces_and_maps():
    output = outputs.CausalLMOutputWithPast(logits=LOGITS, hidden_states=HIDDEN)
    for twin in (copy.copy(output), copy.deepcopy(output), pickle.loads(pickle.dumps(output))):
        assert type(twin) is outputs.CausalLMOutputWithPast
        assert list(twin) == ["logits", "hidden_states"]
        assert torch.equal(twin.logits, LOGITS)
    assert dataclasses.replace(output, loss=LOSS).loss is LOSS
    doubled = _pytree.tree_map(lambda tensor: tensor * 2, output)
    assert type(doubled) is outputs.CausalLMOutputWithPast
    assert torch.equal(doubled.logits, LOGITS * 2)
    assert torch.equal(doubled.hidden_states[1], HIDDEN[1] * 2)
