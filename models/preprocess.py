"""The input specification of weights, and resizing and cropping on the CPU, without torch."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Crop = Literal["center", "center_floor", "before_resize"]
RGB = tuple[float, float, float]
# Of a side; a description may come from a file or a repository that nobody has checked.
MOST_PIXELS = 4096

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """How images are prepared for a network; a property of its weights, not its architecture.

    `size`: height and width in pixels of the network's input.
    `resize`: length in pixels of the shorter side before `size` is cropped.
    `crop`: "center" truncates the resized longer side and rounds the crop's corner to even, like
        torchvision; "center_floor" rounds the side and truncates the corner, like the ONNX model
        zoo; "before_resize" crops a centred square of `size / resize` of the shorter side and
        resizes it to `size`, like Flax's example.
    `mean`, `std`: for each channel in RGB order, of values scaled to [0, 1].

    Raises:
        ValueError: a value is invalid; the message names the field.
    """

    size: int
    resize: int
    crop: Crop = "center"
    interpolation: Interpolation = "bilinear"
    mean: RGB
    std: RGB

    def __post_init__(self) -> None:
        for name in ("size", "resize"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
        if self.resize < self.size:
            raise ValueError(f"resize must be at least size ({self.size}), not {self.resize}")
        if self.resize > MOST_PIXELS:
            raise ValueError(f"size and resize must be at most {MOST_PIXELS}, not {self.resize}")
        for name, choices in (("crop", get_args(Crop)), ("interpolation", RESAMPLING)):
            if getattr(self, name) not in choices:
                allowed = ", ".join(choices)
                raise ValueError(f"{name} must be one of {allowed}, not {getattr(self, name)!r}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            numbers = tuple(values) if isinstance(values, list | tuple) else ()
            if len(numbers) != 3 or not all(type(v) in (int, float) for v in numbers):
                raise ValueError(f"{name} must be three numbers (red, green, blue), not {values!r}")
            if not all(map(math.isfinite, numbers)):
                raise ValueError(f"{name} must be finite, not {values!r}")
            object.__setattr__(self, name, tuple(map(float, numbers)))
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, not {self.std}")


IMAGENET = InputSpec(size=224, resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CIFAR = InputSpec(size=32, resize=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N", "I"}
ORIENTATION = 0x0112  # EXIF's tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pixels converted at a time: converting a large image whole would take several copies of it.
BAND_PIXELS = 2**20


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB: rotated by EXIF, on white where transparent, 16 bits cut to 8.

    Serving and evaluation use it for every image.
    """
    image.load()  # Some formats store EXIF after the pixels.
    method = UPRIGHT.get(_orientation(image))
    if method is not None:
        image = image.transpose(method)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rows = max(1, BAND_PIXELS // image.width)
    if image.height <= rows:
        return _rgb(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        whole.paste(_rgb(band), (0, top))
    return whole


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation, which may be any value; 1 where EXIF is damaged."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except (SyntaxError, ValueError, LookupError, OSError, struct.error):
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BIT:
        upper = np.clip(np.asarray(image, dtype=np.int32) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(upper).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def decode_at_scale(image: Image.Image, spec: InputSpec) -> None:
    """Makes an opened JPEG decode at 1/2, 1/4 or 1/8 of its size, where each side keeps at least
    twice the pixels that `spec` resizes it to.

    The decoder then skips frequencies that resizing would remove.
    """
    if image.format == "JPEG":
        shrink = 2 * spec.resize / min(image.size)
        if shrink <= 0.5:
            width, height = image.size
            image.draft(None, (math.ceil(width * shrink), math.ceil(height * shrink)))


class Steps(NamedTuple):
    """What makes an image the network's input, in pixels: the box (left, top, right, lower) that
    is cut out first, the width and height that it is resized to, and the left and top corner of
    the square of `spec.size` that is cut out of that."""

    box: tuple[int, int, int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]


def steps(width: int, height: int, spec: InputSpec) -> Steps:
    """The steps for an upright image of this size.

    `spec.crop` determines how half pixels round; "before_resize" truncates the crop's side and
    rounds its corner up.
    """
    short = min(width, height)
    if spec.crop == "before_resize":
        side = max(1, short * spec.size // spec.resize)
        left, top = (width - side + 1) // 2, (height - side + 1) // 2
        return Steps((left, top, left + side, top + side), (spec.size, spec.size), (0, 0))
    resized = width, height
    if short != spec.resize:
        resized = _resized(width, short, spec), _resized(height, short, spec)
    corner = _corner(resized[0], spec), _corner(resized[1], spec)
    return Steps((0, 0, width, height), resized, corner)


def resize_and_crop(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """An RGB image as a new uint8 array [H, W, 3] of `spec.size`: resized, then centre-cropped."""
    box, resized, (left, top) = steps(*image.size, spec)
    if box != (0, 0, *image.size):
        image = image.crop(box)
    if image.size != resized:
        image = image.resize(resized, RESAMPLING[spec.interpolation])
    if image.size != (spec.size, spec.size):
        image = image.crop((left, top, left + spec.size, top + spec.size))
    return np.array(image)


def region(width: int, height: int, spec: InputSpec) -> tuple[float, float, float, float]:
    """Left, top, width and height of the part of an upright image that `resize_and_crop` keeps,
    as fractions of its width and height."""
    short = min(width, height)
    if spec.crop == "before_resize":
        side = max(1, short * spec.size // spec.resize)
        corners = [(long - side + 1) // 2 / long for long in (width, height)]
        return corners[0], corners[1], side / width, side / height
    resized = width, height
    if short != spec.resize:
        resized = _resized(width, short, spec), _resized(height, short, spec)
    left, top = (_corner(side, spec) / side for side in resized)
    return left, top, spec.size / resized[0], spec.size / resized[1]


def _resized(side: int, short: int, spec: InputSpec) -> int:
    if spec.crop == "center":
        return int(spec.resize * side / short)
    return round(spec.resize / short * side)


def _corner(side: int, spec: InputSpec) -> int:
    if spec.crop == "center":
        return round((side - spec.size) / 2)
    return side // 2 - spec.size // 2
