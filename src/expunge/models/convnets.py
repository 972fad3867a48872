"""Sequential networks: MLP, small CNNs, All-CNN, VGG-16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from expunge.models.blocks import FeatureNet, at_least, conv_block, image_shape, scaled


def mlp(num_classes: int, input_shape: Sequence[int], hidden: int = 128) -> nn.Module:
    """Two hidden layers of width `hidden` with ReLU; any input."""
    at_least(1, "mlp", hidden=hidden)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


class SmallCNN(nn.Module):
    """Two conv-BN-ReLU blocks, pooling to 2 x 2, one hidden layer."""

    def __init__(self, num_classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.block1 = conv_block(channels, width, bias=True)
        self.block2 = conv_block(width, 2 * width, bias=True)
        self.pool = nn.MaxPool2d(2)
        self.to_grid = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Sequential(nn.Linear(8 * width, 64), nn.ReLU())
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.block1(x))
        x = self.to_grid(self.block2(x))
        out: Tensor = self.head(self.hidden(x.flatten(1)))
        return out


def small_cnn(num_classes: int, input_shape: Sequence[int], width: int = 16) -> nn.Module:
    """Small CNN with `width` filters in the first block and twice as many in the second."""
    channels, _, _ = image_shape(input_shape, 4, "small-cnn")
    at_least(1, "small-cnn", width=width)
    return SmallCNN(num_classes, channels, width)


class LAFCNN(nn.Module):
    """The LAF paper's CNN. There is no activation after `fc1` (the representation e) nor inside `fc2` (the head)."""

    expunge_anatomy: ClassVar[dict[str, Any]] = {"head": "fc2", "blocks": ["conv1", "conv2", "fc1"]}

    def __init__(self, num_classes: int, channels: int, height: int, width: int, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(channels, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
        self.conv2 = nn.Sequential(nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
        self.fc1 = nn.Linear(32 * (height // 4) * (width // 4), features)
        self.fc2 = nn.Sequential(nn.Linear(features, 128), nn.Linear(128, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        e = self.fc1(self.conv2(self.conv1(x)).flatten(1))
        out: Tensor = self.fc2(e)
        return out


def laf_cnn(num_classes: int, input_shape: Sequence[int], features: int = 256) -> nn.Module:
    """CNN of the LAF paper with a representation e of width `features`."""
    shape = image_shape(input_shape, 4, "cnn")
    at_least(1, "cnn", features=features)
    return LAFCNN(num_classes, *shape, features)


def all_cnn(num_classes: int, input_shape: Sequence[int], width: float = 1.0) -> nn.Module:
    """All-CNN as in the SCRUB authors' code; `features.3` and `features.7` are identities in place of dropout.

    The last block is the 1 x 1 convolution `features.9` with its BatchNorm (37,248 parameters), which CF-k and EU-k
    train. At 32 x 32 the pooling is the published 8 x 8 average.

    Args:
        num_classes: number of logits.
        input_shape: images of at least 8 x 8.
        width: fraction of the 96 and 192 filters.
    """
    channels, _, _ = image_shape(input_shape, 8, "allcnn")
    a, b = scaled((96, 192), width, "allcnn")
    features = nn.Sequential(
        conv_block(channels, a),
        conv_block(a, a),
        conv_block(a, b, stride=2),
        nn.Identity(),
        conv_block(b, b),
        conv_block(b, b),
        conv_block(b, b, stride=2),
        nn.Identity(),
        conv_block(b, b),
        conv_block(b, b, kernel=1),
    )
    return FeatureNet(features, b, num_classes)


_VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def vgg16_bn(num_classes: int, input_shape: Sequence[int]) -> nn.Module:
    """VGG-16 with BatchNorm for 32 x 32 images: thirteen convolutions with bias, five pools, one linear head."""
    inputs, _, _ = image_shape(input_shape, 32, "vgg16-bn")
    features = nn.Sequential()
    for item in _VGG16:
        if isinstance(item, int):
            features.append(conv_block(inputs, item, bias=True))
            inputs = item
        else:
            features.append(nn.MaxPool2d(2))
    return FeatureNet(features, inputs, num_classes)
