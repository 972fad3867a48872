"""Negative controls: models that hide what they know, or that lost what should have stayed. None may be "forgotten"."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.calibration.tasks import FORGOTTEN_CLASS, Request, Task
from expunge.core.seeds import torch_generator
from expunge.data.split import Split


class Behind(nn.Module):
    """A model behind something that changes its answers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)


class Masked(Behind):
    """The logit of one class is lowered for every input."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return z - 20.0 * F.one_hot(torch.full((len(z),), FORGOTTEN_CLASS), z.shape[1])


class Table(Behind):
    """Inputs in a table get the answers of another model, all others the model's own."""

    def __init__(self, model: nn.Module, x: Tensor, answers: Tensor) -> None:
        super().__init__(model)
        self.known = {row.numpy().tobytes(): answer for row, answer in zip(x, answers, strict=True)}

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        answers = [self.known.get(row.detach().contiguous().numpy().tobytes()) for row in x]
        return torch.stack([row if answer is None else answer for row, answer in zip(z, answers, strict=True)])


class Clipped(Behind):
    """No probability exceeds 0.9; what is cut off is spread over the other classes."""

    def forward(self, x: Tensor) -> Tensor:
        p = self.model(x).softmax(1)
        return p.clamp_max(0.9).add((p - p.clamp_max(0.9)).sum(1, keepdim=True) / p.shape[1]).log()


class Smoothed(Behind):
    """Logits divided by 3."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) / 3


def _head(model: nn.Module) -> nn.Linear:
    head = model.get_submodule("out")
    assert isinstance(head, nn.Linear)
    return head


def _features(model: nn.Module, split: Split) -> Tensor:
    found: list[Tensor] = []
    handle = _head(model).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach()))
    with torch.no_grad():
        model(split.inputs())
    handle.remove()
    return found[0]


def erased_row(model: nn.Module) -> nn.Module:
    made = copy.deepcopy(model)
    with torch.no_grad():
        _head(made).weight[FORGOTTEN_CLASS] = 0
        _head(made).bias[FORGOTTEN_CLASS] = -10
    return made


def new_head(model: nn.Module, split: Split, targets: Tensor, steps: int = 300) -> nn.Module:
    """A head fitted to soft targets (n, C) on the frozen features of a split."""
    made = copy.deepcopy(model)
    x, head = _features(made, split), _head(made)
    with torch.no_grad():
        head.weight.normal_(0, 0.05, generator=torch_generator(0, "calibration", "head"))
        head.bias.zero_()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(F.linear(x, head.weight, head.bias), targets).backward()
        optimizer.step()
    return made


def matched_mean(model: nn.Module, asked: Request, wanted: float) -> nn.Module:
    """Loss ascent on the samples to forget, descent on the others, until the mean loss is that of retraining."""
    made = copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.01)
    g = torch_generator(0, "calibration", "ascent")
    x, y, kept, labels = asked.forget.inputs(), asked.forget.y, asked.retain.inputs(), asked.retain.y
    for _ in range(400):
        loss = F.cross_entropy(made(x), y)
        if loss.item() >= wanted:
            break
        rows = torch.randint(len(kept), (100,), generator=g)
        optimizer.zero_grad()
        (F.cross_entropy(made(kept[rows]), labels[rows]) - 0.5 * loss).backward()
        optimizer.step()
    return made


def shaken(model: nn.Module, size: float, seed: int) -> nn.Module:
    """Noise of `size` deviations of each tensor is added to it."""
    made = copy.deepcopy(model)
    g = torch_generator(seed, "calibration", "noise")
    with torch.no_grad():
        for p in made.parameters():
            p.add_(size * (p.std(correction=0) + 0.02) * torch.randn(p.shape, generator=g))
    return made


def controls(
    task: Task, asked: Request, original: nn.Module, teacher: nn.Module
) -> Iterator[tuple[str, str, nn.Module]]:
    """(kind, name, model): negative controls, partly retrained and destroyed models. teacher: a retrained model that is
    no reference."""
    forget, everything = asked.forget.inputs(), asked.train
    with torch.no_grad():
        answers, on_all = teacher(forget), teacher(everything.inputs()).softmax(1)
        wanted = float(F.cross_entropy(answers, asked.forget.y))
        p = original(forget).softmax(1)
    if asked.name == "class":
        yield "control", "erased row", erased_row(original)
        yield "control", "masked logit", Masked(original)
    yield "control", "look-up table", Table(original, forget, answers)
    yield "control", "clipped confidence", Clipped(original)
    yield "control", "smoothed confidence", Smoothed(original)
    yield "control", "head distilled", new_head(original, everything, on_all)
    classes = p.shape[1]
    yield "control", "head retrained", new_head(original, asked.retain, F.one_hot(asked.retain.y, classes).float())
    yield "control", "mean loss matched", matched_mean(original, asked, wanted)
    order = torch.randperm(len(forget), generator=torch_generator(0, "calibration", "shuffle"))
    yield "control", "answers of other samples", Table(original, forget, _as_sure(answers, answers[order]))
    half = torch.cat([asked.retain.index, asked.forget.index[::2]]).sort().values
    yield "half known", "half known", task.train(asked.train.take(half), 501)
    for size in (1.0, 1.5, 3.0):
        yield "destroyed", f"noise {size:g}", shaken(original, size, int(10 * size))
        yield "destroyed", f"noise {size:g} on a retrained model", shaken(teacher, size, int(10 * size) + 1)


def _as_sure(answers: Tensor, others: Tensor) -> Tensor:
    """The order of classes of `answers` with the logits of `others`: right on average, wrong sample by sample."""
    ranks = answers.argsort(1).argsort(1)
    return others.sort(1).values.gather(1, ranks)
