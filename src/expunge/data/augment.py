"""Augmentations of raw batches (B, C, H, W) on the device, with random numbers of a CPU generator.

All random numbers are drawn on the CPU, so the same seed gives the same crops on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.core.errors import UsageError, unknown
from expunge.data.resize import resize_images
from expunge.data.split import Augment

TRIES = 10


@dataclass(frozen=True)
class CropFlip:
    """Random crop of the zero-padded image and horizontal flip: the usual CIFAR augmentation.

    Attributes:
        padding: zeros on each side, in pixels.
        flip: probability of the flip.
    """

    padding: int = 4
    flip: float = 0.5

    def __call__(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = _image_shape(raw)
        shifts = torch.randint(2 * self.padding + 1, (2, count), generator=generator)
        flipped = torch.rand(count, generator=generator) < self.flip
        padded = F.pad(raw, [self.padding] * 4)
        rows = shifts[0, :, None] + torch.arange(height)
        columns = torch.arange(width).expand(count, width)
        columns = shifts[1, :, None] + torch.where(flipped[:, None], width - 1 - columns, columns)
        flat = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(count, 1, -1).to(raw.device)
        flat = flat.expand(-1, raw.shape[1], -1)
        return padded.flatten(2).gather(2, flat).view(raw.shape)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random crop of random area and aspect ratio, resized to (size, size), and horizontal flip.

    Boxes are drawn as in torchvision: up to ten tries, then the largest central box within `ratio`. One bilinear
    sampling replaces resizing and cropping, without antialiasing (the crops of small images are enlarged).

    Attributes:
        size: side of the result in pixels.
        scale: range of the area of the crop, as a share of the image.
        ratio: range of width / height.
        flip: probability of the flip.
        frame: side of the square in which boxes are measured, as if the image had been resized to it first (the LAF
            pipeline crops after 32 -> 224); None: the image itself.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    frame: int | None = None

    def __call__(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        count, channels, height, width = _image_shape(raw)
        frame = (height, width) if self.frame is None else (self.frame, self.frame)
        top, left, heights, widths = self.boxes(count, frame, generator)
        sign = 1 - 2 * (torch.rand(count, generator=generator) < self.flip).double()
        # Output corner coordinates -1..1 map to the box, measured as shares of the frame.
        theta = torch.zeros(count, 2, 3, dtype=torch.float64)
        theta[:, 0, 0] = sign * widths / frame[1]
        theta[:, 0, 2] = (2 * left + widths) / frame[1] - 1
        theta[:, 1, 1] = heights / frame[0]
        theta[:, 1, 2] = (2 * top + heights) / frame[0] - 1
        grid = F.affine_grid(
            theta.to(torch.float32).to(raw.device), [count, channels, self.size, self.size], align_corners=False
        )
        y = F.grid_sample(raw.to(torch.float32), grid, mode="bilinear", padding_mode="border", align_corners=False)
        return y.round_().clamp_(0, 255).to(torch.uint8) if raw.dtype == torch.uint8 else y.to(raw.dtype)

    def boxes(self, count: int, frame: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Top, left, height and width (count,) of one box per image, in whole pixels of `frame` (height, width)."""
        height, width = frame
        draws = torch.rand(4, count, TRIES, generator=generator, dtype=torch.float64)
        area = height * width * (self.scale[0] + draws[0] * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = torch.exp(low + draws[1] * (high - low))
        widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
        first = fits.to(torch.uint8).argmax(1, keepdim=True)
        has_fit = fits.gather(1, first)[:, 0]
        own_ratio = width / height
        full_wide = float(width if own_ratio <= self.ratio[1] else round(height * self.ratio[1]))
        full_tall = float(height if own_ratio >= self.ratio[0] else round(width / self.ratio[0]))
        widths = torch.where(has_fit, widths.gather(1, first)[:, 0], full_wide)
        heights = torch.where(has_fit, heights.gather(1, first)[:, 0], full_tall)
        top = torch.floor(draws[2].gather(1, first)[:, 0] * (height - heights + 1))
        left = torch.floor(draws[3].gather(1, first)[:, 0] * (width - widths + 1))
        top = torch.where(has_fit, top, torch.floor((height - heights) / 2))
        left = torch.where(has_fit, left, torch.floor((width - widths) / 2))
        return top, left, heights, widths


@dataclass(frozen=True)
class Resize:
    """Bilinear resizing to (size, size); not random."""

    size: int

    def __call__(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        _image_shape(raw)
        return resize_images(raw, self.size)


def crop_flip(padding: int = 4) -> Augment:
    """`CropFlip` with zero padding in pixels, >= 0; raises `UsageError` for a negative one."""
    if padding < 0:
        raise UsageError(f"crop-flip: the padding must be at least 0, got {padding}.")
    return CropFlip(padding)


def random_resized_crop(
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    frame: int | None = None,
) -> Augment:
    """`RandomResizedCrop`; raises `UsageError` unless size >= 1, 0 < scale <= 1, 0 < ratio and flip is in [0, 1]."""
    if size < 1 or not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1] or not 0 <= flip <= 1:
        raise UsageError(
            f"random_resized_crop needs size >= 1, 0 < scale <= 1, 0 < ratio and flip in [0, 1], "
            f"got size={size}, scale={scale}, ratio={ratio}, flip={flip}."
        )
    return RandomResizedCrop(size, scale, ratio, flip, frame)


def resize(size: int) -> Augment:
    """`Resize` to (size, size), size >= 1; `Store.resize` does the same without augmentation."""
    if size < 1:
        raise UsageError(f"resize: the size must be at least 1, got {size}.")
    return Resize(size)


AUGMENTS: dict[str, Callable[[], Augment | None]] = {
    "none": lambda: None,
    "crop-flip": crop_flip,
    "rrc-flip-224": lambda: random_resized_crop(224, frame=224),
}


def make_augment(name: str) -> Augment | None:
    """The augmentation of a name, None for "none"; raises `UsageError` for an unknown name."""
    if name not in AUGMENTS:
        raise unknown("augmentation", name, AUGMENTS)
    return AUGMENTS[name]()


def _image_shape(raw: Tensor) -> tuple[int, int, int, int]:
    if raw.dim() != 4:
        raise UsageError(f"image augmentation needs samples (C, H, W), got shape {tuple(raw.shape[1:])}; use none.")
    count, channels, height, width = raw.shape
    return count, channels, height, width
