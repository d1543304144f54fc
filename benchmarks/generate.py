"""generate() from end to end: against the kernels alone and against transformers, speculating, and for a long time.

Each part checks that all sides give the same tokens before it times them; sides alternate.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import bare_loop, decode, drafting, machine, models, options, table
from benchmarks.checks import MismatchError, check_close
from benchmarks.sides import QUIET, compare, embedded_models, same_tokens
from benchmarks.timing import measure


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = options.parser("generate", __doc__)
    models.add_options(parser)
    parser.set_defaults(layers=2, repeats=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--context", type=options.positive, default=32, help="tokens of the prompt")
    parser.add_argument("--new-tokens", type=options.positive, default=32, help="of each text")
    parser.add_argument("--drafts", type=options.positive, default=7, help="tokens drafted at a time")
    parser.add_argument("--soak-tokens", type=options.positive, default=2000, help="of the soak, in texts of 400")
    return parser.parse_args(arguments)


def overhead(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """generate() against a loop of nothing but kernels, on layers of the given shape."""
    model = models.build(argparse.Namespace(**{**vars(chosen), "only_ours": True}), device).ours
    generator = torch.Generator().manual_seed(chosen.seed)
    prompt = models.random_ids(chosen.batch, chosen.context, chosen.vocab, generator).to(device)
    new = chosen.new_tokens
    sides: dict[str, Callable[[], Tensor]] = {
        "generate": lambda: model.generate(prompt, max_new_tokens=new, **QUIET),
        **kernels_alone(model, prompt, new),
    }
    same_tokens("overhead", sides)
    return compare("overhead", sides, chosen.batch * new, chosen, device)


def kernels_alone(model: Any, prompt: Tensor, new: int) -> dict[str, Callable[[], Tensor]]:
    """The loop of nothing but kernels, called as PyTorch's dispatcher has them and by the package's functions."""
    calls = {"registered operators alone": bare_loop.registered(), "kernels alone": bare_loop.functions()}
    return {name: partial(bare_loop.decode, model, prompt, new, way) for name, way in calls.items()}


def shape(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """generate() against transformers' on layers of the given shape; the logits of the prompt are compared first."""
    pair = models.build(argparse.Namespace(**{**vars(chosen), "only_ours": False}), device)
    generator = torch.Generator().manual_seed(chosen.seed)
    prompt = models.random_ids(chosen.batch, chosen.context, chosen.vocab, generator).to(device)
    logits = {name: model(prompt).logits for name, model in pair.sides().items()}
    limit = chosen.limit or decode.LIMITS[chosen.quantization or chosen.dtype]
    difference = check_close("logits of the prompt", logits["ours"], logits["transformers"], limit)
    new = chosen.new_tokens
    sides: dict[str, Callable[[], Tensor]] = {
        "generate": lambda: pair.ours.generate(prompt, max_new_tokens=new, **QUIET),
        "transformers": lambda: pair.sides()["transformers"].generate(
            prompt, max_new_tokens=new, do_sample=False, **QUIET
        ),
    }
    return compare("shape", sides, chosen.batch * new, chosen, device) | {"logits_difference": difference}


def embedded(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """generate() against transformers' on the embedded model."""
    ours, theirs, ids = embedded_models(device)
    pair = {"generate": (ours, {}), "transformers": (theirs, {"do_sample": False})}

    def side(model: Any, more: dict[str, Any]) -> Callable[[], Tensor]:
        return lambda: model.generate(ids, max_new_tokens=chosen.new_tokens, **QUIET, **more)

    for model, _ in pair.values():
        model.float()  # in 16 bits the two sides' roundings may choose different tokens
    same_tokens("embedded", {name: side(*parts) for name, parts in pair.items()})
    for model, _ in pair.values():
        model.bfloat16()
    theirs.model.rotary_emb.float()
    sides = {name: side(*parts) for name, parts in pair.items()}
    return compare("embedded", sides, chosen.new_tokens, chosen, device)


def ends(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """generate() that looks for an end token, on the embedded model, against a loop of nothing but kernels."""
    model, _, ids = embedded_models(device)
    new, never = chosen.new_tokens, model.config.vocab_size - 1
    kernels = kernels_alone(model, ids, new)
    if bool((kernels["kernels alone"]()[:, ids.shape[1] :] == never).any()):
        raise MismatchError(f"ends: the text comes to token {never}, which is to end none.")
    sides: dict[str, Callable[[], Tensor]] = {
        "generate": lambda: model.generate(ids, max_new_tokens=new, eos_token_id=never, pad_token_id=0),
        **kernels,
    }
    same_tokens("ends", sides)
    return compare("ends", sides, new, chosen, device)


def soak(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Texts of 400 tokens one after the other, drawn; memory after each. The first tenth is warm-up."""
    model, _, ids = embedded_models(device)
    each, resident = min(400, chosen.soak_tokens), []
    texts = max(chosen.soak_tokens // each, 1)

    def text() -> None:
        # Drawn tokens have every length of prompt lookup's hits, so that no call is like the one before.
        model.generate(ids[:, :64], max_new_tokens=each, do_sample=True, **QUIET)
        resident.append(_resident_bytes())

    samples = measure({"soak": text}, device=device, repeats=texts)["soak"]
    begin = resident[len(resident) // 10]
    return {
        "part": "soak",
        "tokens": each,
        "sides": {"soak": samples.as_dict() | {"tokens_per_s": each / samples.median}},
        "ratio": max(resident[len(resident) // 10 :]) / begin,
        "growth_bytes": resident[-1] - begin,
        "soak_tokens": each * len(resident),
    }


def _resident_bytes() -> int:
    """Memory that the process holds now; its peak so far where the system doesn't tell."""
    statistics = Path("/proc/self/statm")
    if not statistics.exists():
        return machine.peak_memory(torch.device("cpu"))
    return int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


PARTS: dict[str, Callable[[argparse.Namespace, torch.device], dict[str, Any]]] = {
    "overhead": overhead,
    "shape": shape,
    "embedded": embedded,
    "ends": ends,
    "speculation": drafting.speculation,
    "drawn": drafting.drawn,
    "editing": drafting.editing,
    "quoting": drafting.quoting,
    "checking": drafting.checking,
    "soak": soak,
}
_MEANING = {
    "overhead": "of the kernels' speed",
    "shape": "times transformers",
    "embedded": "times transformers",
    "ends": "of the kernels' speed",
    "speculation": "times plain decoding",
    "drawn": "times plain decoding",
    "editing": "times plain decoding",
    "quoting": "times plain decoding",
    "checking": "times one token's step",
    "soak": "of the memory after the warm-up",
}


def run(arguments: list[str] | None = None) -> None:
    """The program; `arguments` as on the command line."""
    chosen = parse(arguments)
    device = options.prepare(chosen)
    result = machine.stamp("generate") | {"machine": machine.facts(device), "options": vars(chosen), "ceilings": {}}
    result["results"] = [PARTS[part](chosen, device) for part in chosen.parts]
    show(result)
    table.write_json(chosen.json, result)


def show(result: dict[str, Any]) -> None:
    """Prints everything that `run` found."""
    print(table.heading(result), end="\n\n")
    rows = []
    for part in result["results"]:
        for name, side in part["sides"].items():
            rows.append(
                {
                    "part": part["part"],
                    "side": name,
                    "tokens/s": f"{side['tokens_per_s']:.2f}",
                    "ms (p20–p80)": (
                        f"{side['median_s'] * 1e3:.1f} ({side['p20_s'] * 1e3:.1f}–{side['p80_s'] * 1e3:.1f})"
                    ),
                    "": "",
                }
            )
        rows[-1][""] = f"{part['ratio']:.3f} {_MEANING[part['part']]}"
    print(table.text(rows))
    for part in result["results"]:
        if "acceptance_rate" in part:
            rate, tokens = part["acceptance_rate"], part["tokens_per_step"]
            print(f"\n{part['part']}: {rate:.1%} of the drafts accepted, {tokens:.2f} tokens a step")
        if "growth_bytes" in part:
            print(f"\nafter {part['soak_tokens']} tokens the memory has grown by {part['growth_bytes'] / 1e6:.1f} MB")


if __name__ == "__main__":
    options.main(run)
