"""Pickles read as data: plain containers and byte arrays, without running any code."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from models.data.members import damage

# NumPy's constructor of empty arrays before and since its version 2.
RECONSTRUCT = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}
BROKEN = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


def plain(data: bytes) -> Any:
    """The content of a pickle of dicts, lists, tuples, numbers, strings and uint8 arrays.

    Functions that the file names are never called: arrays are rebuilt here from their bytes.
    Strings of Python 2 become bytes.

    Raises:
        ValueError: the pickle is damaged, or names anything else; the message says what.
    """
    try:
        return _finished(_Reader(io.BytesIO(data), encoding="bytes").load())
    except _Forbidden as error:
        raise ValueError(str(error)) from None
    except BROKEN as error:
        raise ValueError(f"not a whole pickle ({damage(error)})") from None


class _Forbidden(Exception):
    pass


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in RECONSTRUCT:
            return _function(lambda *unused: _Array())
        if module == "numpy" and name == "dtype":
            return _function(_Dtype)
        if module == "numpy" and name == "ndarray":
            return "ndarray"  # Only passed to `_reconstruct`.
        if (module, name) == ("_codecs", "encode"):  # How Python 3 writes bytes for Python 2.
            return _function(lambda text, codec: text.encode("latin-1"))
        raise _Forbidden(f"it names {module}.{name}, and no code is run from a data file")


def _function(call: Callable[..., Any]) -> Callable[..., Any]:
    """A new function for each mention: a pickle may set attributes of the objects it gets."""
    return lambda *arguments: call(*arguments)  # noqa: PLW0108


class _Dtype:
    def __init__(self, code: bytes | str, *unused: object) -> None:
        self.code = code.decode("latin-1") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Ignores byte order and fields, which bytes do not have."""


class _Array:
    value: np.ndarray[Any, np.dtype[np.uint8]] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or dtype.code.lstrip("|") not in ("u1", "uint8"):
            raise ValueError("an array is not of bytes")
        if not isinstance(raw, bytes) or len(raw) != math.prod(shape):
            raise ValueError("an array does not have as many bytes as its shape says")
        array = np.frombuffer(raw, dtype=np.uint8)
        self.value = array.reshape(shape, order="F" if fortran else "C")


def _finished(value: Any) -> Any:
    """`value` with arrays in place of `_Array`, where data sets have them."""
    if isinstance(value, dict):
        return {key: _finished(entry) for key, entry in value.items()}
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array has no content")
        return value.value
    return value
