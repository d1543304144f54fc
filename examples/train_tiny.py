"""Trains the embedded checkpoint: a 5 M-parameter Persimmon on the sources of Python's standard library.

    python examples/train_tiny.py --output tiny

Makes the tokenizer, trains, and writes a Hugging Face folder with training.json beside the weights: the recipe, the
loss on held-out files, and the share of exact zeros that each layer's squared ReLU gives on them. `--steps` and
`--batch` shrink the run; everything is seeded.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from train_tokenizer import read_source, split_files, train

import persimmon_ext
from persimmon_ext import PersimmonConfig, PersimmonForCausalLM, PersimmonTokenizer

CONTEXT = 512  # tokens a sequence
PEAK_LEARNING_RATE = 3e-3
WARMUP = 100  # steps


def tokenize(files: list[Path], tokenizer: PersimmonTokenizer) -> Tensor:
    """All files in one row of ids, int64 [N], each ended by the end-of-sequence token."""
    ids: list[int] = []
    for path in tqdm(files, desc="tokenizing", unit="file", delay=2):
        ids += [*tokenizer.encode(read_source(path), add_special_tokens=False), tokenizer.eos_token_id]
    return torch.tensor(ids)


def line_starts(ids: Tensor, tokenizer: PersimmonTokenizer) -> Tensor:
    """Positions after a line break: sequences start there, so that a prompt at the start of a line looks familiar."""
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    starts = (ids == newline).nonzero()[:, 0] + 1
    return starts[starts < len(ids) - CONTEXT]


def batch_at(ids: Tensor, starts: Tensor, bos: int) -> Tensor:
    """Sequences [B, CONTEXT], each the beginning-of-sequence token and what follows a start."""
    rows = ids[starts[:, None] + torch.arange(CONTEXT - 1)]
    return torch.cat([torch.full((len(starts), 1), bos), rows], dim=1)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then linear to zero (Defazio et al. 2023)."""
    return PEAK_LEARNING_RATE * min((step + 1) / WARMUP, (steps - step) / max(1, steps - WARMUP))


@torch.no_grad()
def evaluate(model: PersimmonForCausalLM, ids: Tensor, bos: int) -> tuple[float, list[float]]:
    """Loss (nats a token) on consecutive sequences, and each layer's share of zeros after the squared ReLU."""
    zeros = [0.0] * len(model.model.layers)

    def count(layer: int, hidden: Tensor) -> None:
        zeros[layer] += float((hidden == 0).float().mean())

    hooks = [
        layer.mlp.dense_4h_to_h.register_forward_pre_hook(lambda _, inputs, i=i: count(i, inputs[0]))
        for i, layer in enumerate(model.model.layers)
    ]
    model.eval()
    starts = torch.arange(0, len(ids) - CONTEXT, CONTEXT - 1)
    loss = 0.0
    for start in starts.split(16):
        rows = batch_at(ids, start, bos)
        loss += float(model(rows, labels=rows, use_cache=False).loss) * len(start)
    for hook in hooks:
        hook.remove()
    batches = len(starts.split(16))
    return loss / len(starts), [z / batches for z in zeros]


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the embedded checkpoint.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=8, help=f"sequences of {CONTEXT} tokens a step")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.batch < 1:
        parser.error(f"--steps and --batch must be at least 1, got {arguments.steps} and {arguments.batch}")
    torch.manual_seed(arguments.seed)

    training, held_out = split_files()
    tokenizer = PersimmonTokenizer(train(training))
    bos = tokenizer.bos_token_id
    ids, held_out_ids = tokenize(training, tokenizer), tokenize(held_out, tokenizer)
    starts = line_starts(ids, tokenizer)
    config = PersimmonConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=bos,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = PersimmonForCausalLM(config).train()
    print(f"{len(training)} files, {len(ids)} tokens; {model.num_parameters()} parameters")
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    began = time.monotonic()
    curve = []
    for step in (bar := tqdm(range(arguments.steps), desc="training", unit="step")):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps)
        rows = batch_at(ids, starts[torch.randint(len(starts), (arguments.batch,))], bos)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(rows, labels=rows, use_cache=False, skip_logits=True).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == arguments.steps - 1:
            curve.append([step, round(loss.item(), 4)])
            bar.set_postfix(loss=f"{loss.item():.3f}")
    seconds = time.monotonic() - began

    model = model.to(torch.bfloat16)  # what ships is what is measured
    config.dtype = "bfloat16"
    validation, zeros = evaluate(model, held_out_ids, bos)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    report = {
        "command": "python " + " ".join(sys.argv),
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {persimmon_ext._C.cpu_isa()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "training_files": len(training),
        "training_tokens": len(ids),
        "held_out_files": len(held_out),
        "steps": arguments.steps,
        "tokens_per_step": arguments.batch * CONTEXT,
        "seconds": round(seconds, 1),
        "training_loss": curve,
        "held_out_loss": round(validation, 4),
        "zeros_after_relu2": [round(z, 4) for z in zeros],
    }
    partial = arguments.output / "training.json.partial"
    partial.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(partial, arguments.output / "training.json")
    print(f"held-out loss {validation:.3f}; zeros after relu2 by layer: {', '.join(f'{z:.0%}' for z in zeros)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
