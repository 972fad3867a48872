"""Small networks in their CIFAR variants: MobileNetV2, SqueezeNet 1.1, DenseNet-BC.

The early strides are 1 because of the low resolution of 32 x 32 images; otherwise they follow the published tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.models.blocks import FeatureNet, at_least, conv, conv_block, image_shape


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1; a shortcut if the shape is kept (Sandler et al., CVPR 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        layers = [conv_block(inputs, inner, 1, act=nn.ReLU6())] if expansion > 1 else []
        layers += [conv_block(inner, inner, 3, stride, groups=inner, act=nn.ReLU6())]
        layers += [conv_block(inner, outputs, 1, act=nn.Identity())]
        self.path = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.path(x)
        return x + out if self.shortcut else out


# expansion, outputs, repeats, stride of the first: the paper's table 2 with the stride of the 24-stage set to 1.
_MOBILENET = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenetv2_cifar(num_classes: int, input_shape: Sequence[int], width: float = 1.0) -> nn.Module:
    """MobileNetV2 with the paper's width multiplier `width`; filters are rounded to multiples of 8, at least 8."""
    channels, _, _ = image_shape(input_shape, 16, "mobilenetv2-cifar")
    if width <= 0:
        raise UsageError(f"model `mobilenetv2-cifar`: `width` must be > 0, got {width:g}.")

    def filters(count: int) -> int:
        return max(8, round(count * width / 8) * 8)

    inputs = filters(32)
    features = nn.Sequential(conv_block(channels, inputs, 3, act=nn.ReLU6()))
    for expansion, outputs, repeats, stride in _MOBILENET:
        for position in range(repeats):
            features.append(InvertedResidual(inputs, filters(outputs), stride if position == 0 else 1, expansion))
            inputs = filters(outputs)
    last = filters(1280) if width > 1 else 1280
    features.append(conv_block(inputs, last, 1, act=nn.ReLU6()))
    return FeatureNet(features, last, num_classes)


class Fire(nn.Module):
    """1x1 squeeze, then 1x1 and 3x3 in parallel (Iandola et al., arXiv:1602.07360)."""

    def __init__(self, inputs: int, squeeze: int, expand: int, batchnorm: bool) -> None:
        super().__init__()
        self.squeeze = _maybe_norm(inputs, squeeze, 1, batchnorm)
        self.left = _maybe_norm(squeeze, expand, 1, batchnorm)
        self.right = _maybe_norm(squeeze, expand, 3, batchnorm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.left(x), self.right(x)], 1)


def _maybe_norm(inputs: int, outputs: int, kernel: int, batchnorm: bool) -> nn.Sequential:
    if batchnorm:
        return conv_block(inputs, outputs, kernel)
    return nn.Sequential(conv(inputs, outputs, kernel, bias=True), nn.ReLU())


# Pool, or (squeeze, expand): the table of SqueezeNet 1.1.
_SQUEEZENET = ("M", (16, 64), (16, 64), "M", (32, 128), (32, 128), "M", (48, 192), (48, 192), (64, 256), (64, 256))


def squeezenet_cifar(num_classes: int, input_shape: Sequence[int], batchnorm: bool = True) -> nn.Module:
    """SqueezeNet 1.1, optionally with BatchNorm after every convolution, without which it hardly trains from scratch.

    The published last 1x1 convolution, averaged over the feature map, equals a linear head on the averaged map; it is
    implemented as the latter, so that the representation is a vector.
    """
    channels, _, _ = image_shape(input_shape, 16, "squeezenet-cifar")
    features = nn.Sequential(_maybe_norm(channels, 64, 3, batchnorm))
    inputs = 64
    for item in _SQUEEZENET:
        if isinstance(item, str):
            features.append(nn.MaxPool2d(3, 2, padding=1))
        else:
            squeeze, expand = item
            features.append(Fire(inputs, squeeze, expand, batchnorm))
            inputs = 2 * expand
    return FeatureNet(features, inputs, num_classes)


class DenseLayer(nn.Module):
    """BN-ReLU-1x1-BN-ReLU-3x3; the result is appended to the input (Huang et al., CVPR 2017)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        inner = 4 * growth
        self.path = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            conv(inputs, inner, 1),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            conv(inner, growth, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.path(x)], 1)


def densenet_cifar(num_classes: int, input_shape: Sequence[int], depth: int = 100, growth: int = 12) -> nn.Module:
    """DenseNet-BC with three dense blocks, `depth` = 6 n + 4 layers, and `growth` filters added per layer."""
    channels, _, _ = image_shape(input_shape, 16, "densenet-cifar")
    at_least(1, "densenet-cifar", growth=growth)
    layers, rest = divmod(depth - 4, 6)
    if rest or layers < 1:
        raise UsageError(f"model `densenet-cifar`: `depth` must be 6 n + 4, such as 22, 40 or 100, got {depth}.")
    width = 2 * growth
    features = nn.Sequential()
    features.add_module("stem", conv(channels, width, 3))
    for number in (1, 2, 3):
        dense = [DenseLayer(width + i * growth, growth) for i in range(layers)]
        features.add_module(f"dense{number}", nn.Sequential(*dense))
        width += layers * growth
        if number < 3:
            half = [nn.BatchNorm2d(width), nn.ReLU(), conv(width, width // 2, 1), nn.AvgPool2d(2)]
            features.add_module(f"transition{number}", nn.Sequential(*half))
            width //= 2
    features.add_module("norm", nn.BatchNorm2d(width))
    features.add_module("relu", nn.ReLU())
    return FeatureNet(features, width, num_classes)
