"""Many clients at once, clients that leave, full queues, and the end of the server."""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from serving_helpers import NAME, Running, alone, running, wait_for

from persimmon_ext.serving.engine import Limits

CLIENTS = 64
ENDLESS = {"model": NAME, "prompt": "def f(x):", "max_tokens": 480, "temperature": 1.0, "seed": 0}
# No token of the embedded model's ends the text.
ENDLESS["extra_body"] = {"logit_bias": {"2": -100, "3": 5}}


def metric(server: Running, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", server.service.metrics.render(), re.MULTILINE)
    assert found, f"{name} is not among the metrics"
    return float(found[1])


WIDE, NARROW = Limits(batch=64, slots=64 * 512), Limits(batch=5, slots=700)


@pytest.mark.parametrize("limits", [WIDE, NARROW], ids=["wide", "narrow"])
def test_64_clients_get_what_generate_makes_for_each(limits: Limits):
    rng = random.Random(0)
    opening = ["def read(path):", "import os\n", "class Stack:\n    def push(self, x):\n", "for i in range(3):\n    "]
    asked = [(opening[i % 4] + "#" * (i % 6), rng.randint(1, 24), i % 3) for i in range(CLIENTS)]
    barrier = threading.Barrier(CLIENTS)

    def call(index: int) -> str:
        prompt, tokens, kind = asked[index]
        with server.client(timeout=60) as client:
            settings = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "seed": index}
            barrier.wait()
            if kind == 0:
                return client.completions.create(**settings, temperature=0).choices[0].text
            if kind == 1:
                return client.completions.create(**settings, temperature=0.8, top_p=0.9).choices[0].text
            stream = client.completions.create(**settings, temperature=0, stream=True)
            return "".join(chunk.choices[0].text for chunk in stream)

    with running(limits) as server, ThreadPoolExecutor(CLIENTS) as pool:
        replies = list(pool.map(call, range(CLIENTS)))
        steps, tokens = (metric(server, f"persimmon_{name}_total") for name in ("steps", "generated_tokens"))
    for index, (prompt, length, kind) in enumerate(asked):
        sampled = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0, "seed": index} if kind == 1 else {}
        assert replies[index] == alone(prompt, length, **sampled)[0], f"client {index}"
    assert tokens > 2 * steps, "requests are batched"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_costs_no_more(stream: bool):
    with running() as server:
        if stream:
            with server.client() as client, client.completions.create(**ENDLESS, stream=True) as reply:
                next(reply)
        else:
            with pytest.raises(openai.APITimeoutError), server.client(timeout=0.3) as client:
                client.completions.create(**ENDLESS)
        wait_for(lambda: metric(server, "persimmon_running_rows") == 0)
        assert metric(server, "persimmon_cancelled_rows_total") == 1
        assert 0 < metric(server, "persimmon_generated_tokens_total") < 480
        steps = metric(server, "persimmon_steps_total")
        time.sleep(0.05)
        assert metric(server, "persimmon_steps_total") == steps


def test_a_client_that_leaves_the_queue_is_never_run():
    with running(Limits(batch=1, slots=512)) as server, server.client() as client:
        running_one = client.completions.create(**ENDLESS, stream=True)
        next(running_one)
        with pytest.raises(openai.APITimeoutError), server.client(timeout=0.1) as impatient:
            impatient.completions.create(**ENDLESS)
        wait_for(lambda: metric(server, "persimmon_waiting_rows") == 0)
        running_one.close()
        wait_for(lambda: metric(server, "persimmon_running_rows") == 0)
        assert metric(server, "persimmon_cancelled_rows_total") == 2
        prompt = len(server.service.tokenizer(ENDLESS["prompt"])["input_ids"])
        assert metric(server, "persimmon_prompt_tokens_total") == prompt, "one prompt was run"


def test_a_short_request_does_not_wait_for_a_long_one():
    with running() as server, server.client() as client:
        long = client.completions.create(**ENDLESS, stream=True)
        next(long)
        text = client.completions.create(model=NAME, prompt="import os", max_tokens=4, temperature=0).choices[0].text
        assert text == alone("import os", 4)[0]
        assert metric(server, "persimmon_running_rows") == 1, "the long one still runs"
        assert sum(len(chunk.choices[0].text) for chunk in long) > 100


def test_full_queue_is_a_429_that_says_when_to_try_again():
    with running(Limits(batch=1, queue=2, slots=512)) as server, server.client() as client:
        first = client.completions.create(**ENDLESS, stream=True)
        next(first)
        waiting = [client.completions.create(**ENDLESS, stream=True) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(**ENDLESS)
        assert "The queue is full: 2 texts wait, 1 more were asked for" in caught.value.body["message"]
        assert caught.value.response.headers["retry-after"] == "1"
        for stream in (first, *waiting):
            stream.close()


def test_shutdown_finishes_what_runs_and_refuses_what_is_new():
    with running(grace=20) as server, server.client() as client, httpx.Client() as other:
        stream = client.completions.create(**{**ENDLESS, "max_tokens": 150}, stream=True)
        next(stream)

        def is_closed() -> bool:
            try:
                return other.get(f"{server.url}/health").status_code == 0
            except httpx.TransportError:
                return True

        assert not is_closed()
        server.server.should_exit = True
        wait_for(is_closed)
        *_, last = stream
        assert last.choices[0].finish_reason == "length"
        server.thread.join(10)
        assert not server.thread.is_alive()


def test_shutdown_does_not_wait_for_ever():
    with running(grace=0.2) as server, server.client() as client:
        stream = client.completions.create(**ENDLESS, stream=True)
        next(stream)
        begin = time.monotonic()
        server.server.should_exit = True
        with pytest.raises(openai.APIError, match="The server was shut down before the text was complete"):
            list(stream)
        server.thread.join(10)
        assert not server.thread.is_alive()
        assert time.monotonic() - begin < 5


def test_a_connection_that_stays_open_is_told_of_the_shutdown():
    with running(grace=20) as server, server.client() as client:
        stream = client.completions.create(**ENDLESS, stream=True)
        next(stream)
        server.service.engine.drain(20)
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(**ENDLESS)
        assert caught.value.status_code == 503
        assert caught.value.body["message"] == "The server is shutting down and takes no new requests."
        assert httpx.get(f"{server.url}/health").status_code == 503
        stream.close()


def test_a_failure_of_the_model_is_told_and_survived(monkeypatch: pytest.MonkeyPatch):
    with running() as server, server.client() as client:
        batch = server.service.engine._batch
        with monkeypatch.context() as patch:

            def broken(*arguments: object) -> None:
                raise ValueError("the logits are NaN")

            patch.setattr(batch, "_run", broken)
            with pytest.raises(openai.InternalServerError, match="The model failed: the logits are NaN"):
                client.completions.create(model=NAME, prompt="import os", max_tokens=4)
        assert client.completions.create(model=NAME, prompt="import os", max_tokens=4).choices[0].finish_reason


def test_half_a_request_disturbs_nobody():
    with running() as server, server.client() as client:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            text = client.completions.create(model=NAME, prompt="import os", max_tokens=4, temperature=0)
            assert text.choices[0].text == alone("import os", 4)[0]
        wait_for(lambda: 'status="499"' in server.service.metrics.render())
        assert 'status="500"' not in server.service.metrics.render()
