"""The audit: everything is measured on shared predictions, tested as one family, and put into one word."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from expunge.api.experiment import resolve_audit
from expunge.api.prepare import as_classifier, check_fit, pick_device
from expunge.core.errors import UsageError, unknown
from expunge.core.options import build, to_dict
from expunge.core.seeds import derive, numpy_generator
from expunge.data.split import Split
from expunge.evidence.distances import jsd, tug_of_war, zrf
from expunge.evidence.explain import BY_CONSTRUCTION
from expunge.evidence.family import FEWEST_SAMPLES, NEAR, Family, judge_family, measure_family
from expunge.evidence.held_out import against_held_out, matching, relabelled
from expunge.evidence.inputs import check_outputs, check_references, check_sets, near_split
from expunge.evidence.rates import Separation, separation
from expunge.evidence.representation import original_body
from expunge.evidence.residue import Residue, examine
from expunge.evidence.shadow_audit import U_LIRA, ShadowFindings, shadow_audit
from expunge.evidence.shadows import Design
from expunge.evidence.signals import SIGNALS, gradient
from expunge.evidence.verdict import Findings, Goal, Margins, Verdict, decide
from expunge.methods import METHODS
from expunge.methods.base import Method
from expunge.metrics.base import Evaluation
from expunge.metrics.membership import histogram_weights
from expunge.models.anatomy import reset_parameters
from expunge.training.recipe import Recipe

_FEWER = 100  # resamples of the tail rates of retrained models, whose intervals nobody reads closely


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
    goal: Goal = "untrain",
    random: bool = False,
    seed: int = 0,
    device: str = "auto",
    resamples: int = 500,
    residue: bool = True,
    shadows: int = 0,
    method: str | Method | None = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    design: Design = "matched",
    requests: int = 1,
    jobs: int = 1,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """How well an unlearned model forgot: one verdict with its reasons; the rules are in `evidence.verdict`.

    `audit(result, references=5)` takes the original, the data, the recipe and the method from the result;
    `audit(original, unlearned, forget=..., test=...)` is told. Models are modules, trained models, results or folders.

    Args:
        model: The unlearned model; with two models the original one.
        unlearned: The unlearned model, where the first argument is the original.
        original: The model before unlearning; default: the parent of the unlearned one.
        forget: The samples that were forgotten, as `unlearn` takes them; default: those of the result.
        retain: The samples it was to keep; default: those of the result.
        test: Samples no model has seen, those of the forgotten classes among them; default: those of the result.
        references: Models trained again as `goal` says, or a number of them to train now without the forget set (kept
            in the cache). None, or two or more; three let single samples be tested, five usually say something.
        retrained: An older name for a list of `references`.
        margins: Upper limits of what counts as no difference (accuracy and AUC, 0.05 each).
        goal: The question. "untrain": undo the influence of these samples; references never saw them. "unlearn":
            remove what they stand for; references never saw any sample of it. "repair": the samples were wrong;
            references were trained on the corrected ones.
        random: The forget set was drawn uniformly at random: without references a band of its accuracy is known.
        seed: Of the audit, >= 0; references are trained with the seeds after it.
        device: `auto` (the first GPU, else the CPU), `cpu`, `cuda` or `cuda:N`.
        resamples: Of the intervals of tail rates.
        residue: Look below the answers, too (a few training steps per model); without it nothing is "forgotten".
        shadows: Number of shadow models for attacks on single samples (see `shadows`; `design`, `requests`, `jobs` and
            `progress` apply only to them). They are trained by `recipe` and forget by `method`.
        method: What unlearned; default: what the result tells.
        recipe: How the original was trained; default: what the models know.
        cache: Folder for references and shadow models; default: the user's cache.

    Returns:
        The verdict, with everything that was measured.

    Raises:
        UsageError: For a single reference; for references that equal each other or an audited model; for outputs that
            are not finite or that are probabilities; or where the original, the data, the recipe or the method are
            needed and not known.
        DataError: For sets that share samples, and for data that a model does not take.
    """
    target = pick_device(device)
    if goal not in get_args(Goal):
        raise unknown("goal", goal, get_args(Goal))
    limits = margins if isinstance(margins, Margins) else build(Margins, dict(margins or {}), "margins")
    subject = resolve_audit(
        model, unlearned, original=original, forget=forget, retain=retain, test=test, references=references,
        retrained=retrained, method=method, recipe=recipe, needs_method=shadows > 0, seed=seed, device=device,
        cache=cache,
    )  # fmt: skip
    how = None if subject.method is None else (subject.method, subject.known_recipe("shadow models"))
    splits = dict(subject.splits)
    notes = check_sets(splits)
    names = {"original": subject.original.model, "unlearned": subject.unlearned.model}
    names |= {f"retrained {i + 1}": reference for i, reference in enumerate(subject.references)}
    names = {name: as_classifier(module, splits, target, trains=True)[0] for name, module in names.items()}
    for module in names.values():
        check_fit(module, splits, target)
    again = [name for name in names if name.startswith("retrained")]
    if not again:
        splits["test"] = relabelled(splits["test"], splits["forget"], seed)
    evaluation = Evaluation(names, _with_near(splits, seed), device=target, seed=seed)
    _look_once(evaluation)
    below = examine(evaluation) if residue else None
    check_outputs(evaluation, list(names))
    check_references(evaluation, again)
    attacks = {
        name: population_attacks(evaluation, name, min(resamples, _FEWER) if name in again else resamples)
        for name in names
    }
    numbers = {name: statistics(evaluation, name, attacks[name]) for name in names}
    details: dict[str, Any] = {"margins": to_dict(limits), "samples": sizes(evaluation), "goal": goal}
    details["zrf"] = ignorance(evaluation, names)
    by_shadows, per_sample = None, {}
    if how is not None:
        chosen, known = how
        by_shadows = shadow_audit(
            names["original"], names["unlearned"], splits, shadows=shadows, method=chosen, recipe=known, design=design,
            requests=requests, seed=seed, device=target, jobs=jobs, cache=cache, progress=progress,
        )  # fmt: skip
        per_sample = dict(by_shadows.per_sample)
        details["shadows"] = {"count": shadows, "method": chosen.card.name, **by_shadows.details}
    extra = [by_shadows.comparison(limits.auc)] if by_shadows is not None else []
    verdict = Verdict("", "retrained" if again else "held-out", [], extra, attacks, {}, per_sample, below, goal=goal)
    if again:
        details["jsd"] = distances(evaluation, again)
        mean = {key: float(np.mean([numbers[name][key] for name in again])) for key in numbers[again[0]]}
        details["tow"] = tug_of_war(*({k.removesuffix(" accuracy"): v for k, v in d.items()} for d in
                                      (numbers["unlearned"], mean)))  # fmt: skip
        verdict = _with_retrained(verdict, evaluation, again, limits, by_shadows, numbers)
    else:
        match = matching(splits, seed)
        details["matched"] = {"holds": match.holds, "reason": match.reason}
        side = by_shadows.side if by_shadows is not None else ""
        shown = extra[0] if extra else None
        word, reasons = against_held_out(evaluation, attacks, match, limits, random=random, shadows=shown, side=side)
        verdict = replace(verdict, word=word, reasons=reasons)
    reasons = [*verdict.reasons, *(f"note: {note}" for note in notes)]
    verdict = replace(verdict, reasons=reasons, details={"statistics": numbers, **details})
    return by_construction(verdict, subject.unlearned.facts, splits["forget"])


def _with_retrained(
    verdict: Verdict,
    evaluation: Evaluation,
    again: Sequence[str],
    limits: Margins,
    by_shadows: ShadowFindings | None,
    numbers: dict[str, dict[str, float]],
) -> Verdict:
    """The verdict of the family; its numbers are added to `numbers`."""
    family = measured(evaluation, again, verdict.residue)
    comparisons = judge_family(family, limits.of, verdict.comparisons)
    flags = original_body(evaluation, again)
    sides = {U_LIRA: by_shadows.side} if by_shadows is not None else {}
    samples = len(evaluation.splits["forget"])
    theirs = f"{len(again)} retrained models have"
    found = Findings(comparisons, flags, family.unmeasured, samples, len(again), theirs, sides)
    word, reasons = decide(found, limits)
    for one in family.quantities:
        for name, value in zip(
            ("unlearned", "original", *again), (one.value, one.original, *one.retrained), strict=True
        ):
            numbers[name].setdefault(one.name, value)
    return replace(
        verdict, word=word, reasons=reasons, comparisons=comparisons, flags=flags, unmeasured=family.unmeasured
    )


def measured(
    evaluation: Evaluation,
    retrained: Sequence[str],
    below: Residue | None,
    *,
    original: str = "original",
    unlearned: str = "unlearned",
) -> Family:
    """The family of two models beside retrained ones, by their names in the evaluation; below: of all of them."""
    numbers = below.numbers() if below is not None else None
    left_out = [(f"representation ({what})", why) for what, why in below.left_out] if below is not None else []
    return measure_family(
        evaluation, retrained, original=original, unlearned=unlearned, representation=numbers, left_out=left_out
    )


def by_construction(verdict: Verdict, facts: Mapping[str, Any], forget: Split) -> Verdict:
    """ "forgotten by construction" where an exact method made the model for these very samples.

    facts: of the result, with the method and the hash of what it forgot. What the audit saw stays among the reasons. A
    damaged model stays damaged.
    """
    name = str(facts.get("method", ""))
    if verdict.word == "damaged" or name not in METHODS.names() or "exact" not in METHODS.card(name).tags:
        return verdict
    if dict(facts.get("data", {})).get("forget") != forget.content_hash():
        return verdict
    first = f"{name} is exact: the model was made without any of the {len(forget)} samples."
    return replace(verdict, word=BY_CONSTRUCTION, reasons=[f"{first} The audit saw: {verdict.word}.", *verdict.reasons])


def _look_once(evaluation: Evaluation) -> None:
    """One pass per model and split gives logits and features; a model whose head cannot be told has no features."""
    for name in evaluation.models:
        try:
            for split in ("forget", "test"):
                evaluation.both(name, split)
        except UsageError:
            continue


def _with_near(splits: Mapping[str, Split], seed: int) -> dict[str, Split]:
    near = near_split(splits["forget"], seed)
    return dict(splits) if near is None else {**splits, NEAR: near}


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


def population_attacks(evaluation: Evaluation, model: str, resamples: int = 500) -> dict[str, Separation]:
    """Every signal: samples to forget against unseen ones, weighted to the same class shares. Empty if too few."""
    labels, unseen = evaluation.labels("forget"), evaluation.labels("test")
    alike = torch.isin(unseen, labels.unique())
    if min(len(labels), int(alike.sum())) < FEWEST_SAMPLES:
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
