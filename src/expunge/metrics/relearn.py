"""Relearn time: how quickly does an unlearned model learn the forget set again?

Paper      Golatkar et al., CVPR 2020; settings of Kurmanji et al., NeurIPS 2023, arXiv:2302.09880
Rule       train on the full data; an "epoch" is 500 samples drawn with replacement. Stop when the mean loss on D_f is
           at most that of the original model + 1e-5, after at most `limit` epochs; report epochs + 1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from expunge.core.options import Field
from expunge.core.seeds import torch_generator
from expunge.data.split import Split
from expunge.metrics.base import ORIGINAL, Evaluation, Metric, Value, metric
from expunge.models.modes import training_mode
from expunge.training.inference import predict
from expunge.training.loop import L2Reference


@metric("relearn")
class RelearnTime(Metric):
    """Epochs of 500 samples until the forget set is learnt again; close to the retrained model's is good.

    relearn_censored is 1 if the limit was reached: the time is then a lower bound. Costly, so it is measured on request
    only. Needs the original model, named "original", among the evaluated models.
    """

    requires: ClassVar[tuple[str, ...]] = ("forget", "retain")
    on_request: ClassVar[bool] = True
    lr: float = Field(0.1, gt=0, description="learning rate of SGD (0.1 in the small families, 0.01 in the large)")
    samples: int = Field(500, ge=1, description="samples per epoch, drawn with replacement")
    batch_size: int = Field(128, ge=1, description="samples per step")
    limit: int = Field(100, ge=1, description="maximal number of epochs")
    l2_reference: float = Field(0.0, ge=0, description="strength of the pull to the weights it starts from (L2-SP)")
    slack: float = Field(1e-5, ge=0, description="added to the original model's loss on the forget set")

    def applies(self, evaluation: Evaluation) -> bool:
        return super().applies(evaluation) and ORIGINAL in evaluation.models

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        target = float(evaluation.losses(ORIGINAL, "forget").mean()) + self.slack
        epochs, reached = self.relearn(evaluation.models[model], evaluation, target)
        yield Value("relearn_time", epochs + 1, "count", "reference")
        yield Value("relearn_censored", float(not reached), "fraction", "reference")

    def relearn(self, model: nn.Module, evaluation: Evaluation, target: float) -> tuple[int, bool]:
        """Train a copy until the loss on the forget set is at most `target`.

        Returns:
            (finished epochs, whether the target was reached).
        """
        student = copy.deepcopy(model).to(evaluation.device).requires_grad_(True)
        optimizer = torch.optim.SGD(student.parameters(), lr=self.lr)
        pull = L2Reference(student, self.l2_reference)
        splits = [evaluation.splits["forget"], evaluation.splits["retain"]]
        sizes = torch.tensor([len(split) for split in splits])
        for epoch in range(self.limit):
            if mean_loss(student, evaluation) <= target:
                return epoch, True
            training_mode(student, "frozen")
            drawn = torch.randint(
                int(sizes.sum()), (self.samples,), generator=torch_generator(evaluation.seed, "relearn", epoch)
            )
            for rows in drawn.split(self.batch_size):
                x, y = gather(splits, rows, evaluation.device)
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(student(x), y).backward()
                pull.add_gradient()
                optimizer.step()
        return self.limit, mean_loss(student, evaluation) <= target


def gather(splits: list[Split], rows: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and labels at `rows` (n,) of the concatenation of two splits, those of the first split first."""
    first = len(splits[0])
    chosen = (rows[rows < first], rows[rows >= first] - first)
    parts = [
        split.take(split.index[rows_of_split])
        for split, rows_of_split in zip(splits, chosen, strict=True)
        if len(rows_of_split)
    ]
    return torch.cat([part.inputs(device) for part in parts]), torch.cat([part.y for part in parts]).to(device)


def mean_loss(model: nn.Module, evaluation: Evaluation) -> float:
    """Mean cross-entropy of a model on the forget set."""
    logits = predict(model, evaluation.splits["forget"], evaluation.device).double().cpu()
    return float(F.cross_entropy(logits, evaluation.labels("forget")))
