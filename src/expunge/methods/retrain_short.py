"""Retrain-short: a fresh network on the retained samples alone, over no longer a schedule than it needs.

Source     our own name for what it is: retraining with a better schedule and an early stop

    min over w:  (1/N_r) sum over D_r of CE(f(x; w), y),   starting at fresh weights

in cycles: AdamW, the rate of each rises over its first fifth and falls along a cosine. A share s of the recipe's epochs
is one cycle of s. `auto` goes on, cycle after cycle at half the peak rate of the one before, up to the shares
of `SHARES`, until both of these hold, at the latest when the recipe's own number of epochs is used up:

    accuracy on D_r (at most `MEASURED` samples)   >= the original's - tolerance
    accuracy on held-out samples, D_r's labels     >= the original's - tolerance (where there are any)

Exact      no sample to forget is handed to it, and nothing is distilled from a model that saw one. Of the given weights
           it takes two numbers, their accuracies above, as the mark where to stop; no weight and no output reaches the
           fresh network. (A mark is a number that forgotten samples had a part in: fix `share` to rule that out too.)
Start      the initial weights, if they are known, else freshly drawn ones
Cost       share x the passes of the training; `auto` adds one forward pass per cycle
Price      utility: a network trained more briefly fits the retained samples less
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from expunge.core.errors import UsageError
from expunge.core.options import Field, build
from expunge.core.run import Run
from expunge.core.seeds import torch_generator
from expunge.data.augment import make_augment
from expunge.data.split import Split
from expunge.methods.base import Method, method
from expunge.methods.cost import Work, forward, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import one_cycle
from expunge.models.initial import reset_parameters
from expunge.models.modes import training_mode
from expunge.training.inference import error_rate, predict
from expunge.training.loop import step
from expunge.training.recipe import Recipe, make_optimizer, set_rate

SHARES = (0.25, 0.5, 1.0)  # of the recipe's epochs: where the cycles of `auto` end
WARMUP = 0.2  # of each cycle
MEASURED = 2000


@method("retrain-short")
class RetrainShort(Method):
    """Train from scratch by cross-entropy on the retained samples: exact, with early stopping at a target accuracy."""

    share: float | Literal["auto"] = Field("auto", description="share of the recipe's epochs, in (0, 1], or auto")
    tolerance: float = Field(0.01, ge=0, lt=1, description="auto stops at the original's accuracies minus this")
    lr: float = Field(8e-3, gt=0, description="peak learning rate of AdamW in the first cycle")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")

    def __post_init__(self) -> None:
        if self.share != "auto" and not 0 < self.share <= 1:
            raise UsageError(f"retrain-short: `share` must be in (0, 1] or `auto`, got {self.share:g}.")

    def cost(self, sizes: Sizes) -> Work:
        recipe = sizes.recipe or build(Recipe, {})  # as is assumed where none is known
        samples = sizes.retain * recipe.epochs
        if isinstance(self.share, float):
            return steps(round(self.share * samples), recipe.batch_size)
        # Held-out samples are counted like retained ones: their number is not known.
        looks = forward(min(sizes.retain, MEASURED), times=2 * (len(SHARES) + 1))
        return (steps(samples, recipe.batch_size) + looks).at_most()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        recipe, retain = problem.recipe, problem.retain
        marks = _measured(problem, run) if self.share == "auto" else []
        targets = [1 - error_rate(predict(problem.model, split, run.device), split.y) for split in marks]
        student = _fresh(problem, run)
        shares = SHARES if self.share == "auto" else (self.share,)
        ends = [max(k, round(recipe.epochs * share)) for k, share in enumerate(shares, 1)]
        augment = make_augment(recipe.augment)
        per_epoch = -(-len(retain) // recipe.batch_size)
        optimizer = make_optimizer("adamw", student.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        for epoch in run.epochs(student, ends[-1], state=[optimizer]):
            cycle = bisect_left(ends, epoch.number)
            first, last = [0, *ends][cycle], ends[cycle]
            if epoch.number == first + 1:
                optimizer.state.clear()
            training_mode(student, recipe.batchnorm)
            seed = run.seed_for("train", "shuffle", epoch.number)
            batches = retain.batches(recipe.batch_size, shuffle=True, seed=seed, augment=augment, device=run.device)
            for number, batch in enumerate(batches):
                at = (epoch.number - 1 - first + (number + 0.5) / per_epoch) / (last - first)
                set_rate(optimizer, self.lr * 0.5**cycle * one_cycle(at, WARMUP))
                with run.autocast():
                    loss = F.cross_entropy(student(batch.x).float(), batch.y)
                step(loss, student, optimizer, recipe.clip)
                epoch.add("loss", loss, len(batch))
            if epoch.number == last and self.share == "auto":
                accuracies = [1 - error_rate(predict(student, split, run.device), split.y) for split in marks]
                epoch.log(**{f"{split.name}_accuracy": value for split, value in zip(marks, accuracies, strict=True)})
                reached = all(a >= b - self.tolerance for a, b in zip(accuracies, targets, strict=True))
                epoch.stop = reached
                if reached or last == ends[-1]:
                    run.notes.append(_summary(last, recipe.epochs, accuracies, targets, reached))
        return student


def _measured(problem: Problem, run: Run) -> list[Split]:
    """Retained and, if given, held-out samples with retained labels; at most `MEASURED` of each."""
    retain, splits = problem.retain, []
    given = [retain, problem.validation] if problem.has_validation else [retain]
    for split in given:
        fitting = torch.isin(split.y, retain.y.unique()).nonzero()[:, 0]
        order = torch.randperm(len(fitting), generator=torch_generator(run.seed, "mark", split.name))[:MEASURED]
        if len(order):
            splits.append(split.take(split.index[fitting[order]]))
    return splits


def _fresh(problem: Problem, run: Run) -> nn.Module:
    """The model with its initial weights and statistics."""
    student = problem.student()
    if problem.has_initial:
        student.load_state_dict(problem.initial)
    else:
        reset_parameters(student, seed=run.seed)
    return student.to(run.device)


def _summary(epochs: int, all_epochs: int, accuracies: list[float], targets: list[float], reached: bool) -> str:
    pairs = [f"{a:.3f} (original {b:.3f})" for a, b in zip(accuracies, targets, strict=True)]
    values = " and on held-out samples ".join(pairs)
    end = "" if reached else ", the mark was not reached"
    return f"trained for {epochs} of {all_epochs} epochs{end}; accuracy on retained samples {values}."
