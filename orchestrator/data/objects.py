"""The labelled objects of an image: from a reader's instances to the upright image, and on to a view of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

from orchestrator.data import masks
from orchestrator.data.files import read_bytes
from orchestrator.data.images import TURNS, upright

if TYPE_CHECKING:
    from trainables.contracts import Polygons, RunLengths, Sample, Targets

Frame = Literal["auto", "stored", "upright"]
"""Which pixels the labels of a file with an EXIF orientation were drawn on: those in the file, or those made upright.

"auto": the one whose size the labels declare; "stored" where that does not tell.
"""

_Array = np.ndarray[Any, np.dtype[np.float64]]

_SAME_SHAPE = 0.01
"""Labels drawn on an image of another size are scaled where width / height differs by at most so much."""


@dataclass(frozen=True)
class Objects:
    """The objects of one image, in pixels of the upright image at full scale.

    labels: (n,) int64. boxes: (n, 4) float32 xyxy, inside the image. crowd: (n,) bool.
    masks: of each object as `masks.encode` makes them, b"" for one with a box only; None where no object has one.
    """

    labels: np.ndarray[Any, np.dtype[np.int64]]
    boxes: np.ndarray[Any, np.dtype[np.float32]]
    crowd: np.ndarray[Any, np.dtype[np.bool_]]
    masks: tuple[bytes, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)


def resolve(
    sample: Sample,
    raw_size: tuple[int, int],
    orientation: int,
    frame: Frame = "auto",
    read: Callable[[str], bytes] = read_bytes,
) -> tuple[Objects, list[str]]:
    """The objects of a sample, and what was dropped of them and why.

    raw_size: (height, width) of the file's pixels before the EXIF orientation. read: gives the content of mask images.
    Boxes are clipped to the image. A mask that cannot be used leaves the object its box, if it has one.
    """
    instances = sample.objects or ()
    space, complaint = _space(sample, raw_size, orientation, frame)
    messages = [complaint] if complaint and instances else []
    boxes = space.boxes(np.array([(np.nan,) * 4 if i.box is None else i.box for i in instances], np.float64))
    encoded = [b""] * len(instances)
    dropped: dict[int, str] = {}
    for i, instance in enumerate(instances):
        if instance.mask is None:
            if instance.box is None:
                dropped[i] = f"object {i} (class {instance.label}) has neither box nor mask"
            continue
        try:
            mask = _mask(instance.mask, space, read)
        except (OSError, ValueError) as error:
            problem = f"mask {i} (class {instance.label}) {error}"
            if instance.box is None:
                dropped[i] = problem
            else:
                messages.append(f"{problem}: dropped, its box stays")
        else:
            encoded[i] = masks.encode(mask)
            if instance.box is None:
                boxes[i] = masks.bounds(mask)
    inside, problems = _clip(boxes, space.size)
    dropped = {i: f"box {i} (class {instances[i].label}) {problem}" for i, problem in problems.items()} | dropped
    messages += [f"{dropped[i]}: dropped" for i in sorted(dropped)]
    kept = [i for i in range(len(instances)) if i not in dropped]
    return Objects(
        labels=np.array([instances[i].label for i in kept], np.int64),
        boxes=inside[kept],
        crowd=np.array([instances[i].crowd for i in kept], np.bool_),
        masks=tuple(encoded[i] for i in kept) if any(encoded[i] for i in kept) else None,
    ), messages


def decode_mask(data: bytes, height: int, width: int) -> masks.Bits:
    """An encoded mask as the pixels of the upright image at full scale; b"" gives no pixel."""
    out = np.zeros((height, width), np.uint8)
    if data:
        masks.draw(masks.decode(data), out)
    return out


def to_targets(
    objects: Objects,
    scale: float,
    left: float,
    top: float,
    flip_x: bool,
    flip_y: bool,
    size: int,
    keep: float = 0.0,
) -> Targets:
    """The objects in the view of size x size pixels that shows the image from (left, top) on at `scale`, then mirrored.

    Left out is what is less than a pixel wide or high, what shows less than `keep` of its box, and a mask without a
    pixel in the view. In a set of masks, an object with a box only has that as its mask.
    """
    import torch

    from trainables.contracts import Targets

    boxes = (objects.boxes.astype(np.float64) - (left, top, left, top)) * scale
    boxes = _mirrored(boxes, flip_x, flip_y, size)
    areas = _areas(boxes)
    boxes = np.clip(boxes, 0, size)
    kept = np.flatnonzero(_is_wide(boxes, 1) & (_areas(boxes) >= keep * areas))
    drawn = None
    if objects.masks is not None:
        drawn = np.zeros((len(kept), size, size), np.uint8)
        for out, i in zip(drawn, kept, strict=True):
            mask = masks.decode(objects.masks[i]) if objects.masks[i] else masks.rectangle(objects.boxes[i])
            masks.draw(mask, out[:: -1 if flip_y else 1, :: -1 if flip_x else 1], scale, left, top)
        visible = drawn.any((1, 2))
        kept, drawn = kept[visible], drawn if visible.all() else drawn[visible]
    return Targets(
        boxes=torch.from_numpy(boxes[kept].astype(np.float32)),
        labels=torch.from_numpy(objects.labels[kept]),
        crowd=torch.from_numpy(objects.crowd[kept]),
        masks=None if drawn is None else torch.from_numpy(drawn),
    )


@dataclass(frozen=True)
class _Space:
    """The pixels that labels are about, and the way from there to the upright image at full scale.

    drawn: (height, width) that coordinates are in. pixels: of the image then. turn: EXIF orientation to undo.
    """

    drawn: tuple[float, float]
    pixels: tuple[int, int]
    turn: int

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.pixels
        return (width, height) if TURNS[self.turn][0] else (height, width)

    def points(self, points: _Array) -> _Array:
        """(n, 2) x and y."""
        points = points * (self.pixels[1] / self.drawn[1], self.pixels[0] / self.drawn[0])
        transposed, flip_x, flip_y = TURNS[self.turn]
        points = points[:, ::-1] if transposed else points
        height, width = self.size
        return np.where((flip_x, flip_y), (width, height) - points, points)

    def boxes(self, boxes: _Array) -> _Array:
        """(n, 4) xyxy; a negative width or height stays one."""
        boxes = self.points(boxes.reshape(-1, 2)).reshape(-1, 4)
        _, flip_x, flip_y = TURNS[self.turn]
        return boxes[:, [2 * flip_x, 1 + 2 * flip_y, 2 - 2 * flip_x, 3 - 2 * flip_y]]


def _space(sample: Sample, raw: tuple[int, int], orientation: int, frame: Frame) -> tuple[_Space, str]:
    """Where a sample's labels were drawn, and what is odd about it."""
    standing = raw[::-1] if TURNS[orientation][0] else raw
    size = sample.size or raw
    if frame == "auto":
        told = size == standing or (_alike(size, standing) and not _alike(size, raw))
        frame = "upright" if told and size != raw else "stored"
    pixels, turn = (raw, orientation) if frame == "stored" else (standing, 1)
    if sample.relative:
        return _Space((1, 1), pixels, turn), ""
    if sample.size is None or _alike(size, pixels):
        return _Space(size if sample.size else pixels, pixels, turn), ""
    return _Space(pixels, pixels, turn), (
        f"the labels are for {size[1]} x {size[0]} pixels, but the image has {pixels[1]} x {pixels[0]}: "
        "their coordinates are taken as they are"
    )


def _alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have the same shape."""
    if min(one) < 1:
        return False
    return abs(one[1] * other[0] / (one[0] * other[1]) - 1) <= _SAME_SHAPE


def _mask(label: Polygons | RunLengths | str, space: _Space, read: Callable[[str], bytes]) -> masks.Mask:
    """A label's mask in the upright image. Raises OSError, or ValueError that says what is wrong with it."""
    height, width = space.size
    if isinstance(label, str | Mapping):
        drawn = (round(space.drawn[0]), round(space.drawn[1]))
        sizes = [space.pixels, drawn]
        bits = masks.bits_of_image(read(label), sizes) if isinstance(label, str) else masks.bits_of_runs(label, sizes)
        if bits.shape != space.pixels:
            bits = cv2.resize(bits, space.pixels[::-1], interpolation=cv2.INTER_NEAREST)  # type: ignore[assignment]
        return masks.crop(upright(bits, space.turn))
    parts = [space.points(part) for part in masks.outlines(label)]
    if any((part < -1).any() or (part > (width + 1, height + 1)).any() for part in parts):
        bits = np.zeros((height, width), np.uint8)
        masks.draw(masks.Outlines(tuple(parts)), bits)
        return masks.crop(bits)
    parts = [np.clip(part, 0, (width, height)).astype(np.float32) for part in parts]
    if not (parts := [part for part in parts if (part.max(0) > part.min(0)).all()]):
        raise ValueError("is empty")
    return masks.Outlines(tuple(parts))


def _clip(boxes: _Array, size: tuple[int, int]) -> tuple[np.ndarray[Any, np.dtype[np.float32]], dict[int, str]]:
    """The boxes inside an image, and what is wrong with those that have no part in it."""
    inside = np.clip(boxes, 0, (size[1], size[0]) * 2).astype(np.float32)
    problems = {}
    for i in np.flatnonzero(~_is_wide(inside) | ~np.isfinite(boxes).all(1)).tolist():
        if not np.isfinite(boxes[i]).all():
            problems[i] = "has coordinates that are no numbers"
        else:
            problems[i] = "lies outside the image" if _is_wide(boxes[[i]]) else "has no area"
    return inside, problems


def _mirrored(boxes: _Array, flip_x: bool, flip_y: bool, size: int) -> _Array:
    """Boxes in a square that is mirrored."""
    if flip_x:
        boxes = np.stack([size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], 1)
    if flip_y:
        boxes = np.stack([boxes[:, 0], size - boxes[:, 3], boxes[:, 2], size - boxes[:, 1]], 1)
    return boxes


def _areas(boxes: _Array) -> _Array:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _is_wide(boxes: np.ndarray[Any, Any], least: float = 0.0) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each box has an area and is at least so many pixels wide and high."""
    sides = boxes[:, 2:] - boxes[:, :2]
    wide: np.ndarray[Any, np.dtype[np.bool_]] = ((sides > 0) & (sides >= least)).all(1)
    return wide
