"""Random values of a generator of one's own, where the code that draws them does not take one."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DRAWS = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)


class DrawsFrom(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """In this thread, what initialises tensors draws from `generator`.

    All threads share PyTorch's own generator: to seed it makes nothing repeatable while another
    thread may draw or seed as well.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = generator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DRAWS:
            kwargs = kwargs | {"generator": self._generator}
        return func(*args, **kwargs)
