"""JPEGs whose end is missing, though not their pixels.

IP cameras and programs that cut MJPEG streams forget the last marker. Browsers show such pictures;
Pillow refuses them like those that are cut in the middle, of which libjpeg would make up the rest.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable

from PIL import Image

END = b"\xff\xd9"
SCAN, INTERVAL = 0xDA, 0xDD
FRAMES = {0xC0, 0xC1, 0xC2}
MOST_SEGMENTS = 2**12
# Where a scan ends: at what is neither a stuffed byte nor a mark between restart intervals.
MARKER_IN_SCAN = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
RESTARTS = re.compile(rb"\xff[\xd0-\xd7]")
# Noise, and the same with every bit changed, whichever is read next; neither makes a marker.
NOISE = hashlib.shake_128(b"").digest(256)
CONTINUATIONS = tuple(
    noise.replace(b"\xff", b"\xfe") for noise in (NOISE, bytes(255 - byte for byte in NOISE))
)
# Of an image that is decoded three to six times to find out, and of all its scans together.
MOST_PIXELS = 2**24
MOST_PIXELS_OF_SCANS = 10 * MOST_PIXELS
COEFFICIENTS = 64


def load_without_end(
    image: Image.Image, file: object, load: Callable[[io.BytesIO], object]
) -> bool:
    """Whether `image`, a JPEG that did not load from `file`, has all of its pixels; then they are
    loaded.

    They are decoded three times, with unlike bytes in place of what is missing. If no pixel
    differs, then none depends on it. `load` loads `image` from the file that it is given.

    Raises:
        OSError, SyntaxError: as Pillow does for damaged data.
    """
    size = image.width * image.height
    if not isinstance(file, io.BytesIO) or size > MOST_PIXELS:
        return False
    whole = file.getvalue()
    if size * whole.count(bytes([0xFF, SCAN])) > MOST_PIXELS_OF_SCANS:
        return False
    for data, next_restart in _candidates(whole):
        pixels: bytes | None = None
        # A scan may also end between two restart intervals.
        for continuation in (*CONTINUATIONS, next_restart + CONTINUATIONS[0]):
            load(io.BytesIO(data + continuation + END))
            before, pixels = pixels, image.tobytes()
            if before is not None and pixels != before:
                break
        else:
            return True
    return False


def _candidates(data: bytes) -> list[tuple[bytes, bytes]]:
    """`data` up to the end of its last scan's pixels, and the marker of the next restart interval;
    none: a scan is missing or has an end."""
    found = _last_scan(data)
    if found is None:
        return []
    begin, interval = found
    marker = MARKER_IN_SCAN.search(data, begin)
    if marker is not None and marker[0].endswith(END[1:]):
        return []
    scan = data[begin : marker.start() if marker else len(data)]
    # What fills up a file that was to be longer; a scan ends in a byte with ones.
    pixels = scan.rstrip(b"\0\xff")
    endings = [pixels]
    if scan[len(pixels) :].startswith(b"\xff\0"):  # A stuffed byte may be the last one.
        endings.insert(0, pixels + b"\xff\0")
    restarts = RESTARTS.findall(scan)
    # At any other one libjpeg would stop and make up the rest, whatever follows.
    if any(mark[1] != 0xD0 + at % 8 for at, mark in enumerate(restarts)) or (
        restarts and not interval
    ):
        return []
    restart = bytes([0xFF, 0xD0 + len(restarts) % 8])
    return [(data[:begin] + ending, restart) for ending in endings]


def _last_scan(data: bytes) -> tuple[int, int] | None:
    """Where the pixels of the last scan begin, and the length of its restart intervals or 0; None:
    not all bits of the image are in a scan."""
    missing: dict[int, list[int]] = {}  # bits that each coefficient lacks, of each component
    progressive, position, interval = False, 2, 0
    for _ in range(MOST_SEGMENTS):
        marker = MARKER_IN_SCAN.search(data, position)
        if marker is None:
            return None
        kind, start = marker[0][-1], marker.end()
        position = start + int.from_bytes(data[start : start + 2], "big")
        body = data[start + 2 : position]
        if kind in FRAMES and len(body) > 5:
            progressive = kind == 0xC2
            missing = {number: [1] * COEFFICIENTS for number in body[6::3]}
        elif kind == INTERVAL:
            interval = int.from_bytes(body[:2], "big")
        elif kind == SCAN:
            count = body[0] if body else 0
            if len(body) != 4 + 2 * count:
                return None
            first, last, bits = (body[-3], body[-2], body[-1] & 15) if progressive else (0, 63, 0)
            for number in body[1:-3:2]:
                for at in range(first, min(last, COEFFICIENTS - 1) + 1):
                    missing.get(number, [0] * COEFFICIENTS)[at] = bits
            if not any(map(any, missing.values())):
                return position, interval
        elif kind == END[1]:
            return None
    return None
