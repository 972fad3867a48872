"""Numbers of an audit that are reported and not tested: further attacks, worst cases, and representations.

They stand beside those of the original and of retrained models, which is how they are to be read. The verdict does not
use them: its family of hypotheses is calibrated as it is. `Reported.retrained` of an attack or of a worst group is fair
as in `family`: each retrained model is held against the others only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from expunge.core.errors import UsageError
from expunge.core.options import build
from expunge.core.seeds import torch_generator
from expunge.data.join import joined
from expunge.data.split import Split
from expunge.evidence.dependence import idi, information, residual_knowledge, sde
from expunge.evidence.exposure import Exposure, exposure, group_numbers, worst_group, worst_off
from expunge.evidence.family import FEWEST_REFERENCES, NEAR, standardised, unseen_labels
from expunge.evidence.feature_measures import FeatureSettings, sample_evenly, sample_uniformly
from expunge.evidence.few_shadows import (
    MOST,
    columns,
    iam_of_references,
    quantile_attack,
    quantile_scores,
    rmia_by_references,
    rmia_scores,
)
from expunge.evidence.persample import SampleAttack
from expunge.evidence.reporting import Reported
from expunge.evidence.signals import confidence, loss
from expunge.metrics.base import Evaluation
from expunge.metrics.change import layer_outputs
from expunge.numerics.statistics import Interval, auc_interval
from expunge.training.inference import predict

Array = np.ndarray
FEWEST_UNSEEN = 20  # unseen samples that a regression or a population needs
SAMPLES = 256  # of each set, for SDE and IDI
RETAINED, UNLEARNED = "exposure of retained samples", "unlearned"


@dataclass
class More:
    """What was reported.

    Attributes:
        numbers: One per name.
        attacks: "model: attack" -> attack on single samples.
        left_out: (what, why) of what could not be measured.
    """

    numbers: list[Reported] = field(default_factory=list)
    attacks: dict[str, SampleAttack] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def report_more(evaluation: Evaluation, retrained: Sequence[str], *, everything: bool = False) -> More:
    """All reported numbers of "original", "unlearned" and the named retrained models.

    Args:
        evaluation: With the splits forget and test, and retain and inputs near the samples where these are known.
        retrained: Names of N >= 0 retrained models; what needs them is left out, with the reason.
        everything: Also what takes more than predictions: quantile regression, SDE, IDI, relearning.
    """
    more = More()
    parts: list[tuple[str, Callable[[Evaluation, Sequence[str]], Iterator[Reported | tuple[str, SampleAttack]]]]] = [
        ("RMIA", _rmia), ("IAM", _iam), (RETAINED, _exposure), ("worst group", _worst), ("residual knowledge", _near)
    ]  # fmt: skip
    if everything:
        parts += [("quantile regression", _quantile), ("SDE", _sde), ("IDI", _idi),
                  ("relearning on retained samples", _relearning)]  # fmt: skip
    for what, measure in parts:
        try:
            for result in measure(evaluation, retrained):
                if isinstance(result, Reported):
                    more.numbers.append(result)
                else:
                    more.attacks[result[0]] = result[1]
        except (UsageError, RuntimeError, ValueError, TypeError, IndexError) as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            more.left_out.append((what, text.rstrip(".")))
    return more


def _needs(retrained: Sequence[str], count: int) -> None:
    if len(retrained) < count:
        plural = "" if count == 1 else "s"
        raise UsageError(f"it needs {count} retrained model{plural} or more, and there are {len(retrained)}")


def _alike(evaluation: Evaluation) -> tuple[Array, Array]:
    """Rows of the samples to forget and of the unseen samples that share classes."""
    labels, unseen = evaluation.labels("forget").numpy(), unseen_labels(evaluation).numpy()
    covered, others = np.flatnonzero(np.isin(labels, unseen)), np.flatnonzero(np.isin(unseen, labels))
    if len(covered) < 2 or len(others) < FEWEST_UNSEEN:
        raise UsageError(
            f"{len(others)} unseen samples share a class with {len(covered)} samples to forget; {FEWEST_UNSEEN} are "
            "needed"
        )
    return covered, others


def _phi(evaluation: Evaluation, models: Sequence[str], split: str, rows: Array | None = None) -> Array:
    """phi of the samples of a split under each model (models, n)."""
    labels = unseen_labels(evaluation) if split == "test" else evaluation.labels(split)
    phi: Array = np.stack([confidence(evaluation.logits(model, split), labels).numpy() for model in models])
    return phi if rows is None else phi[:, rows]


def _rmia(evaluation: Evaluation, retrained: Sequence[str]) -> Iterator[Reported | tuple[str, SampleAttack]]:
    _needs(retrained, 1)
    covered, others = _alike(evaluation)
    models = [UNLEARNED, "original", *retrained]
    members, unseen = _phi(evaluation, models, "forget", covered), _phi(evaluation, models, "test", others)
    aucs = []
    for at, model in enumerate(models):
        rest = [row for row in range(2, len(models)) if row != at]
        if not rest:
            break
        given = (members[at], unseen[at], members[rest], unseen[rest])
        if at < 2:
            attack = rmia_by_references(*given, seed=evaluation.seed)
            yield f"{model}: {attack.name}", attack
            aucs.append(attack.auc)
        else:
            aucs.append(_auc(*rmia_scores(*given, seed=evaluation.seed)))
    references = tuple(auc.value for auc in aucs[2:])
    yield Reported("RMIA AUC", aucs[0].value, aucs[1].value, references, aucs[0].low, aucs[0].high)


def _auc(statistic: Array, inside: Array) -> Interval:
    return auc_interval(statistic[inside], statistic[~inside])


def _iam(evaluation: Evaluation, retrained: Sequence[str]) -> Iterator[Reported]:
    _needs(retrained, 2)
    phi = _phi(evaluation, [UNLEARNED, "original", *retrained], "forget")
    (value, original), references = iam_of_references(phi[2:], phi[1], list(phi[:2]))
    yield Reported("IAM", value, original, references)


def _exposure(evaluation: Evaluation, retrained: Sequence[str]) -> Iterator[Reported]:
    if "retain" not in evaluation.splits:
        raise UsageError("the retained samples are not known")

    def scores(model: str) -> tuple[Array, Array]:
        kept, unseen = (loss(evaluation.logits(model, s), evaluation.labels(s)).numpy() for s in ("retain", "test"))
        rows = torch.isin(evaluation.labels("test"), evaluation.labels("retain").unique()).numpy()
        return kept, unseen[rows]

    before = scores("original")
    if len(before[1]) < 2:
        raise UsageError("no unseen sample has a class of the retained ones")
    exposures: list[Exposure] = [exposure(before, scores(model)) for model in (UNLEARNED, *retrained)]
    first = exposures[0]
    yield Reported(
        RETAINED, first.change.value, 0.0, tuple(exposed.change.value for exposed in exposures[1:]), first.change.low,
        first.change.high, f"AUC {first.before.value:.3f} before, {first.after.value:.3f} after; caught at 1 % false "
        f"alarms: {first.caught_before:.1%} before, {first.caught_after:.1%} after",
    )  # fmt: skip


def _worst(evaluation: Evaluation, retrained: Sequence[str]) -> Iterator[Reported]:
    _needs(retrained, FEWEST_REFERENCES)
    phi = _phi(evaluation, [UNLEARNED, "original", *retrained], "forget")
    count = len(retrained)
    without = [np.delete(phi[2:], j, axis=0) for j in range(count)]
    z = [np.mean([standardised(scores, rest) for rest in without], axis=0) for scores in phi[:2]]
    z += [standardised(phi[2 + j], rest) for j, rest in enumerate(without)]
    split = evaluation.splits["forget"]
    names = np.array(split.store.classes)[split.y.numpy()]
    for title, groups in {"class": names, **_columns(split)}.items():
        numbers, named = group_numbers(groups)
        if len(named) < 2:
            continue
        worst = [worst_group(values, numbers) for values in z]
        if worst[0][0] < 0:
            continue
        at = worst[0][0]
        note = f"{title} {named[at]}: {int((numbers == at).sum())} samples"
        name = "worst class" if title == "class" else "worst group"
        yield Reported(name, worst[0][1], worst[1][1], tuple(value for _, value in worst[2:]), note=note)
    yield Reported("worst-off tenth", worst_off(z[0]), worst_off(z[1]), tuple(worst_off(values) for values in z[2:]))


def _columns(split: Split) -> dict[str, Array]:
    """Metadata that tell groups apart: columns of text or whole numbers with few values."""
    groups = {}
    for name, values in split.store.columns.items():
        column = np.asarray(values)[split.index.numpy()]
        if column.dtype.kind in "iubUSO" and 2 <= len(np.unique(column.astype(str))) <= len(column) // 5:
            groups[name] = column.astype(str)
    return groups


def _near(evaluation: Evaluation, retrained: Sequence[str]) -> Iterator[Reported]:
    _needs(retrained, 2)
    if NEAR not in evaluation.splits:
        raise UsageError("inputs near the samples cannot be made of these data")
    right = [float(evaluation.correct(model, NEAR).double().mean()) for model in (UNLEARNED, "original", *retrained)]
    shares = right[2:]
    references = tuple(residual_knowledge(share, shares[:j] + shares[j + 1 :]) for j, share in enumerate(shares))
    value, original = (residual_knowledge(share, shares) for share in right[:2])
    yield Reported("residual knowledge", value, original, references)


def _quantile(evaluation: Evaluation, retrained: Sequence[str]) -> Iterator[Reported | tuple[str, SampleAttack]]:
    covered, others = (_some(rows, MOST, evaluation.seed) for rows in _alike(evaluation))
    forget, test = evaluation.splits["forget"], evaluation.splits["test"].with_labels(_unseen_store(evaluation))
    seen = columns(forget.take(forget.index[covered]), test.take(test.index[others]))
    aucs = []
    for model in (UNLEARNED, "original", *retrained):
        members, unseen = (_phi(evaluation, [model], s, rows)[0] for s, rows in (("forget", covered), ("test", others)))
        if model in (UNLEARNED, "original"):
            attack = quantile_attack(members, unseen, *seen, seed=evaluation.seed)
            yield f"{model}: {attack.name}", attack
            aucs.append(attack.auc)
        else:
            aucs.append(_auc(*quantile_scores(members, unseen, *seen, seed=evaluation.seed)))
    references = tuple(auc.value for auc in aucs[2:])
    yield Reported("quantile regression AUC", aucs[0].value, aucs[1].value, references, aucs[0].low, aucs[0].high)


def _unseen_store(evaluation: Evaluation) -> torch.Tensor:
    """Labels over the store of the test split, with the confusion of the samples to forget."""
    split = evaluation.splits.get("unseen", evaluation.splits["test"])
    return split.labels if split.labels is not None else split.store.labels


def _some(rows: Array, most: int, seed: int) -> Array:
    if len(rows) <= most:
        return rows
    order = torch.randperm(len(rows), generator=torch_generator(seed, "audit", "some")).numpy()
    return np.sort(rows[order[:most]])


def _sets(evaluation: Evaluation) -> dict[str, Split]:
    """The samples to forget, retained and unseen ones, cut to a number that representations are compared over."""
    if "retain" not in evaluation.splits:
        raise UsageError("the retained samples are not known")
    forget = sample_evenly(evaluation.splits["forget"], SAMPLES, evaluation.seed)
    size = min(len(forget), len(evaluation.splits["retain"]), len(evaluation.splits["test"]))
    if size < 8:
        raise UsageError(f"representations of {size} samples say nothing; 8 are needed")
    sets = {"forget": forget, **{name: evaluation.splits[name] for name in ("retain", "test")}}
    return {name: sample_uniformly(split, size, evaluation.seed) for name, split in sets.items()}


def _sde(evaluation: Evaluation, retrained: Sequence[str]) -> Iterator[Reported]:
    sets = _sets(evaluation)
    values = []
    for model in (UNLEARNED, "original", *retrained):
        parts = [evaluation.features(model, name, split).double().numpy() for name, split in sets.items()]
        values.append(sde(parts[0], parts[1], parts[2], seed=evaluation.seed))
    yield Reported("SDE", values[0], values[1], tuple(values[2:]))


def _idi(evaluation: Evaluation, retrained: Sequence[str]) -> Iterator[Reported]:
    _needs(retrained, 2)
    sets = _sets(evaluation)
    both = joined([sets["forget"].sealed(), sets["retain"].sealed()], "both")
    member = np.arange(len(both)) < len(sets["forget"])

    def bits(model: str) -> dict[str, float]:
        grams = layer_outputs(evaluation.models[model], both, evaluation.device)
        blocks = list(grams)[:-1]  # the head ran last
        if not blocks:
            raise UsageError("the model has no layer below its head")
        return {block: information(grams[block], member, seed=evaluation.seed) for block in blocks}

    unlearned, original, *references = (bits(model) for model in (UNLEARNED, "original", *retrained))
    value = idi(unlearned, original, references)
    if np.isnan(value):
        raise UsageError(
            "the original's layers tell no more about the samples to forget than those of retrained models"
        )
    rest = tuple(
        idi(reference, original, references[:j] + references[j + 1 :]) for j, reference in enumerate(references)
    )
    yield Reported("IDI", value, 1.0, rest)


def _relearning(evaluation: Evaluation, retrained: Sequence[str]) -> Iterator[Reported]:
    if "retain" not in evaluation.splits:
        raise UsageError("the retained samples are not known")
    settings = build(FeatureSettings, {}, "settings")
    forget = sample_evenly(evaluation.splits["forget"], settings.samples, evaluation.seed)
    values = [
        relearned_on_retained(evaluation.models[model], forget, evaluation.splits["retain"], settings, evaluation)
        for model in (UNLEARNED, "original", *retrained)
    ]
    yield Reported("relearned on retained samples", values[0], values[1], tuple(values[2:]))


def relearned_on_retained(
    model: nn.Module, forget: Split, retain: Split, settings: FeatureSettings, evaluation: Evaluation
) -> float:
    """Forget accuracy that comes back (arXiv:2505.22310): after a few training steps on retained samples alone.

    Args:
        model: Any; a copy of it is trained in eval mode, so that BatchNorm keeps its statistics.
        forget: Samples that are looked at, and not trained on.
        retain: What the steps draw from.
        settings: Steps, learning rate and batch of relearning.
        evaluation: Its device and seed count.

    Returns:
        Accuracy on `forget` after the steps less that before them, in [-1, 1].
    """
    device = evaluation.device
    student = copy.deepcopy(model).to(device).requires_grad_(True).eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=settings.relearn_lr)

    def accuracy() -> float:
        right = predict(student, forget, device).cpu().argmax(1) == forget.y
        return float(right.double().mean())

    before = accuracy()
    for step in range(settings.relearn_steps):
        generator = torch_generator(evaluation.seed, "audit", "relearn retained", step)
        rows = torch.randint(len(retain), (settings.relearn_batch,), generator=generator)
        part = retain.take(retain.index[rows])
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(student(part.inputs(device)), part.y.to(device)).backward()
        optimizer.step()
    return accuracy() - before


__all__ = ["More", "relearned_on_retained", "report_more"]
