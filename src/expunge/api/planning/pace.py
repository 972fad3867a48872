"""How fast a model is on this machine: a short probe, from which seconds follow from counted work.

A pass over n samples in one batch takes about  per_batch + n per_sample  seconds. Two batch sizes give both numbers,
for a forward pass (eval mode) and for a training step (forward, backward and update). Reading the samples is included.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from expunge.core.errors import UsageError
from expunge.core.options import Field, options
from expunge.core.seeds import global_generators
from expunge.data.split import Split
from expunge.methods.cost import Work
from expunge.models.modes import training_mode
from expunge.numerics.vae import VAE, vae_loss
from expunge.training.inference import predict
from expunge.training.loop import step
from expunge.training.recipe import make_optimizer

SMALL, LARGE = 16, 128  # samples per pass of the probe
REPEATS = 5
ENOUGH = 1.0  # seconds that one repeated measurement may take


@options
class Line:
    """Seconds of one pass: per_batch + samples * per_sample."""

    per_batch: float = Field(ge=0)
    per_sample: float = Field(ge=0)


@options
class Pace:
    """Measured speed of one model on one device. small: seconds of one step of a small network (LAF's VAE)."""

    step: Line
    forward: Line
    small: float = Field(ge=0)
    device: str = "cpu"

    def seconds(self, work: Work) -> float:
        return (
            self.step.per_batch * work.step_batches
            + self.step.per_sample * work.step_samples
            + self.forward.per_batch * work.forward_batches
            + self.forward.per_sample * work.forward_samples
            + self.small * work.small
        )


def measure_pace(model: nn.Module, data: Split, device: torch.device | str = "cpu") -> Pace:
    """Time a copy of the model on some of `data` (labels are not read). Neither the model nor any generator changes."""
    if not len(data):
        raise UsageError("the pace of a model cannot be measured without samples; pass some.")
    target = torch.device(device)
    with global_generators(target):
        student = copy.deepcopy(model).to(target).requires_grad_(True)
        optimizer = make_optimizer("adam", student.parameters(), lr=1e-6)

        def train(part: Split) -> None:
            training_mode(student)
            for batch in part.batches(len(part), device=target):
                logits = student(batch.x).float()
                step(F.cross_entropy(logits, logits.detach().argmax(1)), student, optimizer)

        def answer(part: Split) -> None:
            predict(student, part, target, batch_size=len(part))

        return Pace(
            step=_line(train, data, target),
            forward=_line(answer, data, target),
            small=_small_step(target),
            device=str(target),
        )


def _line(work: Callable[[Split], None], data: Split, device: torch.device) -> Line:
    few, many = (_seconds(work, _some(data, size), device) for size in (SMALL, LARGE))
    per_sample = max(many - few, 0.0) / (LARGE - SMALL)
    return Line(per_batch=max(few - SMALL * per_sample, 0.0), per_sample=per_sample)


def _some(data: Split, count: int) -> Split:
    """The first `count` samples, over again if there are fewer: the time of a pass does not depend on which."""
    return data.take(data.index.repeat(-(-count // len(data)))[:count])


def _seconds(work: Callable[[Split], None], part: Split, device: torch.device) -> float:
    """The shortest of a few repetitions, after one that warms up."""
    times: list[float] = []
    work(part)
    while len(times) < REPEATS and sum(times) < ENOUGH:
        _wait(device)
        began = time.perf_counter()
        work(part)
        _wait(device)
        times.append(time.perf_counter() - began)
    return min(times)


def _small_step(device: torch.device) -> float:
    torch.manual_seed(0)
    vae = VAE(256, 8).to(device)
    optimizer = make_optimizer("adam", vae.parameters(), lr=1e-6)
    noise = torch.Generator().manual_seed(0)
    sample = torch.rand(32, 256, device=device)
    times = []
    for _ in range(REPEATS + 1):
        _wait(device)
        began = time.perf_counter()
        step(vae_loss(vae, sample, noise, 0.025), vae, optimizer)
        _wait(device)
        times.append(time.perf_counter() - began)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
