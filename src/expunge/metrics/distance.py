"""How far a model is from the retrained one: in its outputs, its mistakes and its weights.

Paper      Golatkar et al., CVPR 2020 and ECCV 2020 (activation distance, weight distance); specification, section 5
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch

from expunge.metrics.base import REFERENCE, Evaluation, Metric, Value, metric


@metric("distance")
class Distance(Metric):
    """Distances to the retrained model; 0 for the retrained model itself, lower is closer.

    <split>_activation_distance: mean over samples of ||softmax_1 - softmax_2||_1, in [0, 2].
    <split>_prediction_distance: share of samples that one of the two gets right and the other wrong (the authors'
    sum of |err_1 - err_2|, divided by the number of samples).
    weight_distance: ||w - w_retrained|| / ||w_retrained|| over all weights. Two equal trainings with other seeds are
    far apart too: read it beside that of the original.
    """

    requires_reference: ClassVar[bool] = True

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        for split in evaluation.present(("forget", "retain", "test")):
            here = evaluation.logits(model, split).softmax(1)
            there = evaluation.logits(REFERENCE, split).softmax(1)
            apart = float((here - there).abs().sum(1).double().mean())
            yield Value(f"{split}_activation_distance", apart, "distance", "lower")
            differ = evaluation.correct(model, split) != evaluation.correct(REFERENCE, split)
            yield Value(f"{split}_prediction_distance", float(differ.double().mean()), "fraction", "lower")
        yield Value("weight_distance", weight_distance(evaluation, model), "ratio", "lower")


def weight_distance(evaluation: Evaluation, model: str) -> float:
    """||w - w_ref|| / ||w_ref|| over all parameters, in float64."""
    reference = dict(evaluation.models[REFERENCE].named_parameters())
    apart = size = 0.0
    for name, parameter in evaluation.models[model].named_parameters():
        theirs = reference[name].detach().cpu().double()
        apart += float((parameter.detach().cpu().double() - theirs).square().sum())
        size += float(theirs.square().sum())
    return float(torch.tensor(apart / size).sqrt()) if size else 0.0
