"""One epoch of training and of SCRUB against the bare loop: the same forward and backward passes, nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

import expunge
from benchmarks.measure import Row, compare
from expunge.core.run import Run
from expunge.data.sources import load_data
from expunge.data.split import PerSample, Split
from expunge.models.build import build_model
from expunge.training.inference import predict
from expunge.training.loop import train_model

SETTINGS = (("mnist", "cnn", {}, 6400), ("cifar10", "resnet18-preact", {"width": 0.4}, 512))
BATCH = 128


def run() -> Iterator[Row]:
    for data, name, options, count in SETTINGS:
        split = load_data(data_path(data))
        split = split.take(split.index[:count])
        model = build_model(name, num_classes=10, input_shape=split.input_shape, options=options)
        yield training(f"{name} on {data}", split, model)
        yield scrub(f"{name} on {data}", split, model)
        yield teacher(f"{name} on {data}", split, model)


def data_path(name: str) -> str:
    import os

    return os.path.join(os.environ.get("EXPUNGE_TEST_DATA", "../shared/data"), name)


def bare_epoch(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    for at in range(0, len(x), BATCH):
        loss = F.cross_entropy(model(x[at : at + BATCH]), y[at : at + BATCH])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def training(what: str, split: Split, model: nn.Module) -> Row:
    x, y = split.inputs(), split.y
    recipe = expunge.Recipe(epochs=1, batch_size=BATCH, lr=0.01, weight_decay=0.0)
    ratio, a, b = compare(lambda: train_model(model, split, recipe, Run()), lambda: bare_epoch(model, x, y))
    return Row("training epoch / bare loop", what, ratio, f"{a:.2f} s / {b:.2f} s", most=1.10)


def scrub(what: str, split: Split, model: nn.Module) -> Row:
    """One max epoch on a tenth and one min epoch on the rest; the bare loop has the same passes and logits at hand."""
    tenth = len(split) // 10
    forget, retain = split.take(split.index[:tenth], "forget"), split.take(split.index[tenth:], "retain")
    options = {"epochs": 1, "msteps": 1, "retain_batch_size": BATCH, "forget_batch_size": BATCH, "optimizer": "sgd"}
    x, y, z = split.inputs(), split.y, predict(model, split)

    def ours() -> object:
        return expunge.unlearn(model, forget=forget, retain=retain, method="scrub", device="cpu", **options)

    def bare() -> None:
        import copy

        student = copy.deepcopy(model)
        predict(model, split)
        optimizer = torch.optim.SGD(student.parameters(), lr=5e-4, momentum=0.9)
        student.train()
        for low, high, sign in ((0, tenth, -1.0), (tenth, len(x), 1.0)):
            for at in range(low, high, BATCH):
                end = min(at + BATCH, high)
                logits = student(x[at:end])
                here, there = F.log_softmax(logits / 4, 1), F.log_softmax(z[at:end] / 4, 1)
                loss = sign * F.kl_div(here, there, log_target=True, reduction="batchmean")
                if sign > 0:
                    loss = loss + F.cross_entropy(logits, y[at:end])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

    ratio, a, b = compare(ours, bare)
    return Row("SCRUB epoch / bare loop", what, ratio, f"{a:.2f} s / {b:.2f} s", most=1.10)


def teacher(what: str, split: Split, model: nn.Module) -> Row:
    """Three min epochs' worth of teacher logits: computed once and looked up, against recomputed per batch."""
    epochs = 3

    def cached() -> None:
        logits = PerSample(split, predict(model, split))
        for _ in range(epochs):
            for batch in split.batches(BATCH):
                logits[batch.index]

    def recomputed() -> None:
        model.eval()
        with torch.inference_mode():
            for _ in range(epochs):
                for batch in split.batches(BATCH):
                    model(batch.x)

    ratio, a, b = compare(recomputed, cached, repeats=3)
    return Row("teacher logits recomputed / cached (3 epochs)", what, ratio, f"{a:.2f} s / {b:.2f} s", least=2.0)
