"""The caches under autograd and inference mode, and what they refuse."""

import pytest
import torch
import transformers

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


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_gradients_flow_through_the_cache(kind):
    def loss_of(cache: object, inputs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        total = torch.zeros(())
        for seed, (k, v) in enumerate(inputs):
            k_all, v_all = cache.update(k, v, 0)
            query = states(1, seed=100 + seed)[0]
            total = total + ((query @ k_all.mT).softmax(-1) @ v_all).square().sum()
            if seed == 1:
                cache.reorder_cache(torch.tensor([1, 0]))
                cache.crop(-2)
        return total

    gradients = []
    for cache in (make(kind), transformers.DynamicCache()):
        inputs = [tuple(t.requires_grad_() for t in states(n, seed=n)) for n in (5, 1, 3, 2)]
        loss_of(cache, inputs).backward()
        gradients.append([tensor.grad for part in inputs for tensor in part])
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_appending_in_place_later_does_not_spoil_a_backward(kind):
    cache = make(kind)
    k, v = (tensor.requires_grad_() for tensor in states(5))
    k_all, _ = cache.update(k * 1, v * 1, 0)
    loss = k_all.square().sum()
    with torch.no_grad():
        cache.crop(-3)
        cache.update(*states(2, seed=7), 0)
        cache.buffers(0, (B, H, 1, D), torch.float32, torch.device("cpu"))[0].fill_(float("nan"))
    loss.backward()
    torch.testing.assert_close(k.grad, 2 * k.detach())


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_inference_mode_and_back(kind):
    cache, k_v = make(kind), states(3)
    with torch.inference_mode():
        cache.update(*k_v, 0)
        cache.reorder_cache(torch.tensor([1, 1]))
        cache.batch_select_indices(torch.tensor([0]))
        cache.batch_repeat_interleave(B)
    with torch.no_grad():
        k_all, _ = cache.update(*k_v, 0)
    assert torch.equal(k_all, torch.cat([k_v[0][[1, 1]], k_v[0]], dim=2))
    cache.update(*k_v, 0)
    assert cache.get_seq_length() == 9


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("grad_mode", [True, False])
def test_a_refused_update_changes_nothing(kind, grad_mode):
    cache = make(kind)
    k, v = states(6)
    with torch.set_grad_enabled(grad_mode):
        cache.update(k, v, 0)
        wrong = [
            (states(1, batch=3), "batch"),
            ((k[:, :2], v[:, :2]), "heads"),
            ((k[..., :3], v[..., :3]), "head dim"),
            ((k.half(), v.half()), "float16"),
            ((k.to("meta"), v.to("meta")), "meta"),
            ((k, v[:, :, :5]), "Keys and values"),
            ((k[0], v[0]), "Keys and values"),
            ((k, v.double()), "Keys and values"),
        ]
        if kind == "static":
            wrong.append((states(CAPACITY - 5), f"need {CAPACITY + 1} slots, and it has {CAPACITY}"))
        for (bad_k, bad_v), named in wrong:
            with pytest.raises(ValueError, match=named):
                cache.update(bad_k, bad_v, 0)
        for bad_k, _ in [pair for pair, named in wrong if named not in ("Keys and values",)]:
            with pytest.raises(ValueError, match="cache"):
                cache.buffers(0, bad_k.shape, bad_k.dtype, bad_k.device)
        assert torch.equal(cache.layers[0].keys, k)
        assert torch.equal(cache.layers[0].values, v)
        with pytest.raises(ValueError, match="Keys and values"):
            cache.update(k[0], v[0], 1)
        assert cache.get_seq_length(1) == 0
        cache.update(k, v, 1)


def test_batch_operations_refuse_nonsense():
    cache = DynamicCache()
    cache.reorder_cache(torch.tensor([5]))  # an empty cache has no batch yet
    assert cache.batch_size is None
    cache.update(*states(2), 0)
    for rows in ([2], [-1], [0, 7]):
        with pytest.raises(IndexError, match=r"beam_idx must lie in 0 \.\. 1"):
            cache.reorder_cache(torch.tensor(rows))
    for indices in (torch.zeros(2), torch.zeros(1, 1, dtype=torch.long), torch.tensor([True])):
        with pytest.raises(ValueError, match="indices"):
            cache.batch_select_indices(indices)
    for repeats in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="repeats"):
            cache.batch_repeat_interleave(repeats)
    assert torch.equal(cache.layers[0].keys, states(2)[0])
    cache.batch_select_indices(torch.tensor([False, True]))
    assert torch.equal(cache.layers[0].keys, states(2)[0][1:])
    assert cache.batch_size == 1


def test_constructors_refuse_nonsense():
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="max_cache_len"):
            StaticCache(CONFIG, size)
        with pytest.raises(ValueError, match="max_batch_size"):
            StaticCache(CONFIG, 4, max_batch_size=size)
    for cache in (StaticCache(CONFIG, 4), DynamicCache(config=CONFIG)):
        assert len(cache) == LAYERS
        with pytest.raises(ValueError, match=f"{LAYERS} layers and none numbered {LAYERS}"):
            cache.update(*states(1), LAYERS)
    with pytest.raises(ValueError, match="numbered -1"):
        DynamicCache().update(*states(1), -1)
