"""Residual networks, parameterised by block, stem, stages and head."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from expunge.models.blocks import at_least, conv, conv_block, image_shape, scaled


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus shortcut, ReLU (He et al., CVPR 2016)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.shortcut = projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1 - 3x3 - 1x1 convolutions with four times the width as output (He et al., CVPR 2016)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.shortcut = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice; the shortcut is a 1x1 convolution of the activated input if the shape changes.

    The 3x3 convolutions have a bias, as in the SCRUB authors' code.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, width, 3, stride, bias=True)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3, bias=True)
        self.shortcut = conv(inputs, width, 1, stride) if stride != 1 or inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(y)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(y)))) + skip
        return out


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Shortcut of a residual block: the identity, or a 1x1 convolution with BatchNorm if the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Stem, four stages, global average pooling, head.

    Args:
        stem: maps images to `inputs` channels.
        block: class of the blocks.
        depths: blocks per stage.
        widths: width per stage.
        inputs: channels after the stem.
        num_classes: number of logits.
        features: width of an extra linear layer `fc1` before the head (LAF), or None.
        he_init: whether convolutions are initialised by He's normal rule over the fan-out (torchvision).
    """

    def __init__(
        self,
        stem: nn.Sequential,
        block: type[BasicBlock] | type[Bottleneck] | type[PreActBlock],
        depths: Sequence[int],
        widths: Sequence[int],
        inputs: int,
        num_classes: int,
        features: int | None = None,
        he_init: bool = False,
    ) -> None:
        super().__init__()
        self.stem = stem
        stages = []
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for position in range(depth):
                blocks.append(block(inputs, width, 2 if number > 0 and position == 0 else 1))
                inputs = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc1 = nn.Linear(inputs, features) if features else nn.Identity()
        self.head = nn.Linear(features or inputs, num_classes)
        self.he_init = he_init
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise convolutions by He's rule if `he_init`; other layers have rules of their own."""
        for module in self.modules():
            if self.he_init and isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        out: Tensor = self.head(self.fc1(self.pool(x)))
        return out


def preact_resnet18(num_classes: int, input_shape: Sequence[int], width: float = 1.0) -> nn.Module:
    """Pre-activation ResNet-18 with stages of int(64 f), int(128 f), int(256 f), int(512 f) filters, f = `width`.

    There is no final BatchNorm or ReLU, as in the SCRUB authors' code.
    """
    channels, _, _ = image_shape(input_shape, 8, "resnet18-preact")
    stem = conv_block(channels, 64, bias=True)
    widths = scaled((64, 128, 256, 512), width, "resnet18-preact")
    return ResNet(stem, PreActBlock, (2, 2, 2, 2), widths, 64, num_classes)


def cifar_resnet18(num_classes: int, input_shape: Sequence[int], width: float = 1.0, pool: bool = True) -> nn.Module:
    """ResNet-18 with a 3x3 stem; `width` scales the published widths, `pool` adds the 3x3/2 max-pool of L2UL's stem."""
    channels, _, _ = image_shape(input_shape, 16, "resnet18-cifar")
    widths = scaled((64, 128, 256, 512), width, "resnet18-cifar")
    stem = conv_block(channels, widths[0])
    if pool:
        stem.append(nn.MaxPool2d(3, 2, padding=1))
    return ResNet(stem, BasicBlock, (2, 2, 2, 2), widths, widths[0], num_classes)


def cifar_resnet50(num_classes: int, input_shape: Sequence[int]) -> nn.Module:
    """ResNet-50 with a 3x3 stem without pooling; stages have 256, 512, 1024 and 2048 channels."""
    channels, _, _ = image_shape(input_shape, 8, "resnet50-cifar")
    stem = conv_block(channels, 64)
    return ResNet(stem, Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), 64, num_classes)


def laf_resnet18(num_classes: int, input_shape: Sequence[int], features: int = 256) -> nn.Module:
    """ResNet-18 of the LAF paper: ImageNet stem, then a linear layer of width `features` (the representation e)."""
    channels, _, _ = image_shape(input_shape, 32, "resnet18-laf")
    at_least(1, "resnet18-laf", features=features)
    stem = conv_block(channels, 64, 7, 2).append(nn.MaxPool2d(3, 2, padding=1))
    return ResNet(stem, BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), 64, num_classes, features, he_init=True)
