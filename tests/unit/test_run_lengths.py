"""Run lengths against COCO's own mask functions, pasted masks against a dense interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as mask_api
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from trainables.run_lengths import encode, paste


def decoded(runs: Any) -> np.ndarray[Any, Any]:
    return np.asarray(mask_api.decode(dict(runs)))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_a_window_of_an_image_gives_the_text_of_the_whole_image(h: int, w: int, top: int, left: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    size = (top + h + int(random.integers(0, 3)), left + w + int(random.integers(0, 3)))
    bits = (random.random((h, w)) < random.choice([0.1, 0.5, 0.9, 1.0])).astype(np.uint8)
    whole = np.zeros(size, np.uint8)
    whole[top : top + h, left : left + w] = bits
    expected = mask_api.encode(np.asfortranarray(whole))
    runs = encode(bits, left, top, size)
    assert runs == {"size": list(size), "counts": expected["counts"].decode()}


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0)])
def test_an_empty_window_is_an_empty_mask(shape: tuple[int, int]) -> None:
    runs = encode(np.zeros(shape, np.uint8), 2, 1, (5, 7))
    assert decoded(runs).shape == (5, 7)
    assert not decoded(runs).any()


def dense(mask: np.ndarray[Any, Any], box: tuple[float, ...], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """The probability at every pixel's centre, by torch's interpolation with zeros around the mask."""
    (x0, y0, x1, y1), (height, width) = box, size
    xs = (torch.arange(width, dtype=torch.float64) + 0.5 - x0) / (x1 - x0) * 2 - 1
    ys = (torch.arange(height, dtype=torch.float64) + 0.5 - y0) / (y1 - y0) * 2 - 1
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)
    given = torch.from_numpy(mask).double()[None, None]
    return functional.grid_sample(given, grid[None], padding_mode="zeros", align_corners=False)[0, 0].numpy()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_mask_is_pasted_where_interpolation_gives_a_half_or_more(seed: int) -> None:
    random = np.random.default_rng(seed)
    size = (int(random.integers(5, 60)), int(random.integers(5, 60)))
    corner, sides = random.uniform(-15, 50, 2), random.uniform(0.3, 70, 2)
    box = (float(corner[0]), float(corner[1]), float(corner[0] + sides[0]), float(corner[1] + sides[1]))
    mask = random.random((28, 28)).astype(np.float32)
    expected, found = dense(mask, box, size), decoded(paste(mask, box, size))
    assert found.shape == size
    clear = np.abs(expected - 0.5) > 1e-4
    assert np.array_equal(found[clear], (expected >= 0.5)[clear])


def test_a_box_outside_the_image_has_no_pixel() -> None:
    runs = paste(np.ones((28, 28), np.float32), (50.0, 3.0, 60.0, 9.0), (20, 30))
    assert not decoded(runs).any()


def test_a_full_mask_covers_its_box() -> None:
    found = decoded(paste(np.ones((28, 28), np.float32), (4.0, 2.0, 24.0, 16.0), (20, 30)))
    assert found[2:16, 4:24].all()
    assert found.sum() == 14 * 20
