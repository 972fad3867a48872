"""How much one client may ask: sizes of bodies, and a token bucket for the rate."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from expunge.core.options import Field, options
from expunge.requests.tickets import LARGEST

_CLIENTS = 1024  # buckets that are kept; the client that was silent longest is forgotten first


@options
class ServiceLimits:
    """Of one service. Sizes in bytes."""

    body_bytes: int = Field(64 * 1024, ge=1, description="largest body of a call")
    import_bytes: int = Field(8 * 2**20, ge=1, le=LARGEST, description="largest file of requests")
    per_second: float = Field(20.0, gt=0, description="calls per second that a client may make for long")
    burst: int = Field(100, ge=1, description="calls that a client may make at once")


class Rate:
    """A token bucket per client: `burst` calls at once, refilled at `per_second`."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> (tokens, when)
        self._lock = threading.Lock()

    def wait(self, client: str) -> int:
        """Take one token; 0, or the whole seconds until there is one.

        >>> rate = Rate(0.5, 2, clock=lambda: 0.0)
        >>> [rate.wait("here") for _ in range(3)]
        [0, 0, 2]
        """
        with self._lock:
            now = self._clock()
            tokens, then = self._buckets.pop(client, (float(self._burst), now))
            tokens = min(tokens + (now - then) * self._per_second, float(self._burst))
            missing = 1.0 - tokens
            self._buckets[client] = (tokens if missing > 0 else tokens - 1.0, now)
            while len(self._buckets) > _CLIENTS:
                self._buckets.popitem(last=False)
        return math.ceil(missing / self._per_second) if missing > 0 else 0
