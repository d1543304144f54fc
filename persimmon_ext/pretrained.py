"""What every Persimmon model can do: loading, saving, quantising, initialisation and training switches."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from persimmon_ext import checkpoints, trimmed_vocabulary
from persimmon_ext.checkpoints.placement import DeviceMap
from persimmon_ext.config import PersimmonConfig
from persimmon_ext.hub_files import HubRequest
from persimmon_ext.quantized_layers import QuantizedLinear, quantize_model, quantized_format
from persimmon_ext.token_codec import TokenCodec
from persimmon_ext.trimmed_vocabulary import TrimReport
from persimmon_ext.vocabulary import check_fits

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
        device: torch.device | str | int | None = None,
        config: PersimmonConfig | None = None,
        torch_dtype: torch.dtype | str | None = None,
        quantization: str | None = None,
        device_map: DeviceMap | torch.device | str | int | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        verify: bool = True,
        progress: bool = True,
        **config_fields: Any,
    ) -> ModelType:
        """Loads a Hugging Face folder: config.json and safetensors or ``.bin`` weights. The model is in eval mode.

        Args:
            path: the folder, or the name of a repository on the Hugging Face Hub (needs huggingface_hub). A Fuyu
                model's gives its language model.
            dtype: of the parameters; None takes the config's, or else the checkpoint's own.
            device: where the parameters go; None is torch's default device.
            config: replaces the folder's config.json.
            torch_dtype: the older name of `dtype`.
            quantization: "int8" or "int4" quantises each weight as it is read, as :meth:`quantize` does with the whole
                model: the unquantised model is never in memory. A folder that was saved quantised needs no argument.
            device_map: instead of `device`, places the model by layers: "auto" spreads it over the GPUs and puts on the
                CPU what they can't hold; {"model.layers.0": 0, …} says it module by module, "" standing for the rest.
            max_memory: the most bytes of weights per device for "auto", such as {0: "20GiB", "cpu": "60GiB"}.
            revision, cache_dir, local_files_only, token: what to download, as huggingface_hub understands them.
            verify: compare the weights with the checksums that :meth:`save_pretrained`, the conversion of a release and
                torch.save leave in their files. Files of others have none.
            progress: show a progress bar where loading takes more than two seconds.
            config_fields: fields of the config, such as num_labels=3, in place of the folder's.
        Raises: FileNotFoundError, or checkpoints.CheckpointError in a sentence, for anything that doesn't fit.
        """
        if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
            raise ValueError(f"dtype={dtype} and torch_dtype={torch_dtype} are the same argument; pass one of them.")
        return checkpoints.load_pretrained(
            cls,
            path,
            dtype=torch_dtype if dtype is None else dtype,
            device=device,
            config=config,
            quantization=quantization,
            device_map=device_map,
            max_memory=max_memory,
            hub=HubRequest(revision, cache_dir, local_files_only, token),
            verify=verify,
            progress=progress,
            read_beside=cls._read_beside,
            **config_fields,
        )

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
            self,
            folder,
            max_shard_size=max_shard_size,
            safe_serialization=safe_serialization,
            state_dict=state_dict,
            write_beside=self._write_beside,
        )

    def _read_beside(self, folder: Path) -> None:
        """Takes from `folder` what :meth:`_write_beside` writes, where it is there."""

    def _write_beside(self, folder: Path) -> list[str]:
        """Writes to `folder` what the class keeps beside config.json and the weights: the names of those files."""
        return []

    def quantize(self: ModelType, quantization: str) -> ModelType:
        """Replaces the weights of all linear layers, language-model head included, by "int8" or "int4" codes, in place
        and one layer after the other. For inference: returns the model frozen and in eval mode.

        The embedding stays; a head tied to it becomes a quantised copy. A classification head stays, trainable.
        Raises: ValueError for an unknown format, a size that it can't take, a weight that isn't finite, or a model that
            is quantised already; nothing has changed then.
        """
        if trimmed_vocabulary.is_trimmed(self):
            raise ValueError("The vocabulary is trimmed: quantise the whole model, then trim it.")
        quantize_model(self, quantization)
        return self

    def trim_vocab(
        self, tokenizer: TokenCodec | None = None, *, ids: Sequence[int] | Tensor | None = None
    ) -> TrimReport:
        """Drops the rows of the embedding and the language-model head that are never used, in place. Ids stay.

        The logits of dropped ids are -inf, so that they are never chosen; as an input they are an IndexError, on a GPU
        NaN. :meth:`save_pretrained` and ``state_dict`` have all rows, and :meth:`restore_vocab` brings them back.

        Args:
            tokenizer: keeps the ids that encoding a text can give, its special tokens and the config's, or
            ids: keeps exactly these (integers; a repeated one counts once); one of the two.
        Returns: how many ids were kept and dropped, and the bytes saved.
        Raises: ValueError for a tokenizer or ids that don't fit the vocabulary, or a model that is trimmed already;
            TypeError for ids that aren't integers, such as a mask.
        """
        if (tokenizer is None) == (ids is None):
            raise ValueError("trim_vocab takes a tokenizer, or the ids to keep.")
        if tokenizer is not None:
            check_fits(len(tokenizer), self.config.vocab_size, "The tokenizer")
            ends = self.config.eos_token_id
            stated = [self.config.bos_token_id, self.config.pad_token_id, *(ends if isinstance(ends, list) else [ends])]
            special = tokenizer.special_tokens.matched.values()
            named = [index for index in stated if index is not None and index >= 0]
            ids = [*tokenizer.vocabulary.producible(), *special, *named]
        return trimmed_vocabulary.trim(self, ids if ids is not None else [])

    def restore_vocab(self: ModelType) -> ModelType:
        """Undoes :meth:`trim_vocab`, bit for bit."""
        trimmed_vocabulary.restore(self)
        return self

    @property
    def quantization(self) -> str | None:
        """The format of the linear layers, "int8" or "int4"; None where they aren't quantised."""
        found = quantized_format(self)
        return None if found is None else found.name

    def check_trainable(self, loss: Tensor | None) -> None:
        """Raises RuntimeError where a loss computed for training has no gradient because the model is quantised."""
        if loss is None or not self.training or not torch.is_grad_enabled() or loss.requires_grad:
            return
        if self.quantization is not None:
            raise RuntimeError(
                f"The model is quantised to {self.quantization}, for inference: the loss has no gradient. Train the "
                "16-bit model, or add adapters; to measure the loss alone, call eval() or use torch.no_grad()."
            )

    @property
    def decoder(self) -> Any:
        """The model without its head."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many; a quantised weight counts as many as it stands for."""
        number = sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)
        if not only_trainable:
            quantized = (module for module in self.modules() if isinstance(module, QuantizedLinear))
            number += sum(module.in_features * module.out_features for module in quantized)
        return number

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embed_tokens

    def set_input_embeddings(self, module: nn.Module) -> None:
        self.decoder.embed_tokens = module
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
