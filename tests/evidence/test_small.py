"""Few samples: an asymptotic difference needs an exact one, and pooling brings it back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data.split import ResidentStore, Split
from expunge.evidence.equivalence import ALPHA
from expunge.evidence.small import confirmed, exact_beside_references, exact_beside_unseen
from expunge.metrics.base import Evaluation


class Sure(nn.Module):
    """Two logits whose difference is the first column of the input, plus a constant for the first `known` samples."""

    def __init__(self, seed: int, shift: float = 0.0) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.seed, self.shift = seed, shift

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.sin(997.0 * (self.seed + 1) * (x[:, 0] + 0.37))
        phi = x[:, 1] + noise + self.shift * (x[:, 0] < 100)
        return torch.stack([torch.zeros_like(phi), phi], 1)


def scene(count: int, shift: float) -> Evaluation:
    x = torch.stack([torch.arange(count + 40.0), torch.zeros(count + 40)], 1)
    x[count:, 0] += 1000
    x[:, 1] = 3 * torch.sin(x[:, 0])
    data = Split.whole(ResidentStore(x, torch.ones(count + 40).long(), classes=["a", "b"]))
    models: dict[str, nn.Module] = {f"retrained {i + 1}": Sure(i) for i in range(5)}
    models |= {"unlearned": Sure(30, shift), "original": Sure(31, 2.0)}
    return Evaluation(models, {"forget": data.take(range(count)), "test": data.take(range(count, count + 40))})


AGAIN = [f"retrained {i + 1}" for i in range(5)]


def test_an_exact_test_confirms_what_so_few_samples_show() -> None:
    for count, shift, differs in ((8, 3.0, True), (8, 0.0, False), (1, 3.0, False)):
        found = scene(count, shift)
        assert (exact_beside_references(found, "unlearned", AGAIN) < ALPHA) == differs
        label, reasons = confirmed(found, AGAIN, "not forgotten", ["not forgotten: mean z is large."])
        assert label == ("not forgotten" if differs else "not enough evidence")
        assert reasons[-1 if differs else 1].startswith("with" if differs else "not forgotten")
    one = scene(1, 0.0)
    label, reasons = confirmed(one, AGAIN, "forgotten", ["none of 19 statistics differs."])
    assert label == "indistinguishable from the start"
    assert "--pool" in reasons[0]
    many = scene(40, 0.0)
    assert confirmed(many, AGAIN, "not forgotten", ["a"]) == ("not forgotten", ["a"])
    assert confirmed(one, AGAIN, "damaged", ["b"]) == ("damaged", ["b"])


def test_samples_that_move_either_way_are_seen() -> None:
    """The mean stays, and half of the samples are much surer, half much less."""
    found = scene(16, 0.0)
    phi = found.logits("unlearned", "forget").clone()
    phi[:, 1] += 5 * torch.tensor([1.0, -1.0] * 8)
    found._logits["unlearned", "forget"] = phi
    assert exact_beside_references(found, "unlearned", AGAIN) < 0.01


def test_beside_unseen_samples() -> None:
    assert exact_beside_unseen(scene(10, 6.0), "unlearned", "loss") < 0.01
    p = [exact_beside_unseen(scene(count, 0.0), "unlearned", "loss") for count in (6, 9, 12)]
    assert np.median(p) > 0.1
