"""Bilinear resizing of a batch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_images(x: Tensor, size: int) -> Tensor:
    """Resize (B, C, H, W) to (B, C, size, size), same dtype; antialiased when shrinking, as image libraries do."""
    if tuple(x.shape[-2:]) == (size, size):
        return x
    shrinks = size < x.shape[-2] or size < x.shape[-1]
    y = F.interpolate(x.to(torch.float32), (size, size), mode="bilinear", align_corners=False, antialias=shrinks)
    return y.round_().clamp_(0, 255).to(torch.uint8) if x.dtype == torch.uint8 else y.to(x.dtype)
