"""Certified unlearning by noisy fine-tuning: the weights are clipped, and steps on the retained samples are noisy.

Paper      Koloskova, Allouah, Jha, Guerraoui, Koyejo: Certified Unlearning for Neural Networks, ICML 2025,
           arXiv:2506.06985
Notation   C = radius |w_fresh|, the norm of freshly drawn weights (it must not follow the trained ones), g gradient of
           CE over a batch of R, q = 1 - lr decay

    w <- clip(w_o, C);  then `noisy_steps` times
        bound=model       w <- clip(w - lr g, C) + N(0, s^2)
        bound=gradient    w <- q w - lr clip(g, `clip`) + N(0, s^2)
    then every tensor is scaled to the norm of its freshly drawn twin, and `epochs` passes over R follow without noise;
    both can only lose information (post-processing)
    s: the least with which the accountant (numerics/accountant.py) gives (epsilon, delta)

Guarantee  (epsilon, delta)-indistinguishable from the same procedure on a model that never saw F, whatever F is and
           however either was trained; in `details["certificate"]` of the result
Cost       noisy_steps batches of R, and `epochs` passes over R
Limits     the noise has the size of the weights: s sqrt(number of weights) is many times C for any useful epsilon, so
           the model is as good as drawn anew, and what it answers afterwards comes from `epochs`. The guarantee is over
           the noise: whoever knows `seed` can subtract it, so keep the seed of a run whose guarantee is published to
           yourself. It speaks of the weights after the run, not of earlier versions of the model. Buffers other than
           BatchNorm's are taken to be constants
Deviates   BatchNorm statistics are reset after the noisy steps, because they are not clipped; there is no noise at the
           start, which lowers the price; s follows from epsilon, and not the other way round; the rescaling is ours
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.core.errors import UsageError
from expunge.core.options import Field, build
from expunge.core.run import Run
from expunge.methods.base import Method, method
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import endless
from expunge.models.exact_head import exact_part
from expunge.models.initial import reset_parameters
from expunge.models.modes import training_mode
from expunge.numerics.accountant import ball_noise, bounded_noise
from expunge.training.loop import train_model
from expunge.training.recipe import Recipe


@method("noisy-finetune")
class NoisyFinetune(Method):
    """An (epsilon, delta) guarantee without assumptions on the loss; expect the utility of a short retraining.

    It has no guard and is never rewound: both could give back weights from before the noise, or read the forget set.
    """

    epsilon: float = Field(1.0, gt=0, description="of the guarantee; smaller is stronger")
    delta: float = Field(1e-5, gt=0, lt=1, description="of the guarantee; smaller is stronger")
    bound: Literal["model", "gradient"] = Field("model", description="what is clipped in the noisy steps, see above")
    radius: float = Field(1.0, gt=0, description="norm that weights are clipped to, as a share of fresh weights' norm")
    clip: float = Field(1.0, gt=0, description="gradient: norm that the gradient of a batch is clipped to")
    decay: float = Field(0.0, ge=0, description="gradient: pull to 0 in the noisy steps")
    noisy_steps: int = Field(20, ge=1, description="steps with noise")
    epochs: int = Field(10, ge=0, description="passes over the retained samples after the noise")
    lr: float = Field(0.01, gt=0, description="learning rate of SGD")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="rate in the passes after the noise")
    batch_size: int = Field(128, ge=1, description="samples per step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD in the passes after the noise")
    weight_decay: float = Field(5e-4, ge=0, description="L2 strength in the passes after the noise")

    def cost(self, sizes: Sizes) -> Work:
        noisy = Work(step_samples=self.noisy_steps * min(self.batch_size, sizes.retain), step_batches=self.noisy_steps)
        return noisy + steps(sizes.retain, self.batch_size, self.epochs)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        if exact_part(student) is not None:
            raise UsageError("noisy-finetune: the model keeps statistics of its data; choose exact-head.")
        fresh = copy.deepcopy(student)
        reset_parameters(fresh, seed=run.seed_for("fresh weights"))
        radius = self.radius * float(vector(fresh).norm())
        sigma = self.noise(radius)
        with run.stage("noisy steps"):
            self._noisy_steps(student, problem, run, radius, sigma)
        rescale(student, fresh)
        for module in student.modules():
            if isinstance(module, _BatchNorm) and module.track_running_stats:
                module.reset_running_stats()
        self._certify(run, radius, sigma, student)
        names = ("epochs", "lr", "schedule", "batch_size", "momentum", "weight_decay")
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        recipe = build(Recipe, {**values, "precision": run.precision})
        return train_model(student, problem.retain, recipe, run, purpose="heal")

    def noise(self, radius: float) -> float:
        """Standard deviation of the noise of each step, for weights clipped to norm `radius`."""
        if self.bound == "model":
            return ball_noise(self.epsilon, self.delta, self.noisy_steps, radius)
        return bounded_noise(self.epsilon, self.delta, self.noisy_steps, radius, self.lr, self.clip, self.decay)

    def _noisy_steps(self, student: nn.Module, problem: Problem, run: Run, radius: float, sigma: float) -> None:
        generator = torch.Generator().manual_seed(run.seed_for("noise"))
        parameters = list(student.parameters())
        set_vector(student, clipped(vector(student), radius))
        batches = endless(problem.retain, self.batch_size, run, "noisy")
        training_mode(student)
        for number in range(1, self.noisy_steps + 1):
            batch = next(batches)
            with run.autocast():
                loss = F.cross_entropy(student(batch.x).float(), batch.y)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            pairs = zip(parameters, gradients, strict=True)
            g = torch.cat([(torch.zeros_like(p) if grad is None else grad).flatten() for p, grad in pairs])
            w = vector(student)
            if self.bound == "model":
                w = clipped(w - self.lr * g, radius)
            else:
                w = (1 - self.lr * self.decay) * w - self.lr * clipped(g, self.clip)
            drawn = torch.randn(len(w), generator=generator, dtype=torch.float32)
            set_vector(student, w + sigma * drawn.to(w))
            run.report(run.label, number, self.noisy_steps)

    def _certify(self, run: Run, radius: float, sigma: float, student: nn.Module) -> None:
        run.details["certificate"] = {
            "kind": "certified",
            "epsilon": self.epsilon,
            "delta": self.delta,
            "sigma": sigma,
            "radius": radius,
            "noisy steps": self.noisy_steps,
            "noise over weights": sigma * vector(student).numel() ** 0.5 / radius,
        }
        run.notes.append(
            f"certified: (epsilon, delta) = ({self.epsilon:g}, {self.delta:g}) against the same procedure on a model "
            "that never saw the forgotten samples, over noise that nobody knows: keep the seed of this run to yourself."
        )


def rescale(model: nn.Module, like: nn.Module) -> None:
    """Scale every parameter to the norm of that of `like`, in place; what is 0 there becomes 0.

    Without it the noise leaves weights many times larger than a network can be trained from.
    """
    with torch.no_grad():
        for p, fresh in zip(model.parameters(), like.parameters(), strict=True):
            p.mul_(fresh.norm() / p.norm().clamp(min=1e-12))


def vector(model: nn.Module) -> Tensor:
    """All parameters as one vector (P,), detached."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def set_vector(model: nn.Module, flat: Tensor) -> None:
    """The inverse of `vector`, in place."""
    parameters = list(model.parameters())
    with torch.no_grad():
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.copy_(part.view_as(p))


def clipped(v: Tensor, radius: float) -> Tensor:
    """v scaled down to norm `radius` if it is longer.

    >>> clipped(torch.tensor([3.0, 4.0]), 1.0)
    tensor([0.6000, 0.8000])
    """
    return v * (radius / v.norm().clamp(min=1e-12)).clamp(max=1.0)
