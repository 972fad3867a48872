"""The exact diagonal Fisher information against a loop over single samples and classes; and its sampled variant."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.loops import data_path
from benchmarks.measure import Row, compare
from expunge.core.run import Run
from expunge.data.sources import load_data
from expunge.methods.curvature import fisher_diagonal
from expunge.models.build import build_model
from expunge.models.layout import channels_last

SAMPLES, CLASSES = 24, 10


def run() -> Iterator[Row]:
    split = load_data(data_path("cifar10"))
    split = split.take(split.index[:SAMPLES])
    model = build_model("resnet18-preact", num_classes=CLASSES, input_shape=split.input_shape, options={"width": 0.4})
    fast = copy.deepcopy(model)  # as inside the method
    channels_last(fast, split.input_shape)
    x = split.inputs()
    what = f"resnet18-preact(0.4) on cifar10, {SAMPLES} samples x {CLASSES} classes"

    def exact() -> object:
        return fisher_diagonal(fast, split, Run())

    ratio, a, b = compare(lambda: one_by_one(model, x), exact, repeats=3)
    yield Row("Fisher: loop over samples / ours", what, ratio, f"{a:.2f} s / {b:.2f} s", least=2.5)
    ratio, a, b = compare(exact, lambda: fisher_diagonal(fast, split, Run(), estimate="monte-carlo"), repeats=3)
    yield Row("Fisher: exact / Monte Carlo", what, ratio, f"{a:.2f} s / {b:.2f} s", least=0.5 * CLASSES)


def one_by_one(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The same arithmetic as published: batch of one, one backward pass per class."""
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    model.eval()
    for sample in x:
        logits = model(sample[None])
        p = logits.softmax(1)[0].detach()
        for y in range(CLASSES):
            loss = F.cross_entropy(logits, torch.tensor([y]))
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_.addcmul_(gradient, gradient, value=float(p[y]))
    return total
