"""Architectures that other libraries hold: image classifiers of Hugging Face, ResNet-50 of torchvision.

The libraries are imported on first use. A checkpoint with another number of classes is refused, unless the caller
asks for a new head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.models.blocks import image_shape


class LogitsOnly(nn.Module):
    """A Hugging Face image classifier as a plain function from images (B, C, H, W) to logits (B, classes).

    side: images are resized (bilinear) to side x side, or stay as they are (None). Normalisation is the data's part.
    """

    def __init__(self, net: nn.Module, side: int | None) -> None:
        super().__init__()
        self.net = net
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        if self.side is not None and x.shape[-2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", align_corners=False, antialias=True)
        out: Tensor = self.net(pixel_values=x).logits
        return out

    def reset_parameters(self) -> None:
        """Fresh weights by the library's own rules; its class and position tokens know no reset of their own."""
        fresh = type(self.net)(self.net.config)
        self.net.load_state_dict(fresh.state_dict())


def vit_hf(num_classes: int, input_shape: Sequence[int], source: str, fresh_head: bool = False) -> nn.Module:
    """source: a folder written by `save_pretrained`, or a Hub id. fresh_head: draw a new head for `num_classes`."""
    name = "vit-hf"
    channels, _, _ = image_shape(input_shape, 1, name)
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
    except ImportError as error:
        raise UsageError(f"model `{name}` needs the extra `hub`: pip install 'expunge[hub]' ({error}).") from None
    try:
        # Code that comes with a checkpoint is never run, and never asked about.
        config: Any = AutoConfig.from_pretrained(source, trust_remote_code=False)
        found = getattr(config, "num_channels", channels)
        if found != channels:
            raise UsageError(f"model `{name}` from {source} takes {found} channels, the data have {channels}.")
        refuse_other_head(name, source, config.num_labels, num_classes, fresh_head)
        net = AutoModelForImageClassification.from_pretrained(
            source, num_labels=num_classes, ignore_mismatched_sizes=fresh_head, trust_remote_code=False
        )
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"model `{name}`: `source` {source} cannot be loaded ({reason}); pass a folder written by save_pretrained "
            "or the id of an image classifier on the Hub."
        ) from None
    size = getattr(config, "image_size", None)
    return LogitsOnly(net, size if isinstance(size, int) else None)


def imagenet_resnet50(
    num_classes: int, input_shape: Sequence[int], weights: str = "IMAGENET1K_V1", fresh_head: bool = False
) -> nn.Module:
    """weights: torchvision's name of the weights (V1 as in the L2UL paper), or "none" for a random start."""
    name = "imagenet-resnet50"
    if image_shape(input_shape, 32, name)[0] != 3:
        raise UsageError(f"model `{name}` takes 3 channels, the data have {input_shape[0]}.")
    try:
        import torchvision
    except (ImportError, RuntimeError, AttributeError) as error:  # the last two: built for another torch
        raise UsageError(
            f"model `{name}` needs torchvision built for the installed torch: pip install 'expunge[vision]' ({error})."
        ) from None
    if weights == "none":
        plain: nn.Module = torchvision.models.resnet50(weights=None, num_classes=num_classes)
        return plain
    refuse_other_head(name, weights, 1000, num_classes, fresh_head)
    net = torchvision.models.resnet50(weights=weights)
    if num_classes != net.fc.out_features:
        net.fc = nn.Linear(net.fc.in_features, num_classes)
    made: nn.Module = net
    return made


def refuse_other_head(name: str, source: str, found: int, wanted: int, fresh_head: bool) -> None:
    """`UsageError` where the weights were trained for another number of classes and no new head is asked for."""
    if found != wanted and not fresh_head:
        raise UsageError(
            f"model `{name}` from {source} has {found} classes, the data have {wanted}; "
            "pass fresh_head=true to draw a new head."
        )
