"""What is unusual about a JPEG or TIFF that begins well, but that Pillow does not identify."""

from __future__ import annotations

import re
import struct

from PIL.TiffImagePlugin import COMPRESSION_INFO

JPEG_FRAME = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xf7]")
JPEG_SEGMENT, MOST_SEGMENTS = re.compile(rb"\xff[\x02-\xfe]"), 2**10
# By the last byte of the frame's marker (ITU-T T.81, table B.1; ITU-T T.87 for JPEG-LS).
JPEG_PROCESSES = {0xC3: "a lossless JPEG", 0xCB: "a lossless JPEG", 0xF7: "JPEG-LS"}
BASELINE = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
MOST_ENTRIES = 1024
BITS, COMPRESSION, COLOUR, SAMPLES, PLANAR, FORMAT = TAGS = 258, 259, 262, 277, 284, 339
# TIFF's values of its sample format, and compressions that have no name in Pillow.
FORMATS = {2: "signed integer", 3: "floating-point", 5: "complex integer", 6: "complex"}
COMPRESSIONS = {
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    33007: "JPEG",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "JPEG",
    34933: "PNG",
    34934: "JPEG XR",
    22610: "JPEG XR",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
COLOURS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "L*a*b*"}


def rare_jpeg(data: bytes) -> str | None:
    """As in "a JPEG with 12 bits a sample"; None: nothing is unusual about its first frame."""
    position = 2
    for _ in range(MOST_SEGMENTS):
        marker = JPEG_SEGMENT.search(data, position)
        if marker is None:
            return None
        at = marker.end()
        if JPEG_FRAME.match(marker[0]):
            return _rare_frame(marker[0][1], data[at : at + 8])
        position = at + int.from_bytes(data[at : at + 2], "big")
    return None


def _rare_frame(kind: int, header: bytes) -> str | None:
    if len(header) < 8:
        return None
    if kind in JPEG_PROCESSES:
        return JPEG_PROCESSES[kind]
    if kind not in BASELINE:
        return "a hierarchical JPEG"
    bits, components = header[2], header[7]
    if bits != 8:
        return f"a JPEG with {bits} bits a sample"
    return None if components in (1, 3, 4) else f"a JPEG with {components} colours"


def rare_tiff(data: bytes) -> str | None:
    """As in "a TIFF in RGB with 3 signed integer samples a pixel, of 16 bits"; None: its header is
    damaged."""
    try:
        tags = _tags(data)
    except (struct.error, KeyError):
        return None
    compression = tags.get(COMPRESSION, (1,))[0]
    if compression not in COMPRESSION_INFO:
        name = COMPRESSIONS.get(compression, f"compression {compression}")
        return f"a TIFF that is compressed with {name}"
    bits = tags.get(BITS, (1,))
    count = tags.get(SAMPLES, (len(bits),))[0]
    word = FORMATS.get(tags.get(FORMAT, (1,))[0], "unsigned integer")
    widths = " and ".join(map(str, dict.fromkeys(bits)))
    colour = COLOURS.get(tags.get(COLOUR, (0,))[0], "unknown colours")
    samples = f"{count} {word} sample{'s' * (count != 1)}"
    planes = " in separate planes" if tags.get(PLANAR) == (2,) else ""
    return f"a TIFF in {colour} with {samples} a pixel, of {widths} bits{planes}"


def _tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """The values of the tags above in the first directory, at most 8 of each."""
    order = TIFF_ORDERS[data[:4]]
    (offset,) = struct.unpack_from(f"{order}I", data, 4)
    (entries,) = struct.unpack_from(f"{order}H", data, offset)
    tags = {}
    for at in range(offset + 2, offset + 2 + 12 * min(entries, MOST_ENTRIES), 12):
        number, kind, count = struct.unpack_from(f"{order}HHI", data, at)
        letter = {3: "H", 4: "I"}.get(kind)
        if number not in TAGS or not letter or not count:
            continue
        size = struct.calcsize(letter)
        (behind,) = struct.unpack_from(f"{order}I", data, at + 8)
        place = at + 8 if count * size <= 4 else behind
        tags[number] = struct.unpack_from(f"{order}{min(count, 8)}{letter}", data, place)
    return tags
