"""Labels stay on the pixels that they were drawn on: under EXIF orientations, zoom, crop and flip."""

from __future__ import annotations

import io
import math
import string
from typing import Any

import faster_coco_eval.core.mask as coco
import numpy as np
import PIL.Image
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data import masks
from orchestrator.data.headers import orientation_of
from orchestrator.data.images import TURNS, open_image, upright
from orchestrator.data.objects import Objects, decode_mask, resolve, to_targets
from trainables.contracts import Instance, Sample, Targets

quick = settings(deadline=None, max_examples=50, derandomize=True, database=None)

Box = tuple[int, int, int, int]
sides = st.integers(8, 60)
orientations = st.sampled_from(sorted(TURNS))


@st.composite
def drawings(draw: st.DrawFn) -> tuple[int, int, list[Box]]:
    """Height and width of an image, and boxes inside it."""
    height, width = draw(sides), draw(sides)
    boxes = []
    for _ in range(draw(st.integers(1, 3))):
        x0, y0 = draw(st.integers(0, width - 2)), draw(st.integers(0, height - 2))
        boxes.append((x0, y0, draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))))
    return height, width, boxes


@st.composite
def views(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "scale": draw(st.floats(0.3, 4)),
        "left": draw(st.floats(-20, 40)),
        "top": draw(st.floats(-20, 40)),
        "flip_x": draw(st.booleans()),
        "flip_y": draw(st.booleans()),
        "size": draw(st.integers(12, 32)),
    }


def paint(height: int, width: int, box: Box) -> np.ndarray:
    pixels = np.zeros((height, width), np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = 1
    return pixels


def polygon_of(box: Box) -> list[list[float]]:
    x0, y0, x1, y1 = box
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def runs_of(bits: np.ndarray) -> dict[str, Any]:
    return coco.encode(np.asfortranarray(bits))  # type: ignore[no-any-return]


def sample(*objects: Instance, **fields: Any) -> Sample:
    return Sample("a", "train", "a", "1:1", objects=objects, **fields)


def extent(bits: np.ndarray) -> list[int]:
    """The box of what is painted."""
    rows, columns = np.flatnonzero(bits.any(1)), np.flatnonzero(bits.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def seen(bits: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    """What a view shows of painted pixels: one after the other, by the definition."""
    size, scale = how["size"], how["scale"]
    columns = [math.floor((u + 0.5) / scale + how["left"]) for u in range(size)][:: -1 if how["flip_x"] else 1]
    rows = [math.floor((v + 0.5) / scale + how["top"]) for v in range(size)][:: -1 if how["flip_y"] else 1]
    height, width = bits.shape
    return np.array(
        [[bits[y, x] if 0 <= y < height and 0 <= x < width else 0 for x in columns] for y in rows], np.uint8
    )


def masks_of(targets: Targets) -> np.ndarray:
    assert targets.masks is not None
    return targets.masks.numpy()


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


# ---------------------------------------------------------------------------------------------------- EXIF


def png(pixels: np.ndarray, orientation: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.dstack([pixels * 200] * 3)).save(buffer, "PNG", exif=exif.tobytes())
    return buffer.getvalue()


@quick
@given(drawings(), orientations, st.sampled_from(["box", "polygon", "runs"]), st.booleans())
def test_labels_turn_with_the_pixels(
    drawing: tuple[int, int, list[Box]], orientation: int, kind: str, relative: bool
) -> None:
    height, width, boxes = drawing
    for box in boxes:
        picture = open_image(png(paint(height, width, box), orientation))
        painted = (picture.pixels[:, :, 0] > 100).astype(np.uint8)
        whole = np.array([width, height] * 2) if relative else np.ones(4)
        instance = {
            "box": Instance(0, tuple((box / whole).tolist())),
            "polygon": Instance(0, None, (np.array(polygon_of(box)) / whole[[0, 1] * 4]).tolist()),
            "runs": Instance(0, None, runs_of(paint(height, width, box))),
        }[kind]
        objects, messages = resolve(sample(instance, relative=relative), (height, width), picture.orientation)
        assert messages == []
        assert np.allclose(objects.boxes, [extent(painted)], atol=1e-4)
        if objects.masks is not None:
            assert np.array_equal(decode_mask(objects.masks[0], *painted.shape), painted)


@quick
@given(drawings(), orientations)
def test_labels_of_upright_pixels_stay(drawing: tuple[int, int, list[Box]], orientation: int) -> None:
    height, width, boxes = drawing
    stored = (width, height) if TURNS[orientation][0] else (height, width)
    instances = [Instance(0, box, polygon_of(box)) for box in boxes]
    objects, _ = resolve(sample(*instances), stored, orientation, "upright")
    assert objects.boxes.tolist() == [list(box) for box in boxes]
    if stored != (height, width):
        told, _ = resolve(sample(*instances, size=(height, width)), stored, orientation)
        assert np.array_equal(told.boxes, objects.boxes)
        assert told.masks == objects.masks


@quick
@given(st.binary(max_size=60))
def test_no_exif_breaks_the_parser(exif: bytes) -> None:
    assert orientation_of(b"II*\0\x08\0\0\0" + exif) in TURNS
    assert orientation_of(b"MM\0*" + exif) in TURNS


# --------------------------------------------------------------------------------------------------- views


@quick
@given(drawings(), views())
def test_views_show_masks_where_the_pixels_are(drawing: tuple[int, int, list[Box]], how: dict[str, Any]) -> None:
    height, width, boxes = drawing
    painted = [paint(height, width, box) for box in boxes]
    objects, _ = resolve(
        sample(*[Instance(i, None, runs_of(bits)) for i, bits in enumerate(painted)]), (height, width), 1
    )
    targets = to_targets(objects, **how)
    shown = dict(zip(targets.labels.tolist(), masks_of(targets), strict=True))
    assert list(shown) == sorted(shown)
    found = dict(zip(targets.labels.tolist(), targets.boxes.numpy(), strict=True))
    for label, bits in enumerate(painted):
        expected = seen(bits, how)
        if label in shown:
            assert np.array_equal(shown[label], expected)
            assert np.abs(found[label] - extent(expected)).max() <= max(1, how["scale"] / 2 + 0.01)
        else:  # only what is less than a pixel of the view is left out
            x0, y0, x1, y1 = extent(expected) if expected.any() else (0, 0, 0, 0)
            assert min(x1 - x0, y1 - y0) <= 1


@quick
@given(drawings(), views())
def test_mirrored_views_have_mirrored_objects(drawing: tuple[int, int, list[Box]], how: dict[str, Any]) -> None:
    height, width, boxes = drawing
    instances = [Instance(i, box, polygon_of(box) if i % 2 else None) for i, box in enumerate(boxes)]
    objects, _ = resolve(sample(*instances), (height, width), 1)
    straight = to_targets(objects, **how | {"flip_x": False, "flip_y": False})
    mirrored = to_targets(objects, **how | {"flip_x": True, "flip_y": True})
    assert mirrored.labels.tolist() == straight.labels.tolist()
    assert np.allclose(mirrored.boxes, how["size"] - straight.boxes[:, [2, 3, 0, 1]], atol=1e-4)
    if straight.masks is not None:
        assert np.array_equal(masks_of(mirrored), masks_of(straight)[:, ::-1, ::-1])


@quick
@given(drawings(), views(), st.floats(0, 1))
def test_boxes_lie_in_the_view_in_their_order(
    drawing: tuple[int, int, list[Box]], how: dict[str, Any], keep: float
) -> None:
    height, width, boxes = drawing
    objects, _ = resolve(sample(*[Instance(i, box) for i, box in enumerate(boxes)]), (height, width), 1)
    targets = to_targets(objects, **how, keep=keep)
    found, labels = targets.boxes.numpy(), targets.labels.tolist()
    assert labels == sorted(labels)
    assert ((found >= 0) & (found <= how["size"])).all()
    assert (found[:, 2:] - found[:, :2] >= 0.999).all()
    whole = how["scale"] ** 2 * np.prod(objects.boxes[labels, 2:] - objects.boxes[labels, :2], axis=1)
    assert (np.prod(found[:, 2:] - found[:, :2], axis=1) >= 0.999 * keep * whole).all()


# ------------------------------------------------------------------------------------------ kinds of masks


@st.composite
def stars(draw: st.DrawFn) -> list[float]:
    """The outline of a shape of more than 20 pixels around (100, 100)."""
    count, radius = draw(st.integers(3, 24)), draw(st.floats(22, 80))
    x, y = draw(st.floats(90, 110)), draw(st.floats(90, 110))
    reach = radius * np.array(draw(st.lists(st.floats(0.7, 1), min_size=count, max_size=count)))
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False) + draw(st.floats(0, 1))
    return np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], 1).ravel().tolist()


@quick
@given(stars(), orientations)
def test_polygons_and_bitmaps_agree(outline: list[float], orientation: int) -> None:
    bits = coco.decode(coco.frPyObjects([outline], 200, 210))[:, :, 0]
    drawn, _ = resolve(sample(Instance(0, None, [outline]), Instance(0, None, runs_of(bits))), (200, 210), orientation)
    assert drawn.masks is not None
    expected = upright(bits, orientation)
    polygon, bitmap = (decode_mask(data, *expected.shape) for data in drawn.masks)
    assert np.array_equal(bitmap, expected)
    assert iou(polygon, expected) > 0.97
    assert np.abs(drawn.boxes[0] - drawn.boxes[1]).max() <= 1.5


@quick
@given(stars(), st.floats(0.7, 2), st.floats(-30, 60))
def test_polygons_in_a_view_are_drawn_as_coco_would(outline: list[float], scale: float, left: float) -> None:
    objects, _ = resolve(sample(Instance(0, None, [outline])), (200, 210), 1)
    targets = to_targets(objects, scale, left, left, False, False, 200)
    moved = ((np.array(outline) - left) * scale).tolist()
    expected = coco.decode(coco.frPyObjects([moved], 200, 200))[:, :, 0]
    if len(targets.labels) and min(np.diff(np.reshape(extent(expected), (2, 2)), axis=0)[0]) > 20:
        assert iou(masks_of(targets)[0], expected) > 0.96


@quick
@given(drawings())
def test_masks_are_encoded_without_loss(drawing: tuple[int, int, list[Box]]) -> None:
    height, width, boxes = drawing
    outlines = masks.Outlines(tuple(np.array(polygon_of(box), np.float32).reshape(-1, 2) / 3 for box in boxes))
    again = masks.decode(masks.encode(outlines))
    assert isinstance(again, masks.Outlines)
    assert all(np.array_equal(a, b) for a, b in zip(again.parts, outlines.parts, strict=True))
    bits = np.bitwise_or.reduce([paint(height, width, box) for box in boxes])
    assert np.array_equal(decode_mask(masks.encode(masks.crop(bits)), height, width), bits)


@quick
@given(drawings(), st.booleans())
def test_resolved_labels_resolve_to_themselves(drawing: tuple[int, int, list[Box]], with_masks: bool) -> None:
    height, width, boxes = drawing
    instances = [Instance(i, box, polygon_of(box) if with_masks else None, i == 1) for i, box in enumerate(boxes)]
    once, _ = resolve(sample(*instances), (height, width), 1)
    again, messages = resolve(
        sample(
            *[
                Instance(int(label), tuple(box.tolist()), polygon_of(tuple(box)) if with_masks else None, bool(crowd))
                for label, box, crowd in zip(once.labels, once.boxes, once.crowd, strict=True)
            ]
        ),
        (height, width),
        1,
    )
    assert messages == []
    assert same(once, again)


def same(one: Objects, other: Objects) -> bool:
    arrays = ("labels", "boxes", "crowd")
    return all(np.array_equal(getattr(one, a), getattr(other, a)) for a in arrays) and one.masks == other.masks


# ------------------------------------------------------------------------------------------------ run lengths


@quick
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_compressed_run_lengths_are_those_of_coco(height: int, width: int, seed: int, share: float) -> None:
    bits = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    assert np.array_equal(masks.bits_of_runs(runs_of(bits), [(height, width)]), bits)


@quick
@given(st.one_of(st.text(string.printable, max_size=40), st.binary(max_size=40), st.lists(st.integers(), max_size=6)))
def test_damaged_run_lengths_are_dropped_and_never_crash(counts: Any) -> None:
    objects, messages = resolve(sample(Instance(0, None, {"size": [9, 7], "counts": counts})), (9, 7), 1)
    assert len(objects) + len(messages) == 1


@quick
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=9))
def test_no_polygon_breaks_anything(outline: list[float]) -> None:
    objects, messages = resolve(sample(Instance(0, None, [outline])), (30, 40), 1)
    assert len(objects) + len(messages) == 1
    if len(objects):
        to_targets(objects, 2.0, -3.0, 4.0, True, False, 32)
