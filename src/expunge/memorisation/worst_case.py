"""The worst-case forget set: the samples whose influence is hardest to erase, by bilevel optimisation.

Paper      Fan et al., "Challenging Forgets: Unveiling the Worst-Case Forget Sets in Machine Unlearning", ECCV 2024,
           arXiv:2403.07362
Reference  OPTML-Group/Unlearn-WorstCase @ 2d52c84, data-wise/main_selmu.py, unlearn/impl.py (`optimize_select`) and
           unlearn/FT.py (`w_FT_iter`)
Notation   w: (n,) weights in [0, 1] with sum m, 1 if a sample is forgotten; l_i: cross-entropy of sample i

    lower  theta(w): from the original, sign descent on sum_i (1 - w_i) l_i: fine-tuning on the retained samples
    upper  minimise sum_i w_i l_i(theta(w)) over {0 <= w <= 1, sum w = m}

A sample whose loss remains low after unlearning is hard to erase, and gains weight. With sign steps the derivative of
theta with respect to w vanishes, so the upper gradient is the loss itself.
Deviates   the upper steps are those of Frank and Wolfe, w <- w + 2/(t+2) (s - w) with s = 1 on the m samples of lowest
           loss, t = 0, 1, ..: same gradient and feasible set, but no learning rate, which would depend on the scale of
           the losses. The reference projects gradient steps with a rate per experiment, and can penalise |w|^2
Limits     it is the worst set for fine-tuning on the retained data from one original, not for every method
Cost       `rounds` times `epochs` of fine-tuning on all the data
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.options import Field, build, options, to_dict
from expunge.core.run import Run
from expunge.core.seeds import global_generators
from expunge.data.augment import make_augment
from expunge.data.scores import SampleScores
from expunge.data.split import PerSample, Split
from expunge.models.layout import fast_layout
from expunge.models.modes import lone_samples, training_mode
from expunge.training.inference import predict
from expunge.training.recipe import Recipe

WHAT = "worst case"


@options
class WorstCaseSearch:
    """Options of the search."""

    rounds: int = Field(10, ge=1, description="upper steps, each with an unlearning of its own")
    epochs: int = Field(1, ge=1, description="passes over the data of each unlearning (lower steps)")
    lr: float = Field(1e-4, gt=0, description="lower rate, by which every weight changes in each step")


def upper_step(weight: Tensor, loss: Tensor, count: int, number: int) -> Tensor:
    """Frank-Wolfe step `number` = 0, 1, .. on the sample weights (n,), whose sum remains `count`; losses (n,).

    >>> upper_step(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([3.0, 2.0, 1.0]), 1, 2)
    tensor([0.2500, 0.2500, 0.5000])
    """
    corner = torch.zeros_like(weight)
    corner[loss.argsort(stable=True)[:count]] = 1
    return weight + 2 / (number + 2) * (corner - weight)


def worst_case(
    original: nn.Module, data: Split, recipe: Recipe, run: Run, *, count: int, search: WorstCaseSearch | None = None
) -> SampleScores:
    """Search the worst-case forget set of `count` samples.

    Args:
        original: the trained model; it is copied.
        data: its training samples.
        recipe: batch size, augmentation and BatchNorm mode of the unlearning.
        run: device, progress and seeds.
        count: size of the set.
        search: options of the search.

    Returns:
        Scores in [0, 1] by which the set is selected, in the order of the weight w and, for equal weights, of the lower
        loss; with the columns weight and loss, the cross-entropy after the last unlearning.

    Raises:
        UsageError: unless 0 < count < len(data).
    """
    chosen = search or build(WorstCaseSearch, {})
    if not 0 < count < len(data):
        raise UsageError(f"a worst-case set takes some, not all, of the {len(data)} samples, got {count}.")
    weight = torch.full((len(data),), count / len(data), dtype=torch.float64)
    loss = torch.zeros(len(data), dtype=torch.float64)
    for number in range(chosen.rounds):
        with global_generators(run.device):
            unlearned = _unlearn(copy.deepcopy(original), data, 1 - weight, recipe, run, chosen, number)
        logits = predict(unlearned, data, run.device).cpu()
        loss = F.cross_entropy(logits.double(), data.y, reduction="none")  # double precision: many are nearly 0
        weight = upper_step(weight, loss, count, number)
        forgotten = float((weight * loss).sum() / count)
        run.report(f"{WHAT}: rounds", number + 1, chosen.rounds, {"loss of the set": forgotten})
    columns = {"score": rank(weight, loss), "weight": weight.numpy(), "loss": loss.numpy()}
    return SampleScores.of(data, "worst-case", columns, facts={"by": "worst-case", "count": count, **to_dict(chosen)})


def rank(weight: Tensor, loss: Tensor) -> np.ndarray:
    """Scores (n,) in (0, 1], float64, in equal steps by decreasing weight (n,) and, for equal weights, rising loss."""
    order = np.lexsort((loss.numpy(), -weight.numpy().round(9)))
    score = np.empty(len(order))
    score[order] = 1 - np.arange(len(order)) / len(order)
    return score


def _unlearn(
    model: nn.Module, data: Split, retain_weight: Tensor, recipe: Recipe, run: Run, search: WorstCaseSearch, number: int
) -> nn.Module:
    """Sign descent on the loss weighted by `retain_weight` (n,), in place."""
    model.to(run.device)
    weights = PerSample(data, retain_weight.float().to(run.device))
    augment = make_augment(recipe.augment)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with fast_layout(model, data.input_shape), lone_samples(model, allowed=recipe.batch_size > 1):
        for epoch in range(1, search.epochs + 1):
            torch.manual_seed(run.seed_for(WHAT, "modules", number, epoch))
            training_mode(model, recipe.batchnorm)
            order = run.seed_for(WHAT, "shuffle", number, epoch)
            for batch in data.batches(recipe.batch_size, shuffle=True, seed=order, augment=augment, device=run.device):
                with run.autocast():
                    losses = F.cross_entropy(model(batch.x).float(), batch.y, reduction="none")
                gradients = torch.autograd.grad((weights[batch.index] * losses).sum(), parameters, allow_unused=True)
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        if gradient is not None:
                            parameter.sub_(gradient.sign(), alpha=search.lr)
    return model
