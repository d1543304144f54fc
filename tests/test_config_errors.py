"""PersimmonConfig refuses nonsense with a sentence that names the field and the value, and never half-writes a file."""

import os
from pathlib import Path

import pytest

from persimmon_ext.config import PersimmonConfig

SMALL = {"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0], "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

BAD_FIELDS = [
    *[
        (name, value)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers")
        for value in (0, -4, 2.0, "8", True)
    ],
    *[("num_attention_heads", 5), ("num_attention_heads", 0), ("intermediate_size", -1), ("intermediate_size", None)],
    *[("max_position_embeddings", 0), ("initializer_range", -0.1), ("initializer_range", float("nan"))],
    *[("layer_norm_eps", 0), ("layer_norm_eps", -1e-5), ("layer_norm_eps", "1e-5"), ("layer_norm_eps", float("inf"))],
    *[("hidden_dropout", 1.0), ("hidden_dropout", -0.1), ("attention_dropout", 2), ("attention_dropout", None)],
    *[
        ("use_cache", 1),
        ("return_dict", 0),
        ("output_attentions", None),
        ("tie_word_embeddings", "no"),
        ("qk_layernorm", None),
        ("hidden_act", 3),
        ("hidden_act", ""),
    ],
    *[("pad_token_id", 99), ("pad_token_id", -2), ("bos_token_id", 100), ("bos_token_id", 1.5), ("eos_token_id", "2")],
    *[("eos_token_id", [2, 200]), ("eos_token_id", [2, -7]), ("problem_type", "guessing"), ("num_labels", 0)],
    *[("num_labels", 2.0), ("id2label", {"a": "b"}), ("id2label", ["a"]), ("label2id", 4), ("dtype", "float17")],
    *[("dtype", "nn"), ("num_key_value_heads", 2), ("head_dim", 16), ("model_type", "llama")],
    *[("rope_theta", 0), ("rope_theta", "big"), ("partial_rotary_factor", 0), ("partial_rotary_factor", 1.5)],
    *[("partial_rotary_factor", 0.4), ("partial_rotary_factor", 0.1), ("rope_parameters", "default")],
]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=repr)
def test_nonsense_names_the_field_and_value(name, value):
    with pytest.raises((ValueError, TypeError)) as caught:
        PersimmonConfig(**{**SMALL, name: value})
    bad = [item for item in value if item != 2] if name == "eos_token_id" and isinstance(value, list) else [value]
    assert name in str(caught.value)
    assert repr(bad[0]) in str(caught.value)


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"rope_type": "spiral"}, "spiral"),
        ({"rope_type": 3}, "rope_type.*3"),
        *[({"rope_type": kind}, "factor") for kind in ("linear", "dynamic", "yarn", "llama3", "longrope")],
        ({"rope_type": "linear", "factor": 0.0}, "factor.*0.0"),
        ({"rope_type": "linear", "factor": "2"}, "factor.*'2'"),
        ({"rope_type": "linear", "factor": None}, "factor"),
        ({"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.25}, "rotary dim of 2"),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}, "original_max.*0"),
        ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}, "rope_theta"),
        ({"rope_type": "yarn", "factor": 2.0, "beta_fast": -1}, "beta_fast.*-1"),
        ({**LONGROPE, "short_factor": [1.0]}, "short_factor.*2 numbers"),
        ({**LONGROPE, "long_factor": [1.0, -2.0]}, r"long_factor\[1\].*-2.0"),
        ({**LONGROPE, "long_factor": 2.0}, "long_factor"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention"),
    ],
)
def test_nonsense_rope(rope, named):
    with pytest.raises(ValueError, match=named):
        PersimmonConfig(**SMALL, rope_parameters=rope)


def test_more_nonsense():
    with pytest.raises(ValueError, match="num_labels is 3"):
        PersimmonConfig(num_labels=3, id2label={0: "a"})
    with pytest.raises(ValueError, match="single_label"):
        PersimmonConfig(num_labels=1, problem_type="single_label_classification")
    with pytest.raises(TypeError, match="dictionary"):
        PersimmonConfig.from_dict([])
    assert PersimmonConfig(pad_token_id=-1).pad_token_id == -1


@pytest.mark.parametrize("overrides", [{}, {"rope_theta": 2.0}, {"num_hidden_layers": 3}])
@pytest.mark.parametrize(("name", "value"), [("rope_scaling", "big"), ("rope_parameters", [1]), ("id2label", 3)])
def test_nonsense_in_a_file(name, value, overrides):
    with pytest.raises(TypeError, match="must be a dictionary or None"):
        PersimmonConfig.from_dict({**SMALL, name: value}, **overrides)


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        PersimmonConfig.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        PersimmonConfig.from_pretrained("nowhere/at-all")
    file = tmp_path / "config.json"
    for content, named in ((b"{", "not valid JSON"), (b"[1]", "JSON object, got list"), (b"\xff{}", "not valid JSON")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=named):
            PersimmonConfig.from_pretrained(tmp_path)


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    config = PersimmonConfig(**SMALL)
    config.save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    config.note = object()
    with pytest.raises(TypeError, match="JSON"):
        config.save_pretrained(tmp_path)
    config.note = "fine"
    config.hidden_size = -1
    with pytest.raises(ValueError, match="hidden_size"):
        config.save_pretrained(tmp_path)
    config.hidden_size = 32

    def disk_full(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", disk_full)
    with pytest.raises(OSError, match="disk full"):
        config.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before
    assert os.listdir(tmp_path) == ["config.json"]
    with pytest.raises(NotADirectoryError, match="is a file"):
        config.save_pretrained(tmp_path / "config.json")
