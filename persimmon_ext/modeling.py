"""PersimmonModel, the decoder without a head, and what every Persimmon model can do.

Dimensions: B batch, T new tokens, S all tokens (cached and new), C hidden, V vocab, L layers.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from persimmon_ext import checkpoints
from persimmon_ext.cache import Cache, DynamicCache
from persimmon_ext.config import PersimmonConfig
from persimmon_ext.layers import LayerNorm, PersimmonDecoderLayer, Step
from persimmon_ext.masking import Visibility, read_mask, read_packing
from persimmon_ext.outputs import BaseModelOutputWithPast
from persimmon_ext.rope import PersimmonRotaryEmbedding

ModelType = TypeVar("ModelType", bound="PersimmonPreTrainedModel")


class PersimmonPreTrainedModel(nn.Module):
    """Loading, saving, initialisation and training switches, shared by the decoder and its heads."""

    base_model_prefix = "model"

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__()
        if not isinstance(config, PersimmonConfig):  # transformers' own will do
            if not hasattr(config, "to_dict"):
                raise TypeError(f"config must be a PersimmonConfig, got {type(config).__name__}.")
            config = PersimmonConfig.from_dict(config.to_dict())
        config.validate()  # attributes may have changed since it was made
        self.config = config

    @classmethod
    def from_pretrained(
        cls: type[ModelType],
        path: str | os.PathLike[str],
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        config: PersimmonConfig | None = None,
        torch_dtype: torch.dtype | str | None = None,
    ) -> ModelType:
        """Loads a Hugging Face folder: config.json and safetensors or ``.bin`` weights. The model is in eval mode.

        Args:
            path: the folder.
            dtype: of the parameters; None takes the config's, or else the checkpoint's own.
            device: where the parameters go; None is torch's default device.
            config: replaces the folder's config.json.
            torch_dtype: the older name of `dtype`.
        Raises: FileNotFoundError, or checkpoints.CheckpointError in a sentence, for anything that doesn't fit.
        """
        if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
            raise ValueError(f"dtype={dtype} and torch_dtype={torch_dtype} are the same argument; pass one of them.")
        dtype = torch_dtype if dtype is None else dtype
        return checkpoints.load_pretrained(cls, path, dtype=dtype, device=device, config=config)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Writes config.json and safetensors that transformers loads too. Files appear whole or not at all."""
        checkpoints.save_pretrained(
            self, folder, max_shard_size=max_shard_size, safe_serialization=safe_serialization, state_dict=state_dict
        )

    @property
    def decoder(self) -> PersimmonModel:
        """The model without its head."""
        return self if isinstance(self, PersimmonModel) else getattr(self, self.base_model_prefix)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def num_parameters(self, only_trainable: bool = False) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embed_tokens

    def set_input_embeddings(self, module: nn.Module) -> None:
        self.decoder.embed_tokens = module  # type: ignore[assignment]
        self.tie_weights()

    def tie_weights(self) -> None:
        """Makes the head share the embedding's weight where the config says so. Nothing to do without a head."""

    @torch.no_grad()
    def init_weights(self) -> None:
        """Normal weights of standard deviation ``initializer_range``, zero biases and padding row, unit norms."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(0.0, self.config.initializer_range)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    module.weight[module.padding_idx].zero_()
            elif isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.decoder.checkpointing is not None

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Keeps only each layer's input for the backward pass and computes the rest again.

        `gradient_checkpointing_kwargs` goes to :func:`torch.utils.checkpoint.checkpoint`.
        """
        self.decoder.checkpointing = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}

    def gradient_checkpointing_disable(self) -> None:
        self.decoder.checkpointing = None


class PersimmonModel(PersimmonPreTrainedModel):
    """Embedding, decoder layers and final norm."""

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__(config)
        config = self.config
        padding = config.pad_token_id if config.pad_token_id is not None and config.pad_token_id >= 0 else None
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding)
        self.layers = nn.ModuleList(PersimmonDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.final_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rotary_emb = PersimmonRotaryEmbedding(config)
        self.checkpointing: dict[str, Any] | None = None  # arguments of torch's checkpoint, None when off
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool | None = True,
        cache_position: Tensor | None = None,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Runs the decoder over new tokens.

        Args:
            input_ids: [B, T] token ids, or
            inputs_embeds: [B, T, C]; exactly one of the two.
            attention_mask: [B, S] of 0/1 or booleans (1 is a real token), or 4-D [B or 1, H or 1, T, S], boolean (True
                is visible) or added to the scores. Where a query sees no key at all (left padding), its output is
                computed from a zero attention result.
            position_ids: [B or 1, T]; default: `cache_position`, or the cached length and on.
            past_key_values: keys and values of earlier tokens, extended in place; any object with transformers'
                ``update`` and ``get_seq_length`` works.
            use_cache: make and return a cache; default: the config's.
            output_attentions: return each layer's probabilities [B, H, T, S].
            output_hidden_states: return the embedding, each layer's output but the last, and the final norm's.
            return_dict: False returns a tuple; None is True.
            cache_position: [T], the cache slots of the new tokens, consecutive; a first slot below the cached length
                drops the tokens from there on.
        Returns: last_hidden_state [B, T, C], past_key_values, hidden_states, attentions.
        Raises: ValueError, IndexError with the offending value.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        x = self.embed(input_ids) if input_ids is not None else check_embeds(inputs_embeds, self.config.hidden_size)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        checkpointing = self.checkpointing is not None and self.training and torch.is_grad_enabled()
        if checkpointing and (use_cache or past_key_values is not None):
            # A layer that runs again in the backward pass would append to the cache again.
            if past_key_values is not None:
                raise ValueError("past_key_values can't be combined with gradient checkpointing in training.")
            warnings.warn("use_cache is off: gradient checkpointing is on.", stacklevel=2)
            use_cache = False
        cache = DynamicCache(self.config) if use_cache and past_key_values is None else past_key_values
        step = self.plan(x, attention_mask, position_ids, cache, cache_position, output_attentions)

        hidden_states, attentions = [x], []
        with restored_on_error(cache):
            for layer in self.layers:
                run: Callable[..., Any] = layer
                if checkpointing:
                    x, probabilities = checkpoint(run, x, step, **(self.checkpointing or {}))
                else:
                    x, probabilities = run(x, step)
                hidden_states.append(x)
                attentions.append(probabilities)
            x = self.final_layernorm(x)
        hidden_states[-1] = x
        output = BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=cache if use_cache or past_key_values is not None else None,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return output.to_tuple() if return_dict is False else output

    def embed(self, input_ids: Tensor) -> Tensor:
        """input_ids [B, T] -> [B, T, C]."""
        check_tensor(input_ids, "input_ids")
        if input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise ValueError(f"input_ids must have shape [B, T] with T at least 1, got {list(input_ids.shape)}.")
        if input_ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"input_ids must be int64 or int32, got {input_ids.dtype}.")
        # Elsewhere the check would wait for the device, and a traced graph has no values to check.
        if input_ids.device.type == "cpu" and input_ids.numel() and not torch.compiler.is_compiling():
            low, high = int(input_ids.min()), int(input_ids.max())
            V = self.embed_tokens.weight.shape[0]
            if low < 0 or high >= V:
                raise IndexError(f"input_ids contains {low if low < 0 else high}; ids go from 0 to {V - 1}.")
        embedded: Tensor = self.embed_tokens(input_ids)
        return embedded

    def plan(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        cache_position: Tensor | None,
        output_attentions: bool,
    ) -> Step:
        """Works out, once for all layers, where the new tokens stand and what they see."""
        B, T, _ = x.shape
        past = cached_length(cache, len(self.layers))
        first = past if cache_position is None else first_slot(cache_position, past if cache is not None else None, T)
        slots = torch.arange(first, first + T, device=x.device)
        if position_ids is not None:
            check_tensor(position_ids, "position_ids")
            if position_ids.dim() != 2 or position_ids.shape[0] not in (1, B) or position_ids.shape[1] != T:
                raise ValueError(f"position_ids must have shape [{B} or 1, {T}], got {list(position_ids.shape)}.")
        cos, sin = self.rotary_emb(slots[None] if position_ids is None else position_ids.to(x.device))
        if attention_mask is not None:
            check_tensor(attention_mask, "attention_mask")
            S = first + T if cache is not None else T
            visibility = read_mask(attention_mask.to(x.device), B, T, S, self.config.num_attention_heads)
        elif position_ids is not None and cache is None:
            visibility = read_packing(position_ids.to(x.device))
        else:
            visibility = Visibility()
        if first < past:
            drop_from(cache, first)  # last: an error above leaves the cache as it was
        return Step(
            cos=cos,
            sin=sin,
            visibility=visibility,
            past=first,
            cache=cache,
            slots=slots.expand(B, T),
            output_attentions=output_attentions,
        )


def check_embeds(inputs_embeds: Tensor | None, C: int) -> Tensor:
    if inputs_embeds is None or inputs_embeds.dim() != 3 or inputs_embeds.shape[1] == 0 or inputs_embeds.shape[2] != C:
        shape = None if inputs_embeds is None else list(inputs_embeds.shape)
        raise ValueError(f"inputs_embeds must have shape [B, T, {C}] with T at least 1, got {shape}.")
    return inputs_embeds


def check_tensor(value: object, name: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}.")


def cached_length(cache: Any, layers: int) -> int:
    """Tokens in the cache, 0 without one. Raises where it isn't a cache, or its layers disagree."""
    if cache is None:
        return 0
    if not (hasattr(cache, "update") and hasattr(cache, "get_seq_length")):
        raise TypeError(
            f"past_key_values must be a cache, with update and get_seq_length, got {type(cache).__name__}. "
            "persimmon_ext.DynamicCache is one."
        )
    if isinstance(cache, Cache):
        lengths = [cache.get_seq_length(i) for i in range(layers)]
        if len(set(lengths)) > 1:
            raise ValueError(f"past_key_values must hold equally many tokens in every layer, got {lengths}.")
    return int(cache.get_seq_length())  # a number, even where transformers keeps a tensor that counts on


def first_slot(cache_position: Tensor, past: int | None, T: int) -> int:
    """The slot of the first of T new tokens. `past`: the cached length, None without a cache."""
    check_tensor(cache_position, "cache_position")
    positions = cache_position.tolist()
    first = positions[0] if cache_position.dim() == 1 and positions else 0
    if positions != list(range(first, first + T)) or first < 0:
        raise ValueError(f"cache_position must be {T} consecutive slots, got {positions}.")
    if past is not None and first > past:
        raise ValueError(f"cache_position starts at {first}, and the cache holds only {past} tokens.")
    return int(first)


def drop_from(cache: Any, length: int) -> None:
    """Keeps the first `length` tokens of the cache."""
    if isinstance(cache, Cache):
        cache.truncate(length)
    elif length == 0:
        cache.reset()
    else:
        cache.crop(length)


@contextlib.contextmanager
def restored_on_error(cache: Any) -> Iterator[None]:
    """An exception inside, Ctrl-C too, leaves one of our caches with the tokens that it had."""
    length = cache.get_seq_length() if isinstance(cache, Cache) else 0
    try:
        yield
    except BaseException:
        if isinstance(cache, Cache):
            cache.truncate(length)
        raise
