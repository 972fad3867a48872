"""Selective synaptic dampening: shrink the weights that are far more important to the forget set than to all data.

Paper      SSD    Foster, Schoepf, Brintrup, AAAI 2024, arXiv:2308.07707
           LFSSD  Foster et al., arXiv:2402.19308 (label-free);    ASSD  Schoepf, Foster, Brintrup, arXiv:2402.10098
           Potion Schoepf, Foster, Brintrup (the search for the share of weights);  per sample: arXiv:2510.26714
Reference  if-loops/selective-synaptic-dampening, for SSD; the others from second-hand notes: no figure of their papers
           is claimed
Notation   I_S mean square (LFSSD, Potion: mean size) of the gradients over the samples S, `numerics.gradient_moments`;
           D all training data, F the forget set, s = |F| / |D|

    selected   I_F[j] > alpha I_D[j]                                                                     SSD, LFSSD
               I_F[j] / I_D[j] above its percentile p,   p = 100 - ln(1 + 100 s)                               ASSD
               the same with s <- 1.1 s, from s = (|F|/|D|) / 25 on, until acc(F) <= rho acc_0(F)            Potion
    w[j] <-    w[j] min(lam I_D[j] / I_F[j], 1)                                        where selected, else as it was

    loss behind the gradients: CE (SSD, ASSD), ||f(x)||_2^2 (LFSSD), ||f(x)||_2 (Potion)

I_D can be computed once and stored with the trained model (`expunge.train(importance="ssd")`, `expunge train
--importance ssd`); with `importance=stored` the method then reads the forget set alone.

No training, no second model. Potion's signal is the forget set alone: no retrained model is looked at.
Cost       one forward and backward pass over D and over F; Potion one forward pass over F per round of its search
Limits     per sample I_F / I_D can never exceed |D| / |F|, so alpha = 10 selects nothing if F is a tenth of D or more;
           over batches of one class it can. On very small forget sets SSD is known to ruin the model (SUPREME).
           BatchNorm statistics do not change. Potion is meant for a forget set that the model should no longer
           recognise (a class, poisoned data); for a random one its target is below the accuracy of a retrained model
Deviates   batches that mean D hold R and F in their shares, as shuffled batches of D would on average
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.options import Field, options
from expunge.core.run import Run
from expunge.data.split import Split
from expunge.methods.base import Method, method
from expunge.methods.cost import Work, forward, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.numerics.gradient_moments import Importance, Loss, Moment, Unit, gradient_moments
from expunge.training.inference import error_rate, predict

Weights = dict[str, Tensor]  # by parameter name, in the parameter's shape


@options
class Dampening(Method):
    """Importances of the forget set and of all data, and dampening by their ratio."""

    loss: ClassVar[Loss] = "cross-entropy"
    moment: ClassVar[Moment] = "square"

    lam: float = Field(1.0, ge=0, description="dampening constant: selected weights shrink to lam I_D / I_F")
    unit: Unit = Field("batch", description="gradients per batch, as published, or per sample (SSD-Det)")
    batch_size: int = Field(64, ge=1, description="samples per batch whose gradient is one term of the importance")
    importance: Literal["computed", "stored"] = Field(
        "computed", description="I_D computed from the data, or as stored with the trained model"
    )

    def cost(self, sizes: Sizes) -> Work:
        work = steps(sizes.forget, self.batch_size)
        if self.importance == "computed":
            work += steps(sizes.retain + sizes.forget, self.batch_size)
        return work

    @property
    def needs(self) -> Needs:
        needs: Needs = self.card.needs
        return needs if self.importance == "computed" else replace(needs, retain="none", importance=True)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `gradient_moments` that define the importances."""
        return {"loss": self.loss, "unit": self.unit, "moment": self.moment, "batch_size": self.batch_size}

    def measure(self, model: nn.Module, data: Split, run: Run, weights: str) -> Importance:
        """Importance I_D of the training data of `model`, to be stored with it.

        Args:
            model: the trained model.
            data: all its training data.
            run: device, seeds and progress.
            weights: hash of its weights, by which the importance is matched to the model.
        """
        values = gradient_moments(model, [data], run, purpose="importance of all", **self.settings)
        cpu = {name: value.cpu() for name, value in values.items()}
        return Importance(**self.settings, samples=len(data), weights=weights, values=cpu)

    def importances(
        self, student: nn.Module, problem: Problem, run: Run
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """I_D and I_F by parameter name, float64."""
        with run.stage("importance of the forget set"):
            i_forget = gradient_moments(student, [problem.forget], run, purpose="forget importance", **self.settings)
        if self.importance == "stored":
            return self._kept(problem, run), i_forget
        with run.stage("importance of all data"):
            splits = [problem.retain, problem.forget]
            i_all = gradient_moments(student, splits, run, purpose="importance of all", **self.settings)
        return i_all, i_forget

    def _kept(self, problem: Problem, run: Run) -> Weights:
        """The stored I_D; raises `UsageError` if it was computed with other settings."""
        stored, expected = problem.importance.facts(), self.settings
        if self.unit == "sample":
            expected.pop("batch_size")  # without effect there
        for name, value in expected.items():
            if stored[name] != value:
                raise UsageError(
                    f"{self.card.name}: the importance stored with the model has {name} = {stored[name]!r}, "
                    f"this method asks for {value!r}; train with importance={self.card.name!r}, or choose "
                    "importance=computed."
                )
        return {name: value.to(run.device) for name, value in problem.importance.values.items()}

    def total(self, problem: Problem) -> int:
        """Number of training samples |D|."""
        if self.importance == "stored":
            return problem.importance.samples
        return len(problem.retain) + len(problem.forget)

    def dampen_model(
        self, student: nn.Module, i_all: Mapping[str, Tensor], i_forget: Mapping[str, Tensor], alpha: float, run: Run
    ) -> None:
        """Dampen the selected weights in place, and log how many there are."""
        selected = 0
        with torch.no_grad():
            for name, p in student.named_parameters():
                selected += int((i_forget[name] > alpha * i_all[name]).sum())
                p.copy_(dampened(p, i_all[name], i_forget[name], alpha=alpha, lam=self.lam))
        run.details["dampened_weights"] = selected
        run.details["alpha"] = alpha
        if not selected:
            run.notes.append("no weight was selected, so the model did not change; lower the threshold.")


def dampened(weight: Tensor, i_all: Tensor, i_forget: Tensor, *, alpha: float, lam: float) -> Tensor:
    """The weights after dampening; all shapes equal, importances >= 0.

    >>> ones = torch.ones(3)
    >>> dampened(torch.tensor([2.0, 2.0, -2.0]), ones, torch.tensor([5.0, 20.0, 40.0]), alpha=10.0, lam=1.0)
    tensor([ 2.0000,  0.1000, -0.0500])
    """
    factor = (lam * i_all / i_forget.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1)
    return torch.where(i_forget > alpha * i_all, (weight.double() * factor).to(weight), weight)


def sorted_ratios(i_all: Mapping[str, Tensor], i_forget: Mapping[str, Tensor]) -> Tensor:
    """I_F / I_D of all weights, ascending; 0 where I_F = 0."""
    tiny = torch.finfo(torch.float64).tiny
    return torch.cat([(i_forget[name] / i_all[name].clamp(min=tiny)).flatten() for name in i_all]).sort().values


def at_percentile(ratios: Tensor, percentile: float) -> float:
    """The smallest value that `percentile` per cent of the sorted `ratios` do not exceed."""
    position = math.ceil(percentile / 100 * len(ratios))
    return float(ratios[min(max(position, 1), len(ratios)) - 1])


def adaptive_percentile(share: float) -> float:
    """Percentile p = 100 - ln(1 + 100 share), share = |F| / |D| in (0, 1]; ASSD, arXiv:2402.10098.

    >>> round(adaptive_percentile(0.1), 2)
    97.6
    """
    return max(100 - math.log(1 + 100 * share), 0.0)


@method("ssd")
class SSD(Dampening):
    """Dampen weights whose importance to F exceeds `alpha` times that to D; `ssd/det`: gradients per sample."""

    preset_source: ClassVar[str] = (
        "`authors`: the reference's values for ResNet-18; `det`: gradients per sample, with a threshold of ours"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "authors": {"alpha": 10.0, "lam": 1.0, "unit": "batch"},  # the reference's values for ResNet-18
        "det": {"unit": "sample", "alpha": 2.0},  # alpha is ours: 10 selects nothing from a tenth of the data on
    }

    alpha: float = Field(10.0, gt=0, description="selection threshold on I_F / I_D; larger keeps more weights")

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        i_all, i_forget = self.importances(student, problem, run)
        self.dampen_model(student, i_all, i_forget, self.alpha, run)
        return student


@method("lfssd")
class LFSSD(SSD):
    """SSD with the mean absolute gradients of ||f(x)||_2^2 as importance: no label is read."""

    loss: ClassVar[Loss] = "squared norm"
    moment: ClassVar[Moment] = "absolute"
    preset_source: ClassVar[str] = (
        "`authors`: the reference's values for ResNet-18; `det`: gradients per sample, with a threshold of ours"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"det": {"unit": "sample", "alpha": 1.5}}  # alpha is ours

    alpha: float = Field(3.0, gt=0, description="selection threshold on I_F / I_D; larger keeps more weights")


@method("assd")
class ASSD(Dampening):
    """SSD without alpha: the share of dampened weights follows from the share of the data in the forget set."""

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        i_all, i_forget = self.importances(student, problem, run)
        percentile = adaptive_percentile(len(problem.forget) / self.total(problem))
        run.details["percentile"] = percentile
        alpha = at_percentile(sorted_ratios(i_all, i_forget), percentile)
        self.dampen_model(student, i_all, i_forget, alpha, run)
        return student


@method("potion")
class Potion(Dampening):
    """Raise the share of dampened weights until the accuracy on the forget set falls below `rho` times the original."""

    loss: ClassVar[Loss] = "norm"
    moment: ClassVar[Moment] = "absolute"

    rho: float = Field(0.2, ge=0, lt=1, description="stop at this part of the original accuracy on F; value ours")
    start: float = Field(25.0, gt=0, description="the search starts at the share of F in D, divided by this")
    growth: float = Field(1.1, gt=1, description="factor on that share in each round")
    rounds: int = Field(300, ge=1, description="maximal rounds; after 300 about 28 % of the weights are dampened")

    def cost(self, sizes: Sizes) -> Work:
        looks = forward(sizes.forget, times=self.rounds + 1)
        return (super().cost(sizes) + looks).at_most()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        i_all, i_forget = self.importances(student, problem, run)
        ratios = sorted_ratios(i_all, i_forget)
        labels = problem.forget.y
        target = self.rho * (1 - error_rate(predict(problem.model, problem.forget, run.device), labels))
        share = len(problem.forget) / self.total(problem) / self.start
        start = {name: value.clone() for name, value in student.state_dict().items()}
        for number in range(1, self.rounds + 1):
            student.load_state_dict(start)
            percentile = adaptive_percentile(share)
            self.dampen_model(student, i_all, i_forget, at_percentile(ratios, percentile), run)
            accuracy = 1 - error_rate(predict(student, problem.forget, run.device), labels)
            run.details.update(rounds=number, percentile=percentile, forget_accuracy=accuracy)
            run.report("potion", number, self.rounds, {"forget accuracy": accuracy})
            if accuracy <= target:
                run.status = "reached"
                break
            share *= self.growth
        else:
            run.status = "limit"
            run.notes.append(f"after {self.rounds} rounds the accuracy on the forget set is still {accuracy:.3f}.")
        return student
