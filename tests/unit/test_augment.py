from __future__ import annotations

import cv2
import numpy as np
import pytest

from trainables.augment import Augmentation, Image, Window, center_view, train_view

GREY = 114
SHAPES = [(100, 100), (150, 90), (90, 150), (70, 300), (301, 257), (40, 60), (9, 9), (8, 13)]
NO_ZOOM, ZOOM_IN, ZOOM_OUT = 0.5, 1.0, 0.0
NO_FLIP, FLIP = 1.0, 0.0


def noise(height: int, width: int, low: int = 0) -> Image:
    return np.random.default_rng(height * width).integers(low, 256, (height, width, 3), np.uint8)


def trained(
    image: Image, size: int, draws: tuple[float, float, float, float], scale: float = 0.5, marker: int = 0
) -> Image:
    out = np.full((size, size, 3), marker, np.uint8)
    train_view(image, out, Augmentation(scale=scale, fliplr=0.5), np.array([*draws, 1.0]))
    return out


def centred(image: Image, size: int, marker: int = 0) -> Image:
    out = np.full((size, size, 3), marker, np.uint8)
    center_view(image, out)
    return out


def random_draws(seed: int) -> tuple[float, float, float, float]:
    zoom, x, y, flip = np.random.default_rng(seed).random(4).tolist()
    return zoom, x, y, flip


def test_a_square_image_of_moderate_size_is_just_resized() -> None:
    image = noise(96, 96)
    assert np.array_equal(centred(image, 80), cv2.resize(image, (80, 80)))
    assert np.array_equal(trained(image, 80, (0.9, 0.3, 0.8, NO_FLIP), scale=0), cv2.resize(image, (80, 80)))


@pytest.mark.parametrize("size", [8, 96])
def test_an_image_of_the_right_size_stays_as_it_is(size: int) -> None:
    image = noise(size, size)
    assert np.array_equal(centred(image, size), image)


@pytest.mark.parametrize("shape", SHAPES)
def test_training_in_the_middle_without_zoom_is_validation(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    assert np.array_equal(trained(image, 64, (NO_ZOOM, 0.5, 0.5, NO_FLIP)), centred(image, 64))


def test_the_centre_is_cut_out_of_the_long_side() -> None:
    image = noise(80, 120)
    assert np.array_equal(centred(image, 80), image[:, 20:100])
    assert np.array_equal(centred(image.transpose(1, 0, 2), 80), image.transpose(1, 0, 2)[20:100])


@pytest.mark.parametrize("shape", SHAPES)
def test_flips_mirror_left_to_right(shape: tuple[int, int]) -> None:
    for zoom in (ZOOM_OUT, 0.3, ZOOM_IN):
        plain, mirrored = (trained(noise(*shape), 48, (zoom, 0.2, 0.7, flip)) for flip in (NO_FLIP, FLIP))
        assert np.array_equal(mirrored, plain[:, ::-1])


def test_the_flip_probability_is_a_threshold_on_its_draw() -> None:
    image, out = noise(32, 32), np.empty((32, 32, 3), np.uint8)
    for probability, draw, flipped in [(0.0, 0.0, False), (1.0, 0.999, True), (0.3, 0.29, True), (0.3, 0.31, False)]:
        train_view(image, out, Augmentation(fliplr=probability), np.array([0.5, 0.5, 0.5, draw, 0.0]))
        assert np.array_equal(out, image[:, ::-1] if flipped else image)


@pytest.mark.parametrize("shape", SHAPES)
def test_zooming_in_shows_image_only(shape: tuple[int, int]) -> None:
    image = noise(*shape, low=200)
    for x in (0.0, 0.37, 1.0):
        assert trained(image, 64, (ZOOM_IN, x, 1 - x, NO_FLIP)).min() >= 200


@pytest.mark.parametrize("size", [32, 80])
@pytest.mark.parametrize("side", [20, 90, 400])
def test_zooming_out_shows_grey_around_the_image(side: int, size: int) -> None:
    white = np.full((side, side, 3), 255, np.uint8)
    half, between = size // 2, (255 + GREY) // 2
    middle = trained(white, size, (ZOOM_OUT, 0.5, 0.5, NO_FLIP))[:, :, 0] > between
    rows, columns = middle.nonzero()
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == pytest.approx([half / 2, half * 1.5] * 2, abs=1)
    assert middle[half // 2 + 1 : half // 2 + half - 1, half // 2 + 1 : half // 2 + half - 1].all()
    corner = trained(white, size, (ZOOM_OUT, 0.0, 0.0, NO_FLIP))
    assert (corner[: half - 1, : half - 1] > between).all()
    assert (corner[half + 1 :] == GREY).all()
    assert (corner[:, half + 1 :] == GREY).all()


@pytest.mark.parametrize("size", [31, 32, 64, 100])
def test_no_grey_creeps_into_the_centre_view(size: int) -> None:
    for side in [*range(1, 40), *range(60, 1000, 41)]:
        white = np.full((side, side + side % 3, 3), 255, np.uint8)
        assert centred(white, size).min() == 255, f"{side} pixels"


@pytest.mark.parametrize("size", [24, 65])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1), (1, 50), (50, 1), (2, 1000), (1000, 1)])
def test_every_pixel_is_written_whatever_was_there(shape: tuple[int, int], size: int) -> None:
    image = noise(*shape)
    assert np.array_equal(centred(image, size, 13), centred(image, size, 201))
    for seed in range(20):
        for scale in (0.5, 0.99):
            draws = random_draws(seed)
            assert np.array_equal(trained(image, size, draws, scale, 13), trained(image, size, draws, scale, 201))


@pytest.mark.parametrize("size", [20, 48, 96])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_dot_lands_where_the_formula_says(shape: tuple[int, int], size: int) -> None:
    """Within a pixel, of the output or of the image, whichever is coarser; a fraction of it in small windows."""
    compared = 0
    for seed in range(60):
        zoom, x, y, flip = random_draws(seed)
        row, column = np.random.default_rng(seed + 1000).integers(0, shape)
        window = min(shape) / (1 + 0.5 * (2 * zoom - 1))
        pixel, reach = size / window, int(window / size)
        u = (column + 0.5 - (shape[1] - window) * x) * pixel
        v = (row + 0.5 - (shape[0] - window) * y) * pixel
        margin = (reach + 1) * pixel + 1
        whole = reach <= row < shape[0] - reach and reach <= column < shape[1] - reach
        if not (whole and margin < min(u, v) and max(u, v) < size - margin):
            continue
        image = np.full((*shape, 3), GREY, np.uint8)
        image[row - reach : row + reach + 1, column - reach : column + reach + 1] = 255
        dot = trained(image, size, (zoom, x, y, flip))[:, :, 0].astype(float) - GREY
        centre_v, centre_u = (np.array(dot.nonzero()) + 0.5) @ dot[dot > 0] / dot.sum()
        expected = (v, size - u if flip < 0.5 else u)
        assert (centre_v, centre_u) == pytest.approx(expected, abs=(0.3 if window <= 64 else 1.25) * max(pixel, 1))
        compared += 1
    assert compared > 3


def test_big_shrinks_do_not_alias() -> None:
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[:, ::3] = 255
    assert cv2.resize(stripes, (100, 100)).std() > 60, "what plain bilinear sampling makes of it"
    assert centred(stripes, 100).std() < 20


@pytest.mark.parametrize("size", [24, 80])
@pytest.mark.parametrize("side", [50, 90, 400])
def test_views_read_only_and_strided_images_are_taken(side: int, size: int) -> None:
    whole = noise(2 * side, 2 * side)
    for image in (whole[::2, ::2], whole[:side, side:], whole[::-1, ::-1], whole.transpose(1, 0, 2)):
        copy = np.ascontiguousarray(image)
        copy.flags.writeable = False
        for seed in range(3):
            assert np.array_equal(trained(image, size, random_draws(seed)), trained(copy, size, random_draws(seed)))


def test_views_are_written_into_a_batch_in_place() -> None:
    batch = np.full((3, 40, 40, 3), 7, np.uint8)
    for image in (noise(100, 80), noise(30, 30)):
        train_view(image, batch[1], Augmentation(scale=0.5, fliplr=1.0), np.array([0.0, 0.1, 0.2, 0.3, 0.0]))
        assert (batch[0] == 7).all()
        assert (batch[2] == 7).all()
        assert np.array_equal(batch[1], trained(image, 40, (0.0, 0.1, 0.2, 0.3)))


# ------------------------------------------------------------------------------------------ flips, fits, colours


def test_both_flips_together_turn_by_half() -> None:
    image, out = noise(32, 32), np.empty((32, 32, 3), np.uint8)
    draws = np.array([0.5, 0.5, 0.5, 0.1, 0.1])
    for fliplr, flipud in [(0, 0), (1, 0), (0, 1), (1, 1)]:
        window = train_view(image, out, Augmentation(fliplr=fliplr, flipud=flipud), draws)
        expected = image[:: -1 if flipud else 1, :: -1 if fliplr else 1]
        assert np.array_equal(out, expected)
        assert window == Window(0, 0, 32, bool(fliplr), bool(flipud))


def test_the_long_fit_shows_the_whole_image() -> None:
    image, out = noise(60, 120, low=130), np.empty((120, 120, 3), np.uint8)
    assert center_view(image, out, "long") == Window(0, -30, 120)
    assert np.array_equal(out[30:90], image)
    assert (out[:30] == GREY).all()
    assert (out[90:] == GREY).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_window_tells_where_the_view_lies(shape: tuple[int, int]) -> None:
    """A grid of coordinates, seen through the view, is the map of the window."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = np.stack([columns * 255 / shape[1], rows * 255 / shape[0], 0 * rows], 2).astype(np.uint8)
    out = np.empty((64, 64, 3), np.uint8)
    for seed in range(5):
        window = train_view(image, out, Augmentation(scale=0.4), np.array([*random_draws(seed), 1.0]))
        for axis, start, length in ((0, window.left, shape[1]), (1, window.top, shape[0])):
            centres = (np.arange(64) + 0.5) * window.side / 64 + start
            edge = 2 + window.side / 64  # the first pixel of the image is blended with the grey around it
            inside = (centres > edge) & (centres < length - edge)
            middle = out[:, 32, axis] if axis else out[32, :, axis]
            found = middle[inside] / 255 * length + 0.5
            shown = middle[inside] != GREY
            tolerance = 1 + window.side / 64 + length / 255
            assert np.abs(found - centres[inside])[shown].max(initial=0) <= tolerance


def coloured(image: Image, draws: list[float], **jitter: float) -> Image:
    out = np.empty_like(image)
    train_view(image, out, Augmentation(**jitter), np.array([0.5, 0.5, 0.5, 1.0, 1.0, *draws]))
    return out


def test_colour_jitter_changes_what_it_names() -> None:
    image = noise(32, 32, low=40)[:, :, :] // 2
    still = [0.5, 0.5, 0.5, 0.5]
    everything = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    assert np.abs(coloured(image, still, **everything).astype(int) - image).max() <= 1, "the middle of the range"
    brighter = coloured(image, [1.0, 0.5, 0.5, 0.5], brightness=0.4)
    assert np.abs(brighter - np.clip(image * 1.4, 0, 255)).max() <= 1
    flatter = coloured(image, [0.5, 0.0, 0.5, 0.5], contrast=0.5)
    assert np.abs(flatter - (image * 0.5 + 127.5 * 0.5)).max() <= 1
    grey = coloured(image, [0.5, 0.5, 0.0, 0.5], saturation=1.0)
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey - luma[:, :, None]).max() <= 2
    turned = coloured(image, [0.5, 0.5, 0.5, 1.0], hue=0.5)
    assert np.abs(turned @ np.array([0.299, 0.587, 0.114]) - luma).mean() < 12, "the hue leaves the luma"
    assert np.abs(turned.astype(int) - image).mean() > 12
    assert np.array_equal(coloured(image, still), image)
