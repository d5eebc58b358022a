"""Random values of a generator of one's own, where the code that draws them does not take one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DRAWS = (
    Tensor.normal_,
    Tensor.uniform_,
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_normal_,
    nn.init.kaiming_uniform_,
)


class DrawsFrom(TorchFunctionMode):
    """In this thread, what initialises tensors draws from `generator`.

    All threads share PyTorch's own generator: to seed it makes nothing repeatable while another
    thread may draw or seed as well.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DRAWS:
            kwargs = kwargs | {"generator": self._generator}
        return func(*args, **kwargs)
