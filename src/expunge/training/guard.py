"""A guard of utility: a model that lost too much accuracy on held-out samples is restored to an earlier state.

The guard evaluates held-out samples that the method cannot access, after every epoch and within long ones. Accuracy may
fall temporarily (SCRUB's max steps, a head that was reset), so a method is stopped only if the accuracy is below the
limit and has not risen for `PATIENCE` evaluations; at the end, a model that is still below the limit is restored to the
last state within it. Memory: one snapshot of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from expunge.core.distributed import ALONE, World
from expunge.core.opaque import Opaque, resolve
from expunge.data.split import Split
from expunge.training.inference import predict

MOST = 500  # held-out samples per evaluation
PATIENCE = 3
OFTEN = 16  # epochs with an evaluation each; then after every eighth epoch
BETWEEN = 4  # within an epoch, training samples per held-out sample between evaluations


class Guard:
    """Guard of the accuracy on held-out samples.

    The samples are behind an opaque handle, because a method can reach the guard through its run.

    Args:
        data: held-out samples of retained classes, with labels.
        max_drop: accuracy that may be lost, in [0, 1].
        device: where predictions are computed.
        world: processes that share the run.
    """

    def __init__(self, data: Split, max_drop: float, device: torch.device | str = "cpu", world: World = ALONE) -> None:
        self._data, self._count = Opaque(data), len(data)
        self.max_drop, self.device, self.world = max_drop, device, world
        self.before = self.now = 0.0
        self._last_within: Mapping[str, Tensor] = {}
        self._point = ""
        self._since = 0  # samples that were trained on since the last look
        self._worse = 0
        self._lowest_rise = 0.0  # accuracy that a look below the limit must exceed to count as recovering

    def begin(self, original: nn.Module) -> None:
        """The model as it was, which must stay as it is: its weights are the first point to go back to."""
        self.before = self.now = self.accuracy(original)
        self._last_within, self._point = original.state_dict(), ""
        self._since, self._worse, self._lowest_rise = 0, 0, 0.0

    def accuracy(self, model: nn.Module) -> float:
        """Accuracy of a model on the held-out samples, in [0, 1]."""
        data = resolve(self._data)
        right = predict(model, data, self.device, world=self.world).argmax(1).cpu() == data.y
        return float(right.double().mean())

    @property
    def beyond(self) -> bool:
        """Whether the accuracy has fallen by more than `max_drop`."""
        # Half a sample of slack: 1 - 0.97 is a little more than 0.03.
        excess = self.before - self.now - self.max_drop
        return self.world.any(excess > 0.5 / self._count)

    def trained(self, model: nn.Module, samples: int, point: str) -> None:
        """Called after every step, with the samples that it read."""
        self._since += samples
        if self._since >= BETWEEN * self._count:
            self._look(model, point)

    def passed(self, model: nn.Module, number: int, *, last: bool) -> bool:
        """Called after pass `number`, 1-based; whether to stop. last: no other pass follows."""
        if number > OFTEN and number % 8 and not last:
            return False
        self._look(model, f"pass {number}")
        if not self.beyond:
            self._worse, self._lowest_rise = 0, 0.0
            return False
        self._worse = 0 if self.now > self._lowest_rise else self._worse + 1
        self._lowest_rise = max(self._lowest_rise, self.now)
        return self._worse >= PATIENCE

    def settle(self, model: nn.Module) -> str:
        """Take the model back if it is beyond the limit; a sentence about it, empty if it is not."""
        if self._since:
            self._look(model, "the end")
        if not self.beyond:
            return ""
        final_accuracy = self.now
        model.load_state_dict(self._last_within)
        where = f"as after {self._point}" if self._point else "as it was given: no later point was within"
        return (
            f"held-out accuracy fell from {self.before:.1%} to {final_accuracy:.1%}, by more than `max_drop` "
            f"({self.max_drop:g}); the model is {where}."
        )

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, and the last point within the limit; without what `begin` finds again."""
        return {
            "now": self.now, "last_within": dict(self._last_within), "point": self._point, "since": self._since,
            "worse": self._worse, "lowest_rise": self._lowest_rise,
        }  # fmt: skip

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Go on as the guard whose `state_dict` this is."""
        self.now, self._last_within, self._point = (state_dict[name] for name in ("now", "last_within", "point"))
        self._since, self._worse = state_dict["since"], state_dict["worse"]
        self._lowest_rise = state_dict["lowest_rise"]

    def _look(self, model: nn.Module, point: str) -> None:
        self.now, self._since = self.accuracy(model), 0
        if not self.beyond:
            self._last_within = {name: value.detach().clone() for name, value in model.state_dict().items()}
            self._point = point
