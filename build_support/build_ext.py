"""The setuptools command that builds ``persimmon_ext._C`` with CMake and Ninja, against the installed torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar

from setuptools import Extension
from setuptools.command.build_ext import build_ext

from build_support import cuda

ROOT = Path(__file__).resolve().parent.parent


def require(program: str) -> str:
    # pip puts cmake and ninja beside the interpreter that installed them, which need not be on PATH.
    path = shutil.which(program, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if path is None:
        raise SystemExit(
            f"{program} is not installed; `pip install cmake ninja pybind11 setuptools` brings what is needed."
        )
    return path


class CMakeBuild(build_ext):
    """Configures once and lets Ninja decide what to compile, so an unchanged rebuild takes seconds."""

    user_options: ClassVar = [
        *build_ext.user_options,
        ("sanitize", None, "build with AddressSanitizer and UndefinedBehaviorSanitizer, without CUDA"),
    ]
    boolean_options: ClassVar = [*build_ext.boolean_options, "sanitize"]

    def initialize_options(self) -> None:
        super().initialize_options()
        self.sanitize = False

    def build_extension(self, ext: Extension) -> None:
        try:
            import pybind11
            import torch
        except ModuleNotFoundError as missing:
            raise SystemExit(
                f"{missing.name} must be installed before persimmon_ext is built, since the extension is compiled "
                f"against it: `pip install {missing.name}`, then `pip install --no-build-isolation .`"
            ) from None
        from torch.utils.cpp_extension import include_paths, library_paths

        version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
        if not version >= (2, 11):
            raise SystemExit(f"persimmon_ext needs torch 2.11 or later, and {torch.__version__} is installed.")
        jobs = os.environ.get("MAX_JOBS", "").strip()
        if jobs and not (jobs.isdecimal() and int(jobs) > 0):
            raise SystemExit(f"MAX_JOBS is {jobs!r}; it must be a positive number.")
        plan = None if self.sanitize else cuda.decide(torch.version.cuda)
        # One build folder per interpreter and torch: switching between environments never mixes objects.
        kind = "-sanitize" if self.sanitize else "-cuda" if plan else ""
        folder = ROOT / "build" / f"{sys.implementation.cache_tag}-torch-{torch.__version__}{kind}"
        cache = folder / "CMakeCache.txt"
        if cache.is_file() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
            shutil.rmtree(folder)  # the source folder was moved or copied with it, and CMake would refuse
        folder.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_MAKE_PROGRAM": require("ninja"),
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            # No path of this machine in the module: whoever imports it has imported torch, and its libraries, before.
            "CMAKE_SKIP_RPATH": "ON",
            "PERSIMMON_VERSION": self.distribution.get_version(),
            "PERSIMMON_TORCH_VERSION": torch.__version__,
            "PERSIMMON_TORCH_CXX11_ABI": int(torch._C._GLIBCXX_USE_CXX11_ABI),
            "PERSIMMON_TORCH_INCLUDE_DIRS": ";".join(include_paths()),
            "PERSIMMON_TORCH_LIBRARY_DIR": library_paths()[0],
            "PERSIMMON_PYTHON_INCLUDE_DIR": sysconfig.get_paths()["include"],
            "PERSIMMON_PYBIND11_INCLUDE_DIR": pybind11.get_include(),
            "PERSIMMON_MODULE_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
            "PERSIMMON_SANITIZE": "ON" if self.sanitize else "OFF",
            "PERSIMMON_CUDA": "ON" if plan else "OFF",
            "PERSIMMON_CUDA_VERSION": plan.version if plan else "",
            "PERSIMMON_CUDA_ARCHITECTURES": plan.cmake_architectures() if plan else "",
            "PERSIMMON_CUDA_ARCHITECTURES_TEXT": plan.architectures if plan else "",
        }
        if plan:
            options["CMAKE_CUDA_COMPILER"] = plan.root / "bin" / "nvcc"
            options["PERSIMMON_CUDA_INCLUDE_DIRS"] = ";".join(map(str, plan.include_dirs))
        cmake = require("cmake")
        self.run_tool([cmake, "-G", "Ninja", "-S", ROOT, "-B", folder, *(f"-D{k}={v}" for k, v in options.items())])
        self.run_tool([cmake, "--build", folder, *(["-j", jobs] if jobs else [])])

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        shutil.copy2(folder / f"_C{options['PERSIMMON_MODULE_SUFFIX']}", partial)
        os.replace(partial, target)  # a running process keeps the file that it has mapped

    @staticmethod
    def run_tool(command: list) -> None:
        status = subprocess.run([str(part) for part in command], check=False).returncode
        if status != 0:
            raise SystemExit(f"{command[0]} failed with exit status {status}; its messages are above.")
