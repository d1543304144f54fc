"""Serves a model over HTTP: the original release's PUT /api, and OpenAI's completions under /v1."""

from __future__ import annotations

import argparse
import logging
import sys

from persimmon_ext.cli import models, values
from persimmon_ext.serving import memory
from persimmon_ext.serving.engine import Limits
from persimmon_ext.serving.service import Service

_EMBEDDED_NAME = "persimmon-embedded"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    models.add_model_arguments(parser)
    parser.add_argument("--name", metavar="NAME", help="the model's name for clients; default: that of its folder")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="0.0.0.0 for all; default: 127.0.0.1")
    parser.add_argument("--port", type=values.integer(0), default=5000, metavar="N", help="0: any; default: 5000")
    for name, default, meaning in (("batch", 32, "texts at a time"), ("queue", 256, "texts that wait")):
        text = f"{meaning}; default: {default}"
        parser.add_argument(f"--max-{name}", type=values.integer(1), default=default, metavar="N", help=text)
    parser.add_argument(
        "--cache-tokens",
        type=values.integer(2),
        metavar="N",
        help="tokens of all texts at a time together; default: what fits in half of the free memory",
    )
    parser.add_argument(
        "--max-body", type=values.integer(1), default=4, metavar="MIB", help="size of a request; default: 4 MiB"
    )
    parser.add_argument(
        "--grace",
        type=values.number(inclusive=True),
        default=30.0,
        metavar="SECONDS",
        help="time to finish what runs after SIGTERM or Ctrl-C; default: 30",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="pages of this origin may call from a browser; * for all",
    )


def run(arguments: argparse.Namespace) -> None:
    """Serves until a signal comes. Raises ImportError without the extra, OSError if the port is taken, and what loading
    raises."""
    try:
        from persimmon_ext.serving.app import make_app  # noqa: PLC0415 (optional dependencies)
        from persimmon_ext.serving.server import Server, listen  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            f"persimmon-ext serve needs {error.name}: pip install 'persimmon_ext[serve]', or starlette and uvicorn."
        ) from error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    with listen(arguments.host, arguments.port) as listener:
        service = load_service(arguments)
        app = make_app(service, body_limit=arguments.max_body * 2**20, origins=arguments.allow_origin)
        address = f"http://{arguments.host}:{listener.getsockname()[1]}"
        limits = service.engine.limits
        print(
            f"Serving {service.name} at {address} (texts of at most {service.context} tokens, {limits.batch} at a time "
            f"with {limits.slots} tokens of cache). Ctrl-C ends it.",
            file=sys.stderr,
        )
        Server(app, service.engine, arguments.grace).run([listener])


def load_service(arguments: argparse.Namespace) -> Service:
    """Loads the model that the arguments name. Raises what loading raises."""
    model, tokenizer = models.load(arguments)
    name = arguments.name or (_EMBEDDED_NAME if arguments.model is None else arguments.model.resolve().name)
    slots = arguments.cache_tokens or memory.slots_that_fit(model)
    return Service(model, tokenizer, name, Limits(arguments.max_batch, arguments.max_queue, slots))
