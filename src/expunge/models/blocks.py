"""Building blocks of the architectures: checks of shapes and widths, convolutions, a sequential network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from expunge.core.errors import UsageError


def image_shape(input_shape: Sequence[int], least: int, name: str) -> tuple[int, int, int]:
    """(channels, height, width); raises `UsageError` unless these are images of at least `least` pixels a side."""
    if len(input_shape) != 3 or min(input_shape[1:]) < least:
        raise UsageError(
            f"model `{name}` takes images (channels, height, width) of at least {least} x {least}, got shape "
            f"{tuple(input_shape)}; use `mlp` for other data."
        )
    return input_shape[0], input_shape[1], input_shape[2]


def scaled(widths: Sequence[int], fraction: float, name: str) -> list[int]:
    """int(fraction * width) for each width; raises `UsageError` if a layer would have no filter."""
    filters = [int(fraction * width) for width in widths]
    if min(filters) < 1:
        raise UsageError(
            f"model `{name}`: `width` {fraction:g} leaves a layer without filters; "
            f"allowed: {1 / min(widths):.3g} and more."
        )
    return filters


def at_least(least: int, name: str, **values: int) -> None:
    """Raise `UsageError` for the first of these options that is below `least`."""
    for option, value in values.items():
        if value < least:
            raise UsageError(f"model `{name}`: `{option}` must be >= {least}, got {value}.")


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, *, bias: bool = False, groups: int = 1) -> nn.Conv2d:
    """Convolution with padding that keeps the image size at stride 1 (odd kernels)."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias, groups=groups)


def conv_block(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    bias: bool = False,
    groups: int = 1,
    act: nn.Module | None = None,
) -> nn.Sequential:
    """Convolution, BatchNorm and activation (ReLU by default)."""
    layer = conv(inputs, outputs, kernel, stride, bias=bias, groups=groups)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), act or nn.ReLU())


class FeatureNet(nn.Module):
    """Sequential blocks (`features`), global average pooling and a linear head (`classifier`).

    Args:
        features: maps (B, channels, H, W) to (B, outputs, h, w).
        outputs: width of the pooled representation (B, outputs).
        num_classes: number of logits.
    """

    def __init__(self, features: nn.Sequential, outputs: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(outputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.pool(self.features(x)))
        return out


def count_parameters(model: nn.Module) -> int:
    """Number of weights; tied weights count once."""
    return sum(p.numel() for p in model.parameters())
