"""Images with their objects: predictions beside labels, and a training batch as the model sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from orchestrator.data import masks
from orchestrator.data.objects import Objects
from orchestrator.plots import canvas
from orchestrator.plots.canvas import Array, shorten
from orchestrator.plots.objects import CROWD, Marks, color_of, draw_marks, rgb
from orchestrator.plots.sheet import GAP, Legend, compose, fit

EXAMPLES = 16
"""Most images of a picture."""
SURE, FEW = 0.25, 10
"""Predictions below this score are not drawn; where no prediction reaches it, the best few of each image are."""
WIDTH, LARGEST = 3200, 640
"""In pixels: of a sheet at most; of the long side of an image in it."""
NAME_LETTERS, LEGEND_LETTERS = 18, 28


@dataclass(frozen=True)
class Picture:
    """A validation image with its labels.

    name: of the sample. image: (height, width, 3) RGB uint8, at any scale. size: (height, width) of the image at full
    scale, in whose pixels the objects are; None: it has no objects.
    """

    name: str
    image: Array
    size: tuple[int, int]
    objects: Objects | None


Pictures = Callable[[int], Picture]
"""Gives the picture of a sample position."""


def plot_predictions(
    examples: Sequence[Mapping[str, Any]], pictures: Pictures, classes: Sequence[str], out: Path, with_masks: bool
) -> None:
    """Draw up to 16 validation images, each twice: with what is labelled, and with what was predicted.

    examples: {"id", "size": [h, w], "boxes", "labels", "scores", "masks": COCO's compressed run lengths} of each, at
    least one, in pixels of the original image. with_masks: whether masks are drawn, else boxes only.
    """
    examples = examples[:EXAMPLES]
    columns = 1 if len(examples) == 1 else max(2, math.ceil(math.sqrt(len(examples))))
    most = min(LARGEST, (WIDTH // columns - 2 * GAP) // 2)
    least = SURE if any(max(e["scores"], default=0) >= SURE for e in examples) else 0.0
    tiles, captions, seen = [], [], set[int]()
    for example in examples:
        picture = pictures(example["id"])
        ground, shown = fit(picture.image, most), _shown(example, least)
        labels = picture.objects.labels.tolist() if picture.objects else []
        seen |= {*labels, *(example["labels"][i] for i in shown)}
        left = draw_marks(ground, _labelled(picture, ground.shape, classes, with_masks))
        right = draw_marks(ground, _predicted(example, shown, ground.shape, classes, with_masks))
        tiles.append(np.concatenate([left, np.full((len(ground), 4, 3), 255, np.uint8), right], 1))
        captions.append(f"{picture.name}: {len(labels)} labelled, {len(shown)} predicted")
    rule = f"a score of at least {SURE}" if least else f"the {FEW} best scores of an image, none of them above {SURE}"
    head = f"Left: as labelled. Right: predictions with {rule}."
    canvas.save_pixels(compose(tiles, captions, columns, head, _legend(seen, classes)), out)


def plot_targets(
    images: Array,
    boxes: Sequence[Array],
    labels: Sequence[Array],
    object_masks: Sequence[Array | None],
    classes: Sequence[str],
    out: Path,
) -> None:
    """Draw the first 16 images of a training batch with their objects, as the model sees them.

    images: (n, size, size, 3) uint8 RGB, n > 0. Of each image: boxes (k, 4) xyxy in its pixels, labels (k,), and masks
    (k, size, size) uint8, or None.
    """
    count = min(len(images), EXAMPLES)
    columns = math.ceil(math.sqrt(count))
    tiles, captions, seen = [], [], set[int]()
    for i in range(count):
        ground = fit(images[i], min(LARGEST, WIDTH * 2 // 3 // columns - GAP))
        scale = len(ground) / images.shape[1]
        order = _largest_first(boxes[i])
        drawn = object_masks[i]
        marks = Marks(
            boxes[i][order] * scale,
            [color_of(int(label)) for label in labels[i][order]],
            [_name(int(label), classes) for label in labels[i][order]],
            None if drawn is None else (_resized(drawn[k], ground.shape) for k in order),
        )
        tiles.append(draw_marks(ground, marks))
        captions.append(f"{len(order)} object{'s' * (len(order) != 1)}")
        seen |= set(labels[i].tolist())
    shown = f"the first {count} of {len(images)} images" if len(images) > count else "all images"
    head = f"The first training batch, as the model sees it: {shown}."
    canvas.save_pixels(compose(tiles, captions, columns, head, _legend(seen, classes)), out)


def _shown(example: Mapping[str, Any], least: float) -> list[int]:
    """Which predictions of an image are drawn, the surest first."""
    order = sorted(range(len(example["scores"])), key=lambda i: -example["scores"][i])
    return [i for i in order if example["scores"][i] >= least] if least else order[:FEW]


def _labelled(picture: Picture, shape: tuple[int, ...], classes: Sequence[str], with_masks: bool) -> Marks:
    """The labels of an image, in pixels of its tile, the largest first; crowds are grey."""
    objects, scale = picture.objects, shape[1] / picture.size[1]
    if objects is None:
        return Marks(np.zeros((0, 4)), [], [])
    order = _largest_first(objects.boxes)
    crowd = objects.crowd[order].tolist()
    labels = objects.labels[order].tolist()
    return Marks(
        objects.boxes[order] * scale,
        [rgb(CROWD) if many else color_of(label) for label, many in zip(labels, crowd, strict=True)],
        [
            f"crowd {_name(label, classes)}".strip() if many else _name(label, classes)
            for label, many in zip(labels, crowd, strict=True)
        ],
        _drawn(objects, order, shape, scale) if with_masks else None,
    )


def _drawn(objects: Objects, order: Sequence[int], shape: tuple[int, ...], scale: float) -> Iterator[Array | None]:
    for i in order:
        out = None
        if objects.masks is not None and objects.masks[i]:
            out = np.zeros(shape[:2], np.uint8)
            masks.draw(masks.decode(objects.masks[i]), out, scale)
        yield out


def _predicted(
    example: Mapping[str, Any], shown: Sequence[int], shape: tuple[int, ...], classes: Sequence[str], with_masks: bool
) -> Marks:
    """Predictions of an image, in pixels of its tile."""
    boxes = np.array([example["boxes"][i] for i in shown], np.float64).reshape(-1, 4)
    labels = [int(example["labels"][i]) for i in shown]
    names = [f"{_name(label, classes)} {example['scores'][i]:.2f}" for i, label in zip(shown, labels, strict=True)]
    found = None
    if with_masks:
        found = (_resized(_decoded(example["masks"][i]), shape) for i in shown)
    scale = shape[1] / example["size"][1]
    return Marks(boxes * scale, [color_of(label) for label in labels], [n.strip() for n in names], found)


def _decoded(runs: Mapping[str, Any]) -> Array:
    """COCO's compressed run lengths as (height, width) uint8."""
    from faster_coco_eval.core import mask

    counts = runs["counts"]
    encoded = {"size": runs["size"], "counts": counts.encode() if isinstance(counts, str) else counts}
    return np.asarray(mask.decode(encoded))


def _resized(bits: Array, shape: tuple[int, ...]) -> Array:
    """A mask of ones in the size of a tile: the pixels that it fills at least half."""
    height, width = shape[:2]
    if bits.shape == (height, width):
        return np.ascontiguousarray(bits)
    smaller = height < bits.shape[0]
    method = cv2.INTER_AREA if smaller else cv2.INTER_NEAREST
    # transposed, because decoded run lengths lie in memory column by column
    grey = cv2.resize(bits.T * np.uint8(255), (height, width), interpolation=method).T
    return np.ascontiguousarray(grey > 127).view(np.uint8)


def _largest_first(boxes: Array) -> list[int]:
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order: list[int] = np.argsort(-areas, kind="stable").tolist()
    return order


def _name(label: int, classes: Sequence[str]) -> str:
    """Nothing where there is one class only: it would say the same everywhere."""
    return shorten(classes[label], NAME_LETTERS) if len(classes) > 1 else ""


def _legend(seen: set[int], classes: Sequence[str]) -> Legend:
    return [(color_of(label), shorten(classes[label], LEGEND_LETTERS)) for label in sorted(seen)]
