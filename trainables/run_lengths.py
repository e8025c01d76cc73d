"""Masks as COCO's compressed run lengths, made from the part of an image that they lie in."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainables.contracts import RunLengths

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""


def encode(bits: np.ndarray[Any, Any], left: int, top: int, size: tuple[int, int]) -> RunLengths:
    """The run lengths of a mask in an image of `size` (height, width).

    bits: (h, w), above 0 on the object, of the window whose corner lies at (left, top) and which lies in the image.
    COCO counts down the columns, zeros first; `counts` is its compressed text.
    """
    from faster_coco_eval.core.mask import frPyObjects

    height, width = size
    padded = np.zeros((bits.shape[1], bits.shape[0] + 2), np.int8)
    padded[:, 1:-1] = bits.T > 0
    column, row = np.nonzero(np.diff(padded, axis=1))  # where a run begins or ends, in reading order
    at = (column + left) * height + row + top
    joined = np.flatnonzero(at[1:-1:2] == at[2::2]) * 2 + 1  # a run that goes on in the next column
    at = np.delete(at, np.concatenate([joined, joined + 1]))
    counts = np.diff(at, prepend=0, append=height * width)
    counts = counts[: len(counts) - (counts[-1] == 0)]  # the object ends with the image
    encoded = frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def paste(mask: np.ndarray[Any, Any], box: Box, size: tuple[int, int]) -> RunLengths:
    """The run lengths of a mask that a model gives for a box, in an image of `size` (height, width).

    mask: (h, w) probabilities of the cells of a grid over the box, which may reach beyond the image. A pixel belongs to
    the object where they, interpolated between the centres of the cells and zero beyond the outermost ones, are at
    least a half at its centre (He et al., 2017). Exact to the fraction of a pixel, unlike torchvision's.
    """
    x0, y0, x1, y1 = box
    left, right = _pixels(x0, x1, size[1])
    top, bottom = _pixels(y0, y1, size[0])
    if right <= left or bottom <= top:
        return encode(np.zeros((0, 0)), 0, 0, size)
    rows = _weights(y0, y1, top, bottom, mask.shape[0])
    columns = _weights(x0, x1, left, right, mask.shape[1])
    return encode(rows @ mask.astype(np.float32) @ columns.T >= 0.5, left, top, size)


def _pixels(first: float, last: float, length: int) -> tuple[int, int]:
    """The pixels of a row of `length` that a span may cover."""
    return max(int(np.floor(first)), 0), min(int(np.ceil(last)), length)


def _weights(first: float, last: float, begin: int, end: int, cells: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(end - begin, cells): what each cell of a span adds to the pixels `begin` to `end`."""
    at = (np.arange(begin, end) + 0.5 - first) * (cells / (last - first)) - 0.5
    weights: np.ndarray[Any, np.dtype[np.float32]]
    weights = np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0).astype(np.float32)
    return weights
