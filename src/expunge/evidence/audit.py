"""The audit: statistics of every model from shared predictions, attacks without shadow models, and a verdict."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from expunge.api.experiment import resolve_audit
from expunge.api.prepare import as_classifier, check_fit, pick_device
from expunge.core.errors import UsageError
from expunge.core.options import build, to_dict
from expunge.core.seeds import derive, numpy_generator
from expunge.evidence.distances import jsd, tug_of_war, zrf
from expunge.evidence.rates import Separation, separation
from expunge.evidence.residue import examine, with_residue
from expunge.evidence.shadow_audit import shadow_audit
from expunge.evidence.shadows import Design
from expunge.evidence.signals import SIGNALS, gradient
from expunge.evidence.verdict import Margins, Verdict, against_held_out, against_retrained
from expunge.methods.base import Method
from expunge.metrics.base import Evaluation
from expunge.metrics.membership import histogram_weights
from expunge.models.anatomy import reset_parameters
from expunge.training.recipe import Recipe

_TOO_FEW = 5  # samples to forget, or unseen ones of their classes, below which no attack is measured


def audit(
    model: Any,
    unlearned: Any = None,
    *,
    original: Any = None,
    forget: Any = None,
    retain: Any = None,
    test: Any = None,
    references: int | Sequence[Any] = (),
    retrained: Sequence[Any] = (),
    margins: Margins | Mapping[str, float] | None = None,
    seed: int = 0,
    device: str = "auto",
    resamples: int = 500,
    residue: bool = False,
    shadows: int = 0,
    method: str | Method | None = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    design: Design = "matched",
    requests: int = 1,
    jobs: int = 1,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """How well an unlearned model forgot: one verdict with its reasons.

    `audit(result, references=5)` takes the original, the data, the recipe and the method from the result;
    `audit(original, unlearned, forget=..., test=...)` is told. Models are modules, trained models, results or folders.

    Args:
        model: The unlearned model; with two models the original one.
        unlearned: The unlearned model, where the first argument is the original.
        original: The model before unlearning; default: the parent of the unlearned one.
        forget: The samples that were forgotten, as `unlearn` takes them; default: those of the result.
        retain: The samples it was to keep; default: those of the result.
        test: Samples no model has seen, those of the forgotten classes among them; default: those of the result.
        references: Models trained again without the forget set, or a number of them to train now (kept in the cache).
            Two or more give the strong verdict, five or more usually say something.
        retrained: An older name for a list of `references`.
        margins: Differences that count as none (accuracy and AUC, 0.05 each).
        seed: Of the audit, >= 0; references are trained with the seeds after it.
        device: `auto` (the first GPU, else the CPU), `cpu`, `cuda` or `cuda:N`.
        resamples: Of the bootstrap.
        residue: Also look below the answers (`evidence.residue`; it costs a few training steps per model), for methods
            that hide instead of forget; the verdict stays what the answers say.
        shadows: Number of shadow models for attacks on single samples (see `shadows`; `design`, `requests`, `jobs` and
            `progress` apply only to them). They are trained by `recipe` and forget by `method`.
        method: What unlearned; default: what the result tells.
        recipe: How the original was trained; default: what the models know.
        cache: Folder for references and shadow models; default: the user's cache.

    Raises:
        UsageError: For a single reference, or where the original, the data, the recipe or the method are needed and
            not known.
        DataError: If data and models do not fit together.
    """
    target = pick_device(device)
    limits = margins if isinstance(margins, Margins) else build(Margins, dict(margins or {}), "margins")
    subject = resolve_audit(
        model, unlearned, original=original, forget=forget, retain=retain, test=test, references=references,
        retrained=retrained, method=method, recipe=recipe, needs_method=shadows > 0, seed=seed, device=device,
        cache=cache,
    )  # fmt: skip
    how = None if subject.method is None else (subject.method, subject.known_recipe("shadow models"))
    splits = subject.splits
    names = {"original": subject.original.model, "unlearned": subject.unlearned.model}
    names |= {f"retrained {i + 1}": reference for i, reference in enumerate(subject.references)}
    names = {name: as_classifier(module, splits, target, trains=shadows > 0)[0] for name, module in names.items()}
    for module in names.values():
        check_fit(module, splits, target)
    evaluation = Evaluation(names, splits, device=target, seed=seed)
    attacks = {name: population_attacks(evaluation, name, resamples) for name in names}
    below = examine(evaluation) if residue else None
    numbers = {name: statistics(evaluation, name, attacks[name]) for name in names}
    again = [numbers[name] for name in names if name.startswith("retrained")]
    counts = sizes(evaluation)
    details: dict[str, Any] = {"statistics": numbers, "margins": to_dict(limits), "samples": counts}
    details["zrf"] = ignorance(evaluation, names)
    found_by_shadows, per_sample = None, {}
    if how is not None:
        chosen, known = how
        found_by_shadows = shadow_audit(
            names["original"], names["unlearned"], splits, shadows=shadows, method=chosen, recipe=known, design=design,
            requests=requests, seed=seed, device=target, jobs=jobs, cache=cache, progress=progress,
        )  # fmt: skip
        per_sample = dict(found_by_shadows.per_sample)
        details["shadows"] = {"count": shadows, "method": chosen.card.name, **found_by_shadows.details}
    if again:
        details["jsd"] = distances(evaluation, [name for name in names if name.startswith("retrained")])
        mean = {key: float(np.mean([one[key] for one in again])) for key in again[0]}
        details["tow"] = tug_of_war(*({k.removesuffix(" accuracy"): v for k, v in d.items()} for d in
                                      (numbers["unlearned"], mean)))  # fmt: skip
        word, reasons, found = against_retrained(
            numbers["original"], numbers["unlearned"], again, limits, found_by_shadows, resolution(counts)
        )
    elif "loss" not in attacks["unlearned"]:
        few = f"fewer than {_TOO_FEW} samples to forget, or unseen ones of their classes"
        word, reasons, found = "not enough evidence", [f"{few}: no attack can be measured."], []
    else:
        word, reasons, found = against_held_out(
            numbers["original"], numbers["unlearned"], attacks["unlearned"]["loss"], limits, found_by_shadows
        )
    basis: Literal["retrained", "held-out"] = "retrained" if again else "held-out"
    return with_residue(Verdict(word, basis, reasons, found, attacks, details, per_sample), below)


def statistics(evaluation: Evaluation, model: str, attacks: Mapping[str, Separation]) -> dict[str, float]:
    """The numbers that are tested, by name."""
    found = {"forget accuracy": float(evaluation.correct(model, "forget").double().mean())}
    if "loss" in attacks:
        found["loss attack AUC"] = attacks["loss"].auc.value
    if "retain" in evaluation.splits:
        found["retain accuracy"] = float(evaluation.correct(model, "retain").double().mean())
    kept = ~torch.isin(evaluation.labels("test"), evaluation.removed_classes())
    if bool(kept.any()):
        found["test accuracy"] = float(evaluation.correct(model, "test")[kept].double().mean())
    return found


def sizes(evaluation: Evaluation) -> dict[str, int]:
    """Number of samples behind each accuracy among the statistics."""
    kept = ~torch.isin(evaluation.labels("test"), evaluation.removed_classes())
    found = {"forget accuracy": len(evaluation.splits["forget"]), "test accuracy": int(kept.sum())}
    if "retain" in evaluation.splits:
        found["retain accuracy"] = len(evaluation.splits["retain"])
    return {name: size for name, size in found.items() if size}


def resolution(counts: Mapping[str, int]) -> dict[str, float]:
    """The smallest difference that accuracies over so many samples can show: one sample."""
    return {name: 1 / count for name, count in counts.items()}


def population_attacks(evaluation: Evaluation, model: str, resamples: int = 500) -> dict[str, Separation]:
    """Every signal: samples to forget against unseen ones, weighted to the same class shares. Empty if too few."""
    labels, unseen = evaluation.labels("forget"), evaluation.labels("test")
    alike = torch.isin(unseen, labels.unique())
    if min(len(labels), int(alike.sum())) < _TOO_FEW:
        return {}
    weights = histogram_weights(unseen[alike].numpy(), labels.numpy())
    found = _gradients(evaluation, model)  # first: its pass gives the logits, too
    here, there = evaluation.logits(model, "forget"), evaluation.logits(model, "test")[alike]
    scores = {
        name: (score(here, labels).numpy(), score(there, unseen[alike]).numpy()) for name, score in SIGNALS.items()
    }
    if found is not None:
        scores["gradient norm"] = (found[0].numpy(), found[1][alike].numpy())
    return {
        name: separation(
            members, others, weights, numpy_generator(evaluation.seed, "audit", name), resamples=resamples
        )
        for name, (members, others) in scores.items()
    }  # fmt: skip


def ignorance(evaluation: Evaluation, names: Iterable[str]) -> dict[str, float]:
    """ZRF of every model against one freshly drawn one; empty where the architecture cannot be drawn anew."""
    fresh = copy.deepcopy(evaluation.models["original"])
    try:
        reset_parameters(fresh, seed=derive(evaluation.seed, "ignorant"))
    except UsageError:
        return {}
    ignorant = Evaluation({"fresh": fresh}, evaluation.splits, device=evaluation.device).logits("fresh", "forget")
    return {name: zrf(evaluation.logits(name, "forget"), ignorant) for name in names}


def distances(evaluation: Evaluation, retrained: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean JSD per split, in bits: of the unlearned model to the retrained ones, and of these among themselves."""
    found = {}
    for split in evaluation.present(("forget", "retain", "test")):
        outputs = [evaluation.logits(name, split) for name in retrained]
        mine = [float(jsd(evaluation.logits("unlearned", split), one).mean()) for one in outputs]
        among = [float(jsd(a, b).mean()) for i, a in enumerate(outputs) for b in outputs[i + 1 :]]
        found[split] = {"unlearned": float(np.mean(mine)), "among retrained": float(np.mean(among))}
    return found


def _gradients(evaluation: Evaluation, model: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Last-layer gradient norms on forget and test samples; None where the model's head cannot be told."""
    try:
        both = [evaluation.both(model, split) for split in ("forget", "test")]
    except UsageError:
        return None
    mine, theirs = (
        gradient(logits, evaluation.labels(split), features)
        for split, (logits, features) in zip(("forget", "test"), both, strict=True)
    )
    return mine, theirs
