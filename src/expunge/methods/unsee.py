"""Unsee: train on the retained samples, and steer each forgotten sample to where an unseen one of its kind would lie.

Source     our own. Known pieces: AdamW with one cycle, distillation, quantile matching, ascent that stops at the loss
           of held-out samples, training on what is fitted worst. Not in any paper that we know: the place of a single
           sample, from its rank under the original, and the level of a class that shrinks
Notation   z logits (B, C); phi(x, y) = z_y - log sum over c != y of exp z_c, the log-odds of label y; D_f, D_r, D_h the
           samples to forget, retained, held out; w_0 the given weights; F_r the distribution function of phi under w_0
           over at most `PLACES` retained samples with the labels of D_f; Q the quantile function of phi over D_h under
           the present weights

    min over w:  (1 - kappa) CE(D_r) + kappa T^2 KL(softmax(z(w_0) / T) || softmax(z / T) over D_r)
                 + strength s huber((phi(x_i, y_i) - q_i) / s),  i in D_f,      starting at w_0,  kappa = `distill`
    q_i = Q(place of rank m_i),   m_i = own u_i + (1 - own) r_i,   s = standard deviation of Q
    places = own sorted(u) + (1 - own) (1/2, 3/2, ...) / |D_f|,   huber(d) = d^2 / 2, or |d| - 1/2 beyond 1

    u_i = F_r(phi(x_i, y_i; w_0))   place of the sample among the retained ones: what was hard to fit stays hard unseen
    r_i                             its rank within D_f under the present weights, in (0, 1)

The m_i order the samples, and the places keep the spread of whole distributions: without that, means of two ranks
crowd in the middle and too many of the forgotten samples stay right. The pull is two-sided, so no sample is pushed
beyond what an unseen one shows. Q is taken over held-out samples with the labels of D_f, in their proportions, and is
measured anew `rounds` times. All batches go through the network in one pass, so its BatchNorm sees mostly retained
samples. After a quarter of the rounds, `hard` of each retained batch is drawn by 1 - p_y, as it was when each sample
was last seen: what the pull made the network forget of D_r is learnt again.

Three kinds of forgotten samples are told apart beforehand:

    label kept      some retained sample has the label: as above
    label vanishes  none has it: Q is moved down until 98 % of the held-out samples of that class lie below `NEVER`,
                    as a network that never saw the class does not answer with it; half the strength
    label wrong     `mislabelled`: declared, or auto: the mean of u_i (1/2 for samples drawn at random) is below `HARD`:
                    held-out samples of the class that the network likes best after y_i are scored at y_i. Weights with
                    two axes or more are first multiplied by `shrink`, because much is to be written anew; no
                    distillation, as the wrong labels have bent the answers of the original

Pushing a class down takes its held-out samples along, and Q would be chased without end; but a network retrained with
fewer samples of a class does answer with it less. How much less is known beforehand: of n training samples n_y have
label y, f and f_y of them are to be forgotten, and the prior log-odds of y change by

    delta_y = tau log( (n_y - f_y) / n_y * (n - n_y) / ((n - n_y) - (f - f_y)) )

in log-odds of the network, where tau is the temperature that calibrates w_0 on D_h (overconfident networks stretch
log-odds by it). Where delta, its mean over D_h, is below -`SHIFTED` standard deviations of Q, the mean of Q stays at
its first level plus delta. Else it stays above its first level less `DRIFT` standard deviations, or less `SLACK`
log-odds where labels are wrong. Where a label vanishes nothing bounds it.

Held out   without held-out samples a tenth of the retained ones stands in for them: they are no longer trained on, but
           were seen once, so too little is forgotten; a note says so, and names `retrain-short`
Cost       `share` of the training's passes, measurements included (a pass without gradients counts a sixth of a step)
Claim      approximate, no guarantee for single samples. How often it is as good as retraining on networks of strangers
           stands in results/worlds; wrong labels on networks that memorise everything are its weak request
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.core.errors import UsageError
from expunge.core.options import Field, build
from expunge.core.resume import Stateful
from expunge.core.run import Run
from expunge.core.seeds import torch_generator
from expunge.data.augment import make_augment
from expunge.data.split import Augment, Batch, PerSample, Split
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

PLACES = 500  # retained samples among which a forgotten one finds its place
TEMPERATURE = 2.0  # of the distillation
RATE = 2e-3
HIGH_RATE = 4e-3  # for wrong labels, and with BatchNorm, where the length of weights does not matter
HARD_FROM = 0.25  # share of the rounds after which retained samples that are fitted badly are drawn more often
VANISHING = 0.5  # factor on the strength for labels that vanish: the whole class is easily pushed down
NEVER = -3.0  # log-odds below which a class is as good as unknown
HARD = 0.25  # mean place below which labels count as wrong; a random request has 1/2, wrong labels about 1/7
CERTAIN = 4.0  # and so many standard errors below 1/2: a few samples can be hard by chance
DRIFT = 0.5  # standard deviations by which Q may fall below its first mean: pushing drags held-out samples along
SHIFTED = 0.05  # standard deviations of Q from which a change of the prior counts
SLACK = 4.0  # log-odds by which it may, where labels are wrong
MEASURING = 0.2  # largest share of the passes for measurements
SMALL_BATCH, STEPS = 32, 256  # batches shrink, down to 32 retained samples, to allow so many steps
VISITS = 8  # the forgotten batch grows, up to half of the retained one, so that each is seen so often
SPREAD = 0.5  # least scale s, in log-odds
EVALUATION = 0.5  # cost of a pass without gradients where a third of a training step counts 1


@method("unsee")
class Unsee(Method):
    """Train on what stays, and take each forgotten sample to the log-odds of unseen samples at its own rank.

    Reads labels of all three sets. The recipe tells how much training there was, and the batch size.
    """

    share: float = Field(0.16, gt=0, le=1, description="passes to spend, as a share of those of the training")
    lr: float | Literal["auto"] = Field(
        "auto",
        description="peak rate of AdamW, falls with the root of the batch; auto: .004 or, without BatchNorm, .002",
    )
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    warmup: float = Field(0.3, ge=0, lt=1, description="share of the steps in which the rate rises")
    strength: float = Field(0.5, ge=0, description="weight of the steering term")
    matching: Literal["ranks", "mean"] = Field("ranks", description="steer single samples, or only their mean")
    own: float = Field(0.5, ge=0, le=1, description="weight of a sample's own place against its rank in the set")
    distill: float = Field(0.5, ge=0, le=1, description="share of distillation from the original on retained samples")
    hard: float = Field(
        0.5, ge=0, lt=1, description="share of a retained batch that is drawn from what is fitted badly"
    )
    prior: bool = Field(True, description="lower the level of labels that become rarer, as retraining does")
    mislabelled: Literal["auto", "yes", "no"] = Field("auto", description="whether the labels to forget are wrong")
    shrink: float = Field(0.5, gt=0, le=1, description="factor on all weight matrices first, where labels are wrong")
    rounds: int = Field(8, ge=1, description="most times that targets are measured")
    held_out: int = Field(500, ge=1, description="most held-out samples per measurement")

    def __post_init__(self) -> None:
        if self.lr != "auto" and not self.lr > 0:
            raise UsageError(f"unsee: `lr` must be above 0 or `auto`, got {self.lr:g}.")

    def scaled(self, sizes: Sizes) -> Mapping[str, Any]:
        """Whether the labels are wrong, where the caller has declared it."""
        return {} if sizes.wrong_labels is None else {"mislabelled": "yes" if sizes.wrong_labels else "no"}

    def cost(self, sizes: Sizes) -> Work:
        recipe = sizes.recipe or build(Recipe, {})  # as is assumed where none is known
        samples = sizes.retain * recipe.epochs
        return steps(round(self.share * samples), recipe.batch_size)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        retain, held = _with_stand_ins(problem, run)
        forget, recipe = problem.forget, _recipe(problem, run)
        whole = not bool(torch.isin(forget.y, retain.y).any())
        plan = _Plan.of(self, len(retain), len(forget), recipe, whole=whole)
        kinds = self._kinds(problem, held, plan.compared, run)
        wrong = any(kind.name == "wrong" for kind in kinds)
        distill = 0.0 if wrong else self.distill
        teacher = PerSample(retain, predict(problem.model, retain, run.device)) if distill else None
        student = problem.student()
        if wrong:
            _shrink(student, self.shrink)
        peak = self._peak(student, wrong=wrong) * math.sqrt(plan.batch / recipe.batch_size)
        optimizer = make_optimizer("adamw", student.parameters(), lr=peak, weight_decay=self.weight_decay)
        augment = make_augment(recipe.augment)
        rare = round(self.hard * plan.batch)
        even = endless(retain, plan.batch, run, "retain", augment)
        fewer = endless(retain, plan.batch - rare, run, "retain beside hard ones", augment)
        forgotten = endless(forget, plan.forget_batch, run, "forget", augment)
        fitted = _Fitted(retain, run)
        carried: list[Stateful] = [optimizer, even, fewer, forgotten, fitted, *kinds]
        for epoch in run.epochs(student, plan.rounds, what=f"{run.label}: rounds", state=carried):
            goals = PerSample(forget, self._goals(kinds, student, forget, run))
            steps = range((epoch.number - 1) * plan.per_round, epoch.number * plan.per_round)
            hard = None
            if rare and epoch.number - 1 >= HARD_FROM * plan.rounds:
                hard = fitted.worst(rare, len(steps), epoch.number, augment)
            training_mode(student, recipe.batchnorm)
            for done in steps:
                set_rate(optimizer, peak * one_cycle((done + 0.5) / plan.steps, self.warmup))
                batch, lost = next(even if hard is None else fewer), next(forgotten)
                x, y, rows = batch.x, batch.y, batch.index
                if hard is not None:
                    worse, its_rows = next(hard)
                    x, y, rows = torch.cat([x, worse.x]), torch.cat([y, worse.y]), torch.cat([rows, its_rows])
                with run.autocast():
                    logits = student(torch.cat([x, lost.x])).float()
                kept, gone = logits[: len(y)], logits[len(y) :]
                fitted.see(rows, kept, y)
                fit = F.cross_entropy(kept, y)
                goal, scale, weight = goals[lost.index].unbind(1)
                off = (log_odds(gone, lost.y) - goal) / scale
                if self.matching == "mean":
                    off = off.mean()
                pull = (weight * scale * F.smooth_l1_loss(off, torch.zeros_like(off), reduction="none")).mean()
                loss = fit
                if teacher is not None:
                    away = distillation(kept, teacher[rows], TEMPERATURE)
                    loss = (1 - distill) * fit + distill * away
                step(loss + self.strength * pull, student, optimizer, recipe.clip)
                epoch.add("retain_loss", fit, len(y))
                epoch.add("steering", pull, len(lost))
        return student

    def _peak(self, student: nn.Module, *, wrong: bool) -> float:
        if self.lr != "auto":
            return self.lr
        high = wrong or any(isinstance(module, _BatchNorm) for module in student.modules())
        return HIGH_RATE if high else RATE

    def _kinds(self, problem: Problem, held: Split, most: int, run: Run) -> list[_Kind]:
        """The forgotten samples by kind, each with the held-out samples that it is compared with."""
        forget, retain = problem.forget, problem.retain
        places = _places(problem, run)
        stays = torch.isin(forget.y, retain.y.unique())
        random = torch_generator(run.seed, "unsee", "held out")
        kinds = []
        parts: tuple[tuple[Tensor, KindName], ...] = ((stays, "kept"), (~stays, "vanishes"))
        for part, name in parts:
            members = part.nonzero()[:, 0]
            if not len(members):
                continue
            if name == "kept" and self._wrong(places[members], run):
                name = "wrong"
            rows = torch.empty(0) if name == "wrong" else _like(forget.y[members], held.y, most, random)
            alike = not len(rows)  # also where no held-out sample has any of the labels
            if alike:
                rows = torch.randperm(len(held), generator=random)[:most]
            own = places[members] if name == "kept" else None  # how hard a sample was says nothing of the other kinds
            kind = _Kind(name, members, held.take(held.index[rows]), own, alike)
            if name == "kept" and not alike and self.prior:
                kind.shift = _prior_shift(problem, held, kind.others.y, run)
            kinds.append(kind)
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
        """Goal, scale and weight per forgotten sample, (len(forget), 3), under the student as it is now."""
        logits = predict(student, forget, run.device).cpu()
        goals = torch.empty(len(forget), 3)
        for kind in kinds:
            now = log_odds(logits[kind.members], forget.y[kind.members])
            seen = kind.unseen(student, logits[kind.members], forget.y[kind.members], run)
            goal = seen[(kind.rank(now, self.own) * len(seen)).long().clamp(max=len(seen) - 1)]
            goals[kind.members, 0] = goal
            goals[kind.members, 1] = max(float(seen.std(correction=0)), SPREAD)
            goals[kind.members, 2] = VANISHING if kind.name == "vanishes" else 1.0
        return goals.to(run.device)


@dataclass(frozen=True)
class _Plan:
    """How the passes are spent: rounds of `per_round` steps on `batch` retained and `forget_batch` forgotten samples.

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
    def of(cls, chosen: Unsee, retained: int, forgotten: int, recipe: Recipe, *, whole: bool = False) -> _Plan:
        passes = 3 * chosen.share * recipe.epochs * retained
        allowed = MEASURING * passes / EVALUATION  # samples that may be looked at
        compared = int(min(chosen.held_out, max(100, allowed / chosen.rounds - forgotten)))
        rounds = max(1, min(chosen.rounds, int(allowed / (forgotten + compared))))
        extra = retained if chosen.distill else 0
        left = passes - EVALUATION * (rounds * (compared + forgotten) + PLACES + forgotten + extra)
        batch = min(recipe.batch_size, max(SMALL_BATCH, int(left / STEPS)))
        small = max(8, batch // 4)
        steps = max(1, int(left / 3 / (batch + small)))
        small = min(forgotten, max(small, min(batch // (4 if whole else 2), VISITS * forgotten // steps)))
        return cls(rounds, max(2 * rounds, int(left / 3 / (batch + small))), batch, small, compared)


@dataclass
class _Kind:
    """Forgotten samples of one kind. members: rows of the forget set (k,); others: held-out samples to compare with.

    places: (k,) in (0, 1), or None where the rank alone counts. alike: each member is compared with a sample of the
    class it looks like, scored at the label of the member; else others are scored at their own. shift: mean change of
    the prior log-odds of the others, < 0 where their labels become rarer. floor, top: bounds of their mean log-odds.
    """

    name: KindName
    members: Tensor
    others: Split
    places: Tensor | None
    alike: bool = False
    shift: float = 0.0
    floor: float | None = None
    top: float = math.inf

    def state_dict(self) -> dict[str, float | None]:
        return {"floor": self.floor, "top": self.top}

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        self.floor, self.top = state_dict["floor"], state_dict["top"]

    def unseen(self, student: nn.Module, logits: Tensor, y: Tensor, run: Run) -> Tensor:
        """Sorted log-odds that unseen samples have under the student. logits (k, C), y (k,) of the members."""
        others = predict(student, self.others, run.device).cpu()
        if self.alike:
            values = log_odds(others[self._likely(logits, y, run)], y)
        else:
            values = log_odds(others, self.others.y)
        if self.name == "vanishes":
            values = values - max(0.0, float(values.quantile(0.98)) - NEVER)
        else:
            level = float(values.mean())
            if self.floor is None:
                self._bound(level, float(values.std(correction=0)))
            assert self.floor is not None  # noqa: S101  # `_bound` has set it
            values = values + min(max(level, self.floor), self.top) - level
        return values.sort().values

    def _bound(self, level: float, spread: float) -> None:
        """The interval of the mean log-odds, from their first mean and standard deviation."""
        shifted = self.shift < -SHIFTED * spread
        drift = SLACK if self.name == "wrong" else 0.0 if shifted else DRIFT * spread
        self.floor = level + self.shift - drift
        self.top = level + self.shift if shifted else math.inf

    def _likely(self, logits: Tensor, y: Tensor, run: Run) -> Tensor:
        """Per member the row of a random other sample of the class that it most looks like, its label apart."""
        classes = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
        random = torch_generator(run.seed, "unsee", "stand for")
        matching = (classes[:, None] == self.others.y[None]).float()
        matching[matching.sum(1) == 0] = 1.0
        return torch.multinomial(matching, 1, generator=random)[:, 0]

    def rank(self, now: Tensor, own: float) -> Tensor:
        """Where each member lies, in (0, 1): its rank among the members, and its own place. now: log-odds (k,)."""
        rank = (now.argsort().argsort() + 0.5) / len(now)
        if self.places is None:
            return rank
        order = (own * self.places + (1 - own) * rank).argsort().argsort()
        even = (torch.arange(len(now)) + 0.5) / len(now)
        return (own * self.places.sort().values + (1 - own) * even)[order]


class _Fitted:
    """Probability of its label that each retained sample had when it was last seen; 1/2 before."""

    def __init__(self, retain: Split, run: Run) -> None:
        self._retain, self._run = retain, run
        self._p = torch.full((len(retain),), 0.5, device=run.device)

    def see(self, rows: Tensor, logits: Tensor, y: Tensor) -> None:
        """rows (B,) of the retained samples; logits (B, C)."""
        self._p[rows.to(self._p.device)] = logits.detach().softmax(1).gather(1, y[:, None])[:, 0]

    def worst(self, size: int, count: int, number: int, augment: Augment | None) -> Iterator[tuple[Batch, Tensor]]:
        """Endless batches of `size` samples drawn by 1 - p, enough for `count` of them, each with its rows (B,)."""
        random = torch_generator(self._run.seed, "unsee", "hard", number)
        weight = (1 - self._p.cpu()).clamp(min=1e-3)
        rows = torch.multinomial(weight, min(size * count, len(weight)), generator=random)
        drawn = self._retain.take(self._retain.index[rows])
        for batch in endless(drawn, size, self._run, f"hard {number}", augment):
            yield batch, rows[batch.index.cpu()].to(batch.index.device)

    def state_dict(self) -> dict[str, Tensor]:
        return {"p": self._p.cpu()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], /) -> None:
        self._p = state_dict["p"].to(self._p.device)


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """phi, (B,): log of p_y / (1 - p_y). logits (B, C), y (B,).

    >>> log_odds(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    tensor([ 2., -2.])
    """
    own = logits.gather(1, y[:, None])[:, 0]
    return own - logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)


def _recipe(problem: Problem, run: Run) -> Recipe:
    """How the model was trained; where nobody knows, the package's usual recipe measures the work."""
    if problem.has_recipe:
        return problem.recipe
    usual = build(Recipe, {})
    run.notes.append(
        f"no training recipe was given: {usual.epochs} epochs in batches of {usual.batch_size} are assumed as the "
        "training of which `share` is done; pass recipe=... of the original."
    )
    return usual


def _places(problem: Problem, run: Run) -> Tensor:
    """u_i, (len(forget),) in (0, 1): the place of each forgotten sample among retained ones under the original."""
    retain, forget = problem.retain, problem.forget
    random = torch_generator(run.seed, "unsee", "places")
    order = _like(forget.y, retain.y, PLACES, random)
    if not len(order):  # every label vanishes
        order = torch.randperm(len(retain), generator=random)[:PLACES]
    some = retain.take(retain.index[order])
    base = log_odds(predict(problem.model, some, run.device).cpu(), some.y).sort().values
    own = log_odds(predict(problem.model, forget, run.device).cpu(), forget.y)
    return (torch.searchsorted(base, own) + 0.5) / (len(base) + 1)


def _prior_shift(problem: Problem, held: Split, labels: Tensor, run: Run) -> float:
    """Mean of delta_y over `labels` (k,): how the log-odds of unseen samples change with the size of their classes."""
    some = held.take(held.index[:PLACES])
    logits = predict(problem.model, some, run.device).float().cpu()
    forget, retain = problem.forget.y, problem.retain.y
    classes = logits.shape[1]
    lost, kept = torch.bincount(forget, minlength=classes), torch.bincount(retain, minlength=classes)
    before, after = (_prior_odds(counts) for counts in (kept + lost, kept))
    change = (after / before).log()[labels]
    return calibration(logits, some.y) * float(change.mean())


def _prior_odds(counts: Tensor) -> Tensor:
    """Odds of each class among `counts` (C,) samples; half a sample where there is none."""
    return counts.clamp(min=0.5) / (counts.sum() - counts).clamp(min=0.5)


def calibration(logits: Tensor, y: Tensor) -> float:
    """The temperature among 24 of [0.5, 12.4] with the least cross-entropy of logits (B, C) / temperature."""
    choices = [0.5 * 1.15**k for k in range(24)]
    return min(choices, key=lambda temperature: float(F.cross_entropy(logits / temperature, y)))


def _like(wanted: Tensor, labels: Tensor, most: int, random: torch.Generator) -> Tensor:
    """Rows of `labels` (N,), without repetition, in the proportions of `wanted` (k,); none where no label is shared."""
    classes = int(max(wanted.max(), labels.max())) + 1
    weight = torch.bincount(wanted, minlength=classes) / torch.bincount(labels, minlength=classes).clamp(min=1)
    weight = weight[labels]
    count = min(most, int((weight > 0).sum()))
    return torch.multinomial(weight, count, generator=random) if count else torch.empty(0, dtype=torch.long)


def _with_stand_ins(problem: Problem, run: Run) -> tuple[Split, Split]:
    """Retained samples to train on, and held-out ones; a part of the retained ones where no held-out ones are given."""
    retain = problem.retain
    if problem.has_validation:
        return retain, problem.validation
    order = torch.randperm(len(retain), generator=torch_generator(run.seed, "unsee", "stand-ins"))
    count = max(1, len(retain) // 10)
    run.notes.append(
        f"no held-out samples were given: {count} retained samples, which the original was trained on, stand in for "
        "them, so too little may be forgotten; pass validation=..., or use retrain-short."
    )
    rest, taken = order[count:].sort().values, order[:count].sort().values
    return retain.take(retain.index[rest]), retain.take(retain.index[taken])


def _shrink(student: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for weight in student.parameters():
            if weight.dim() >= 2:
                weight.mul_(factor)
