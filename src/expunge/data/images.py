"""Decoding of images (PNG, JPEG, ...) to uint8 arrays (C, H, W): all at once, or on demand if they do not fit."""

from __future__ import annotations

import hashlib
import io
import struct
from abc import ABC, abstractmethod
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
import torch
from PIL import Image

from expunge.core.errors import DataError

THREADS = 2
SMALL = 64  # pixels; measured: no gain from threads below
PROBES = 256
PIXELS = 64_000_000  # of one image; a damaged header may promise any number
_GREY = {"1", "L", "LA"}
_DEEP = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
# What Pillow raises on damaged files.
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, TypeError, KeyError, IndexError, OverflowError,
    AttributeError, NotImplementedError, RuntimeError, ZeroDivisionError, MemoryError,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 lay the image on its side
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Mode = Literal["L", "RGB"]


class Encoded(ABC):
    """A sequence of encoded images."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def read(self, position: int) -> bytes | Path:
        """The bytes of one image, or the file that holds it."""

    def read_many(self, start: int, stop: int) -> list[bytes | Path]:
        """`read` of a range; overridden by sequences that read a range faster than single images."""
        return [self.read(position) for position in range(start, stop)]

    @abstractmethod
    def where(self, position: int) -> str:
        """File (and row) of one image, for messages."""


class ChosenImages(Encoded):
    """Some images of another sequence, in a given order."""

    def __init__(self, images: Encoded, rows: np.ndarray) -> None:
        self.images = images
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, position: int) -> bytes | Path:
        return self.images.read(int(self.rows[position]))

    def where(self, position: int) -> str:
        return self.images.where(int(self.rows[position]))


@dataclass(frozen=True)
class DecodingPlan:
    """How images are decoded.

    Attributes:
        mode: PIL's "L" (one channel) or "RGB" (three).
        size: (height, width) in pixels.
        resize: whether images of other sizes are resized; else they are an error.
        chosen: whether the caller chose the mode; then colour images are converted to grey if it is "L", else they are
            an error.
    """

    mode: Mode
    size: tuple[int, int]
    resize: bool = False
    chosen: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (1 if self.mode == "L" else 3, *self.size)


def plan_for(images: Encoded, image_size: int | None, mode: Mode | None = None) -> DecodingPlan:
    """Choose mode and size from up to 256 images spread over the set: colour if any image has it, the common size.

    Args:
        images: the images.
        image_size: side in pixels that the caller chose. Images of one smaller size are enlarged later on the device,
            which saves memory; larger or mixed ones are resized while decoding.
        mode: chosen by the caller, or None.

    Raises:
        DataError: if an image cannot be opened.
    """
    probes = np.linspace(0, len(images) - 1, min(PROBES, len(images)), dtype=int).tolist()
    colour = False
    sizes: Counter[tuple[int, int]] = Counter()
    for position in probes:
        with _open(images, position, images.read(position)) as image:
            colour = colour or image.mode not in _GREY
            sizes[_size(image)] += 1
    decided: Mode = mode or ("RGB" if colour else "L")
    common = sizes.most_common(1)[0][0]
    if image_size is not None and (len(sizes) > 1 or max(common) > image_size):
        return DecodingPlan(decided, (image_size, image_size), resize=True, chosen=mode is not None)
    return DecodingPlan(decided, common, chosen=mode is not None)


def _size(image: Image.Image) -> tuple[int, int]:
    """(height, width) after the EXIF orientation is applied."""
    return (image.width, image.height) if _orientation(image) >= 5 else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) if there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except BROKEN:
        return 1
    return value if value in _TURNS else 1


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def decoder() -> str:
    """Identity of the decoding code, for cache keys: this file and the version of Pillow."""
    return f"{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]} Pillow {PIL.__version__}"


def decode_one(images: Encoded, position: int, plan: DecodingPlan) -> np.ndarray:
    """One image as uint8 (C, H, W); raises `DataError` with file and row if it is damaged or of another size."""
    return _decode(images, position, images.read(position), plan)


def _decode(images: Encoded, position: int, source: bytes | Path, plan: DecodingPlan) -> np.ndarray:
    with _open(images, position, source) as image:
        if not plan.resize and _size(image) != plan.size:  # before anything is decoded
            raise MixedSizes(_other_size(images.where(position), _size(image), plan))
        if image.mode in _DEEP:
            raise DataError(f"{images.where(position)}: {image.mode} pixels; convert the images to 8 bits first.")
        if plan.mode == "L" and image.mode not in _GREY and not plan.chosen:
            raise MixedModes(
                f"{images.where(position)}: the image has colour, others are grey; pass mode=RGB (grey images get "
                "three equal channels) or mode=L (colour is lost)."
            )
        try:
            image.load()
            upright = _upright(image)
            # Palettes with transparency go through RGBA, otherwise Pillow warns.
            opaque = upright.convert("RGBA") if upright.mode == "P" and "transparency" in upright.info else upright
            pixels = opaque if opaque.mode == plan.mode else opaque.convert(plan.mode)
        except BROKEN as error:
            raise DataError(f"{images.where(position)}: damaged image ({error}).") from None
        if (pixels.height, pixels.width) != plan.size:
            if not plan.resize:
                raise MixedSizes(_other_size(images.where(position), (pixels.height, pixels.width), plan))
            pixels = pixels.resize((plan.size[1], plan.size[0]), Image.Resampling.BILINEAR)
        array = np.asarray(pixels)
    return array[None] if plan.mode == "L" else array.transpose(2, 0, 1)


def _other_size(place: str, size: tuple[int, int], plan: DecodingPlan) -> str:
    return (
        f"{place}: the image is {size[0]}x{size[1]}, others are {plan.size[0]}x{plan.size[1]}; pass image_size to "
        "bring all to one size."
    )


class MixedSizes(DataError):
    """Images differ in size, and no size was chosen."""


class MixedModes(DataError):
    """A colour image among grey ones, and no mode was chosen."""


def decode_all(images: Encoded, plan: DecodingPlan) -> np.ndarray:
    """All images as uint8 (N, C, H, W), decoded by two threads (Pillow releases the lock while it decodes).

    Small images are decoded by one thread: frequent changes of the lock make a second thread slower.

    Raises:
        DataError: with file and row, for a damaged image.
        MixedSizes: for an image of another size, unless `plan.resize`.
        MixedModes: for a colour image, if the mode is "L" and not chosen.
    """
    threads = THREADS if min(plan.size) >= SMALL else 1
    result = np.empty((len(images), *plan.shape), dtype=np.uint8)

    def work(start: int) -> None:
        sources = images.read_many(start, min(start + 512, len(images)))
        for position, source in enumerate(sources, start):
            result[position] = _decode(images, position, source, plan)

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, range(0, len(images), 512)):
            pass
    return result


def decode_sized(images: Encoded, plan: DecodingPlan, image_size: int | None) -> np.ndarray:
    """`decode_all`, repeated if the plan missed an image of another size (if `image_size` is given) or in colour."""
    try:
        return decode_all(images, plan)
    except MixedModes:
        return decode_sized(images, replace(plan, mode="RGB"), image_size)
    except MixedSizes:
        if image_size is None:
            raise
        return decode_all(images, replace(plan, size=(image_size, image_size), resize=True))


class ImageItems(torch.utils.data.Dataset[torch.Tensor]):
    """Images decoded on demand, for `StreamingStore`: item i is a uint8 tensor (C, H, W)."""

    def __init__(self, images: Encoded, plan: DecodingPlan) -> None:
        self.images = images
        self.plan = plan

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> torch.Tensor:
        return torch.from_numpy(decode_one(self.images, position, self.plan).copy())


def _open(images: Encoded, position: int, source: bytes | Path) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        if image.width * image.height > PIXELS:
            raise ValueError(f"it has {image.width * image.height:,} pixels, at most {PIXELS:,} are read")
        return image
    except BROKEN as error:
        reason = "not an image" if isinstance(error, PIL.UnidentifiedImageError) else str(error)
        raise DataError(f"{images.where(position)}: cannot be opened ({reason}).") from None
