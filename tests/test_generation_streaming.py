"""Streamers see the prompt, then each token, then the end; transformers' own streamer prints ours."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from generation_cases import model_pair, prompt
from torch import Tensor


class Recorder:
    """A streamer that notes every call."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def put(self, value: Tensor) -> None:
        assert value.device.type == "cpu"
        self.calls.append(value.tolist())

    def end(self) -> None:
        self.calls.append("end")


@pytest.fixture(scope="module")
def model() -> Any:
    return model_pair()[1]


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 1}])
def test_order(model: Any, options: dict[str, Any]) -> None:
    recorder = Recorder()
    result = model.generate(prompt(), max_new_tokens=4, streamer=recorder, **options)
    assert recorder.calls == [prompt().tolist(), *[[token] for token in result[0, -4:].tolist()], "end"]


def test_the_end_token_is_streamed(model: Any) -> None:
    end = int(model.generate(prompt(), max_new_tokens=1)[0, -1])
    recorder = Recorder()
    model.generate(prompt(), max_new_tokens=4, streamer=recorder, eos_token_id=end)
    assert recorder.calls == [prompt().tolist(), [end], "end"]


def test_same_calls_as_transformers() -> None:
    theirs, ours = model_pair(3)
    recorders = [Recorder(), Recorder()]
    for model, recorder in zip((theirs, ours), recorders, strict=True):
        model.generate(prompt(), max_new_tokens=5, do_sample=False, streamer=recorder)
    assert recorders[0].calls == recorders[1].calls


def test_transformers_text_streamer(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class Digits:
        def decode(self, ids: list[int]) -> str:
            return " ".join(map(str, ids)) + " "

    result = model.generate(prompt(), max_new_tokens=4, streamer=transformers.TextStreamer(Digits()))
    assert capsys.readouterr().out.split() == [str(token) for token in result[0].tolist()]


def test_the_end_comes_after_an_error_too(model: Any) -> None:
    class Failing(Recorder):
        def put(self, value: Tensor) -> None:
            super().put(value)
            if len(self.calls) == 3:
                raise KeyboardInterrupt

    failing = Failing()
    with pytest.raises(KeyboardInterrupt):
        model.generate(prompt(), max_new_tokens=9, streamer=failing)
    assert len(failing.calls) == 4
    assert failing.calls[-1] == "end"


def test_several_rows_are_an_error(model: Any) -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match="A streamer takes one row, and input_ids has 2"):
        model.generate(prompt(2), max_new_tokens=1, streamer=recorder)
    assert recorder.calls == []


def test_what_is_no_streamer(model: Any) -> None:
    with pytest.raises(TypeError, match="must have the methods put and end, got int"):
        model.generate(prompt(), max_new_tokens=1, streamer=7)
