from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import faster_coco_eval.core.mask as coco
import numpy as np
import PIL.Image
import pytest

from orchestrator.data import masks
from orchestrator.data.objects import Objects, decode_mask, resolve, to_targets
from trainables.contracts import Instance, Sample, Targets

H, W = 50, 100
SQUARE = [20.0, 10.0, 40.0, 10.0, 40.0, 30.0, 20.0, 30.0]
"""A polygon of 20 x 20 pixels, 20 from the left and 10 from the top."""


def sample(*objects: Instance, size: tuple[int, int] | None = None, relative: bool = False) -> Sample:
    return Sample("a.jpg", "train", "/a.jpg", "1:1", objects=objects, size=size, relative=relative)


def square_bits() -> np.ndarray:
    bits = np.zeros((H, W), np.uint8)
    bits[10:30, 20:40] = 1
    return bits


def runs_of(bits: np.ndarray) -> list[int]:
    """Uncompressed run lengths, column by column."""
    flat = bits.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *ends, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def image_of(pixels: np.ndarray, extension: str = ".png") -> Callable[[str], bytes]:
    data = cv2.imencode(extension, pixels)[1].tobytes()
    return lambda place: data


def view(objects: Objects, **how: Any) -> Targets:
    return to_targets(
        objects, **{"scale": 1.0, "left": 0.0, "top": 0.0, "flip_x": False, "flip_y": False, "size": 64} | how
    )


# --------------------------------------------------------------------------------------------------- boxes


def test_boxes_are_clipped_and_others_named_and_dropped() -> None:
    nan, inf = float("nan"), float("inf")
    objects, messages = resolve(
        sample(
            Instance(3, (10, 5, 20, 15)),
            Instance(1, (5, 5, 5, 9)),
            Instance(1, (20, 5, 10, 9)),
            Instance(2, (-5, -5, 30, 500), crowd=True),
            Instance(2, (100, 5, 130, 9)),
            Instance(2, (nan, 5, 9, 9)),
            Instance(2, (1, 1, inf, inf)),
            Instance(4),
            Instance(0, (99.5, 49.5, 101, 51)),
        ),
        (H, W),
        1,
    )
    assert objects.labels.tolist() == [3, 2, 0]
    assert objects.boxes.tolist() == [[10, 5, 20, 15], [0, 0, 30, 50], [99.5, 49.5, 100, 50]]
    assert objects.crowd.tolist() == [False, True, False]
    assert objects.masks is None
    assert [str(a.dtype) for a in (objects.labels, objects.boxes, objects.crowd)] == ["int64", "float32", "bool"]
    assert messages == [
        "box 1 (class 1) has no area: dropped",
        "box 2 (class 1) has no area: dropped",
        "box 4 (class 2) lies outside the image: dropped",
        "box 5 (class 2) has coordinates that are no numbers: dropped",
        "box 6 (class 2) has coordinates that are no numbers: dropped",
        "object 7 (class 4) has neither box nor mask: dropped",
    ]


@pytest.mark.parametrize("instances", [(), (Instance(0, (5, 5, 5, 5)),)])
def test_an_image_without_objects_has_empty_arrays(instances: tuple[Instance, ...]) -> None:
    objects, _ = resolve(sample(*instances), (H, W), 1)
    assert (objects.labels.shape, objects.boxes.shape, objects.crowd.shape) == ((0,), (0, 4), (0,))
    targets = view(objects)
    assert (tuple(targets.boxes.shape), len(targets.labels), targets.masks) == ((0, 4), 0, None)


def test_relative_coordinates_become_pixels() -> None:
    polygon = (np.array(SQUARE).reshape(-1, 2) / (W, H)).ravel().tolist()
    objects, messages = resolve(
        sample(Instance(0, (0.2, 0.2, 0.4, 0.6)), Instance(0, None, [polygon]), relative=True), (H, W), 1
    )
    assert np.allclose(objects.boxes, [[20, 10, 40, 30]] * 2, atol=1e-4)
    assert messages == []


# --------------------------------------------------------------------------------------------------- frame

ON_ITS_SIDE = (10, 5, 30, 15)
"""A box in the stored pixels (50 x 100), which EXIF orientation 6 turns to (35, 10, 45, 30) in 100 x 50."""
TURNED, AS_IT_IS = [35, 10, 45, 30], [10, 5, 30, 15]


@pytest.mark.parametrize(
    ("size", "frame", "expected"),
    [
        (None, "auto", TURNED),
        ((50, 100), "auto", TURNED),
        ((100, 50), "auto", AS_IT_IS),
        ((50, 100), "stored", TURNED),
        ((100, 50), "upright", AS_IT_IS),
        (None, "upright", AS_IT_IS),
        ((100, 200), "auto", [42.5, 5, 47.5, 15]),
        ((200, 100), "auto", [5, 2.5, 15, 7.5]),
        ((201, 100), "upright", [5, 2.49, 15, 7.46]),
    ],
)
def test_which_pixels_labels_are_about(size: tuple[int, int] | None, frame: Any, expected: list[float]) -> None:
    """The declared size decides; of an image of another size but the same shape, it also tells the scale."""
    objects, messages = resolve(sample(Instance(0, ON_ITS_SIDE), size=size), (H, W), 6, frame)
    assert np.allclose(objects.boxes, [expected], atol=0.01)
    assert messages == []


def test_labels_of_an_image_of_another_shape_are_taken_as_they_are_and_told_once() -> None:
    objects, messages = resolve(sample(*[Instance(0, ON_ITS_SIDE)] * 2, size=(77, 100)), (H, W), 1)
    assert objects.boxes.tolist() == [AS_IT_IS] * 2
    assert messages == [
        "the labels are for 100 x 77 pixels, but the image has 100 x 50: their coordinates are taken as they are"
    ]
    assert resolve(sample(size=(77, 100)), (H, W), 1)[1] == []
    fractions = resolve(sample(Instance(0, (0.1, 0.1, 0.2, 0.2)), size=(77, 100), relative=True), (H, W), 1)
    assert np.allclose(fractions[0].boxes, [[10, 5, 20, 10]])
    assert fractions[1] == []


def test_a_size_that_makes_no_sense_is_no_size() -> None:
    objects, messages = resolve(sample(Instance(0, ON_ITS_SIDE), size=(0, 0)), (H, W), 1)
    assert objects.boxes.tolist() == [AS_IT_IS]
    assert len(messages) == 1


# --------------------------------------------------------------------------------------------------- masks

COMPRESSED = coco.encode(np.asfortranarray(square_bits()))


@pytest.mark.parametrize(
    "mask",
    [
        [SQUARE],
        [[*SQUARE[:4], 40.0, 20.0, 20.0, 20.0], [20.0, 20.0, 40.0, 20.0, 40.0, 30.0, 20.0, 30.0]],
        {"size": [H, W], "counts": runs_of(square_bits())},
        {"size": [H, W], "counts": COMPRESSED["counts"]},
        {"size": [H, W], "counts": COMPRESSED["counts"].decode()},
        "mask.png",
    ],
    ids=["polygon", "two parts", "runs", "compressed bytes", "compressed text", "image"],
)
def test_every_kind_of_mask(mask: Any) -> None:
    objects, messages = resolve(sample(Instance(0, None, mask)), (H, W), 1, read=image_of(square_bits()))
    assert messages == []
    assert objects.masks is not None
    assert objects.boxes.tolist() == [[20, 10, 40, 30]]
    assert np.array_equal(decode_mask(objects.masks[0], H, W), square_bits())


@pytest.mark.parametrize("kind", ["grey 16", "colour", "alpha", "palette"])
def test_every_kind_of_mask_image(kind: str) -> None:
    """Whatever is above zero, be it one of 65,535 or the blue of a palette; alpha hides."""
    bits = square_bits()
    palette = io.BytesIO()
    image = PIL.Image.fromarray(bits).copy()
    image.putpalette([0, 0, 0, 0, 0, 1])
    image.save(palette, "PNG")
    read = {
        "grey 16": image_of(bits.astype(np.uint16)),
        "colour": image_of(np.dstack([bits, bits * 0, bits * 0])),
        "alpha": image_of(np.dstack([bits | 7, bits | 7, bits | 7, bits * 255])),
        "palette": lambda place: palette.getvalue(),
    }[kind]
    objects, messages = resolve(sample(Instance(0, None, "mask")), (H, W), 1, read=read)
    assert messages == []
    assert objects.masks is not None
    assert np.array_equal(decode_mask(objects.masks[0], H, W), bits)


def test_masks_of_a_resized_image_are_scaled() -> None:
    double = np.repeat(np.repeat(square_bits(), 2, 0), 2, 1)
    polygon = [2 * c for c in SQUARE]
    for mask in ([polygon], {"size": [2 * H, 2 * W], "counts": runs_of(double)}):
        objects, messages = resolve(sample(Instance(0, None, mask), size=(2 * H, 2 * W)), (H, W), 1)
        assert messages == []
        assert objects.masks is not None
        assert np.array_equal(decode_mask(objects.masks[0], H, W), square_bits())


def unreadable(place: str) -> bytes:
    raise OSError(f"{place} cannot be read")


def read_text(place: str) -> bytes:
    return b"no image"


@pytest.mark.parametrize(
    ("mask", "read", "message"),
    [
        ([], None, "is empty"),
        ([[]], None, "is empty"),
        ([[1.0, 1.0, 9.0, 9.0]], None, "is empty"),
        ([[1.0, 1.0, 5.0, 5.0, 9.0, 9.0]], None, "is empty"),
        ([[200.0, 1.0, 250.0, 1.0, 250.0, 40.0]], None, "is empty"),
        ([[1.0, 1.0, 5.0]], None, "has an outline that is no list of x, y, x, y, ..."),
        ([["a", "b"]], None, "has an outline that is no list of x, y, x, y, ..."),
        ([[1.0, 1.0, 5.0, 1.0, float("nan"), 9.0]], None, "has coordinates that are no numbers"),
        ({"size": [H, W], "counts": [H * W]}, None, "is empty"),
        ({"size": [W, H], "counts": [H * W]}, None, "has the size [100, 50], but the image is [50, 100]"),
        ({"counts": [H * W]}, None, "has the size None, but the image is [50, 100]"),
        ({"size": [H, W]}, None, "has damaged run lengths: they do not add up to 50 x 100 pixels"),
        ({"size": [H, W], "counts": [10, 20]}, None, "has damaged run lengths: "),
        ({"size": [H, W], "counts": [-10, H * W + 10]}, None, "has damaged run lengths: "),
        ({"size": [H, W], "counts": [0.5, H * W - 0.5]}, None, "has damaged run lengths: "),
        ({"size": [H, W], "counts": [2**62, 2**62, 2**62, 2**62, H * W]}, None, "has damaged run lengths: "),
        ({"size": [H, W], "counts": [2**80]}, None, "has damaged run lengths: "),
        ({"size": [H, W], "counts": [[1], [2, 3]]}, None, "has damaged run lengths: "),
        ({"size": [H, W], "counts": ""}, None, "has damaged run lengths: "),
        ({"size": [H, W], "counts": "~~~~"}, None, "has damaged run lengths: "),
        ({"size": [H, W], "counts": "o" * 99}, None, "has damaged run lengths: "),
        ({"size": [H, W], "counts": "ä"}, None, "has damaged run lengths: "),
        ("m.png", image_of(np.zeros((H, W), np.uint8)), "is empty"),
        ("m.png", image_of(np.ones((W, H), np.uint8)), "has 50 x 100 pixels, but the image has 100 x 50"),
        ("m.png", read_text, "not an image that can be decoded"),
        ("m.png", unreadable, "m.png cannot be read"),
    ],
)
def test_a_mask_that_cannot_be_used_leaves_the_box_or_nothing(
    mask: Any, read: Callable[[str], bytes] | None, message: str
) -> None:
    instances = (Instance(7, None, mask), Instance(8, (20, 10, 40, 30), mask))
    objects, messages = resolve(sample(*instances), (H, W), 1, read=read or unreadable)
    assert objects.labels.tolist() == [8]
    assert objects.masks is None
    assert messages[0].startswith(f"mask 1 (class 8) {message}")
    assert messages[0].endswith(": dropped, its box stays")
    assert messages[1].startswith(f"mask 0 (class 7) {message}")
    assert messages[1].endswith(": dropped")


def test_a_polygon_that_leaves_the_image_is_cut() -> None:
    triangle = [80.0, -40.0, 140.0, 25.0, 80.0, 90.0]
    objects, _ = resolve(sample(Instance(0, None, [triangle]), Instance(0, None, [SQUARE])), (H, W), 1)
    expected = coco.decode(coco.frPyObjects([triangle], H, W))[:, :, 0]
    assert objects.masks is not None
    got = decode_mask(objects.masks[0], H, W)
    assert (got & expected).sum() / (got | expected).sum() > 0.97
    assert objects.boxes[0].tolist() == [80, 0, 100, 50]


def test_a_polygon_just_beyond_the_border_keeps_its_coordinates() -> None:
    objects, _ = resolve(sample(Instance(0, None, [[90.25, -0.5, 100.5, -0.5, 100.5, 50.5, 90.25, 50.5]])), (H, W), 1)
    assert objects.boxes.tolist() == [[90.25, 0, 100, 50]]
    assert objects.masks is not None
    assert isinstance(masks.decode(objects.masks[0]), masks.Outlines)


def test_encoded_masks_are_small_and_name_their_kind() -> None:
    outlines = masks.Outlines((np.array(SQUARE, np.float32).reshape(-1, 2),))
    assert len(masks.encode(outlines)) == 9 + 8 * 4
    bitmap = masks.crop(square_bits())
    assert len(masks.encode(bitmap)) == 17 + 20 * 20 // 8
    with pytest.raises(ValueError, match="a mask of kind 9, which a newer version wrote"):
        masks.decode(b"\x09")
    assert not decode_mask(b"", H, W).any()


# --------------------------------------------------------------------------------------------------- views


def test_targets_follow_the_view() -> None:
    objects, _ = resolve(
        sample(Instance(1, (20, 10, 40, 30)), Instance(2, (60, 20, 90, 40), crowd=True), Instance(3, (0, 0, 4, 4))),
        (H, W),
        1,
    )
    targets = view(objects, scale=2.0, left=30.0, top=5.0, size=80)
    assert targets.boxes.tolist() == [[0, 10, 20, 50], [60, 30, 80, 70]]
    assert (targets.labels.tolist(), targets.crowd.tolist(), targets.masks) == ([1, 2], [False, True], None)
    mirrored = view(objects, scale=2.0, left=30.0, top=5.0, size=80, flip_x=True)
    assert mirrored.boxes.tolist() == [[60, 10, 80, 50], [0, 30, 20, 70]]
    upside_down = view(objects, scale=2.0, left=30.0, top=5.0, size=80, flip_y=True)
    assert upside_down.boxes.tolist() == [[0, 30, 20, 70], [60, 10, 80, 50]]


@pytest.mark.parametrize(("keep", "expected"), [(0.0, [0, 1, 2]), (0.2, [1, 2]), (0.5, [1, 2]), (0.51, [2])])
def test_what_shows_too_little_is_left_out(keep: float, expected: list[int]) -> None:
    objects, _ = resolve(
        sample(Instance(0, (0, 0, 20, 40)), Instance(1, (10, 0, 26, 40)), Instance(2, (30, 0, 40, 40))), (H, W), 1
    )
    assert view(objects, left=18.0, keep=keep).labels.tolist() == expected


def test_what_is_less_than_a_pixel_wide_or_high_is_left_out() -> None:
    objects, _ = resolve(
        sample(Instance(0, (10, 10, 13, 40)), Instance(1, (10, 10, 40, 13)), Instance(2, (10, 10, 14, 14))), (H, W), 1
    )
    assert view(objects, scale=0.25).labels.tolist() == [2]


@pytest.mark.parametrize("mask", [[SQUARE], {"size": [H, W], "counts": runs_of(square_bits())}])
def test_masks_follow_the_view(mask: Any) -> None:
    objects, _ = resolve(sample(Instance(0, None, mask), Instance(0, (60, 20, 90, 40))), (H, W), 1)
    targets = view(objects, scale=1.5, left=10.0, top=10.0, size=90, flip_y=True)
    expected = np.zeros((2, 90, 90), np.uint8)
    expected[0, 60:90, 15:45] = 1
    expected[1, 45:75, 75:90] = 1  # it has a box only, which is its mask
    assert targets.masks is not None
    assert np.array_equal(targets.masks.numpy(), expected)
    assert targets.boxes.tolist() == [[15, 60, 45, 90], [75, 45, 90, 75]]


def test_a_mask_without_a_pixel_in_the_view_is_left_out() -> None:
    corner = [10.0, 10.0, 50.0, 10.0, 50.0, 15.0, 15.0, 15.0, 15.0, 45.0, 10.0, 45.0]
    objects, _ = resolve(sample(Instance(0, None, [corner]), Instance(1, None, [SQUARE])), (H, W), 1)
    targets = view(objects, left=18.0, top=18.0, size=30)
    assert targets.labels.tolist() == [1]
    assert targets.masks is not None
    assert tuple(targets.masks.shape) == (1, 30, 30)


def test_a_view_without_objects_still_has_masks() -> None:
    objects, _ = resolve(sample(Instance(0, None, [SQUARE])), (H, W), 1)
    targets = view(objects, left=60.0, size=30)
    assert targets.masks is not None
    assert (tuple(targets.masks.shape), tuple(targets.boxes.shape)) == ((0, 30, 30), (0, 4))


def test_real_polygons(test_data: Path) -> None:
    """165 nuts, against COCO's own rasterisation."""
    folder = test_data / "nuts_coco"
    labels = json.loads(next(folder.rglob("*.json")).read_text())
    images = {image["id"]: image for image in labels["images"]}
    for annotation in labels["annotations"][::4]:
        size = images[annotation["image_id"]]["height"], images[annotation["image_id"]]["width"]
        objects, messages = resolve(sample(Instance(0, None, annotation["segmentation"]), size=size), size, 1)
        assert messages == []
        assert objects.masks is not None
        got = decode_mask(objects.masks[0], *size)
        parts = coco.frPyObjects(annotation["segmentation"], *size)
        expected = coco.decode(coco.merge(parts))
        assert (got & expected).sum() / (got | expected).sum() > 0.97
        x, y, width, height = annotation["bbox"]
        assert np.abs(objects.boxes[0] - (x, y, x + width, y + height)).max() <= 1.5
