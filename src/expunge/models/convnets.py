"""Plain networks: MLP, small CNNs, All-CNN, VGG-16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from expunge.core.errors import UsageError


def image_shape(input_shape: Sequence[int], least: int, name: str) -> tuple[int, int, int]:
    """(channels, height, width); `UsageError` for anything but images of at least `least` pixels a side."""
    if len(input_shape) != 3 or min(input_shape[1:]) < least:
        raise UsageError(
            f"model `{name}` takes images (channels, height, width) of at least {least} x {least}, got shape "
            f"{tuple(input_shape)}; use `mlp` for other data."
        )
    return input_shape[0], input_shape[1], input_shape[2]


def mlp(num_classes: int, input_shape: Sequence[int], hidden: int = 128) -> nn.Module:
    """Flatten - hidden - hidden - classes, ReLU between."""
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
        self.block1 = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.block2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU())
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
    channels, _, _ = image_shape(input_shape, 4, "small-cnn")
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
    return LAFCNN(num_classes, *image_shape(input_shape, 4, "cnn"), features)


def conv_block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class AllCNN(nn.Module):
    """All-CNN as in the SCRUB authors' code; `features.3` and `features.7` are identities (where dropout was).

    The last block is the 1 x 1 convolution `features.9` with its BatchNorm: what CF-k and EU-k touch.
    """

    expunge_anatomy: ClassVar[dict[str, Any]] = {
        "head": "classifier",
        "blocks": [f"features.{i}" for i in (0, 1, 2, 4, 5, 6, 8, 9)],
    }

    def __init__(self, num_classes: int, channels: int, width: float, grid: int) -> None:
        super().__init__()
        a, b = int(96 * width), int(192 * width)
        self.features = nn.Sequential(
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
            nn.AvgPool2d(grid),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(b, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x))
        return out


def all_cnn(num_classes: int, input_shape: Sequence[int], width: float = 1.0) -> nn.Module:
    channels, height, side = image_shape(input_shape, 8, "allcnn")
    if height != side:
        raise UsageError(f"model `allcnn` takes square images, got {height} x {side}; resize them.")
    grid = (height + 3) // 4  # two stride-2 convolutions, each rounding up
    return AllCNN(num_classes, channels, width, grid)


_VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


class VGG(nn.Module):
    """VGG-16 with BatchNorm for 32 x 32 images: five pooled stages, one linear head."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for item in _VGG16:
            if isinstance(item, int):
                layers += [nn.Conv2d(inputs, item, 3, padding=1), nn.BatchNorm2d(item), nn.ReLU()]
                inputs = item
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x))
        return out


def vgg16_bn(num_classes: int, input_shape: Sequence[int]) -> nn.Module:
    channels, _, _ = image_shape(input_shape, 32, "vgg16-bn")
    return VGG(num_classes, channels)


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
