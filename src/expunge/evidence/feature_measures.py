"""Feature-level measurements of one model: a linear probe, relearning speed, and layer similarity to the original.

Every number is a `FeatureValue`. Samples (`AuditSamples`), batches and seeds are the same for all models. Memory:
`FeatureSettings` caps the samples of each set; features are (samples, d); of the layers only Gram matrices are kept,
and relearning works on one copy of one model at a time.
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
from expunge.evidence.probe import PENALTY, cross_predict
from expunge.metrics.base import Evaluation
from expunge.metrics.change import layer_outputs
from expunge.metrics.relearn import gather
from expunge.numerics.statistics import gram_cka
from expunge.training.inference import predict


class NoHiddenLayer(UsageError):
    """The model has no layer below its classification head."""


_CKA_SAMPLES = 4  # the fewest samples of the unbiased CKA estimator


@options
class FeatureSettings:
    """Sample sizes, probe and relearning settings, and equivalence margins (margin_*) of the feature-level audit."""

    margin_share: float = Field(0.05, gt=0, lt=0.5, description="equivalence margin of shares and probabilities")
    margin_cka: float = Field(0.01, gt=0, lt=0.5, description="equivalence margin of the layer CKA gap")
    samples: int = Field(512, ge=8, description="most forget samples that are measured, drawn by the seed")
    probe_samples: int = Field(2000, ge=8, description="most retained samples that the probe is fitted on")
    probe_penalty: float = Field(PENALTY, gt=0, description="weight decay of the probe")
    relearn_steps: int = Field(20, ge=1, description="training steps of relearning")
    relearn_lr: float = Field(1e-3, gt=0, description="learning rate of Adam while relearning")
    relearn_batch: int = Field(64, ge=2, description="samples per relearning step: half forget, half retained")
    layer_samples: int = Field(256, ge=_CKA_SAMPLES, description="most samples per set for CKA, in one pass")

    def margin(self, statistic: str) -> float:
        """The equivalence margin of a statistic."""
        return self.margin_cka if "CKA" in statistic else self.margin_share


@dataclass(frozen=True)
class FeatureValue:
    """One number of one model.

    part: the layer or set of samples; step: of relearning. Both are empty for the statistics that are tested.
    """

    model: str
    statistic: str
    value: float
    part: str = ""
    step: int | None = None


@dataclass(frozen=True, eq=False)
class AuditSamples:
    """The samples that all models are measured on.

    Attributes:
        forget: A stratified sample of the forget set.
        halves: 0 or 1 per forget sample (n,), stratified by class.
        retain: A stratified sample of the retain set (of the test set where there is none).
        removed_classes: Classes of the forget set that `retain` lacks.
        cka_pair: Equally many forget and retained samples for CKA; None if there are too few.
        test: Test samples of the forgotten classes; None if there are none.
        seed: Of every draw.
        settings: Sample sizes.
    """

    forget: Split
    halves: Tensor
    retain: Split
    removed_classes: Tensor
    cka_pair: tuple[Split, Split] | None
    test: Split | None
    seed: int
    settings: FeatureSettings

    @classmethod
    def draw(cls, forget: Split, retain: Split, test: Split, seed: int, settings: FeatureSettings) -> AuditSamples:
        """Draw the samples of each set, at most as many as `settings` say."""
        forget_classes = forget.y.unique()
        removed_classes = forget_classes[~torch.isin(forget_classes, retain.y.unique())]
        forget = sample_evenly(forget, settings.samples, seed)
        size = min(len(forget), len(retain), settings.layer_samples)
        enough = size >= _CKA_SAMPLES
        cka_pair = (sample_evenly(forget, size, seed), sample_uniformly(retain, size, seed)) if enough else None
        test_rows = test.take(test.index[torch.isin(test.y, forget_classes)])
        if retain.store is test.store and bool(torch.isin(retain.index, test_rows.index).any()):
            test_rows = test_rows.take([])  # `retain` is the test set: the probe saw these
        return cls(
            forget=forget, halves=split_in_halves(forget.y, torch_generator(seed, "residue", "halves")),
            retain=sample_evenly(retain, settings.probe_samples, seed), removed_classes=removed_classes,
            cka_pair=cka_pair, test=sample_evenly(test_rows, settings.samples, seed) if len(test_rows) else None,
            seed=seed, settings=settings,
        )  # fmt: skip


def sample_uniformly(split: Split, most: int, seed: int) -> Split:
    """At most `most` samples of a split, drawn uniformly without replacement."""
    order = torch.randperm(len(split), generator=torch_generator(seed, "residue", split.name))
    return split.take(split.index[order[:most].sort().values])


def sample_evenly(split: Split, most: int, seed: int) -> Split:
    """At most `most` samples of a split, balanced over its classes as far as their sizes allow."""
    if len(split) <= most:
        return split
    rank = _rank_in_class(split.y, torch_generator(seed, "residue", split.name))
    return split.take(split.index[rank.argsort(stable=True)[:most].sort().values])


def split_in_halves(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Assign each sample to half 0 or 1 (n,); the halves differ by at most one sample, overall and in each class."""
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    assignment = torch.empty(len(labels), dtype=torch.long)
    assignment[order] = torch.arange(len(labels)) % 2
    return assignment


def _rank_in_class(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Rank of each sample (n,) in a random order of its class, from 0."""
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    counts = torch.bincount(labels)
    rank = torch.empty(len(labels), dtype=torch.long)
    rank[order] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return rank


def probe_rows(name: str, evaluation: Evaluation, samples: AuditSamples) -> Iterator[FeatureValue]:
    """Probe confidence and accuracy on forget samples (and test samples of their classes), and misalignment."""
    logits, features = evaluation.both(name, "forget", samples.forget)
    forget, head_correct = (features, samples.forget.y), logits.argmax(1) == samples.forget.y
    source = "retain" if "retain" in evaluation.splits else "test"
    retain = (evaluation.features(name, source, samples.retain), samples.retain.y)
    test = None if samples.test is None else (evaluation.features(name, "test", samples.test), samples.test.y)
    classes = samples.forget.num_classes
    penalty = samples.settings.probe_penalty
    probabilities, probe = cross_predict(
        retain, forget, samples.halves, samples.removed_classes, classes, penalty=penalty
    )
    probe_correct = probabilities.argmax(1) == forget[1]
    yield FeatureValue(name, "probe confidence", float(probabilities.gather(1, forget[1][:, None]).mean()))
    yield FeatureValue(name, "misalignment", float((probe_correct & ~head_correct).double().mean()))
    yield FeatureValue(name, "probe accuracy", float(probe_correct.double().mean()), "forget")
    if test is not None:
        probabilities = probe.probabilities(test[0], classes)
        yield FeatureValue(name, "probe confidence", float(probabilities.gather(1, test[1][:, None]).mean()), "test")
        yield FeatureValue(name, "probe accuracy", float((probabilities.argmax(1) == test[1]).double().mean()), "test")


def relearn_rows(name: str, model: nn.Module, samples: AuditSamples, device: torch.device) -> Iterator[FeatureValue]:
    """Accuracy and loss on both halves of the forget set after every step, and mean accuracy on the held-out half.

    A copy is trained by Adam on one half of the forget samples, mixed with as many retained samples per step. It stays
    in eval mode: BatchNorm statistics are frozen and dropout is off.
    """
    settings = samples.settings
    parts = {"taught": samples.forget.index[samples.halves == 0], "held out": samples.forget.index[samples.halves == 1]}
    if not all(len(index) for index in parts.values()):
        raise UsageError("relearning needs at least two samples to forget, one to train on and one to test on.")
    sets = {part: samples.forget.take(index) for part, index in parts.items()}
    student = copy.deepcopy(model).to(device).requires_grad_(True).eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=settings.relearn_lr)
    taught = len(sets["taught"])
    curve = []
    for step in range(settings.relearn_steps + 1):
        if step:
            generator = torch_generator(samples.seed, "residue", "relearn", step)
            first = torch.randint(taught, (settings.relearn_batch // 2,), generator=generator)
            second = taught + torch.randint(len(samples.retain), (settings.relearn_batch // 2,), generator=generator)
            x, y = gather([sets["taught"], samples.retain], torch.cat([first, second]), device)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(student(x), y).backward()
            optimizer.step()
        for part, split in sets.items():
            logits = predict(student, split, device).double().cpu()
            right = float((logits.argmax(1) == split.y).double().mean())
            yield FeatureValue(name, "relearn accuracy", right, part, step)
            yield FeatureValue(name, "relearn loss", float(F.cross_entropy(logits, split.y)), part, step)
            if step and part == "held out":
                curve.append(right)
    yield FeatureValue(name, "relearn accuracy", sum(curve) / len(curve))


Grams = dict[str, tuple[Tensor, Tensor]]
"""Block -> Gram matrices over the forget and over the retained samples; the head is left out."""


def grams(model: nn.Module, samples: AuditSamples, device: torch.device) -> Grams:
    """Gram matrices of all blocks below the head.

    Raises:
        UsageError: If the model has no such block, or if there are too few samples.
    """
    if samples.cka_pair is None:
        raise UsageError(f"layers are compared on at least {_CKA_SAMPLES} forget and as many retained samples.")
    first, second = (layer_outputs(model, split, device) for split in samples.cka_pair)
    matrices = {block: (first[block], second[block]) for block in list(first)[:-1]}  # the head ran last
    if not matrices:
        raise NoHiddenLayer("the model has no layer below its head.")
    return matrices


def layer_rows(name: str, matrices: Grams, original: Grams) -> Iterator[FeatureValue]:
    """CKA to the original per block, on forget and on retained samples, and the mean difference between the two."""
    if set(matrices) != set(original):
        raise UsageError(f"the layers of {name} are not those of the original model.")
    gaps = []
    for block, pair in original.items():
        values = []
        for part, reference, gram in zip(("forgotten", "others"), pair, matrices[block], strict=True):
            if gram_cka(reference, reference, unbiased=True) is None:
                break  # the original gives all samples the same output in this block, so CKA is undefined
            values.append(gram_cka(gram, reference, unbiased=True) or 0.0)
            yield FeatureValue(name, f"layer CKA, {part}", values[-1], block)
        if len(values) == 2:
            gaps.append(values[0] - values[1])
    if not gaps:
        raise UsageError("every layer of the original model gives all samples the same output.")
    yield FeatureValue(name, "layer CKA gap", sum(gaps) / len(gaps))
