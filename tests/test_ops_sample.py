"""torch.ops.persimmon_ext.sample: exact tokens, filters, distribution, and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from persimmon_ext import _C, reference  # noqa: F401  (_C registers the ops)

ops = torch.ops.persimmon_ext
UNFILTERED = (1.0, 0, 1.0, 0.0)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def philox_words(seed: int, counter: int, V: int) -> np.ndarray:
    """First output words of Philox4x32-10 for counters (token, counter low, counter high, 0)."""
    low = np.uint64(0xFFFFFFFF)
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    c = [np.arange(V, dtype=np.uint64), *(np.full(V, word, dtype=np.uint64) for word in (counter & 0xFFFFFFFF, 0, 0))]
    c[2] += np.uint64((counter >> 32) & 0xFFFFFFFF)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), b & low, (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), a & low]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c[0]


def expected(logits: Tensor, rng: Tensor, options: tuple[float, int, float, float]) -> Tensor:
    words = np.stack([philox_words(int(seed), int(counter), logits.shape[1]) for seed, counter in rng])
    noise = torch.from_numpy(-np.log(-np.log(((words >> np.uint64(8)) + 0.5) * 2.0**-24)))
    return (reference.filter_logits(logits.double(), *options) + noise).argmax(-1)


def inputs(B: int, V: int, dtype: torch.dtype = torch.float32, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(B * 1000003 + V)
    logits = (torch.randn(B, V, generator=generator) * spread).to(dtype)
    return logits, torch.randint(-(2**62), 2**62, (B, 2), generator=generator)


def test_philox_known_answers() -> None:
    # The published vector for a zero key and counter (the others have a non-zero last counter word).
    assert philox_words(0, 0, 1)[0] == 0x6627E8D5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("V", [1, 2, 17, 63, 64, 65, 1009, 50021])
@pytest.mark.parametrize(
    "options",
    [(1.0, 0, 1.0, 0.0), (0.7, 5, 1.0, 0.0), (1.3, 0, 0.8, 0.0), (1.0, 0, 1.0, 0.1), (0.9, 40, 0.9, 0.02)],
)
def test_same_tokens_as_reference(dtype: torch.dtype, V: int, options: tuple[float, int, float, float]) -> None:
    logits, rng = inputs(16, V, dtype)
    token = ops.sample(logits, rng, *options)
    want = expected(logits, rng, options)
    # A token at the edge of a filter may fall on the other side of it in another precision.
    assert (token == want).sum() >= 15


@pytest.mark.parametrize("dtype", DTYPES)
def test_real_vocabulary(dtype: torch.dtype) -> None:
    logits, rng = inputs(3, 262144, dtype)
    for options in [(1.0, 0, 1.0, 0.0), (0.8, 50, 0.95, 0.0), (1.0, 0, 0.5, 0.05)]:
        assert torch.equal(ops.sample(logits, rng, *options), expected(logits, rng, options))


@pytest.mark.parametrize("spread", [0.0, 1e-3, 30.0])
def test_flat_and_peaked_logits(spread: float) -> None:
    logits, rng = inputs(32, 5003, spread=spread)
    assert torch.equal(ops.sample(logits, rng, *UNFILTERED), expected(logits, rng, UNFILTERED))


def test_greedy_takes_the_first_of_equals() -> None:
    logits, rng = inputs(4, 1009)
    logits[1, [5, 900]] = 50.0
    logits[2] = 0.0
    logits[3, 1008] = 50.0
    assert ops.sample(logits, rng, 0.0, 0, 1.0, 0.0).tolist() == [int(logits[0].argmax()), 5, 0, 1008]


def test_ties_at_a_threshold_are_kept_together() -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0]).repeat(2000, 1)
    rng = torch.stack((torch.full((2000,), 7), torch.arange(2000)), dim=1)
    for options in [(1.0, 2, 1.0, 0.0), (1.0, 0, 0.5, 0.0), (1.0, 0, 1.0, 0.3)]:
        drawn = ops.sample(logits, rng, *options)
        assert set(drawn.tolist()) == {0, 1, 2, 3}
    assert set(ops.sample(logits, rng, 1.0, 1, 1.0, 0.0).tolist()) == {0}
    assert set(ops.sample(logits, rng, 1.0, 0, 1e-9, 0.0).tolist()) == {0}
    assert set(ops.sample(logits, rng, 1.0, 0, 1.0, 1.0).tolist()) == {0}


def test_filtered_by_the_caller() -> None:
    logits, rng = inputs(64, 257)
    allowed = torch.arange(257) % 16 == 3
    token = ops.sample(logits.masked_fill(~allowed, float("-inf")), rng, 1.0, 0, 0.99, 0.0)
    assert bool((token % 16 == 3).all())


def test_distribution() -> None:
    draws, V = 20000, 12
    logits = torch.linspace(-2, 1, V)
    rng = torch.stack((torch.full((draws,), 1234567891011), torch.arange(draws)), dim=1)
    token = ops.sample(logits.expand(draws, V), rng, 0.8, 10, 0.97, 0.0)
    p = reference.filter_logits(logits[None].double(), 0.8, 10, 0.97, 0.0).softmax(-1)[0]
    counts = torch.bincount(token, minlength=V).double()
    assert bool((counts[p == 0] == 0).all())
    kept = p > 0
    chi_square = ((counts - draws * p).square()[kept] / (draws * p[kept])).sum().item()
    assert chi_square < 35  # 99.99% quantile for at most 9 degrees of freedom is 33.7


def test_rows_are_independent() -> None:
    logits, rng = inputs(5, 997)
    together = ops.sample(logits, rng, 1.0, 20, 0.9, 0.0)
    alone = [ops.sample(logits[i : i + 1], rng[i : i + 1], 1.0, 20, 0.9, 0.0) for i in range(5)]
    assert torch.equal(together, torch.cat(alone))


def test_strided_and_empty() -> None:
    logits, rng = inputs(4, 101)
    wide = torch.zeros(4, 202)
    wide[:, ::2] = logits
    assert torch.equal(ops.sample(wide[:, ::2], rng, 1.0, 0, 1.0, 0.0), ops.sample(logits, rng, *UNFILTERED))
    assert ops.sample(logits[:0], rng[:0], 1.0, 0, 1.0, 0.0).shape == (0,)


def test_tiny_and_large_temperatures() -> None:
    logits, rng = inputs(8, 1009)
    for temperature in (1e-45, 1e-30, 1e-6):
        assert torch.equal(ops.sample(logits, rng, temperature, 0, 0.9, 0.0), logits.argmax(-1))
    token = ops.sample(logits, rng, 1e30, 0, 1.0, 0.0)
    assert torch.equal(token, expected(torch.zeros_like(logits), rng, UNFILTERED))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((-0.5, 0, 1.0, 0.0), "temperature must be .*-0.5"),
        ((float("nan"), 0, 1.0, 0.0), "temperature must be .*nan"),
        ((float("inf"), 0, 1.0, 0.0), "temperature must be .*inf"),
        ((1.0, -1, 1.0, 0.0), "top_k must be .*-1"),
        ((1.0, 0, 0.0, 0.0), "top_p must be .*0"),
        ((1.0, 0, 1.5, 0.0), "top_p must be .*1.5"),
        ((1.0, 0, float("nan"), 0.0), "top_p must be .*nan"),
        ((1.0, 0, 1.0, -0.1), "min_p must be .*-0.1"),
        ((1.0, 0, 1.0, 1.1), "min_p must be .*1.1"),
    ],
)
def test_options_out_of_range(options: tuple[float, int, float, float], message: str) -> None:
    logits, rng = inputs(2, 10)
    with pytest.raises(ValueError, match=message):
        ops.sample(logits, rng, *options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("value", "message"), [("nan", "NaN, got one in row 2"), ("inf", "inf, got one in row 2")])
def test_bad_logits_name_the_row(temperature: float, value: str, message: str) -> None:
    logits, rng = inputs(4, 37)
    logits[2, 36] = float(value)
    with pytest.raises(ValueError, match=message):
        ops.sample(logits, rng, temperature, 0, 1.0, 0.0)


def test_row_without_a_finite_logit() -> None:
    logits, rng = inputs(4, 37)
    logits[3] = float("-inf")
    with pytest.raises(ValueError, match="row 3"):
        ops.sample(logits, rng, *UNFILTERED)


def test_bad_arguments() -> None:
    logits, rng = inputs(2, 10)
    with pytest.raises(ValueError, match=r"rng must have shape \[2, 2\], got \[1, 2\]"):
        ops.sample(logits, rng[:1], 1.0, 0, 1.0, 0.0)
    with pytest.raises(TypeError, match="rng must be int64, got int32"):
        ops.sample(logits, rng.int(), 1.0, 0, 1.0, 0.0)
    with pytest.raises(ValueError, match="logits must have 2 dimensions"):
        ops.sample(logits[0], rng, 1.0, 0, 1.0, 0.0)
    with pytest.raises(ValueError, match="columns"):
        ops.sample(logits[:, :0], rng, 1.0, 0, 1.0, 0.0)
    with pytest.raises(TypeError, match="logits must be float32, bfloat16 or float16"):
        ops.sample(logits.double(), rng, 1.0, 0, 1.0, 0.0)
