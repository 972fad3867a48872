"""Unsee: train on the retained samples, and steer each forget sample to the log-odds of comparable unseen samples.

Source     our own. Known parts: AdamW with one cycle, quantile matching, ascent that stops at the loss of held-out
           samples. Not in any paper that we know: the quantile of a single sample, from its rank under the original
Notation   z logits (B, C); phi(x, y) = z_y - log sum over c != y of exp z_c, the log-odds of label y; D_f, D_r, D_h the
           samples to forget, retained, held out; w_0 the given weights; F_r the distribution function of phi over D_r
           under w_0 (at most `PLACES` samples); Q the quantile function of phi over D_h under the present weights

    min over w:  CE(D_r) + strength s huber((phi(x_i, y_i) - q_i) / s),  i in D_f,      starting at w_0
    q_i = Q(own u_i + (1 - own) r_i),   s = standard deviation of the q_i,   huber(d) = d^2 / 2, or |d| - 1/2 beyond 1

    u_i = F_r(phi(x_i, y_i; w_0))   quantile of the sample among the retained ones: samples that were hard to fit are
                                    hard for a model that never saw them, too
    r_i                             its rank within D_f under the present weights, in (0, 1)

The penalty is two-sided, so no sample is pushed beyond the log-odds of an unseen one. Q is computed over held-out
samples with the labels of D_f, in their proportions, `rounds` times. Both batches are passed through the network at
once, so its BatchNorm statistics are mostly of retained samples. Three kinds of forget samples are distinguished:

    label kept      some retained sample has the label: as above
    label vanishes  none has it: Q is moved down until 98 % of the held-out samples of that class lie below `NEVER`,
                    as a network that never saw the class does not predict it
    label wrong     `mislabelled`, or auto: the mean of u_i (1/2 for samples drawn at random) is below `HARD`: held-out
                    samples of the most likely class other than y_i are scored at y_i. Weights with two or more
                    dimensions are first multiplied by `shrink`, because much has to be learnt again

Lowering the log-odds of a class lowers those of its held-out samples, and so Q, without end. So the mean of Q may fall
by at most `DRIFT` standard deviations (`SLACK` log-odds for wrong labels), except if the label vanishes.

Held out   without held-out samples a tenth of the retained ones replaces them: they are no longer trained on, but the
           original was trained on them, so too little is forgotten; a note says so, and names `retrain-short`
Cost       `share` of the training's passes, measurements included (a pass without gradients counts a sixth of a step)
Claim      approximate, no guarantee for single samples. On foreign networks 13 of 29 cells were good, and
           66 of 81 retrained networks (results/worlds); wrong labels and half of a class are its weak requests
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.options import Field, build
from expunge.core.resume import Stateful
from expunge.core.run import Run
from expunge.core.seeds import torch_generator
from expunge.data.augment import make_augment
from expunge.data.split import PerSample, Split
from expunge.methods.base import Method, method
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import distillation, endless, one_cycle
from expunge.models.modes import training_mode
from expunge.training.inference import predict
from expunge.training.loop import step
from expunge.training.recipe import Recipe, make_optimizer, set_rate

KindName = Literal["kept", "vanishes", "wrong"]

MOST_RANKED = 500  # retained samples among which the quantile of a forget sample is computed
NEVER = -3.0  # log-odds below which a class counts as unknown to the network
HARD = 0.25  # mean quantile below which labels count as wrong; a random request has 1/2, wrong labels about 1/7
CERTAIN = 4.0  # standard errors below 1/2 that are required too: a few samples can be hard by chance
DRIFT = 0.5  # standard deviations by which the mean of Q may fall below its first value
SLACK = 4.0  # log-odds by which it may fall for wrong labels
MEASURING = 0.2  # largest share of the passes for measurements
SMALL_BATCH, STEPS = 32, 256  # batches shrink, down to 32 retained samples, to allow 256 steps
VISITS = 8  # the forget batch grows, up to half of the retain batch, until each forget sample is seen 8 times
SPREAD = 0.5  # least scale s, in log-odds
EVALUATION = 0.5  # cost of a pass without gradients, in units of a third of a training step


@method("unsee")
class Unsee(Method):
    """Train on the retained samples, and move each forget sample to the log-odds of unseen samples at its quantile.

    Reads labels of all three sets. The recipe determines the number of passes and the batch size.
    """

    share: float = Field(0.17, gt=0, le=1, description="number of passes, as a share of those of the training")
    lr: float = Field(3e-3, gt=0, description="peak learning rate of AdamW; falls with the root of the batch size")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    warmup: float = Field(0.3, ge=0, lt=1, description="share of the steps in which the rate rises")
    strength: float = Field(0.5, ge=0, description="weight of the steering term")
    matching: Literal["ranks", "mean"] = Field("ranks", description="steer single samples, or only their mean")
    own: float = Field(
        0.5, ge=0, le=1, description="weight of a sample's original quantile against its rank in the set"
    )
    distill: float = Field(0.0, ge=0, le=1, description="share of distillation from the original on retained samples")
    mislabelled: Literal["auto", "yes", "no"] = Field("auto", description="whether the labels to forget are wrong")
    shrink: float = Field(0.3, gt=0, le=1, description="initial factor on all weight matrices, if labels are wrong")
    rounds: int = Field(8, ge=1, description="maximal number of measurements of the targets")
    held_out: int = Field(500, ge=1, description="maximal number of held-out samples per measurement")

    def cost(self, sizes: Sizes) -> Work:
        recipe = sizes.recipe or build(Recipe, {})  # as is assumed where none is known
        samples = sizes.retain * recipe.epochs
        return steps(round(self.share * samples), recipe.batch_size)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        retain, held_out = _with_stand_ins(problem, run)
        forget, recipe = problem.forget, _recipe(problem, run)
        plan = _Plan.of(self, len(retain), len(forget), recipe)
        kinds = self._kinds(problem, held_out, plan.compared, run)
        teacher = PerSample(retain, predict(problem.model, retain, run.device)) if self.distill else None
        student = problem.student()
        if any(kind.name == "wrong" for kind in kinds):
            _shrink(student, self.shrink)
        peak = self.lr * math.sqrt(plan.batch / recipe.batch_size)
        optimizer = make_optimizer("adamw", student.parameters(), lr=peak, weight_decay=self.weight_decay)
        augment = make_augment(recipe.augment)
        retained = endless(retain, plan.batch, run, "retain", augment)
        forgotten = endless(forget, plan.forget_batch, run, "forget", augment)
        carried: list[Stateful] = [optimizer, retained, forgotten, *kinds]
        for epoch in run.epochs(student, plan.rounds, what=f"{run.label}: rounds", state=carried):
            goals = PerSample(forget, self._goals(kinds, student, forget, run))
            training_mode(student, recipe.batchnorm)
            for done in range((epoch.number - 1) * plan.per_round, epoch.number * plan.per_round):
                set_rate(optimizer, peak * one_cycle((done + 0.5) / plan.steps, self.warmup))
                retain_batch, forget_batch = next(retained), next(forgotten)
                with run.autocast():
                    logits = student(torch.cat([retain_batch.x, forget_batch.x])).float()
                retain_loss = F.cross_entropy(logits[: len(retain_batch)], retain_batch.y)
                goal, scale = goals[forget_batch.index].unbind(1)
                deviation = (log_odds(logits[len(retain_batch) :], forget_batch.y) - goal) / scale
                if self.matching == "mean":
                    deviation = deviation.mean()
                steering = (scale * F.smooth_l1_loss(deviation, torch.zeros_like(deviation), reduction="none")).mean()
                loss = retain_loss
                if teacher is not None:
                    distance = distillation(logits[: len(retain_batch)], teacher[retain_batch.index], TEMPERATURE)
                    loss = (1 - self.distill) * retain_loss + self.distill * distance
                step(loss + self.strength * steering, student, optimizer, recipe.clip)
                epoch.add("retain_loss", retain_loss, len(retain_batch))
                epoch.add("steering", steering, len(forget_batch))
        return student

    def _kinds(self, problem: Problem, held_out: Split, most: int, run: Run) -> list[_Kind]:
        """The forget samples by kind, each kind with the held-out samples that it is compared with."""
        forget, retain = problem.forget, problem.retain
        places = _places(problem, run)
        label_retained = torch.isin(forget.y, retain.y.unique())
        random = torch_generator(run.seed, "unsee", "held out")
        kinds = []
        parts: tuple[tuple[Tensor, KindName], ...] = ((label_retained, "kept"), (~label_retained, "vanishes"))
        for part, name in parts:
            members = part.nonzero()[:, 0]
            if not len(members):
                continue
            if name == "kept" and self._wrong(places[members], run):
                name = "wrong"
            rows = torch.empty(0) if name == "wrong" else _like(forget.y[members], held_out.y, most, random)
            by_appearance = not len(rows)  # also where no held-out sample has any of the labels
            if by_appearance:
                rows = torch.randperm(len(held_out), generator=random)[:most]
            own = places[members] if name == "kept" else None  # how hard a sample was says nothing of the other kinds
            kinds.append(_Kind(name, members, held_out.take(held_out.index[rows]), own, by_appearance))
        return kinds

    def _wrong(self, places: Tensor, run: Run) -> bool:
        if self.mislabelled != "auto":
            return self.mislabelled == "yes"
        place = float(places.mean())
        wrong = place < HARD and (0.5 - place) * math.sqrt(12 * len(places)) > CERTAIN
        if wrong:
            run.notes.append(
                f"the labels to forget look wrong: the original fits them worse than {1 - place:.0%} of "
                "the retained samples; pass mislabelled=no if they are right. retrain-short forgets wrong labels "
                "better."
            )
        return wrong

    def _goals(self, kinds: list[_Kind], student: nn.Module, forget: Split, run: Run) -> Tensor:
        """Goal and scale per forget sample, (len(forget), 2), for the student's current weights."""
        logits = predict(student, forget, run.device).cpu()
        goals = torch.empty(len(forget), 2)
        for kind in kinds:
            current = log_odds(logits[kind.members], forget.y[kind.members])
            unseen = kind.unseen(student, logits[kind.members], forget.y[kind.members], run)
            goal = unseen[(kind.rank(current, self.own) * len(unseen)).long().clamp(max=len(unseen) - 1)]
            goals[kind.members, 0] = goal
            goals[kind.members, 1] = max(float(unseen.std(correction=0)), SPREAD)
        return goals.to(run.device)


@dataclass(frozen=True)
class _Plan:
    """Schedule of the passes: rounds of `per_round` steps on `batch` retained and `forget_batch` forget samples.

    compared: held-out samples per measurement.
    """

    rounds: int
    steps: int
    batch: int
    forget_batch: int
    compared: int

    @property
    def per_round(self) -> int:
        return -(-self.steps // self.rounds)

    @classmethod
    def of(cls, chosen: Unsee, retained: int, forgotten: int, recipe: Recipe) -> _Plan:
        passes = 3 * chosen.share * recipe.epochs * retained
        allowed = MEASURING * passes / EVALUATION  # samples that may be looked at
        compared = int(min(chosen.held_out, max(100, allowed / chosen.rounds - forgotten)))
        rounds = max(1, min(chosen.rounds, int(allowed / (forgotten + compared))))
        extra = retained if chosen.distill else 0
        left = passes - EVALUATION * (rounds * (compared + forgotten) + MOST_RANKED + forgotten + extra)
        batch = min(recipe.batch_size, max(SMALL_BATCH, int(left / STEPS)))
        small = max(8, batch // 4)
        steps = max(1, int(left / 3 / (batch + small)))
        small = min(forgotten, max(small, min(batch // 2, VISITS * forgotten // steps)))
        return cls(rounds, max(2 * rounds, int(left / 3 / (batch + small))), batch, small, compared)


@dataclass
class _Kind:
    """Forget samples of one kind.

    Attributes:
        name: the kind.
        members: rows of the forget set (k,).
        others: held-out samples to compare with.
        places: original quantiles (k,) in (0, 1), or None if the rank alone counts.
        by_appearance: whether each member is compared with a sample of the class that it is most similar to, scored at
            the label of the member; else others are scored at their own labels.
        floor: least mean of the log-odds of the others.
    """

    name: KindName
    members: Tensor
    others: Split
    places: Tensor | None
    by_appearance: bool = False
    floor: float | None = None

    def state_dict(self) -> dict[str, float | None]:
        return {"floor": self.floor}

    def load_state_dict(self, state_dict: Mapping[str, float | None], /) -> None:
        self.floor = state_dict["floor"]

    def unseen(self, student: nn.Module, logits: Tensor, y: Tensor, run: Run) -> Tensor:
        """Sorted log-odds of unseen samples under the student, given logits (k, C) and labels y (k,) of the members."""
        others = predict(student, self.others, run.device).cpu()
        if self.by_appearance:
            values = log_odds(others[self._likely(logits, y, run)], y)
        else:
            values = log_odds(others, self.others.y)
        if self.name == "vanishes":
            values = values - max(0.0, float(values.quantile(0.98)) - NEVER)
        else:
            level = float(values.mean())
            if self.floor is None:
                self.floor = level - (SLACK if self.name == "wrong" else DRIFT * float(values.std(correction=0)))
            values = values + max(0.0, self.floor - level)
        return values.sort().values

    def _likely(self, logits: Tensor, y: Tensor, run: Run) -> Tensor:
        """Per member the row of a random other sample of its most likely class other than its label."""
        classes = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
        random = torch_generator(run.seed, "unsee", "stand for")
        matching = (classes[:, None] == self.others.y[None]).float()
        matching[matching.sum(1) == 0] = 1.0
        return torch.multinomial(matching, 1, generator=random)[:, 0]

    def rank(self, log_odds_now: Tensor, own: float) -> Tensor:
        """Target quantile (k,) in (0, 1) of each member, from its rank among the members and its original quantile."""
        rank = (log_odds_now.argsort().argsort() + 0.5) / len(log_odds_now)
        return rank if self.places is None else own * self.places + (1 - own) * rank


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Log-odds phi (B,) = log of p_y / (1 - p_y), for logits (B, C) and labels y (B,).

    >>> log_odds(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    tensor([ 2., -2.])
    """
    own = logits.gather(1, y[:, None])[:, 0]
    return own - logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)


def _recipe(problem: Problem, run: Run) -> Recipe:
    """The recipe of the model; if it is unknown, the default recipe, which determines the amount of work."""
    if problem.has_recipe:
        return problem.recipe
    usual = build(Recipe, {})
    run.notes.append(
        f"no training recipe was given: {usual.epochs} epochs in batches of {usual.batch_size} are assumed as the "
        "training of which `share` is done; pass recipe=... of the original."
    )
    return usual


def _places(problem: Problem, run: Run) -> Tensor:
    """Quantiles u_i (len(forget),) in (0, 1) of the forget samples among retained ones under the original."""
    retain, forget = problem.retain, problem.forget
    order = torch.randperm(len(retain), generator=torch_generator(run.seed, "unsee", "places"))[:MOST_RANKED]
    some = retain.take(retain.index[order])
    base = log_odds(predict(problem.model, some, run.device).cpu(), some.y).sort().values
    own = log_odds(predict(problem.model, forget, run.device).cpu(), forget.y)
    return (torch.searchsorted(base, own) + 0.5) / (len(base) + 1)


def _like(wanted: Tensor, labels: Tensor, most: int, random: torch.Generator) -> Tensor:
    """Random rows of `labels` (N,), without repetition, in the class proportions of `wanted` (k,), at most `most`."""
    classes = int(max(wanted.max(), labels.max())) + 1
    weight = torch.bincount(wanted, minlength=classes) / torch.bincount(labels, minlength=classes).clamp(min=1)
    weight = weight[labels]
    count = min(most, int((weight > 0).sum()))
    return torch.multinomial(weight, count, generator=random) if count else torch.empty(0, dtype=torch.long)


def _with_stand_ins(problem: Problem, run: Run) -> tuple[Split, Split]:
    """Retained samples to train on, and held-out samples; a tenth of the retained ones if no held-out are given."""
    retain = problem.retain
    if problem.has_validation:
        return retain, problem.validation
    order = torch.randperm(len(retain), generator=torch_generator(run.seed, "unsee", "stand-ins"))
    count = max(1, len(retain) // 10)
    run.notes.append(
        f"no held-out samples were given: {count} retained samples, which the original was trained on, stand in for "
        "them, so too little may be forgotten; pass validation=..., or use retrain-short."
    )
    rest, held_out = order[count:].sort().values, order[:count].sort().values
    return retain.take(retain.index[rest]), retain.take(retain.index[held_out])


def _shrink(student: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for weight in student.parameters():
            if weight.dim() >= 2:
                weight.mul_(factor)


TEMPERATURE = 2.0
