"""RUM: split the forget set by how memorised its samples are, and forget each part by a method of its own.

Paper      Zhao, Kurmanji, Barbulescu, Triantafillou, Triantafillou: What makes unlearning hard and what to do about
           it, NeurIPS 2024, arXiv:2406.01257; the proxy: Zhao, Triantafillou, 2024, arXiv:2410.16516 (second-hand: no
           figure is claimed)

    score     "holdout": (KL(p_o || p_h) + KL(p_h || p_o)) / 2 of each sample, p_h after `proxy_epochs` passes of
              fine-tuning on held-out samples: what was memorised moves. "confidence": 1 - p_o(y), without training
    parts     terciles of the score: low, medium, high
    then, from low to high, the method of the part, on the model that the part before left; `original` leaves it alone

Cost       proxy_epochs passes over the held-out samples, one or two forward passes over F, and that of each method
Limits     the parts of a small forget set are tiny, and most methods are weak on few samples. A later method can teach
           an earlier part back; the retained samples are the same for all three. There is no guard on utility
Deviates   default methods are ours. Samples of parts that come later are not added to the retained ones
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.options import Field
from expunge.core.run import Run
from expunge.methods.base import Method, make_method, method
from expunge.methods.cost import Work, forward
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.models.modes import training_mode
from expunge.training.inference import predict
from expunge.training.loop import step
from expunge.training.recipe import make_optimizer

PARTS = ("low", "medium", "high")


@method("rum")
class RUM(Method):
    """A wrapper: three methods by name or preset, each with its defaults or the settings of its preset."""

    low: str = Field("original", description="method or preset for the samples that are memorised least")
    medium: str = Field("salun", description="method or preset for those between")
    high: str = Field("neggrad+", description="method or preset for the samples that are memorised most")
    score: Literal["holdout", "confidence"] = Field("holdout", description="how memorisation is estimated")
    proxy_epochs: int = Field(3, ge=1, description="holdout: passes over the held-out samples")
    proxy_lr: float = Field(0.01, gt=0, description="holdout: learning rate of SGD with momentum 0.9")
    batch_size: int = Field(64, ge=1, description="holdout: samples per step")

    def parts(self) -> list[Method]:
        """The three methods, from low to high.

        Raises:
            UsageError: If one is this wrapper, makes a model of another kind, or wants other trained weights.
        """
        methods = [make_method(getattr(self, name)) for name in PARTS]
        for name, part_method in zip(PARTS, methods, strict=True):
            odd = (
                not part_method.same_tensors
                or not part_method.needs.weights
                or part_method.needs.labelled
                or part_method.rewinds
            )
            if odd or part_method.card.name == "rum":
                raise UsageError(
                    f"rum: `{name}` cannot be {part_method.card.name}; name a method that changes a given model."
                )
        return methods

    @property
    def needs(self) -> Needs:
        needs = Needs(forget="labels")
        for part_method in self.parts():
            needs = needs | part_method.needs
        return needs | Needs(validation="labels") if self.score == "holdout" else needs

    def cost(self, sizes: Sizes) -> Work | None:
        third = replace(sizes, forget=-(-sizes.forget // 3))
        # Held-out samples are counted like retained ones: their number is not known.
        total = forward(2 * sizes.forget)
        if self.score == "holdout":
            total += Work(
                step_samples=self.proxy_epochs * sizes.retain,
                step_batches=self.proxy_epochs * -(-sizes.retain // self.batch_size),
            )
        for part_method in self.parts():
            work = part_method.fitted(third).cost(third)
            if work is None:
                return None
            total += work
        return total.at_most()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        with run.stage("memorisation"):
            scores = self.scores(problem, run)
        order = scores.argsort(stable=True)
        student = problem.student()
        run.details["parts"] = {}
        run.resume = None  # the parts run one after the other, and a state is that of one of them
        recipe = problem.recipe if problem.has_recipe else None
        for name, part_method, chosen in zip(PARTS, self.parts(), terciles(order), strict=True):
            if not len(chosen):
                continue
            forget = problem.forget.take(problem.forget.index[chosen.sort().values])
            retain = len(problem.retain) if part_method.needs.retain != "none" else 0
            fitted = part_method.fitted(Sizes(len(forget), retain, recipe, problem.num_classes))
            run.details["parts"][name] = {"method": part_method.card.name, "samples": len(forget)}
            teacher = copy.deepcopy(student).eval().requires_grad_(False)
            splits = {**problem._splits, "forget": forget}
            student = fitted.unlearn(
                replace(problem, model=teacher, forgotten=len(forget), needs=fitted.needs, _splits=splits), run
            )
        return student

    def scores(self, problem: Problem, run: Run) -> Tensor:
        """How memorised each sample to forget is estimated to be (len(F),), on the CPU; larger: more."""
        before = predict(problem.model, problem.forget, run.device).log_softmax(1)
        if self.score == "confidence":
            return 1 - before.exp().gather(1, problem.forget.y.to(before.device)[:, None]).flatten().cpu()
        twin = problem.student()
        optimizer = make_optimizer("sgd", twin.parameters(), lr=self.proxy_lr, momentum=0.9)
        for epoch in range(1, self.proxy_epochs + 1):
            training_mode(twin)
            seed = run.seed_for("held-out", "shuffle", epoch)
            for batch in problem.validation.batches(self.batch_size, shuffle=True, seed=seed, device=run.device):
                with run.autocast():
                    loss = F.cross_entropy(twin(batch.x).float(), batch.y)
                step(loss, twin, optimizer)
            run.report(f"{run.label}: memorisation", epoch, self.proxy_epochs)
        return symmetric_divergence(before, predict(twin, problem.forget, run.device).log_softmax(1)).cpu()


def symmetric_divergence(a: Tensor, b: Tensor) -> Tensor:
    """(KL(p || q) + KL(q || p)) / 2 per row (n,), >= 0, of log-probabilities a and b (n, C).

    >>> symmetric_divergence(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log())
    tensor([0.1373])
    """
    return 0.5 * ((a.exp() - b.exp()) * (a - b)).sum(1)


def terciles(order: Tensor) -> list[Tensor]:
    """Three parts (of nearly equal length, the first ones longer) of an order (n,).

    >>> [len(part) for part in terciles(torch.arange(5))]
    [2, 2, 1]
    """
    return list(torch.tensor_split(order, 3))
