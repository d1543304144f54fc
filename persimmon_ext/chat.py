"""Conversations as the text that Persimmon's chat model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

# The form published with the model is "human: {prompt}\n\nadept:"; further turns follow after an empty line. The
# begin-of-sequence token is not part of it: encoding adds it, as to every text.
DEFAULT_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if not loop.first -%}{{ '\\n\\n' }}{%- endif -%}"
    "{%- if message['role'] in ['user', 'human'] -%}{{ 'human: ' + message['content'] }}"
    "{%- elif message['role'] in ['assistant', 'adept'] -%}{{ 'adept: ' + message['content'].strip() }}"
    "{%- elif message['role'] == 'system' and loop.first -%}{{ message['content'] }}"
    "{%- else -%}{{ raise_exception('The role of message ' + loop.index0|string + ' is ' + message['role']|string"
    " + ': it must be user, assistant, or (first message only) system.') }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\\n\\nadept:' }}{%- endif -%}"
)

# A message that is found again in what a template makes of it: a private character, which stands in no template.
_MESSAGE = "\ue000"


def render_chat(template: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """Renders one conversation with a Jinja template, in a sandbox: a checkpoint's template cannot run code.

    Args:
        template: Jinja source that sees ``messages``, ``raise_exception`` and ``variables``.
        messages: dicts with ``role`` and ``content``, both str.

    Raises ValueError for a bad message or template, TypeError for something that is not a list of messages,
    ImportError where jinja2 is missing.
    """
    check_messages(messages)
    try:
        from jinja2 import TemplateError  # noqa: PLC0415 (optional dependency)
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415
    except ImportError as error:
        raise ImportError("Chat templates need the package jinja2: pip install jinja2.") from error

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(template).render(messages=messages, **variables)
    except (TemplateError, TypeError, ArithmeticError, LookupError, OverflowError) as error:
        raise ValueError(f"The chat template cannot render this conversation: {error}") from error


def beginning_of_a_turn(tokenizer: Any) -> str:
    """What the tokenizer's template writes before a later message of the user, empty where nothing: a reply that comes
    to it has ended, and speaks for the user from there on."""
    turns = [{"role": role, "content": _MESSAGE} for role in ("user", "assistant", "user")]
    whole, without = (str(tokenizer.apply_chat_template(part, tokenize=False)) for part in (turns, turns[:2]))
    if not whole.startswith(without):  # it writes earlier turns another way where more follow
        return ""
    beginning, found, _ = whole[len(without) :].partition(_MESSAGE)
    return beginning.rstrip(" ") if found else ""


def check_messages(messages: Any) -> None:
    """Raises TypeError or ValueError, naming the message, unless ``messages`` is a conversation."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TypeError(f"A conversation is a list of messages, not {type(messages).__name__}.")
    if not messages:
        raise ValueError("The conversation holds no messages.")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"Message {number} must be a dict with 'role' and 'content', not {message!r}.")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise ValueError(f"Message {number} needs a text under {key!r}; it has {message.get(key)!r}.")
