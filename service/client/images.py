"""Converting images of all kinds to the bytes to send."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from service.client.exceptions import UnreadableImage

# Who passes pixels has imported one of them; files are sent without either.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

# The path, bytes or file of an encoded image; or pixels, as an array uint8: grey [H, W]
# or [H, W, 1], RGB [H, W, 3] or RGBA [H, W, 4].
ImageLike: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image"
    " | NDArray[np.uint8]"
)
# Those of all formats that a service may decode; one that does not decode HEIC says so.
SUFFIXES = frozenset({
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    *(".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".hif"),
})  # fmt: skip
# Modes of PIL that PNG supports.
PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
# The lowest level of compression: on a local network, the CPU is the bottleneck.
PNG_LEVEL = 1


def encoded(image: ImageLike) -> bytes:
    """The bytes to send: those of an encoded image, or pixels as PNG.

    Raises:
        UnreadableImage: a file cannot be read, or pixels have the wrong shape or type.
        TypeError: `image` is not an image.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        try:
            return Path(image).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UnreadableImage(f"{os.fspath(image)}: {reason}") from None
    if "PIL.Image" in sys.modules and isinstance(image, sys.modules["PIL.Image"].Image):
        return _png(image)
    # If the caller has an array, NumPy is imported.
    if "numpy" in sys.modules and isinstance(image, sys.modules["numpy"].ndarray):
        return _png(_from_array(image))
    if hasattr(image, "read"):
        data = image.read()
        if isinstance(data, bytes):
            return data
        raise TypeError("open the image's file with mode 'rb'; it returned text, not bytes")
    raise TypeError(
        "an image must be a path, bytes, a binary file, a PIL image or a uint8 array [H, W, C], "
        f"not {type(image).__name__}"
    )


def in_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """The images, by suffix, in a folder and its subfolders, sorted by name.

    Raises:
        UnreadableImage: the folder does not exist.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UnreadableImage(f"{path}: no such folder")
    return iter(sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()))


def _from_array(pixels: NDArray[Any]) -> Image.Image:
    channels = 1 if pixels.ndim == 2 else pixels.shape[2] if pixels.ndim == 3 else 0
    if pixels.dtype != "uint8" or channels not in (1, 3, 4) or not pixels.size:
        raise UnreadableImage(
            "an array of pixels must be uint8 [H, W], or [H, W, C] with 1, 3 (RGB) or 4 (RGBA) "
            f"channels, not {pixels.dtype} {list(pixels.shape)}"
        )
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise UnreadableImage("an array of pixels needs Pillow: pip install pillow") from None
    return Image.fromarray(pixels.reshape(pixels.shape[:2]) if channels == 1 else pixels)


def _png(image: Image.Image) -> bytes:
    from PIL import ImageOps

    buffer = io.BytesIO()
    try:
        # The EXIF orientation would be lost.
        upright = ImageOps.exif_transpose(image)
        if upright.mode not in PNG_MODES:
            upright = upright.convert("RGB")
        upright.save(buffer, "PNG", compress_level=PNG_LEVEL)
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableImage(f"the PIL image cannot be read: {error}") from None
    return buffer.getvalue()
