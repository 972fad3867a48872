"""How far a model is from the retrained one: in its outputs, its mistakes and its weights.

Paper      Golatkar et al., CVPR 2020 and ECCV 2020 (activation distance, weight distance)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import nn

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
            distance = float((here - there).abs().sum(1).double().mean())
            yield Value(f"{split}_activation_distance", distance, "distance", "lower")
            differ = evaluation.correct(model, split) != evaluation.correct(REFERENCE, split)
            yield Value(f"{split}_prediction_distance", float(differ.double().mean()), "fraction", "lower")
        apart = relative_distance(evaluation.models[model], evaluation.models[REFERENCE])
        if apart is not None:
            yield Value("weight_distance", apart, "ratio", "lower")


def relative_distance(model: nn.Module, reference: nn.Module) -> float | None:
    """||w - w_ref|| / ||w_ref|| over all parameters, in float64; None where the two differ in tensors (an ensemble)."""
    mine, theirs = dict(model.named_parameters()), dict(reference.named_parameters())
    if {name: p.shape for name, p in mine.items()} != {name: p.shape for name, p in theirs.items()}:
        return None
    apart = size = 0.0
    for name, parameter in theirs.items():
        before = parameter.detach().cpu().double()
        apart += float((mine[name].detach().cpu().double() - before).square().sum())
        size += float(before.square().sum())
    return (apart / size) ** 0.5 if size else 0.0
