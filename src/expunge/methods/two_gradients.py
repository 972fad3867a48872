"""Two gradients per step, of the retained and of the forget loss, and published rules that combine them into one.

Notation   g_r gradient of CE over a batch of R; g_f gradient of the forget loss over a batch of F, all weights in one
           vector; u(v) = v / |v|;  c = cosine of the angle between g_r and g_f;  step: w <- w - lr d
Forget loss  `relabel`: CE to fixed random wrong labels;  `ascend`: -CE to the true ones;  `entropy`: minus the entropy
           of the answer, label-free. The rules below say which one they were published with

PCGrad     Yu et al., NeurIPS 2020, arXiv:2001.06782.  If c < 0, each loses its part along the other:
               d = g_r - min(0, g_r.g_f) g_f / |g_f|^2  +  weight (g_f - min(0, g_r.g_f) g_r / |g_r|^2)
MUNBa      Wu, Harandi, ICCV 2025, arXiv:2411.15537; relabel.  Nash bargaining, a: G a = 1 / a with G the Gram matrix:
               d = a_r g_r + a_f g_f,   a_r = 1 / (|g_r| sqrt(1 + c)),  a_f = 1 / (|g_f| sqrt(1 + c)),  |d| clipped to 1
           Published: a_r^2 = (g1 g3 - g2 sqrt(g1 g3)) / (g1^2 g3 - g1 g2^2), a_f = (1 - g1 a_r^2) / (g2 a_r)
           with g1 = |g_r|^2, g2 = g_r.g_f, g3 = |g_f|^2, is the same number, and 0 / 0 where the two are orthogonal.
           |d| is sqrt 2 before it is clipped: every step goes along the bisector and has length lr
CUP        arXiv:2510.19226; ascend.  r = u(g_r - proj on g_f), f = u(g_f - proj on g_r), theta the angle of r and f:
               d = |(g_r + g_f) / 2| (sin(gamma theta) u(g_f) + cos(gamma theta) r)    gamma: intensity of forgetting
HAMU       ICML 2026, arXiv:2606.02119.  With a the gradient of CE over F (-g_f of `ascend`), k = cosine of g_r and a:
               d = u(g_r)                                                if k <= -q: descent on R forgets enough
               d = sqrt(1 - q^2) u(g_r - proj on a) - q u(a)             else; it raises CE over F by q lr |a|
           and no step of that length forgets q without raising CE over R once k > sqrt(1 - q^2): after `patience` such
           steps in a row the run stops, without an oracle. k is kept in the result as a reading of difficulty
AGRMO      CVPR 2026; entropy.  g_f weighs sample i by v_i, learnt: v_i <- v_i exp(-eta (H_i - mean H)), so that what is
           answered confidently counts more. Unit gradients; where c < 0 each loses its part along the other; both are
           averaged, m <- 0.9 m + 0.1 g; then the mixture of m_r and m_f that has the same cosine to both:
               d = lambda m_r + (1 - lambda) m_f,   lambda = |m_f| / (|m_r| + |m_f|)
OrthoGrad  arXiv:2503.02312; ascend.  G the gradients of the single samples of a retained batch, Q an orthonormal basis:
               d = alpha mean(G) + (1 - alpha) (g_f - Q Q^T g_f)
           stops once the forget set is answered like held-out samples

Sources    PCGrad, MUNBa and CUP by equations of the papers' code; HAMU by its code's rule; AGRMO and OrthoGrad by
           second-hand notes: no figure of theirs is claimed
Cost       epochs x passes over R, each step with a batch of F beside it; OrthoGrad passes retained samples one by one
Limits     directions of noisy batches: small batches make every pair of gradients nearly orthogonal. `ascend` without
           the guard or a clip is as unbounded as NegGrad. Rules whose step has a fixed length (MUNBa, HAMU) do not
           come to rest by themselves: passes and rate decide how far they go
Deviates   HAMU: gradients are brought to norm 1 (the code clips them to 1, with an absolute demand Q < lr, which no
           step can meet on a trained model whose gradients are small; with norm 1 both agree, q = Q / lr); all weights
           are one vector (the code's `full_grad`; by default it solves tensor by tensor). AGRMO: how the weights of the
           samples are learnt, lambda in closed form, and classes of R are not reweighted. CUP: where the gradients are
           parallel d is their mean
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.needs import Needs
from expunge.core.options import Field, options
from expunge.core.run import Run
from expunge.core.seeds import derive
from expunge.data.split import Batch, PerSample
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, forward, paired_steps
from expunge.methods.problem import Problem
from expunge.methods.random_label import wrong_labels
from expunge.methods.scaling import Sizes
from expunge.methods.steps import endless
from expunge.models.modes import frozen_batchnorm, training_mode
from expunge.training.inference import error_rate, predict
from expunge.training.recipe import clip_gradients, make_optimizer

TINY = 1e-12


class Rule:
    """One run of a rule: the forget loss, the combination, and whatever the rule remembers between steps."""

    def __init__(self, targets: PerSample | None, objective: str) -> None:
        self.targets, self.objective = targets, objective
        self.stops = False

    def forget_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """A scalar that falls while the batch is forgotten; logits (B, C)."""
        if self.objective == "entropy":
            return -entropy(logits).mean()
        if self.objective == "ascend":
            return -F.cross_entropy(logits, batch.y)
        assert self.targets is not None  # noqa: S101  # made with the rule
        return F.cross_entropy(logits, self.targets[batch.index])

    def retain_gradients(self, model: nn.Module, batch: Batch, run: Run) -> tuple[Tensor, Tensor]:
        """The mean loss over the batch, and its gradient as rows (1, P), or those of its samples (B, P)."""
        with run.autocast():
            loss = F.cross_entropy(model(batch.x).float(), batch.y)
        return loss, flat_gradient(loss, model)[None]

    def combine(self, g_r: Tensor, g_f: Tensor) -> Tensor:
        """The direction d (P,) of rows g_r and g_f (P,)."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What the rule remembers from step to step, for a run that is resumed."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Go on as the rule whose `state_dict` this is."""


@options
class TwoGradients(IterativeMethod):
    """Options and loop that the rules share."""

    epochs: int = Field(5, ge=0, description="passes over the retained samples")
    lr: float = Field(0.01, gt=0, description="learning rate of SGD, constant")
    retain_batch_size: int = Field(128, ge=1, description="retained samples per step")
    forget_batch_size: int = Field(64, ge=1, description="samples to forget per step")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(0.0, ge=0, description="L2 strength inside the optimiser")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while unlearning")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the combined gradient; none: no clipping")

    def cost(self, sizes: Sizes) -> Work:
        return paired_steps(sizes.retain, sizes.forget, self.retain_batch_size, self.forget_batch_size, self.epochs)

    @abstractmethod
    def rule(self, problem: Problem, run: Run) -> Rule:
        """A rule of its own for this run."""

    def after_epoch(self, student: nn.Module, problem: Problem, run: Run) -> bool:
        """Whether the goal is reached."""
        return False

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        rule = self.rule(problem, run)
        optimizer = make_optimizer(
            "sgd", student.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        forget_batches = endless(problem.forget, self.forget_batch_size, run, "forget")
        for epoch in run.epochs(student, self.epochs, state=[optimizer, forget_batches, rule]):
            training_mode(student, self.batchnorm)
            seed = run.seed_for("retain", "shuffle", epoch.number)
            for retained in problem.retain.batches(self.retain_batch_size, shuffle=True, seed=seed, device=run.device):
                forgotten = next(forget_batches)
                keep, rows = rule.retain_gradients(student, retained, run)
                with run.autocast():
                    logits = student(forgotten.x).float()
                lose = rule.forget_loss(logits, forgotten)
                set_gradient(student, rule.combine(rows, flat_gradient(lose, student)))
                clip_gradients(student, self.clip)
                optimizer.step()
                epoch.add("retain_loss", keep, len(retained))
                epoch.add("forget_loss", lose, len(forgotten))
                if rule.stops:
                    break
            if rule.stops or self.after_epoch(student, problem, run):
                run.status = "reached"
                epoch.stop = True
        return student

    def _wrong(self, problem: Problem, run: Run) -> PerSample:
        generator = torch.Generator().manual_seed(derive(run.seed, "wrong labels"))
        return PerSample(problem.forget, wrong_labels(problem.forget.y, problem.num_classes, generator).to(run.device))


Objective = Literal["relabel", "ascend", "entropy"]


@options
class FreeObjective(TwoGradients):
    """A rule that was published for two losses of any kind."""

    objective: Objective = Field("relabel", description="the forget loss, see above")

    @property
    def needs(self) -> Needs:
        free = self.objective == "entropy" and not self.rewind
        return replace(super().needs, forget="inputs") if free else super().needs

    def _targets(self, problem: Problem, run: Run) -> PerSample | None:
        return self._wrong(problem, run) if self.objective == "relabel" else None


class _PCGrad(Rule):
    weight = 1.0

    def combine(self, g_r: Tensor, g_f: Tensor) -> Tensor:
        return pcgrad(g_r[0], g_f, self.weight)


@method("pcgrad")
class PCGrad(FreeObjective):
    """Gradient surgery: of two gradients in conflict each loses the part that works against the other."""

    weight: float = Field(1.0, ge=0, description="of the forget gradient after the projection")

    def rule(self, problem: Problem, run: Run) -> Rule:
        rule = _PCGrad(self._targets(problem, run), self.objective)
        rule.weight = self.weight
        return rule


class _MUNBa(Rule):
    def combine(self, g_r: Tensor, g_f: Tensor) -> Tensor:
        return munba(g_r[0], g_f)


@method("munba")
class MUNBa(FreeObjective):
    """Nash bargaining between retaining and forgetting; each step goes along the bisector of the two gradients."""

    preset_source: ClassVar[str] = "the rule with random labels and a clip of 1, as in the authors' code"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"authors": {"objective": "relabel", "clip": 1.0}}

    def rule(self, problem: Problem, run: Run) -> Rule:
        return _MUNBa(self._targets(problem, run), self.objective)


class _CUP(Rule):
    gamma = 0.5

    def combine(self, g_r: Tensor, g_f: Tensor) -> Tensor:
        return cup(g_r[0], g_f, self.gamma)


@method("cup")
class CUP(FreeObjective):
    """Controllable unlearning: one dial turns the step from retaining (0) to forgetting (1) in the gradients' plane."""

    objective: Objective = Field("ascend", description="the forget loss, see above")
    gamma: float = Field(0.5, gt=0, lt=1, description="intensity: share of the angle from retaining to forgetting")

    def rule(self, problem: Problem, run: Run) -> Rule:
        rule = _CUP(self._targets(problem, run), self.objective)
        rule.gamma = self.gamma
        return rule


class _HAMU(Rule):
    demand, patience = 0.5, 3
    _in_a_row = 0

    def __init__(self, run: Run) -> None:
        super().__init__(None, "ascend")
        self._run, self._angles = run, 0.0
        self._steps = 0

    def combine(self, g_r: Tensor, g_f: Tensor) -> Tensor:
        k = float(cosine(g_r[0], -g_f))
        self._steps += 1
        self._angles += k
        self._run.details["cosine"] = {"mean": self._angles / self._steps, "last": k, "steps": self._steps}
        self._in_a_row = self._in_a_row + 1 if k > math.sqrt(1 - self.demand**2) else 0
        self.stops = self._in_a_row >= self.patience
        return hamu(g_r[0], -g_f, self.demand)

    def state_dict(self) -> dict[str, Any]:
        return {"angles": self._angles, "steps": self._steps, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        self._angles, self._steps, self._in_a_row = (state_dict[name] for name in ("angles", "steps", "in_a_row"))


@method("hamu")
class HAMU(TwoGradients):
    """A demanded rise of the forget loss per step at the least cost to the rest; stops when none is without cost."""

    demand: float = Field(0.5, gt=0, lt=1, description="q: rise of the forget loss, share of the most that a step can")
    patience: int = Field(3, ge=1, description="steps in a row without a harmless way to forget after which it stops")

    def cost(self, sizes: Sizes) -> Work:
        return super().cost(sizes).at_most()

    def rule(self, problem: Problem, run: Run) -> Rule:
        rule = _HAMU(run)
        rule.demand, rule.patience = self.demand, self.patience
        return rule


class _AGRMO(Rule):
    decay, rate = 0.9, 0.1

    def __init__(self, weights: PerSample) -> None:
        super().__init__(None, "entropy")
        self._weights = weights
        self._means: list[Tensor] = []

    def forget_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        h = entropy(logits)
        v = self._weights[batch.index]
        loss = -(v * h).sum() / v.sum()
        grown = v * torch.exp(-self.rate * (h.detach() - h.detach().mean()))
        self._weights.values[batch.index.to(v.device)] = grown.clamp(1e-3, 1e3)
        return loss

    def combine(self, g_r: Tensor, g_f: Tensor) -> Tensor:
        pair = without_conflict(unit(g_r[0]), unit(g_f))
        if not self._means:
            self._means = [torch.zeros_like(g) for g in pair]
        self._means = [self.decay * m + (1 - self.decay) * g for m, g in zip(self._means, pair, strict=True)]
        return same_cosine(*self._means)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._weights.values, "means": self._means}

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        self._weights.values.copy_(state_dict["weights"])
        self._means = [mean.to(self._weights.values.device) for mean in state_dict["means"]]


@method("agrmo")
class AGRMO(TwoGradients):
    """Entropy of the answers on the forget set, with learned weights per sample; label-free on it (second-hand)."""

    decay: float = Field(0.9, ge=0, lt=1, description="of the averages of both gradients")
    rate: float = Field(0.1, ge=0, description="eta: how fast weights of the samples are learnt; 0: all equal")

    def rule(self, problem: Problem, run: Run) -> Rule:
        rule = _AGRMO(PerSample(problem.forget, torch.ones(len(problem.forget), device=run.device)))
        rule.decay, rule.rate = self.decay, self.rate
        return rule


class _OrthoGrad(Rule):
    alpha = 0.5

    def retain_gradients(self, model: nn.Module, batch: Batch, run: Run) -> tuple[Tensor, Tensor]:
        rows, losses = [], []
        with frozen_batchnorm(model):
            for x, y in zip(batch.x.split(1), batch.y.split(1), strict=True):
                with run.autocast():
                    loss = F.cross_entropy(model(x).float(), y)
                losses.append(loss.detach())
                rows.append(flat_gradient(loss, model))
        return torch.stack(losses).mean(), torch.stack(rows)

    def combine(self, g_r: Tensor, g_f: Tensor) -> Tensor:
        return orthograd(g_r, g_f, self.alpha)


@method("orthograd")
class OrthoGrad(TwoGradients):
    """Ascent orthogonal to the gradient of every single retained sample of the batch. By a second-hand note.

    Few retained samples suffice for a step, so it is meant for a small or proxy retain set.
    """

    alpha: float = Field(0.5, ge=0, le=1, description="weight of descent on the retained samples")
    until: Literal["held-out", "epochs"] = Field(
        "held-out", description="stop once the forget set is answered like held-out samples, or after all epochs"
    )
    retain_batch_size: int = Field(16, ge=1, description="retained samples per step, each with a gradient of its own")
    batchnorm: Literal["train", "frozen"] = Field("frozen", description="BatchNorm in the forget passes")

    @property
    def needs(self) -> Needs:
        return super().needs | Needs(validation="labels") if self.until == "held-out" else super().needs

    def cost(self, sizes: Sizes) -> Work:
        work = super().cost(sizes)
        if self.until == "epochs":
            return work
        # Held-out samples are counted like retained ones: their number is not known.
        return (work + forward(sizes.forget + sizes.retain, times=self.epochs)).at_most()

    def rule(self, problem: Problem, run: Run) -> Rule:
        rule = _OrthoGrad(None, "ascend")
        rule.alpha = self.alpha
        return rule

    def after_epoch(self, student: nn.Module, problem: Problem, run: Run) -> bool:
        if self.until == "epochs":
            return False
        on_forget, unseen = (
            error_rate(predict(student, split, run.device), split.y) for split in (problem.forget, problem.validation)
        )
        return on_forget >= unseen


def entropy(logits: Tensor) -> Tensor:
    """Entropy (B,) in nats of the softmax of logits (B, C)."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def unit(v: Tensor) -> Tensor:
    """v (d,) scaled to length 1; 0 stays 0."""
    return v / v.norm().clamp(min=TINY)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between two vectors (d,); 0 if one of them is 0."""
    return unit(a) @ unit(b)


def beside(v: Tensor, along: Tensor) -> Tensor:
    """The component of v (d,) orthogonal to `along` (d,)."""
    direction = unit(along)
    return v - (v @ direction) * direction


def without_conflict(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both as they are if they agree (a.b >= 0), else each without its part along the other.

    >>> [v.round(decimals=3).tolist() for v in without_conflict(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0]))]
    [[0.5, 0.5], [0.0, 1.0]]
    """
    return (a, b) if bool(a @ b >= 0) else (beside(a, b), beside(b, a))


def pcgrad(g_r: Tensor, g_f: Tensor, weight: float = 1.0) -> Tensor:
    """The sum of both, the second weighted, after `without_conflict`."""
    g_r, g_f = without_conflict(g_r, g_f)
    return g_r + weight * g_f


def munba(g_r: Tensor, g_f: Tensor) -> Tensor:
    """a_r g_r + a_f g_f with G a = 1 / a; where that has no solution (a gradient is 0, or they are opposite) 1 and 0.1.

    >>> munba(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])).tolist()
    [1.0, 1.0]
    """
    c = cosine(g_r, g_f)
    if bool(1 + c < 1e-6) or bool(g_r.norm() < TINY) or bool(g_f.norm() < TINY):
        return g_r + 0.1 * g_f
    return (unit(g_r) + unit(g_f)) / (1 + c).sqrt()


def cup(g_r: Tensor, g_f: Tensor, gamma: float) -> Tensor:
    """The direction of CUP at the intensity gamma in (0, 1)."""
    r, f = beside(g_r, g_f), beside(g_f, g_r)
    mean = (g_r + g_f) / 2
    if bool(r.norm() <= 1e-6 * g_r.norm()) or bool(f.norm() <= 1e-6 * g_f.norm()):
        return mean
    theta = torch.arccos(cosine(r, f).clamp(-1, 1))
    return mean.norm() * (torch.sin(gamma * theta) * unit(g_f) + torch.cos(gamma * theta) * unit(r))


def hamu(g_r: Tensor, ascent: Tensor, demand: float) -> Tensor:
    """The unit direction d with ascent.d <= -demand |ascent| that lowers the retained loss most; see HAMU above.

    >>> hamu(torch.tensor([0.0, 5.0]), torch.tensor([3.0, 0.0]), 0.6).tolist()
    [-0.6000000238418579, 0.800000011920929]
    """
    if bool(cosine(g_r, ascent) <= -demand) or bool(ascent.norm() < TINY):
        return unit(g_r)
    across = beside(unit(g_r), ascent)
    return math.sqrt(1 - demand**2) * unit(across) - demand * unit(ascent)


def same_cosine(a: Tensor, b: Tensor) -> Tensor:
    """lambda a + (1 - lambda) b, lambda in [0, 1], whose cosines to a and to b are equal.

    >>> same_cosine(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0])).tolist()
    [0.75, 0.75]
    """
    total = (a.norm() + b.norm()).clamp(min=TINY)
    return (b.norm() * a + a.norm() * b) / total


def orthograd(rows: Tensor, g_f: Tensor, alpha: float) -> Tensor:
    """alpha mean of the rows (n, P) + (1 - alpha) times the part of g_f (P,) that is orthogonal to all of them."""
    basis, size = torch.linalg.qr(rows.T.float(), mode="reduced")
    diagonal = size.diagonal().abs()
    basis = basis[:, diagonal > 1e-6 * diagonal.max().clamp(min=TINY)]  # rows that repeat others span nothing new
    return alpha * rows.mean(0) + (1 - alpha) * (g_f - basis @ (basis.T @ g_f))


def flat_gradient(loss: Tensor, model: nn.Module) -> Tensor:
    """The gradient of a scalar in all trainable weights, as one vector (P,); 0 for weights that it does not reach."""
    parameters = trainable(model)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, gradients, strict=True)]
    )


def set_gradient(model: nn.Module, flat: Tensor) -> None:
    """Put the parts of a vector (P,) where an optimiser looks for gradients."""
    parameters = trainable(model)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p).to(p.dtype)


def trainable(model: nn.Module) -> Sequence[nn.Parameter]:
    """The parameters that require gradients."""
    return [p for p in model.parameters() if p.requires_grad]
