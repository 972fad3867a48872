"""Six small networks written as a user would write them: no base class, no hook, nothing of the package."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBatchNorm(nn.Module):
    """Two convolutions with BatchNorm and a hidden layer; (B, 1, 14, 14) to 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(32 * 9, 96), nn.ReLU(), nn.Linear(96, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + self.shortcut(x))


class SmallResNet(nn.Module):
    """Three residual blocks with BatchNorm; (B, 3, 16, 16) to 10 classes."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(
            ResidualBlock(width, width, 1),
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 4 * width, 2),
        )
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stages(self.stem(x)).mean((2, 3)))


class TableMLP(nn.Module):
    """Three hidden layers with LayerNorm and GELU; (B, 24) to 6 classes."""

    def __init__(self, inputs: int = 24, width: int = 128, classes: int = 6) -> None:
        super().__init__()
        sizes = [inputs, width, width, width]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))  # noqa: RUF007
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.layers)
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.gelu(norm(layer(x)))
        return self.out(x)


class Encoder(nn.Module):
    """One pre-norm transformer layer; (B, T, width)."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.dropout(self.project(mixed))
        return x + self.dropout(self.mlp(self.norm2(x)))


class SmallViT(nn.Module):
    """Vision transformer on 4 x 4 patches with a class token; (B, 3, 16, 16) to 5 classes."""

    def __init__(self, width: int = 48, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.layers = nn.Sequential(*(Encoder(width, 4) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.layers(x))[:, 0])


class TokenNet(nn.Module):
    """Embedding, one transformer layer with dropout, mean over the tokens; (B, 24) token numbers to 8 classes."""

    def __init__(self, vocabulary: int = 400, width: int = 48, classes: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layer = Encoder(width, 4, dropout=0.1)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.layer(self.embedding(x.long()))).mean(1))


class SignalNet(nn.Module):
    """Two convolutions with GroupNorm and a GRU; signals (B, 2, 64) to 6 classes."""

    def __init__(self, width: int = 24, classes: int = 6) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv1d(2, width, 5, 2, 2),
            nn.GroupNorm(4, width),
            nn.SiLU(),
            nn.Conv1d(width, 2 * width, 5, 2, 2),
            nn.GroupNorm(4, 2 * width),
            nn.SiLU(),
        )
        self.gru = nn.GRU(2 * width, 48, batch_first=True)
        self.out = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(self.convolutions(x).transpose(1, 2))
        return self.out(states.mean(1))
