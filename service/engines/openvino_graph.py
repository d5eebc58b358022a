"""A network as an OpenVINO model, built operation by operation from its torch.fx graph.

OpenVINO's own converter goes through TorchScript, which torch has deprecated, and reports each
conversion to its vendor. A ResNet needs a dozen operations, and the weights stay where they are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import openvino as ov
import torch
import torch.nn.functional as F
from openvino import opset13 as ops
from torch import Tensor, fx, nn

from models.classifier import Classifier
from models.resnet import NormReLU

Ranges = Mapping[str, tuple[float, float]]
LEAVES = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.MaxPool2d, nn.Dropout, nn.Identity)


def build(classifier: Classifier, size: int, max_batch: int, ranges: Ranges | None = None) -> Any:
    """An `openvino.Model`: probabilities float32 [N, K] of uint8 [N, `size`, `size`, 3].

    N is anything from 1 to `max_batch`, so that all batch sizes share one set of weights.
    `ranges`, from `service.engines.calibrate`, quantises the inputs of convolutions and of the
    head to 8 bits per tensor, and their weights to 8 bits per output channel.

    Raises:
        NotImplementedError: the network has an operation that no row below knows.
    """
    images = ops.parameter(
        ov.PartialShape([ov.Dimension(1, max_batch), size, size, 3]), ov.Type.u8, name="images"
    )
    normalise = classifier.normalise
    scaled = ops.multiply(ops.convert(images, "f32"), _constant(normalise.scale))
    pixels = ops.transpose(ops.add(scaled, _constant(normalise.shift)), [0, 3, 1, 2])
    logits = _Builder(classifier.network, ranges or {}).run(pixels)
    probabilities = ops.softmax(logits, axis=1)
    return ov.Model([ops.result(probabilities)], [images], "classifier")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LEAVES)


class _Builder(fx.Interpreter):
    """Runs the network's graph with OpenVINO nodes in the place of tensors."""

    def __init__(self, network: nn.Module, ranges: Ranges) -> None:
        super().__init__(fx.GraphModule(network, _Tracer().trace(network)))
        self._ranges = ranges

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        build = next((row for kind, row in MODULES.items() if isinstance(module, kind)), None)
        if build is None:
            raise NotImplementedError(f"{target}: OpenVINO is not told how to {type(module)}")
        return build(module, args[0], self._ranges.get(target))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target not in FUNCTIONS:
            raise NotImplementedError(f"OpenVINO is not told how to {target}")
        return FUNCTIONS[target](*args, **kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target != "mean":
            raise NotImplementedError(f"OpenVINO is not told how to .{target}")
        return ops.reduce_mean(args[0], list(args[1]), keep_dims=False)


def _constant(tensor: Tensor, shape: tuple[int, ...] | None = None) -> Any:
    """The tensor's own memory as a constant."""
    array = tensor.detach().contiguous().numpy()
    return ops.constant(array if shape is None else array.reshape(shape), shared_memory=True)


def _convolution(conv: nn.Conv2d, x: Any, limits: tuple[float, float] | None) -> Any:
    padding, strides = list(_pair(conv.padding)), list(_pair(conv.stride))
    x, weight = _quantised(x, conv.weight, limits)
    y = ops.convolution(x, weight, strides, padding, padding, list(_pair(conv.dilation)))
    return y if conv.bias is None else ops.add(y, _constant(conv.bias, (1, -1, 1, 1)))


def _linear(linear: nn.Linear, x: Any, limits: tuple[float, float] | None) -> Any:
    x, weight = _quantised(x, linear.weight, limits)
    return ops.add(ops.matmul(x, weight, False, True), _constant(linear.bias))


def _quantised(x: Any, weight: Tensor, limits: tuple[float, float] | None) -> tuple[Any, Any]:
    """Both operands, behind fake quantisation if there are `limits` for the first."""
    if limits is None:
        return x, _constant(weight)
    low, high = (np.float32(limit) for limit in limits)
    x = ops.fake_quantize(x, low, high, low, high, 256)
    largest = weight.detach().abs().amax(tuple(range(1, weight.ndim)), keepdim=True)
    # A channel of zeros needs a range too.
    top, bottom = (_constant(sign * largest.clamp(min=1e-12)) for sign in (1, -1))
    return x, ops.fake_quantize(_constant(weight), bottom, top, bottom, top, 255)


def _batch_norm(norm: nn.BatchNorm2d, x: Any, _: object) -> Any:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    shape = (1, -1, 1, 1)
    y = ops.add(ops.multiply(x, _constant(scale, shape)), _constant(shift, shape))
    return ops.relu(y) if isinstance(norm, NormReLU) else y


def _max_pool(pool: nn.MaxPool2d, x: Any, _: object) -> Any:
    strides, padding, kernel = (
        list(_pair(each)) for each in (pool.stride, pool.padding, pool.kernel_size)
    )
    pooled = ops.max_pool(x, strides, [1, 1], padding, padding, kernel)
    return pooled.output(0)  # The second output has the maxima's places.


def _pad(
    x: Any, padding: tuple[int, ...], mode: str = "constant", value: float | None = None
) -> Any:
    """Constants around the last axes, which torch names from the last to the first."""
    before, after = list(padding[-2::-2]), list(padding[::-2])
    leading = [0] * (4 - len(before))
    return ops.pad(x, leading + before, leading + after, mode, np.float32(value or 0))


def _slice(x: Any, index: tuple[slice, ...]) -> Any:
    """Whole axes in steps, as the shortcut of option A takes them."""
    axes = [axis for axis, each in enumerate(index) if each.step not in (None, 1)]
    if not axes:
        return x
    steps = [index[axis].step for axis in axes]
    count = len(axes)
    limit = np.full(count, np.iinfo(np.int32).max)
    return ops.slice(x, np.zeros(count, int), limit, np.array(steps), np.array(axes))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


MODULES: dict[type[nn.Module], Callable[[Any, Any, Any], Any]] = {
    nn.Conv2d: _convolution,
    nn.BatchNorm2d: _batch_norm,
    nn.Linear: _linear,
    nn.MaxPool2d: _max_pool,
    nn.Dropout: lambda module, x, _: x,
    nn.Identity: lambda module, x, _: x,
}
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.relu: lambda x, inplace=False: ops.relu(x),
    operator.add: ops.add,
    torch.add: ops.add,
    F.pad: _pad,
    operator.getitem: _slice,
}
