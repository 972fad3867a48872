"""L2UL: forget single instances with access to the model and these instances alone.

Paper      Cha, Cho, Hwang, Lee, Moon, Lee, AAAI 2024, arXiv:2301.11578; settings of the authors' run scripts
Goals      misclassify: argmax f(x) != y on all of D_f.   relabel ("correct"): argmax f(x) = y* for given y* != y

    A   adversarial images of D_f towards random wrong classes t, made once with the trained model (methods.attack)
    L   = w_a CE(f(B_A), t) - w_f CE(f(B_f), y)           relabel: + w_f CE(f(B_f), y*);  w by the batch sizes
        + (s/2) sum Omega (w - w_o)^2                     weight importance (methods.importance); s = 0: "Adv"
    stop  after the first step at which all of D_f reached the goal; `limit` passes at most

Adversarial images preserve the decision boundary near the forgotten instances; the penalty preserves the weights that
these do not use. Status: "reached", "limit", or "already" (nothing was done).
Cost       the attack, then a forward/backward pass over a batch of A and one of D_f per step, and a pass over D_f
Limits     BatchNorm in train mode (as published) moves to the statistics of A and D_f: see `batchnorm`
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.options import Field, options
from expunge.core.run import Run
from expunge.data.origin import origin_of
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, batches, forward, paired_steps, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.models.modes import evaluation_mode, training_mode
from expunge.numerics.attack import L2PGD, PixelSpace, attack_cached, wrong_targets
from expunge.numerics.importance import ImportancePull, importance
from expunge.training.recipe import clip_gradients, make_optimizer


@options
class UntilForgotten(IterativeMethod):
    """Goal, stopping rule and optimiser of the three L2UL methods."""

    goal: Literal["misclassify", "relabel"] = Field("misclassify", description="what the forget set must reach")
    targets: tuple[int, ...] | Literal["labels"] | None = Field(
        None,
        description="relabel: new classes in the order of the forget set; `labels`: the given ones (repair); "
        "none: the next most likely class",
    )
    limit: int = Field(1000, ge=0, description="maximal number of passes")
    lr: float = Field(1e-3, gt=0, description="learning rate of SGD, constant")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(1e-4, ge=0, description="L2 strength inside the optimiser, on all parameters")
    forget_batch_size: int = Field(32, ge=1, description="samples to forget per step")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while unlearning")
    clip: float | None = Field(None, gt=0, description="largest gradient norm; none: no clipping")

    def scaled(self, sizes: Sizes) -> Mapping[str, Any]:
        """Frozen BatchNorm, clipped gradients, fewer passes: the published settings ruin other models."""
        return {"batchnorm": "frozen", "clip": 1.0, "limit": 50}

    def prepare(self, problem: Problem, run: Run) -> Goal:
        """The goal of this run, with its new labels if relabelling."""
        return Goal.of(problem, run, self.goal, self.targets)

    def optimizer(self, student: nn.Module) -> torch.optim.Optimizer:
        """SGD over all parameters of the student."""
        return make_optimizer(
            "sgd", student.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )


class Goal:
    """The forget set and what its predictions must become.

    Args:
        x: inputs (k, ...).
        labels: labels (k,).
        new_labels: (k,) if relabelling, else None.
    """

    def __init__(self, x: Tensor, labels: Tensor, new_labels: Tensor | None) -> None:
        self.x, self.labels, self.new_labels = x, labels, new_labels

    @classmethod
    def of(cls, problem: Problem, run: Run, goal: str, targets: Sequence[int] | str | None) -> Goal:
        """Build the goal from the options `goal` and `targets`; raises `UsageError` for unusable targets."""
        x, labels = problem.forget.inputs(run.device), problem.forget.y.to(run.device)
        if goal == "misclassify":
            return cls(x, labels, None)
        if targets is None:
            with evaluation_mode(problem.model), torch.inference_mode():
                logits = torch.cat([problem.model(part) for part in x.split(1024)]).clone()
            new_labels = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
        elif targets == "labels":
            new_labels = labels
        else:
            new_labels = torch.tensor([int(target) for target in targets], device=run.device)
            if len(new_labels) != len(x):
                raise UsageError(
                    f"relabel: {len(new_labels)} targets for {len(x)} samples to forget; give one per sample."
                )
            if bool(((new_labels < 0) | (new_labels >= problem.num_classes)).any()):
                raise UsageError(f"relabel: targets must be classes 0..{problem.num_classes - 1}, got {targets}.")
        return cls(x, labels, new_labels)

    def reached(self, model: nn.Module) -> bool:
        """Whether all samples satisfy the goal."""
        return self.share(model) == 1.0

    def share(self, model: nn.Module) -> float:
        """Share of the forget set that satisfies the goal, in [0, 1]; eval mode."""
        with evaluation_mode(model), torch.inference_mode():
            predictions = torch.cat([model(part).argmax(1) for part in self.x.split(1024)])
        satisfied = predictions != self.labels if self.new_labels is None else predictions == self.new_labels
        return float(satisfied.float().mean())

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Goal loss of `rows` (B,) with logits (B, C), batch mean: -CE(f, y), or CE(f, y*) if relabelling."""
        if self.new_labels is None:
            return -F.cross_entropy(logits, self.labels[rows])
        return F.cross_entropy(logits, self.new_labels[rows])

    def cycle(self, size: int) -> Cycle:
        """Rows of the forget set in endless batches of `size`, in fixed order."""
        return Cycle(torch.arange(len(self.x), device=self.x.device).split(size))


class Cycle:
    """The same batches of rows again and again, with a position that a stopped run resumes from."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._batches, self._next = batches, 0

    def __next__(self) -> Tensor:
        self._next += 1
        return self._batches[(self._next - 1) % len(self._batches)]

    def state_dict(self) -> dict[str, int]:
        """The position in the cycle."""
        return {"next": self._next}

    def load_state_dict(self, state_dict: Mapping[str, int], /) -> None:
        """Restore the position."""
        self._next = state_dict["next"]


@method("l2ul-plain")
class L2ULPlain(UntilForgotten):
    """Gradient ascent until misclassified (NegGrad), or descent to the new labels (Correct), without regulariser.

    As published, the stopping rule is tested after every pass, and at least one pass is made.
    """

    def cost(self, sizes: Sizes) -> Work:
        learning = steps(sizes.forget, self.forget_batch_size, self.limit)
        return (learning + forward(sizes.forget, times=self.limit)).at_most()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student, goal = problem.student(), self.prepare(problem, run)
        optimizer = self.optimizer(student)
        run.status = "limit"
        for epoch in run.epochs(student, self.limit, state=[optimizer]):
            training_mode(student, self.batchnorm)
            for rows in torch.arange(len(goal.x), device=goal.x.device).split(self.forget_batch_size):
                with run.autocast():
                    loss = goal.loss(student(goal.x[rows]).float(), rows)
                _update(loss, student, optimizer, None, self.clip)
                epoch.add("forget_loss", loss, len(rows))
            share = goal.share(student)
            epoch.log(reached_share=share)
            if share == 1.0:
                run.status, epoch.stop = "reached", True
        return student


@method("l2ul")
class L2UL(UntilForgotten):
    """Goal loss with adversarial examples (Adv) and weight importance (Adv+Imp: `strength` above 0)."""

    preset_source: ClassVar[str] = "the settings of the authors' code, and cheaper ones of ours (`fast`)"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "cifar10": {"examples": 20},
        "cifar100": {"examples": 200, "limit": 100},
        "vit": {"examples": 200, "batch_size": 512},
        "imagenet": {"examples": 200, "batch_size": 128, "forget_batch_size": 16, "limit": 100},
        "utkface": {"examples": 300, "eps": 2.0, "batch_size": 128, "forget_batch_size": 128},
        "authors": {"examples": 20, "sampler": "authors", "importance_summed": True},
        "fast": {"examples": 20, "iterations": 20, "step": 0.5, "early_stop": True},
    }

    examples: int = Field(20, ge=1, description="adversarial images per forget sample, each with its own target")
    strength: float = Field(1.0, ge=0, description="weight of the importance penalty; 0: adversarial examples alone")
    per_sample: bool = Field(False, description="importance with absolute gradients per sample instead of per batch")
    importance_summed: bool = Field(
        False, description="gradients accumulate over the batches of the importance, as in the authors' code"
    )
    batch_size: int = Field(256, ge=1, description="adversarial images per step")
    shuffle: bool = Field(False, description="reshuffle the adversarial images in every pass")
    eps: float = Field(4.0, gt=0, description="radius of the attack, L2 in pixels of [0, 1]")
    step: float = Field(0.1, gt=0, description="length of one step of the attack")
    iterations: int = Field(100, ge=0, description="steps of the attack")
    early_stop: bool = Field(False, description="do not attack images further that reached their target")
    sampler: Literal["uniform", "authors", "authors_first10"] = Field(
        "uniform", description="targets: uniform over wrong classes, or the published code's draw, now or at first"
    )
    attack_batch_size: int = Field(64, ge=1, description="images attacked at a time; memory and speed only")

    def cost(self, sizes: Sizes) -> Work:
        images = self.examples * sizes.forget
        attack = steps(images, self.attack_batch_size, self.iterations) + forward(images, self.attack_batch_size)
        learning = paired_steps(images, sizes.forget, self.batch_size, self.forget_batch_size, self.limit)
        looks = self.limit * batches(images, self.batch_size) + 1
        return (attack + learning + forward(sizes.forget, times=looks)).at_most()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student, goal = problem.student(), self.prepare(problem, run)
        if goal.reached(student):
            run.status = "already"
            return student
        images, targets = self.adversarial(problem, goal, run)
        pull = self._pull(student, problem, run)
        optimizer, forget_rows = self.optimizer(student), goal.cycle(self.forget_batch_size)
        run.status = "limit"
        for epoch in run.epochs(student, self.limit, state=[optimizer, forget_rows]):
            for rows in self._order(len(images), epoch.number, run).split(self.batch_size):
                chosen = next(forget_rows)
                training_mode(student, self.batchnorm)
                with run.autocast():
                    adversarial_loss = F.cross_entropy(student(images[rows]).float(), targets[rows])
                    forget_loss = goal.loss(student(goal.x[chosen]).float(), chosen)
                share = len(chosen) / (len(chosen) + len(rows))
                _update((1 - share) * adversarial_loss + share * forget_loss, student, optimizer, pull, self.clip)
                epoch.add("adversarial_loss", adversarial_loss, len(rows))
                epoch.add("forget_loss", forget_loss, len(chosen))
                run.details["steps"] = run.details.get("steps", 0) + 1
                if goal.reached(student):
                    run.status, epoch.stop = "reached", True
                    break
        return student

    def adversarial(self, problem: Problem, goal: Goal, run: Run) -> tuple[Tensor, Tensor]:
        """Adversarial images in model units (examples * k, ...) and their target classes (examples * k,).

        The images of the first example of all k samples come first.
        """
        normalisation = problem.forget.store.normalisation
        space = PixelSpace.of(goal.x, None if normalisation is None else normalisation.tensors(goal.x))
        settings = L2PGD(
            eps=self.eps, step=self.step, iterations=self.iterations, batch=self.attack_batch_size,
            early_stop=self.early_stop,
        )  # fmt: skip
        targets = wrong_targets(goal.labels, problem.num_classes, self.examples, run.seed, sampler=self.sampler)
        images, reached = attack_cached(
            settings, problem.model, space.pixels(goal.x), targets, space, run, origin=origin_of(problem.forget)
        )
        run.details["attack_success"] = float(reached.float().mean())
        run.details["attack_distance"] = float(space.distances(images, goal.x).mean())
        return space.seen(images), targets.flatten()

    def _pull(self, student: nn.Module, problem: Problem, run: Run) -> ImportancePull | None:
        if self.strength == 0:
            return None
        with run.stage("importance"):
            omega = importance(
                copy.deepcopy(student), problem.forget, run, batch_size=self.forget_batch_size,
                per_sample=self.per_sample, batchnorm=self.batchnorm, summed=self.importance_summed,
            )  # fmt: skip
        return ImportancePull(student, omega, self.strength)

    def _order(self, count: int, epoch: int, run: Run) -> Tensor:
        if not self.shuffle:
            return torch.arange(count, device=run.device)
        generator = torch.Generator().manual_seed(run.seed_for("adversarial", "shuffle", epoch))
        return torch.randperm(count, generator=generator).to(run.device)


@method("l2ul-oracle")
class L2ULOracle(UntilForgotten):
    """The authors' reference with access to the retained samples: CE(D_r batch) + goal loss, both with weight 1."""

    retain_batch_size: int = Field(128, ge=1, description="retained samples per step, in fixed order")

    def cost(self, sizes: Sizes) -> Work:
        learning = paired_steps(sizes.retain, sizes.forget, self.retain_batch_size, self.forget_batch_size, self.limit)
        looks = self.limit * batches(sizes.retain, self.retain_batch_size) + 1
        return (learning + forward(sizes.forget, times=looks)).at_most()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student, goal = problem.student(), self.prepare(problem, run)
        if goal.reached(student):
            run.status = "already"
            return student
        optimizer, forget_rows = self.optimizer(student), goal.cycle(self.forget_batch_size)
        run.status = "limit"
        for epoch in run.epochs(student, self.limit, state=[optimizer, forget_rows]):
            for batch in problem.retain.batches(self.retain_batch_size, device=run.device):
                rows = next(forget_rows)
                training_mode(student, self.batchnorm)
                with run.autocast():
                    retain_loss = F.cross_entropy(student(batch.x).float(), batch.y)
                    forget_loss = goal.loss(student(goal.x[rows]).float(), rows)
                _update(retain_loss + forget_loss, student, optimizer, None, self.clip)
                epoch.add("retain_loss", retain_loss, len(batch))
                epoch.add("forget_loss", forget_loss, len(rows))
                if goal.reached(student):
                    run.status, epoch.stop = "reached", True
                    break
        return student


def _update(
    loss: Tensor, student: nn.Module, optimizer: torch.optim.Optimizer, pull: ImportancePull | None, clip: float | None
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if pull is not None:
        pull.add_gradient()
    clip_gradients(student, clip)
    optimizer.step()
