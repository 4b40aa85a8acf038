"""Reading images and labels in the common file formats."""

from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import decode_image, read_file

from dinov3.data.errors import ImageFileError
from dinov3.errors import in_one_line

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_BIT_DEPTH = 24  # position of that byte in the file
TIFF_BITS = 258  # the tag BitsPerSample
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_image(path: Path, max_value: float | None = None) -> Tensor:
    """Read an image: grey, with a palette, or in colours, of any depth. Transparency is dropped.

    The EXIF orientation is not applied, because labels have none: image and labels would no longer match.

    Args:
        path: the file.
        max_value: the value of white in images of more than 8 bits. None: the largest value of their type, for integer
            types.

    Returns:
        (3, H, W): uint8, or for more than 8 bits float32 from 0 to 1.

    Raises:
        ImageFileError: the file cannot be read.
    """
    try:
        pixels = _deep_pixels(path)
        if pixels is None:
            with Image.open(path) as file:
                pixels = np.array(file.convert("RGB"))
        channels = _without_alpha(pixels)
        channels = channels if channels.dtype == np.uint8 else _scaled(channels, max_value)
    except Exception as error:  # a damaged file can make the decoders raise anything
        raise ImageFileError(f"the image {path} cannot be read: {in_one_line(error)}") from error
    image = torch.from_numpy(channels).permute(2, 0, 1)
    return image.contiguous() if len(image) == 3 else image.repeat(3, 1, 1)


def read_labels(path: Path) -> Tensor:
    """Read labels: the numbers of a grey image, the indices of a palette, or colours with three equal channels.

    Args:
        path: the file.

    Returns:
        (H, W): uint8, or for more than 8 bits int64.

    Raises:
        ImageFileError: the file cannot be read, or does not hold labels.
    """
    try:
        pixels = _deep_pixels(path)
        channels = _without_alpha(_small_labels(path) if pixels is None else pixels)
        labels = channels[..., 0]
        if (channels != labels[..., None]).any():
            raise ValueError("labels must be numbers, one per pixel, found an image with colours")
        if labels.dtype == np.uint8:
            return torch.from_numpy(labels.copy())
        if (labels != np.round(labels)).any():
            raise ValueError("labels must be whole numbers, found fractions")
    except Exception as error:
        raise ImageFileError(f"the labels {path} cannot be read: {in_one_line(error)}") from error
    return torch.from_numpy(labels.astype(np.int64))


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image.

    Raises:
        ImageFileError: the file cannot be read.
    """
    try:
        pixels = _deep_pixels(path)
        if pixels is not None:
            return pixels.shape[:2]
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:
        raise ImageFileError(f"the image {path} cannot be read: {in_one_line(error)}") from error


def _deep_pixels(path: Path) -> np.ndarray | None:
    """Read pixels of more than 8 bits, (H, W) or (H, W, C), which Pillow may reduce to 8; None for other files."""
    with path.open("rb") as file:
        header = file.read(PNG_BIT_DEPTH + 1)
    if header.startswith(PNG_SIGNATURE) and header[PNG_BIT_DEPTH:] == bytes([16]):
        return decode_image(read_file(str(path))).permute(1, 2, 0).numpy()
    if not header.startswith(TIFF_SIGNATURES):
        return None
    with tifffile.TiffFile(path) as file:
        if len(file.pages) != 1:
            raise ValueError(f"it must have one page, found {len(file.pages)}")
        page = file.pages[0]
        if page.dtype is not None and page.dtype.itemsize == 1:
            return None
        pixels = page.asarray()
        return np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels


def _small_labels(path: Path) -> np.ndarray:
    """Read labels of up to 8 bits, (H, W) or (H, W, C), uint8."""
    with Image.open(path) as image:
        pixels = np.array(image).astype(np.uint8)
        # Pillow stretches grey values of 2 and 4 bits to 0 to 255, which is right for images only
        bits = _bits(path, image)
        return pixels // (255 // (2**bits - 1)) if image.mode == "L" and bits in (2, 4) else pixels


def _bits(path: Path, image: Image.Image) -> int:
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(PNG_BIT_DEPTH + 1)[PNG_BIT_DEPTH]
    return image.tag_v2.get(TIFF_BITS, (1,))[0] if image.format == "TIFF" else 8


def _without_alpha(pixels: np.ndarray) -> np.ndarray:
    """From (H, W) or (H, W, C) to (H, W, 1 or 3)."""
    channels = pixels.reshape(*pixels.shape[:2], -1)
    if channels.shape[2] > 4:
        raise ValueError(f"it must have 1 to 4 channels, found {channels.shape[2]}")
    return channels[..., : 1 if channels.shape[2] < 3 else 3]


def _scaled(channels: np.ndarray, max_value: float | None) -> np.ndarray:
    """From any numbers to float32 from 0 to 1."""
    if max_value is None:
        if channels.dtype.kind not in "iu":
            raise ValueError(
                "its pixels are floating-point numbers: datasets.max_value must be set to the value of white"
            )
        max_value = float(np.iinfo(channels.dtype).max)
    if not np.isfinite(channels).all():
        raise ValueError("its pixels must be finite numbers, found NaN or infinity")
    return np.clip(channels / np.float32(max_value), 0, 1, dtype=np.float32)
