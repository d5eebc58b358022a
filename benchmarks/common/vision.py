"""torchvision, imported whichever torch it was built for."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any, cast

import torch

# Those whose absence ends the import of torchvision.
OPERATORS = ("nms", "qnms")
# A library that is collected takes its operators with it.
DECLARED: list[Any] = []


@functools.cache
def import_torchvision() -> ModuleType:
    """torchvision, whose compiled library loads only beside the build of torch it was made for.

    Where it does not load, the operators of `OPERATORS` are declared, not defined: no network or
    transform of PIL images calls them. Declaring them before the library has had its chance would
    abort the process where it does load, since an operator may be declared only once.

    Raises:
        RuntimeError: torchvision cannot be imported for another reason.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if f"torchvision::{OPERATORS[0]} does not exist" not in str(error):
            raise
    library: Any = cast("Any", torch.library.Library)("torchvision", "DEF")
    for operator in OPERATORS:
        library.define(f"{operator}(Tensor dets) -> Tensor")
    DECLARED.append(library)
    return importlib.import_module("torchvision")
