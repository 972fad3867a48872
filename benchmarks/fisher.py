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
from expunge.data.split import Split
from expunge.models.build import build_model
from expunge.models.layout import channels_last
from expunge.numerics.curvature import fisher_diagonal

SAMPLES, MORE, CLASSES = 24, 96, 10  # the loop is slow; the rest is measured over several batches


def run() -> Iterator[Row]:
    data = load_data(data_path("cifar10"))
    split, more = data.take(data.index[:SAMPLES]), data.take(data.index[:MORE])
    model = build_model("resnet18-preact", num_classes=CLASSES, input_shape=data.input_shape, options={"width": 0.4})
    fast = copy.deepcopy(model)  # as inside the method
    channels_last(fast, data.input_shape)
    x = split.inputs()
    what = "resnet18-preact(0.4) on cifar10, {} samples x 10 classes".format

    def sampled() -> object:
        return fisher_diagonal(fast, more, Run(), estimate="monte-carlo")

    ratio, a, b = compare(lambda: one_by_one(model, x), lambda: fisher_diagonal(fast, split, Run()), repeats=5)
    yield Row("Fisher: loop over samples / ours", what(SAMPLES), ratio, f"{a:.2f} s / {b:.2f} s", least=2.5)
    ratio, a, b = compare(lambda: fisher_diagonal(fast, more, Run()), sampled, repeats=5)
    yield Row("Fisher: exact / Monte Carlo", what(MORE), ratio, f"{a:.2f} s / {b:.2f} s", least=0.5 * CLASSES)
    ratio, a, b = compare(sampled, lambda: bare(fast, more), repeats=5)
    yield Row("Fisher: Monte Carlo / bare passes", what(MORE), ratio, f"{a:.2f} s / {b:.2f} s", most=1.5)


def bare(model: nn.Module, split: Split) -> None:
    """Forward and backward passes over the same batches, the gradients summed over them: what one epoch costs."""
    model.eval()
    for batch in split.batches(25):
        logits = model(batch.x)
        torch.autograd.grad(F.cross_entropy(logits, batch.y), list(model.parameters()))


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
