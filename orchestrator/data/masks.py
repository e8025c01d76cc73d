"""Masks of single objects: from what labels say to polygons and bitmaps, to compact bytes, and to pixels."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from orchestrator.data.images import stored_size
from trainables.contracts import RunLengths

Bits = np.ndarray[Any, np.dtype[np.uint8]]
"""(height, width), 1 on the object."""
Points = np.ndarray[Any, np.dtype[np.floating[Any]]]
"""(n, 2): x and y; a pixel's centre lies at its corner + 0.5. Encoded as float32."""

_POLYGONS, _BITMAP = 1, 2
"""The first byte of an encoded mask; another layout gets another number."""


@dataclass(frozen=True)
class Outlines:
    """The union of polygons."""

    parts: tuple[Points, ...]


@dataclass(frozen=True)
class Bitmap:
    """Pixels of a mask inside its box, whose corner lies at (left, top) in the image."""

    left: int
    top: int
    bits: Bits


Mask = Outlines | Bitmap


def encode(mask: Mask) -> bytes:
    """A mask as bytes: outlines without loss, a bitmap with one bit per pixel of its box."""
    if isinstance(mask, Bitmap):
        head = struct.pack("<B4I", _BITMAP, mask.left, mask.top, *mask.bits.shape)
        return head + np.packbits(mask.bits).tobytes()
    counts = [len(part) for part in mask.parts]
    head = struct.pack(f"<B{1 + len(counts)}I", _POLYGONS, len(counts), *counts)
    return head + np.concatenate(mask.parts).astype("<f4").tobytes()


def decode(data: bytes) -> Mask:
    """What `encode` was given. Raises ValueError for bytes of a newer version."""
    if data[0] == _BITMAP:
        left, top, height, width = struct.unpack_from("<4I", data, 1)
        bits = np.unpackbits(np.frombuffer(data, np.uint8, offset=17), count=height * width)
        return Bitmap(left, top, bits.reshape(height, width))
    if data[0] != _POLYGONS:
        raise ValueError(f"a mask of kind {data[0]}, which a newer version wrote")
    (n,) = struct.unpack_from("<I", data, 1)
    counts = struct.unpack_from(f"<{n}I", data, 5)
    points = np.frombuffer(data, "<f4", offset=5 + 4 * n).reshape(-1, 2)
    return Outlines(tuple(np.split(points, np.cumsum(counts)[:-1])))


def crop(bits: Bits) -> Bitmap:
    """Cut to the object. Raises ValueError where there is none."""
    left, top, width, height = cv2.boundingRect(bits)
    if not width:
        raise ValueError("is empty")
    return Bitmap(left, top, np.ascontiguousarray(bits[top : top + height, left : left + width]))


def rectangle(box: np.ndarray[Any, np.dtype[np.float32]]) -> Outlines:
    """A box (4,) as a mask."""
    return Outlines((box[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2),))


def bounds(mask: Mask) -> tuple[float, float, float, float]:
    """The box of a mask as x0, y0, x1, y1."""
    if isinstance(mask, Bitmap):
        height, width = mask.bits.shape
        return mask.left, mask.top, mask.left + width, mask.top + height
    points = np.concatenate(mask.parts)
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    return float(x0), float(y0), float(x1), float(y1)


def draw(mask: Mask, out: Bits, scale: float = 1.0, left: float = 0.0, top: float = 0.0) -> None:
    """Set `out`, which shows the image from (left, top) on at `scale`, to 1 where the mask is."""
    if isinstance(mask, Outlines):
        for part in mask.parts:
            _fill((part - np.array([left, top])) * scale, out)
        return
    spans = []
    for length, extent, start in zip(out.shape, mask.bits.shape, (top - mask.top, left - mask.left), strict=True):
        nearest = np.floor((np.arange(length) + 0.5) / scale + start).astype(np.int64)
        spans.append((nearest.searchsorted([0, extent]), nearest))
    ((y0, y1), rows), ((x0, x1), columns) = spans
    out[y0:y1, x0:x1] |= mask.bits[np.ix_(rows[y0:y1], columns[x0:x1])]


def _fill(points: Points, out: Bits) -> None:
    """Set the pixels whose centre lies in a polygon (even-odd rule).

    Where the outline crosses the centre line of a row, inside and outside change: the sorted crossings are run lengths.
    OpenCV's fillPoly also fills what the outline touches, half a pixel too much all around.
    """
    height, width = out.shape
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, 0).T
    rows = np.clip(np.ceil(np.stack([y0, y1]) - 0.5), 0, height).astype(np.int64)
    first, last = rows.min(0), rows.max(0)
    counts = last - first
    if not counts.any():
        return
    edge = np.repeat(np.arange(len(points)), counts)
    row = np.arange(len(edge)) + np.repeat(first - np.cumsum(counts) + counts, counts)
    crossing = x0[edge] + (row + 0.5 - y0[edge]) * ((x1 - x0)[edge] / (y1 - y0)[edge])
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    top, left, bottom, right = row.min(), column.min(), last.max(), column.max()
    shape = (bottom - top, right - left)
    at = np.sort((row - top) * shape[1] + column - left)
    out[top:bottom, left:right] |= _unroll(np.diff(at, prepend=0, append=shape[0] * shape[1])).reshape(shape)


def _unroll(lengths: np.ndarray[Any, np.dtype[np.int64]]) -> Bits:
    """Runs of zeros and ones in turns."""
    return np.repeat((np.arange(len(lengths)) & 1).astype(np.uint8), lengths)


def outlines(polygons: Sequence[Sequence[float]]) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """The outlines of a label that have an area. Raises ValueError for what are no coordinates."""
    parts = []
    for polygon in polygons:
        try:
            points = np.asarray(polygon, np.float64).reshape(-1, 2)
        except (TypeError, ValueError) as error:
            raise ValueError("has an outline that is no list of x, y, x, y, ...") from error
        if not np.isfinite(points).all():
            raise ValueError("has coordinates that are no numbers")
        x, y = points.T
        if len(points) >= 3 and abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) > 1e-9:
            parts.append(points)
    return parts


def bits_of_runs(runs: RunLengths, sizes: Sequence[tuple[int, int]]) -> Bits:
    """Decode COCO's run lengths, whose size must be one of `sizes`. Raises ValueError for what is damaged."""
    size, counts = runs.get("size"), runs.get("counts")
    if not isinstance(size, Sequence) or tuple(size) not in sizes:
        raise ValueError(f"has the size {size}, but the image is {list(sizes[0])}")
    height, width = sizes[sizes.index(tuple(size))]
    try:
        lengths = _decompress(counts) if isinstance(counts, str | bytes) else np.array(counts)
    except ValueError:
        lengths = np.array(None)
    usable = lengths.ndim == 1 and lengths.dtype.kind == "i"
    if not usable or (lengths < 0).any() or (lengths > height * width).any() or lengths.sum() != height * width:
        raise ValueError(f"has damaged run lengths: they do not add up to {height} x {width} pixels")
    return np.ascontiguousarray(_unroll(lengths).reshape(width, height).T)


def _decompress(text: str | bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The runs of COCO's compressed text: numbers in 5-bit digits, from the fourth on less the last but one.

    Damaged text gives wrong runs or a ValueError.
    """
    content = text.encode("ascii") if isinstance(text, str) else text
    digits = np.frombuffer(content, np.uint8).astype(np.int64) - 48
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("not a compressed mask")
    first = np.flatnonzero(np.append(True, (digits[:-1] & 32) == 0))
    place = np.arange(len(digits)) - np.repeat(first, np.diff(np.append(first, len(digits))))
    if place.max() > 7:  # more than any image has pixels
        raise ValueError("not a compressed mask")
    numbers = np.add.reduceat((digits & 31) << (5 * place), first)
    last = np.append(first[1:], len(digits)) - 1
    numbers -= ((digits[last] & 16) > 0) * (1 << (5 * (place[last] + 1)))
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def bits_of_image(data: bytes, sizes: Sequence[tuple[int, int]]) -> Bits:
    """The pixels above zero, in any channel but alpha, which hides, of an image file that has one of `sizes`.

    Raises ValueError for what is no image.
    """
    if (size := stored_size(data)) not in sizes:
        raise ValueError(f"has {size[1]} x {size[0]} pixels, but the image has {sizes[0][1]} x {sizes[0][0]}")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape[:2] != size:
        raise ValueError("is not an image that can be decoded")
    if pixels.ndim == 3:
        colours = pixels[:, :, :3].max(2)
        pixels = np.where(pixels[:, :, 3], colours, 0) if pixels.shape[2] == 4 else colours
    return (pixels > 0).astype(np.uint8)
