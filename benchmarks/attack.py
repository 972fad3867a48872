"""L2UL: the attack against a loop over restarts with all gradients, its fast preset, and the steps after it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import expunge
from benchmarks.loops import data_path
from benchmarks.measure import Row, compare
from expunge.data.sources import load_data
from expunge.models.build import build_model
from expunge.models.layout import channels_last
from expunge.numerics.attack import L2PGD, PixelSpace, wrong_targets

IMAGES, RESTARTS, ITERATIONS = 16, 4, 10


def run() -> Iterator[Row]:
    train = load_data(data_path("cifar10"))
    split = train.take(train.index[:IMAGES], "forget")
    model = build_model("resnet18-cifar", num_classes=10, input_shape=split.input_shape)
    warmed = expunge.train(model, train.take(train.index[:512]), recipe={"epochs": 2, "lr": 0.05, "batch_size": 64})
    model = warmed.model.eval()
    fast = copy.deepcopy(model).requires_grad_(False)  # as inside the method
    channels_last(fast, split.input_shape)
    x, normalisation = split.inputs(), split.store.normalisation
    space = PixelSpace.of(x, normalisation.tensors(x) if normalisation else None)
    pixels, targets = space.pixels(x), wrong_targets(split.y, 10, RESTARTS, seed=0)
    settings = L2PGD(iterations=ITERATIONS)
    what = f"resnet18-cifar on cifar10, {IMAGES} images x {RESTARTS} restarts x {ITERATIONS} steps"

    def batched() -> Tensor:
        return settings.attack(fast, pixels, targets, space, seed=0)[0]

    looped = loop_over_restarts(model, settings, pixels, targets, space)
    apart = float((batched() - looped).abs().max())
    ratio, a, b = compare(
        lambda: loop_over_restarts(model, settings, pixels, targets, space), batched, repeats=3
    )  # fmt: skip
    yield Row("attack: loop over restarts / ours", what, ratio, f"{a:.1f} s / {b:.1f} s, apart {apart:.0e}", least=2)

    full, short = L2PGD(), L2PGD(iterations=20, step=0.5, early_stop=True)
    few = targets[:1]
    ratio, a, b = compare(
        lambda: full.attack(fast, pixels, few, space, seed=0),
        lambda: short.attack(fast, pixels, few, space, seed=0),
        repeats=3,
    )
    what = f"resnet18-cifar on cifar10, {IMAGES} images"
    yield Row("attack: published / `l2ul/fast`", what, ratio, f"{a:.1f} s / {b:.1f} s", least=4)

    options = {"examples": 16, "strength": 0.0, "limit": 3, "lr": 1e-6, "iterations": 1}
    with tempfile.TemporaryDirectory() as folder:

        def ours() -> object:  # the attack is kept after the first call
            return expunge.unlearn(model, forget=split, method="l2ul", cache=Path(folder), seed=0, **options)

        made = options["examples"] * IMAGES
        bare_images = torch.randn(int(made), *split.input_shape)
        ratio, a, b = compare(ours, lambda: bare_steps(fast, bare_images, x, split.y, 3), repeats=3)
    yield Row("L2UL steps / bare passes", f"resnet18-cifar, {made:.0f} + {IMAGES} images, 3 steps", ratio,
              f"{a:.1f} s / {b:.1f} s", most=1.10)  # fmt: skip


def loop_over_restarts(model: nn.Module, settings: L2PGD, pixels: Tensor, targets: Tensor, space: PixelSpace) -> Tensor:
    """The same arithmetic, one restart after the other, BatchNorm as it is, unused gradients of weights computed."""
    model.requires_grad_(True)
    found = []
    for restart, t in enumerate(targets):
        start = settings._uniform(pixels, space, 0, restart)
        d = start - pixels
        d = d * (settings.eps / norms(d)).clamp(max=1)
        d = (pixels + d).clamp(0, 1) - pixels
        for _ in range(settings.iterations):
            at = (pixels + d).requires_grad_(True)
            F.cross_entropy(model(space.seen(at)), t, reduction="sum").backward()
            model.zero_grad(set_to_none=True)
            g = at.grad
            assert g is not None
            d = d - settings.step * g / norms(g).clamp(min=1e-6)
            d = (pixels + d).clamp(0, 1) - pixels
            d = d * (settings.eps / norms(d)).clamp(max=1)
        found.append((pixels + d).clamp(0, 1))
    return torch.cat(found)


def norms(d: Tensor) -> Tensor:
    return d.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def bare_steps(model: nn.Module, images: Tensor, x: Tensor, y: Tensor, steps: int) -> None:
    """Forward and backward passes over a batch of images and the forget set, SGD, and the look at the forget set."""
    student = copy.deepcopy(model).requires_grad_(True)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4)
    labels = torch.zeros(len(images), dtype=torch.long)
    for _ in range(steps):
        student.train()
        loss = F.cross_entropy(student(images), labels) - 0.1 * F.cross_entropy(student(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        student.eval()
        with torch.inference_mode():
            student(x)
