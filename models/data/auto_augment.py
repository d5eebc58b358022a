"""RandAugment and TrivialAugment: random operations on an image, of random or fixed strength.

Both choose from the same 14 operations. The ranges of strength are those of torchvision, which
follow the papers' code; images that an operation moves leave black behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from models.preprocess import Interpolation

LEVELS = 31  # Strengths, from 0.
RAND_OPERATIONS, RAND_LEVEL = 2, 9
# Pillow moves pixels by no wider filter.
MOVING: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.BICUBIC,
}
Operation = Callable[[Image.Image, float, Image.Resampling], Image.Image]


def _affine(*matrix: float) -> Callable[[Image.Image, Image.Resampling], Image.Image]:
    def moved(image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resampling)

    return moved


def _enhanced(
    enhancer: Callable[[Image.Image], ImageEnhance._Enhance],
) -> Operation:
    return lambda image, strength, _: enhancer(image).enhance(1 + strength)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, strength, _: image,
    "shear_x": lambda image, strength, how: _affine(1, strength, 0, 0, 1, 0)(image, how),
    "shear_y": lambda image, strength, how: _affine(1, 0, 0, strength, 1, 0)(image, how),
    "translate_x": lambda image, strength, how: _affine(1, 0, -int(strength), 0, 1, 0)(image, how),
    "translate_y": lambda image, strength, how: _affine(1, 0, 0, 0, 1, -int(strength))(image, how),
    "rotate": lambda image, strength, how: image.rotate(strength, how),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "posterize": lambda image, strength, _: ImageOps.posterize(image, int(strength)),
    "solarize": lambda image, strength, _: ImageOps.solarize(image, strength),  # type: ignore[arg-type]
    "autocontrast": lambda image, strength, _: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, _: ImageOps.equalize(image),
}
MOVES = ("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate")
BOTH_WAYS = (*MOVES[1:], "brightness", "color", "contrast", "sharpness")


class Ranges(NamedTuple):
    """The greatest strength of each kind of operation. `shift` is in pixels, or a `share` of the
    side if that is above 0; `turn` in degrees; `bits` is the greatest number of bits dropped."""

    shear: float
    shift: float
    share: float
    turn: float
    colour: float
    bits: int

    def strength(self, name: str, level: float, width: int, height: int) -> float:
        """The strength of an operation at a level from 0 to 1."""
        match name:
            case "shear_x" | "shear_y":
                return self.shear * level
            case "translate_x" | "translate_y":
                side = width if name == "translate_x" else height
                return (self.share * side or self.shift) * level
            case "rotate":
                return self.turn * level
            case "posterize":
                return 8 - round(self.bits * level)
            case "solarize":
                return 255 * (1 - level)
            case _:
                return self.colour * level


RAND = Ranges(shear=0.3, shift=0, share=150 / 331, turn=30, colour=0.9, bits=4)
TRIVIAL = Ranges(shear=0.99, shift=32, share=0, turn=135, colour=0.99, bits=6)


@dataclass(frozen=True, slots=True)
class RandomOperations:
    """`count` operations, one after another, each equally likely; half of those that have a
    direction go the other way.

    `level`: their strength, of 0 to 30; None draws it anew for each operation.
    """

    ranges: Ranges
    count: int
    level: int | None
    interpolation: Interpolation = "nearest"

    def __call__(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        """An image of mode L, RGB or RGBA after the operations. Colours of an RGBA image change
        alone; its alpha moves with them."""
        names = tuple(OPERATIONS)
        for _ in range(self.count):
            name = names[random.integers(len(names))]
            level = int(random.integers(LEVELS)) if self.level is None else self.level
            other_way = bool(random.integers(2)) and name in BOTH_WAYS
            strength = self.ranges.strength(name, level / (LEVELS - 1), *image.size)
            image = apply(
                image, name, -strength if other_way else strength, MOVING[self.interpolation]
            )
        return image


def apply(
    image: Image.Image, name: str, strength: float, resampling: Image.Resampling
) -> Image.Image:
    """The image after one of OPERATIONS."""
    if name in MOVES or image.mode != "RGBA":
        return OPERATIONS[name](image, strength, resampling)
    changed = OPERATIONS[name](image.convert("RGB"), strength, resampling)
    changed.putalpha(image.getchannel("A"))
    return changed


def rand(interpolation: Interpolation) -> RandomOperations:
    """RandAugment with N = 2 and M = 9 of 31 (Cubuk 2019, arXiv:1909.13719)."""
    return RandomOperations(RAND, RAND_OPERATIONS, RAND_LEVEL, interpolation)


def trivial(interpolation: Interpolation) -> RandomOperations:
    """TrivialAugment (Müller 2021, arXiv:2103.10158) with its wide ranges."""
    return RandomOperations(TRIVIAL, 1, None, interpolation)
