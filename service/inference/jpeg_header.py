"""Which JPEG files a device may decode, as their headers say.

A device's decoder agrees with PIL on plain files only: baseline, grey or YCbCr, upright, ending
where the image ends. What is rare, doubtful or large stays with PIL, which accepts or refuses it
as ever. So a file that the device gets is one that PIL would begin to decode.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, field

import numpy as np

from models.preprocess import InputSpec
from service.inference.image_headers import resized_pixels
from service.inference.tasks import JpegFile

# A device decodes at full size, and a whole batch waits for its slowest image.
MOST_PIXELS = 2**22
# Encoders write about ten, and one more for each 64 kB of a profile.
MOST_SEGMENTS = 64
MOST_TABLES = 4  # of a kind in a segment: there are no more numbers
START, END = b"\xff\xd8", b"\xff\xd9"
FRAME, HUFFMAN, SCAN, QUANTISATION, RESTART, COMMENT = 0xC0, 0xC4, 0xDA, 0xDB, 0xDD, 0xFE
JFIF, EXIF, PROFILE, PHOTOSHOP, ADOBE = 0xE0, 0xE1, 0xE2, 0xED, 0xEE
APPLICATION = range(0xE0, 0xF0)
# Any but stuffed bytes and the marks between restart intervals.
MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")
EXIF_MAGIC = b"Exif\0\0"
EXIF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
ORIENTATION, SHORT, UPRIGHT = 0x0112, 3, 1
XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?!=\"1\"|>1<)")
# Horizontal and vertical sampling of Y, where that of Cb and Cr is 1: 4:4:4, 4:2:2, 4:4:0, 4:2:0.
SAMPLINGS = {0x11, 0x21, 0x12, 0x22}
YCBCR = 1  # Adobe's number of the transform
# Of 8-bit samples: differences of the first coefficient have at most 11 bits.
MOST_DC_BITS = 11


def room(spec: InputSpec) -> int:
    """The most bytes of a file for a device: its slot in shared memory holds float32 pixels."""
    return math.prod(spec.shape) * 4


def of_plain_file(data: bytes, spec: InputSpec, max_pixels: int) -> JpegFile | None:
    """`data` as a file that a device may decode; None: it is for PIL.

    It takes 20 microseconds, and some 10 for each 10 kB; at worst 2 milliseconds for 600 kB.
    """
    if not data.startswith(START) or not data.endswith(END) or len(data) > room(spec):
        return None
    if data.count(EXIF_MAGIC) > 1:
        return None
    header = _Header()
    try:
        scan = header.read(data)
    except (struct.error, IndexError):  # It ends within.
        return None
    if not scan or not _fits(header.width, header.height, spec, max_pixels):
        return None
    marker = MARKER_IN_SCAN.search(data, scan)
    if marker is None or marker.start() != len(data) - len(END):
        return None
    return JpegFile(np.frombuffer(data, np.uint8), header.width, header.height)


def _fits(width: int, height: int, spec: InputSpec, max_pixels: int) -> bool:
    most = min(max_pixels, MOST_PIXELS)
    if not 0 < width * height <= most:
        return False
    # As large may it be when resized.
    return resized_pixels(width, height, spec) <= most


@dataclass
class _Header:
    """What the segments before the scan define; the numbers of tables are those in the file."""

    width: int = 0
    height: int = 0
    quantisation: set[int] = field(default_factory=set)
    huffman: set[int] = field(default_factory=set)
    # Of each component of the frame: its number, and that of its quantisation table.
    components: list[tuple[int, int]] = field(default_factory=list)
    transform: int = YCBCR

    def read(self, data: bytes) -> int:
        """Where the scan's data begins; 0: the file is not plain.

        Raises:
            struct.error, IndexError: a segment is too short.
        """
        position = len(START)
        for _ in range(MOST_SEGMENTS):
            mark, marker, length = struct.unpack_from(">BBH", data, position)
            body = data[position + 4 : position + 2 + length]
            if mark != 0xFF or length != len(body) + 2:
                return 0
            position += 2 + length
            if marker == SCAN:
                return position if self._accepts_scan(body) else 0
            if not self._accepts(marker, body):
                return 0
        return 0

    def _accepts(self, marker: int, body: bytes) -> bool:
        if marker == FRAME:
            return self._accepts_frame(body)
        if marker == HUFFMAN:
            return self._accepts_huffman(body)
        if marker == QUANTISATION:
            return self._accepts_quantisation(body)
        if marker in APPLICATION:
            return self._accepts_application(marker, body)
        return marker == COMMENT or (marker == RESTART and len(body) == 2)

    def _accepts_frame(self, body: bytes) -> bool:
        depth, self.height, self.width, count = struct.unpack_from(">BHHB", body)
        if self.components or depth != 8 or count not in (1, 3) or len(body) != 6 + 3 * count:
            return False
        numbers, samplings, tables = body[6::3], body[7::3], body[8::3]
        self.components = list(zip(numbers, tables, strict=True))
        if count == 1:
            return samplings[0] == 0x11
        return (
            tuple(numbers) == (1, 2, 3)
            and samplings[0] in SAMPLINGS
            and samplings[1] == samplings[2] == 0x11
        )

    def _accepts_huffman(self, body: bytes) -> bool:
        for _ in range(MOST_TABLES):
            if not body:
                return True
            number, counts = body[0], body[1:17]
            codes = sum(counts)
            values, rest = body[17 : 17 + codes], body[17 + codes :]
            # As many codes of each length as there can be, but for the one of ones alone.
            used = sum(count << (16 - length) for length, count in enumerate(counts, start=1))
            if len(values) != codes or not 0 < codes <= 256 or used >= 1 << 16:
                return False
            if number not in (0x00, 0x01, 0x10, 0x11):
                return False
            if number < 0x10 and max(values) > MOST_DC_BITS:
                return False
            self.huffman.add(number)
            body = rest
        return not body

    def _accepts_quantisation(self, body: bytes) -> bool:
        """Tables of 8 bits."""
        numbers = body[::65]
        if not 0 < len(numbers) <= MOST_TABLES or len(body) != 65 * len(numbers):
            return False
        if max(numbers) > 3:
            return False
        self.quantisation.update(numbers)
        return True

    def _accepts_application(self, marker: int, body: bytes) -> bool:
        if marker == JFIF and body.startswith(b"JFIF"):
            return len(body) >= 12
        if marker == EXIF:
            return _is_upright(body)
        if marker == PROFILE:
            # An MPO holds several images; a profile is of numbered parts.
            return not body.startswith(b"MPF\0") and (
                not body.startswith(b"ICC_PROFILE\0") or len(body) >= 14
            )
        if marker == ADOBE and body.startswith(b"Adobe"):
            self.transform = body[11]
        # Photoshop's segment is made of parts, on which PIL may stumble.
        return marker != PHOTOSHOP

    def _accepts_scan(self, body: bytes) -> bool:
        """Whether it is of all components, and has all tables that it needs."""
        count = len(self.components)
        if not count or len(body) != 4 + 2 * count or body[0] != count:
            return False
        if body[-3:] != b"\0\x3f\0" or (count == 3 and self.transform != YCBCR):
            return False
        for (number, table), named, tables in zip(
            self.components, body[1:-3:2], body[2:-3:2], strict=True
        ):
            dc, ac = tables >> 4, 0x10 | tables & 0x0F
            if named != number or table not in self.quantisation:
                return False
            if dc not in self.huffman or ac not in self.huffman:
                return False
        return True


def _is_upright(body: bytes) -> bool:
    """Whether neither EXIF nor XMP, in a segment of either, asks to turn the image."""
    if not body.startswith(EXIF_MAGIC):
        return XMP_ORIENTATION.search(body) is None
    start = len(EXIF_MAGIC)
    order = EXIF_ORDERS.get(body[start : start + 4])
    if order is None:
        return False
    (offset,) = struct.unpack_from(f"{order}I", body, start + 4)
    (entries,) = struct.unpack_from(f"{order}H", body, start + offset)
    if entries > MOST_SEGMENTS:
        return False
    for at in range(entries):
        place = start + offset + 2 + 12 * at
        tag, kind, count, value = struct.unpack_from(f"{order}HHIH", body, place)
        if tag == ORIENTATION and (kind, count, value) != (SHORT, 1, UPRIGHT):
            return False
    return True
