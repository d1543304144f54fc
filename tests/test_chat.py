"""Conversations: the published form, several turns, and what is wrong with a bad one."""

from __future__ import annotations

import pytest
import torch
import transformers
from tokenizer_models import TINY, tiny

from persimmon_ext.chat import beginning_of_a_turn, render_chat
from persimmon_ext.tokenizer import PersimmonTokenizer

USER = {"role": "user", "content": "Hello {{ x }}\n"}
REPLY = {"role": "assistant", "content": " Hi. "}


def test_one_prompt():
    text = tiny().apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "human: hi\n\nadept:"


def test_several_turns():
    messages = [{"role": "system", "content": "Be brief."}, USER, REPLY, {"role": "human", "content": "Bye"}]
    text = tiny().apply_chat_template(messages, tokenize=False)
    assert text == "Be brief.\n\nhuman: Hello {{ x }}\n\n\nadept: Hi.\n\nhuman: Bye"
    batch = tiny().apply_chat_template([messages, [USER]], tokenize=False)
    assert batch == [text, "human: Hello {{ x }}\n"]


def test_ids_are_those_of_the_text():
    text = tiny().apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    encoding = tiny().apply_chat_template([USER], add_generation_prompt=True, return_tensors="pt")
    assert torch.equal(encoding.input_ids, tiny()(text, return_tensors="pt").input_ids)
    ids = tiny().apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    assert ids == tiny().encode(text)


def test_batches_are_padded():
    tokenizer = PersimmonTokenizer(TINY, pad_token="</s>")
    batch = tokenizer.apply_chat_template([[USER], [USER, REPLY]], padding=True, return_tensors="pt")
    assert batch.input_ids.shape == batch.attention_mask.shape
    assert batch.input_ids.shape[0] == 2


def test_transformers_renders_the_same(tmp_path):
    tiny().save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for messages in ([USER], [USER, REPLY], [{"role": "system", "content": "S"}, USER, REPLY, USER]):
        for prompt in (True, False):
            ours = tiny().apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert ours == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        ids = tiny().apply_chat_template(messages, add_special_tokens=False, return_dict=False)
        assert ids == theirs.apply_chat_template(messages, return_dict=False)


@pytest.mark.parametrize(
    ("template", "beginning"),
    [
        ("{% for m in messages %}<ax:{{ m.role }}> {{ m.content }}{% endfor %}", "<ax:user>"),
        ("{% for m in messages %}[{{ m.content }}{% if loop.last %} end{% endif %}]{% endfor %}", ""),
        ("{% for m in messages %}{{ m.role }};{% endfor %}", ""),
    ],
    ids=["an x before the message", "the last turn differs", "no messages"],
)
def test_beginning_of_a_turn(template: str, beginning: str):
    assert beginning_of_a_turn(PersimmonTokenizer(TINY, chat_template=template)) == beginning


def test_another_template():
    template = "{{ bos_token }}{% for message in messages %}[{{ message.content }}]{% endfor %}{{ eos_token }}"
    assert tiny().apply_chat_template([REPLY], chat_template=template, tokenize=False) == "<s>[ Hi. ]</s>"


@pytest.mark.parametrize(
    ("messages", "error", "message"),
    [
        ("hi", TypeError, "A conversation is a list of messages, not str"),
        (USER, TypeError, "A conversation is a list of messages, not dict"),
        (None, TypeError, "not NoneType"),
        ([], ValueError, "holds no messages"),
        ([[]], ValueError, "holds no messages"),
        ([USER, "hi"], TypeError, "Message 1 must be a dict"),
        ([[USER], USER], TypeError, "Message 0 must be a dict"),
        ([{"role": "user"}], ValueError, "Message 0 needs a text under 'content'; it has None"),
        ([{"content": "x"}], ValueError, "Message 0 needs a text under 'role'"),
        ([{"role": "user", "content": ["x"]}], ValueError, "needs a text under 'content'"),
        ([{"role": "robot", "content": "x"}], ValueError, "role of message 0 is robot"),
        ([USER, {"role": "system", "content": "x"}], ValueError, "role of message 1 is system"),
    ],
)
def test_bad_conversations(messages, error, message):
    with pytest.raises(error, match=message):
        tiny().apply_chat_template(messages)


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ messages.x.y }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10000000) %}{% endfor %}",
    ],
)
def test_bad_or_hostile_templates(template):
    with pytest.raises(ValueError, match="The chat template cannot render this conversation"):
        render_chat(template, [USER])


def test_unknown_options():
    with pytest.raises(TypeError, match="tools"):
        tiny().apply_chat_template([USER], tools=[])
