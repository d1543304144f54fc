"""Builds the extension; everything else about the package is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).parent))  # pip runs this file without its folder on the path
from build_support.build_ext import CMakeBuild

setup(ext_modules=[Extension("persimmon_ext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
