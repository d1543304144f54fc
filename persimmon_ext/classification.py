"""The decoder with a classification head, of sequences or of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from persimmon_ext import losses
from persimmon_ext.config import PersimmonConfig
from persimmon_ext.layers import Linear
from persimmon_ext.modeling import PersimmonModel, keep_positions, run_decoder
from persimmon_ext.outputs import SequenceClassifierOutputWithPast, TokenClassifierOutput
from persimmon_ext.pretrained import PersimmonPreTrainedModel


class PersimmonForSequenceClassification(PersimmonPreTrainedModel):
    """Persimmon with a linear head on each sequence's last real token."""

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = PersimmonModel(config)
        self.score = Linear(config.hidden_size, config.num_labels, bias=False)
        nn.init.normal_(self.score.weight, 0.0, config.initializer_range)

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
    ) -> SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Logits [B, labels] at the last token that isn't ``config.pad_token_id`` (the last one, for inputs_embeds).

        Args:
            labels: int64 [B] for one class each, float [B, labels] for several at once, float [B] for regression.
        Raises: ValueError for more than one sequence when the config has no pad_token_id.
        """
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
        )
        hidden = keep_positions(output.last_hidden_state, 0)
        last = self.last_tokens(input_ids, hidden)
        logits = self.score(hidden[torch.arange(hidden.shape[0], device=hidden.device), last])
        loss = None
        if labels is not None:
            kind = self.config.problem_type or losses.problem_type_of(labels, self.num_labels)
            loss = losses.sequence_loss(logits, labels, kind)
        result = SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return result.as_asked(return_dict, self.config.return_dict)

    def last_tokens(self, input_ids: Tensor | None, hidden: Tensor) -> Tensor:
        """The position of each row's last token that isn't padding, int64 [B]."""
        B, T, _ = hidden.shape
        pad = self.config.pad_token_id
        if pad is None and B > 1:
            raise ValueError(f"A batch of {B} sequences needs config.pad_token_id to find each one's last token.")
        if pad is None or input_ids is None:
            return torch.full((B,), T - 1, device=hidden.device)
        positions = torch.arange(T, device=hidden.device)
        return (positions * (input_ids.to(hidden.device) != pad)).argmax(-1)


class PersimmonForTokenClassification(PersimmonPreTrainedModel):
    """Persimmon with a linear head on every token."""

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = PersimmonModel(config)
        dropout = config.extra.get("classifier_dropout")
        self.dropout = nn.Dropout(config.hidden_dropout if dropout is None else dropout)
        self.score = Linear(config.hidden_size, config.num_labels)
        nn.init.normal_(self.score.weight, 0.0, config.initializer_range)
        nn.init.zeros_(self.score.bias)

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
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Logits [B, T, labels], and the mean cross entropy with `labels` int64 [B, T] (-100 doesn't count)."""
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
        )
        logits = self.score(self.dropout(keep_positions(output.last_hidden_state, 0)))
        result = TokenClassifierOutput(
            loss=losses.token_loss(logits, labels) if labels is not None else None,
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return result.as_asked(return_dict, self.config.return_dict)
