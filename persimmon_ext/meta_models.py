"""Models without memory: parameters have shapes and dtypes, and are filled or replaced later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_RANDOM = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.kaiming_uniform_)


class _NoRandomNumbers(TorchFunctionMode):
    """Leaves parameters as they are. On the meta device drawing numbers does nothing but import PyTorch's compiler,
    which takes a second or more."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """What is built inside lies on the meta device."""
    with torch.device("meta"), _NoRandomNumbers():
        yield
