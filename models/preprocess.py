"""The input specification of weights, and resizing and cropping on the CPU, without torch."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.jpeg_end import load_without_end
from models.plain_numbers import integer, number
from models.sample_values import FileSamples, in_8_bits, read_native_floats

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Crop = Literal["center", "center_floor", "center_truncate", "before_resize", "squash", "letterbox"]
Channels = Literal["rgb", "bgr", "grey", "rgba"]
PerChannel = tuple[float, ...]
# A length in pixels of both sides, or height and width.
Sides = int | tuple[int, int]
# Values that were scaled to [0, 1] have no mean or deviation beyond this.
MOST_OF_SCALED = 2.0
# Of a side; a description may come from a file or a repository that nobody has checked.
MOST_PIXELS = 4096

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CHANNELS: dict[str, int] = {"rgb": 3, "bgr": 3, "grey": 1, "rgba": 4}
BY_COUNT: dict[int, Channels] = {1: "grey", 3: "rgb", 4: "rgba"}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """How images are prepared for a network; a property of its weights, not its architecture.

    `size`: height and width in pixels of the network's input: one number for a square.
    `resize`: height and width in pixels of a box, one number for a square. Images are resized to
        cover it, which for a square makes their shorter side so long; `crop` says otherwise.
    `crop`: how `size` is cut out of the resized image, at its centre. "center" truncates the
        resized longer side and rounds the crop's corner to even, like torchvision; it rounds the
        side where the box is not square, like timm. "center_floor" rounds the side and truncates
        the corner, like the ONNX model zoo; "center_truncate" truncates both, like transformers;
        "before_resize" crops a centred square of `size / resize` of the shorter side and resizes
        it to `size`, like Flax's example. "squash" resizes to the box whatever the image's
        proportions, and cuts `size` out of it. "letterbox" resizes the image to fit into the box,
        and puts it into the middle of `size`, on `fill`.
    `channels`: what the network sees: "rgb", "bgr" as OpenCV orders them, "grey" (ITU-R 601 luma,
        as Pillow's mode L), or "rgba" with 255 as the alpha of opaque images.
    `mean`, `std`: for each channel in the order of `channels`, of values scaled to [0, 1].
    `fill`: with "letterbox", the value from 0 to 255 of each channel beside the image; () is 0.

    Raises:
        ValueError: a value is invalid; the message names the field.
    """

    size: Sides
    resize: Sides
    crop: Crop = "center"
    interpolation: Interpolation = "bilinear"
    mean: PerChannel
    std: PerChannel
    channels: Channels = "rgb"
    fill: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, choices in (
            ("crop", get_args(Crop)),
            ("interpolation", tuple(RESAMPLING)),
            ("channels", tuple(CHANNELS)),
        ):
            if getattr(self, name) not in choices:
                allowed = ", ".join(choices)
                raise ValueError(f"{name} must be one of {allowed}, not {getattr(self, name)!r}")
        for name in ("size", "resize"):
            object.__setattr__(self, name, checked_sides(name, getattr(self, name)))
        self._check_sides()
        for name in ("mean", "std"):
            object.__setattr__(self, name, self._numbers(name))
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, not {self.std}")
        if max(self.mean) > MOST_OF_SCALED:
            raise ValueError(
                f"mean must be of values scaled to [0, 1], not {self.mean}: divide it and std by "
                "255 if they are of values to 255"
            )
        self._check_fill()

    def _check_sides(self) -> None:
        if max(self.box) > MOST_PIXELS:
            raise ValueError(f"size and resize must be at most {MOST_PIXELS}, not {self.resize}")
        if self.crop == "before_resize" and not self.is_square:
            raise ValueError("crop before_resize needs a square size and resize")
        if self.crop != "letterbox" and (self.box[0] < self.height or self.box[1] < self.width):
            raise ValueError(f"resize must be at least size ({self.size}), not {self.resize}")
        if max(self.height, self.width) > MOST_PIXELS:
            raise ValueError(f"size and resize must be at most {MOST_PIXELS}, not {self.size}")

    def _numbers(self, name: str) -> PerChannel:
        values, count = getattr(self, name), CHANNELS[self.channels]
        numbers = tuple(map(number, values)) if isinstance(values, list | tuple) else ()
        plain = tuple(float(value) for value in numbers if value is not None)
        if not len(numbers) == len(plain) == count:
            wanted = EXPECTED[self.channels]
            raise ValueError(f"{name} must be {wanted}, not {values!r}")
        if not all(map(math.isfinite, plain)):
            raise ValueError(f"{name} must be finite, not {values!r}")
        return plain

    def _check_fill(self) -> None:
        fill = tuple(self.fill) if isinstance(self.fill, list | tuple) else None
        wanted = CHANNELS[self.channels]
        if (
            fill is None
            or len(fill) not in (0, wanted)
            or not all(type(value) is int and 0 <= value <= 255 for value in fill)
        ):
            raise ValueError(
                f"fill must be {wanted} integers from 0 to 255, or empty, not {self.fill!r}"
            )
        if fill and self.crop != "letterbox":
            raise ValueError("fill is only for the crop letterbox")
        object.__setattr__(self, "fill", fill)

    @property
    def height(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape [H, W, C] of an image that is ready for the network."""
        return self.height, self.width, CHANNELS[self.channels]

    @property
    def box(self) -> tuple[int, int]:
        """`resize` as height and width."""
        return (self.resize,) * 2 if isinstance(self.resize, int) else self.resize

    @property
    def is_square(self) -> bool:
        return isinstance(self.size, int) and isinstance(self.resize, int)


EXPECTED = {
    "rgb": "three numbers (red, green, blue)",
    "bgr": "three numbers (blue, green, red)",
    "grey": "one number",
    "rgba": "four numbers (red, green, blue, alpha)",
}


def checked_sides(name: str, value: object) -> Sides:
    """One number for a square, however it is written.

    Raises:
        ValueError: `value` is neither a positive integer nor a pair of them; the message begins
            with `name`.
    """
    written = tuple(value) if isinstance(value, list | tuple) else (value, value)
    sides = [side for side in map(integer, written) if side is not None and side > 0]
    if not len(sides) == len(written) == 2:
        raise ValueError(f"{name} must be a positive integer, or height and width, not {value!r}")
    return sides[0] if sides[0] == sides[1] else (sides[0], sides[1])


IMAGENET = InputSpec(size=224, resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CIFAR = InputSpec(size=32, resize=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def for_channels(spec: InputSpec, count: int) -> InputSpec:
    """`spec`, or where its images have another number of channels, the usual ones of that number
    with values from -1 to 1.

    Raises:
        ValueError: images have 1, 3 or 4 channels.
    """
    if spec.shape[2] == count:
        return spec
    if count not in BY_COUNT:
        raise ValueError(f"images have 1, 3 or 4 channels, not {count}")
    half = (0.5,) * count
    return replace(spec, channels=BY_COUNT[count], mean=half, std=half)


# Pillow's names: cameras append further pictures to a JPEG, which is then an MPO.
JPEGS = ("JPEG", "MPO")
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
    """The image in mode RGB: rotated by EXIF, on white where transparent, samples of other than 8
    bits as `models.sample_values` says.

    Serving and evaluation use it for every image.

    Raises:
        UnclearSamples: it is not certain what they look like.
    """
    image = _turned(image)
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


def _turned(image: Image.Image) -> Image.Image:
    samples = FileSamples.of(image)
    _load(image)  # Some formats store EXIF after the pixels.
    method = UPRIGHT.get(_orientation(image))
    image = in_8_bits(image, samples)
    return image if method is None else image.transpose(method)


def _load(image: Image.Image) -> None:
    """Decodes the image; a JPEG may lack its end, if it has all pixels."""
    if image.format not in JPEGS:
        read_native_floats(image)
        image.load()
        return
    tiles, file = list(getattr(image, "tile", ())), getattr(image, "fp", None)

    def load(other: io.BytesIO) -> None:
        image.tile, image.fp = list(tiles), other  # type: ignore[attr-defined]
        image.load()

    try:
        image.load()
    except OSError:
        if not load_without_end(image, file, load):
            raise


def upright(image: Image.Image, channels: Channels) -> Image.Image:
    """The image as of `upright_rgb` in the mode that has these channels: RGB, for "bgr" too, L or
    RGBA. Transparency remains in RGBA, and is on white in the others."""
    if channels == "rgba":
        return _turned(image).convert("RGBA")
    rgb = upright_rgb(image)
    return rgb.convert("L") if channels == "grey" else rgb


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation, which may be any value; 1 where EXIF is damaged."""
    if image.format == "AVIF" and "exif" not in image.info:
        return 1  # Pillow would take that of XMP, which does not count beside AVIF's own.
    try:
        return image.getexif().get(ORIENTATION, 1)
    except (SyntaxError, ValueError, LookupError, OSError, struct.error):
        return 1


def _rgb(image: Image.Image) -> Image.Image:
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
    if image.format in JPEGS:
        # EXIF may yet exchange the sides.
        shrink = 2 * max(spec.box) / min(image.size)
        if shrink <= 0.5:
            width, height = image.size
            image.draft(None, (math.ceil(width * shrink), math.ceil(height * shrink)))


class Steps(NamedTuple):
    """What makes an image the network's input, in pixels: the box (left, top, right, lower) that
    is cut out first, the width and height that it is resized to, and the left and top corner of
    `spec.size` in that; negative where "letterbox" adds to the image."""

    box: tuple[int, int, int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]


def steps(width: int, height: int, spec: InputSpec) -> Steps:
    """The steps for an upright image of this size.

    `spec.crop` determines how half pixels round; "before_resize" truncates the crop's side and
    rounds its corner up.
    """
    if spec.crop == "before_resize":
        side = max(1, min(width, height) * spec.height // spec.box[0])
        left, top = (width - side + 1) // 2, (height - side + 1) // 2
        return Steps((left, top, left + side, top + side), (spec.width, spec.height), (0, 0))
    resized = _resized(width, height, spec)
    corner = _corner(resized[0], spec.width, spec), _corner(resized[1], spec.height, spec)
    return Steps((0, 0, width, height), resized, corner)


def resize_and_crop(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """An image of `upright` as a new uint8 array of `spec.shape`: resized, then cropped."""
    box, resized, (left, top) = steps(*image.size, spec)
    size = spec.width, spec.height
    if box != (0, 0, *image.size):
        image = image.crop(box)
    if image.size != resized:
        image = image.resize(resized, RESAMPLING[spec.interpolation])
    if image.size != size:
        if spec.fill and (left < 0 or top < 0):
            image = _filled(image, spec, (-left, -top))
        else:
            image = image.crop((left, top, left + size[0], top + size[1]))
    pixels = np.array(image).reshape(spec.shape)
    return np.ascontiguousarray(pixels[:, :, ::-1]) if spec.channels == "bgr" else pixels


def _filled(image: Image.Image, spec: InputSpec, at: tuple[int, int]) -> Image.Image:
    fill = spec.fill[::-1] if spec.channels == "bgr" else spec.fill
    whole = Image.new(image.mode, (spec.width, spec.height), fill if len(fill) > 1 else fill[0])
    whole.paste(image, at)
    return whole


def region(width: int, height: int, spec: InputSpec) -> tuple[float, float, float, float]:
    """Left, top, width and height of the part of an upright image that `resize_and_crop` keeps,
    as fractions of its width and height; beyond 0 to 1 where it adds to the image."""
    box, resized, corner = steps(width, height, spec)
    if spec.crop == "before_resize":
        side = box[2] - box[0]
        return box[0] / width, box[1] / height, side / width, side / height
    left, top = (at / side for at, side in zip(corner, resized, strict=True))
    return left, top, spec.width / resized[0], spec.height / resized[1]


def _resized(width: int, height: int, spec: InputSpec) -> tuple[int, int]:
    """Width and height after resizing: those of the box, or one of them and what the image's
    proportions make of the other."""
    high, wide = spec.box
    if spec.crop == "squash":
        return wide, high
    covers_by_height = high * width >= wide * height
    if covers_by_height != (spec.crop == "letterbox"):
        return _other(width, height, high, spec), high
    return wide, _other(height, width, wide, spec)


def _other(side: int, given: int, becomes: int, spec: InputSpec) -> int:
    """The length of a side where the other one, `given` pixels long, becomes so long."""
    if given == becomes:
        return side
    # torchvision, which resizes to cover squares only; timm rounds for other boxes.
    center = spec.crop == "center" and isinstance(spec.resize, int)
    if center or spec.crop == "center_truncate":
        return int(becomes * side / given)
    return max(1, round(becomes / given * side))


def _corner(side: int, size: int, spec: InputSpec) -> int:
    if side < size:
        return -((size - side) // 2)
    if spec.crop == "center_floor":
        return side // 2 - size // 2
    if spec.crop == "center_truncate":
        return (side - size) // 2
    return round((side - size) / 2)
