"""A look at every image of a manifest, in threads, and what they add up to.

What is kept grows by about 300 bytes per image; the pixels are gone when the next image is opened.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np

from orchestrator.checking.duplicates import SIDE
from orchestrator.checking.histogram import Histogram
from orchestrator.checking.look import Box, Look, look
from orchestrator.data import get_format
from orchestrator.data.manifest import Manifest
from orchestrator.data.objects import Frame
from trainables.contracts import Sample

CHUNK = 32
"""Images that a thread looks at in one go."""
EXAMPLES = 1000
"""Of a flaw, that are kept; all are counted."""

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
    """A kind of flaw: how often, and its first examples."""

    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, example: Example) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)


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
            "objects": Histogram(1, 2**14, steps=2, whole=64),
        }
        self.boxes = {
            "width": Histogram(2**-2, 2**17),
            "height": Histogram(2**-2, 2**17),
            "aspect": Histogram(2**-6, 2**6),
            "area": Histogram(2**-24, 1, steps=2),
        }
        """Sizes in pixels, aspect = width / height, area as a share of the image."""
        self.found: dict[str, Found] = {}

    def add(self, start: int, looks: list[Look]) -> None:
        """Take the looks at the samples from position `start` on."""
        for position, seen in enumerate(looks, start):
            for kind, detail, box in seen.flaws:
                self.found.setdefault(kind, Found()).add(Example((position,), detail, box))
            if not seen.broken:
                self._add_file(position, seen)
        self._add_sizes([seen for seen in looks if not seen.broken])

    def _add_file(self, position: int, seen: Look) -> None:
        self.fine[position] = True
        self.digests[position] = np.frombuffer(seen.digest, np.uint8)
        self.looks[position] = seen.thumbnail
        self.answers[position] = seen.answer
        self.bytes += seen.length
        for name, value in zip(self.contents, (*seen.content, str(seen.orientation)), strict=True):
            self.contents[name][value] += 1

    def _add_sizes(self, looks: list[Look]) -> None:
        sizes = np.array([(seen.width, seen.height) for seen in looks], np.float64).reshape(-1, 2)
        objects = [(seen.objects, pixels) for seen, pixels in zip(looks, sizes.prod(1), strict=True)]
        labelled = [(found, pixels) for found, pixels in objects if found is not None]
        self.images["width"].add(sizes[:, 0])
        self.images["height"].add(sizes[:, 1])
        self.images["aspect"].add(sizes[:, 0] / sizes[:, 1])
        self.images["objects"].add([len(found) for found, _ in labelled])
        if labelled:
            boxes = np.concatenate([found.boxes for found, _ in labelled]).astype(np.float64)
            width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
            self.boxes["width"].add(width)
            self.boxes["height"].add(height)
            self.boxes["aspect"].add(width / height)
            self.boxes["area"].add(width * height / np.repeat([p for _, p in labelled], [len(o) for o, _ in labelled]))


def scan(manifest: Manifest, frame: Frame, threads: int, on_progress: Callable[[int, int], None]) -> Scan:
    """Look at all images of a manifest. Stops within an image per thread where it is interrupted."""
    result, load, total = Scan(len(manifest)), get_format(manifest.format).load, len(manifest)
    stop, position = threading.Event(), 0

    def look_at(samples: list[Sample]) -> list[Look]:
        return [look(sample, load, frame) for sample in samples if not stop.is_set()]

    pool = ThreadPoolExecutor(threads, "check")
    try:
        on_progress(0, total)
        for looks in _in_order(pool, look_at, _chunks(manifest.samples()), 4 * threads):
            result.add(position, looks)
            position += len(looks)
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
