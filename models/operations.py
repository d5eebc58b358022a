"""A network's forward recorded as a list of operations, from which exports and engines are built.

A ResNet needs a dozen operations. TorchScript is deprecated, and torch.fx patches modules of the
whole process while it traces, which would disturb engines that serve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal[
    "input",
    "convolution",
    "linear",
    "batch_norm",
    "relu",
    "max_pool",
    "average_pool",
    "pad",
    "add",
    "slice",
    "mean",
]
Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation; its index in the list identifies its result.

    `inputs`: the indices of its operands.
    `shape`: the shape of its result, [-1, C, H, W] or [-1, K].
    `tensors`: the network's parameters: for "convolution" and "linear" the weight and the bias,
        if any; for "batch_norm" mean, variance, weight and bias.
    `options`: "convolution" has `strides`, `pads` and `dilations`; "max_pool" has `kernel`,
        `strides`, `pads`, `dilations` and `ceil`; "average_pool", which never pads, `kernel` and
        `strides`; all but `ceil` are pairs for H and W. "batch_norm" has `eps`, "pad" has `before`
        and `after` by axis, `mode` ("constant" or "reflect") and `value`, "slice" has `steps` by
        axis.
    """

    kind: Kind
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    tensors: tuple[Tensor, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def record(network: nn.Module, shape: Sequence[int]) -> list[Operation]:
    """The operations of a network in evaluation mode; the last one gives its output.

    `shape` is the shape of an image, [C, H, W]. Nothing is computed.

    Raises:
        NotImplementedError: an operation is not one of `Kind`.
    """
    operations = [Operation("input", (), (-1, *shape))]
    with torch.no_grad():
        network(_Recorded(operations, 0))
    return operations


class _Recorded:
    """A stand-in for a tensor in a network's forward: the index of an operation in the list."""

    def __init__(self, operations: list[Operation], place: int) -> None:
        self.operations = operations
        self.place = place

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> _Recorded:
        if function not in FUNCTIONS:
            name = getattr(function, "__name__", function)
            raise NotImplementedError(f"{name} is not an operation of a ResNet")
        return FUNCTIONS[function](*args, **(kwargs or {}))

    def then(
        self,
        kind: Kind,
        shape: Sequence[int],
        *others: _Recorded,
        tensors: Sequence[Tensor | None] = (),
        **options: Any,
    ) -> _Recorded:
        places = (self.place, *(other.place for other in others))
        present = tuple(tensor for tensor in tensors if tensor is not None)
        self.operations.append(Operation(kind, places, tuple(shape), present, options))
        return _Recorded(self.operations, len(self.operations) - 1)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.operations[self.place].shape

    def dim(self) -> int:
        return len(self.shape)

    def __add__(self, other: _Recorded) -> _Recorded:
        if not isinstance(other, _Recorded) or other.shape != self.shape:
            raise NotImplementedError("only maps of equal shapes can be added")
        return self.then("add", self.shape, other)

    def __iadd__(self, other: _Recorded) -> _Recorded:
        return self.becomes(self + other)

    def becomes(self, result: _Recorded) -> _Recorded:
        """Changes in place: whoever has this tensor sees the result from now on."""
        if self.operations[self.place].kind == "slice":
            raise NotImplementedError("a part of a tensor cannot be changed in place")
        self.place = result.place
        return self

    def __getitem__(self, index: tuple[slice, ...]) -> _Recorded:
        """Strided slices of whole axes, as in the shortcut of option A."""
        steps = {axis: part.step for axis, part in enumerate(index) if part.step not in (None, 1)}
        if not steps:
            return self
        shape = (-(-n // steps.get(axis, 1)) if n > 0 else n for axis, n in enumerate(self.shape))
        return self.then("slice", tuple(shape), steps=steps)

    def mean(self, axes: tuple[int, ...]) -> _Recorded:
        if axes != (2, 3):
            raise NotImplementedError("only means over height and width are supported")
        return self.then("mean", self.shape[:2])


def _convolution(
    x: _Recorded,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Recorded:
    if groups != 1 or isinstance(padding, str):
        raise NotImplementedError("only plain convolutions are supported")
    window: dict[str, Any] = {
        "strides": _pair(stride),
        "pads": _pair(padding),
        "dilations": _pair(dilation),
    }
    shape = (-1, weight.shape[0], *_windows(x.shape, _pair(weight.shape[2:]), **window))
    return x.then("convolution", shape, tensors=(weight, bias), **window)


def _relu(x: _Recorded, inplace: bool = False) -> _Recorded:
    activated = x.then("relu", x.shape)
    return x.becomes(activated) if inplace else activated


def _linear(x: _Recorded, weight: Tensor, bias: Tensor | None = None) -> _Recorded:
    if x.dim() != 2:
        raise NotImplementedError("only linear layers on features are supported")
    return x.then("linear", (-1, weight.shape[0]), tensors=(weight, bias))


def _batch_norm(
    x: _Recorded,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Recorded:
    _evaluating(training)
    return x.then("batch_norm", x.shape, tensors=(mean, variance, weight, bias), eps=eps)


def _max_pool(
    x: _Recorded,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    **_: Any,
) -> _Recorded:
    kernel = _pair(kernel_size)
    window: dict[str, Any] = {
        "strides": _pair(stride or kernel),
        "pads": _pair(padding),
        "dilations": _pair(dilation),
        "ceil": ceil_mode,
    }
    shape = (*x.shape[:2], *_windows(x.shape, kernel, **window))
    return x.then("max_pool", shape, kernel=kernel, **window)


def _average_pool(
    x: _Recorded,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> _Recorded:
    if _pair(padding) != (0, 0) or ceil_mode or divisor_override is not None:
        raise NotImplementedError("only plain averages are supported")
    kernel = _pair(kernel_size)
    strides = _pair(stride or kernel)
    sides = _windows(x.shape, kernel, strides, (0, 0), (1, 1))
    return x.then("average_pool", (*x.shape[:2], *sides), kernel=kernel, strides=strides)


def _pad(
    x: _Recorded, padding: tuple[int, ...], mode: str = "constant", value: float | None = None
) -> _Recorded:
    """Padding with a constant or a reflection; torch lists the axes from the last to the first."""
    if mode not in ("constant", "reflect"):
        raise NotImplementedError("only padding with constants and reflections is supported")
    if not any(padding):
        return _Recorded(x.operations, x.place)
    leading = (0,) * (4 - len(padding) // 2)
    before, after = (*leading, *padding[-2::-2]), (*leading, *padding[::-2])
    sides = zip(x.shape, before, after, strict=True)
    shape = tuple(n if n < 0 else n + b + a for n, b, a in sides)
    return x.then("pad", shape, before=before, after=after, mode=mode, value=value or 0.0)


def _dropout(
    x: _Recorded, p: float = 0.5, training: bool = False, inplace: bool = False
) -> _Recorded:
    _evaluating(training)
    return x


def _evaluating(training: bool) -> None:
    if training:
        raise NotImplementedError("the network must be in evaluation mode")


def _windows(
    shape: tuple[int, ...],
    kernel: Pair,
    strides: Pair,
    pads: Pair,
    dilations: Pair,
    *,
    ceil: bool = False,
) -> tuple[int, ...]:
    """Height and width of a window's output."""
    sides = []
    for n, extent, step, pad, dilation in zip(
        shape[2:], kernel, strides, pads, dilations, strict=True
    ):
        span = n + 2 * pad - dilation * (extent - 1) - 1
        sides.append((-(-span // step) if ceil else span // step) + 1)
    return tuple(sides)


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else tuple(value)


FUNCTIONS: dict[Any, Callable[..., _Recorded]] = {
    torch.conv2d: _convolution,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.relu: _relu,
    F.max_pool2d: _max_pool,
    torch.max_pool2d: _max_pool,
    F.avg_pool2d: _average_pool,
    F.dropout: _dropout,
    F.pad: _pad,
}
