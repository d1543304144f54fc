"""Decides whether to build the CUDA kernels, and finds the toolkit that compiles them.

``PERSIMMON_EXT_CUDA`` is ``auto`` (the default: when torch has CUDA and a matching toolkit is found), ``0`` or ``1``.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ARCHITECTURES = "8.0;9.0a;10.0+PTX"
DEFAULT_ARCHITECTURES_BEFORE_12_8 = "8.0+PTX;9.0a"  # nvcc knows 10.0 from CUDA 12.8 on
HEADER_FOLDERS = ("include", "targets/x86_64-linux/include")  # conda's toolkit has only the second
USUAL_PLACE = Path("/usr/local/cuda")


class CudaUnavailableError(Exception):
    """Why the CUDA kernels can't be built, in a sentence."""


@dataclass(frozen=True)
class CudaBuild:
    root: Path  # the toolkit: root/bin/nvcc and cuda_runtime.h in one of HEADER_FOLDERS
    version: str  # nvcc's, e.g. "13.0"
    architectures: str  # as in TORCH_CUDA_ARCH_LIST, e.g. "8.0;9.0a;10.0+PTX"
    include_dirs: tuple[Path, ...]  # headers from torch's CUDA wheels, for what the toolkit lacks

    def cmake_architectures(self) -> str:
        """``8.0;9.0a+PTX`` as CMake spells it: ``80-real;90a-real;90a-virtual``."""
        names = []
        for item in self.architectures.split(";"):
            number = item.removesuffix("+PTX").replace(".", "")
            names.append(f"{number}-real")
            if item.endswith("+PTX"):
                names.append(f"{number}-virtual")
        return ";".join(dict.fromkeys(names))


def architectures(release: str) -> str:
    """``TORCH_CUDA_ARCH_LIST``, checked and joined with semicolons, or the default for a toolkit `release` ("13.0").

    9.0 becomes 9.0a.
    """
    major, minor = map(int, release.split("."))
    default = DEFAULT_ARCHITECTURES if (major, minor) >= (12, 8) else DEFAULT_ARCHITECTURES_BEFORE_12_8
    text = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    items = [item for item in re.split(r"[;\s,]+", text) if item] or default.split(";")
    for item in items:
        match = re.fullmatch(r"([0-9]+)\.[0-9][af]?(\+PTX)?", item)
        if match is None:
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST is {text!r}: {item!r} is not an architecture such as 8.0, 9.0a or 10.0+PTX."
            )
        if int(match[1]) < 8:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST names {item}: the kernels need compute capability 8.0 or later.")
    # Hopper's own instructions are only in code for 9.0a: a kernel without them would be empty there.
    items = [re.sub(r"^9\.0(?=\+|$)", "9.0a", item) for item in items]
    return ";".join(dict.fromkeys(items))


def toolkit_of(nvcc: Path) -> Path | None:
    """The toolkit that an ``nvcc`` belongs to. It may be a wrapper script elsewhere, so nvcc itself is asked."""
    try:
        command = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]
        run = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError:
        return None
    top = re.search(r"^#\$ TOP=(.+)$", run.stderr, flags=re.MULTILINE)
    return Path(top[1].strip()).resolve() if top else None


def usable_nvcc(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def find_toolkit() -> Path:
    """The first usable toolkit of ``CUDA_HOME``, ``CUDA_PATH``, ``nvcc`` on PATH, and ``/usr/local/cuda``."""
    tried = []
    candidates: list[tuple[str, Path | None]] = [
        (name, Path(os.environ[name])) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)
    ]
    if on_path := shutil.which("nvcc"):
        candidates.append((f"nvcc on PATH ({on_path})", toolkit_of(Path(on_path))))
    candidates.append(("the usual place", USUAL_PLACE))
    for origin, root in candidates:
        if root is None:
            tried.append(f"{origin}: it doesn't say where its toolkit is")
        elif not usable_nvcc(root / "bin" / "nvcc"):
            tried.append(f"{origin}: there is no program {root / 'bin' / 'nvcc'}")
        elif not any((root / folder / "cuda_runtime.h").is_file() for folder in HEADER_FOLDERS):
            tried.append(f"{origin}: there is no {root / 'include' / 'cuda_runtime.h'}")
        else:
            return root.resolve()
    raise CudaUnavailableError(
        "no CUDA toolkit was found; tried " + "; ".join(tried) + ". Set CUDA_HOME to its folder."
    )


def wheel_include_dirs() -> tuple[Path, ...]:
    """Header folders of the ``nvidia-*`` packages that a CUDA build of torch installs beside itself.

    They are looked for wherever Python imports from: torch may be in a user's or another environment's folder.
    """
    found = (path for root in sys.path if root for path in sorted(glob.glob(f"{glob.escape(root)}/nvidia/*/include")))
    return tuple(map(Path, dict.fromkeys(found)))


def release_of(nvcc: Path) -> str:
    """The CUDA release that an ``nvcc`` prints, e.g. "13.0"; raises CudaUnavailableError when it prints none."""
    try:
        text = subprocess.run([nvcc, "--version"], check=False, capture_output=True, text=True).stdout
    except OSError as error:  # built for another machine, say
        raise CudaUnavailableError(f"{nvcc} can't be run: {error.strerror}.") from None
    release = re.search(r"release (\d+\.\d+)", text)
    if release is None:
        raise CudaUnavailableError(f"{nvcc} doesn't print its release.")
    return release[1]


def decide(torch_cuda: str | None) -> CudaBuild | None:
    """What to build, for a torch whose CUDA version is `torch_cuda` (None: a CPU build of torch).

    Raises SystemExit with a sentence where ``PERSIMMON_EXT_CUDA=1`` can't be met.
    """
    wanted = os.environ.get("PERSIMMON_EXT_CUDA", "auto").strip().lower() or "auto"
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"PERSIMMON_EXT_CUDA is {wanted!r}; it must be auto, 0 or 1.")
    if wanted == "0":
        return None
    try:
        if torch_cuda is None:
            raise CudaUnavailableError("the installed torch is a CPU build. Install a CUDA build of torch first.")
        root = find_toolkit()
        release = release_of(root / "bin" / "nvcc")
        if release.split(".")[0] != torch_cuda.split(".")[0]:
            raise CudaUnavailableError(
                f"torch was built with CUDA {torch_cuda} and the toolkit in {root} is {release}: "
                "their major versions must be equal. Set CUDA_HOME to a matching toolkit."
            )
    except CudaUnavailableError as reason:
        if wanted == "1":
            raise SystemExit(f"PERSIMMON_EXT_CUDA=1, but {reason}") from None
        print(f"persimmon_ext: building CPU kernels only: {reason}")
        return None
    plan = CudaBuild(root, release, architectures(release), wheel_include_dirs())
    print(f"persimmon_ext: building CUDA kernels for {plan.architectures} with CUDA {release} in {root}")
    return plan
