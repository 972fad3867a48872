"""One seed, one generator per purpose: adding a random call somewhere never shifts another one."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


_LOCK = threading.RLock()


@contextmanager
def global_generators(device: torch.device | str = "cpu") -> Iterator[float]:
    """Hold PyTorch's global generators, from which modules draw (dropout), and put them back as they were.

    The threads of a process share them: without a lock two trainings would take each other's numbers, and neither could
    be repeated. So only one thread at a time is inside; a thread may enter again.

    Args:
        device: whose generators, besides those of the CPU.

    Yields:
        Seconds that were spent waiting for another thread.
    """
    import torch

    began = time.perf_counter()
    with _LOCK:
        waited = time.perf_counter() - began
        devices = [torch.cuda.current_device()] if torch.device(device).type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            yield waited
