"""Random generators per purpose, derived from one seed: an additional draw never changes another stream."""

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
    """A 63-bit seed for one purpose, e.g. `derive(0, "shuffle", "retain", epoch)`."""
    text = "\x1f".join(map(str, (seed, *purpose))).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def torch_generator(seed: int, *purpose: object) -> torch.Generator:
    """A torch CPU generator for one purpose."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *purpose))


def numpy_generator(seed: int, *purpose: object) -> numpy.random.Generator:
    """A NumPy generator for one purpose."""
    import numpy

    return numpy.random.default_rng(derive(seed, *purpose))


def python_generator(seed: int, *purpose: object) -> random.Random:
    """A generator of Python's `random` for one purpose."""
    return random.Random(derive(seed, *purpose))


_LOCK = threading.RLock()


@contextmanager
def global_generators(device: torch.device | str = "cpu") -> Iterator[float]:
    """Lock PyTorch's global generators, from which modules draw (dropout), and restore their state afterwards.

    The threads of a process share them: without a lock two concurrent trainings would not be reproducible. Only one
    thread at a time is within the context; it may enter again.

    Args:
        device: whose generators, besides those of the CPU.

    Yields:
        Seconds that were spent waiting for another thread.
    """
    import torch

    start = time.perf_counter()
    with _LOCK:
        waited = time.perf_counter() - start
        devices = [torch.cuda.current_device()] if torch.device(device).type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            yield waited
