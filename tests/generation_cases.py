"""Small random models and prompts for the tests of generation and of the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from persimmon_ext import PersimmonConfig, PersimmonForCausalLM, PersimmonTokenizer, assets

VOCAB = 97


def model_pair(seed: int = 0, **fields: Any) -> tuple[Any, Any]:
    """transformers' model and ours, float32, in eval mode. Weights are large, so that logits are far from ties."""
    torch.manual_seed(seed)
    config = transformers.PersimmonConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 128,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.3,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": None,
            **fields,
        }
    )
    theirs = transformers.PersimmonForCausalLM(config).eval()
    # Biases and norm weights start as 0 and 1, which would hide a mistake in them.
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    ours = PersimmonForCausalLM(PersimmonConfig.from_dict(config.to_dict())).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def prompt(batch: int = 1, tokens: int = 6, seed: int = 0) -> Tensor:
    """Random ids int64 [batch, tokens] that are no special tokens."""
    return torch.randint(3, VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def left_padded(lengths: list[int], pad: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Prompts of these lengths in one batch, and their mask, both int64 [B, max]."""
    ids = prompt(len(lengths), max(lengths), seed)
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, pad), mask.long()


def write_checkpoint(folder: Path) -> Path:
    """Saves a random model of one layer with the tokenizer of the embedded one, and returns `folder`."""
    torch.manual_seed(0)
    config = PersimmonConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=64,
        eos_token_id=None,
    )
    PersimmonForCausalLM(config).save_pretrained(folder)
    PersimmonTokenizer.from_pretrained(Path(assets.__file__).parent / "tiny").save_pretrained(folder)
    return folder
