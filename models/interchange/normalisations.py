"""How libraries normalise images, and what an affine function of pixels says of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.preprocess import CIFAR, IMAGENET, MOST_OF_SCALED, PerChannel

Normalisation = tuple[PerChannel, PerChannel]
"""Mean and standard deviation of each channel, for values from 0 to 1."""

BLACK: PerChannel = (0.0, 0.0, 0.0)
SCALE: PerChannel = (1 / 255, 1 / 255, 1 / 255)

OF_IMAGENET: Normalisation = (IMAGENET.mean, IMAGENET.std)
HALF: Normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# With the mean of the images' deviations, not the deviation of the data: many repositories use it.
OF_CIFAR10: Normalisation = (CIFAR.mean, (0.2023, 0.1994, 0.2010))
OF_CIFAR100: Normalisation = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
# Red first; Caffe and Keras's V1 networks see blue first.
CAFFE: Normalisation = ((123.68 / 255, 116.779 / 255, 103.939 / 255), SCALE)

OF_RGB: tuple[Normalisation, ...] = (
    OF_IMAGENET,
    HALF,
    (CIFAR.mean, CIFAR.std),
    OF_CIFAR10,
    OF_CIFAR100,
    (BLACK, (1.0, 1.0, 1.0)),  # values from 0 to 1
    (BLACK, SCALE),  # values from 0 to 255
    CAFFE,
)
OF_GREY: tuple[Normalisation, ...] = (
    ((0.5,), (0.5,)),
    ((0.1307,), (0.3081,)),  # MNIST
    ((0.0,), (1.0,)),
    ((0.0,), (1 / 255,)),
)


def is_of_pixels(scale: NDArray[np.float64], shift: NDArray[np.float64]) -> bool:
    """Whether `scale` * x + `shift`, both [C], can only normalise values from 0 to 255."""
    return bool(max(*np.abs(shift / scale), *(1 / scale)) > MOST_OF_SCALED)


def of_affine(
    scale: NDArray[np.float64], shift: NDArray[np.float64], *, pixels: bool
) -> Normalisation:
    """What `scale` * x + `shift`, both [C] and `scale` above 0, does, with the digits that float32
    holds. `pixels`: x is from 0 to 255, not to 1."""
    top = 255 if pixels else 1
    mean, std = (
        tuple(float(f"{value / top:.7g}") + 0.0 for value in values)  # No zero is negative.
        for values in (-shift / scale, 1 / scale)
    )
    return mean, std
