"""OpenAI's interface, used by OpenAI's own client: completions, chat, streams, log-probabilities, errors."""

from __future__ import annotations

import httpx
import openai
import pytest
import torch
from serving_helpers import NAME, Running, alone, embedded, running

PROMPT = "def read_lines(path):"


@pytest.fixture(scope="module")
def server():
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Running):
    return server.client()


def complete(client: openai.OpenAI, **arguments):
    return client.completions.create(**{"model": NAME, "prompt": PROMPT, "temperature": 0, **arguments})


def chat(client: openai.OpenAI, **arguments):
    messages = [{"role": "user", "content": "Write a function."}]
    return client.chat.completions.create(**{"model": NAME, "messages": messages, "temperature": 0, **arguments})


def test_models_are_listed(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match='There is no model "gpt-4" here'):
        client.models.retrieve("gpt-4")


def test_greedy_completion_is_what_generate_makes(client: openai.OpenAI):
    text, tokens = alone(PROMPT, 24)
    reply = complete(client, max_tokens=24)
    assert (reply.object, reply.model) == ("text_completion", NAME)
    assert [(choice.index, choice.text, choice.finish_reason) for choice in reply.choices] == [(0, text, "length")]
    prompt = len(embedded()[1](PROMPT)["input_ids"])
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (prompt, len(tokens))
    assert reply.usage.total_tokens == prompt + len(tokens)


def test_default_length_is_openai_s(client: openai.OpenAI):
    assert complete(client).usage.completion_tokens == 16


def test_prompts_may_be_texts_or_ids(client: openai.OpenAI):
    ids = embedded()[1](PROMPT)["input_ids"]
    expected = [alone(PROMPT, 8)[0], alone("import os", 8)[0]]
    both = complete(client, prompt=[PROMPT, "import os"], max_tokens=8)
    assert [choice.text for choice in both.choices] == expected
    assert complete(client, prompt=ids, max_tokens=8).choices[0].text == expected[0]
    assert [choice.text for choice in complete(client, prompt=[ids, ids], max_tokens=8).choices] == expected[:1] * 2


def test_sampling_goes_by_the_seed_as_in_generate(client: openai.OpenAI):
    settings = {"temperature": 0.9, "top_p": 0.8, "seed": 7}
    expected = alone(PROMPT, 20, do_sample=True, top_k=0, **settings)[0]
    assert complete(client, max_tokens=20, **settings).choices[0].text == expected
    reply = complete(client, max_tokens=20, n=3, **settings)
    texts = [choice.text for choice in reply.choices]
    assert texts[0] == expected
    assert len(set(texts)) == 3, "each choice has its own random stream"
    assert [choice.text for choice in complete(client, max_tokens=20, n=3, **settings).choices] == texts


def test_without_a_seed_replies_differ(client: openai.OpenAI):
    texts = {complete(client, max_tokens=20, temperature=1.5).choices[0].text for _ in range(3)}
    assert len(texts) > 1


def test_other_sampling_settings_have_generate_s_meaning(client: openai.OpenAI):
    extra = {"top_k": 5, "min_p": 0.05}
    expected = alone(PROMPT, 16, do_sample=True, temperature=1.3, seed=3, **extra)[0]
    assert complete(client, max_tokens=16, temperature=1.3, seed=3, extra_body=extra).choices[0].text == expected
    expected = alone(PROMPT, 16, repetition_penalty=1.4)[0]
    assert complete(client, max_tokens=16, extra_body={"repetition_penalty": 1.4}).choices[0].text == expected


def test_penalties_and_bias_change_the_choice(client: openai.OpenAI):
    model, tokenizer = embedded()
    ids = tokenizer(PROMPT)["input_ids"]
    with torch.no_grad():
        counts, expected = torch.zeros(model.config.vocab_size), []
        for _ in range(16):
            logits = model(torch.tensor([ids + expected])).logits[0, -1]
            logits = logits - 0.7 * counts - 0.4 * (counts > 0)
            logits[3] += 2
            expected.append(int(logits.argmax()))
            counts[expected[-1]] += 1
    reply = complete(
        client, max_tokens=16, frequency_penalty=0.7, presence_penalty=0.4, logit_bias={"3": 2}, logprobs=0
    )
    assert reply.choices[0].text == tokenizer.decode(ids + expected, skip_special_tokens=True)[len(PROMPT) :]


def test_log_probabilities_are_the_model_s(client: openai.OpenAI):
    model, tokenizer = embedded()
    ids = tokenizer(PROMPT)["input_ids"]
    reply = complete(client, max_tokens=6, logprobs=3, echo=True, temperature=1, seed=0).choices[0]
    assert reply.text.startswith(PROMPT)
    _, new = alone(PROMPT, 6, do_sample=True, top_k=0, seed=0)
    tokens = ids + new
    with torch.no_grad():
        logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    exact = logprobs[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    told = reply.logprobs
    assert told.token_logprobs[0] is None
    torch.testing.assert_close(torch.tensor(told.token_logprobs[1:]), exact, atol=2e-4, rtol=0)
    for entry, row in zip(told.top_logprobs[1:], logprobs, strict=False):
        assert list(entry.values()) == pytest.approx(row.topk(3).values.tolist(), abs=2e-4)
    ends = [*told.text_offset[1:], len(reply.text)]
    pieces = [reply.text[begin:end] for begin, end in zip(told.text_offset, ends, strict=True)]
    assert pieces[1:] == [token if place else token.lstrip() for place, token in enumerate(told.tokens[1:])]


def test_a_prompt_can_be_scored_alone(client: openai.OpenAI):
    reply = complete(client, max_tokens=0, echo=True, logprobs=1)
    assert reply.choices[0].text == PROMPT
    assert len(reply.choices[0].logprobs.tokens) == reply.usage.prompt_tokens
    assert reply.usage.completion_tokens == 0


def test_stop_strings_end_the_text_before_them(client: openai.OpenAI):
    text = alone(PROMPT, 40)[0]
    stop = text[12:15]
    for stream in (False, True):
        reply = complete(client, max_tokens=40, stop=[stop, "never"], stream=stream)
        choices = [chunk.choices[0] for chunk in reply] if stream else reply.choices
        assert "".join(choice.text for choice in choices) == text[: text.index(stop)]
        assert choices[-1].finish_reason == "stop"


def test_stream_is_the_whole_text_in_pieces(client: openai.OpenAI):
    chunks = list(complete(client, max_tokens=24, stream=True, stream_options={"include_usage": True}))
    texts = [choice.text for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == alone(PROMPT, 24)[0]
    assert len(texts) > 10
    assert chunks[-2].choices[0].finish_reason == "length"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 24)
    assert len({chunk.id for chunk in chunks}) == 1


def test_streamed_characters_are_whole(client: openai.OpenAI):
    # Nothing but the two bytes of é, in whatever order the model draws them: whole characters, and broken ones.
    bias = {str(token): 100 for token in embedded()[1].convert_tokens_to_ids(["<0xC3>", "<0xA9>"])}
    settings = {"max_tokens": 30, "temperature": 1, "seed": 4, "logit_bias": bias}
    text = complete(client, **settings).choices[0].text
    assert {"é", "\ufffd"} == set(text)
    chunks = [chunk.choices[0].text for chunk in complete(client, stream=True, **settings)]
    assert "".join(chunks) == text
    assert len(chunks) < 30, "the first byte of a character is held back"


def test_choices_stream_side_by_side(client: openai.OpenAI):
    texts = ["", "", ""]
    for chunk in complete(client, max_tokens=12, n=3, temperature=1, seed=5, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    whole = complete(client, max_tokens=12, n=3, temperature=1, seed=5)
    assert texts == [choice.text for choice in whole.choices]


def test_chat_uses_the_authors_format(client: openai.OpenAI):
    conversation = [
        {"role": "system", "content": "You write Python."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "def f():"},
        {"role": "user", "content": "More"},
    ]
    prompt = "You write Python.\n\nhuman: Hi\n\nadept: def f():\n\nhuman: More\n\nadept:"
    expected = alone(prompt, 20)[0].split("\n\nhuman:")[0].lstrip()
    reply = chat(client, messages=[{**one, "name": "Ada"} for one in conversation], max_tokens=20)
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content == expected
    chunks = list(chat(client, messages=conversation, max_completion_tokens=20, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == reply.choices[0].finish_reason


def test_chat_log_probabilities(client: openai.OpenAI):
    entries = chat(client, max_tokens=5, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(entries) == 5
    for entry in entries:
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob), "greedy takes the likeliest"
        assert bytes(entry.bytes).decode() == entry.token


WRONG = [
    ("completions", {"temperature": 2.5}, "temperature must be a number from 0 to 2, got 2.5."),
    ("completions", {"temperature": "hot"}, 'temperature must be a number from 0 to 2, got "hot".'),
    ("completions", {"top_p": 0}, "top_p must be a number above 0 and at most 1, got 0."),
    (
        "completions",
        {"extra_body": {"repetition_penalty": 1e-300}},
        "repetition_penalty must be a number from 0.01 to 100, got 1e-300.",
    ),
    ("completions", {"max_tokens": -1}, "max_tokens must be an integer of at least 0, got -1."),
    ("completions", {"max_tokens": 0}, "max_tokens is 0, which makes sense only with echo; echo is false."),
    ("completions", {"max_tokens": 600}, "and max_tokens is 600, together"),
    ("completions", {"n": 129}, "n must be an integer from 1 to 128, got 129."),
    ("completions", {"best_of": 2}, "best_of must be n, 1, or be left out; got 2."),
    ("completions", {"stop": ["a"] * 5}, "stop must be a text or a list of at most 4, none of them empty"),
    ("completions", {"logprobs": 6}, "logprobs must be an integer from 0 to 5, got 6."),
    ("completions", {"logit_bias": {"99999": 1}}, "logit_bias must be an object from token ids below 4096"),
    ("completions", {"extra_body": {"temperature": 10**400}}, "temperature must be a number from 0 to 2, got 1000"),
    ("completions", {"logit_bias": {"1" * 5000: 1}}, "logit_bias must be an object from token ids below 4096"),
    ("completions", {"suffix": "end"}, 'suffix is not supported: this model only continues texts; got "end".'),
    ("completions", {"echo": True, "stream": True}, "a stream holds only what is new"),
    ("completions", {"stream_options": {"include_usage": True}}, "which needs stream to be true"),
    ("completions", {"prompt": []}, "prompt must be a text, a list of texts"),
    ("completions", {"prompt": [[5, 9999]]}, "prompt holds the token 9999, outside the vocabulary of 4096."),
    ("completions", {"prompt": "x " * 2000}, "a text may have 512 tokens here, by the context of the model."),
    ("completions", {"extra_body": {"colour": "red"}}, 'colour is not a field that this server knows; it was "red".'),
    ("chat", {"messages": []}, "messages: The conversation holds no messages."),
    ("chat", {"messages": [{"role": "wizard", "content": "Hi"}]}, "The role of message 0 is wizard"),
    ("chat", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content must be a text, got 5."),
    ("chat", {"messages": [{"role": "user", "content": "Hi", "name": 5}]}, "messages[0].name must be a text, got 5."),
    (
        "chat",
        {"messages": [{"role": "user", "content": "Hi", "audio": 3}]},
        "messages[0].audio is not a field that this server knows; it was 3.",
    ),
    ("chat", {"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens and max_completion_tokens were both given"),
    ("chat", {"top_logprobs": 2}, "top_logprobs is 2, which needs logprobs to be true."),
    ("chat", {"response_format": {"type": "json_object"}}, "response_format must be absent or"),
    ("chat", {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not a field"),
]


@pytest.mark.parametrize(("kind", "arguments", "sentence"), WRONG)
def test_mistakes_are_a_400_that_names_the_field(client: openai.OpenAI, kind: str, arguments: dict, sentence: str):
    call = {"completions": complete, "chat": chat}[kind]
    with pytest.raises(openai.BadRequestError) as caught:
        call(client, **arguments)
    error = caught.value.body
    assert sentence in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["param"].split("[")[0] in arguments.get("extra_body", arguments)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("v1/completions", r'{"prompt": "x", "\ud800": 1}'),
        ("v1/chat/completions", r'{"messages": [{"role": "\ud800", "content": "x"}]}'),
    ],
)
def test_half_a_character_is_told_back_as_it_came(server: Running, path: str, body: str):
    reply = httpx.post(f"{server.url}/{path}", content=body)
    assert reply.status_code == 400
    assert r"\ud800" in reply.text
    assert "\ud800" in reply.json()["error"]["message"]


def test_an_empty_prompt_has_the_token_that_begins_every_text(client: openai.OpenAI):
    assert complete(client, prompt="", max_tokens=2).usage.prompt_tokens == 1


def test_unknown_model_is_a_404(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as caught:
        complete(client, model="gpt-4")
    assert caught.value.body["code"] == "model_not_found"
