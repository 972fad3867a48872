"""What one model holds below its answers: a probe of its features, how fast it relearns, how alike its layers stayed.

Every number is a `Row`. The samples (`Draw`), batches and seeds are the same for all models, so that only the models
differ. Bounds: `Depth` caps the samples of each set; features are (samples, d); of the layers only Gram matrices are
kept, and relearning works on one copy of one model at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.options import Field, options
from expunge.core.seeds import torch_generator
from expunge.data.split import Split
from expunge.evidence.probe import PENALTY, cross_read
from expunge.metrics.base import Evaluation
from expunge.metrics.change import layer_outputs
from expunge.metrics.relearn import gather
from expunge.numerics.statistics import gram_cka
from expunge.training.inference import predict


class NothingBelow(UsageError):
    """The model has no layer below its head: nothing can lie below its answers."""


_FEWEST = 4  # samples that the unbiased estimator of CKA needs


@options
class Depth:
    """How much is measured, and how large a difference still counts as none (margin_*)."""

    margin_share: float = Field(
        0.05, gt=0, lt=0.5, description="difference of shares and probabilities that counts as none"
    )
    margin_cka: float = Field(0.01, gt=0, lt=0.5, description="difference of the layer CKA gap that counts as none")
    samples: int = Field(512, ge=8, description="most samples to forget that are looked at, drawn by the seed")
    probe_samples: int = Field(2000, ge=8, description="most other samples that the probe is fitted on")
    probe_penalty: float = Field(PENALTY, gt=0, description="of the squared weights of the probe")
    relearn_steps: int = Field(20, ge=1, description="small training steps of relearning")
    relearn_lr: float = Field(1e-3, gt=0, description="learning rate of Adam in them")
    relearn_batch: int = Field(64, ge=2, description="samples per step: half to forget, half others")
    layer_samples: int = Field(256, ge=_FEWEST, description="most samples per set for CKA, in one pass")

    def margin(self, statistic: str) -> float:
        return self.margin_cka if "CKA" in statistic else self.margin_share


@dataclass(frozen=True)
class Row:
    """One number of one model. part: a layer, or the samples of a curve; step: of relearning. Both empty where the
    number is one of the tested statistics."""

    model: str
    statistic: str
    value: float
    part: str = ""
    step: int | None = None


@dataclass(frozen=True, eq=False)
class Draw:
    """The samples that all models are measured on.

    forget: drawn of those to forget. halves: 0 or 1 for each, every class spread over both. others: samples that may
    stay, drawn evenly over their classes. gone: classes to forget that the others lack. alike: two sets of equal size
    for CKA, forgotten and others; None where there are too few. test: unseen samples of the forgotten classes.
    """

    forget: Split
    halves: Tensor
    others: Split
    gone: Tensor
    alike: tuple[Split, Split] | None
    test: Split | None
    seed: int
    depth: Depth

    @classmethod
    def of(cls, forget: Split, others: Split, test: Split, seed: int, depth: Depth) -> Draw:
        wanted = forget.y.unique()
        gone = wanted[~torch.isin(wanted, others.y.unique())]
        forget = evenly(forget, depth.samples, seed)
        size = min(len(forget), len(others), depth.layer_samples)
        alike = (evenly(forget, size, seed), some_of(others, size, seed)) if size >= _FEWEST else None
        unseen = test.take(test.index[torch.isin(test.y, wanted)])
        if others.store is test.store and bool(torch.isin(others.index, unseen.index).any()):
            unseen = unseen.take([])  # the others are the test samples: the probe saw them
        return cls(
            forget=forget, halves=halves(forget.y, torch_generator(seed, "residue", "halves")),
            others=evenly(others, depth.probe_samples, seed), gone=gone, alike=alike,
            test=evenly(unseen, depth.samples, seed) if len(unseen) else None, seed=seed, depth=depth,
        )  # fmt: skip


def some_of(split: Split, most: int, seed: int) -> Split:
    """At most so many samples of a split, each as likely."""
    order = torch.randperm(len(split), generator=torch_generator(seed, "residue", split.name))
    return split.take(split.index[order[:most].sort().values])


def evenly(split: Split, most: int, seed: int) -> Split:
    """At most so many samples of a split, as evenly over its classes as their sizes allow."""
    if len(split) <= most:
        return split
    rank = _rank_in_class(split.y, torch_generator(seed, "residue", split.name))
    return split.take(split.index[rank.argsort(stable=True)[:most].sort().values])


def halves(labels: Tensor, generator: torch.Generator) -> Tensor:
    """0 or 1 per sample (n,): the halves differ by at most one sample, overall and in each class."""
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    found = torch.empty(len(labels), dtype=torch.long)
    found[order] = torch.arange(len(labels)) % 2
    return found


def _rank_in_class(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Each sample's place (n,) in a random order of its class, from 0."""
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    counts = torch.bincount(labels)
    rank = torch.empty(len(labels), dtype=torch.long)
    rank[order] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return rank


def probe_rows(name: str, evaluation: Evaluation, draw: Draw) -> Iterator[Row]:
    """What a probe reads in the forgotten samples (and in unseen ones of their classes), and misalignment."""
    logits, features = evaluation.both(name, "forget", draw.forget)
    mine, said = (features, draw.forget.y), logits.argmax(1) == draw.forget.y
    beside = "retain" if "retain" in evaluation.splits else "test"
    kept = (evaluation.features(name, beside, draw.others), draw.others.y)
    test = None if draw.test is None else (evaluation.features(name, "test", draw.test), draw.test.y)
    classes = draw.forget.num_classes
    found, probe = cross_read(kept, mine, draw.halves, draw.gone, classes, penalty=draw.depth.probe_penalty)
    read = found.argmax(1) == mine[1]
    yield Row(name, "probe confidence", float(found.gather(1, mine[1][:, None]).mean()))
    yield Row(name, "misalignment", float((read & ~said).double().mean()))
    yield Row(name, "probe accuracy", float(read.double().mean()), "forget")
    if test is not None:
        found = probe.probabilities(test[0], classes)
        yield Row(name, "probe confidence", float(found.gather(1, test[1][:, None]).mean()), "test")
        yield Row(name, "probe accuracy", float((found.argmax(1) == test[1]).double().mean()), "test")


def relearn_rows(name: str, model: nn.Module, draw: Draw, device: torch.device) -> Iterator[Row]:
    """Accuracy and loss on both halves after every step, and the mean accuracy on the half that was not taught.

    A copy is taught one half of the forgotten samples, as many others beside them in each step, by Adam; eval mode, so
    that BatchNorm keeps its statistics and dropout draws nothing.
    """
    depth = draw.depth
    parts = {"taught": draw.forget.index[draw.halves == 0], "held out": draw.forget.index[draw.halves == 1]}
    if not all(len(index) for index in parts.values()):
        raise UsageError("relearning needs two samples to forget, one to teach and one to look at.")
    sets = {part: draw.forget.take(index) for part, index in parts.items()}
    student = copy.deepcopy(model).to(device).requires_grad_(True).eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=depth.relearn_lr)
    taught = len(sets["taught"])
    curve = []
    for step in range(depth.relearn_steps + 1):
        if step:
            generator = torch_generator(draw.seed, "residue", "relearn", step)
            first = torch.randint(taught, (depth.relearn_batch // 2,), generator=generator)
            second = taught + torch.randint(len(draw.others), (depth.relearn_batch // 2,), generator=generator)
            x, y = gather([sets["taught"], draw.others], torch.cat([first, second]), device)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(student(x), y).backward()
            optimizer.step()
        for part, split in sets.items():
            logits = predict(student, split, device).double().cpu()
            right = float((logits.argmax(1) == split.y).double().mean())
            yield Row(name, "relearn accuracy", right, part, step)
            yield Row(name, "relearn loss", float(F.cross_entropy(logits, split.y)), part, step)
            if step and part == "held out":
                curve.append(right)
    yield Row(name, "relearn accuracy", sum(curve) / len(curve))


Grams = dict[str, tuple[Tensor, Tensor]]
"""Block -> Gram matrices over the forgotten and over the other samples; the head is left out."""


def grams(model: nn.Module, draw: Draw, device: torch.device) -> Grams:
    """Gram matrices of all blocks below the head. Raises `UsageError` where there are none or too few samples."""
    if draw.alike is None:
        raise UsageError(f"layers are compared over at least {_FEWEST} samples to forget and as many others.")
    first, second = (layer_outputs(model, split, device) for split in draw.alike)
    found = {block: (first[block], second[block]) for block in list(first)[:-1]}  # the head ran last
    if not found:
        raise NothingBelow("the model has no layer below its head.")
    return found


def layer_rows(name: str, mine: Grams, original: Grams) -> Iterator[Row]:
    """CKA to the original per block, on forgotten and other samples, and the mean difference between these two."""
    if set(mine) != set(original):
        raise UsageError(f"the layers of {name} are not those of the original model.")
    gaps = []
    for block, pair in original.items():
        values = []
        for part, theirs, own in zip(("forgotten", "others"), pair, mine[block], strict=True):
            if gram_cka(theirs, theirs, unbiased=True) is None:
                break  # the original gives all samples the same output here: nothing to be alike to
            values.append(gram_cka(own, theirs, unbiased=True) or 0.0)
            yield Row(name, f"layer CKA, {part}", values[-1], block)
        if len(values) == 2:
            gaps.append(values[0] - values[1])
    if not gaps:
        raise UsageError("no layer of the original model tells samples apart.")
    yield Row(name, "layer CKA gap", sum(gaps) / len(gaps))
