"""DynamicCache and StaticCache against transformers', with poisoned tails; storage and growth."""

import copy

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from persimmon_ext.cache import Cache, DynamicCache, StaticCache
from persimmon_ext.config import PersimmonConfig

LAYERS, B, H, D = 2, 2, 3, 4
CONFIG = PersimmonConfig(
    num_hidden_layers=LAYERS, num_attention_heads=H, hidden_size=H * D, vocab_size=9, intermediate_size=8
)
CAPACITY = 96


def make(kind: str) -> Cache:
    return DynamicCache() if kind == "dynamic" else StaticCache(CONFIG, CAPACITY)


def states(tokens: int, batch: int = B, seed: int = 0, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, batch, H, tokens, D, generator=generator).unbind()
    return k.to(**options), v.to(**options)


def poison(cache: Cache) -> None:
    """Fills every slot beyond the valid length with NaN."""
    for index, layer in enumerate(cache.layers):
        if layer.is_initialized:
            shape = (layer.batch_size, H, 0, D)
            for storage in cache.buffers(index, shape, layer.keys.dtype, layer.keys.device):
                storage[:, :, layer.get_seq_length() :] = float("nan")


def assert_same_content(ours: Cache, theirs: transformers.DynamicCache) -> None:
    for index, layer in enumerate(theirs.layers):
        length = layer.get_seq_length()
        assert ours.get_seq_length(index) == length
        if length:
            assert torch.equal(ours.layers[index].keys, layer.keys)
            assert torch.equal(ours.layers[index].values, layer.values)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), st.integers(1, 20)),
        st.tuples(st.just("crop"), st.integers(-9, 0)),
        st.tuples(st.just("reorder_cache"), st.integers(0, 99)),
        st.tuples(st.just("batch_select_indices"), st.integers(0, 99)),
        st.tuples(st.just("batch_repeat_interleave"), st.integers(1, 2)),
        st.tuples(st.just("reset"), st.just(0)),
    ),
    max_size=12,
)


@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@given(operations=OPERATIONS)
@settings(max_examples=60, deadline=None)
def test_same_operations_same_content(kind, grad_mode, operations):
    ours, theirs = make(kind), transformers.DynamicCache()
    batch = B
    with torch.set_grad_enabled(grad_mode):
        for seed, (name, number) in enumerate(operations):
            length = ours.get_seq_length()
            if name == "update":
                if length + number > CAPACITY:
                    continue
                for layer in range(LAYERS):
                    k, v = states(number, batch, seed + layer)
                    mine, other = ours.update(k, v, layer), theirs.update(k, v, layer)
                    assert torch.equal(mine[0], other[0])
                    assert torch.equal(mine[1], other[1])
            elif name in ("reset", "crop"):
                for cache in (ours, theirs):
                    cache.reset() if name == "reset" else cache.crop(number)
                if ours.get_seq_length() == 0:
                    # transformers' own empty cache does not follow the batch, so both start afresh.
                    ours, theirs, batch = make(kind), transformers.DynamicCache(), B
            elif length:
                generator = torch.Generator().manual_seed(number)
                argument: object = number
                if name == "reorder_cache":
                    argument = torch.randint(batch, (batch,), generator=generator)
                elif name == "batch_select_indices":
                    argument = torch.randint(batch, (min(1 + number % 3, 4),), generator=generator)
                    batch = argument.numel()
                elif batch * number > 8:
                    continue
                else:
                    batch *= number
                getattr(ours, name)(argument)
                getattr(theirs, name)(argument)
            poison(ours)
            assert_same_content(ours, theirs)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_crop_keeps_or_drops(kind):
    cache = make(kind)
    k, v = states(10)
    with torch.no_grad():
        cache.update(k, v, 0)
    cache.crop(20)
    cache.crop(0)
    assert cache.get_seq_length() == 10
    cache.crop(7)
    assert torch.equal(cache.layers[0].keys, k[:, :, :7])
    cache.crop(-3)
    assert torch.equal(cache.layers[0].values, v[:, :, :4])
    cache.crop(-100)
    assert cache.get_seq_length() == 0
    with pytest.raises(TypeError, match=r"crop.*2.5"):
        cache.crop(2.5)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_buffers_and_advance(kind):
    cache = make(kind)
    reference = DynamicCache()
    for seed, tokens in enumerate([5, 1, 1, 60, 1, 20]):
        k, v = states(tokens, seed=seed)
        start = cache.get_seq_length(1)
        k_buffer, v_buffer = cache.buffers(1, k.shape, k.dtype, k.device)
        assert k_buffer.shape == v_buffer.shape
        assert k_buffer.shape[2] >= start + tokens
        assert cache.get_seq_length(1) == start
        poison(cache)
        k_buffer[:, :, start : start + tokens] = k
        v_buffer[:, :, start : start + tokens] = v
        cache.advance(1, tokens)
        reference.update(k, v, 1)
        assert torch.equal(cache.layers[1].keys, reference.layers[1].keys)
        assert torch.equal(cache.layers[1].values, reference.layers[1].values)
    assert len(cache) == LAYERS
    with pytest.raises(ValueError, match=r"advance\(1000\)"):
        cache.advance(1, 1000)
    with pytest.raises(ValueError, match=r"advance\(-1\)"):
        cache.advance(1, -1)


def test_dynamic_growth_copies_seldom():
    cache, addresses = DynamicCache(), set()
    with torch.no_grad():
        for seed in range(1000):
            k, v = states(1, seed=seed)
            addresses.add(cache.update(k, v, 0)[0].data_ptr())
    assert len(addresses) < 20
    assert cache.layers[0].capacity <= 1000 * 1.25 + 64


def test_static_keeps_its_storage():
    cache = StaticCache(CONFIG, 16, max_batch_size=B, dtype=torch.bfloat16, device="cpu")
    assert cache.layers[1].capacity == 16
    k, v = states(4, dtype=torch.bfloat16)

    def addresses() -> list[int]:
        buffers = [cache.buffers(index, (B, H, 0, D), k.dtype, k.device) for index in range(LAYERS)]
        return [tensor.data_ptr() for pair in buffers for tensor in pair]

    before = addresses()
    for index in range(LAYERS):
        cache.update(k, v, index)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.crop(-1)
    cache.reset()
    cache.update(k, v, 0)
    assert addresses() == before
    assert (cache.max_cache_len, cache.get_max_cache_shape(), DynamicCache().get_max_cache_shape()) == (16, 16, -1)
    assert StaticCache(PersimmonConfig(**{**CONFIG.to_dict(), "dtype": "float16"}), 4, 1).layers[0].keys.dtype == (
        torch.float16
    )


def test_iteration_length_and_copy():
    cache = DynamicCache()
    assert (len(cache), cache.get_seq_length(), cache.get_seq_length(3)) == (0, 0, 0)
    with torch.no_grad():
        cache.update(*states(2), 1)
    assert len(cache) == 2
    (no_keys, _), (keys, values) = cache
    assert no_keys is None
    twin = copy.deepcopy(cache)
    with torch.no_grad():
        cache.crop(-1)
        cache.update(*states(1, seed=9), 1)
    assert torch.equal(twin.layers[1].keys, states(2)[0])
    assert torch.equal(twin.layers[1].values, states(2)[1])
    assert keys.shape == values.shape
    assert repr(twin) == "DynamicCache(layers=2, seq_length=0)"
