"""The memory planner's bytes are those of models and caches; a cache that can't fit is refused; the 8-bit cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from generation_cases import left_padded, model_pair, prompt

from persimmon_ext import DynamicCache, PersimmonConfig, PersimmonForCausalLM
from persimmon_ext.cache_int8 import Int8Cache
from persimmon_ext.generation import cgroup, memory, plan_memory
from persimmon_ext.generation.memory import cache_bytes_per_token, weight_bytes

CONFIG = PersimmonConfig(
    vocab_size=192, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=2
)


@pytest.fixture(scope="module")
def model() -> Any:
    return model_pair()[1]


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"qk_layernorm": False}])
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_bytes_of_weights(changes: dict[str, Any], quantization: str | None) -> None:
    config = PersimmonConfig(**{**CONFIG.to_dict(), **changes})
    made = PersimmonForCausalLM(config).to(torch.bfloat16)
    planned = weight_bytes(made.config, torch.bfloat16, quantization)
    if quantization:
        made.quantize(quantization)
    tensors = {t.data_ptr(): t for t in (*made.parameters(), *made.buffers())}
    assert planned == sum(t.nbytes for t in tensors.values())


@pytest.mark.parametrize("implementation", ["static", "int8"])
def test_bytes_of_caches(implementation: str) -> None:
    made = PersimmonForCausalLM(CONFIG).to(torch.bfloat16).eval()
    result = made.generate(
        prompt(3), max_new_tokens=11, cache_implementation=implementation, return_dict_in_generate=True
    )
    cache = result.past_key_values
    assert cache.capacity == prompt().shape[1] + 11
    assert cache.nbytes == 3 * cache.capacity * cache_bytes_per_token(CONFIG, torch.bfloat16, implementation)


def test_a_dynamic_cache_grows_in_steps(model: Any) -> None:
    options = {"return_dict_in_generate": True, "max_new_tokens": 100}
    grown = model.generate(prompt(), cache_implementation="dynamic", **options)
    assert torch.equal(grown.sequences, model.generate(prompt(), **options).sequences)
    assert grown.past_key_values.capacity % 64 == 0


def test_what_fits() -> None:
    eight = PersimmonConfig()
    plan = plan_memory(eight, batch=2, context=4096, memory_bytes=80 * 10**9)
    assert plan.weights == pytest.approx(18.8e9, rel=0.01)
    assert plan.cache == 2 * 4096 * 2 * 36 * 4096 * 2
    assert plan.fits
    longest = plan_memory(eight, batch=2, context=plan.longest_context, memory_bytes=80 * 10**9)
    assert longest.fits
    assert not plan_memory(eight, batch=2, context=plan.longest_context + 1, memory_bytes=80 * 10**9).fits
    assert plan_memory(eight, batch=plan.largest_batch, context=4096, memory_bytes=80 * 10**9).fits
    assert not plan_memory(eight, batch=plan.largest_batch + 1, context=4096, memory_bytes=80 * 10**9).fits
    small = plan_memory(eight, memory_bytes=16 * 10**9)
    assert (small.context, small.fits, small.longest_context, small.largest_batch) == (16384, False, 0, 0)
    assert "does not fit into 16.00 GB" in str(small)
    assert plan_memory(eight, memory_bytes=16 * 10**9, context=2048, quantization="int4").fits
    unknown = plan_memory(eight)
    assert (unknown.available, unknown.fits, unknown.longest_context) == (None, True, None)
    assert "weights 18." in str(unknown)
    with pytest.raises(ValueError, match="batch must be a positive integer, got 0"):
        plan_memory(eight, batch=0)


def test_a_cache_that_does_not_fit_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SMALL_BYTES", 0)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 500_000)
    with pytest.raises(MemoryError, match=r"A cache of 2 x 126 tokens needs .* at most 122 tokens a row would fit"):
        model.generate(prompt(2), max_new_tokens=120)
    assert model.generate(prompt(2), max_new_tokens=2).shape == (2, 8)
    ends = {"eos_token_id": list(range(97))}
    stopped = model.generate(prompt(2), max_new_tokens=300, cache_implementation="dynamic", **ends)
    assert stopped.shape == (2, 7), "a cache that grows is not refused for what it may never hold"
    monkeypatch.setattr(memory, "available_bytes", lambda device: 600_000)
    assert model.generate(prompt(2), max_new_tokens=3000, **ends).shape == (2, 7), "beyond the positions it grows"


def test_available_memory() -> None:
    found = memory.available_bytes(torch.device("cpu"))
    assert found is None or 10**7 < found < 10**14
    assert memory.available_bytes(torch.device("meta")) is None


def test_int8_cache_is_near(model: Any) -> None:
    ids, mask = left_padded([9, 30])
    options = {"attention_mask": mask, "return_dict_in_generate": True, "output_logits": True, "pad_token_id": 0}
    exact = model.generate(ids, max_new_tokens=1, **options)
    result = model.generate(ids, max_new_tokens=1, cache_implementation="int8", **options)
    cache = result.past_key_values
    assert isinstance(cache, Int8Cache)
    # Uniform rounding to 1/127 of a head's largest value, which is 2 to 3 times the root mean square.
    assert 1e-3 < cache.relative_error < 1e-2
    difference = (result.logits[0] - exact.logits[0]).norm() / exact.logits[0].norm()
    assert difference < 0.02


def test_int8_cache_does_not_depend_on_the_cut(model: Any) -> None:
    options = {"max_new_tokens": 12, "cache_implementation": "int8"}
    whole = model.generate(prompt(2, 20), **options)
    assert torch.equal(model.generate(prompt(2, 20), prefill_chunk_size=3, **options), whole)


def test_int8_cache_has_the_operations_of_caches(model: Any) -> None:
    cache = Int8Cache(model.config)
    with torch.no_grad():
        model(prompt(2, 9), past_key_values=cache, use_cache=True)
    keys = cache.layers[0].keys
    cache.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(cache.layers[0].keys, keys[[1, 0]])
    cache.crop(5)
    assert cache.get_seq_length() == 5
    cache.batch_select_indices(torch.tensor([0]))
    assert cache.batch_size == 1
    twin = cache.broadcast(3, reserve=20)
    assert torch.equal(twin.layers[1].values, cache.layers[1].values.expand(3, -1, -1, -1))
    assert (twin.capacity, twin.batch_size, cache.batch_size) == (64, 3, 1)
    cache.reset()
    assert (cache.get_seq_length(), cache.relative_error) == (0, 0.0)
    beams = model.generate(prompt(2), num_beams=3, max_new_tokens=8, cache_implementation="int8")
    assert beams.shape == (2, 14)
    looked_up = model.generate(prompt(), prompt_lookup_num_tokens=3, max_new_tokens=20, cache_implementation="int8")
    assert torch.equal(looked_up, model.generate(prompt(), max_new_tokens=20, cache_implementation="int8"))


def test_an_unknown_cache(model: Any) -> None:
    with pytest.raises(ValueError, match="must be one of static, dynamic, int8, got 'paged'"):
        model.generate(prompt(), max_new_tokens=2, cache_implementation="paged")


def test_lengths_that_no_memory_holds_are_a_sentence(model: Any) -> None:
    with pytest.raises(MemoryError, match=r"The ids of 2 x 1000000000006 tokens need .* Lower max_new_tokens"):
        model.generate(prompt(2), max_new_tokens=10**12)


def test_given_and_broadcast_caches_are_checked_too(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DynamicCache(model.config)
    with torch.no_grad():
        model(prompt()[:, :4], past_key_values=cache, use_cache=True)
    monkeypatch.setattr(memory, "SMALL_BYTES", 0)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 500_000)
    with pytest.raises(MemoryError, match="A cache of 8 x 46 tokens"):
        model.generate(prompt().expand(8, -1), past_key_values=cache, max_new_tokens=40)
    with pytest.raises(MemoryError, match=r"A cache of 1 x 305 tokens .* Lower max_new_tokens"):
        model.generate(prompt(), past_key_values=cache, max_new_tokens=300)
    with pytest.raises(MemoryError, match=r"A cache of 16 x 44 tokens .* Lower batch_size"):
        model.score([[5] * 40] * 16, prompts=prompt()[0, :5])
    assert cache.get_seq_length() == 4
    assert model.generate(prompt(), past_key_values=cache, max_new_tokens=9).shape == (1, 15)


def _write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_limits_of_control_groups(tmp_path: Path) -> None:
    assert cgroup.unused_bytes(tmp_path) is None
    _write(tmp_path / "proc/self", cgroup="0::/work/box")
    mount = tmp_path / "sys/fs/cgroup"
    assert cgroup.unused_bytes(tmp_path) is None
    _write(mount / "work/box", memory__max="max", memory__current=700, memory__stat="inactive_file 5")
    assert cgroup.unused_bytes(tmp_path) is None
    _write(mount / "work", memory__max=1000, memory__current=700, memory__stat="anon 3\ninactive_file 50")
    assert cgroup.unused_bytes(tmp_path) == 350
    _write(mount, memory__max=600, memory__current=700, memory__stat="inactive_file 0")  # as a container sees its own
    assert cgroup.unused_bytes(tmp_path) == 0


def test_limits_of_control_groups_of_the_first_version(tmp_path: Path) -> None:
    _write(tmp_path / "proc/self", cgroup="3:cpu,cpuacct:/a\n2:memory:/a")
    limit = {"memory__limit_in_bytes": 10**6, "memory__usage_in_bytes": 10**5}
    _write(tmp_path / "sys/fs/cgroup/memory/a", **limit, memory__stat="total_inactive_file 1000")
    assert cgroup.unused_bytes(tmp_path) == 10**6 - 10**5 + 1000
