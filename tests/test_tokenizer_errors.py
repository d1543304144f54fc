"""Every bad argument of the tokenizer is a sentence with the value in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizer_models import TINY, tiny, train

from persimmon_ext.tokenizer import PersimmonTokenizer

CALLS = [
    ((3,), {}, TypeError, "takes a text or a list of texts, not int"),
    ((None,), {}, TypeError, "not NoneType"),
    ((b"x",), {}, TypeError, "not bytes"),
    (({"text": "x"},), {}, TypeError, "not dict"),
    ((["a", 3],), {}, TypeError, "not a list with an entry of type int"),
    (([["a", "b"]],), {}, TypeError, "not a list with an entry of type list"),
    (([("a", "b")],), {}, TypeError, "not a list with an entry of type tuple"),
    (("a", "b"), {}, ValueError, "no pairs of texts"),
    (("a\ud800b",), {}, ValueError, r"lone surrogate, '\\ud800', at position 1"),
    (("a",), {"padding": True}, ValueError, "Padding needs a padding token"),
    (("a",), {"padding": "widest"}, ValueError, "padding must be .* not 'widest'"),
    (("a",), {"padding": 2}, ValueError, "padding must be .* not 2"),
    (("a",), {"padding": ["longest"]}, ValueError, "padding must be .* not"),
    (("a",), {"padding_side": "middle"}, ValueError, "padding_side must be 'left' or 'right', not 'middle'"),
    (("a",), {"truncation": "only_second"}, ValueError, "truncation must be .* not 'only_second'"),
    (("a",), {"truncation": 1.0}, ValueError, r"truncation must be .* not 1\.0"),
    (("a",), {"truncation": True, "max_length": 0}, ValueError, "max_length must be at least 1, not 0"),
    (("a",), {"truncation": True, "max_length": -1}, ValueError, "max_length must be at least 1, not -1"),
    (("a",), {"max_length": 2.5}, TypeError, r"max_length must be an integer, not 2\.5"),
    (("a",), {"max_length": True}, TypeError, "max_length must be an integer, not True"),
    (("a",), {"return_tensors": "tf"}, ValueError, "return_tensors must be 'pt', 'np' or None, not 'tf'"),
    ((["a", "a b"],), {"return_tensors": "pt"}, ValueError, "Texts of 2 to 3 tokens do not fit one tensor"),
    (("a",), {"no_such_option": 1}, TypeError, "no_such_option"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), CALLS)
def test_calls(arguments, options, error, message):
    with pytest.raises(error, match=message):
        tiny()(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"padding": "max_length"}, ValueError, "padding='max_length' needs max_length"),
        ({"padding": "max_length", "max_length": -1}, ValueError, "max_length must be at least 0, not -1"),
        ({"padding": True, "pad_to_multiple_of": 0}, ValueError, "pad_to_multiple_of must be at least 1, not 0"),
        ({"padding": True, "pad_to_multiple_of": "8"}, TypeError, "pad_to_multiple_of must be an integer, not '8'"),
    ],
)
def test_padding(options, error, message):
    with pytest.raises(error, match=message):
        PersimmonTokenizer(TINY, pad_token="</s>")("a", **options)


@pytest.mark.parametrize(
    ("method", "argument", "error", "message"),
    [
        ("encode", ["a"], TypeError, "encode takes one text, not list"),
        ("encode", None, TypeError, "encode takes one text, not NoneType"),
        ("tokenize", 5, TypeError, "A text is a str, not int"),
        ("decode", 4096, ValueError, "The id 4096 is outside the vocabulary of 4096 tokens"),
        ("decode", [1, -100], ValueError, "The id -100 is outside"),
        ("decode", [2**70], ValueError, "is outside the vocabulary"),
        ("decode", [1.0], TypeError, r"Ids are integers, not 1\.0"),
        ("decode", torch.ones(2), TypeError, r"Ids are integers, not 1\.0"),
        ("decode", torch.ones(2, 2, dtype=torch.int64), ValueError, r"not shape \[2, 2\]; see batch_decode"),
        ("decode", np.ones((1, 2), dtype=np.int64), ValueError, r"not shape \[1, 2\]; see batch_decode"),
        ("decode", [[1, 2]], TypeError, r"Ids are integers, not \[1, 2\]"),
        ("decode", "abc", TypeError, "Ids are integers, not 'abc'"),
        ("decode", None, TypeError, "Ids are integers, not None"),
        ("decode", {1: 2}, TypeError, "Ids are integers, not {1: 2}"),
        ("decode", [True], TypeError, "Ids are integers, not True"),
        ("batch_decode", 3, TypeError, "batch_decode takes rows of ids, not 3"),
        ("batch_decode", "abc", TypeError, "batch_decode takes rows of ids, not 'abc'"),
        ("convert_ids_to_tokens", 4096, ValueError, "The id 4096 is outside"),
        ("convert_ids_to_tokens", "x", TypeError, "Ids are integers, not 'x'"),
        ("convert_tokens_to_ids", 3, TypeError, "A token is a text; 3 is none"),
        ("convert_tokens_to_ids", ["a", None], TypeError, "A token is a text; None is none"),
    ],
)
def test_methods(method, argument, error, message):
    with pytest.raises(error, match=message):
        getattr(tiny(), method)(argument)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pad_token": "<pad>"}, ValueError, "pad_token '<pad>' is not one of the vocabulary's 4096 tokens"),
        ({"bos_token": ""}, ValueError, "bos_token '' is not one of"),
        ({"eos_token": 2}, TypeError, "eos_token must be a text or None, not 2"),
        ({"additional_special_tokens": "abc"}, TypeError, "additional_special_tokens must be a list of texts"),
        ({"additional_special_tokens": [3]}, TypeError, "additional_special_tokens must be a list of texts"),
        ({"additional_special_tokens": ["<nope>"]}, ValueError, "additional_special_tokens '<nope>' is not one of"),
        ({"additional_special_tokens": 5}, TypeError, "additional_special_tokens must be a list of texts, not 5"),
        ({"added_tokens": {"<a>": 5000}}, ValueError, "added token '<a>' has the id 5000.* so 4096 is next"),
        ({"added_tokens": {"": 4096}}, ValueError, "added token ''"),
        ({"added_tokens": {"return": 4096}}, ValueError, "added token 'return' .* already a piece"),
        ({"added_tokens": ["<a>"]}, TypeError, "added_tokens must map texts to ids"),
        ({"added_tokens": {"<a>": "4096"}}, TypeError, "added_tokens must map texts to ids"),
        ({"padding_side": "top"}, ValueError, "padding_side must be 'left' or 'right', not 'top'"),
        ({"truncation_side": None}, ValueError, "truncation_side must be 'left' or 'right', not None"),
        ({"model_max_length": 0}, ValueError, "model_max_length must be at least 1, not 0"),
        ({"model_max_length": "9"}, TypeError, "model_max_length must be an integer, not '9'"),
        ({"add_bos_token": 1}, ValueError, "add_bos_token must be True or False, not 1"),
        ({"add_eos_token": None}, ValueError, "add_eos_token must be True or False, not None"),
        ({"split_special_tokens": "no"}, ValueError, "split_special_tokens must be True or False, not 'no'"),
        ({"chat_template": None}, TypeError, r"chat_template must be a text \(Jinja source\), not NoneType"),
    ],
)
def test_settings(options, error, message):
    with pytest.raises(error, match=message):
        PersimmonTokenizer(TINY, **options)


@pytest.mark.parametrize("model", [None, 3, ["x"]])
def test_model_argument(model):
    with pytest.raises(TypeError, match="sentencepiece model as bytes or its path, not"):
        PersimmonTokenizer(model)


def test_roles_reject_what_is_no_token():
    tokenizer = PersimmonTokenizer(TINY)
    with pytest.raises(ValueError, match="pad_token '<pad>' is not one of the vocabulary's 4096 tokens"):
        tokenizer.pad_token = "<pad>"
    with pytest.raises(ValueError, match="The id 4096 is outside"):
        tokenizer.pad_token_id = 4096
    assert tokenizer.pad_token is None


def test_missing_batch_entries():
    with pytest.raises(AttributeError, match=r"no entry 'labels'; it has \['attention_mask', 'input_ids'\]"):
        _ = tiny()("x").labels


def test_a_model_that_rewrites_decoded_text(tmp_path):
    rules = tmp_path / "rules.tsv"
    rules.write_text("61\t62\n")
    with pytest.raises(ValueError, match="denormalization"):
        PersimmonTokenizer(train(denormalization_rule_tsv=str(rules)))
