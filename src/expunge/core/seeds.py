"""One seed, one generator per purpose: adding a random call somewhere never shifts another one."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose, e.g. `derive(0, "shuffle", "retain", epoch)`. Same input, same output, forever."""
    text = "\x1f".join(map(str, (seed, *purpose))).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def torch_generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator of its own for one purpose."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *purpose))


def numpy_generator(seed: int, *purpose: object) -> numpy.random.Generator:
    import numpy

    return numpy.random.default_rng(derive(seed, *purpose))


def python_generator(seed: int, *purpose: object) -> random.Random:
    return random.Random(derive(seed, *purpose))
