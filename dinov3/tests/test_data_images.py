"""Reading images and labels of every kind."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torchvision.io import decode_image

from dinov3.data.images import read_image, read_labels
from dinov3.errors import ExperimentError

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
GREY, ALPHA = COLOURS[..., 0], COLOURS[..., 1]
DEEP = np.random.default_rng(1).integers(0, 65536, (6, 5, 3), dtype=np.uint16)
LABELS = np.array([[0, 1, 2], [3, 2, 1]], dtype=np.uint8)


def png(rows: np.ndarray, bits: int, colour_type: int) -> bytes:
    """A PNG of kinds that Pillow does not write: numbers of some bits per row."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packed = [np.packbits([int(bit) for value in row.ravel() for bit in f"{value:0{bits}b}"]) for row in rows]
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], bits, colour_type, 0, 0, 0)
    data = b"".join(b"\0" + row.tobytes() for row in packed)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def as_array(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "TIFF"])
def test_colours_stay_as_they_are(tmp_path: Path, suffix: str):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(COLOURS).save(path)
    found = read_image(path)
    assert found.dtype == torch.uint8 and found.is_contiguous() and np.array_equal(as_array(found), COLOURS)


@pytest.mark.parametrize(
    ("array", "mode"),
    [(GREY, "L"), (np.dstack([GREY, ALPHA]), "LA"), (np.dstack([COLOURS, ALPHA]), "RGBA")],
    ids=["grey", "grey+alpha", "RGBA"],
)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_becomes_three_channels_and_transparency_is_dropped(
    tmp_path: Path, array: np.ndarray, mode: str, suffix: str
):
    path = tmp_path / f"image.{suffix}"
    image = Image.fromarray(array)
    assert image.mode == mode
    image.save(path)
    assert np.array_equal(as_array(read_image(path)), COLOURS if mode == "RGBA" else np.dstack([GREY] * 3))


def test_images_have_the_colours_of_their_palette(tmp_path: Path):
    palette = Image.fromarray(LABELS)
    palette.putpalette([7, 8, 9, 10, 20, 30, 250, 0, 1, 5, 5, 5])
    palette.save(tmp_path / "image.png", transparency=0)
    expected = np.array([[7, 8, 9], [10, 20, 30], [250, 0, 1], [5, 5, 5]], np.uint8)[LABELS]
    assert np.array_equal(as_array(read_image(tmp_path / "image.png")), expected)


def test_jpeg_is_near(tmp_path: Path):
    smooth = np.full((32, 32, 3), (200, 100, 50), np.uint8)
    Image.fromarray(smooth).save(tmp_path / "image.JPG", format="jpeg", quality=95)
    assert np.abs(as_array(read_image(tmp_path / "image.JPG")).astype(int) - smooth).max() <= 3


def test_the_orientation_of_the_camera_is_not_applied_as_labels_would_not_follow(tmp_path: Path):
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(COLOURS).save(tmp_path / "image.jpg", exif=turned)
    assert read_image(tmp_path / "image.jpg").shape == (3, 6, 5)


def write_deep(path: Path, kind: str) -> np.ndarray:
    """Write numbers of 16 bits, and return what they are in three channels."""
    grey = np.dstack([DEEP[..., 0]] * 3)
    if kind == "grey.png":
        Image.fromarray(DEEP[..., 0]).save(path)
    elif kind == "grey+alpha.png":
        path.write_bytes(png(DEEP[..., :2], 16, 4))
    elif kind == "rgb.png":
        path.write_bytes(png(DEEP, 16, 2))
    elif kind == "rgba.png":
        path.write_bytes(png(np.dstack([DEEP, DEEP[..., 0]]), 16, 6))
    elif kind == "grey.tif":
        Image.fromarray(DEEP[..., 0]).save(path, compression="tiff_lzw")
    elif kind == "planes.tif":
        tifffile.imwrite(path, DEEP.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    else:
        tifffile.imwrite(path, DEEP, photometric="rgb", compression="lzw")
    return grey if kind.startswith("grey") else DEEP


@pytest.mark.parametrize(
    "kind", ["grey.png", "grey+alpha.png", "rgb.png", "rgba.png", "grey.tif", "rgb.tif", "planes.tif"]
)
def test_sixteen_bits_are_kept_and_scaled(tmp_path: Path, kind: str):
    path = tmp_path / kind
    expected = write_deep(path, kind)
    found = read_image(path)
    assert found.dtype == torch.float32
    assert np.array_equal(np.round(as_array(found) * 65535).astype(np.uint16), expected)
    limited = as_array(read_image(path, max_value=4095))
    assert np.allclose(limited, np.minimum(expected / 4095, 1), atol=1e-6)


def test_the_largest_value_does_not_matter_to_eight_bits(tmp_path: Path):
    Image.fromarray(COLOURS).save(tmp_path / "image.png")
    assert np.array_equal(as_array(read_image(tmp_path / "image.png", max_value=4095)), COLOURS)


def test_floats_need_to_know_white(tmp_path: Path):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, np.array([[-1.0, 0.5], [2.0, 8.0]], np.float32))
    with pytest.raises(ExperimentError, match="image.tif cannot be read: .*datasets.max_value must be set"):
        read_image(path)
    assert read_image(path, max_value=4)[1].tolist() == [[0, 0.125], [0.5, 1]]
    tifffile.imwrite(path, np.array([[np.nan, 0.5]], np.float32))
    with pytest.raises(ExperimentError, match="must be finite numbers, found NaN"):
        read_image(path, max_value=4)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.parametrize("kind", ["grey", "palette", "equal", "bits"])
def test_labels_are_numbers_whatever_the_kind(tmp_path: Path, suffix: str, kind: str):
    path = tmp_path / f"labels.{suffix}"
    image, expected = Image.fromarray(LABELS), LABELS
    if kind == "palette":
        image.putpalette([200, 100, 50, 7, 7, 7, 0, 0, 0, 9, 8, 7])
        assert image.mode == "P"
    elif kind == "equal":
        image = image.convert("RGB")
    elif kind == "bits":
        expected = LABELS % 2
        image = Image.fromarray(expected.astype(bool))
    image.save(path)
    found = read_labels(path)
    assert found.dtype == torch.uint8 and np.array_equal(found, expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_bits_of_labels_are_not_stretched(tmp_path: Path, bits: int):
    path = tmp_path / "labels.png"
    labels = LABELS & (2**bits - 1)
    path.write_bytes(png(labels, bits, 0))
    assert np.array_equal(decode_image(path)[0], labels * (255 // (2**bits - 1)))  # what it is as an image
    assert np.array_equal(read_labels(path), labels)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_labels_of_sixteen_bits(tmp_path: Path, suffix: str):
    labels = LABELS.astype(np.uint16) * 1000
    Image.fromarray(labels).save(tmp_path / f"labels.{suffix}")
    found = read_labels(tmp_path / f"labels.{suffix}")
    assert found.dtype == torch.int64 and np.array_equal(found, labels)


def test_labels_with_alpha_and_as_floats(tmp_path: Path):
    Image.fromarray(np.dstack([LABELS] * 3 + [LABELS * 9])).save(tmp_path / "labels.png")
    tifffile.imwrite(tmp_path / "labels.tif", LABELS.astype(np.float32))
    for suffix in ("png", "tif"):
        assert np.array_equal(read_labels(tmp_path / f"labels.{suffix}"), LABELS)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (COLOURS, "labels must be numbers, one per pixel, found an image with colours"),
        (LABELS + np.float32(0.5), "labels must be whole numbers, found fractions"),
        (np.zeros((2, 3, 4), np.uint16), "must have one page, found 2"),
        (np.zeros((3, 4, 5), np.uint16), "must have 1 to 4 channels, found 5"),
    ],
)
def test_what_is_no_labels_is_told(tmp_path: Path, array: np.ndarray, message: str):
    path = tmp_path / "labels.tif"
    options: dict[str, Any] = {"planarconfig": "contig"} if array.shape[-1] == 5 and array.ndim == 3 else {}
    tifffile.imwrite(path, array, photometric="rgb" if array is COLOURS else "minisblack", **options)
    with pytest.raises(ExperimentError, match=f"^the labels {path} cannot be read: ValueError: .*{message}$"):
        read_labels(path)


@pytest.mark.parametrize("kind", ["grey.png", "rgb.png", "grey.tif", "rgb.tif", "8.png", "8.jpg", "8.tif"])
@pytest.mark.parametrize("share", [0, 0.1, 0.7])
def test_broken_files_are_named(tmp_path: Path, kind: str, share: float):
    path = tmp_path / kind
    if kind.startswith("8"):
        Image.fromarray(COLOURS).resize((200, 200)).save(path)
    else:
        write_deep(path, kind)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    for read, noun in ((read_image, "image"), (read_labels, "labels")):
        with pytest.raises(ExperimentError, match=rf"^the {noun} {path} cannot be read: [^\n]+$"):
            read(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ExperimentError, match=r"^the image .*none.png cannot be read: FileNotFoundError"):
        read_image(tmp_path / "none.png")
