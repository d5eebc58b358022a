"""Arrays over pinned memory: NumPy tells when the host reads and writes it.

Unseen are readers of bare memory: `np.array`, `memoryview`, `torch.from_numpy`, and assignments to
elements of another array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.support.cuda.judge import HOST

if TYPE_CHECKING:
    from tests.support.cuda.runtime import FakeCuda

# Methods that read an array's elements and return something of their own.
READING = (
    "__contains__", "__copy__", "__deepcopy__", "__float__", "__int__", "__iter__", "__reduce__",
    "__reduce_ex__", "argmax", "argmin", "argpartition", "argsort", "astype", "choose", "compress",
    "copy", "cumprod", "cumsum", "dot", "dump", "dumps", "flatten", "item", "nonzero", "repeat",
    "searchsorted", "take", "tobytes", "tofile", "tolist", "trace",
)  # fmt: skip
WRITING = ("fill", "itemset", "partition", "put", "sort")
# The first argument of these functions of NumPy is written to.
FILLING = (np.copyto, np.put, np.place, np.putmask, np.put_along_axis, np.fill_diagonal)


class PinnedArray(np.ndarray[Any, np.dtype[Any]]):
    """A view of pinned memory, as are its slices; what is computed from it is a plain array."""

    _told: Callable[..., None] | None

    @staticmethod
    def over(array: np.ndarray[Any, Any], fake: FakeCuda, memory: int) -> PinnedArray:
        """`memory`: the judge's number for it."""

        def told(*, write: bool) -> None:
            touched = {memory}
            nothing: set[int] = set()
            reads, writes = (nothing, touched) if write else (touched, nothing)
            fake.judge.access(HOST, reads, writes, "NumPy")

        view = array.view(PinnedArray)
        view._told = told
        return view

    def __array_finalize__(self, source: object) -> None:
        self._told = getattr(source, "_told", None)

    def _accessed(self, *, write: bool = False) -> None:
        if self._told is not None:
            self._told(write=write)

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if isinstance(found, PinnedArray) and np.may_share_memory(plain(found), plain(self)):
            return found
        self._accessed()
        return plain(found)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._accessed(write=True)
        plain(self)[key] = read(value)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        written = kwargs.get("out", ())
        if method == "at":
            written = inputs[:1]
        return _call(getattr(ufunc, method), inputs, kwargs, written)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        written = [kwargs["out"]] if kwargs.get("out") is not None else []
        if func in FILLING:
            written = [args[0] if args else kwargs["dst"]]
        return _call(func, args, kwargs, written)


def _call(function: Any, args: Any, kwargs: Any, written: Any) -> Any:
    targets = [each for each in written if isinstance(each, PinnedArray)]
    for each in _arrays((args, kwargs)):
        if not any(each is target for target in targets):
            each._accessed()
    for target in targets:
        target._accessed(write=True)
    result = function(*_plainly(args), **_plainly(kwargs))
    # As NumPy, which returns what it was given to write to.
    return next((each for each in targets if result is not None), result)


def plain(value: Any) -> Any:
    """The same memory, unwatched."""
    return value.view(np.ndarray) if isinstance(value, PinnedArray) else value


def read(value: Any) -> Any:
    """The same, read by the host."""
    if isinstance(value, PinnedArray):
        value._accessed()
    return plain(value)


def _arrays(value: Any) -> Iterator[PinnedArray]:
    if isinstance(value, PinnedArray):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _arrays(each)
    elif isinstance(value, dict):
        yield from _arrays(list(value.values()))


def _plainly(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_plainly(each) for each in value)
    if isinstance(value, dict):
        return {key: _plainly(each) for key, each in value.items()}
    return plain(value)


def _watched(name: str, *, write: bool) -> Callable[..., Any]:
    def method(self: PinnedArray, *args: Any, **kwargs: Any) -> Any:
        self._accessed(write=write)
        return getattr(plain(self), name)(*args, **kwargs)

    return method


for _name in READING:
    setattr(PinnedArray, _name, _watched(_name, write=False))
for _name in WRITING:
    setattr(PinnedArray, _name, _watched(_name, write=True))
