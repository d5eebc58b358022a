"""What stands behind the feature maps of a Keras network: pooling, and the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from models.bundle import BundleError
from models.classifier import Outputs
from models.interchange.keras.file import Arrays
from models.interchange.keras.graph import KerasLayer
from models.interchange.linear import Affine, head_tensors, normalisation

ENDINGS: dict[str, Outputs] = {"softmax": "exclusive", "sigmoid": "independent"}
RESHAPED = ("Flatten", "Reshape")
UNPOOLED = "takes the maps without averaging them: a ResNet's head follows a global average pooling"


@dataclass
class KerasHead:
    """`layers`: the linear layers, with a ReLU between two of them; none in a backbone.

    `outputs`: what the model ends in, if it says; `pool`: the height and width of the maps, if the
    head averages only maps of that size; `notes`: as in `Imported`.
    """

    layers: list[Affine] = field(default_factory=list)
    outputs: Outputs | None = None
    pool: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def hidden(self) -> tuple[int, ...]:
        return tuple(layer.outputs for layer in self.layers[:-1])

    @property
    def classes(self) -> int:
        return self.layers[-1].outputs if self.layers else 0

    def tensors(self) -> dict[str, Tensor]:
        """The state dict of `models.resnet.make_head`."""
        return head_tensors(self.layers)


def read_head(nodes: Sequence[KerasLayer], layers: Mapping[str, Arrays]) -> KerasHead:
    """The head in what follows the last activation of the maps, in the order of the data.

    Raises:
        BundleError: it is none that `Architecture.head` can say; the message names the layer.
    """
    reading = _Reading(layers)
    for node in nodes:
        reading.add(node)
    return reading.finish()


def read_dense(names: Sequence[str], layers: Mapping[str, Arrays]) -> KerasHead:
    """The head of dense layers alone, of which no file says how they are activated."""
    return KerasHead([_affine(layers[name]) for name in names])


class _Reading:
    def __init__(self, layers: Mapping[str, Arrays]) -> None:
        self.arrays = layers
        self.head = KerasHead()
        self.pooled = False
        self.ended = False
        # Linear layers without a ReLU between them are one.
        self.open: Affine | None = None

    def add(self, node: KerasLayer) -> None:
        kind = node.kind
        if self.ended:
            raise BundleError(f"layer {node.name} follows the softmax or sigmoid of the output")
        if kind in ("GlobalAveragePooling2D", "Mean") and _pools(node) and not self.pooled:
            self.pooled = True
        elif kind == "AveragePooling2D" and not self.pooled and self.open is None:
            self._average(node)
        elif kind in RESHAPED:
            if not self.pooled:
                self.head.pool, self.pooled = (1, 1), True
        elif kind == "Dense" and self.pooled:
            self.put(_affine(self._of(node)))
            self.activate(node)
        elif kind == "Conv2D" and _of_one_pixel(node):
            kernel = self._of(node)["kernel"]
            self.put(_affine({**self._of(node), "kernel": kernel[0, 0]}))
            self.activate(node)
        elif kind == "BatchNormalization" and self.pooled:
            self.put(_normalising(node, self._of(node)))
        elif kind in ("Activation", "ReLU", "Softmax"):
            self.activate(node)
        elif kind == "Dense":
            raise BundleError(f"layer {node.name} {UNPOOLED}")
        else:
            raise BundleError(f"layer {node.name} is a {kind}: no plain ResNet has one")

    def _of(self, node: KerasLayer) -> Arrays:
        if not self.arrays.get(node.name):
            raise BundleError(f"layer {node.name} has no weights in the file")
        return self.arrays[node.name]

    def _average(self, node: KerasLayer) -> None:
        if node.config["padding"] != "valid":
            raise BundleError(f"layer {node.name} pads what it averages")
        height, width = node.config["pool_size"]
        self.head.pool, self.pooled = (height, width), True

    def put(self, affine: Affine) -> None:
        self.open = affine if self.open is None else _composed(self.open, affine)

    def activate(self, node: KerasLayer) -> None:
        kind = {"ReLU": "relu", "Softmax": "softmax"}.get(node.kind, node.activation)
        if kind == "linear":
            return
        if not self.pooled:
            raise BundleError(f"layer {node.name} activates maps before they are averaged")
        if kind in ENDINGS and self.open is not None:
            self.head.outputs, self.ended = ENDINGS[kind], True
            if kind == "softmax" and self.open.outputs == 1:
                raise BundleError(
                    f"layer {node.name} is a softmax over one class, which is 1 for every image: "
                    "train it with a sigmoid, or with two classes"
                )
        elif kind != "relu":
            raise BundleError(
                f"layer {node.name} activates by {kind}; a head's layers activate by ReLU, and its "
                "last by softmax or sigmoid"
            )
        elif self.open is not None:
            self.head.layers.append(self.open)
            self.open = None
        # Without a layer before it: averages of activated maps are not negative.

    def finish(self) -> KerasHead:
        if self.open is not None and self.open.is_scale:
            raise BundleError("its last layer is a normalisation: it gives features, not classes")
        if self.open is not None:
            self.head.layers.append(self.open)
        elif self.head.layers:
            raise BundleError("its last layer activates by ReLU: it gives features, not classes")
        elif self.pooled:
            self.head.notes.append("it has no head: its answers are features")
        else:
            self.head.notes.append(
                "it has no head and does not pool: its features are the averages of its maps"
            )
        if self.head.layers and not self.pooled:
            raise BundleError("classifies each pixel: its head follows no average pooling")
        return self.head


def _pools(node: KerasLayer) -> bool:
    if node.kind == "Mean" and list(node.config.get("axis") or ()) not in ([1, 2], [-3, -2]):
        raise BundleError(f"layer {node.name} averages something other than height and width")
    return True


def _of_one_pixel(node: KerasLayer) -> bool:
    return list(node.config["kernel_size"]) == [1, 1] and list(node.config["strides"]) == [1, 1]


def _affine(arrays: Arrays) -> Affine:
    kernel = arrays["kernel"]
    return Affine(kernel.T, arrays.get("bias", np.zeros(kernel.shape[1], kernel.dtype)))


def _normalising(node: KerasLayer, arrays: Arrays) -> Affine:
    return normalisation(
        arrays["moving_mean"],
        arrays["moving_variance"],
        node.config["epsilon"],
        arrays.get("gamma", 1.0),
        arrays.get("beta", 0.0),
    )


def _composed(first: Affine, second: Affine) -> Affine:
    if first.outputs != second.inputs:
        raise BundleError(
            f"its head has a layer of {first.outputs} outputs before one of {second.inputs}"
        )
    return first.then(second)
