"""A network as an OpenVINO model, built from the operations of its forward.

OpenVINO's own converter uses TorchScript, which torch has deprecated, and reports each conversion
to its vendor. A ResNet needs a dozen operations, and its weights are not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.classifier import Classifier
from models.operations import Operation, record
from service.engines.openvino_library import ops, ov

NEXT_TO_NOTHING = np.float32(1e-30)
Ranges = Mapping[str, tuple[float, float]]


def build(
    classifier: Classifier, shape: tuple[int, int, int], max_batch: int, ranges: Ranges
) -> Any:
    """An `openvino.Model`: probabilities float32 [N, K] of pixels float32 [N, H, W, C] of this
    shape, and the maps [N, F, h, w] that they are made of; the maps alone if there are no classes.

    N is anything from 1 to `max_batch`, so that all batch sizes share one set of weights.
    `ranges`, from `service.engines.quantisation` or empty, quantise the inputs of convolutions and
    of the head to 8 bits per tensor, and their weights to 8 bits per output channel.

    Raises:
        NotImplementedError: the network has an operation that `models.operations` does not know.
    """
    height, width, channels = shape
    dimensions = ov.PartialShape([ov.Dimension(1, max_batch), *shape])
    images = ops.parameter(dimensions, ov.Type.f32, name="images")
    normalise = classifier.normalise
    scaled = ops.multiply(images, _constant(normalise.scale))
    pixels = ops.transpose(ops.add(scaled, _constant(normalise.shift)), [0, 3, 1, 2])
    limits = {
        id(classifier.network.get_submodule(name).weight): limit for name, limit in ranges.items()
    }
    nodes, operations = [pixels], record(classifier.network, (channels, height, width))
    mirrors = classifier.views == "mirrored"
    if mirrors:
        nodes = [ops.concat([pixels, _mirrored(pixels, width)], 0)]
    for operation in operations[1:]:
        inputs = [nodes[place] for place in operation.inputs]
        if operation.kind == "mean" and mirrors:
            (place,) = operation.inputs
            inputs = [_average(nodes[place], operations[place].shape[3])]
            nodes[place] = inputs[0]
        if operation.tensors and id(operation.tensors[0]) in limits:
            node = _quantised(operation, inputs[0], limits[id(operation.tensors[0])])
        else:
            node = NODES[operation.kind](operation, *inputs)
        nodes.append(node)
    (pooling,) = [operation for operation in operations if operation.kind == "mean"]
    outputs = [nodes[pooling.inputs[0]]]
    if classifier.network.architecture.num_classes:
        outputs.insert(0, _probabilities(nodes[-1], classifier))
    return ov.Model([ops.result(output) for output in outputs], [images], "classifier")


def _mirrored(images: Any, width: int) -> Any:
    """From left to right, [N, C, h, `width`]."""
    return ops.gather(images, np.arange(width)[::-1].copy(), 3)


def _average(maps: Any, width: int) -> Any:
    """Of the views' maps [2N, F, h, `width`], the second half mirrored back: [N, F, h, w]."""
    straight, mirrored = ops.split(maps, 0, 2).outputs()
    half = np.float32(0.5)
    return ops.add(ops.multiply(straight, half), ops.multiply(_mirrored(mirrored, width), half))


def _probabilities(logits: Any, classifier: Classifier) -> Any:
    if classifier.temperature != 1.0:
        logits = ops.divide(logits, np.float32(classifier.temperature))
    exclusive = classifier.outputs == "exclusive"
    return ops.softmax(logits, axis=1) if exclusive else ops.sigmoid(logits)


def _constant(tensor: Tensor, shape: tuple[int, ...] | None = None) -> Any:
    """The tensor as a constant that shares its memory."""
    array = tensor.detach().contiguous().numpy()
    return ops.constant(array if shape is None else array.reshape(shape), shared_memory=True)


def _convolution(operation: Operation, x: Any, weight: Any) -> Any:
    strides, dilations, pads = (
        list(operation.options[name]) for name in ("strides", "dilations", "pads")
    )
    y = ops.convolution(x, weight, strides, pads, pads, dilations)
    return _biased(operation, y, (1, -1, 1, 1))


def _linear(operation: Operation, x: Any, weight: Any) -> Any:
    return _biased(operation, ops.matmul(x, weight, False, True), (-1,))


def _biased(operation: Operation, y: Any, shape: tuple[int, ...]) -> Any:
    return ops.add(y, _constant(operation.tensors[1], shape)) if len(operation.tensors) > 1 else y


def _quantised(operation: Operation, x: Any, limits: tuple[float, float]) -> Any:
    """A convolution or a linear layer with both operands fake-quantised."""
    weight = operation.tensors[0]
    low, high = (np.float32(limit) for limit in limits)
    operand = ops.fake_quantize(x, low, high, low, high, 256)
    largest = weight.detach().abs().amax(tuple(range(1, weight.ndim)), keepdim=True)
    # A channel of zeros needs a range, too.
    top, bottom = (_constant(sign * largest.clamp(min=1e-12)) for sign in (1, -1))
    rounded = ops.fake_quantize(_constant(weight), bottom, top, bottom, top, 255)
    result = WEIGHTED[operation.kind](operation, operand, rounded)
    # Without a bias, OpenVINO (2026.4) computes an 8-bit convolution wrong if batches have any size
    # and two operations use the result, as of the bare stem of a pre-activation network. It drops
    # zeros, but not this.
    return result if len(operation.tensors) > 1 else ops.add(result, NEXT_TO_NOTHING)


def _batch_norm(operation: Operation, x: Any) -> Any:
    mean, variance, weight, bias = operation.tensors
    scale = weight / torch.sqrt(variance + operation.options["eps"])
    shift = bias - mean * scale
    shape = (1, -1, 1, 1)
    return ops.add(ops.multiply(x, _constant(scale, shape)), _constant(shift, shape))


def _max_pool(operation: Operation, x: Any) -> Any:
    strides, dilations, pads, kernel = (
        list(operation.options[name]) for name in ("strides", "dilations", "pads", "kernel")
    )
    rounding = "ceil_torch" if operation.options["ceil"] else "floor"
    pooled = ops.max_pool(x, strides, dilations, pads, pads, kernel, rounding)
    return pooled.output(0)  # The second output holds the indices of the maxima.


def _average_pool(operation: Operation, x: Any) -> Any:
    strides, kernel = (list(operation.options[name]) for name in ("strides", "kernel"))
    return ops.avg_pool(x, strides, [0, 0], [0, 0], kernel, exclude_pad=True)


def _pad(operation: Operation, x: Any) -> Any:
    before, after = (list(operation.options[name]) for name in ("before", "after"))
    mode, value = operation.options["mode"], np.float32(operation.options["value"])
    return ops.pad(x, before, after, mode, value)


def _slice(operation: Operation, x: Any) -> Any:
    steps = operation.options["steps"]
    axes, strides = np.array(list(steps)), np.array(list(steps.values()))
    limit = np.full(len(axes), np.iinfo(np.int32).max)
    return ops.slice(x, np.zeros(len(axes), int), limit, strides, axes)


WEIGHTED: dict[str, Callable[[Operation, Any, Any], Any]] = {
    "convolution": _convolution,
    "linear": _linear,
}
# Builds an operation's node from the nodes of its operands.
NODES: dict[str, Callable[..., Any]] = {
    "convolution": lambda operation, x: _convolution(operation, x, _constant(operation.tensors[0])),
    "linear": lambda operation, x: _linear(operation, x, _constant(operation.tensors[0])),
    "batch_norm": _batch_norm,
    "relu": lambda operation, x: ops.relu(x),
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "pad": _pad,
    "add": lambda operation, x, y: ops.add(x, y),
    "slice": _slice,
    "mean": lambda operation, x: ops.reduce_mean(x, [2, 3], keep_dims=False),
}
