"""One look at every image of a manifest, in threads: what it is, what its labels are worth, and its fingerprints.

What is kept grows by about 300 bytes per image; the pixels are gone when the next image is opened.
"""

from __future__ import annotations

import io
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Any, TypeVar

import cv2
import numpy as np
import simplejpeg

from orchestrator.data import get_format
from orchestrator.data.duplicates import SIDE
from orchestrator.data.histogram import Histogram
from orchestrator.data.images import Image, Picture, load_stored, open_image
from orchestrator.data.manifest import Manifest
from orchestrator.data.objects import Frame, Objects, resolve
from trainables.contracts import Sample

CHUNK = 32
"""Images that a thread looks at in one go."""
DECODED = 128
"""The long side, in pixels, down to which large JPEGs may be decoded at reduced scale."""
EXAMPLES = 1000
"""Of a flaw, that are kept; all are counted."""
OUTSIDE, TINY = 0.01, 0.01
"""A box reaches beyond the image, and a box is tiny, from this share of the image's side on."""

Array = np.ndarray[Any, np.dtype[Any]]
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the upright image at full scale."""
Load = Callable[[str], bytes | Image]
Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Example:
    """A place where a flaw was found: samples (several for duplicates), what is wrong, and the box that is."""

    positions: tuple[int, ...]
    detail: str = ""
    box: Box | None = None


@dataclass
class Found:
    """A kind of flaw: how often, in how many images, and its first examples."""

    count: int = 0
    images: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, example: Example) -> None:
        self.count += 1
        self.images += not self.examples or self.examples[-1].positions != example.positions
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)


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
    objects: Objects | None = None


class Scan:
    """What is known of all images."""

    def __init__(self, total: int) -> None:
        self.fine = np.zeros(total, bool)
        """(n,) whether the image can be read."""
        self.digests = np.zeros((total, 16), np.uint8)
        self.looks = np.zeros((total, SIDE, SIDE), np.uint8)
        self.answers = np.zeros(total, np.uint64)
        """(n,) a hash of the classes of an image."""
        self.contents: dict[str, Counter[str]] = {name: Counter() for name in ("format", "mode", "orientation")}
        self.bytes = 0
        self.images = {
            "width": Histogram(1, 2**17),
            "height": Histogram(1, 2**17),
            "aspect": Histogram(2**-6, 2**6),
            "objects": Histogram(1, 2**14, steps=2, whole=16),
        }
        self.boxes = {
            "width": Histogram(2**-2, 2**17),
            "height": Histogram(2**-2, 2**17),
            "aspect": Histogram(2**-6, 2**6),
            "area": Histogram(2**-24, 1, steps=2),
        }
        """Sizes in pixels, aspect = width / height, area as a share of the image."""
        self.found: dict[str, Found] = {}

    def add(self, position: int, sample: Sample, look: Look) -> None:
        for kind, detail, box in look.flaws:
            self.found.setdefault(kind, Found()).add(Example((position,), detail, box))
        if look.broken:
            return
        self.fine[position] = True
        self.digests[position] = np.frombuffer(look.digest, np.uint8)
        self.looks[position] = look.thumbnail
        for name, value in zip(self.contents, (*look.content, str(look.orientation)), strict=True):
            self.contents[name][value] += 1
        self.bytes += look.length
        sizes: dict[str, float] = {"width": look.width, "height": look.height, "aspect": look.width / look.height}
        labels = [sample.label]
        if look.objects is not None:
            labels = sorted(look.objects.labels.tolist())
            sizes["objects"] = len(labels)
            self._add_boxes(look.objects.boxes, look.height * look.width)
        self.answers[position] = int.from_bytes(blake2b(repr(labels).encode(), digest_size=8).digest())
        for name, size in sizes.items():
            self.images[name].add(size)

    def _add_boxes(self, boxes: Array, pixels: int) -> None:
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        values = {"width": width, "height": height, "aspect": width / height, "area": width * height / pixels}
        for name, value in values.items():
            self.boxes[name].add(value)


def scan(manifest: Manifest, frame: Frame, threads: int, on_progress: Callable[[int, int], None]) -> Scan:
    """Look at all images of a manifest. Stops within an image per thread where it is interrupted."""
    result, load, total = Scan(len(manifest)), get_format(manifest.format).load, len(manifest)
    stop, position = threading.Event(), 0

    def look_at(samples: list[Sample]) -> list[tuple[Sample, Look]]:
        return [(sample, look(sample, load, frame)) for sample in samples if not stop.is_set()]

    pool = ThreadPoolExecutor(threads, "check")
    try:
        on_progress(0, total)
        for looks in _in_order(pool, look_at, _chunks(manifest.samples()), 4 * threads):
            for sample, seen in looks:
                result.add(position, sample, seen)
                position += 1
            on_progress(position, total)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    return result


def _chunks(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    while chunk := list(islice(samples, CHUNK)):
        yield chunk


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Given], Made], items: Iterable[Given], ahead: int
) -> Iterator[Made]:
    """The results in the order of the items, of which at most `ahead` are under way."""
    waiting: deque[Future[Made]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


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
    if sample.objects is not None:
        found.objects, messages = resolve(sample, raw_size(picture), picture.orientation, frame)
        found.flaws = [*_label_flaws(sample, picture, frame, messages), *_box_flaws(found.objects, picture)]
    return found


def picture_of(content: bytes | Image, needed: int | None) -> Picture:
    """What a format's `load` gave; a large JPEG maybe at a reduced scale, its long side not below `needed`."""
    if isinstance(content, bytes):
        return open_image(content, needed, fit="long")
    return load_stored(content, side=2**31, fit="long")  # as it is, if it is an image


def raw_size(picture: Picture) -> tuple[int, int]:
    """(height, width) of the file's pixels before they were turned upright."""
    return (picture.width, picture.height) if picture.orientation >= 5 else (picture.height, picture.width)


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
    raw, upright = raw_size(picture), (picture.height, picture.width)
    if (
        picture.orientation > 1
        and sample.objects
        and frame == "auto"
        and (sample.size == raw) == (sample.size == upright)
    ):
        yield "orientation_unclear", f"EXIF orientation {picture.orientation}", None
    height, width = (1, 1) if sample.relative else sample.size or (upright if frame == "upright" else raw)
    for number, instance in enumerate(sample.objects or ()):
        if instance.box is None:
            continue
        x0, y0, x1, y1 = instance.box
        beyond = max(-x0 / width, -y0 / height, x1 / width - 1, y1 / height - 1)
        if beyond > OUTSIDE:
            yield "box_outside", f"box {number} reaches {beyond:.1%} of the side beyond the image", None


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
