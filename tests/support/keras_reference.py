"""Keras's own networks, and small ones in the form of its CIFAR-10 example."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Nothing is compiled, and torch is here anyway.
os.environ["KERAS_BACKEND"] = "torch"

import h5py
import keras
import numpy as np
import torch
from keras import layers
from keras.src.applications import resnet
from keras.src.legacy.saving import legacy_h5_format
from numpy.typing import NDArray

from models.bundle import Bundle
from models.classifier import Normalise
from models.interchange import convert
from tests.support.random_weights import far, randomised
from tests.support.said import said

__all__ = [
    "application",
    "converted",
    "difference",
    "ending_in_logits",
    "keras",
    "layers",
    "logits",
    "narrow_body",
    "ours",
    "pixels",
    "random",
    "save",
    "second",
    "small",
    "transfer",
]


def application(name: str, classes: int = 1000) -> Any:
    """A network of `keras.applications` for images of any size, that ends in logits.

    Those of one name share their layers, and so their weights.
    """
    return ending_in_logits(application_body(name), classes)


@functools.lru_cache(maxsize=2)
def application_body(name: str) -> Any:
    return getattr(keras.applications, name)(
        include_top=False, weights=None, pooling="avg", input_shape=(None, None, 3)
    )


@functools.cache
def narrow_body(version: int, channels: int = 3, pooling: str | None = "avg") -> Any:
    """What `keras.applications` builds and names, with fewer blocks and channels."""
    first = version == 1
    stack = resnet.stack_residual_blocks_v1 if first else resnet.stack_residual_blocks_v2
    strides = (1, 2, 2, 2) if first else (2, 2, 2, 1)

    def stages(x: Any) -> Any:
        for number, filters, stride in zip((2, 3, 4, 5), (64, 16, 24, 32), strides, strict=True):
            x = stack(x, filters, 2, stride, name=f"conv{number}")
        return x

    return resnet.ResNet(
        stages,
        preact=not first,
        use_bias=True,
        include_top=False,
        weights=None,
        pooling=pooling,
        input_shape=(None, None, channels),
        name="resnet50" if first else "resnet50v2",
    )


def ending_in_logits(body: Any, classes: int = 1000) -> Any:
    logits = layers.Dense(classes, name="predictions")(body.output)
    return random(keras.Model(body.input, logits))


def small(
    blocks: tuple[int, ...] = (3, 3, 3),
    filters: int = 16,
    *,
    normed_shortcut: bool = False,
    preact: bool = False,
    side: int = 32,
    **changes: Any,
) -> Any:
    """The CIFAR-10 example's first version: 3x3 convolutions with biases, and SAME padding.

    `changes` are settings of every 3x3 convolution but the first.
    """

    def conv(x: Any, width: int, kernel: int, strides: int = 1, **settings: Any) -> Any:
        settings = {"padding": "same", **settings}
        return layers.Conv2D(width, kernel, strides, **settings)(x)

    def norm(x: Any) -> Any:
        return layers.BatchNormalization()(x)

    def relu(x: Any) -> Any:
        return layers.Activation("relu")(x)

    images = layers.Input((side, side, 3))
    x = conv(images, filters, 3)
    x = x if preact else relu(norm(x))
    for stage, count in enumerate(blocks):
        for index in range(count):
            width, strides = filters * 2**stage, 2 if stage > 0 and index == 0 else 1
            y = relu(norm(x)) if preact else x
            y = relu(norm(conv(y, width, 3, strides, **changes)))
            y = conv(y, width, 3, **changes)
            y = y if preact else norm(y)
            if strides > 1:
                x = conv(x, width, 1, strides)
                x = norm(x) if normed_shortcut else x
            x = layers.add([x, y])
            x = x if preact else relu(x)
    x = relu(norm(x)) if preact else x
    x = layers.Flatten()(layers.AveragePooling2D(-(-side // 2 ** (len(blocks) - 1)))(x))
    return random(keras.Model(images, layers.Dense(10)(x)))


def second(blocks: int = 2, filters: int = 16) -> Any:
    """The CIFAR-10 example's second version: pre-activation bottlenecks, the first of which
    neither normalises nor activates; the first stage expands by 4, the others by 2."""

    def unit(x: Any, width: int, kernel: int, strides: int = 1, *, bare: bool = False) -> Any:
        if not bare:
            x = layers.Activation("relu")(layers.BatchNormalization()(x))
        return layers.Conv2D(width, kernel, strides, padding="same")(x)

    images = layers.Input((32, 32, 3))
    x = layers.Conv2D(filters, 3, padding="same")(images)
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    for stage in range(3):
        out = filters * (2 if stage else 4)
        for index in range(blocks):
            strides = 2 if stage and not index else 1
            y = unit(x, filters, 1, strides, bare=not stage and not index)
            y = unit(unit(y, filters, 3), out, 1)
            x = x if index else unit(x, out, 1, strides, bare=True)
            x = layers.add([x, y])
        filters = out
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return random(keras.Model(images, layers.Dense(10)(x)))


def transfer(
    front: Sequence[Any],
    body: Any,
    head: Sequence[Any],
    shape: tuple[int | None, int | None, int] = (64, 64, 3),
) -> Any:
    """A network within a model that prepares its images and has its own head, as Keras's guide
    to transfer learning has it. `front` and `head` are layers, or functions."""
    x = images = layers.Input(shape)
    for layer in (*front, body, *head):
        x = layer(x)
    return random(keras.Model(images, x))


def random(model: Any, seed: int = 0) -> Any:
    """`model` with every weight, bias and statistic random, but for those of images."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        leaf = weight.path.rpartition("/")[2]
        if leaf in ("mean", "variance", "count"):
            continue
        weight.assign(randomised(leaf, tuple(weight.shape), generator))
    return model


def save(model: Any, path: Path) -> Path:
    """In the format of `path`'s name; `weights.h5` is what Keras 2 wrote of weights alone."""
    if path.name == "weights.h5":
        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, model)
    elif path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    return path


def logits(model: Any, images: NDArray[np.float32]) -> NDArray[Any]:
    """Float32 [N, classes] of float32 images [N, H, W, 3]."""
    found: NDArray[Any] = model(images, training=False).detach().numpy()
    return found


def converted(path: Path, **options: Any) -> Bundle:
    return convert.convert("keras", path, said(**options))


def pixels(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Two images of this height, width and channels."""
    return np.random.default_rng(1).integers(0, 256, (2, *shape), dtype=np.uint8)


def ours(bundle: Bundle, images: NDArray[np.uint8]) -> NDArray[Any]:
    """Logits of uint8 images, RGB if they have three channels, as the bundle prepares them."""
    if bundle.input.channels == "bgr":
        images = images[..., ::-1].copy()
    with torch.inference_mode():
        normalised = Normalise(bundle.input)(torch.from_numpy(images))
        found: NDArray[Any] = bundle.network()(normalised).numpy()
    return found


def difference(bundle: Bundle, model: Any, size: tuple[int, int] = (32, 32)) -> float:
    """Of a network that is given pixels as they are, in parts of what rounding explains."""
    images = pixels((*size, bundle.input.shape[2]))
    theirs = logits(model, images.astype(np.float32))
    return far(ours(bundle, images), theirs, bundle.network())
