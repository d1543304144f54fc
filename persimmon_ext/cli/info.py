"""Says what this installation is, what it runs on, and which ops have native kernels."""

from __future__ import annotations

import argparse
import json
import platform
from typing import Any

import torch

from persimmon_ext import _C
from persimmon_ext.ops.native import KERNELS

_NAMESPACE = "persimmon_ext::"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """Prints the facts, for a reader or as JSON."""
    facts = gather()
    print(json.dumps(facts, indent=2) if arguments.json else render(facts))


def gather() -> dict[str, Any]:
    """Returns everything the command tells, as plain Python values."""
    return {
        "version": _C.version,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "built_for_torch": _C.torch_version,
        "compiler": _C.compiler.strip(),
        "cuda_version": _C.cuda_version or None,
        "cuda_architectures": [name for name in _C.cuda_architectures.split(";") if name],
        "instruction_set": _C.cpu_isa(),
        "instruction_sets": list(_C.cpu_isas()),
        "threads": torch.get_num_threads(),
        "gpus": _gpus(),
        "ops": _ops(),
    }


def render(facts: dict[str, Any]) -> str:
    """Lays out what `gather` returned in aligned lines."""
    cuda = "none; built without CUDA"
    if facts["cuda_version"]:
        cuda = f"CUDA {facts['cuda_version']} for {', '.join(facts['cuda_architectures'])}"
    gpus = [
        f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_bytes'] / 2**30:.1f} GiB"
        for gpu in facts["gpus"]
    ]
    lines = [
        ("persimmon_ext", facts["version"]),
        ("Python", facts["python"]),
        ("torch", f"{facts['torch']} (built for {facts['built_for_torch']})"),
        ("compiler", facts["compiler"]),
        ("GPU kernels", cuda),
        ("instruction set", f"{facts['instruction_set']} (available: {', '.join(facts['instruction_sets'])})"),
        ("threads", str(facts["threads"])),
        ("GPU", "; ".join(gpus) or "none found"),
    ]
    table: list[tuple[str, ...]] = [("op", "CPU", "CUDA", "autograd")]
    for name, has in facts["ops"].items():
        kernels = ("native" if has[device] else "reference" for device in ("cpu", "cuda"))
        table.append((name, *kernels, "yes" if has["autograd"] else "-"))
    width = max(len(label) for label, _ in lines)
    text = [f"{label:<{width}}  {value}" for label, value in lines]
    return "\n".join([*text, "", *_columns(table)])


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in padded]


def _ops() -> dict[str, dict[str, bool]]:
    names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith(_NAMESPACE))
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return {
        (op := name.removeprefix(_NAMESPACE)): {
            "cpu": (op, "CPU") in KERNELS,
            "cuda": (op, "CUDA") in KERNELS,
            "autograd": has_kernel(name, "Autograd"),
        }
        for name in names
    }


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
            }
        )
    return found
