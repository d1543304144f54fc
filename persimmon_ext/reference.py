"""Every op in plain PyTorch: its meaning, the fallback for what no kernel takes, and the baseline of benchmarks.

Each function computes in its input's dtype with the precision order of the eager model (softmax and loss in at least
float32), so float64 inputs give the oracle that the kernels are tested against, and 16-bit inputs give the eager result
whose error bounds theirs. Everything differentiable here is differentiated by autograd.

Dimensions: B batch, T new tokens, S cached length, H heads, D head dim, R rotary dim, C hidden, F ffn, V vocab.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


# ---- norms -----------------------------------------------------------------------------------------------------------


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension. x [..., C]; weight, bias [C]."""
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + residual, LayerNorm of that sum)."""
    total = x + residual
    return total, layer_norm(total, weight, bias, eps)


# ---- queries and keys ------------------------------------------------------------------------------------------------


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first R of D dims in pairs (i, i + R/2). x [B, H, T, D]; cos, sin [B or 1, T, R/2]."""
    half = cos.shape[-1]
    cos, sin = cos.unsqueeze(1).to(x.dtype), sin.unsqueeze(1).to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def qk_norm_rope(
    qkv: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm over D of q and k (none where weights are None), then rotary: [B, T, H, 3, D] -> 3 x [B, H, T, D]."""
    q, k, v = qkv.permute(3, 0, 2, 1, 4)
    if q_weight is not None and k_weight is not None:
        q = F.layer_norm(q, (q.shape[-1],), q_weight, q_bias, eps)
        k = F.layer_norm(k, (k.shape[-1],), k_weight, k_bias, eps)
    return rotate(q, cos, sin), rotate(k, cos, sin), v.contiguous()


def append_(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Writes k, v [B, H, T, D] into the caches [B, H, S, D] at slots [B, T]; slot -1 is skipped."""
    S = k_cache.shape[2]
    if slots.numel() and (int(slots.max()) >= S or int(slots.min()) < -1):
        bad = slots[(slots >= S) | (slots < -1)][0]
        raise IndexError(f"slots contains {int(bad)}, and the cache has slots 0 to {S - 1}.")
    rows, tokens = torch.nonzero(slots >= 0, as_tuple=True)
    k_cache[rows, :, slots[rows, tokens]] = k[rows, :, tokens]
    v_cache[rows, :, slots[rows, tokens]] = v[rows, :, tokens]


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D] -> int8 codes of the same shape and float32 scales [..., 1], the largest magnitude over 127."""
    values = x.float()
    scales = values.abs().amax(dim=-1, keepdim=True) / 127
    codes = (values / scales.clamp(min=torch.finfo(torch.float32).tiny)).round()
    return codes.to(torch.int8), scales


def dequantize_rows(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows [..., D] that codes [..., D] and scales [..., 1] stand for."""
    return (codes * scales).to(dtype)


# ---- attention -------------------------------------------------------------------------------------------------------


def visible_keys(
    T: int,
    S: int,
    device: torch.device,
    start: Tensor | None = None,
    length: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """Bool [B or 1, 1, T, S]: key s is visible to query t where start <= s < length and s <= offset + t."""
    s = torch.arange(S, device=device)
    t = torch.arange(T, device=device)
    first = t + (S - T) if offset is None else t + offset[:, None]  # [T] or [B, T]
    mask = (s <= first[..., None]).view(-1, 1, T, S)
    if start is not None:
        mask = mask & (s >= start[:, None])[:, None, None, :]
    if length is not None:
        mask = mask & (s < length[:, None])[:, None, None, :]
    return mask


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Attention with an explicit mask, keeping the probabilities.

    q [B, H, T, D]; k, v [B, H, S, D]; mask broadcastable to [B, H, T, S], boolean (True is visible) or added to the
    scores. Returns out [B, T, H, D] and probabilities [B, H, T, S] in q's dtype, before dropout as after it in eager
    transformers: the returned ones are those that multiplied v.
    """
    scores = q @ k.transpose(-1, -2) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    probabilities = at_least_float32(scores).softmax(dim=-1).to(q.dtype)
    if mask is not None and mask.dtype == torch.bool:
        probabilities = probabilities.masked_fill(~mask.any(-1, keepdim=True), 0.0)  # no visible key: zeros, not NaN
    probabilities = F.dropout(probabilities, dropout, training=dropout > 0)
    return (probabilities @ v).transpose(1, 2).contiguous(), probabilities


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    length: Tensor | None,
    offset: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Causal softmax attention: out [B, T, H, D] and the log-sum-exp of the scores [B, H, T] in at least float32."""
    mask = visible_keys(q.shape[2], k.shape[2], q.device, start, length, offset)
    seen = mask.any(2).unsqueeze(-1)  # [B, 1, S, 1]: what no query sees may hold anything, NaN included
    k, v = k.masked_fill(~seen, 0.0), v.masked_fill(~seen, 0.0)
    out, _ = masked_attention(q, k, v, mask, scale)
    scores = at_least_float32(q @ k.transpose(-1, -2) * scale).masked_fill(~mask, float("-inf"))
    return out, scores.logsumexp(-1)


# ---- products --------------------------------------------------------------------------------------------------------


def relu2(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """max(x + bias, 0) squared. x [..., F]; bias [F]."""
    return F.relu(x if bias is None else x + bias).square()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, relu2_: bool) -> Tensor:
    """act(x W^T + bias) + residual, act being relu2 or nothing. x [..., K]; weight [N, K]; residual [..., N]."""
    y = F.linear(x, weight, bias)
    y = relu2(y) if relu2_ else y
    return y if residual is None else y + residual


def norm_linear(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """layer_norm(x) W^T + bias. x [..., C]; norm_weight, norm_bias [C]; weight [N, C]."""
    return linear(layer_norm(x, norm_weight, norm_bias, eps), weight, bias, None, False)


def norm_mlp(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
) -> Tensor:
    """x + relu2(layer_norm(x) up^T + up_bias) down^T + down_bias. x [..., C]; up [F, C]; down [C, F]."""
    hidden = linear(layer_norm(x, norm_weight, norm_bias, eps), up, up_bias, None, True)
    return linear(hidden, down, down_bias, x, False)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Per-row cross entropy of hidden W^T, and its log-sum-exp, in at least float32; 0 where the label is ignored."""
    logits = at_least_float32(hidden @ weight.T)  # [N, V]
    loss = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    return loss, logits.logsumexp(-1)


# ---- sampling --------------------------------------------------------------------------------------------------------


def filter_logits(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """logits / temperature in at least float32, -inf where top-k, top-p or min-p (in this order) drops the token.

    Equal values at a threshold are kept or dropped together. logits [B, V].
    """
    x = at_least_float32(logits) / temperature
    if 0 < top_k < x.shape[-1]:
        x = x.masked_fill(x < x.topk(top_k, dim=-1).values[..., -1:], float("-inf"))
    if top_p < 1.0:
        ordered, _ = x.sort(dim=-1, descending=True)
        mass = ordered.softmax(-1)
        before = mass.cumsum(-1) - mass  # probability of everything ranked higher
        last = ordered.masked_fill(before >= top_p, float("inf")).min(dim=-1, keepdim=True).values
        x = x.masked_fill(x < last, float("-inf"))
    if min_p > 0.0:
        probabilities = x.softmax(-1)
        x = x.masked_fill(probabilities < min_p * probabilities.amax(-1, keepdim=True), float("-inf"))
    return x


def philox_uniform(rng: Tensor, V: int) -> Tensor:
    """Uniform numbers in (0, 1), float64 [B, V], from Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers").

    rng int64 [B, 2] = (seed, counter): the key is the seed, the counter (token, counter low, counter high, 0).
    In float64, since in float32 the highest of the 24-bit numbers would round to 1, whose Gumbel noise is infinite.
    """
    word = 0xFFFFFFFF
    B = rng.shape[0]
    seed, counter = rng[:, :1], rng[:, 1:]
    k0, k1 = seed & word, (seed >> 32) & word
    c0 = torch.arange(V, device=rng.device).expand(B, V)
    c1, c2 = (counter & word).expand(B, V), ((counter >> 32) & word).expand(B, V)
    c3 = torch.zeros_like(c0)

    def product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:  # high and low word of a 32 x 32 bit product
        low, high = a * (b & 0xFFFF), a * (b >> 16)  # both below 2^48
        total = low + ((high & 0xFFFF) << 16)
        return (high >> 16) + (total >> 32), total & word

    for _ in range(10):
        high0, low0 = product(0xD2511F53, c0)
        high1, low1 = product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & word, (k1 + 0xBB67AE85) & word
    return ((c0 >> 8).double() + 0.5) * 2.0**-24


def sample(logits: Tensor, rng: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """One token a row: argmax of the filtered logits plus Gumbel noise (exactly a draw from their softmax). [B]."""
    highest = logits.amax(-1)
    if not bool(torch.isfinite(highest).all()):
        row = int((~torch.isfinite(highest)).nonzero()[0])
        raise ValueError(f"logits row {row} has no finite maximum: {float(highest[row])}.")
    if temperature == 0.0:
        return at_least_float32(logits).argmax(-1)
    gumbel = -(-philox_uniform(rng, logits.shape[-1]).log()).log()
    return (filter_logits(logits, temperature, top_k, top_p, min_p) + gumbel).argmax(-1)


# ---- quantised weights -----------------------------------------------------------------------------------------------

INT4_GROUP = 64  # weights that share a scale


def unpack_int4(packed: Tensor) -> Tensor:
    """uint8 [..., K/2] -> codes int8 [..., K] in -8..7; byte i of a group holds weight i (low) and i + 32 (high)."""
    groups = packed.reshape(*packed.shape[:-1], packed.shape[-1] // (INT4_GROUP // 2), INT4_GROUP // 2)
    return (torch.cat((groups & 15, groups >> 4), dim=-1).to(torch.int8) - 8).flatten(-2)


def dequantize_int8(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """codes [N, K], scale [N] (or anything that broadcasts against the codes) -> weight [N, K]."""
    scale = scale[:, None] if scale.dim() == 1 and scale.shape[0] == codes.shape[0] else scale
    return (codes.float() * scale).to(dtype)


def dequantize_int4(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """packed [N, K/2], scale [N, K/64] -> weight [N, K]."""
    return (unpack_int4(packed).float() * scale.repeat_interleave(INT4_GROUP, dim=-1)).to(dtype)
