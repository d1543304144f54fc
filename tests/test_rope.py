"""PersimmonRotaryEmbedding against transformers', for every RoPE type, short and long inputs, and histories."""

import copy
import pickle

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.persimmon.modeling_persimmon import PersimmonRotaryEmbedding as TheirRotaryEmbedding

from persimmon_ext.config import PersimmonConfig
from persimmon_ext.rope import PersimmonRotaryEmbedding

SMALL = {"vocab_size": 99, "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
SMALL["max_position_embeddings"] = 128
R_HALF = 8
ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 3.3},
    "dynamic, whole factor": {"rope_type": "dynamic", "factor": 2},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn, own length": {"rope_type": "yarn", "factor": 4.0},
    "yarn, mscale": {
        **{"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "truncate": False},
        **{"mscale": 0.7, "mscale_all_dim": 1.1, "beta_fast": 16, "beta_slow": 2},
    },
    "yarn, attention_factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25, "mscale_all_dim": 0},
    "longrope": {
        **{"rope_type": "longrope", "original_max_position_embeddings": 32},
        "short_factor": [1.0 + 0.1 * i for i in range(R_HALF)],
        "long_factor": [2.0 + 0.7 * i for i in range(R_HALF)],
    },
    "longrope, factor": {
        **{"rope_type": "longrope", "original_max_position_embeddings": 32, "factor": 16.0},
        "short_factor": [1.0] * R_HALF,
        "long_factor": [4.0] * R_HALF,
    },
    "longrope, attention_factor": {
        **{"rope_type": "longrope", "original_max_position_embeddings": 64, "attention_factor": 0.9},
        "short_factor": [1.0] * R_HALF,
        "long_factor": [4.0] * R_HALF,
    },
    "llama3": {
        **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 64,
    },
}


def pair(rope: dict, **fields: object) -> tuple[PersimmonRotaryEmbedding, TheirRotaryEmbedding]:
    fields = {**SMALL, "rope_theta": 25000.0, **fields}
    ours = PersimmonRotaryEmbedding(PersimmonConfig(**fields, rope_parameters=copy.deepcopy(rope)))
    return ours, TheirRotaryEmbedding(transformers.PersimmonConfig(**fields, rope_parameters=copy.deepcopy(rope)))


def assert_equal_to(theirs: TheirRotaryEmbedding, ours: PersimmonRotaryEmbedding, positions: torch.Tensor) -> None:
    for mine, other in zip(ours(positions), theirs(torch.zeros(1), positions), strict=True):
        half = mine.shape[-1]
        assert mine.dtype == torch.float32
        torch.testing.assert_close(torch.cat([mine, mine], dim=-1), other, rtol=0, atol=1e-6)
        assert other.shape[-1] == 2 * half


@pytest.mark.parametrize("length", [1, 31, 32, 33, 63, 65, 127, 128, 129, 1000, 5003])
@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_equals_transformers(rope, length):
    ours, theirs = pair(rope)
    assert_equal_to(theirs, ours, torch.arange(length)[None].expand(2, -1))


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_equals_transformers_in_decoding(rope):
    ours, theirs = pair(rope)
    assert_equal_to(theirs, ours, torch.arange(120)[None])
    for position in range(120, 140):
        assert_equal_to(theirs, ours, torch.tensor([[position], [position - 7]]))
    assert_equal_to(theirs, ours, torch.arange(5)[None])


@given(length=st.integers(1, 400), share=st.sampled_from([0.25, 0.5, 1.0]), theta=st.sampled_from([100.0, 1e4, 5e5]))
@settings(max_examples=30, deadline=None)
def test_partial_rotary_and_theta(length, share, theta):
    for rope in (ROPES["default"], ROPES["dynamic"], ROPES["yarn"], ROPES["llama3"]):
        ours, theirs = pair(rope, partial_rotary_factor=share, rope_theta=theta)
        assert ours(torch.arange(length)[None])[0].shape == (1, length, 16 * share)
        assert_equal_to(theirs, ours, torch.arange(length)[None])


def test_dynamic_does_not_remember_longer_calls():
    ours, theirs = pair(ROPES["dynamic"])
    first = ours(torch.arange(150)[None])
    ours(torch.arange(400)[None])
    again = ours(torch.arange(150)[None])
    assert torch.equal(first[0], again[0])
    theirs(torch.zeros(1), torch.arange(400)[None])
    remembered = theirs(torch.zeros(1), torch.arange(150)[None])[0]
    assert not torch.allclose(remembered[..., :R_HALF], again[0])


def test_cos_sin_come_from_fp32_angles():
    ours, _ = pair(ROPES["default"])
    position = 16383
    frequencies = 25000.0 ** -(torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    cos, sin = ours(torch.tensor([[position]]))
    # One fp32 rounding of an angle below 2^14 is at most 2^-11.
    torch.testing.assert_close(cos[0, 0].double(), (position * frequencies).cos(), rtol=0, atol=2**-9)
    torch.testing.assert_close(sin[0, 0].double(), (position * frequencies).sin(), rtol=0, atol=2**-9)


@pytest.mark.parametrize("name", ["default", "dynamic", "longrope"])
def test_survives_casts_meta_and_copies(name):
    ours, _ = pair(ROPES[name])
    config = PersimmonConfig(**SMALL, rope_parameters=ROPES[name])
    positions = torch.arange(200)[None]
    expected = ours(positions)
    with torch.device("meta"):
        from_meta = PersimmonRotaryEmbedding(config)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        from_bf16 = PersimmonRotaryEmbedding(config)
        assert torch.equal(from_bf16(positions)[0], expected[0])
    finally:
        torch.set_default_dtype(default)
    with torch.inference_mode():
        assert torch.equal(ours(positions)[1], expected[1])
    variants = [
        copy.deepcopy(ours).to(torch.bfloat16),
        copy.deepcopy(ours).half().double(),
        from_meta.to_empty(device="cpu"),
        pickle.loads(pickle.dumps(ours)),
    ]
    for rotary in variants:
        for mine, other in zip(rotary(positions), expected, strict=True):
            assert torch.equal(mine, other)
    assert not ours.state_dict()
    assert ours(positions.to("meta"))[0].shape == (1, 200, R_HALF)
    assert torch.equal(ours(positions)[0], expected[0])


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_no_positions(rope):
    ours, _ = pair(rope)
    assert ours(torch.zeros(2, 0, dtype=torch.long))[0].shape == (2, 0, R_HALF)
    assert ours(torch.zeros(0, 3, dtype=torch.int32))[1].shape == (0, 3, R_HALF)


@pytest.mark.parametrize(
    "positions", [torch.zeros(3, dtype=torch.long), torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool)]
)
def test_wrong_positions(positions):
    ours, _ = pair(ROPES["default"])
    with pytest.raises(ValueError, match="position_ids"):
        ours(positions)


def test_top_level_pretrained_length_wins():
    rope = ROPES["longrope"]
    config = PersimmonConfig(**SMALL, rope_parameters=rope, original_max_position_embeddings=64)
    assert config.rope_parameters["original_max_position_embeddings"] == 64
    theirs = TheirRotaryEmbedding(
        transformers.PersimmonConfig(
            **SMALL, rope_theta=25000.0, rope_parameters=copy.deepcopy(rope), original_max_position_embeddings=64
        )
    )
    ours = PersimmonRotaryEmbedding(config)
    for length in (33, 65):
        assert_equal_to(theirs, ours, torch.arange(length)[None])
