"""SISA: sharded, isolated, sliced, aggregated training; exact forgetting by retraining the affected stages alone.

Paper      Bourtoule et al., "Machine Unlearning", IEEE S&P 2021, arXiv:1912.03817
Notation   S shards, R slices of each, e epochs of the recipe

    the data are split at random into S shards, and each shard D_k into R slices D_k1 .. D_kR
    model k, stage r (1..R):  train on D_k1 + .. + D_kr from checkpoint (k, r-1);   checkpoint (k, 0): initial weights
    prediction                mean of the S softmax outputs, or majority of the S votes
    forget x in slice r of shard k:  delete checkpoints (k, r) .. (k, R), remove x, retrain these stages

A stage has 2e / (R + 1) epochs, so that all stages together process about as many samples as e epochs. Each starts with
a new optimiser state and the recipe's schedule, with milestones scaled to its length.
Exact      every random draw derives from (seed, shard, stage, epoch), so the weights after `forget` are, bit for bit,
           those of a training on the same shards that never had the samples
Cost       one sample: on average 2/3 of one shard's training for large R. Samples scattered over all shards and first
           slices cost a full training; `Cost` counts it
Limits     it determines how the *original* is trained, and small shards give a weaker original
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.options import build, to_dict
from expunge.core.run import Run
from expunge.core.seeds import derive, global_generators
from expunge.data.split import Split
from expunge.models.initial import reset_parameters
from expunge.training.ensemble import Ensemble
from expunge.training.loop import train_model
from expunge.training.precision import resolve_precision
from expunge.training.recipe import Recipe
from expunge.training.shards import PLAN, Checkpoints, Sharding, cut, read_plan, stage_recipe, write_plan

__all__ = ["Cost", "Ensemble", "ShardedTraining", "Sharding"]

NOTHING_LEFT = "no shard has samples left; there is nothing to train on."


@dataclass(frozen=True)
class Cost:
    """Work of a training, compared with training all remaining samples from the beginning.

    Attributes:
        samples: samples processed, counted once per epoch.
        total: samples that a full training processes.
        stages: stages trained.
        total_stages: stages of a full training.
    """

    samples: int
    total: int
    stages: int
    total_stages: int

    @property
    def share(self) -> float:
        """Samples as a share of `total`, in [0, 1]."""
        return self.samples / self.total if self.total else 0.0


class ShardedTraining:
    """A sharded training that can forget.

    Checkpoints trained on a forgotten sample are deleted.

    Args:
        model: architecture (and initial weights, see `Sharding.start`); it is copied.
        data: the training samples with labels.
        recipe: how to train.
        sharding: how to split; the default sharding if None.
        seed: of shards, initial weights and training.
        folder: for checkpoints, which are kept in memory without it. With a folder, an interrupted training, or a later
            request to forget, continues from `ShardedTraining.load`.

    Attributes:
        cost: work of the last call of `train` or `forget`.
        shards: shard -> slice -> long tensor of positions in the store, ascending.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Split,
        *,
        recipe: Recipe,
        sharding: Sharding | None = None,
        seed: int = 0,
        folder: Path | None = None,
    ) -> None:
        self.recipe, self.seed, self.data = recipe, seed, data
        self.sharding = sharding or build(Sharding, {})
        self.cost = Cost(0, 0, 0, 0)
        self._model = model
        self._checkpoints = Checkpoints(folder)
        if not data.has_labels:
            raise UsageError("sharded training needs labels; pass data that have them.")
        if folder is not None and (folder / PLAN).exists():
            raise UsageError(f"{folder} holds a sharded training; load it, or choose another folder.")
        self.shards = cut(data, self.sharding, seed)
        self._write()
        for shard in range(len(self.shards)):
            start = copy.deepcopy(model)
            if self.sharding.start == "drawn":
                reset_parameters(start, seed=derive(seed, "shard", shard))
            self._checkpoints.put(start, shard, 0)

    @classmethod
    def load(cls, folder: Path, model: nn.Module, data: Split) -> ShardedTraining:
        """Load the training in a folder.

        Args:
            folder: as given to the constructor.
            model: the architecture.
            data: its remaining samples, identified by their ids; may contain others.

        Raises:
            CheckpointError: if the folder has no sharded training that this version can read.
            UsageError: if a sample of the training is missing in `data`.
        """
        plan = read_plan(folder)
        position_of = {name: i for name, i in zip(data.ids.tolist(), data.index.tolist(), strict=True)}
        names = [name for shard in plan["shards"] for part in shard for name in part]
        missing = [name for name in names if name not in position_of]
        if missing:
            raise UsageError(
                f"{len(missing)} samples of the training in {folder} are not in the data (first: {missing[0]}); "
                "pass data that have them, and call `forget` to remove them."
            )
        training = cls.__new__(cls)
        training.recipe, training.sharding = build(Recipe, plan["recipe"], "recipe"), build(Sharding, plan["sharding"])
        training.seed, training.data, training.cost = plan["seed"], data, Cost(0, 0, 0, 0)
        training._model, training._checkpoints = model, Checkpoints(folder)
        training.shards = [
            [torch.tensor([position_of[name] for name in part], dtype=torch.long).sort().values for part in shard]
            for shard in plan["shards"]
        ]
        return training

    def _run(self) -> Run:
        recipe = self.recipe
        precision = resolve_precision(recipe.precision, self._model, self.data, recipe.batch_size, torch.device("cpu"))
        return Run(precision=precision)

    def train(self, run: Run | None = None) -> Ensemble:
        """Train all stages without a checkpoint and return the ensemble; a shard without samples has no model."""
        outer = run or self._run()
        device = next((p.device for p in self._model.parameters()), torch.device(outer.device))
        samples = stages = 0
        models = []
        with global_generators(outer.device):
            for shard in range(len(self.shards)):
                if not sum(len(part) for part in self.shards[shard]):
                    continue
                done = self._checkpoints.newest(shard, self.sharding.slices)
                model = self._checkpoints.get(copy.deepcopy(self._model), shard, done)
                for stage in range(done + 1, self.sharding.slices + 1):
                    samples += self._train_stage(model, shard, stage, outer)
                    stages += 1
                    self._checkpoints.put(model, shard, stage)
                models.append(model.to(device))
        if not models:
            raise UsageError(NOTHING_LEFT)
        full = sum(self._passes(shard, r) for shard in self.shards for r in range(1, self.sharding.slices + 1))
        self.cost = Cost(samples, full, stages, self.sharding.slices * len(models))
        outer.details["sisa"] = {**vars(self.cost), "share": self.cost.share}
        return Ensemble(models, self.sharding.aggregate).eval()

    def forget(self, samples: Split | Sequence[str], run: Run | None = None) -> Ensemble:
        """Remove samples and retrain the stages that were trained on them.

        Args:
            samples: a split of the same store, or ids.
            run: device, precision and progress.

        Returns:
            The ensemble, equal to one that was never trained on the samples.

        Raises:
            UsageError: if a sample is not part of the training, or none remains.
        """
        remaining, affected = self._without(samples)
        for number, stage in affected.items():
            self._checkpoints.drop(number, range(stage, self.sharding.slices + 1))
        self.shards = remaining
        self._write()
        return self.train(run)

    def forget_cost(self, samples: Split | Sequence[str]) -> Cost:
        """The cost of `forget`, with the same arguments and errors; nothing is trained or changed."""
        remaining, affected = self._without(samples)
        slices = self.sharding.slices
        processed = total = stages = models = 0
        for number, shard in enumerate(remaining):
            if not sum(len(part) for part in shard):
                continue
            done = min(self._checkpoints.newest(number, slices), affected.get(number, slices + 1) - 1)
            passes = [self._passes(shard, stage) for stage in range(1, slices + 1)]
            processed, total = processed + sum(passes[done:]), total + sum(passes)
            stages, models = stages + slices - done, models + 1
        if not models:
            raise UsageError(NOTHING_LEFT)
        return Cost(processed, total, stages, slices * models)

    def _without(self, samples: Split | Sequence[str]) -> tuple[list[list[Tensor]], dict[int, int]]:
        """The remaining shards, and the first stage, counted from 1, of each shard that has one of the samples."""
        positions = self._positions(samples)
        present = torch.cat([part for shard in self.shards for part in shard])
        unknown = positions[~torch.isin(positions, present)]
        if len(unknown):
            raise UsageError(
                f"{len(unknown)} of the forget samples are not in the training (first: position {int(unknown[0])}); "
                "they were forgotten before, or never in it."
            )
        remaining, affected = list(self.shards), {}
        for number, shard in enumerate(self.shards):
            contains = [bool(torch.isin(part, positions).any()) for part in shard]
            if any(contains):
                affected[number] = contains.index(True) + 1
                remaining[number] = [part[~torch.isin(part, positions)] for part in shard]
        return remaining, affected

    def _positions(self, samples: Split | Sequence[str]) -> Tensor:
        if isinstance(samples, Split):
            if samples.store is not self.data.store:
                raise UsageError(
                    "the samples to forget are of another data set; pass their ids, or a split of this one."
                )
            return samples.index.unique()
        known = np.isin(self.data.ids, np.asarray(list(samples), dtype=str))
        missing = set(samples) - set(self.data.ids[known].tolist())
        if missing:
            raise UsageError(f"{len(missing)} ids to forget are unknown (first: {min(missing)}).")
        return self.data.index[torch.from_numpy(known)].unique()

    def _train_stage(self, model: nn.Module, shard: int, stage: int, outer: Run) -> int:
        """Train one stage in place; returns the number of processed samples."""
        data = self._stage_data(shard, stage)
        if not len(data):
            return 0
        start = self._checkpoints.get(copy.deepcopy(self._model), shard, 0)
        run = Run(
            seed=derive(self.seed, "shard", shard),
            device=outer.device,
            precision=outer.precision,
            compile=outer.compile,
            label=f"shard {shard + 1} of {len(self.shards)}, stage {stage} of {self.sharding.slices}",
            progress=outer.progress,
            cancelled=outer.cancelled,
        )
        train_model(
            model, data, stage_recipe(self.recipe, self.sharding), run, purpose=f"stage {stage}",
            reference=dict(start.named_parameters()),
        )  # fmt: skip
        outer.history.extend({**row, "shard": shard, "stage": stage} for row in run.history)
        return self._passes(self.shards[shard], stage)

    def _stage_data(self, shard: int, stage: int) -> Split:
        return self.data.take(torch.cat(self.shards[shard][:stage]).sort().values, f"shard {shard}")

    def _passes(self, shard: Sequence[Tensor], stage: int) -> int:
        """Samples processed in one stage of a shard, which is given as its slices."""
        epochs = stage_recipe(self.recipe, self.sharding).epochs
        return epochs * sum(len(part) for part in shard[:stage])

    def _write(self) -> None:
        if self._checkpoints.folder is None:
            return
        ids = self.data.store.ids
        plan = {
            "seed": self.seed,
            "sharding": to_dict(self.sharding),
            "recipe": to_dict(self.recipe),
            "shards": [[ids[part.numpy()].tolist() for part in shard] for shard in self.shards],
        }
        write_plan(self._checkpoints.folder, plan)
