"""SISA as a method: an original trained in shards, and the shards that saw a forgotten sample trained again.

Paper      Bourtoule et al., "Machine Unlearning", IEEE S&P 2021, arXiv:1912.03817; the training itself: `training.sisa`

Other methods change a model that is given. SISA decides how the original is trained, so this one first trains its own,
on all samples, from fresh weights, and then forgets; only the second part counts as time of unlearning. The result is
an ensemble, which answers as one classifier.
Exact      the ensemble has never seen the forget set
Cost       a share of a full training, `details["sisa"]["share"]`; samples that lie in all shards and first slices cost
           nearly all of it
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
    slices: int = Field(4, ge=1, description="parts of a shard that are added one after the other, with a checkpoint")
    aggregate: Literal["mean", "vote"] = Field("mean", description="mean of the softmax outputs, or majority vote")
    stage_epochs: int | None = Field(None, ge=1, description="epochs per stage; none: 2 epochs / (slices + 1)")

    def cost(self, sizes: Sizes) -> Work | None:
        if sizes.sharded is None or sizes.recipe is None:
            return None
        return steps(sizes.sharded.samples, sizes.recipe.batch_size)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        data = joined([problem.retain, problem.forget], "train")
        gone = data.take(data.index[len(problem.retain) :], "forget")
        given = {name: getattr(self, name) for name in ("shards", "slices", "aggregate", "stage_epochs")}
        sharding = build(Sharding, given, self.card.name)
        before = Run(
            seed=run.seed, device=run.device, precision=run.precision, compile=run.compile, progress=run.progress,
            cancelled=run.cancelled,
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="expunge-sisa-") as folder:
            began = time.perf_counter()
            training = ShardedTraining(
                problem.student(), data, recipe=problem.recipe, sharding=sharding, seed=run.seed, folder=Path(folder)
            )
            training.train(before)
            run.synchronize()
            seconds = time.perf_counter() - began
            run.borrow(-seconds)  # the original's own training is not part of unlearning, as for every other method
            run.details["sharded_training_seconds"] = seconds
            return training.forget(gone, run)
