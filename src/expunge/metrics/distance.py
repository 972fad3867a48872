"""Distance of a model from the retrained model: in outputs, in correctness and in weights.

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
    <split>_prediction_distance: share of samples that exactly one of the two predicts correctly, in [0, 1] (the
    authors' sum of |err_1 - err_2|, divided by the number of samples).
    weight_distance: ||w - w_retrained|| / ||w_retrained|| over all weights. Models trained with different seeds are
    far apart too: compare it with the original's.
    """

    requires_reference: ClassVar[bool] = True

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        for split in evaluation.present(("forget", "retain", "test")):
            probabilities = evaluation.logits(model, split).softmax(1)
            reference = evaluation.logits(REFERENCE, split).softmax(1)
            distance = float((probabilities - reference).abs().sum(1).double().mean())
            yield Value(f"{split}_activation_distance", distance, "distance", "lower")
            differ = evaluation.correct(model, split) != evaluation.correct(REFERENCE, split)
            yield Value(f"{split}_prediction_distance", float(differ.double().mean()), "fraction", "lower")
        weights = relative_distance(evaluation.models[model], evaluation.models[REFERENCE])
        if weights is not None:
            yield Value("weight_distance", weights, "ratio", "lower")


def relative_distance(model: nn.Module, reference: nn.Module) -> float | None:
    """Relative distance ||w - w_ref|| / ||w_ref|| over all parameters, in float64; None if names or shapes differ."""
    parameters, references = dict(model.named_parameters()), dict(reference.named_parameters())
    if {name: p.shape for name, p in parameters.items()} != {name: p.shape for name, p in references.items()}:
        return None
    difference = size = 0.0
    for name, parameter in references.items():
        weight = parameter.detach().cpu().double()
        difference += float((parameters[name].detach().cpu().double() - weight).square().sum())
        size += float(weight.square().sum())
    return (difference / size) ** 0.5 if size else 0.0
