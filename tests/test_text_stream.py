"""Streaming: whole characters only, and together exactly the decoded text."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_models import TEXTS, TINY, prefixed, tiny, train

from persimmon_ext.text_stream import IncrementalDecoder, TextStreamer
from persimmon_ext.tokenizer import PersimmonTokenizer


@pytest.mark.parametrize("model", [TINY.read_bytes, prefixed, train], ids=["embedded", "prefixed", "defaults"])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_increments_add_up_for_any_ids(model, data):
    tokenizer = PersimmonTokenizer(model())
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1) | st.integers(0, 262), max_size=30))
    cut = data.draw(st.integers(0, len(ids)))
    for skip in (True, False):
        decoder = IncrementalDecoder(tokenizer, skip)
        text = decoder.put(ids[:cut]) + "".join(decoder.put(index) for index in ids[cut:]) + decoder.finish()
        assert text == tokenizer.decode(ids, skip_special_tokens=skip)
        assert decoder.finish() == ""


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_every_increment_is_whole_characters(text):
    decoder = IncrementalDecoder(tiny())
    increments = [decoder.put(index) for index in tiny().encode(text, add_special_tokens=False)]
    assert decoder.finish() == ""
    assert "".join(increments) == tiny().decode(tiny().encode(text, add_special_tokens=False))
    assert "\ufffd" in text or not any("\ufffd" in increment for increment in increments)


def test_a_character_appears_with_its_last_byte():
    ids = [tiny().convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "☃👍".encode()]
    decoder = IncrementalDecoder(tiny())
    assert [decoder.put(index) for index in ids] == ["", "", "☃", "", "", "", "👍"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xe2\x98", ["", "", "\ufffd\ufffd"]),
        (b"\xff", ["\ufffd", ""]),
        (b"\xe2A", ["", "\ufffdA", ""]),
        (b"\xed\xa0\x80", ["", "", "\ufffd\ufffd\ufffd", ""]),
        (b"\xc0\x80", ["\ufffd", "\ufffd", ""]),
        (b"\xf5\x80", ["\ufffd", "\ufffd", ""]),
    ],
)
def test_broken_characters(data, expected):
    decoder = IncrementalDecoder(tiny())
    texts = [decoder.put(tiny().convert_tokens_to_ids(f"<0x{byte:02X}>")) for byte in data]
    assert [*texts, decoder.finish()] == expected


def test_text_after_a_broken_character():
    decoder = IncrementalDecoder(tiny())
    assert decoder.put([tiny().convert_tokens_to_ids("<0xE2>")]) == ""
    assert decoder.put(tiny().convert_tokens_to_ids("return")) == "\ufffdreturn"
    assert decoder.put(tiny().convert_tokens_to_ids("<0xE2>")) == ""
    assert decoder.put(2) == "\ufffd</s>"


@pytest.mark.parametrize("model", [TINY.read_bytes, prefixed], ids=["embedded", "prefixed"])
@pytest.mark.parametrize("skip_prompt", [True, False])
def test_streamer_prints_what_generate_makes(model, skip_prompt):
    tokenizer = PersimmonTokenizer(model())
    ids = tokenizer.encode("def f(self): return '☃'</s>", return_tensors="pt")
    stream = io.StringIO()
    streamer = TextStreamer(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True, stream=stream)
    for _ in range(2):
        streamer.put(ids[:, :4])
        for index in ids[0, 4:]:
            streamer.put(index[None])
        streamer.end()
    prompt = tokenizer.decode(ids[0, :4], skip_special_tokens=True) if skip_prompt else ""
    text = "def f(self): return '☃'".removeprefix(prompt)
    assert stream.getvalue() == f"{text}\n{text}\n"


def test_streamer_serves_transformers_generate():
    config = transformers.PersimmonConfig(
        vocab_size=len(tiny()), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    torch.manual_seed(0)
    model = transformers.PersimmonForCausalLM(config).eval()
    stream = io.StringIO()
    prompt = tiny()("def f", return_tensors="pt")
    streamer = TextStreamer(tiny(), skip_prompt=True, stream=stream, end="")
    ids = model.generate(**prompt, max_new_tokens=12, do_sample=True, eos_token_id=None, streamer=streamer)
    assert stream.getvalue() == tiny().decode(ids[0, prompt.input_ids.shape[1] :])


def test_streamer_prints_to_standard_output(capsys):
    streamer = TextStreamer(tiny(), end="!")
    streamer.put(torch.tensor([[1]]))
    streamer.put(torch.tensor(2))
    streamer.put([2])
    streamer.end()
    assert capsys.readouterr().out == "<s></s></s>!"


def test_streamer_can_send_text_elsewhere():
    class Collector(TextStreamer):
        texts: tuple = ()

        def on_finalized_text(self, text, stream_end=False):
            self.texts += ((text, stream_end),)

    streamer = Collector(tiny())
    streamer.put(tiny().encode("return"))
    streamer.end()
    assert streamer.texts == (("<s>return", False), ("", True))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_go_on_where_the_original_stands(duplicate):
    ids = [tiny().convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "☃".encode()]
    decoder = IncrementalDecoder(tiny())
    decoder.put(ids[:2])
    twin = duplicate(decoder)
    assert twin.put(ids[2:]) == decoder.put(ids[2:]) == "☃"
    duplicate(TextStreamer(tiny())).put([])


@pytest.mark.parametrize("shape", [(2, 3), (0, 1), (1, 1, 1)])
def test_streamer_takes_one_sequence(shape):
    with pytest.raises(ValueError, match="prints one sequence, but ids of shape"):
        TextStreamer(tiny()).put(torch.ones(shape, dtype=torch.int64))


def test_a_bad_id_changes_nothing():
    decoder = IncrementalDecoder(tiny())
    with pytest.raises(ValueError, match="The id 4096 is outside the vocabulary of 4096 tokens"):
        decoder.put([2, 4096])
    with pytest.raises(TypeError, match=r"Ids are integers, not 0\.5"):
        decoder.put([2, 0.5])
    assert decoder.put(2) == "</s>"
