"""The formats of image files that are decoded, for serving, evaluation and training alike."""

from __future__ import annotations

import functools
import importlib
import io

from PIL import AvifImagePlugin, Image

from models import boxes
from models.extras import install

# Pillow's names of formats, and ours. The suffixes are of files in folders and archives: those of
# formats that this process lacks are among them, so that such files are reported.
NAMES = {
    "JPEG": "JPEG",
    "PNG": "PNG",
    "WEBP": "WebP",
    "GIF": "GIF",
    "BMP": "BMP",
    "TIFF": "TIFF",
    "AVIF": "AVIF",
    "HEIF": "HEIC",
}
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
SUFFIXES = frozenset({
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    *(".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", *HEIC_SUFFIXES),
})  # fmt: skip


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that this process decodes; HEIC needs the extra `images`.

    The first call configures their decoders, for the whole process.
    """
    # A thread of the service decodes an image; others are for other images.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    missing = set() if AvifImagePlugin.SUPPORTED else {"AVIF"}
    try:
        heif = importlib.import_module("pillow_heif")
    except ImportError:
        missing.add("HEIF")
    else:
        # Only the image itself is wanted of what a file may hold.
        heif.register_heif_opener(
            decode_threads=1, thumbnails=False, depth_images=False, aux_images=False
        )
    return tuple(name for name in NAMES if name not in missing)


def listed() -> str:
    """The names of the formats, as in "JPEG, PNG or TIFF"."""
    *names, last = (NAMES[name] for name in formats())
    return f"{', '.join(names)} or {last}"


def why_unknown(name: str) -> str:
    """Why Pillow does not identify the file of this name, for people who have it."""
    if name.lower().endswith(HEIC_SUFFIXES) and "HEIF" not in formats():
        return f"HEIC needs: {install('images')}"
    return "unknown format or a rare kind of one"


def opened(data: bytes | io.BytesIO) -> Image.Image:
    """The image in an encoded file, not decoded yet; of an animation in `bytes` the still image.

    Raises:
        UnidentifiedImageError: it is of another format.
        Exception: any error of Pillow for data that is not an image.
    """
    if isinstance(data, bytes):
        data = io.BytesIO(boxes.still(data) if boxes.is_boxes(data) else data)
    return Image.open(data, formats=formats())
