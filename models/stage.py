"""A stage of a residual network: blocks in turn, with gradient checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import is_scripting, is_tracing  # type: ignore[attr-defined]
from torch.utils.checkpoint import checkpoint


class Stage(nn.Sequential):
    """The blocks of a stage.

    `checkpoints`: keep only the input of each block for the gradients, and compute the rest of
    it again when they are (Chen 2016, arXiv:1604.06174).
    """

    checkpoints = False

    def forward(self, input: Tensor) -> Tensor:
        y = input
        for block in self:
            if is_scripting():  # TorchScript compiles nothing of the other branches.
                y = block(y)
            elif self.checkpoints and _keeps_gradients(y):
                y = _checkpointed(block, y)
            else:
                y = block(y)
        return y


def _keeps_gradients(x: object) -> bool:
    """Whether a computation with `x` is kept for gradients, and not traced for another purpose."""
    traced = is_tracing() or torch.compiler.is_exporting()  # type: ignore[no-untyped-call]
    return isinstance(x, Tensor) and torch.is_grad_enabled() and not traced


def _checkpointed(block: nn.Module, x: Tensor) -> Any:
    if torch.compiler.is_compiling():  # A compiled block updates its statistics once.
        return checkpoint(block, x, use_reentrant=False)
    return checkpoint(block, x, use_reentrant=False, context_fn=partial(_contexts, block))


def _contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds the first computation of a block, and the second."""
    return nullcontext(), _buffers_kept(block)


@contextmanager
def _buffers_kept(block: nn.Module) -> Iterator[None]:
    """Lets copies take the updates, so that running statistics are updated once."""
    kept = [
        (module, name, buffer)
        for module in block.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)
