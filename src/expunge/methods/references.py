"""The two reference points: the original model, and a model retrained without the forget set."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from expunge.core.errors import UsageError
from expunge.core.options import Field
from expunge.core.run import Run
from expunge.core.seeds import derive
from expunge.methods.base import IterativeMethod, Method, method
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.training.cache import train_cached


@method("original")
class Original(Method):
    """A copy of the trained model. Cost: none. Limits: it forgets nothing."""

    parallel: ClassVar[bool] = True

    def cost(self, sizes: Sizes) -> Work:
        return Work()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        return problem.student()


@method("retrain")
class Retrain(IterativeMethod):
    """Train from the initial weights on the retained samples, with the recipe of the original.

    Exact: the result has never seen the forget set. It has no access to trained weights: the model in its problem has
    the initial weights (or random ones if those are unknown). Cached by content, so no reference is trained twice.
    `refill` reproduces the SCRUB authors' code, which keeps the size of the training set by overwriting the forgotten
    samples with retained ones drawn with replacement. Cost: one training on the retained samples.
    """

    parallel: ClassVar[bool] = True

    max_drop: float | None = Field(None, gt=0, lt=1, description="as in other methods; not useful from scratch")
    epochs: int | None = Field(None, ge=0, description="epochs; none: those of the recipe")
    refill: bool = Field(False, description="replace the forgotten samples with duplicates of retained ones")

    def cost(self, sizes: Sizes) -> Work | None:
        if sizes.recipe is None:
            return None
        epochs = sizes.recipe.epochs if self.epochs is None else self.epochs
        return steps(sizes.retain + sizes.forget * self.refill, sizes.recipe.batch_size, epochs)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        recipe = problem.recipe if self.epochs is None else replace(problem.recipe, epochs=self.epochs)
        retain = problem.retain
        if self.refill:
            if not problem.forgotten:
                raise UsageError("retrain: `refill` needs to know how many samples are forgotten; pass forget=...")
            generator = torch.Generator().manual_seed(derive(run.seed, "refill"))
            extra = torch.randint(len(retain), (problem.forgotten,), generator=generator)
            retain = retain.take(torch.cat([retain.index, retain.index[extra]]))
        return train_cached(problem.student(), retain, recipe, run, purpose="train")
