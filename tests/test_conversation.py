"""Conversations: the history in the authors' form, cached tokens, trimming, interrupts; and the chat command."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch

from persimmon_ext import PersimmonForCausalLM, PersimmonTokenizer, cli, embedded_checkpoint
from persimmon_ext.conversation import Conversation, _ReplyStreamer

NEW = 12


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    folder = embedded_checkpoint()
    return PersimmonForCausalLM.from_pretrained(folder).float(), PersimmonTokenizer.from_pretrained(folder)


@pytest.fixture
def make(parts: tuple[Any, Any]) -> Callable[..., Conversation]:
    def conversation(**settings: Any) -> Conversation:
        return Conversation(*parts, **{"max_new_tokens": NEW, **settings})

    return conversation


def ignore(text: str) -> None:
    """Takes a piece of a reply."""


def plain_reply(parts: tuple[Any, Any], text: str, **settings: Any) -> str:
    """The reply to a prompt in the authors' form, computed at once."""
    model, tokenizer = parts
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    options = {"max_new_tokens": NEW, "stop_strings": "\n\nhuman:", "tokenizer": tokenizer, **settings}
    new = model.generate(ids, **options)[0]
    streamed = _ReplyStreamer(tokenizer, "\n\nhuman:", ignore)
    streamed.put(ids)
    for token in new[ids.shape[1] :]:
        streamed.put(token[None])
    streamed.end()
    return "".join(streamed.said).strip()


def test_several_turns_are_the_text_at_once(parts: tuple[Any, Any], make: Callable[..., Conversation]) -> None:
    conversation, shown = make(), []
    first = conversation.say("def f(x):", shown.append)
    assert "".join(shown).strip() == first.text == plain_reply(parts, "human: def f(x):\n\nadept:")
    second = conversation.say("import os", ignore)
    history = f"human: def f(x):\n\nadept: {first.text}\n\nhuman: import os\n\nadept:"
    assert second.text == plain_reply(parts, history)
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2
    assert (first.tokens, first.interrupted, first.forgotten) == (NEW, False, 0)
    conversation.reset()
    assert conversation.say("def f(x):", ignore).text == first.text


def test_a_turn_computes_what_is_new(parts: tuple[Any, Any], make: Callable[..., Conversation]) -> None:
    conversation = make(system="You write Python.")
    conversation.say("def f(x):", ignore)
    fed: list[int] = []
    handle = parts[0].model.register_forward_hook(lambda _m, _i, output: fed.append(output[0].shape[1]))
    conversation.say("import os", ignore)
    handle.remove()
    whole = parts[1].apply_chat_template(conversation.messages[:-1], add_generation_prompt=True)["input_ids"]
    assert fed[0] < len(whole) / 2


def test_old_turns_are_forgotten(parts: tuple[Any, Any], make: Callable[..., Conversation]) -> None:
    conversation = make(system="You write Python.", context=64)
    replies = [conversation.say(f"x{number} = {number}", ignore) for number in range(6)]
    assert sum(reply.forgotten for reply in replies) > 0
    assert all(reply.forgotten % 2 == 0 for reply in replies)
    assert conversation.messages[0]["role"] == "system"
    assert [message["role"] for message in conversation.messages[1:3]] == ["user", "assistant"]
    ids = parts[1].apply_chat_template(conversation.messages[:-1], add_generation_prompt=True)["input_ids"]
    assert len(ids) + NEW <= 64
    before = list(conversation.messages)
    with pytest.raises(ValueError, match="of the context's 64 a reply needs 12: shorten it"):
        conversation.say("y = 1\n" * 40, ignore)
    assert conversation.messages == before


def test_an_interrupt_keeps_what_was_said(parts: tuple[Any, Any], make: Callable[..., Conversation]) -> None:
    conversation, pieces = make(), []
    first = conversation.say("def f(x):", ignore)

    def leave(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    cut = conversation.say("import os", leave)
    assert cut.interrupted
    assert cut.text == "".join(pieces).strip()
    assert conversation.messages[-1] == {"role": "assistant", "content": cut.text}
    third = conversation.say("class A:", ignore)
    history = (
        f"human: def f(x):\n\nadept: {first.text}\n\nhuman: import os\n\nadept: {cut.text}\n\nhuman: class A:\n\nadept:"
    )
    assert third.text == plain_reply(parts, history)


def test_a_reply_does_not_speak_for_the_user() -> None:
    class Spelling:
        """Every id is one character."""

        special_tokens = None

    shown: list[str] = []
    streamer = _ReplyStreamer.__new__(_ReplyStreamer)
    _ReplyStreamer.__init__(streamer, Spelling(), "\n\nhuman:", shown.append)
    for text in ("Yes.\n", "\nhum", "ble", "\n\nhuma", "n: and", " more"):
        streamer.on_finalized_text(text)
    streamer.on_finalized_text("", stream_end=True)
    assert "".join(shown) == "Yes.\n\nhumble"
    assert shown[0] == "Yes."


def test_what_was_held_back_is_said_in_the_end() -> None:
    shown: list[str] = []
    streamer = _ReplyStreamer(None, "\n\nhuman:", shown.append)
    streamer.on_finalized_text("Yes.\n\n")
    streamer.on_finalized_text("", stream_end=True)
    assert shown == ["Yes.", "\n\n"]


def run(monkeypatch: pytest.MonkeyPatch, capsys: Any, text: str, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    status = cli.main(["chat", "--max-new-tokens", "6", "--seed", "1", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    status, out, err = run(monkeypatch, capsys, "def f(x):\n\nimport os\n/reset\ndef f(x):\n/quit\nnever read\n")
    assert status == 0
    replies = [part.split("human: ")[0] for part in out.split("adept:")[1:]]
    assert len(replies) == 3
    assert replies[0] == replies[2]
    assert "3 replies, 18 tokens, " in err
    assert "tokens/s" in err
    again = run(monkeypatch, capsys, "def f(x):\n", "--prompt-lookup", "3", "--cache", "dynamic")[1]
    assert again.split("adept:")[1].rstrip().startswith(replies[0].rstrip())


def test_the_command_goes_on_after_a_message_too_long(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    status, out, err = run(monkeypatch, capsys, "x = 1 " * 200 + "\nx = 2\n", "--context", "64")
    assert status == 0
    assert "shorten it" in err
    assert "1 replies" in err
    assert out.count("adept:") == 2


def test_ctrl_c_before_the_reply_keeps_the_session(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    real, calls = Conversation.say, []

    def say(self: Conversation, text: str, show: Callable[[str], None]) -> Any:
        calls.append(text)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(self, text, show)

    monkeypatch.setattr(Conversation, "say", say)
    status, out, err = run(monkeypatch, capsys, "import os\ndef f(x):\n")
    assert (status, calls) == (0, ["import os", "def f(x):"])
    assert "adept: [interrupted]" in out
    assert "1 replies, 6 tokens" in err


def test_ctrl_c_keeps_the_session(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    real, calls = PersimmonForCausalLM.generate, []

    def generate(self: Any, ids: torch.Tensor, **options: Any) -> Any:
        calls.append(ids.shape)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(self, ids, **options)

    monkeypatch.setattr(PersimmonForCausalLM, "generate", generate)
    status, out, err = run(monkeypatch, capsys, "def f(x):\ndef f(x):\n")
    assert status == 0
    assert "[interrupted]" in out
    assert "2 replies, 6 tokens" in err
    assert calls[0] == calls[1], "a reply that said nothing leaves no trace"
