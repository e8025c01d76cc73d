"""A look at one image: what it is, what its labels are worth, and its fingerprints."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import cv2
import numpy as np
import simplejpeg

from orchestrator.checking.duplicates import SIDE
from orchestrator.data.images import Image, Picture, load_stored, open_image
from orchestrator.data.objects import Frame, Objects, resolve
from trainables.contracts import Sample

DECODED = 128
"""The long side, in pixels, down to which large JPEGs may be decoded at reduced scale."""
OUTSIDE, TINY = 0.01, 0.01
"""A box reaches beyond the image, and a box is tiny, from this share of the image's side on."""

Array = np.ndarray[Any, np.dtype[Any]]
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the upright image at full scale."""
Load = Callable[[str], bytes | Image]


@dataclass
class Look:
    """What one image is. `flaws`: (kind, detail, box); a broken image has nothing else."""

    flaws: list[tuple[str, str, Box | None]]
    broken: bool = False
    content: tuple[str, str] = ("", "")
    orientation: int = 1
    height: int = 0
    width: int = 0
    length: int = 0
    digest: bytes = b""
    thumbnail: Array = field(default_factory=lambda: np.zeros((SIDE, SIDE), np.uint8))
    answer: int = 0
    objects: Objects | None = None


def look(sample: Sample, load: Load, frame: Frame) -> Look:
    """Open one image and compare its labels with it."""
    try:
        content = load(sample.image)
        if isinstance(content, bytes) and not content:
            return Look([("empty_image", "the file is empty", None)], broken=True)
        picture = picture_of(content, DECODED)
    except FileNotFoundError:
        return Look([("missing_image", "there is no such file", None)], broken=True)
    except (OSError, ValueError) as error:
        return Look([("broken_image", str(error), None)], broken=True)
    grey = cv2.cvtColor(picture.pixels, cv2.COLOR_RGB2GRAY)
    data = content if isinstance(content, bytes) else content.tobytes()
    found = Look(
        [],
        content=content_of(content) if isinstance(content, bytes) else ("pixels", "RGB"),
        orientation=picture.orientation,
        height=picture.height,
        width=picture.width,
        length=len(data),
        digest=blake2b(data, digest_size=16).digest(),
        thumbnail=cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA),
    )
    labels = [sample.label]
    if sample.objects is not None:
        found.objects, messages = resolve(sample, picture.raw_size, picture.orientation, frame)
        found.flaws = [*_label_flaws(sample, picture, frame, messages), *_box_flaws(found.objects, picture)]
        labels = sorted(found.objects.labels.tolist())
    found.answer = int.from_bytes(blake2b(repr(labels).encode(), digest_size=8).digest())
    return found


def picture_of(content: bytes | Image, needed: int | None) -> Picture:
    """What a format's `load` gave; a large JPEG maybe at a reduced scale, its long side not below `needed`."""
    if isinstance(content, bytes):
        return open_image(content, needed, fit="long")
    return load_stored(content, side=2**31, fit="long")  # as it is, if it is an image


def content_of(data: bytes) -> tuple[str, str]:
    """The file format and the mode ("RGB", "grey", "CMYK", ...) of an image that can be opened, from its header."""
    if data.startswith(b"\xff\xd8"):
        mode = simplejpeg.decode_jpeg_header(data)[2]
        return "JPEG", {"Gray": "grey", "YCbCr": "RGB"}.get(mode, mode)
    if data.startswith(b"\x89PNG"):
        deep = "-16" if data[24] == 16 else ""
        return "PNG", {0: "grey", 2: "RGB", 3: "palette", 4: "grey + alpha", 6: "RGBA"}[data[25]] + deep
    import PIL.Image

    with PIL.Image.open(io.BytesIO(data)) as image:
        mode = image.mode
        return str(image.format), {"1": "1 bit", "L": "grey", "P": "palette", "I;16": "grey-16"}.get(mode, mode)


def _label_flaws(
    sample: Sample, picture: Picture, frame: Frame, messages: list[str]
) -> Iterator[tuple[str, str, Box | None]]:
    """What is wrong with the labels as they stand in the file."""
    for message in messages:
        kind = "dropped_object" if message.endswith(": dropped") else "label_remark"
        yield "dropped_mask" if "its box stays" in message else kind, message.removesuffix(": dropped"), None
    raw, upright = picture.raw_size, (picture.height, picture.width)
    if (
        picture.orientation > 1
        and sample.objects
        and frame == "auto"
        and (sample.size == raw) == (sample.size == upright)
    ):
        yield "orientation_unclear", f"EXIF orientation {picture.orientation}", None
    height, width = (1, 1) if sample.relative else sample.size or (upright if frame == "upright" else raw)
    across, down = picture.width / width, picture.height / height
    for number, instance in enumerate(sample.objects or ()):
        if instance.box is None:
            continue
        x0, y0, x1, y1 = instance.box
        beyond = max(-x0 / width, -y0 / height, x1 / width - 1, y1 / height - 1)
        if beyond > OUTSIDE:
            box = (x0 * across, y0 * down, x1 * across, y1 * down) if picture.orientation == 1 else None
            yield "box_outside", f"box {number}: {100 * beyond:.3g} % beyond", box


def _box_flaws(objects: Objects, picture: Picture) -> Iterator[tuple[str, str, Box | None]]:
    """What is suspicious about the boxes that stay."""
    if not len(objects.boxes):
        return
    boxes = objects.boxes.astype(np.float64)
    sides = (boxes[:, 2:] - boxes[:, :2]) / (picture.width, picture.height)
    for i in np.flatnonzero(sides.min(1) < TINY):
        width, height = boxes[i, 2:] - boxes[i, :2]
        yield "tiny_object", f"{width:.3g} × {height:.3g} pixels", _box(boxes[i])
    seen: dict[tuple[int, ...], int] = {}
    for number, key in enumerate(np.round(boxes * 2).astype(np.int64).tolist()):  # equal to half a pixel
        first = seen.setdefault(tuple(key), number)
        if first != number:
            same = objects.labels[number] == objects.labels[first]
            yield "repeated_object" if same else "two_classes", "", _box(boxes[number])


def _box(row: Array) -> Box:
    x0, y0, x1, y1 = (float(value) for value in row)
    return x0, y0, x1, y1
