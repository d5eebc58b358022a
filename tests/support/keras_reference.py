"""Keras's own networks, and small ones in the form of its CIFAR-10 example."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

# Nothing is compiled, and torch is here anyway.
os.environ["KERAS_BACKEND"] = "torch"

import h5py
import keras
import numpy as np
from keras import layers
from keras.src.applications import resnet
from keras.src.legacy.saving import legacy_h5_format
from numpy.typing import NDArray

from tests.support.random_weights import randomised

__all__ = [
    "application",
    "ending_in_logits",
    "keras",
    "layers",
    "logits",
    "narrow_body",
    "random",
    "save",
    "small",
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
def narrow_body(version: int) -> Any:
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
        pooling="avg",
        input_shape=(None, None, 3),
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


def random(model: Any, seed: int = 0) -> Any:
    """`model` with every weight, bias and statistic random."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        leaf = weight.path.rpartition("/")[2]
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
