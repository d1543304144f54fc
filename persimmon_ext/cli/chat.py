"""Talks with a model in the terminal: each line is a message, and the reply appears as it is made.

/reset forgets the conversation, Ctrl-C ends a reply, and /quit or the end of the input leaves.
"""

from __future__ import annotations

import argparse
import sys

from persimmon_ext.cli import models, values
from persimmon_ext.conversation import Conversation, Reply


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    models.add_model_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", help="a message that comes before all others")
    parser.add_argument(
        "--context", type=values.integer(16), metavar="N", help="tokens remembered; default: all it can"
    )
    models.add_generation_arguments(parser, max_new_tokens=256)


def run(arguments: argparse.Namespace) -> None:
    """Talks until the input ends. Raises UsageError, or what loading and generating raise."""
    settings = models.generation_settings(arguments)
    cache = settings.pop("cache_implementation")
    model, tokenizer = models.load(arguments)
    conversation = Conversation(
        model,
        tokenizer,
        system=arguments.system,
        context=arguments.context,
        cache_implementation=cache,
        **settings,
    )
    replies = _talk(conversation)
    tokens, seconds = sum(reply.tokens for reply in replies), sum(reply.seconds for reply in replies)
    rate = f", {tokens / seconds:.1f} tokens/s" if seconds else ""
    known = [reply.speculation for reply in replies if reply.speculation is not None]
    drafting = f", {models.describe(sum(known[1:], known[0]))}" if known else ""
    print(f"{len(replies)} replies, {tokens} tokens{rate}{drafting}", file=sys.stderr)


def _talk(conversation: Conversation) -> list[Reply]:
    replies: list[Reply] = []
    while (line := _read_line()) is not None:
        if line == "/quit":
            break
        if line == "/reset":
            conversation.reset()
        elif line:
            try:
                replies.append(_answer(conversation, line))
            except ValueError as error:
                print(f"({error})", file=sys.stderr)
            except KeyboardInterrupt:  # before the reply began: the conversation is as before
                print(" [interrupted]")
    return replies


def _answer(conversation: Conversation, line: str) -> Reply:
    print("adept:", end="", flush=True)
    reply = conversation.say(line, lambda text: print(text, end="", flush=True))
    print(" [interrupted]" if reply.interrupted else "")
    if reply.forgotten:
        print(f"({reply.forgotten} earlier messages no longer fit into the context.)", file=sys.stderr)
    return reply


def _read_line() -> str | None:
    """The next message; None at the end of the input. Ctrl-C gives an empty one."""
    try:
        return input("human: ").strip()
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        print("\n(/quit or Ctrl-D leaves.)", file=sys.stderr)
        return ""
