"""A server on a free local port, in a thread of the test's process, and what its replies are compared with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import openai
import torch

from persimmon_ext import PersimmonForCausalLM, PersimmonTokenizer, embedded_checkpoint
from persimmon_ext.serving.app import make_app
from persimmon_ext.serving.engine import Limits
from persimmon_ext.serving.server import Server, listen
from persimmon_ext.serving.service import Service

NAME = "persimmon-embedded"
BODY_LIMIT = 200_000


@cache
def embedded() -> tuple[PersimmonForCausalLM, PersimmonTokenizer]:
    """The embedded model in float32, where the rest of the batch decides no near tie, and its tokenizer."""
    folder = embedded_checkpoint()
    model = PersimmonForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, PersimmonTokenizer.from_pretrained(folder)


def alone(prompt: str, max_new_tokens: int, special: bool = True, **settings: object) -> tuple[str, list[int]]:
    """What `generate` makes of a prompt alone: the new text, and the new tokens without the one that ends it."""
    model, tokenizer = embedded()
    ids = tokenizer(prompt, add_special_tokens=special)["input_ids"]
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("|ENDOFTEXT|")]
    result = model.generate(torch.tensor([ids]), max_new_tokens=max_new_tokens, eos_token_id=ends, **settings)
    new = [token for token in result[0, len(ids) :].tolist() if token not in ends]
    whole, before = (tokenizer.decode(tokens, skip_special_tokens=True) for tokens in (ids + new, ids))
    return whole[len(before) :], new


@dataclass
class Running:
    """A server that answers at `url`."""

    service: Service
    server: Server
    thread: threading.Thread
    url: str

    def client(self, **options: object) -> openai.OpenAI:
        """OpenAI's client for it, which doesn't try again unless told to."""
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, **options})


@contextmanager
def running(limits: Limits | None = None, grace: float = 5, origins: tuple[str, ...] = ()) -> Iterator[Running]:
    """Serves the embedded model, and ends the server in the end."""
    model, tokenizer = embedded()
    service = Service(model, tokenizer, NAME, limits or Limits(batch=64, slots=64 * 512))
    with listen("127.0.0.1", 0) as listener:
        server = Server(make_app(service, body_limit=BODY_LIMIT, origins=origins), service.engine, grace)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield Running(service, server, thread, f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive(), "the server did not end"


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Waits until `condition` holds; fails if it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)
