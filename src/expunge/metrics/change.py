"""How unlearning changed the original model: weights, BatchNorm statistics, layers and predictions.

Paper      Cha et al., AAAI 2024, arXiv:2301.11578 (its analyses); CKA: Kornblith et al., ICML 2019, arXiv:1905.00414
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from expunge.core.options import Field
from expunge.data.split import Split
from expunge.metrics.agreement import EQUAL_ROWS, random_subset
from expunge.metrics.base import ORIGINAL, Evaluation, Metric, Value, metric, missing
from expunge.metrics.distance import relative_distance
from expunge.models.anatomy import anatomy
from expunge.models.modes import evaluation_mode
from expunge.numerics.statistics import gram_cka

_FEWEST = 4  # samples that the unbiased estimator needs
_OTHER_TENSORS = "the tensors of the model are not those of the original"


class _AgainstOriginal(Metric):
    def applies(self, evaluation: Evaluation) -> bool:
        return super().applies(evaluation) and ORIGINAL in evaluation.models


@metric("drift")
class WeightDrift(_AgainstOriginal):
    """Distance from the original, separately in weights and in BatchNorm statistics, >= 0.

    weight_drift: ||w - w_original|| / ||w_original|| over all parameters.
    batchnorm_mean_drift: root mean square over channels of the change of the running mean, in standard deviations of
    the original, averaged over layers. batchnorm_variance_drift: the same for the logarithm of the running variance.
    Not for models whose tensors differ from the original's.
    """

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        current, original = evaluation.models[model], evaluation.models[ORIGINAL]
        distance = relative_distance(current, original)
        if distance is None:
            yield from missing(_OTHER_TENSORS, "ratio", "lower", "weight_drift")
            return
        yield Value("weight_drift", distance, "ratio", "lower")
        means, variances = [], []
        for (_, a), (_, b) in zip(_norms(current), _norms(original), strict=True):
            if a.running_mean is None or b.running_mean is None or a.running_var is None or b.running_var is None:
                continue
            mean, before = a.running_mean.double().cpu(), b.running_mean.double().cpu()
            variance, old = a.running_var.double().cpu() + a.eps, b.running_var.double().cpu() + b.eps
            means.append(((mean - before).square() / old).mean().sqrt())
            variances.append((variance / old).log().square().mean().sqrt())
        if means:
            yield Value("batchnorm_mean_drift", float(torch.stack(means).mean()), "ratio", "lower")
            yield Value("batchnorm_variance_drift", float(torch.stack(variances).mean()), "ratio", "lower")
        else:
            why = "the model has no BatchNorm statistics"
            yield from missing(why, "ratio", "lower", "batchnorm_mean_drift", "batchnorm_variance_drift")


@metric("prediction-pattern")
class PredictionPattern(_AgainstOriginal):
    """Which classes are predicted for the forget set: does a method move it to one fixed class?

    new_class_largest_share: among forget samples that are predicted wrongly, the share of the most frequent new class.
    new_class_second_choice: the share of them whose new class was the original's most likely other class.
    Both in [0, 1], to be compared with the retrained model's. There is no value if no forget sample is predicted
    wrongly.
    """

    requires: ClassVar[tuple[str, ...]] = ("forget",)

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        truth = evaluation.labels("forget")
        new = evaluation.logits(model, "forget").argmax(1)
        wrong = new != truth
        if not bool(wrong.any()):
            why = "no forget sample is predicted wrongly"
            yield from missing(why, "fraction", "reference", "new_class_largest_share", "new_class_second_choice")
            return
        counts = torch.bincount(new[wrong])
        yield Value("new_class_largest_share", float(counts.max() / counts.sum()), "fraction", "reference")
        before = evaluation.logits(ORIGINAL, "forget").scatter(1, truth[:, None], -torch.inf).argmax(1)
        same = (new == before)[wrong].double().mean()
        yield Value("new_class_second_choice", float(same), "fraction", "reference")


@metric("cka-layers")
class LayerCKA(_AgainstOriginal):
    """Linear CKA between the original and this model per block, on forget, retain and test samples; 1 is equal.

    Activations are flattened. The group names the block. With few samples in many dimensions the biased estimator is
    near 1, so the unbiased one is the default; it may be slightly negative.
    """

    on_request: ClassVar[bool] = True
    estimator: Literal["biased", "unbiased"] = Field("unbiased", description="of HSIC")
    samples: int = Field(256, ge=_FEWEST, description="maximal samples per split, drawn by the evaluation's seed")

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        current, original = evaluation.models[model], evaluation.models[ORIGINAL]
        if relative_distance(current, original) is None:
            names = [f"{name}_layer_cka" for name in evaluation.present(("forget", "retain", "test"))]
            yield from missing(_OTHER_TENSORS, "ratio", "higher", *names)
            return
        for name in evaluation.present(("forget", "retain", "test")):
            split = random_subset(evaluation.splits[name], self.samples, evaluation.seed)
            if len(split) < _FEWEST:
                why = f"{len(split)} samples; the estimator needs {_FEWEST}"
                yield from missing(why, "ratio", "higher", f"{name}_layer_cka")
                continue
            blocks = layer_outputs(original, split, evaluation.device)
            for block, gram in layer_outputs(current, split, evaluation.device).items():
                value = gram_cka(gram, blocks[block], unbiased=self.estimator == "unbiased")
                if value is None:
                    yield from missing(EQUAL_ROWS, "ratio", "higher", f"{name}_layer_cka", group=block)
                else:
                    yield Value(f"{name}_layer_cka", value, "ratio", "higher", group=block)


def layer_outputs(model: nn.Module, split: Split, device: torch.device) -> dict[str, Tensor]:
    """Gram matrix (n, n), float64, of the output of each block and of the head, over the samples of `split`."""
    previous_device = next((p.device for p in model.parameters()), device)
    model.to(device)
    grams: dict[str, Tensor] = {}
    x = split.inputs(device)
    parts = anatomy(model, x[:2])

    def record(name: str) -> RemovableHandle:
        def hook(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor):
                rows = output.detach().flatten(1)
                grams[name] = (rows @ rows.T).double().cpu()

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [record(name) for name in (*parts.blocks, parts.head)]
    try:
        with evaluation_mode(model), torch.inference_mode():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
        model.to(previous_device)
    return grams


def _norms(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
