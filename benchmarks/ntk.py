"""The tangent kernel against a loop over columns; time and memory at the size of the paper's small experiments."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.loops import data_path
from benchmarks.measure import Row, compare, peak_mib
from expunge.core.run import Run
from expunge.data.sources import load_data
from expunge.data.split import ResidentStore, Split
from expunge.models.build import build_model
from expunge.models.layout import channels_last
from expunge.numerics.tangent_kernel import gram_matrix

SAMPLES, FULL, CLASSES = 40, 500, 5


def setting(samples: int) -> tuple[nn.Module, Split]:
    split = load_data(data_path("cifar10"))
    split = split.take(split.index[:samples])
    shape = split.input_shape
    return build_model("resnet18-preact", num_classes=CLASSES, input_shape=shape, options={"width": 0.4}), split


def run() -> Iterator[Row]:
    model, split = setting(SAMPLES)
    fast, _ = setting(SAMPLES)
    channels_last(fast, split.input_shape)
    x = split.inputs()
    what = f"resnet18-preact(0.4) on cifar10, {SAMPLES} samples x {CLASSES} classes"
    ratio, a, b = compare(lambda: by_columns(model, x), lambda: gram_matrix(fast, [split], Run()), repeats=5)
    yield Row("NTK kernel: loop over columns / ours", what, ratio, f"{a:.2f} s / {b:.2f} s", least=3.0)
    answer = subprocess.run([sys.executable, "-m", "benchmarks.ntk"], check=True, capture_output=True, text=True)
    facts = json.loads(answer.stdout)
    what = f"{FULL} samples x {CLASSES} classes, MiB above the start / 1024"
    yield Row(
        "NTK kernel: memory", what, facts["mib"] / 1024, f"{facts['mib']:.0f} MiB, {facts['seconds']:.0f} s", most=1.0
    )


def by_columns(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """One backward pass per sample and class, the whole Jacobian in memory."""
    model.eval()
    parameters = list(model.parameters())
    rows = []
    for sample in x:
        logits = model(sample[None])
        for c in range(CLASSES):
            gradients = torch.autograd.grad(logits[0, c], parameters, retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in gradients]))
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T


def main() -> None:
    # Made-up images: decoding real ones would take more memory before the kernel does.
    shape = (3, 32, 32)
    split = Split.whole(ResidentStore(torch.rand(FULL, *shape), torch.arange(FULL) % CLASSES))
    model = build_model("resnet18-preact", num_classes=CLASSES, input_shape=shape, options={"width": 0.4})
    channels_last(model, shape)
    before, began = peak_mib(), time.perf_counter()
    gram_matrix(model, [split], Run())
    print(json.dumps({"mib": peak_mib() - before, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
