"""Decode and shrink JPEG photos to the stored size, in one thread, against Pillow's decode and BILINEAR resize.

    decode_vs_pil       photos of 500 x 375 (at least 1.7)
    decode_big_vs_pil   photos of 2000 x 1500, which we decode at a reduced scale (at least 3)

Both give the same size. They take turns; each ratio is the median over the rounds. The table also tells how far our
pixels are from Pillow's (PSNR in dB; above 40 nobody sees a difference).
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import PIL.Image

from orchestrator.data.images import Image, load_stored, store_size


def photo(height: int, width: int, seed: int) -> bytes:
    """A JPEG with the spectrum of a photo: soft shapes under finer and finer texture, and the noise of a sensor."""
    generator = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128.0, np.float32)
    for octave in range(1, 9):
        cells = 2**octave
        texture = generator.normal(0, 1, (cells * 3 // 4 + 2, cells + 2, 3)).astype(np.float32)
        texture += 2 * texture.mean(2, keepdims=True)  # brightness varies more than colour
        pixels += 60 / octave**1.5 * cv2.resize(texture, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels += generator.normal(0, 7, pixels.shape)
    encoded = cv2.imencode(".jpg", np.clip(pixels, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return encoded[1].tobytes()


def ours(data: bytes, side: int) -> Image:
    return load_stored(data, side, "short").pixels


def by_pillow(data: bytes, side: int) -> np.ndarray[Any, Any]:
    image = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    height, width = store_size(image.height, image.width, side, "short")
    return np.asarray(image.resize((width, height), PIL.Image.Resampling.BILINEAR))


def seconds(function: Callable[[bytes, int], object], photos: Sequence[bytes], side: int) -> float:
    """Per photo."""
    started = time.perf_counter()
    for data in photos:
        function(data, side)
    return (time.perf_counter() - started) / len(photos)


def psnr(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


def compare(height: int, width: int, count: int, side: int, rounds: int) -> float:
    """Print a row of the table; Pillow's time over ours."""
    photos = [photo(height, width, seed) for seed in range(count)]
    like = statistics.mean(psnr(ours(data, side), by_pillow(data, side)) for data in photos)  # warms up, too
    times = [(seconds(ours, photos, side), seconds(by_pillow, photos, side)) for _ in range(rounds)]
    mine, theirs = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
    ratio = statistics.median(theirs / mine for mine, theirs in times)
    kilobytes = statistics.mean(len(data) for data in photos) / 1e3
    print(f"{width:>5} x {height:<5} {kilobytes:>7.0f} {mine:>9.0f} {theirs:>10.0f} {ratio:>6.2f} {like:>9.1f}")
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    print(f"to a short side of {arguments.side} px, {arguments.rounds} rounds, one thread")
    print(f"{'photo':>12} {'kB':>8} {'ours us':>9} {'Pillow us':>10} {'ratio':>6} {'PSNR dB':>9}")
    small = compare(375, 500, 32, arguments.side, arguments.rounds)
    big = compare(1500, 2000, 8, arguments.side, arguments.rounds)
    print(f"decode_vs_pil: {small:.2f}")
    print(f"decode_big_vs_pil: {big:.2f}")


if __name__ == "__main__":
    main()
