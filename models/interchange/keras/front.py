"""What the layers of a Keras model in front of its network say of the images' preparation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import BundleError
from models.interchange.keras.file import Arrays
from models.interchange.keras.graph import KerasLayer

# Values of images that were scaled to [0, 1] have no mean or deviation beyond this.
MOST_OF_SCALED = 2.0
INTERPOLATIONS = {
    "nearest": "nearest",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "lanczos3": "lanczos",
}
# Applied by Keras to the normalised values, as its documentation of `Normalization` has it.
LEAST_DEVIATION = 1e-7
INSTEAD = "save the model without it, and give --mean, --std and --channels in its place"


@dataclass
class KerasFront:
    """The preparation so far.

    `scale`, `shift`: of each channel, in the order in which the network sees them; the images'
        values are from 0 to 255.
    `order`: for each channel that the network sees, which one of the images' it is.
    `sides`: height and width of the images now, if they are fixed.
    `fields`: what the layers determine of an `InputSpec`, and `said` which of them are certain.
    `norm`: a learnt normalisation of the images, behind all of that.
    `first`: the channels are the first axis of an image.
    """

    channels: int
    sides: tuple[int, int] | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    norm: KerasLayer | None = None
    scale: NDArray[Any] = field(init=False)
    shift: NDArray[Any] = field(init=False)
    order: list[int] = field(init=False)
    first: bool = False

    def __post_init__(self) -> None:
        self.scale, self.shift = np.ones(self.channels), np.zeros(self.channels)
        self.order = list(range(self.channels))

    def affine(self, node: KerasLayer, scale: Any, shift: Any) -> None:
        """Multiplies by `scale` and adds `shift`: numbers, or one for each channel."""
        parts = []
        for value in (scale, shift):
            array = np.asarray(value, np.float64)
            last = array.shape[-1:] in ((), (1,), (self.channels,)) and not self.first
            if array.size != 1 and (array.size != self.channels or not last):
                raise BundleError(f"layer {node.name} normalises something other than channels")
            parts.append(np.broadcast_to(array.reshape(-1), (self.channels,)))
        self.scale = self.scale * parts[0]
        self.shift = self.shift * parts[0] + parts[1]

    def permute(self, order: Sequence[int]) -> None:
        self.order = [self.order[index] for index in order]
        self.scale, self.shift = self.scale[list(order)], self.shift[list(order)]


def read_front(
    nodes: Sequence[KerasLayer], layers: Mapping[str, Arrays], channels: int, *, first: bool
) -> KerasFront:
    """What the layers from the images to the network say, in the order of the data.

    `channels`: what the network's first convolution sees. `first`: the channels are the first
    axis of images ("channels_first").

    Raises:
        BundleError: a layer prepares images as no `InputSpec` can say; the message names it.
    """
    shape = _shape(nodes[0])
    sides = (shape[1:] if first else shape[:2]) if shape else (None, None)
    front = KerasFront(channels, first=first)
    height, width = sides
    if height is not None and width is not None:
        front.sides = height, width
        front.fields["size"] = front.sides
        front.said.add("size")
    for node in nodes[1:]:
        if front.norm is not None:
            raise BundleError(f"layer {node.name} stands between a norm of images and the stem")
        if node.kind not in READERS:
            raise BundleError(f"layer {node.name} is a {node.kind}: no plain ResNet has one")
        READERS[node.kind](front, node, layers.get(node.name, {}))
    _finish(front)
    return front


def _shape(images: KerasLayer) -> list[int | None]:
    """The shape of an image that the model takes, [H, W, C] or [C, H, W], if it says one."""
    shape = images.config.get("batch_shape") or images.config.get("batch_input_shape")
    if not isinstance(shape, list | tuple) or len(shape) != 4:
        return []
    return [side if isinstance(side, int) and side > 0 else None for side in shape[1:]]


def _finish(front: KerasFront) -> None:
    """Sets the fields of mean, deviation and channels."""
    reversed_order = list(range(front.channels))[::-1]
    if front.channels == 3 and front.order == reversed_order:
        front.fields["channels"] = "bgr"
        front.said.add("channels")
    elif front.order != list(range(front.channels)):
        raise BundleError(f"takes the channels {front.order} of its images, in that order")
    if (front.scale == 1).all() and not front.shift.any():
        return
    if not (front.scale > 0).all() or not np.isfinite([*front.scale, *front.shift]).all():
        raise BundleError("scales its images by nothing, or by negative numbers")
    mean, std = -front.shift / front.scale, 1 / front.scale
    if max(*np.abs(mean), *std) > MOST_OF_SCALED:
        mean, std = mean / 255, std / 255
        front.said |= {"mean", "std"}
    else:
        front.notes.append("its preprocessing takes values from 0 to 1, as it seems")
    # The digits that float32 holds.
    front.fields["mean"] = tuple(float(f"{value:.7g}") + 0.0 for value in mean)
    front.fields["std"] = tuple(float(f"{value:.7g}") for value in std)


Reader = Callable[[KerasFront, KerasLayer, Arrays], None]


def _rescaling(front: KerasFront, node: KerasLayer, _: Arrays) -> None:
    front.affine(node, node.config["scale"], node.config["offset"])


def _normalization(front: KerasFront, node: KerasLayer, arrays: Arrays) -> None:
    mean, variance = (
        arrays.get(name) if node.config.get(name) is None else node.config[name]
        for name in ("mean", "variance")
    )
    if mean is None or variance is None:
        raise BundleError(f"layer {node.name} was never adapted: it has no mean and variance")
    deviation = np.maximum(np.sqrt(np.asarray(variance, np.float64)), LEAST_DEVIATION)
    mean = np.asarray(mean, np.float64)
    if node.config.get("invert"):
        front.affine(node, deviation, mean)
    else:
        front.affine(node, 1 / deviation, -mean / deviation)


def _norm(front: KerasFront, node: KerasLayer, _: Arrays) -> None:
    front.norm = node


def _operand(node: KerasLayer) -> Any:
    """The constant of an operation on a tensor and a constant; the tensor must be the first."""
    positional, named = node.constants
    if len(node.sources) == 1:
        if len(positional) == 2 and positional[0] is None:
            return positional[1]
        if len(positional) == 2 and node.kind in ("Add", "Multiply"):
            return positional[0]
        # Keras 2.
        if not positional and named.get("y") is not None:
            return named["y"]
    raise BundleError(f"layer {node.name} computes with images what no preprocessing does")


def _arithmetic(scaled: Callable[[Any], tuple[Any, Any]]) -> Reader:
    def read(front: KerasFront, node: KerasLayer, _: Arrays) -> None:
        try:
            value = np.asarray(_operand(node), np.float64)
        except (ValueError, TypeError):
            raise BundleError(f"layer {node.name} computes with what is no number") from None
        with np.errstate(divide="ignore"):
            front.affine(node, *scaled(value))

    return read


ADD, SUBTRACT = _arithmetic(lambda y: (1.0, y)), _arithmetic(lambda y: (1.0, -y))
MULTIPLY, DIVIDE = _arithmetic(lambda y: (y, 0.0)), _arithmetic(lambda y: (1 / y, 0.0))
# What Keras 2 calls the operations.
LAMBDAS: dict[str, Reader] = {
    **dict.fromkeys(("math.add", "__operators__.add"), ADD),
    **dict.fromkeys(("math.subtract", "__operators__.sub"), SUBTRACT),
    **dict.fromkeys(("math.multiply", "__operators__.mul"), MULTIPLY),
    **dict.fromkeys(("math.truediv", "math.divide"), DIVIDE),
    "cast": lambda front, node, arrays: None,
}


def _tf_operation(front: KerasFront, node: KerasLayer, arrays: Arrays) -> None:
    name = str(node.config.get("function", node.name))
    if name not in LAMBDAS:
        raise BundleError(
            f"layer {node.name} is TensorFlow's operation {name}, which is not read: {INSTEAD}"
        )
    LAMBDAS[name](front, node, arrays)


def _lambda(front: KerasFront, node: KerasLayer, _: Arrays) -> None:
    raise BundleError(
        f"layer {node.name} is a Lambda: it holds Python code, which is not executed; {INSTEAD}"
    )


def _get_item(front: KerasFront, node: KerasLayer, _: Arrays) -> None:
    key = node.constants[0][1] if len(node.constants[0]) == 2 else None
    parts = list(key) if isinstance(key, list | tuple) else [key]
    whole = (Ellipsis, slice(None, None, None), slice(None, None, 1))
    if parts[-1] != slice(None, None, -1) or any(part not in whole for part in parts[:-1]):
        raise BundleError(f"layer {node.name} takes a part of its images")
    if parts[0] is not Ellipsis and len(parts) != 4:
        raise BundleError(f"layer {node.name} turns its images over")
    front.permute(range(front.channels)[::-1])


def _flip(front: KerasFront, node: KerasLayer, _: Arrays) -> None:
    if node.config.get("axis") not in (-1, 3):
        raise BundleError(f"layer {node.name} turns its images over")
    front.permute(range(front.channels)[::-1])


def _stack(front: KerasFront, node: KerasLayer, _: Arrays) -> None:
    """Made by `importer`, of a stack of single channels."""
    front.permute(node.config["order"])


def _resizing(front: KerasFront, node: KerasLayer, _: Arrays) -> None:
    config = node.config
    sides = (config["height"], config["width"])
    if front.sides == sides:
        return
    if front.sides is not None:
        raise BundleError(
            f"layer {node.name} resizes images of {front.sides[0]}x{front.sides[1]} pixels, which "
            "were resized to that before: a bundle resizes once"
        )
    if config.get("pad_to_aspect_ratio"):
        raise BundleError(
            f"layer {node.name} pads images before it resizes them (pad_to_aspect_ratio): save "
            "the model without it, and give --size, --crop letterbox"
        )
    cropped = bool(config.get("crop_to_aspect_ratio"))
    if cropped and sides[0] != sides[1]:
        raise BundleError(
            f"layer {node.name} crops images to the proportions of {sides[0]}x{sides[1]} before "
            "it resizes them: only squares can be said"
        )
    interpolation = config.get("interpolation", "bilinear")
    if interpolation not in INTERPOLATIONS:
        raise BundleError(f"layer {node.name} interpolates by {interpolation}, which is not known")
    front.fields |= {
        "size": sides,
        "resize": sides,
        "crop": "before_resize" if cropped else "squash",
        "interpolation": INTERPOLATIONS[interpolation],
    }
    front.said |= {"size", "resize", "crop"}
    if config.get("antialias"):
        front.said.add("interpolation")
    else:
        front.notes.append(
            f"the layer {node.name} shrinks images without averaging (antialias=False); here they "
            "are averaged"
        )
    front.sides = sides


def _center_crop(front: KerasFront, node: KerasLayer, _: Arrays) -> None:
    sides = (node.config["height"], node.config["width"])
    if front.sides == sides:
        return
    if front.sides is None:
        front.fields["size"] = sides
        front.said.add("size")
    else:
        beside = [whole - part for whole, part in zip(front.sides, sides, strict=True)]
        if front.fields.get("crop") == "before_resize" or min(beside) < 0:
            raise BundleError(f"layer {node.name} crops what is smaller, or already cropped")
        # Keras rounds half a pixel down, a bundle to even.
        if any(round(rest / 2) != rest // 2 for rest in beside):
            raise BundleError(
                f"layer {node.name} cuts {sides[0]}x{sides[1]} out of "
                f"{front.sides[0]}x{front.sides[1]}: its corner lies between pixels"
            )
        front.fields |= {"size": sides, "resize": front.sides}
        front.said |= {"size", "resize"}
    front.sides = sides


def _random_crop(front: KerasFront, node: KerasLayer, _: Arrays) -> None:
    if front.sides != (node.config["height"], node.config["width"]):
        raise BundleError(
            f"layer {node.name} is a RandomCrop, and what it does at inference differs from one "
            "version of Keras to another: save the model without it"
        )


def _cast(front: KerasFront, node: KerasLayer, _: Arrays) -> None:
    if not str(node.config.get("dtype", "float32")).startswith(("float", "bfloat")):
        raise BundleError(f"layer {node.name} rounds its images")


READERS: dict[str, Reader] = {
    "Rescaling": _rescaling,
    "Normalization": _normalization,
    "BatchNormalization": _norm,
    "Add": ADD,
    "Subtract": SUBTRACT,
    "Multiply": MULTIPLY,
    "TrueDivide": DIVIDE,
    "Divide": DIVIDE,
    "TFOpLambda": _tf_operation,
    "SlicingOpLambda": _tf_operation,
    "Lambda": _lambda,
    "GetItem": _get_item,
    "Flip": _flip,
    "Stack": _stack,
    "Resizing": _resizing,
    "CenterCrop": _center_crop,
    "RandomCrop": _random_crop,
    "Cast": _cast,
}
