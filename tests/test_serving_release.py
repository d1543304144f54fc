"""``PUT /api`` of the original release: reply, defaults, limits and messages."""

from __future__ import annotations

import json

import httpx
import pytest
import torch
from serving_helpers import BODY_LIMIT, Running, alone, embedded, running

PROMPTS = ["def read_lines(path):", "import os\n"]


@pytest.fixture(scope="module")
def server():
    with running(origins=("https://page.example",)) as started:
        yield started


def put(server: Running, **body) -> httpx.Response:
    return httpx.put(f"{server.url}/api", content=json.dumps({"prompts": PROMPTS, **body}))  # may hold half a character


def test_reply_has_the_texts_and_what_was_generated(server: Running):
    reply = put(server, tokens_to_generate=12, top_k=1)
    assert reply.status_code == 200
    tokenizer = embedded()[1]
    made = [alone(prompt, 12, special=False) for prompt in PROMPTS]
    generations = [tokenizer.decode(tokens) for _, tokens in made]
    pieces = [[piece.replace("▁", " ") for piece in tokenizer.tokenize(text)] for text in generations]
    assert reply.json() == {
        "text": [prompt + text for prompt, (text, _) in zip(PROMPTS, made, strict=True)],
        "logprobs": None,
        "generations": generations,
        "human_readable_tokens": [[row[0].removeprefix(" "), *row[1:]] for row in pieces],
    }


def test_log_probabilities_are_of_all_tokens_but_the_first(server: Running):
    reply = put(server, tokens_to_generate=5, top_k=1, logprobs=True, add_BOS=True).json()
    model, tokenizer = embedded()
    for prompt, told in zip(PROMPTS, reply["logprobs"], strict=True):
        tokens = tokenizer(prompt)["input_ids"] + alone(prompt, 5)[1]
        with torch.no_grad():
            logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        exact = logprobs[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(told), exact, atol=2e-4, rtol=0)


def test_no_tokens_scores_the_prompts(server: Running):
    reply = put(server, tokens_to_generate=0, logprobs=True).json()
    assert reply["text"] == PROMPTS
    assert [len(row) for row in reply["logprobs"]] == [len(embedded()[1].tokenize(prompt)) - 1 for prompt in PROMPTS]
    assert (reply["generations"], reply["human_readable_tokens"]) == ([], [])


def test_defaults_sample_64_tokens(server: Running):
    reply = put(server, random_seed=1234)
    texts = reply.json()["text"]
    assert texts[0] == PROMPTS[0] + alone(PROMPTS[0], 64, special=False, do_sample=True, top_k=0, seed=1234)[0]
    assert put(server, random_seed=1234).json()["text"] == texts
    assert put(server, random_seed=1235).json()["text"] != texts


def test_top_p_and_temperature_have_generate_s_meaning(server: Running):
    settings = {"top_p": 0.9, "temperature": 0.7}
    reply = put(server, prompts=PROMPTS[0], tokens_to_generate=16, random_seed=2, **settings).json()
    text = alone(PROMPTS[0], 16, special=False, do_sample=True, top_k=0, seed=2, **settings)[0]
    assert reply["text"] == [PROMPTS[0] + text], "one prompt need not be in a list"


def test_as_many_tokens_as_the_context_has_room_for(server: Running):
    reply = put(server, prompts=["x = 1\n" * 120], tokens_to_generate=400, top_k=1, add_BOS=True)
    assert reply.status_code == 200
    (text,) = reply.json()["text"]
    assert len(embedded()[1](text)["input_ids"]) <= 512


MESSAGES = [
    ({"prompts": None}, "prompts must be texts, and entry 0 is null."),
    ({"max_len": 5}, "max_len is no longer used.  Replace with tokens_to_generate"),
    ({"sentences": ["a"]}, "sentences is no longer used.  Replace with prompts"),
    ({"prompts": ["a"] * 129}, "Maximum number of prompts is 128"),
    ({"prompts": []}, "prompts must hold at least one prompt, got []."),
    ({"prompts": ["a", 5]}, "prompts must be texts, and entry 1 is 5."),
    ({"prompts": ["a", ""]}, "Empty prompts require add_BOS=true"),
    ({"prompts": ["x " * 600]}, "Length of subsequence prompt exceeds sequence length."),
    ({"prompts": ["a\ud800"]}, "prompts holds '\\ud800', which is half of a character."),
    ({"tokens_to_generate": 1.5}, "tokens_to_generate must be an integer greater than 0"),
    ({"tokens_to_generate": True}, "tokens_to_generate must be an integer greater than 0"),
    ({"tokens_to_generate": -1}, "tokens_to_generate must be an integer greater than or equal to 0"),
    ({"tokens_to_generate": 0}, "tokens_to_generate=0 implies logprobs should be True"),
    ({"logprobs": 1}, "logprobs must be a boolean value"),
    ({"temperature": 0}, "temperature must be a positive number less than or equal to 100.0"),
    ({"temperature": 101}, "temperature must be a positive number less than or equal to 100.0"),
    ({"temperature": "1"}, "temperature must be a positive number less than or equal to 100.0"),
    ({"top_k": 0.5}, "top_k must be an integer equal to or greater than 0 and less than or equal to 1000"),
    ({"top_k": 1001}, "top_k must be equal to or greater than 0 and less than or equal to 1000"),
    ({"top_p": "all"}, "top_p must be a positive float less than or equal to 1.0"),
    ({"top_p": 1.5}, "top_p must be less than or equal to 1.0"),
    ({"top_p": 0.5, "top_k": 5}, "cannot set both top-k and top-p samplings."),
    ({"add_BOS": "yes"}, "add_BOS must be a boolean value"),
    ({"random_seed": 1.0}, "random_seed must be integer"),
    ({"random_seed": -1}, "random_seed must be a positive integer"),
    ({"prompts": [{"a": "\ud800"}]}, 'prompts must be texts, and entry 0 is {"a": "\\ud800"}.'),
    ({"no_log": 0}, "no_log must be a boolean value"),
    ({"beam_width": 4}, "beam_width is not a field that this server knows; it was 4."),
]


@pytest.mark.parametrize(("body", "message"), MESSAGES)
def test_mistakes_have_the_release_s_messages(server: Running, body: dict, message: str):
    reply = put(server, **body)
    assert (reply.status_code, reply.json()) == (400, message)


def test_prompts_are_required(server: Running):
    reply = httpx.put(f"{server.url}/api", json={"tokens_to_generate": 1})
    assert (reply.status_code, reply.json()) == (400, "prompts argument required")


def test_bodies_that_are_no_json_object(server: Running):
    reply = httpx.put(f"{server.url}/api", content=b"{")
    assert reply.status_code == 400
    assert reply.json().startswith("The body of the request is not JSON: ")
    reply = httpx.put(f"{server.url}/api", json=[1])
    assert reply.json() == "The body of the request must be a JSON object, not [1]."


def test_large_bodies_are_refused_with_or_without_a_declared_size(server: Running):
    large = b" " * (BODY_LIMIT + 1)
    for content in (large, iter([large])):
        reply = httpx.put(f"{server.url}/api", content=content)
        assert reply.status_code == 413
        assert f"at most {BODY_LIMIT} are read" in reply.json()


def test_other_addresses_and_methods(server: Running):
    assert httpx.get(f"{server.url}/healthz").json() == {"success": True}
    assert httpx.get(f"{server.url}/health").json() == {"status": "serving"}
    assert httpx.post(f"{server.url}/api", json={}).status_code == 405
    reply = httpx.get(f"{server.url}/nowhere")
    assert (reply.status_code, reply.json()["error"]["message"]) == (404, "There is nothing at /nowhere.")


def test_pages_of_allowed_origins_may_call(server: Running):
    for origin, allowed in (("https://page.example", True), ("https://other.example", False)):
        reply = httpx.options(f"{server.url}/api", headers={"origin": origin, "access-control-request-method": "PUT"})
        assert (reply.headers.get("access-control-allow-origin") == origin) is allowed


def test_metrics_count_requests_and_tokens(server: Running):
    put(server, tokens_to_generate=3)
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values['persimmon_requests_total{path="/api",status="200"}']) >= 1
    assert float(values["persimmon_generated_tokens_total"]) >= 6
    assert float(values["persimmon_waiting_rows"]) == 0
    assert values['persimmon_row_seconds_bucket{le="+Inf"}'] == values["persimmon_row_seconds_count"]
