"""Random changes of an image beside its crop: operations, colours and light."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import Tensor

from models.data import auto_augment
from models.data.augment import Augmentation
from models.data.auto_augment import RandomOperations
from models.data.collection import Transform
from models.data.seeds import mix
from models.preprocess import Channels, InputSpec, Interpolation

# Of ImageNet's colours, from 0 to 1; the values that fb.resnet.torch's imagenet.lua has.
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
OPERATIONS = {"rand": auto_augment.rand, "trivial": auto_augment.trivial}


@dataclass(frozen=True, slots=True)
class Changes:
    """What changes in an image after its crop, in this order.

    `operations`: those of RandAugment or TrivialAugment; see `models.data.auto_augment`.
    `jitter`: brightness, contrast and saturation, in random order, are each multiplied by a
        factor from `1 - jitter`, or 0, to `1 + jitter`, as in fb.resnet.torch and torchvision.
        Grey images have no saturation, and the alpha of RGBA remains.
    `lighting`: standard deviation of the noise along the principal components of ImageNet's
        colours, equal for all pixels (Krizhevsky 2012, section 4.1).

    Raises:
        ValueError: `lighting` of grey images, whose noise has no colour to vary.
    """

    channels: Channels
    operations: RandomOperations | None = None
    jitter: float = 0.0
    lighting: float = 0.0

    def __post_init__(self) -> None:
        if self.lighting and self.channels == "grey":
            raise ValueError(
                "lighting is noise along the principal components of colours; grey images have "
                "none: leave it out"
            )

    def __call__(self, pixels: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """A changed image, uint8 [H, W, C] in the order of `channels`. Equal seeds change
        equally."""
        random = np.random.Generator(np.random.Philox(mix("changes", seed)))
        if self.channels == "bgr":
            pixels = pixels[:, :, ::-1]
        plane = pixels[:, :, 0] if self.channels == "grey" else pixels
        image = Image.fromarray(np.ascontiguousarray(plane))
        if self.operations:
            image = self.operations(image, random)
        if self.jitter:
            image = jittered(image, self.jitter, random)
        if self.lighting:
            image = lit(image, random.normal(0, self.lighting, 3))
        changed = np.asarray(image).reshape(pixels.shape)
        return np.ascontiguousarray(changed[:, :, ::-1] if self.channels == "bgr" else changed)

    def of_batch(self, images: Tensor, seeds: list[int], threads: Executor) -> Tensor:
        """Images uint8 [N, H, W, C] changed each by its seed, on their device."""
        changed = threads.map(self, images.cpu().numpy(), seeds)
        return torch.from_numpy(np.stack(list(changed))).to(images.device)


@dataclass(frozen=True, slots=True)
class Changed:
    """A crop, and then its changes: a transform of opened images."""

    crop: Transform
    changes: Changes

    def __call__(self, image: Image.Image, seed: int) -> NDArray[np.uint8]:
        return self.changes(self.crop(image, seed), seed)


def changes_for(augmentation: Augmentation, spec: InputSpec) -> Changes | None:
    """The changes of images for `spec`, or None.

    Raises:
        ValueError: see `Changes`.
    """
    return of_channels(augmentation, spec.channels, spec.interpolation)


def of_channels(
    augmentation: Augmentation, channels: Channels, interpolation: Interpolation
) -> Changes | None:
    operations = OPERATIONS.get(augmentation.auto_augment)
    if not (operations or augmentation.jitter or augmentation.lighting):
        return None
    return Changes(
        channels,
        operations(interpolation) if operations else None,
        augmentation.jitter,
        augmentation.lighting,
    )


def jittered(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    """The image with random brightness, contrast and saturation."""
    for number in random.permutation(len(ENHANCERS)):
        factor = random.uniform(max(0.0, 1 - strength), 1 + strength)
        image = ENHANCERS[number](image).enhance(factor)
    return image


def lit(image: Image.Image, shares: NDArray[np.float64]) -> Image.Image:
    """An RGB or RGBA image whose colours move along the principal components by `shares` [3] of
    their eigenvalues."""
    noise = 255 * EIGENVECTORS @ (EIGENVALUES * shares)
    levels = np.arange(256)
    tables = [np.rint(np.clip(levels + each, 0, 255)).astype(int) for each in noise]
    alpha = [levels] if image.mode == "RGBA" else []
    return image.point(np.concatenate([*tables, *alpha]).tolist())
