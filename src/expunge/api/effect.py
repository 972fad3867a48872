"""What an unlearning did, told from held-out samples: no retrained model, no test data, one forward pass per model.

A sample that was forgotten should look like one that was never seen. So the forget set F is held against held-out
samples with the same labels, H, before (0) and after (1):

    loss        mean cross-entropy of F, of H
    accuracy    of F, of H
    attack      A = P(loss of F < loss of H) + P(equal) / 2; 1/2: the loss does not tell the two apart
    way         (F1 - F0) / (H0 - F0) of loss and of accuracy, 1 - (A1 - 1/2) / (A0 - 1/2) of the attack: 0 where
                nothing was forgotten, 1 where it arrived; left out where F0 and H0 differ by less than a margin

Labels of F that the retained samples lack (a class that goes whole): a model that never saw the class does not answer
with it, so the accuracy to reach is 0 and the loss at least log C; only the attack uses held-out samples of the class.
Labels of F that are wrong: held-out samples are right, so H is given wrong labels in the same way: a held-out sample of
class c counts with label y as often as F has a sample that is c and is called y. c is the true label where the data
carry it, else what the nearest held-out samples are (`looks_like`). Wrong labels are recognised by that, if not stated.

    damaged         accuracy on held-out samples of retained classes fell by more than `damaged`
    nothing         every way is below `nothing`
    over-forgotten  F is harder than H, beyond margin and noise
    plausible       F is like H, within margin or noise
    partial         anything between
    not measured    no held-out sample can be compared

The first that applies, in this order. A model that fits only the retained samples less is not damaged; a note says it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import EffectWarning
from expunge.core.options import Field, build, options, to_dict
from expunge.core.seeds import torch_generator
from expunge.data.split import ResidentStore, Split
from expunge.numerics.statistics import weighted_auc
from expunge.training.inference import predict

Label = Literal["nothing", "partial", "plausible", "over-forgotten", "damaged", "not measured"]
LABELS: tuple[Label, ...] = get_args(Label)

MOST_FORGET, MOST_RETAIN, MOST_HELD_OUT = 2000, 1000, 2000  # samples looked at; a seeded draw where there are more
NEIGHBOURS = 10
LONGEST = 4096  # numbers of a representation that is compared as it is
PASS = 256  # samples whose distances to all held-out ones are in memory at a time


@options
class Thresholds:
    """Every number that decides a label. Accuracies and the attack (an area under a ROC curve) lie in [0, 1]."""

    nothing: float = Field(0.2, gt=0, lt=1, description="way below which nothing was forgotten")
    damaged: float = Field(0.1, gt=0, lt=1, description="held-out accuracy on retained classes lost")
    accuracy: float = Field(0.03, gt=0, lt=0.5, description="difference of accuracies that counts as none")
    attack: float = Field(0.05, gt=0, lt=0.5, description="distance of the attack from 1/2 that counts as none")
    loss: float = Field(0.05, gt=0, description="difference of mean losses that counts as none")
    over: float = Field(0.1, gt=0, lt=0.5, description="attack below 1/2 less this: the samples stick out as too hard")
    deviations: float = Field(2.0, gt=0, description="standard errors that count as noise")
    wrong: float = Field(0.5, gt=0, lt=1, description="share of held-out agreement below which labels count as wrong")


THRESHOLDS = build(Thresholds, {})


@dataclass(frozen=True)
class Effect:
    """label: see the module. sentence: the label with what speaks for it. numbers: what it was decided by.

    compared: what the forget set was held against, in words. notes: sentences about what is not an effect but looks
    like one.
    """

    label: Label
    sentence: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    compared: str = ""
    notes: tuple[str, ...] = ()
    thresholds: Thresholds = THRESHOLDS

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "numbers": dict(self.numbers), "notes": list(self.notes),
                "thresholds": to_dict(self.thresholds)}  # fmt: skip

    @classmethod
    def of_record(cls, values: Mapping[str, Any]) -> Effect:
        """Back from `record`."""
        limits = build(Thresholds, values["thresholds"], "thresholds")
        return cls(**{**values, "notes": tuple(values["notes"]), "thresholds": limits})

    def __str__(self) -> str:
        return " ".join([self.sentence, *self.notes])

    def warn(self, *, stacklevel: int = 2) -> None:
        """`EffectWarning` where nothing was forgotten or the model was damaged."""
        if self.label in ("nothing", "damaged"):
            warnings.warn(str(self), EffectWarning, stacklevel=stacklevel + 1)


def measure_effect(
    original: nn.Module,
    unlearned: nn.Module,
    *,
    forget: Split | None,
    retain: Split | None = None,
    held_out: Split | None = None,
    wrong_labels: bool | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    thresholds: Thresholds = THRESHOLDS,
) -> Effect:
    """Compare a model before and after unlearning on what is at hand.

    forget: what was to be forgotten, with the labels it was trained with. retain: tells which classes stay, and how
    well they are fitted; without it every class counts as staying. held_out: samples that neither model saw, never the
    test set. wrong_labels: whether the labels of `forget` are wrong; None: find out. seed: of the draws where a set is
    large. Neither model is changed.
    """
    reason = _lacking(forget, held_out)
    if reason:
        return Effect("not measured", f"not measured: {reason}", thresholds=thresholds)
    assert forget is not None  # noqa: S101  # `_lacking` has seen to it
    assert held_out is not None  # noqa: S101
    forget = some(forget, MOST_FORGET, seed, "forget")
    held_out = some(held_out, MOST_HELD_OUT, seed, "held-out")
    models = (original, unlearned)
    (of_forget, early), (of_held_out, others) = (_passes(models, split, device) for split in (forget, held_out))
    labels, classes = forget.y, of_forget.shape[-1]
    true, how = _true_labels(forget, early, held_out, others, wrong_labels, thresholds)
    pairs = _Pairs(true, labels, held_out.y)
    gone = torch.zeros(len(labels), dtype=torch.bool)
    if retain is not None and retain.has_labels and not how:
        gone = ~torch.isin(labels, retain.y.unique())
    numbers: dict[str, float] = {"forget_samples": float(len(labels))}
    if retain is not None and retain.has_labels:
        part = some(retain, MOST_RETAIN, seed, "retain")
        numbers |= _before_after("retain_accuracy", _correct(_passes(models, part, device)[0], part.y).mean(1))
    stays = staying(held_out, forget, retain)
    if not bool(stays.any()) or not bool((pairs.covered | gone).any()):
        missing = sorted(set(true.tolist()) - set(held_out.y.tolist()))
        text = f"no held-out sample has a class that is compared (classes {missing[:5]}); hold out samples of them."
        return Effect("not measured", f"not measured: {text}", numbers, thresholds=thresholds)
    right = _correct(of_held_out, held_out.y)[:, stays]
    numbers |= _before_after("held_out_accuracy", right.mean(1))
    numbers |= {"held_out_samples": float(right.shape[1])}
    numbers |= _compared(of_forget, labels, of_held_out, pairs, gone, math.log(classes))
    limits = _Limits(numbers, right, thresholds, wrong=bool(how), gone=bool(gone.all()))
    label = limits.label()
    compared = _in_words(how, gone, pairs, numbers)
    sentence = f"{label}: {limits.sentence(label, compared)}"
    return Effect(label, sentence, numbers, compared, tuple(limits.notes(label)), thresholds)


def _lacking(forget: Split | None, held_out: Split | None) -> str:
    """Why nothing can be measured, with what to pass; empty if it can."""
    if forget is None or not len(forget):
        return "the samples to forget were not given; pass forget=..."
    if not forget.has_labels:
        return "the samples to forget have no labels; pass them as (X, y)."
    if held_out is None or not len(held_out):
        return "there are no held-out samples; pass validation=... with some that the model was not trained on."
    return "" if held_out.has_labels else "the held-out samples have no labels; pass them as (X, y)."


def some(split: Split, most: int, seed: int, purpose: str) -> Split:
    """At most so many samples, drawn by the seed."""
    if len(split) <= most:
        return split
    order = torch.randperm(len(split), generator=torch_generator(seed, "effect", purpose))[:most]
    return split.take(split.index[order.sort().values])


def staying(held_out: Split, forget: Split | None, retain: Split | None) -> Tensor:
    """Held-out samples (bool) whose accuracy tells of damage: those of classes that stay.

    Where no retained sample says which classes stay, samples of classes that `forget` does not touch, if they are at
    least half of all, else all.
    """
    if retain is not None and retain.has_labels:
        return torch.isin(held_out.y, retain.y.unique())
    touched = forget.y.unique() if forget is not None and forget.has_labels else torch.empty(0, dtype=torch.long)
    other = ~torch.isin(held_out.y, touched)
    return other if 2 * int(other.sum()) >= len(other) else torch.ones_like(other)


def _passes(
    models: tuple[nn.Module, nn.Module], split: Split, device: torch.device | str
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits (2, n, C) of both models, and early representations, each (n, d), by the first; on the CPU.

    Outputs that are not finite count as very large ones. The models go back to where they were.
    """
    target, found = torch.device(device), []
    rows: list[tuple[Tensor, ...]] = []
    for at, model in enumerate(models):
        home = next((p.device for p in model.parameters()), target)
        try:
            model.to(target)
            with _early(model, rows) if at == 0 else nullcontext():
                found.append(predict(model, split, target).cpu())
        finally:
            model.to(home)
    early = tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
    return torch.stack(found).nan_to_num(nan=0.0, posinf=1e4, neginf=-1e4), early


@contextmanager
def _early(model: nn.Module, rows: list[tuple[Tensor, ...]]) -> Iterator[None]:
    """Inside the block every pass adds to `rows` what the first layer with weights puts out, see `_points`."""
    layers = [m for m in model.modules() if m is not model and next(m.parameters(recurse=False), None) is not None]
    first = next(iter(layers), model)
    fresh = True

    def begin(_: nn.Module, __: Any) -> None:
        nonlocal fresh
        fresh = True

    def keep(_: nn.Module, __: Any, out: Any) -> None:
        nonlocal fresh
        if fresh and isinstance(out, Tensor) and out.dim() > 1:
            rows.append(_points(out.detach().float()))
            fresh = False

    handles = [model.register_forward_pre_hook(begin), first.register_forward_hook(keep)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _points(out: Tensor) -> tuple[Tensor, ...]:
    """An output (B, ...) as points (B, d): its means over positions, and all of it where that is not too long.

    Images (B, C, H, W) keep 4 x 4 positions; sequences (B, L, d) none, so that tokens count wherever they stand.
    """
    means = F.adaptive_avg_pool2d(out, 4) if out.dim() == 4 else out.mean(1) if out.dim() == 3 else out
    flat = out.flatten(1)
    found = (means.flatten(1), flat) if means.dim() != out.dim() and flat.shape[1] <= LONGEST else (means.flatten(1),)
    return tuple(one.cpu() for one in found)


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    """(2, n) float64, 1 where the answer is the label."""
    return (logits.argmax(-1) == labels).double()


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(2, n) float64 cross-entropy."""
    return torch.stack([F.cross_entropy(one.double(), labels, reduction="none") for one in logits])


def _before_after(name: str, values: Tensor) -> dict[str, float]:
    return {f"{name}_before": float(values[0]), f"{name}_after": float(values[1])}


class _Pairs:
    """The held-out samples that F is held against: row, label that it is given, weight.

    Every sample of F, of class c and called y, spreads a weight of one over the held-out samples of class c, which are
    then called y too. covered: bool over F; whether its class c is among the held-out samples.
    """

    def __init__(self, true: Tensor, called: Tensor, held_out: Tensor) -> None:
        self.covered = torch.isin(true, held_out.unique())
        rows, labels, weights = [], [], []
        both, counts = torch.stack([true, called], 1)[self.covered].unique(dim=0, return_counts=True)
        for (c, y), count in zip(both.tolist(), counts.tolist(), strict=True):
            of_class = (held_out == c).nonzero().flatten()
            rows.append(of_class)
            labels.append(torch.full_like(of_class, y))
            weights.append(torch.full((len(of_class),), count / len(of_class), dtype=torch.float64))
        empty = torch.empty(0, dtype=torch.long)
        self.rows = torch.cat([empty, *rows])
        self.labels = torch.cat([empty, *labels])
        self.weights = torch.cat([torch.empty(0, dtype=torch.float64), *weights])

    @property
    def samples(self) -> int:
        """Held-out samples that take part."""
        return len(self.rows.unique())

    def effective(self) -> float:
        """Number of equally weighted samples with the same noise."""
        return min(float(self.weights.sum() ** 2 / (self.weights**2).sum().clamp(min=1e-300)), float(self.samples))

    def mean(self, values: Tensor, labels: Tensor) -> Tensor:
        """Weighted mean of (2, rows) over the pairs whose given label is in `labels`; (2,)."""
        weights = self.weights * torch.isin(self.labels, labels)
        return (values * weights).sum(1) / weights.sum().clamp(min=1e-300)


def _compared(
    of_forget: Tensor, labels: Tensor, of_held_out: Tensor, pairs: _Pairs, gone: Tensor, chance: float
) -> dict[str, float]:
    """Loss, accuracy and attack of F and of what it is held against. gone: samples whose class goes whole."""
    use = pairs.covered | gone
    loss, right = _losses(of_forget, labels), _correct(of_forget, labels)
    found = {**_before_after("forget_loss", loss[:, use].mean(1)), "compared_samples": float(use.sum())}
    found |= _before_after("forget_accuracy", right[:, use].mean(1))
    wanted_loss, wanted_right = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    if bool(pairs.covered.any()):
        like_loss = _losses(of_held_out[:, pairs.rows], pairs.labels)
        like_right = _correct(of_held_out[:, pairs.rows], pairs.labels)
        attack = [
            float(weighted_auc(
                -loss[at, pairs.covered].numpy(), -like_loss[at].numpy(), np.ones(int(pairs.covered.sum())),
                pairs.weights.numpy(),
            ))
            for at in (0, 1)
        ]  # fmt: skip
        found |= {"attack_before": attack[0], "attack_after": attack[1]}
        found |= {"reference_samples": float(pairs.samples), "reference_effective": pairs.effective()}
        stay = labels[use & ~gone].unique()
        share = float((use & ~gone).sum()) / float(use.sum())
        if len(stay):
            wanted_loss, wanted_right = share * pairs.mean(like_loss, stay), share * pairs.mean(like_right, stay)
    if bool(gone.any()):
        share = float(gone.sum()) / float(use.sum())
        # A class that goes whole is forgotten once it is no likelier than chance; less likely is as good.
        wanted_loss = wanted_loss + share * loss[:, gone].mean(1).clamp(min=chance) * torch.tensor([0.0, 1.0])
        wanted_loss[0] += share * max(chance, 0.0)
    found |= _before_after("reference_loss", wanted_loss)
    return {**found, **_before_after("reference_accuracy", wanted_right)}


class _Limits:
    """Numbers against thresholds. right: (2, n) answers on held-out samples of the classes that stay."""

    def __init__(
        self, numbers: dict[str, float], right: Tensor, thresholds: Thresholds, *, wrong: bool, gone: bool
    ) -> None:
        self.n, self.limits, self.wrong, self.gone = numbers, thresholds, wrong, gone
        changed = (right[0] - right[1]).square().sum()
        numbers["noise_held_out"] = float(changed.sqrt()) / right.shape[1]
        own, other = numbers["compared_samples"], numbers.get("reference_effective", math.inf)
        p, q = numbers["forget_accuracy_after"], numbers["reference_accuracy_after"]
        numbers["noise_accuracy"] = math.sqrt(_variance(p, own) + (0.0 if gone else _variance(q, other)))
        if "attack_after" in numbers:
            numbers["noise_attack"] = math.sqrt((own + other + 1) / (12 * own * other))
        numbers |= self._ways()

    def _ways(self) -> dict[str, float]:
        n, found = self.n, {}
        gap = n["reference_loss_before"] - n["forget_loss_before"]
        if gap > self.limits.loss:
            found["way_loss"] = (n["forget_loss_after"] - n["forget_loss_before"]) / gap
        gap = n["forget_accuracy_before"] - n["reference_accuracy_before"]
        if gap > self.limits.accuracy:
            found["way_accuracy"] = (n["forget_accuracy_before"] - n["forget_accuracy_after"]) / gap
        gap = n.get("attack_before", 0.5) - 0.5
        if gap > self.limits.attack and not self.gone:
            found["way_attack"] = 1 - (n["attack_after"] - 0.5) / gap
        return found

    @property
    def ways(self) -> list[float]:
        return [value for name, value in self.n.items() if name.startswith("way_")]

    @property
    def told_apart(self) -> bool:
        """Whether F could be told from H before anything was done."""
        return any(name in self.n for name in ("way_accuracy", "way_attack"))

    @property
    def lost(self) -> float:
        return self.n["held_out_accuracy_before"] - self.n["held_out_accuracy_after"]

    def label(self) -> Label:
        n, limit = self.n, self.limits
        if self.lost > limit.damaged and self.lost > limit.deviations * n["noise_held_out"]:
            return "damaged"
        if self.told_apart and all(way < limit.nothing for way in self.ways):
            return "nothing"
        below = 0.5 - n.get("attack_after", 0.5)
        noise = limit.deviations * n.get("noise_attack", 0.0)
        gap = n["forget_accuracy_after"] - n["reference_accuracy_after"]
        calm = max(limit.accuracy, limit.deviations * n["noise_accuracy"])
        # Answers of wrong labels and of classes that went whole cannot fall below those of the held-out samples.
        if below > max(limit.over, noise) and (gap < -calm or self.wrong or self.gone):
            return "over-forgotten"
        return "plausible" if abs(gap) <= calm and abs(below) <= max(limit.attack, noise) else "partial"

    def sentence(self, label: Label, compared: str) -> str:
        n = self.n
        before, after = n["held_out_accuracy_before"], n["held_out_accuracy_after"]
        change = f"held-out accuracy {_percent(before)} -> {_percent(after)}"
        if label == "damaged":
            return f"{change} on classes that stay."
        against = (
            "0 % of a model that never saw the class"
            if self.gone
            else f"{_percent(n['reference_accuracy_after'])} of {compared}"
        )
        what = {
            "nothing": "the samples to forget are answered as before",
            "over-forgotten": "the samples to forget are harder than unseen ones, so they stick out",
            "plausible": "the samples to forget look unseen",
            "partial": "the samples to forget moved, and can still be told from unseen ones",
        }[label]
        attack = ""
        if "attack_after" in n:
            attack = f", loss attack {n['attack_before']:.2f} -> {n['attack_after']:.2f}"
        answered = f"accuracy {_percent(n['forget_accuracy_before'])} -> {_percent(n['forget_accuracy_after'])}"
        return f"{what} ({answered}, against {against}{attack}); {change}."

    def notes(self, label: Label) -> list[str]:
        n, found = self.n, []
        if label == "plausible" and not self.told_apart:
            found.append("They could not be told from unseen ones before either.")
        fell = n.get("retain_accuracy_before", 0.0) - n.get("retain_accuracy_after", 0.0)
        if fell > self.limits.accuracy and self.lost <= self.limits.accuracy:
            found.append(
                f"The retained samples are fitted less ({_percent(n['retain_accuracy_before'])} -> "
                f"{_percent(n['retain_accuracy_after'])}), which costs no accuracy on unseen ones."
            )
        return found


def _variance(share: float, count: float) -> float:
    """Of a mean of so many answers, after one more of each kind, so that 0 and 1 are not certain."""
    p = (share * count + 1) / (count + 2) if math.isfinite(count) else share
    return 0.0 if math.isinf(count) else p * (1 - p) / count


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _in_words(how: str, gone: Tensor, pairs: _Pairs, numbers: Mapping[str, float]) -> str:
    text = f"{pairs.samples} held-out samples " + (f"mislabelled alike ({how})" if how else "with the same labels")
    left_out = int((~(pairs.covered | gone)).sum())
    return text + (f"; {left_out} samples to forget have no counterpart" if left_out else "")


# Are the labels of the forget set wrong?


def _true_labels(
    forget: Split,
    early: tuple[Tensor, ...],
    held_out: Split,
    others: tuple[Tensor, ...],
    wrong: bool | None,
    thresholds: Thresholds,
) -> tuple[Tensor, str]:
    """What the samples to forget are (n,), and in words how that is known where it is not what they are called.

    early, others: representations of the two; the one that tells held-out samples apart best is used.
    """
    labels = forget.y
    if wrong is False:
        return labels, ""
    stated = stated_labels(forget)
    if stated is not None and float((stated != labels).double().mean()) > thresholds.wrong:
        return stated, "their true labels are in the data"
    ways = [looks_like(own, labels, other, held_out.y) for own, other in zip(early, others, strict=True)]
    if not ways:
        return labels, ""
    found, agreement, usual = max(ways, key=lambda way: way[2])
    noise = thresholds.deviations * math.sqrt(max(usual * (1 - usual), 1e-4) / len(labels))
    if wrong is None and (agreement >= thresholds.wrong * usual or agreement > usual - noise):
        return labels, ""
    return found, f"{agreement:.0%} of them look as they are called, of held-out samples {usual:.0%}"


def stated_labels(forget: Split) -> Tensor | None:
    """Labels of the store where they differ from those that were learnt: a scenario spoilt them and knows."""
    if not isinstance(forget.store, ResidentStore) or forget.labels is None or forget.labels is forget.store.labels:
        return None
    own = forget.store.labels[forget.index]
    return None if torch.equal(own, forget.y) else own


def stated_wrong(forget: Split) -> bool:
    """Whether the data say that the labels of the forget set are wrong."""
    own = stated_labels(forget)
    return own is not None and float((own != forget.y).double().mean()) > THRESHOLDS.wrong


def looks_like(points: Tensor, labels: Tensor, others: Tensor, classes: Tensor) -> tuple[Tensor, float, float]:
    """Which other class each sample looks most like, by its nearest held-out samples, and how often it is its own.

    The first layer has not learnt single labels by heart, so it shows what a sample is where the answer shows what it
    was called. points (n, d), labels (n,): the samples and what they are called. others (m, d), classes (m,): held-out
    samples. Returns the most frequent class but the label (n,), the share of samples whose most frequent class is
    their label, and that share of the held-out samples with these labels, each judged by the others.
    """
    mean, spread = others.mean(0), others.std(0, correction=0) + 1e-6
    own, other = (points - mean) / spread, (others - mean) / spread
    count = max(int(labels.max()), int(classes.max())) + 1
    votes = _votes(own, other, classes, count)
    agreement = float((votes.argmax(1) == labels).double().mean())
    same = torch.isin(classes, labels.unique())
    judged = _votes(other, other, classes, count, itself=True).argmax(1)
    usual = float((judged == classes)[same].double().mean()) if bool(same.any()) else 0.0
    return votes.scatter(1, labels[:, None], -1).argmax(1), agreement, usual


def _votes(points: Tensor, others: Tensor, labels: Tensor, classes: int, *, itself: bool = False) -> Tensor:
    """(n, classes) how many of the nearest `others` have each label. itself: points are the others, each left out."""
    found = []
    for at, part in enumerate(points.split(PASS)):
        distance = torch.cdist(part, others)
        if itself:
            rows = torch.arange(len(part))
            distance[rows, rows + at * PASS] = torch.inf
        near = distance.topk(min(NEIGHBOURS, len(others) - int(itself)), largest=False).indices
        found.append(F.one_hot(labels[near], classes).sum(1))
    return torch.cat(found)
