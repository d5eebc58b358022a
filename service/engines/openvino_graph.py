"""A network as an OpenVINO model, built operation by operation while its own forward runs.

OpenVINO's own converter goes through TorchScript, which torch has deprecated, and reports each
conversion to its vendor; torch.fx patches modules for the whole process while it traces, under
the feet of engines that serve. A ResNet needs a dozen operations, and its weights stay where they
are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import openvino as ov
import torch
import torch.nn.functional as F
from openvino import opset14 as ops
from torch import Tensor

from models.classifier import Classifier

Ranges = Mapping[str, tuple[float, float]]


def build(classifier: Classifier, size: int, max_batch: int, ranges: Ranges) -> Any:
    """An `openvino.Model`: probabilities float32 [N, K] of uint8 [N, `size`, `size`, 3].

    N is anything from 1 to `max_batch`, so that all batch sizes share one set of weights.
    `ranges`, from `service.engines.calibrate` or empty, quantise the inputs of convolutions and of
    the head to 8 bits per tensor, and their weights to 8 bits per output channel.

    Raises:
        NotImplementedError: the network has an operation that no row below knows.
    """
    images = ops.parameter(
        ov.PartialShape([ov.Dimension(1, max_batch), size, size, 3]), ov.Type.u8, name="images"
    )
    normalise = classifier.normalise
    scaled = ops.multiply(ops.convert(images, "f32"), _constant(normalise.scale))
    pixels = ops.transpose(ops.add(scaled, _constant(normalise.shift)), [0, 3, 1, 2])
    limits = {id(classifier.network.get_submodule(n).weight): each for n, each in ranges.items()}
    logits = classifier.network(_Traced(pixels, limits)).node
    if classifier.temperature != 1.0:
        logits = ops.divide(logits, np.float32(classifier.temperature))
    probabilities = ops.softmax(logits, axis=1)
    return ov.Model([ops.result(probabilities)], [images], "classifier")


class _Traced:
    """Stands for a tensor in a network's forward: an OpenVINO node that torch's functions extend.

    `limits` are the ranges of convolutions' and linear layers' inputs, by their weight's id.
    """

    def __init__(self, node: Any, limits: Mapping[int, tuple[float, float]]) -> None:
        self.node = node
        self.limits = limits

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> _Traced:
        if function not in FUNCTIONS:
            name = getattr(function, "__name__", function)
            raise NotImplementedError(f"OpenVINO is not told how to compute {name}")
        x: _Traced = args[0]
        return FUNCTIONS[function](x, *args[1:], **(kwargs or {}))

    def then(self, node: Any) -> _Traced:
        return _Traced(node, self.limits)

    def dim(self) -> int:
        return 4  # Only normalisations ask, and they see images.

    @property
    def shape(self) -> tuple[int, ...]:
        """[-1, C, H, W]: N is open."""
        _, *known = self.node.get_output_partial_shape(0)
        return (-1, *(each.get_length() for each in known))

    def __add__(self, other: _Traced) -> _Traced:
        return self.then(ops.add(self.node, other.node))

    def __getitem__(self, index: tuple[slice, ...]) -> _Traced:
        """Whole axes in steps, as the shortcut of option A takes them."""
        axes = [axis for axis, each in enumerate(index) if each.step not in (None, 1)]
        if not axes:
            return self
        count = len(axes)
        steps = np.array([index[axis].step for axis in axes])
        limit = np.full(count, np.iinfo(np.int32).max)
        return self.then(ops.slice(self.node, np.zeros(count, int), limit, steps, np.array(axes)))

    def mean(self, axes: tuple[int, ...]) -> _Traced:
        return self.then(ops.reduce_mean(self.node, list(axes), keep_dims=False))


def _constant(tensor: Tensor, shape: tuple[int, ...] | None = None) -> Any:
    """The tensor's own memory as a constant."""
    array = tensor.detach().contiguous().numpy()
    return ops.constant(array if shape is None else array.reshape(shape), shared_memory=True)


def _convolution(
    x: _Traced,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Traced:
    if groups != 1 or isinstance(padding, str):
        raise NotImplementedError("OpenVINO is not told how to compute grouped convolutions")
    operand, kernel = _quantised(x, weight)
    pads, strides = list(_pair(padding)), list(_pair(stride))
    y = ops.convolution(operand, kernel, strides, pads, pads, list(_pair(dilation)))
    return x.then(y if bias is None else ops.add(y, _constant(bias, (1, -1, 1, 1))))


def _linear(x: _Traced, weight: Tensor, bias: Tensor | None = None) -> _Traced:
    operand, matrix = _quantised(x, weight)
    y = ops.matmul(operand, matrix, False, True)
    return x.then(y if bias is None else ops.add(y, _constant(bias)))


def _quantised(x: _Traced, weight: Tensor) -> tuple[Any, Any]:
    """Both operands, behind fake quantisation if the first one's range is known."""
    limits = x.limits.get(id(weight))
    if limits is None:
        return x.node, _constant(weight)
    low, high = (np.float32(limit) for limit in limits)
    operand = ops.fake_quantize(x.node, low, high, low, high, 256)
    largest = weight.detach().abs().amax(tuple(range(1, weight.ndim)), keepdim=True)
    # A channel of zeros needs a range too.
    top, bottom = (_constant(sign * largest.clamp(min=1e-12)) for sign in (1, -1))
    return operand, ops.fake_quantize(_constant(weight), bottom, top, bottom, top, 255)


def _batch_norm(
    x: _Traced,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Traced:
    if training:
        raise NotImplementedError("the network must be in evaluation mode")
    scale = weight / torch.sqrt(variance + eps)
    shift = bias - mean * scale
    shape = (1, -1, 1, 1)
    return x.then(ops.add(ops.multiply(x.node, _constant(scale, shape)), _constant(shift, shape)))


def _max_pool(
    x: _Traced,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    **_: Any,
) -> _Traced:
    strides, pads, kernel, dilations = (
        list(_pair(each)) for each in (stride or kernel_size, padding, kernel_size, dilation)
    )
    rounding = "ceil_torch" if ceil_mode else "floor"
    pooled = ops.max_pool(x.node, strides, dilations, pads, pads, kernel, rounding)
    return x.then(pooled.output(0))  # The second output has the maxima's places.


def _pad(
    x: _Traced, padding: tuple[int, ...], mode: str = "constant", value: float | None = None
) -> _Traced:
    """Constants around the last axes, which torch names from the last to the first."""
    before, after = list(padding[-2::-2]), list(padding[::-2])
    leading = [0] * (4 - len(before))
    return x.then(ops.pad(x.node, leading + before, leading + after, mode, np.float32(value or 0)))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


FUNCTIONS: dict[Any, Callable[..., _Traced]] = {
    torch.conv2d: _convolution,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.relu: lambda x, inplace=False: x.then(ops.relu(x.node)),
    F.max_pool2d: _max_pool,
    torch.max_pool2d: _max_pool,
    F.dropout: lambda x, p=0.5, training=False, inplace=False: x,
    F.pad: _pad,
}
