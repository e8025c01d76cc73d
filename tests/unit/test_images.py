from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from orchestrator.data.headers import MAX_PIXELS, orientation_of
from orchestrator.data.images import (
    EXTENSIONS,
    TURNS,
    Image,
    load_stored,
    open_image,
    resize,
    store_size,
    stored_size,
    upright,
)
from tests.pictures import noise

RED, GREEN, BLUE, WHITE = (200, 10, 20), (10, 200, 20), (10, 20, 200), (250, 250, 250)
KINDS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
}


def quarters(height: int = 40, width: int = 60) -> Image:
    """Red and green above blue and white."""
    image = np.full((height, width, 3), WHITE, np.uint8)
    image[: height // 2, : width // 2], image[: height // 2, width // 2 :] = RED, GREEN
    image[height // 2 :, : width // 2] = BLUE
    return image


def encoded(image: np.ndarray | PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = PIL.Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(image: np.ndarray, kind: str, orientation: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"exif": exif if kind == "TIFF" else exif.tobytes()}
    if kind == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    if kind == "WEBP":
        options["lossless"] = True
    return encoded(image, kind, **options)


def pixels_of(data: bytes) -> np.ndarray:
    """Signed, to be compared."""
    picture = open_image(data)
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.shape == (picture.height, picture.width, 3)
    return picture.pixels.astype(int)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((one.astype(float) - other) ** 2), 1e-9)))


def soft(height: int, width: int, seed: int = 0) -> Image:
    """Smooth enough to survive JPEG and scaling."""
    small = noise(max(height // 20, 2), max(width // 20, 2), seed)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.uint8)


# --------------------------------------------------------------------------------------------------- kinds


def test_there_is_a_test_for_every_listed_kind() -> None:
    assert set(KINDS) == EXTENSIONS


@pytest.mark.parametrize("kind", sorted(set(KINDS.values())))
def test_every_kind_of_file_is_decoded_as_rgb(kind: str) -> None:
    pixels = pixels_of(encoded(quarters(), kind))
    assert pixels.shape == (40, 60, 3)
    for (y, x), colour in {(4, 4): RED, (4, 55): GREEN, (35, 4): BLUE, (35, 55): WHITE}.items():
        assert np.abs(pixels[y, x] - colour).max() < 12


GREY = np.tile(np.linspace(0, 255, 20).round().astype(np.uint8), (10, 1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF", "WEBP"])
def test_grey_pictures_have_three_equal_channels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (pixels_of(encoded(GREY, kind, **options)) == GREY[:, :, None]).all()


def test_a_grey_jpeg() -> None:
    assert np.abs(pixels_of(encoded(GREY, "JPEG", quality=98)) - GREY[:, :, None]).max() < 8


@pytest.mark.parametrize("extension", [".png", ".tiff"])
@pytest.mark.parametrize("colours", [False, True])
def test_16_bits_are_scaled_over_their_whole_range(extension: str, colours: bool) -> None:
    values = np.repeat(GREY[:, :, None], 3, 2) if colours else GREY
    data = cv2.imencode(extension, values.astype(np.uint16) * 257)[1].tobytes()
    assert (pixels_of(data) == GREY[:, :, None]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
def test_one_bit_is_black_and_white(kind: str) -> None:
    pixels = pixels_of(encoded(PIL.Image.fromarray(GREY).point(lambda v: 255 * (v > 127)).convert("1"), kind))
    assert (pixels == np.where(GREY > 127, 255, 0)[:, :, None]).all()


def palette(transparent: bool) -> tuple[PIL.Image.Image, dict[str, int]]:
    """Left the colour 0, a garish one that transparency hides; right the colour 1, blue."""
    image = PIL.Image.new("P", (20, 10))
    image.putpalette([255, 0, 255, *BLUE] + [0] * 762)
    image.paste(1, (10, 0, 20, 10))
    return image, {"transparency": 0} if transparent else {}


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
@pytest.mark.parametrize("transparent", [False, True])
def test_palettes_with_and_without_transparency(kind: str, transparent: bool) -> None:
    image, options = palette(transparent)
    pixels = pixels_of(encoded(image, kind, **options))
    assert (pixels[:, :10] == ((255, 255, 255) if transparent else (255, 0, 255))).all()
    assert (pixels[:, 10:] == BLUE).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_alpha_hides_becomes_white(kind: str, mode: str) -> None:
    """Also where garbage lies under it; half-transparent pixels are blended."""
    alpha = np.repeat(np.array([0, 128, 255], np.uint8), 5)[None].repeat(4, 0)
    colours = np.full((4, 15, 3), 100, np.uint8)
    image = PIL.Image.fromarray(np.dstack([colours, alpha])).convert(mode)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = pixels_of(encoded(image, kind, **options))
    assert (pixels[:, :5] == 255).all()
    assert np.abs(pixels[:, 5:10] - 177).max() <= 1
    assert (pixels[:, 10:] == 100).all()


def test_cmyk_as_jpeg_and_tiff() -> None:
    """Pillow writes CMYK JPEGs as Adobe does, inverted; without Adobe's marker they are not."""
    image = PIL.Image.fromarray(quarters()).convert("CMYK")
    assert np.abs(pixels_of(encoded(image, "TIFF")) - quarters()).max() <= 1
    adobe = encoded(image, "JPEG", quality=98, subsampling=0)
    assert np.abs(pixels_of(adobe)[5:15, 5:25] - RED).max() < 12
    at = adobe.index(b"\xff\xee\x00\x0eAdobe")
    plain = adobe[:at] + adobe[at + 16 :]
    assert np.abs(pixels_of(plain)[5:15, 5:25] - [255 - c for c in RED]).max() > 30


def test_a_jpeg_of_rgb_instead_of_luma_and_chroma() -> None:
    data = encoded(quarters(), "JPEG", quality=98, keep_rgb=True)
    assert np.abs(pixels_of(data)[5:15, 5:25] - RED).max() < 12


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_counts(kind: str) -> None:
    frames = [PIL.Image.new("RGB", (20, 10), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (pixels_of(data) == RED).all()


def test_32_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="32-bit values have no agreed range: save the image with 8 or 16 bits"):
        open_image(encoded(np.zeros((4, 5), np.float32), "TIFF"))


def test_the_common_path_does_without_pillow() -> None:
    """Its import would cost every task that builds the cache."""
    script = """
import sys, cv2, numpy as np
from orchestrator.data.images import load_stored
for extension in (".jpg", ".png"):
    load_stored(cv2.imencode(extension, np.zeros((90, 80, 3), np.uint8))[1].tobytes(), 20, "short")
assert not {"PIL", "torch", "ray"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# --------------------------------------------------------------------------------------------- orientation

UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda i: i,
    2: np.fliplr,
    3: lambda i: np.rot90(i, 2),
    4: np.flipud,
    5: lambda i: i.swapaxes(0, 1),
    6: lambda i: np.rot90(i, -1),
    7: lambda i: np.rot90(i, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_of_cameras_held_sideways_stand_upright(kind: str, orientation: int) -> None:
    stored = quarters()
    expected = UPRIGHT[orientation](stored)
    picture = open_image(with_orientation(stored, kind, orientation))
    assert picture.orientation == orientation
    assert (picture.height, picture.width) == picture.pixels.shape[:2] == expected.shape[:2]
    assert np.abs(picture.pixels.astype(int) - expected).max() <= (40 if kind == "JPEG" else 0)


def test_orientation_of_a_picture_with_alpha_and_of_a_cmyk_one() -> None:
    clear = np.dstack([quarters(), np.full((40, 60), 255, np.uint8)])
    picture = open_image(with_orientation(clear, "PNG", 6))
    assert picture.orientation == 6
    assert (picture.pixels == np.rot90(quarters(), -1)).all()
    exif = PIL.Image.Exif()
    exif[0x0112] = 8
    data = encoded(PIL.Image.fromarray(quarters()).convert("CMYK"), "JPEG", exif=exif.tobytes(), quality=98)
    picture = open_image(data)
    assert (picture.orientation, picture.pixels.shape) == (8, (60, 40, 3))
    assert np.abs(picture.pixels[50, 5].astype(int) - RED).max() < 12


@pytest.mark.parametrize("turn", TURNS)
def test_masks_are_turned_as_pixels_are(turn: int) -> None:
    image = noise(7, 5)
    assert np.array_equal(upright(image, turn)[:, :, 1], upright(np.ascontiguousarray(image[:, :, 1]), turn))
    assert np.array_equal(upright(image, turn), UPRIGHT[turn](image))


def exif_entry(order: str, kind: int, value: bytes, count: int = 1) -> bytes:
    start = b"II*\0" if order == "<" else b"MM\0*"
    other = struct.pack(order + "HHI", 0x010F, 2, 4) + b"abc\0"
    return (
        start
        + struct.pack(order + "IH", 8, 2)
        + other
        + struct.pack(order + "HHI", 0x0112, kind, count)
        + value
        + b"\0" * 4
    )


@pytest.mark.parametrize(
    ("exif", "expected"),
    [
        (exif_entry("<", 3, b"\6\0\0\0"), 6),
        (exif_entry(">", 3, b"\0\6\0\0"), 6),
        (exif_entry("<", 4, b"\6\0\0\0"), 6),
        (exif_entry(">", 4, b"\0\0\0\6"), 6),
        (exif_entry("<", 3, b"\0\0\0\0"), 1),
        (exif_entry("<", 3, b"\x09\0\0\0"), 1),
        (exif_entry("<", 2, b"\6\0\0\0"), 1),
        (exif_entry("<", 3, b"\6\0\0\0")[:30], 1),
        (b"II*\0" + struct.pack("<I", 2**31), 1),
        (b"garbage", 1),
        (b"", 1),
    ],
)
def test_orientation_of_odd_and_damaged_exif(exif: bytes, expected: int) -> None:
    assert orientation_of(exif) == expected
    jpeg = encoded(quarters(), "JPEG")
    segment = b"Exif\0\0" + exif
    tagged = jpeg[:2] + b"\xff\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
    assert open_image(tagged).orientation == expected


# --------------------------------------------------------------------------------------------------- scale


@pytest.mark.parametrize(
    ("needed", "fit", "expected"),
    [
        (None, "short", (300, 400)),
        (151, "short", (300, 400)),
        (150, "short", (150, 200)),
        (76, "short", (150, 200)),
        (75, "short", (75, 100)),
        (30, "short", (38, 50)),
        (10, "short", (38, 50)),
        (201, "long", (300, 400)),
        (200, "long", (150, 200)),
        (60, "long", (75, 100)),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_huge_jpegs_are_decoded_at_a_reduced_scale(
    needed: int | None, fit: str, expected: tuple[int, int], orientation: int
) -> None:
    stored = soft(300, 400)
    picture = open_image(with_orientation(stored, "JPEG", orientation), needed, fit)  # type: ignore[arg-type]
    turned = orientation == 6
    assert picture.pixels.shape == (*(expected[::-1] if turned else expected), 3)
    assert (picture.height, picture.width) == ((400, 300) if turned else (300, 400))
    scale = round(300 / expected[0])  # the last row and column may stand for less than `scale` pixels
    padded = cv2.copyMakeBorder(stored, 0, -300 % scale, 0, -400 % scale, cv2.BORDER_REPLICATE)
    whole = UPRIGHT[orientation](cv2.resize(padded, expected[::-1], interpolation=cv2.INTER_AREA))
    assert psnr(picture.pixels, whole) > 30


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_other_kinds_are_decoded_whole(kind: str) -> None:
    assert open_image(encoded(noise(80, 90), kind), needed=10).pixels.shape == (80, 90, 3)


SIZES = [
    (100, 200, "short", (50, 100)),
    (200, 100, "short", (100, 50)),
    (90, 61, "short", (74, 50)),
    (50, 80, "short", (50, 80)),
    (20, 30, "short", (20, 30)),
    (60, 9000, "short", (50, 7500)),
    (100, 200, "long", (25, 50)),
    (2, 900, "long", (1, 50)),
    (20, 50, "long", (20, 50)),
]


@pytest.mark.parametrize(("height", "width", "fit", "expected"), SIZES)
@pytest.mark.parametrize("kind", [None, "PNG", "JPEG"])
def test_stored_images_shrink_to_one_side_and_never_grow(
    height: int, width: int, fit: str, expected: tuple[int, int], kind: str | None
) -> None:
    assert store_size(height, width, 50, fit) == expected  # type: ignore[arg-type]
    image = soft(height, width)
    picture = load_stored(encoded(image, kind) if kind else image, 50, fit)  # type: ignore[arg-type]
    assert (picture.height, picture.width) == (height, width)
    assert picture.pixels.shape == (*expected, 3)
    assert picture.pixels.flags.c_contiguous
    if kind != "JPEG" or min(height, width) > 8:
        assert np.abs(picture.pixels.mean((0, 1)) - image.mean((0, 1))).max() < 3
    if kind != "JPEG" and expected == (height, width):
        assert np.array_equal(picture.pixels, image)


@pytest.mark.parametrize(("height", "width"), [(300, 410), (200, 273), (128, 175), (100, 137)])
def test_shrinking_gives_the_pixels_of_pillow(height: int, width: int) -> None:
    image = np.clip(soft(375, 512).astype(int) + noise(375, 512) // 8, 0, 255).astype(np.uint8)
    theirs = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BILINEAR)
    assert psnr(resize(image, height, width), np.asarray(theirs)) > 45


@pytest.mark.parametrize(("size", "most"), [(11, 6), (24, 6), (40, 8), (48, 9), (50, 12), (60, 40)])
def test_a_fine_pattern_becomes_grey_and_no_coarse_one(size: int, most: float) -> None:
    """Linear interpolation alone leaves a standard deviation of more than 70."""
    lines = np.zeros((96, 96, 3), np.uint8)
    lines[:, ::2] = 255
    assert resize(lines, size, size).std() < most
    assert resize(lines.swapaxes(0, 1), size, size).std() < most


@pytest.mark.parametrize("pixels", [np.zeros((4, 5), np.uint8), np.zeros((4, 5, 3)), np.zeros((0, 5, 3), np.uint8)])
def test_pixels_of_a_reader_must_be_rgb(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"pixels must be \(height, width, 3\) uint8"):
        load_stored(pixels, 8, "short")


# ----------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize("kind", [*sorted(set(KINDS.values())), "progressive", "RGBA", "16 bits"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.95, -5])
def test_files_that_are_cut_off_are_refused(kind: str, part: float) -> None:
    image = noise(60, 50)
    if kind == "progressive":
        data = encoded(image, "JPEG", progressive=True)
    elif kind == "RGBA":
        data = encoded(np.dstack([image, image[:, :, 0]]), "PNG")
    elif kind == "16 bits":
        data = encoded(image[:, :, 0].astype(np.uint16) * 257, "PNG")
    else:
        data = encoded(image, kind)
    open_image(data)
    with pytest.raises(ValueError, match=r"cut off|damaged JPEG|can be decoded"):
        open_image(data[: int(part * len(data)) if part > 0 else int(part)])


def test_a_cut_jpeg_is_refused_at_a_reduced_scale_too() -> None:
    data = encoded(noise(160, 160), "JPEG")
    with pytest.raises(ValueError, match="damaged JPEG"):
        open_image(data[: len(data) // 2], needed=20)


def test_jpegs_with_something_behind_or_inside_that_harms_nothing() -> None:
    data = encoded(soft(60, 50), "JPEG")
    whole = pixels_of(data)
    assert np.array_equal(pixels_of(data + b"appended by a camera" * 9), whole)
    assert np.array_equal(pixels_of(data[:-2] + bytes(3) + data[-2:]), whole)


def test_a_changed_byte_in_a_png_is_found() -> None:
    data = bytearray(encoded(noise(60, 50), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ValueError, match="not an image that can be decoded"):
        open_image(bytes(data))


def huge(kind: str) -> bytes:
    """A file that claims to have more than MAX_PIXELS, and has none."""
    side = 20_000
    if kind == "PNG":

        def chunk(name: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    if kind == "WEBP":
        size = (side - 1).to_bytes(3, "little")
        chunks = b"VP8X" + struct.pack("<I", 10) + bytes(4) + size * 2 + encoded(noise(4, 4), "WEBP")[12:]
        return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks
    data = bytearray(encoded(noise(4, 5), kind))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    else:
        for tag in (256, 257):
            at = data.index(struct.pack("<HHI", tag, 4, 1)) + 8
            data[at : at + 4] = struct.pack("<I", side)
    return bytes(data)


@pytest.mark.parametrize("kind", sorted(set(KINDS.values())))
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_by_its_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("simplejpeg.decode_jpeg", decode)
    monkeypatch.setattr("cv2.imdecode", decode)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    assert MAX_PIXELS == 2**28
    with pytest.raises(ValueError, match=r"20000 x 20000 pixels are more than the limit of 268,435,456|can be decoded"):
        open_image(huge(kind))


def test_pillow_refuses_at_our_limit_and_not_at_its_own() -> None:
    """Whose limit lies at 179 million pixels."""
    assert MAX_PIXELS > 15_000**2
    header = bytearray(encoded(np.zeros((4, 5), np.uint8), "BMP"))
    header[18:26] = struct.pack("<ii", 15_000, 15_000)
    assert stored_size(bytes(header)) == (15_000, 15_000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"these are no pixels", "not an image that can be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be decoded"),
        (b"\xff\xd8\xff", "the file is cut off"),
        (b"\xff\xd8\xff\xe0\0\2no markers", "a JPEG without a frame"),
        (b"\xff\xd8\xff\xd9", "a JPEG without a frame"),
        (b"\x89PNG\r\n\x1a\n", "the file is cut off"),
    ],
)
def test_what_is_no_image_is_a_value_error(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_image(data)


@pytest.mark.parametrize("kind", sorted(set(KINDS.values())))
def test_the_size_is_read_without_decoding(kind: str) -> None:
    assert stored_size(encoded(quarters(), kind)) == (40, 60)


def test_real_images(test_data: Path) -> None:
    """Microscopy with an alpha channel, blood cells, nuts, and photos of fruit: as Pillow shows them."""
    folders = ["dsb2018_nuclei", "bccd_voc", "nuts_coco", "grocery_fruit/dataset/train", "veg_yolo"]
    for folder in folders:
        found = sorted(p for p in (test_data / folder).rglob("*") if p.suffix.lower() in (".jpg", ".png"))
        for path in found[:: max(len(found) // 3, 1)]:
            picture = open_image(path.read_bytes())
            expected = np.asarray(PIL.Image.open(path).convert("RGB"))
            assert psnr(picture.pixels, expected) > 45, path
