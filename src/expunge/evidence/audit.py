"""The audit: statistics of every model from shared predictions, attacks without shadow models, and a verdict."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from expunge.api.prepare import as_module, as_splits, check_disjoint, check_fit, pick_device
from expunge.api.result import Result
from expunge.api.train import make_recipe
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
from expunge.methods.base import Method, make_method
from expunge.metrics.base import Evaluation
from expunge.metrics.membership import histogram_weights
from expunge.models.anatomy import reset_parameters
from expunge.training.recipe import Recipe

_TOO_FEW = 5  # samples to forget, or unseen ones of their classes, below which no attack is measured


def audit(
    original: Any,
    unlearned: Any,
    *,
    forget: Any,
    retain: Any = None,
    test: Any,
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
    """How well `unlearned` forgot `forget`, in one word with its reasons.

    original, unlearned, retrained: modules or results. retrained: models trained again without the forget set, with
    different seeds; two or more give the strong verdict, five or more usually something to say. test: samples no model
    has seen, with those of the forgotten classes. margins: differences that count as none (accuracy and AUC, 0.05).
    resamples: of the bootstrap. residue: also look below the answers (`evidence.residue`; it costs a few training steps
    per model), for methods that hide instead of forget; the word stays what the answers say.

    shadows: so many shadow models for attacks on single samples (see `shadows`; `design`, `requests`, `jobs`, `cache`
    and `progress` are theirs). They are trained by `recipe` and forget by `method`, which results of `train` and
    `unlearn` know; for bare modules give both. Raises `UsageError` for a single retrained model.
    """
    target = pick_device(device)
    if len(retrained) == 1:
        raise UsageError("one retrained model has no spread; pass at least two, or none for the weaker verdict.")
    limits = margins if isinstance(margins, Margins) else build(Margins, dict(margins or {}), "margins")
    how = _how(original, unlearned, method, recipe) if shadows else None
    splits = as_splits({"forget": forget, "retain": retain, "test": test})
    check_disjoint(splits)
    for name in ("forget", "test"):
        if name not in splits or not splits[name].has_labels:
            raise UsageError(f"an audit needs {name} data with labels; pass {name}=...")
    names = {"original": as_module(original, "original"), "unlearned": as_module(unlearned, "unlearned")}
    names |= {f"retrained {i + 1}": as_module(model, f"retrained[{i}]") for i, model in enumerate(retrained)}
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


def _how(original: Any, unlearned: Any, method: Any, recipe: Any) -> tuple[Method, Recipe]:
    """The method and the recipe of the audited models, from what is given or from what results remember."""
    facts = unlearned.facts if isinstance(unlearned, Result) else {}
    if method is None and "method" in facts:
        method = make_method(str(facts["method"]), **facts["options"])
    if recipe is None and isinstance(original, Result):
        recipe = original.facts.get("recipe")
    if method is None or recipe is None:
        missing = " and ".join(name for name, value in (("method", method), ("recipe", recipe)) if value is None)
        raise UsageError(f"shadow models must be trained and unlearned as the audited ones were; pass {missing}=...")
    return make_method(method), make_recipe(recipe)


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
