"""The decoder with a language-model head; beside it the classification heads, which have a file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from persimmon_ext import generation, losses
from persimmon_ext.cache import Cache
from persimmon_ext.classification import PersimmonForSequenceClassification, PersimmonForTokenClassification
from persimmon_ext.config import PersimmonConfig
from persimmon_ext.decode_graphs import DecodeGraphs, GraphedPlan
from persimmon_ext.decode_plan import DecodePlan
from persimmon_ext.layers import Linear
from persimmon_ext.modeling import PersimmonModel, keep_positions, run_decoder
from persimmon_ext.outputs import CausalLMOutputWithPast
from persimmon_ext.pretrained import PersimmonPreTrainedModel
from persimmon_ext.quantized_layers import QuantizedLinear

__all__ = ["PersimmonForCausalLM", "PersimmonForSequenceClassification", "PersimmonForTokenClassification"]


class PersimmonForCausalLM(PersimmonPreTrainedModel):
    """Persimmon with a language-model head. Drop-in for transformers' class of the same name.

    Loads and saves generation_config.json beside the weights.
    """

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__(config)
        self.model = PersimmonModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        nn.init.normal_(self.lm_head.weight, 0.0, config.initializer_range)
        self.tie_weights()
        self.decode_graphs = DecodeGraphs()
        self.generation_config = generation.GenerationConfig.from_model_config(self.config)

    def _read_beside(self, folder: Path) -> None:
        self.generation_config = generation.GenerationConfig.from_folder(folder) or self.generation_config

    def _write_beside(self, folder: Path) -> list[str]:
        return [self.generation_config.save(folder)]

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, module: Linear) -> None:
        self.lm_head = module

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        skip_logits: bool = False,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Next-token logits, and the loss where labels are given. See :meth:`PersimmonModel.forward` for the rest.

        Args:
            labels: [B, T]; each position's logits are scored with the next label; -100 doesn't count.
            logits_to_keep: compute only the last so many positions' logits (0: all), or those that an index tensor [K]
                names.
            num_items_in_batch: divides the summed loss, instead of the number of labels that count.
            skip_logits: with labels, compute the loss by tiles of the vocabulary and return no logits: [B, T, V] never
                exists.
        Returns: loss (0-d float32), logits [B, T or kept, V], past_key_values, hidden_states, attentions.
        """
        if skip_logits and (labels is None or not (isinstance(logits_to_keep, int) and logits_to_keep == 0)):
            raise ValueError("skip_logits needs labels, and can't be combined with logits_to_keep.")
        check_before_running(input_ids if input_ids is not None else inputs_embeds, labels, logits_to_keep)
        output = run_decoder(
            self.model,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            cache_position=cache_position,
        )
        hidden = keep_positions(output.last_hidden_state, logits_to_keep)
        loss = logits = None
        if skip_logits and labels is not None:
            head = self.lm_head
            weight = head.dequantize(hidden.dtype) if isinstance(head, QuantizedLinear) else head.weight
            loss = losses.causal_loss_without_logits(hidden, weight, labels, num_items_in_batch)
        else:
            logits = self.lm_head(hidden)
            if labels is not None:
                loss = losses.causal_loss(logits, labels, num_items_in_batch)
        self.check_trainable(loss)
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return result.as_asked(return_dict, self.config.return_dict)

    def generate(self, input_ids: Tensor | None = None, **arguments: Any) -> Any:
        """Continues a prompt; see :func:`persimmon_ext.generation.generate` for the arguments."""
        return generation.generate(self, input_ids, **arguments)

    def score(self, continuations: Sequence[Any], **arguments: Any) -> list[generation.Score]:
        """Log-probabilities of texts or ids; see :func:`persimmon_ext.generation.score` for the arguments."""
        return generation.score(self, continuations, **arguments)

    def make_cache(self, batch: int, slots: int, implementation: str | None = None) -> Cache | None:
        """A cache for `batch` rows of `slots` tokens, as ``generate`` makes it; MemoryError where it doesn't fit."""
        return generation.make_cache(self, implementation, batch, slots)

    def lend_cache(self, batch: int, slots: int, implementation: str | None = None) -> Cache | None:
        """As `make_cache`, for one generation: on CUDA it may be one that an earlier call's graph was captured with."""
        int8_cache = implementation == "int8"
        if implementation != "dynamic" and DecodePlan.can_be_captured(self, int8_cache=int8_cache):
            return self.decode_graphs.take(self, batch, slots, implementation)
        return self.make_cache(batch, slots, implementation)

    def decode_plan(self, slots: int, cache: Any) -> DecodePlan | GraphedPlan | None:
        """A faster way to run a few tokens at a time up to `slots` of them, or None where forward must do it."""
        if not (isinstance(cache, Cache) and DecodePlan.fits(self)):
            return None
        return self.decode_graphs.plan(cache) or DecodePlan(self, slots, int8_cache=cache.is_int8)


def check_before_running(inputs: Tensor | None, labels: Tensor | None, logits_to_keep: int | Tensor) -> None:
    """What could fail after the decoder has filled the cache, checked before it does. inputs [B, T, …]."""
    if isinstance(logits_to_keep, int):
        if logits_to_keep < 0:
            raise ValueError(f"logits_to_keep is {logits_to_keep}; it must be 0 or more, or a tensor of positions.")
    elif logits_to_keep.dim() != 1:
        raise ValueError(f"logits_to_keep must be a number or a 1-D tensor, got shape {list(logits_to_keep.shape)}.")
    if not isinstance(inputs, Tensor) or inputs.dim() < 2:
        return  # the decoder says what is wrong
    B, T = inputs.shape[:2]
    if isinstance(logits_to_keep, Tensor) and logits_to_keep.device.type == "cpu":
        outside = logits_to_keep[(logits_to_keep >= T) | (logits_to_keep < -T)]
        if outside.numel():
            raise IndexError(f"logits_to_keep contains {int(outside[0])}, and there are {T} positions.")
    kept = T if isinstance(logits_to_keep, Tensor) or logits_to_keep == 0 else min(T, logits_to_keep)
    kept = logits_to_keep.shape[0] if isinstance(logits_to_keep, Tensor) else kept
    if labels is not None and tuple(labels.shape) != (B, kept):
        raise ValueError(f"labels must have shape [{B}, {kept}], got {list(labels.shape)}.")
