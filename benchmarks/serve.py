"""The service under load: so many clients, each of which asks for one text after the other and reads it as a stream.

The server is ``persimmon-ext serve`` in a process of its own on a free port. Prompts are cut from Python's standard
library and differ in length. Tokens are counted by the server, times are the clients'.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import inspect
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import machine, options, table

_SOURCE = inspect.getsource(asyncio.tasks)
_START_SECONDS = 300.0


@dataclass
class Load:
    """What clients saw: seconds to the first token and to the last of each text, and tokens of all."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    tokens: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, first: float, whole: float, tokens: int) -> None:
        with self.lock:
            self.first.append(first)
            self.whole.append(whole)
            self.tokens += tokens


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--clients", type=options.positive, nargs="+", default=[1, 8, 64])
    parser.add_argument("--tokens", type=options.positive, default=48, help="of each text, unless it ends before")
    parser.add_argument("--prompt", type=options.positive, default=200, help="characters of the longest prompt")
    parser.add_argument("--seconds", type=float, default=4.0, help="for which clients begin new texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    parser.add_argument("server", nargs="*", help="arguments of persimmon-ext serve, after --")
    return parser.parse_args(arguments)


@contextmanager
def serving(arguments: list[str]) -> Iterator[int]:
    """Runs the server, and yields its port once it answers. Exits if it doesn't start."""
    command = [sys.executable, "-m", "persimmon_ext", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            log = []
            for line in process.stderr or ():
                log.append(line)
                if found := re.search(r"Serving .* at http://[^ ]*:(\d+) ", line):
                    break
            else:
                raise SystemExit("The server did not start. " + "".join(log))
            # Its log must be read on, or it would wait for a reader.
            threading.Thread(target=process.stderr.read, daemon=True).start()  # type: ignore[union-attr]
            port = int(found[1])
            await_answer(port)
            yield port
        finally:
            process.terminate()


def await_answer(port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"The server does not answer at port {port}.") from None
        time.sleep(0.05)


def ask(connection: http.client.HTTPConnection, prompt: str, tokens: int, load: Load) -> None:
    """Reads one text as a stream. Exits for a reply that is not complete."""
    body = {"prompt": prompt, "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
    begin = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body))
    reply = connection.getresponse()
    if reply.status != 200:
        raise SystemExit(f"The server answered {reply.status}: {reply.read().decode()}")
    events, first = [], None
    for line in iter(reply.readline, b""):
        if line.startswith(b"data: "):
            first = first or time.perf_counter() - begin
            events.append(line.removeprefix(b"data: ").strip())
    if len(events) < 2 or events[-1] != b"[DONE]" or first is None:
        raise SystemExit(f"A stream ended with {events[-1:]}.")
    load.note(first, time.perf_counter() - begin, json.loads(events[-2])["usage"]["completion_tokens"])


def measure(port: int, clients: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """Lets `clients` ask for as long as is chosen. Raises SystemExit if one of them fails."""
    load, failures = Load(), []
    begin = time.perf_counter()

    def work(index: int) -> None:
        rng = random.Random(f"{chosen.seed} {clients} {index}")
        connection = http.client.HTTPConnection("127.0.0.1", port)
        try:
            while time.perf_counter() - begin < chosen.seconds:
                length = rng.randint(1, chosen.prompt)
                start = rng.randrange(len(_SOURCE) - length)
                ask(connection, _SOURCE[start : start + length], chosen.tokens, load)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    seconds = time.perf_counter() - begin
    return {
        "clients": clients,
        "texts": len(load.whole),
        "tokens_per_s": load.tokens / seconds,
        "first_token_s": {"median": quantile(load.first, 0.5), "p95": quantile(load.first, 0.95)},
        "text_s": {"median": quantile(load.whole, 0.5), "p95": quantile(load.whole, 0.95)},
    }


def quantile(values: list[float], share: float) -> float:
    """The value that `share` of all lie below."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def as_row(result: dict[str, Any]) -> dict[str, str]:
    def milliseconds(times: dict[str, float]) -> str:
        return f"{times['median'] * 1e3:.0f} ({times['p95'] * 1e3:.0f})"

    return {
        "clients": str(result["clients"]),
        "texts": str(result["texts"]),
        "tokens/s": f"{result['tokens_per_s']:.0f}",
        "ms to the first token (p95)": milliseconds(result["first_token_s"]),
        "ms to the last (p95)": milliseconds(result["text_s"]),
    }


def run(arguments: list[str] | None = None) -> None:
    """The program; `arguments` as on the command line."""
    chosen = parse(arguments)
    facts = machine.facts(torch.device("cpu"))
    with serving(chosen.server) as port:
        measure(port, 2, argparse.Namespace(**{**vars(chosen), "seconds": 0.5}))  # caches and threads warm up
        results = [measure(port, clients, chosen) for clients in chosen.clients]
    result = machine.stamp("serve") | {"machine": facts, "options": vars(chosen), "ceilings": {}, "results": results}
    print(f"{table.machine_line(result)}\n{result['command']}\n  {result['date']}")
    print(table.text([as_row(row) for row in results]))
    table.write_json(chosen.json, result)


if __name__ == "__main__":
    run()
