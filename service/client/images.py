"""From whatever a caller has of an image to the bytes that are sent."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from PIL import Image, ImageOps

from service.client.exceptions import UnreadableImage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# An encoded image's path, bytes or file; or pixels, uint8 [H, W, 3] where they are an array.
ImageLike: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image"
    " | NDArray[np.uint8]"
)
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
# Modes of PIL that a PNG keeps as they are.
PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
# Pixels are sent without loss. The lowest level: on a local network the processor is slower.
PNG_LEVEL = 1


def encoded(image: ImageLike) -> bytes:
    """The bytes to send: an encoded image's own, or pixels as PNG.

    Raises:
        UnreadableImage: a file cannot be read, or pixels are of a shape or type that no image has.
        TypeError: `image` is nothing of the kind.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        try:
            return Path(image).read_bytes()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UnreadableImage(f"{os.fspath(image)}: {why}") from None
    if isinstance(image, Image.Image):
        return _png(image)
    # Whoever has an array has imported NumPy.
    if "numpy" in sys.modules and isinstance(image, sys.modules["numpy"].ndarray):
        return _png(_from_array(image))
    if hasattr(image, "read"):
        data = image.read()
        if isinstance(data, bytes):
            return data
        raise TypeError("open the image's file with mode 'rb': it gave text, not bytes")
    raise TypeError(
        "an image is a path, bytes, a binary file, a PIL image or a uint8 array [H, W, 3], "
        f"not {type(image).__name__}"
    )


def in_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """The images in a folder and those below it, by name; what is none by its suffix is left out.

    Raises:
        UnreadableImage: there is no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UnreadableImage(f"{path}: no such folder")
    return iter(sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()))


def _from_array(pixels: NDArray[Any]) -> Image.Image:
    if pixels.dtype != "uint8" or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UnreadableImage(
            f"an array of pixels is uint8 [H, W, 3], not {pixels.dtype} {list(pixels.shape)}"
        )
    return Image.fromarray(pixels)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    try:
        # A camera's note of which side is up belongs to the file, which a PNG of it is not.
        upright = ImageOps.exif_transpose(image)
        if upright.mode not in PNG_MODES:
            upright = upright.convert("RGB")
        upright.save(buffer, "PNG", compress_level=PNG_LEVEL)
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableImage(f"the PIL image cannot be read: {error}") from None
    return buffer.getvalue()
