"""PersimmonModel, the decoder without a head.

Dimensions: B batch, T new tokens, S all tokens (cached and new), C hidden, V vocab, L layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from persimmon_ext.cache import Cache, DynamicCache
from persimmon_ext.config import PersimmonConfig
from persimmon_ext.inputs import cached_length, check_embeds, check_tensor, drop_from, first_slot, restored_on_error
from persimmon_ext.layers import LayerNorm, PersimmonDecoderLayer, Step
from persimmon_ext.masking import Visibility, read_mask, read_packing
from persimmon_ext.outputs import BaseModelOutputWithPast
from persimmon_ext.pretrained import PersimmonPreTrainedModel
from persimmon_ext.rope import PersimmonRotaryEmbedding


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
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Runs the decoder over new tokens.

        Where use_cache, output_attentions, output_hidden_states or return_dict is None, the config's value holds.

        Args:
            input_ids: [B, T] token ids, or
            inputs_embeds: [B, T, C]; exactly one of the two.
            attention_mask: [B, S] of 0/1 or booleans (1 is a real token), or 4-D [B or 1, H or 1, T, S], boolean (True
                is visible) or added to the scores. Where a query sees no key at all (left padding), its output is
                computed from a zero attention result.
            position_ids: [B or 1, T]; default: `cache_position`, or the cached length and on.
            past_key_values: keys and values of earlier tokens, extended in place; any object with transformers'
                ``update`` and ``get_seq_length`` works.
            use_cache: make and return a cache.
            output_attentions: return each layer's probabilities [B, H, T, S].
            output_hidden_states: return the embedding, each layer's output but the last, and the final norm's.
            return_dict: False returns a tuple.
            cache_position: [T], the cache slots of the new tokens, consecutive; a first slot below the cached length
                drops the tokens from there on.
        Returns: last_hidden_state [B, T, C], past_key_values, hidden_states, attentions.
        Raises: ValueError, IndexError with the offending value.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        x = self.embed(input_ids) if input_ids is not None else check_embeds(inputs_embeds, self.config.hidden_size)
        config = self.config
        use_cache = config.use_cache if use_cache is None else use_cache
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        checkpointing = self.checkpointing is not None and self.training and torch.is_grad_enabled()
        if checkpointing and (use_cache or past_key_values is not None):
            # A layer that runs again in the backward pass would append to the cache again.
            if past_key_values is not None:
                raise ValueError("past_key_values can't be combined with gradient checkpointing in training.")
            warnings.warn("use_cache is off: gradient checkpointing is on.", stacklevel=2)
            use_cache = False
        cache = DynamicCache(config) if use_cache and past_key_values is None else past_key_values
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
        return output.as_asked(return_dict, config.return_dict)

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
            # A trimmed vocabulary has more ids than rows.
            V = getattr(self.embed_tokens, "num_embeddings", self.embed_tokens.weight.shape[0])
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


def run_decoder(model: PersimmonModel, **arguments: Any) -> BaseModelOutputWithPast:
    output = model(**arguments, return_dict=True)
    if not isinstance(output, BaseModelOutputWithPast):
        raise TypeError(f"The decoder must return its outputs by name, got {type(output).__name__}.")
    return output


def keep_positions(hidden: Tensor | None, logits_to_keep: int | Tensor) -> Tensor:
    """hidden [B, T, C] -> its last `logits_to_keep` positions (0: all), or those that an index tensor [K] names."""
    if hidden is None:
        raise TypeError("The decoder returned no last_hidden_state.")
    if isinstance(logits_to_keep, int):
        return hidden[:, -logits_to_keep:] if logits_to_keep else hidden
    return hidden[:, logits_to_keep]
