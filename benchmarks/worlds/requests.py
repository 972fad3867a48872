"""What people ask to be forgotten. A request fixes the training samples to forget and the labels trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.worlds.data import DUPLICATES, Data
from expunge.core.seeds import torch_generator

REQUESTS = {
    "random-1": "1 % of the training samples, at random",
    "random-10": "10 % of the training samples, at random",
    "class": "all samples of one class",
    "half-class": "half of the samples of one class",
    "wrong": "10 % of the training samples, trained with a wrong label",
    "user": "one user of many: 4 %, mostly of two classes",
    "few": "20 samples, at random",
    "duplicates": f"{DUPLICATES} samples of which near copies stay",
}
FORGOTTEN_CLASS = 1


@dataclass(frozen=True, eq=False)
class Request:
    """forget: positions in the training data; y: the labels trained on (N,); truth: the right ones (N,)."""

    forget: Tensor
    y: Tensor
    truth: Tensor

    @property
    def retain(self) -> Tensor:
        kept = torch.ones(len(self.y), dtype=torch.bool)
        kept[self.forget] = False
        return kept.nonzero()[:, 0]


def make_request(name: str, data: Data) -> Request:
    """The request of this name; near copies and their sources are only ever forgotten by `duplicates`."""
    random = torch_generator(0, "worlds", "request", name)
    truth, y = data.y, data.y
    middle = torch.arange(DUPLICATES, len(y) - DUPLICATES)
    order = middle[torch.randperm(len(middle), generator=random)]
    if name == "random-1":
        forget = order[: len(y) // 100]
    elif name == "random-10":
        forget = order[: len(y) // 10]
    elif name == "few":
        forget = order[:20]
    elif name == "class":
        forget = (y == FORGOTTEN_CLASS).nonzero()[:, 0]
    elif name == "half-class":
        members = order[y[order] == FORGOTTEN_CLASS]
        forget = members[: len(members) // 2]
    elif name == "wrong":
        forget = order[: len(y) // 10]
        y = y.clone()
        y[forget] = (y[forget] + torch.randint(1, data.classes, (len(forget),), generator=random)) % data.classes
    elif name == "user":
        weight = torch.full((data.classes,), 0.1)
        weight[torch.randperm(data.classes, generator=random)[:2]] = 1.0
        forget = order[torch.multinomial(weight[y[order]], len(y) // 25, generator=random)]
    elif name == "duplicates":
        forget = torch.arange(DUPLICATES)
    else:
        raise KeyError(name)
    return Request(forget.sort().values, y, truth)
