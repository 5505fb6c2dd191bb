"""The transform of one image, in Pillow and NumPy: the deployed tool needs no torch for it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from elastic_export.config.transform import Transform
from elastic_export.errors import UserError

__all__ = ["apply_transform"]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def apply_transform(image: Image.Image, transform: Transform) -> np.ndarray:
    """Turn an image into a network input.

    The arithmetic is that of torchvision's ``Resize(shorter side, antialias)``, ``CenterCrop``,
    ``ToTensor`` and ``Normalize`` on a Pillow image, bit for bit. Greyscale, palette, alpha and
    CMYK images are first converted to the transform's channels (alpha is dropped); 16-bit
    greyscale is scaled by 65535; an image of mode ``F`` is taken to lie in [0, 1] already. EXIF
    rotation is not applied, as in the evaluation of the common ImageNet code. The final resize is
    torch's ``interpolate(mode="bicubic", align_corners=False)``, to float32 rounding.

    Args:
        image: Any Pillow image.
        transform: What to do.

    Returns:
        float32, shape (channels, size, size), or ``final_size`` instead of ``size``.

    Raises:
        UserError: The transform does not resize and the image is not ``size`` pixels square.
    """
    image = _convert(image, transform.channels)
    if transform.resize is not None:
        image = _resize_shorter_side(image, transform.resize, transform.interpolation)
        image = _center_crop(image, transform.size)
    elif image.size != (transform.size, transform.size):
        raise UserError(
            f"The image is {image.width} x {image.height} pixels where the transform expects "
            f"{transform.size} x {transform.size}.",
            "Set data.transform.resize to the length of the shorter side after resizing.",
        )
    pixels = np.asarray(image)
    if pixels.dtype == np.uint8:
        pixels = pixels.astype(np.float32) / np.float32(255)
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    mean = np.asarray(transform.mean, dtype=np.float32)[:, None, None]
    std = np.asarray(transform.std, dtype=np.float32)[:, None, None]
    normalised = np.ascontiguousarray((planes - mean) / std)
    if transform.final_size is None or transform.final_size == transform.size:
        return normalised
    return _bicubic(normalised, transform.final_size)


def _convert(image: Image.Image, channels: int) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        # Pillow's own conversion to 8 bits clips these at 255.
        image = Image.fromarray(np.asarray(image).astype(np.float32) / np.float32(65535))
    if image.mode == "F":
        # Stays in floating point; one plane is enough, mean and std spread it over the channels.
        return image
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def _resize_shorter_side(image: Image.Image, length: int, interpolation: str) -> Image.Image:
    width, height = image.size
    if min(width, height) == length:
        return image
    if width <= height:
        size = (length, int(length * height / width))
    else:
        size = (int(length * width / height), length)
    return image.resize(size, _RESAMPLING[interpolation])


def _center_crop(image: Image.Image, size: int) -> Image.Image:
    left = round((image.width - size) / 2)
    top = round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _bicubic(planes: np.ndarray, size: int) -> np.ndarray:
    """Resize float planes (C, S, S) as torch does: no antialiasing, edges repeated."""
    weights = _bicubic_weights(planes.shape[-1], size)
    return np.ascontiguousarray(weights @ planes @ weights.T)


@lru_cache(maxsize=8)
def _bicubic_weights(old: int, new: int) -> np.ndarray:
    """The matrix (new, old) that resizes one axis; Keys' kernel with a = -0.75."""
    places = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(places).astype(int)
    matrix = np.zeros((new, old))
    for step in range(-1, 3):
        far = np.abs(places - (first + step))
        near_part = (1.25 * far - 2.25) * far * far + 1
        far_part = ((-0.75 * far + 3.75) * far - 6) * far + 3
        share = np.where(far <= 1, near_part, far_part)
        np.add.at(matrix, (np.arange(new), np.clip(first + step, 0, old - 1)), share)
    return matrix.astype(np.float32)
