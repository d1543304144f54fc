"""PersimmonConfig: both spellings of config.json, equality with what transformers reads, labels, round trips."""

import copy
import json
import os
import pickle

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persimmon_ext.config import PersimmonConfig

SMALL = {"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}
SHARED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
    *("max_position_embeddings", "initializer_range", "layer_norm_eps", "use_cache", "tie_word_embeddings"),
    *("qk_layernorm", "hidden_dropout", "attention_dropout", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("num_labels", "problem_type", "id2label", "label2id", "rope_parameters", "architectures"),
    *("output_attentions", "output_hidden_states", "return_dict"),
)
ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    "longrope": {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0], "factor": 2.0},
    "llama3": {
        **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 256,
    },
}


def assert_same_fields(ours: PersimmonConfig, theirs: transformers.PersimmonConfig) -> None:
    for name in SHARED:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.dtype == (None if theirs.dtype is None else str(theirs.dtype).removeprefix("torch."))


def test_defaults_are_persimmon_8b():
    config = PersimmonConfig()
    assert_same_fields(config, transformers.PersimmonConfig(rope_theta=25000.0))
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5}
    assert (config.head_dim, config.rotary_dim) == (64, 32)


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_transformers_reads_what_we_write(tmp_path, rope):
    config = PersimmonConfig(
        **SMALL, rope_parameters=rope, dtype=torch.bfloat16, pad_token_id=3, eos_token_id=[2, 5], num_labels=3
    )
    config.architectures = ["PersimmonForCausalLM"]
    config.save_pretrained(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.PersimmonConfig)
    assert_same_fields(config, theirs)
    assert PersimmonConfig.from_pretrained(tmp_path) == config
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_reads_what_transformers_writes(tmp_path, rope):
    theirs = transformers.PersimmonConfig(
        **SMALL, rope_parameters=dict(rope, rope_theta=123.0), dtype="float16", id2label={0: "no", 1: "yes", 2: "so"}
    )
    theirs.save_pretrained(tmp_path)
    ours = PersimmonConfig.from_pretrained(tmp_path / "config.json")
    assert ours.id2label == theirs.id2label
    assert ours.num_labels == 3
    assert ours.dtype == "float16"
    given_rope = {name: value for name, value in theirs.rope_parameters.items() if value is not None}
    assert ours.rope_parameters == given_rope
    ours.save_pretrained(tmp_path / "again")
    again = transformers.AutoConfig.from_pretrained(tmp_path / "again")
    assert_same_fields(ours, again)


@pytest.mark.parametrize("type_key", ["type", "rope_type"])
def test_transformers_4_spelling(type_key):
    file = {
        **SMALL,
        "model_type": "persimmon",
        "num_key_value_heads": 4,
        "partial_rotary_factor": 0.25,
        "rope_scaling": {type_key: "linear", "factor": 2.0},
        "rope_theta": 50000.0,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0",
    }
    untouched = copy.deepcopy(file)
    config = PersimmonConfig.from_dict(file)
    assert file == untouched
    expected = {"rope_type": "linear", "factor": 2.0, "rope_theta": 50000.0, "partial_rotary_factor": 0.25}
    assert config.rope_parameters == expected
    assert config.rotary_dim == 2
    assert config.dtype == "bfloat16"
    assert PersimmonConfig(**file) == config
    written = config.to_dict()
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert (written["rope_theta"], written["partial_rotary_factor"], written["torch_dtype"]) == (
        50000,
        0.25,
        "bfloat16",
    )


def test_published_checkpoint_of_transformers_4():
    file = json.loads("""{"architectures": ["PersimmonForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 71013,
        "eos_token_id": 71013, "hidden_act": "relu2", "hidden_dropout": 0.0, "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 16384, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 16384, "model_type": "persimmon", "num_attention_heads": 64,
        "num_hidden_layers": 36, "num_key_value_heads": 64, "partial_rotary_factor": 0.5, "qk_layernorm": true,
        "rope_scaling": null, "rope_theta": 25000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 262144}""")
    config = PersimmonConfig.from_dict(file)
    assert_same_fields(config, transformers.PersimmonConfig(**{**file, "num_key_value_heads": None}))


def test_unknown_keys_are_kept(tmp_path):
    config = PersimmonConfig(**SMALL, my_setting={"a": [1, 2]})
    assert config.extra == {"my_setting": {"a": [1, 2]}}
    config.later = "added"
    config.save_pretrained(tmp_path)
    again = PersimmonConfig.from_pretrained(tmp_path)
    assert again == config
    assert (again.my_setting, again.later) == ({"a": [1, 2]}, "added")
    with pytest.raises(AttributeError, match="no_such_setting"):
        config.no_such_setting  # noqa: B018


def test_overrides(tmp_path):
    PersimmonConfig(
        **SMALL, id2label={0: "a", 1: "b", 2: "c"}, dtype="float16", rope_parameters={"rope_theta": 7.0}
    ).save_pretrained(tmp_path)
    read = PersimmonConfig.from_pretrained
    assert read(tmp_path, num_labels=5).id2label[4] == "LABEL_4"
    assert read(tmp_path, num_labels=3).id2label[2] == "c"
    assert read(tmp_path, id2label={0: "x"}).label2id == {"x": 0}
    assert read(tmp_path, torch_dtype="bfloat16").dtype == "bfloat16"
    assert read(tmp_path, rope_theta=9.0).rope_parameters["rope_theta"] == 9.0
    assert read(tmp_path, partial_rotary_factor=1.0).rotary_dim == 8
    scaled = read(tmp_path, rope_scaling={"type": "linear", "factor": 3.0})
    assert scaled.rope_parameters == {
        **{"rope_type": "linear", "factor": 3.0},
        **{"rope_theta": 7.0, "partial_rotary_factor": 0.5},
    }


def test_pretrained_length_beside_the_rope():
    yarn = {"rope_type": "yarn", "factor": 2.0}
    file = {**SMALL, "original_max_position_embeddings": 64}
    assert PersimmonConfig(**file, rope_parameters=yarn).rope_parameters["original_max_position_embeddings"] == 64
    assert PersimmonConfig(**file).extra == {"original_max_position_embeddings": 64}
    overridden = PersimmonConfig.from_dict(file, rope_parameters={**yarn, "original_max_position_embeddings": 32})
    assert overridden.rope_parameters["original_max_position_embeddings"] == 32


def test_labels():
    assert PersimmonConfig().id2label == {0: "LABEL_0", 1: "LABEL_1"}
    config = PersimmonConfig(id2label={"0": "cat", "1": "dog", "2": "cow"})
    assert config.num_labels == 3
    assert config.label2id == {"cat": 0, "dog": 1, "cow": 2}
    config.num_labels = 3
    assert config.id2label[0] == "cat"
    config.num_labels = 4
    theirs = transformers.PersimmonConfig(num_labels=4)
    assert (config.id2label, config.label2id) == (theirs.id2label, theirs.label2id)
    assert PersimmonConfig(label2id={"x": 0, "y": 1, "z": 2}).id2label == {0: "x", 1: "y", 2: "z"}


def test_attributes_may_change():
    config = PersimmonConfig(**SMALL)
    config.rope_parameters = {"type": "linear", "factor": 2.0}
    assert config.rope_parameters["rope_theta"] == 25000.0
    config.dtype = torch.float16
    assert config.to_dict()["torch_dtype"] == "float16"
    config.hidden_size = 33
    with pytest.raises(ValueError, match=r"hidden_size.*33"):
        config.validate()


def test_equality_repr_copy():
    config = PersimmonConfig(**SMALL, note="x")
    assert config == PersimmonConfig(**SMALL, note="x")
    assert config != PersimmonConfig(**SMALL)
    assert config != "config"
    assert "hidden_size=32" in repr(config)
    assert eval(repr(config)) == config
    for twin in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config
    twin = copy.deepcopy(config)
    twin.rope_parameters["rope_theta"] = 1.5
    assert twin != config


CONFIGS = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(10, 1000),
        "num_attention_heads": st.integers(1, 8),
        "num_hidden_layers": st.integers(1, 40),
        "intermediate_size": st.integers(1, 300),
        "layer_norm_eps": st.floats(1e-12, 1e-2),
        "hidden_dropout": st.floats(0, 0.99),
        "use_cache": st.booleans(),
        "output_attentions": st.booleans(),
        "output_hidden_states": st.booleans(),
        "return_dict": st.booleans(),
        "eos_token_id": st.none() | st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=1, max_size=3),
        "pad_token_id": st.none() | st.integers(-1, 9),
        "num_labels": st.integers(1, 5),
        "problem_type": st.sampled_from([None, "regression", "multi_label_classification"]),
        "dtype": st.sampled_from([None, "float32", "bfloat16"]),
        "rope_parameters": st.sampled_from(list(ROPES.values())),
        "note": st.text() | st.integers() | st.lists(st.booleans()),
    }
)


@given(fields=CONFIGS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trips(tmp_path, fields):
    config = PersimmonConfig(**fields, hidden_size=8 * fields["num_attention_heads"])
    assert PersimmonConfig.from_dict(config.to_dict()) == config
    config.save_pretrained(tmp_path)
    assert PersimmonConfig.from_pretrained(tmp_path) == config
    assert_same_fields(config, transformers.AutoConfig.from_pretrained(tmp_path))
