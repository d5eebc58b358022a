"""Random crops of images as they are opened, for sets that are streamed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.data.augment import Augmentation, check_reflection
from models.data.choices import PaddingMode
from models.data.collection import Centre
from models.preprocess import (
    CHANNELS,
    JPEGS,
    ORIENTATION,
    RESAMPLING,
    Channels,
    InputSpec,
    Interpolation,
    Sides,
    upright,
)

Box = tuple[int, int, int, int]
TRIES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomCrop:
    """A random crop resized to `size`, mirrored half the time if `flip`.

    `size`: height and width in pixels; one number for a square. `channels`: see `InputSpec`.
    `scale`, `ratio`: ranges of the crop's area as a fraction of the image, and of how much wider
        it is than `size`, at equal heights (Szegedy 2015, arXiv:1409.4842, section 6).
    `squash`: the ratio is that to the image's proportions instead, for networks whose images are
        resized without keeping them.
    `shorter_side`: instead, cut `size` out after resizing the image's shorter side to a random
        length in this range of pixels (He 2015, section 3.4: 256 to 480).

    Raises:
        ValueError: a range is invalid; the message names it.
    """

    size: Sides
    channels: Channels = "rgb"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    squash: bool = False
    shorter_side: tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    flip: bool = True

    def __post_init__(self) -> None:
        least_side = max(self.sides)
        for name, (low, high), least, most in (
            ("scale", self.scale, 0.0, 1.0),
            ("ratio", self.ratio, 0.0, math.inf),
            (
                "shorter_side",
                self.shorter_side or (least_side, least_side),
                least_side - 1,
                math.inf,
            ),
        ):
            if not least < low <= high <= most or not math.isfinite(high):
                raise ValueError(f"{name} must be a range above {least:g}, not {low:g} to {high:g}")
        for field, choices in (("interpolation", RESAMPLING), ("channels", CHANNELS)):
            if getattr(self, field) not in choices:
                allowed = ", ".join(choices)
                raise ValueError(f"{field} must be one of {allowed}, not {getattr(self, field)!r}")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return (self.size,) * 2 if isinstance(self.size, int) else self.size

    def __call__(self, image: Image.Image, seed: int) -> NDArray[np.uint8]:
        """The crop of an opened image: uint8 [H, W, C]. Equal seeds give equal crops.

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
        down, across = self.sides
        if image.format in JPEGS:
            shrink = 2 * max(across / (box[2] - box[0]), down / (box[3] - box[1]))
            if shrink <= 0.5:
                image.draft(None, tuple(math.ceil(side * shrink) for side in image.size))  # type: ignore[arg-type]
        whole = upright(image, self.channels)
        if whole.size != (width, height):
            box = _scaled(box, whole.width / width, whole.height / height)
        cropped = whole.crop(box).resize((across, down), RESAMPLING[self.interpolation])
        pixels = np.asarray(cropped).reshape(down, across, CHANNELS[self.channels])
        pixels = pixels[:, ::-1] if mirrored else pixels
        return np.ascontiguousarray(pixels[:, :, ::-1] if self.channels == "bgr" else pixels)

    def box(self, width: int, height: int, random: np.random.Generator) -> Box:
        """Left, top, right and bottom of a random crop, in pixels of the image."""
        if self.shorter_side is not None:
            short = random.integers(self.shorter_side[0], self.shorter_side[1] + 1)
            one = min(width, height) / int(short)
            down, across = (max(1, round(side * one)) for side in self.sides)
            return _placed(min(across, width), min(down, height), width, height, random)
        shape = width / height if self.squash else self.sides[1] / self.sides[0]
        least, most = (shape * ratio for ratio in self.ratio)
        for _ in range(TRIES):
            area = width * height * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(math.log(least), math.log(most)))
            across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < across <= width and 0 < down <= height:
                return _placed(across, down, width, height, random)
        # The largest centred crop with a valid ratio.
        ratio = min(max(width / height, least), most)
        across = min(width, max(1, round(height * ratio)))
        down = min(height, max(1, round(width / ratio)))
        left, top = (width - across) // 2, (height - down) // 2
        return left, top, left + across, top + down


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftedCrop:
    """The image as it is served, shifted by up to `padding` pixels each way behind a border, and
    mirrored half the time if `flip` (He 2015, section 4.2).

    Raises:
        ValueError: the images are too small for this padding by reflection.
    """

    spec: InputSpec
    padding: int
    mode: PaddingMode = "zeros"
    flip: bool = True

    def __post_init__(self) -> None:
        check_reflection(self.spec.height, self.spec.width, self.padding, self.mode)

    def __call__(self, image: Image.Image, seed: int) -> NDArray[np.uint8]:
        """The crop of an opened image: uint8 of `spec.shape`. Equal seeds give equal crops."""
        random = np.random.Generator(np.random.Philox(seed))
        top, left = (int(at) for at in random.integers(2 * self.padding + 1, size=2))
        mirrored = bool(random.integers(2)) and self.flip
        pixels = Centre(self.spec)(image)
        border = ((self.padding,) * 2, (self.padding,) * 2, (0, 0))
        padded = np.pad(pixels, border, "reflect" if self.mode == "reflect" else "constant")
        cut = padded[top : top + self.spec.height, left : left + self.spec.width]
        return np.ascontiguousarray(cut[:, ::-1] if mirrored else cut)


def crop_for(augmentation: Augmentation, spec: InputSpec) -> RandomCrop | ShiftedCrop:
    """The crop of an image for `spec`; it mirrors, unless flips alternate.

    Raises:
        ValueError: the crops are impossible for images of this size; the message says why.
    """
    flip = augmentation.flip and not augmentation.alternates
    if augmentation.crops == "padded":
        return ShiftedCrop(
            spec=spec,
            padding=augmentation.crop_padding,
            mode=augmentation.padding_mode,
            flip=flip,
        )
    return RandomCrop(
        size=spec.size,
        channels=spec.channels,
        scale=augmentation.scale,
        squash=spec.crop == "squash",
        shorter_side=augmentation.shorter_side if augmentation.crops == "scaled" else None,
        interpolation=spec.interpolation,
        flip=flip,
    )


def trained_at(spec: InputSpec, side: int) -> InputSpec:
    """`spec` with images whose shorter side is `side` pixels; 0 leaves it as it is."""
    if not side:
        return spec
    factor = side / min(spec.height, spec.width)
    height, width, high, wide = (
        max(1, round(length * factor)) for length in (spec.height, spec.width, *spec.box)
    )
    return replace(spec, size=(height, width), resize=(high, wide))


def _placed(across: int, down: int, width: int, height: int, random: np.random.Generator) -> Box:
    left, top = int(random.integers(width - across + 1)), int(random.integers(height - down + 1))
    return left, top, left + across, top + down


def _scaled(box: Box, across: float, down: float) -> Box:
    left, top, right, bottom = box
    x, y = round(left * across), round(top * down)
    return x, y, max(x + 1, round(right * across)), max(y + 1, round(bottom * down))
