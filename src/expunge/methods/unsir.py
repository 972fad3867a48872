"""UNSIR: noise that the model would never call the class is learnt as that class; then the rest is repaired.

Paper      Tarun, Chundawat, Mandal, Kankanhalli: Fast Yet Effective Machine Unlearning, TNNLS 2023, arXiv:2111.08947
Notation   n_c a batch of noise for each class c to forget; R' a part of R, at most `per_class` samples of each class

    noise     `noise_steps` steps of Adam (`noise_lr`):  min over n_c of  -CE(f(n_c; w_o), c) + decay |n_c|^2; eval mode
    impair    one pass of Adam (`lr`) over R' and the noise, labelled c and shown `copies` times
    repair    `repair` passes of Adam (`repair_lr`) over R'

Cost       noise_steps batches of noise per class; (1 + repair) passes over R'
Limits     whole classes only: with other samples of the class in R', it is taught back. What is learnt about the noise
           is "this class", so a class may come back in a few steps of relearning
Deviates   the noise starts with the mean and spread of each input value over F, so that it is in the model's units; the
           paper draws it from N(0, 1) and needs the class alone. |n|^2: mean over a batch of the sum over the pixels
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.options import Field
from expunge.core.run import Run
from expunge.data.mixing import mixed_batches
from expunge.data.split import ResidentStore, Split
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.models.modes import evaluation_mode, training_mode
from expunge.training.loop import step
from expunge.training.recipe import make_optimizer, set_rate


@method("unsir")
class UNSIR(IterativeMethod):
    """Error-maximising noise, impair and repair; rates are ours, the published ones are a preset."""

    preset_source: ClassVar[str] = "rates of the authors' notebook, by a second-hand reading"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "authors": {"lr": 0.02, "repair_lr": 0.01, "per_class": 500, "noise_steps": 25, "noise_lr": 0.1, "repair": 1},
    }

    noise_steps: int = Field(25, ge=0, description="steps that the noise learns for")
    noise_lr: float = Field(0.1, gt=0, description="learning rate of Adam on the noise")
    decay: float = Field(0.1, ge=0, description="weight of the noise's size")
    noise_size: int = Field(32, ge=1, description="noise samples per class")
    copies: int = Field(8, ge=1, description="times that the noise is shown in the impair pass")
    per_class: int = Field(500, ge=1, description="most retained samples of each class that are used")
    repair: int = Field(1, ge=0, description="passes over the retained part after the impair pass")
    lr: float = Field(1e-3, gt=0, description="learning rate of Adam in the impair pass")
    repair_lr: float = Field(1e-3, gt=0, description="learning rate of Adam in the repair passes")
    batch_size: int = Field(128, ge=1, description="samples per step")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while unlearning")

    def cost(self, sizes: Sizes) -> Work:
        """R' is at most R, and noise is counted for one class: their numbers are not known."""
        noise = steps(self.noise_size, self.noise_size, self.noise_steps)
        shown = sizes.retain + self.copies * self.noise_size
        classes = max(sizes.classes, 1)
        most = steps(shown, self.batch_size) + steps(sizes.retain, self.batch_size, self.repair)
        more = Work(step_samples=(classes - 1) * (noise.step_samples + self.copies * self.noise_size))
        return (noise + most + more).at_most()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        part = some_of_each(problem.retain, self.per_class, run.seed_for("retained part"))
        with run.stage("noise"):
            noise = self.noise(problem, run)
        optimizer = make_optimizer("adam", student.parameters(), lr=self.lr)
        for epoch in run.epochs(student, 1 + self.repair, state=[optimizer]):
            impair = epoch.number == 1
            set_rate(optimizer, self.lr if impair else self.repair_lr)
            training_mode(student, self.batchnorm)
            seed = run.seed_for("mixed", "shuffle", epoch.number)
            for whole in mixed_batches(
                [part, noise] if impair else [part], self.batch_size, seed=seed, device=run.device
            ):
                parts = [each for each in whole if each is not None]
                with run.autocast():
                    logits = student(torch.cat([each.x for each in parts])).float()
                loss = F.cross_entropy(logits, torch.cat([each.y for each in parts]))
                step(loss, student, optimizer)
                epoch.add("loss", loss, len(logits))
        return student

    def noise(self, problem: Problem, run: Run) -> Split:
        """`copies` of the learnt noise of each class to forget, as a split of its own."""
        samples, labels = [], []
        generator = torch.Generator().manual_seed(run.seed_for("noise"))
        seen = torch.cat([batch.x.cpu() for batch in problem.forget.batches(256)])
        middle, spread = seen.mean(0), seen.std(0, correction=0).clamp(min=1e-3)
        for c in problem.forget.y.unique().tolist():
            start = middle + spread * torch.randn(self.noise_size, *problem.input_shape, generator=generator)
            samples.append(self.learn(problem.model, start.to(run.device), c).cpu())
            labels.append(torch.full((self.noise_size,), c))
        classes = [str(c) for c in range(problem.num_classes)]
        x, y = (
            torch.cat(samples).repeat(self.copies, *[1] * len(problem.input_shape)),
            torch.cat(labels).repeat(self.copies),
        )
        return Split.whole(ResidentStore(x, y, classes=classes, name="noise"), "noise")

    def learn(self, model: nn.Module, start: Tensor, label: int) -> Tensor:
        """Noise (B, ...) after `noise_steps` steps that raise the model's loss on it as samples of class `label`."""
        noise = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([noise], lr=self.noise_lr)
        target = torch.full((len(noise),), label, device=noise.device)
        with evaluation_mode(model):
            for _ in range(self.noise_steps):
                size = noise.flatten(1).square().sum(1).mean()
                loss = -F.cross_entropy(model(noise).float(), target) + self.decay * size
                (noise.grad,) = torch.autograd.grad(loss, [noise])
                optimizer.step()
        return noise.detach()


def some_of_each(split: Split, count: int, seed: int) -> Split:
    """A random part of a split with at most `count` samples of each class."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    labels = split.y[order]
    chosen = torch.cat([order[labels == c][:count] for c in labels.unique()]).sort().values
    return split.take(split.index[chosen])
