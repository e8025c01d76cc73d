"""What a JPEG or PNG file says before its pixels: size, EXIF orientation, and how they are coded."""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAX_PIXELS = 2**28
"""Of an image: what claims to have more is refused before any of it is decoded (a decompression bomb)."""

CUT_OFF = "the file is cut off"
_ORIENTATION = 0x0112
_TYPES = {1: "B", 3: "H", 4: "I"}
_PNG_START = b"\x89PNG\r\n\x1a\n"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG markers that start a frame."""
_SCAN, _END, _EXIF = 0xDA, 0xD9, 0xE1


@dataclass(frozen=True)
class Header:
    """height, width: as stored, before the orientation. plain: 8 bits of grey or colour, no alpha, not CMYK."""

    kind: str
    height: int
    width: int
    orientation: int
    plain: bool


def read_header(data: bytes) -> Header | None:
    """The header of a JPEG or PNG; None for other kinds. Raises ValueError for a broken or too large one."""
    try:
        if data.startswith(b"\xff\xd8\xff"):
            header = _jpeg(data)
        elif data.startswith(_PNG_START):
            header = _png(data)
        else:
            return None
    except (struct.error, IndexError) as error:
        raise ValueError(CUT_OFF) from error
    refuse_size(header.height, header.width)
    return header


def refuse_size(height: int, width: int) -> None:
    """Raises ValueError for an image without pixels or with more than MAX_PIXELS."""
    if height < 1 or width < 1:
        raise ValueError(f"an image of {width} x {height} pixels")
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,}: make the image smaller")


def orientation_of(exif: bytes) -> int:
    """The orientation (1 to 8) that EXIF data, which has the structure of a TIFF file, tells; 1 where it tells none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, at)
            if tag == _ORIENTATION and kind in _TYPES:
                (value,) = struct.unpack_from(order + _TYPES[kind], exif, at + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _jpeg(data: bytes) -> Header:
    """Walk the segments up to the first scan."""
    at, orientation, frame = 2, 1, None
    while True:
        if data[at] != 0xFF:
            raise ValueError("not an image that can be decoded: a JPEG without a frame")
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in (_SCAN, _END):
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == _EXIF and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = orientation_of(data[at + 10 : at + 2 + length])
        elif marker in _FRAMES:
            frame = struct.unpack_from(">BHHB", data, at + 4)
        at += 2 + length
    if frame is None:
        raise ValueError("not an image that can be decoded: a JPEG without a frame")
    bits, height, width, components = frame
    return Header("jpeg", height, width, orientation, bits == 8 and components in (1, 3))


def _png(data: bytes) -> Header:
    """Walk the chunks up to the last one, which shows that nothing is cut off."""
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    at, orientation, transparent = 8, 1, colour in (4, 6)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            orientation = orientation_of(data[at + 8 : at + 8 + length])
        elif kind == b"tRNS":
            transparent = True
        at += 12 + length
        if at > len(data):
            raise ValueError(CUT_OFF)
        if kind == b"IEND":
            return Header("png", height, width, orientation, depth == 8 and not transparent)
