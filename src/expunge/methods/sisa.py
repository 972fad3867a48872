"""SISA as a method: an original trained in shards, of which those with forget samples are retrained.

Paper      Bourtoule et al., "Machine Unlearning", IEEE S&P 2021, arXiv:1912.03817; the training itself: `training.sisa`

Other methods change a given model. SISA decides how the original is trained, so it first trains its own, on all
samples, from random weights, and then forgets; only the second part counts as unlearning time. The result is an
ensemble with the interface of one classifier.
Exact      the ensemble has never seen the forget set
Cost       a share of a full training, `details["sisa"]["share"]`; nearly all of it if all shards and first slices have
           forget samples
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import ClassVar, Literal

from torch import nn

from expunge.core.options import Field, build
from expunge.core.run import Run
from expunge.data.join import joined
from expunge.methods.base import Method, method
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.training.shards import Sharding
from expunge.training.sisa import ShardedTraining


@method("sisa")
class SISA(Method):
    """Sharded, isolated, sliced, aggregated training. Not for a model that was trained in another way."""

    same_tensors: ClassVar[bool] = False

    shards: int = Field(5, ge=1, description="models, each trained on its own part of the data")
    slices: int = Field(4, ge=1, description="parts of a shard that are added in turn, each with a checkpoint")
    aggregate: Literal["mean", "vote"] = Field("mean", description="mean of the softmax outputs, or majority vote")
    stage_epochs: int | None = Field(None, ge=1, description="epochs per stage; none: 2 epochs / (slices + 1)")

    def cost(self, sizes: Sizes) -> Work | None:
        if sizes.sharded is None or sizes.recipe is None:
            return None
        return steps(sizes.sharded.samples, sizes.recipe.batch_size)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        data = joined([problem.retain, problem.forget], "train")
        forget = data.take(data.index[len(problem.retain) :], "forget")
        values = {name: getattr(self, name) for name in ("shards", "slices", "aggregate", "stage_epochs")}
        sharding = build(Sharding, values, self.card.name)
        training_run = Run(
            seed=run.seed, device=run.device, precision=run.precision, compile=run.compile, progress=run.progress,
            cancelled=run.cancelled,
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="expunge-sisa-") as folder:
            start = time.perf_counter()
            training = ShardedTraining(
                problem.student(), data, recipe=problem.recipe, sharding=sharding, seed=run.seed, folder=Path(folder)
            )
            training.train(training_run)
            run.synchronize()
            seconds = time.perf_counter() - start
            run.count_seconds(
                -seconds
            )  # the original's own training is not part of unlearning, as for every other method
            run.details["sharded_training_seconds"] = seconds
            return training.forget(forget, run)
