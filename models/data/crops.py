"""Random crops of photographs, for training on images of ImageNet's size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.preprocess import JPEGS, ORIENTATION, RESAMPLING, Interpolation, upright_rgb

Box = tuple[int, int, int, int]
TRIES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomCrop:
    """A random crop resized to `size` pixels a side, mirrored half the time if `flip`.

    `scale`, `ratio`: ranges of the crop's area as a fraction of the image, and of its width over
        height (Szegedy 2015, arXiv:1409.4842, section 6).
    `shorter_side`: instead, crop a square after resizing the image's shorter side to a random
        length in this range of pixels (He 2015, section 3.4: 256 to 480).

    Raises:
        ValueError: a range is invalid; the message names it.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    shorter_side: tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    flip: bool = True

    def __post_init__(self) -> None:
        for name, (low, high), least, most in (
            ("scale", self.scale, 0.0, 1.0),
            ("ratio", self.ratio, 0.0, math.inf),
            ("shorter_side", self.shorter_side or (self.size, self.size), self.size - 1, math.inf),
        ):
            if not least < low <= high <= most or not math.isfinite(high):
                raise ValueError(f"{name} must be a range above {least:g}, not {low:g} to {high:g}")
        if self.interpolation not in RESAMPLING:
            allowed = ", ".join(RESAMPLING)
            raise ValueError(f"interpolation must be one of {allowed}, not {self.interpolation!r}")

    def __call__(self, image: Image.Image, seed: int) -> NDArray[np.uint8]:
        """The crop of an opened image: uint8 [size, size, 3]. Equal seeds give equal crops.

        JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, where each side of the crop keeps at
        least twice the pixels it is resized to.
        """
        random = np.random.Generator(np.random.Philox(seed))
        width, height = image.size
        turned = image.getexif().get(ORIENTATION, 1) >= 5  # These swap width and height.
        if turned:
            width, height = height, width
        box = self.box(width, height, random)
        mirrored = bool(random.integers(2)) and self.flip
        if image.format in JPEGS:
            shrink = 2 * self.size / min(box[2] - box[0], box[3] - box[1])
            if shrink <= 0.5:
                image.draft(None, tuple(math.ceil(side * shrink) for side in image.size))  # type: ignore[arg-type]
        upright = upright_rgb(image)
        if upright.size != (width, height):
            box = _scaled(box, upright.width / width, upright.height / height)
        cropped = upright.crop(box).resize((self.size,) * 2, RESAMPLING[self.interpolation])
        pixels = np.asarray(cropped)
        return np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)

    def box(self, width: int, height: int, random: np.random.Generator) -> Box:
        """Left, top, right and bottom of a random crop, in pixels of the image."""
        if self.shorter_side is not None:
            short = random.integers(self.shorter_side[0], self.shorter_side[1] + 1)
            side = max(1, round(self.size * min(width, height) / int(short)))
            return _placed(side, side, width, height, random)
        for _ in range(TRIES):
            area = width * height * random.uniform(*self.scale)
            low, high = map(math.log, self.ratio)
            ratio = math.exp(random.uniform(low, high))
            across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < across <= width and 0 < down <= height:
                return _placed(across, down, width, height, random)
        # The largest centred crop with a valid ratio.
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        across = min(width, max(1, round(height * ratio)))
        down = min(height, max(1, round(width / ratio)))
        left, top = (width - across) // 2, (height - down) // 2
        return left, top, left + across, top + down


def _placed(across: int, down: int, width: int, height: int, random: np.random.Generator) -> Box:
    left, top = int(random.integers(width - across + 1)), int(random.integers(height - down + 1))
    return left, top, left + across, top + down


def _scaled(box: Box, across: float, down: float) -> Box:
    left, top, right, bottom = box
    x, y = round(left * across), round(top * down)
    return x, y, max(x + 1, round(right * across)), max(y + 1, round(bottom * down))
