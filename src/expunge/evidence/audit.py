"""The audit: all statistics on shared predictions, tested as one family, summed up in one verdict."""

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
from expunge.evidence.family import (
    FEWEST_SAMPLES,
    NEAR,
    UNSEEN,
    Family,
    judge_family,
    measure_family,
    unseen_labels,
)
from expunge.evidence.feature_audit import FeatureAudit, examine
from expunge.evidence.goals import default_goal, mislabelled, prepared, questions, reference_data
from expunge.evidence.held_out import against_held_out, matching
from expunge.evidence.inputs import check_outputs, check_references, check_sets, near_split
from expunge.evidence.rates import Separation, separation
from expunge.evidence.reported import report_more
from expunge.evidence.representation import original_body
from expunge.evidence.shadow_audit import U_LIRA, ShadowFindings, shadow_audit
from expunge.evidence.shadows import Design
from expunge.evidence.signals import SIGNALS, gradient
from expunge.evidence.small import confirmed
from expunge.evidence.unlearners import Unlearner, is_function, name_of
from expunge.evidence.verdict import Findings, Goal, Margins, Verdict, decide
from expunge.methods import METHODS
from expunge.methods.base import Method
from expunge.metrics.base import Evaluation
from expunge.metrics.membership import histogram_weights
from expunge.models.anatomy import reset_parameters
from expunge.training.recipe import Recipe

_REFERENCE_RESAMPLES = 100  # for the tail rates of retrained models, which decide nothing


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
    goal: Goal | None = None,
    corrected: Any = None,
    random: bool = False,
    seed: int = 0,
    device: str = "auto",
    resamples: int = 500,
    features: bool = True,
    residue: bool | None = None,
    extended: bool = False,
    shadows: int = 0,
    method: str | Unlearner | None = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    design: Design = "matched",
    requests: int = 1,
    jobs: int = 1,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Test how well a model forgot; the rules of the verdict are in `expunge.evidence.verdict`.

    `audit(result, references=5)` takes the original, the data, the recipe and the method from the result;
    `audit(original, unlearned, forget=..., test=...)` states them. Models are modules, trained models, results or
    folders.

    Args:
        model: The unlearned model; with two models the original one.
        unlearned: The unlearned model, where the first argument is the original.
        original: The model before unlearning; default: the parent of the unlearned one.
        forget: The forget set, as `unlearn` takes it; default: that of the result.
        retain: The retain set; default: that of the result.
        test: Samples that no model was trained on, including some of the forgotten classes; default: those of the
            result.
        references: Retrained models, trained as `goal` says, or the number of them to train now without the forget set
            (cached). None, or at least two; three allow tests on single samples, five usually suffice.
        retrained: Older name of `references` as a list.
        margins: Equivalence margins of accuracies and AUCs, each in (0, 0.5), default 0.05.
        goal: The question, see `evidence.goals`. "untrain": undo the influence of these samples; references never saw
            them. "unlearn": remove their classes; references saw no sample of these. "repair": the samples were wrong;
            references were trained on the corrected ones. Default: "repair" for the result of a label repair, else
            "untrain". References that are passed must be trained accordingly.
        corrected: The right labels of the samples to forget, whole numbers (n,), -1 where unknown; default: those that
            the data or the result of a label repair know.
        random: Whether the forget set was drawn uniformly at random; then Hoeffding's bound on its accuracy applies
            without references.
        seed: Of the audit, >= 0; references are trained with the seeds after it.
        device: `auto` (the first GPU, else the CPU), `cpu`, `cuda` or `cuda:N`.
        resamples: Bootstrap resamples for the intervals of the true positive rates, >= 1.
        features: Run the feature-level audit (a few training steps per model); without it no verdict is "forgotten".
        residue: Older name of `features`.
        extended: Also report what takes longer and decides nothing: quantile regression, SDE, IDI, and relearning on
            the retain set alone (see `evidence.reported`).
        shadows: Number of shadow models for per-sample attacks, even and >= 4; 0 for none. `design`, `requests`, `jobs`
            and `progress` apply only to them. They are trained with `recipe` and unlearn with `method`.
        method: What unlearned, for the shadow models: a name, an instance, or any function (model, forget, retain) ->
            module, which need not be registered; default: that of the result.
        recipe: How the original was trained; default: that of the models.
        design: "matched": shadow models train on the retain set and a random half of the targets. "halves": on a random
            half of everything.
        requests: Forget sets per shadow model, >= 1 (only "halves").
        jobs: Processes that train shadow models in parallel, >= 1.
        cache: Folder for references and shadow models; default: the user's cache.
        progress: Called with the number of finished and of all shadow models.

    Returns:
        The verdict with all measurements.

    Raises:
        UsageError: For a single reference, for references that equal each other or an audited model, for outputs that
            are not finite or that are probabilities, or if the original, the data, the recipe or the method are needed
            and unknown.
        DataError: For sets that share samples, or for data that do not fit a model.
    """
    features = features if residue is None else residue
    target = pick_device(device)
    if goal is not None and goal not in get_args(Goal):
        raise unknown("goal", goal, get_args(Goal))
    limits = margins if isinstance(margins, Margins) else build(Margins, dict(margins or {}), "margins")
    function = method if is_function(method) else None
    named = method if isinstance(method, (str, Method)) else None
    subject = resolve_audit(
        model, unlearned, original=original, forget=forget, retain=retain, test=test, references=references,
        retrained=retrained, method=named, recipe=recipe,
        needs_method=shadows > 0 and function is None, seed=seed, device=device,
        cache=cache, goal=goal, corrected=corrected, prepare=_asked,
    )  # fmt: skip
    goal, corrected = subject.goal, subject.corrected
    unlearner: Unlearner | None = function if shadows and function is not None else subject.method
    attack = None if unlearner is None else (unlearner, subject.known_recipe("shadow models"))
    splits = dict(subject.splits)
    notes = check_sets(splits)
    names = {"original": subject.original.model, "unlearned": subject.unlearned.model}
    names |= {f"retrained {i + 1}": reference for i, reference in enumerate(subject.references)}
    names = {name: as_classifier(module, splits, target, trains=True)[0] for name, module in names.items()}
    for module in names.values():
        check_fit(module, splits, target)
    reference_names = [name for name in names if name.startswith("retrained")]
    unseen = mislabelled(splits["test"], splits["forget"], seed, corrected)
    evaluation = Evaluation(names, _more_splits(splits, unseen, seed), device=target, seed=seed)
    _cache_outputs(evaluation)
    feature_audit = examine(evaluation) if features else None
    check_outputs(evaluation, list(names))
    check_references(evaluation, reference_names)
    attacks = {
        name: population_attacks(
            evaluation, name, min(resamples, _REFERENCE_RESAMPLES) if name in reference_names else resamples
        )
        for name in names
    }
    numbers = {name: statistics(evaluation, name, attacks[name]) for name in names}
    details: dict[str, Any] = {"margins": to_dict(limits), "samples": sizes(evaluation), "goal": goal}
    details["questions"] = questions(goal, splits, corrected)
    details["zrf"] = ignorance(evaluation, names)
    by_shadows, per_sample = None, {}
    if attack is not None:
        chosen, shadow_recipe = attack
        by_shadows = shadow_audit(
            names["original"], names["unlearned"], {**splits, "test": unseen}, shadows=shadows, method=chosen,
            recipe=shadow_recipe, design=design, requests=requests, seed=seed, device=target, jobs=jobs, cache=cache,
            progress=progress,
        )  # fmt: skip
        per_sample = dict(by_shadows.per_sample)
        details["shadows"] = {"count": shadows, "method": name_of(chosen), **by_shadows.details}
    extra = [by_shadows.comparison(limits.auc)] if by_shadows is not None else []
    verdict = Verdict(
        "", "retrained" if reference_names else "held-out", [], extra, attacks, {}, per_sample, feature_audit, goal=goal
    )
    if reference_names:
        details["jsd"] = distances(evaluation, reference_names)
        mean = {
            key: float(np.mean([numbers[name][key] for name in reference_names])) for key in numbers[reference_names[0]]
        }
        details["tow"] = tug_of_war(*({k.removesuffix(" accuracy"): v for k, v in d.items()} for d in
                                      (numbers["unlearned"], mean)))  # fmt: skip
        verdict = _with_retrained(verdict, evaluation, reference_names, limits, by_shadows, numbers)
    else:
        match = matching({**splits, "test": unseen}, seed)
        details["matched"] = {"holds": match.holds, "reason": match.reason}
        side = by_shadows.side if by_shadows is not None else ""
        comparison = extra[0] if extra else None
        label, reasons = against_held_out(
            evaluation, attacks, match, limits, random=random, shadows=comparison, side=side
        )
        verdict = replace(verdict, label=label, reasons=reasons)
    more = report_more(evaluation, reference_names, everything=extended)
    verdict = replace(
        verdict, reasons=[*verdict.reasons, *(f"note: {note}" for note in notes)],
        details={"statistics": numbers, **details}, per_sample={**verdict.per_sample, **more.attacks},
        reported=more.numbers, not_reported=more.left_out,
    )  # fmt: skip
    return by_construction(verdict, subject.unlearned.facts, splits["forget"])


def _with_retrained(
    verdict: Verdict,
    evaluation: Evaluation,
    reference_names: Sequence[str],
    limits: Margins,
    by_shadows: ShadowFindings | None,
    numbers: dict[str, dict[str, float]],
) -> Verdict:
    """The verdict of the tests against retrained models; adds their statistics to `numbers`."""
    family = measured(evaluation, reference_names, verdict.features, concept=verdict.goal == "unlearn")
    comparisons = judge_family(family, limits.of, verdict.comparisons)
    flags = original_body(evaluation, reference_names)
    sides = {U_LIRA: by_shadows.side} if by_shadows is not None else {}
    samples = len(evaluation.splits["forget"])
    reference_phrase = f"{len(reference_names)} retrained models have"
    findings = Findings(comparisons, flags, family.unmeasured, samples, len(reference_names), reference_phrase, sides)
    label, reasons = confirmed(evaluation, reference_names, *decide(findings, limits))
    for quantity in family.quantities:
        for name, value in zip(
            ("unlearned", "original", *reference_names),
            (quantity.value, quantity.original, *quantity.retrained),
            strict=True,
        ):
            numbers[name].setdefault(quantity.name, value)
    return replace(
        verdict, label=label, reasons=reasons, comparisons=comparisons, flags=flags, unmeasured=family.unmeasured
    )


def measured(
    evaluation: Evaluation,
    retrained: Sequence[str],
    feature_audit: FeatureAudit | None,
    *,
    original: str = "original",
    unlearned: str = "unlearned",
    concept: bool = False,
) -> Family:
    """The family of hypotheses on two models and retrained ones, by their names in the evaluation.

    concept: Whether the classes of the forget set are to be removed as a whole (the goal "unlearn").
    """
    numbers = feature_audit.numbers() if feature_audit is not None else None
    left_out = (
        [(f"representation ({what})", why) for what, why in feature_audit.left_out] if feature_audit is not None else []
    )
    return measure_family(
        evaluation, retrained, original=original, unlearned=unlearned, representation=numbers, left_out=left_out,
        concept=concept,
    )  # fmt: skip


def by_construction(verdict: Verdict, facts: Mapping[str, Any], forget: Split) -> Verdict:
    """Change the verdict to "forgotten by construction" if an exact method unlearned exactly these samples.

    The verdict of the tests stays among the reasons; "damaged" is kept.

    Args:
        verdict: Of the tests.
        facts: Of the result, with the method and the hash of its forget set.
        forget: The audited forget set.
    """
    name = str(facts.get("method", ""))
    if verdict.label == "damaged" or name not in METHODS.names() or "exact" not in METHODS.card(name).tags:
        return verdict
    if dict(facts.get("data", {})).get("forget") != forget.content_hash():
        return verdict
    first = f"{name} is exact: the model was made without any of the {len(forget)} samples."
    return replace(
        verdict, label=BY_CONSTRUCTION, reasons=[f"{first} The audit saw: {verdict.label}.", *verdict.reasons]
    )


def _cache_outputs(evaluation: Evaluation) -> None:
    """Compute logits and features in one pass per model and split; features need an identifiable head."""
    for name in evaluation.models:
        try:
            for split in ("forget", "test"):
                evaluation.both(name, split)
        except UsageError:
            continue


def _asked(
    goal: Goal | None, splits: Mapping[str, Split], corrected: Any, facts: Mapping[str, Any]
) -> tuple[Goal, dict[str, Split], Split | None]:
    """The goal, the splits that it measures on, and what references are trained on."""
    chosen = default_goal(facts) if goal is None else goal
    ready = prepared(chosen, splits, corrected)
    return chosen, ready, reference_data(chosen, ready, corrected)


def _more_splits(splits: Mapping[str, Split], unseen: Split, seed: int) -> dict[str, Split]:
    """The splits, with inputs near the forget samples, and with mislabelled test samples where `unseen` are such."""
    ready = dict(splits)
    near = near_split(splits["forget"], seed)
    if near is not None:
        ready[NEAR] = near
    if unseen is not splits["test"]:
        ready[UNSEEN] = unseen.named(UNSEEN)
    return ready


def statistics(evaluation: Evaluation, model: str, attacks: Mapping[str, Separation]) -> dict[str, float]:
    """The tested accuracies and AUC of a model, by name."""
    values = {"forget accuracy": float(evaluation.correct(model, "forget").double().mean())}
    if "loss" in attacks:
        values["loss attack AUC"] = attacks["loss"].auc.value
    if "retain" in evaluation.splits:
        values["retain accuracy"] = float(evaluation.correct(model, "retain").double().mean())
    remaining = ~torch.isin(evaluation.labels("test"), evaluation.removed_classes())
    if bool(remaining.any()):
        values["test accuracy"] = float(evaluation.correct(model, "test")[remaining].double().mean())
    return values


def sizes(evaluation: Evaluation) -> dict[str, int]:
    """Number of samples of each accuracy among the statistics."""
    remaining = ~torch.isin(evaluation.labels("test"), evaluation.removed_classes())
    counts = {"forget accuracy": len(evaluation.splits["forget"]), "test accuracy": int(remaining.sum())}
    if "retain" in evaluation.splits:
        counts["retain accuracy"] = len(evaluation.splits["retain"])
    return {name: size for name, size in counts.items() if size}


def population_attacks(evaluation: Evaluation, model: str, resamples: int = 500) -> dict[str, Separation]:
    """Every attack signal on forget samples against test samples, weighted to the same class shares; {} if too few."""
    labels, unseen = evaluation.labels("forget"), unseen_labels(evaluation)
    same_class = torch.isin(unseen, labels.unique())
    if min(len(labels), int(same_class.sum())) < FEWEST_SAMPLES:
        return {}
    weights = histogram_weights(unseen[same_class].numpy(), labels.numpy())
    gradients = _gradients(evaluation, model)  # first: the same pass gives the logits
    forget_logits, test_logits = evaluation.logits(model, "forget"), evaluation.logits(model, "test")[same_class]
    scores = {
        name: (score(forget_logits, labels).numpy(), score(test_logits, unseen[same_class]).numpy())
        for name, score in SIGNALS.items()
    }
    if gradients is not None:
        scores["gradient norm"] = (gradients[0].numpy(), gradients[1][same_class].numpy())
    return {
        name: separation(
            members, non_members, weights, numpy_generator(evaluation.seed, "audit", name), resamples=resamples
        )
        for name, (members, non_members) in scores.items()
    }  # fmt: skip


def ignorance(evaluation: Evaluation, names: Iterable[str]) -> dict[str, float]:
    """ZRF of every model against a randomly initialised one; {} if the architecture cannot be re-initialised."""
    fresh = copy.deepcopy(evaluation.models["original"])
    try:
        reset_parameters(fresh, seed=derive(evaluation.seed, "ignorant"))
    except UsageError:
        return {}
    ignorant = Evaluation({"fresh": fresh}, evaluation.splits, device=evaluation.device).logits("fresh", "forget")
    return {name: zrf(evaluation.logits(name, "forget"), ignorant) for name in names}


def distances(evaluation: Evaluation, retrained: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean JSD per split, in bits: of the unlearned model to the retrained ones, and between retrained models."""
    divergences = {}
    for split in evaluation.present(("forget", "retain", "test")):
        outputs = [evaluation.logits(name, split) for name in retrained]
        to_references = [float(jsd(evaluation.logits("unlearned", split), output).mean()) for output in outputs]
        among = [float(jsd(a, b).mean()) for i, a in enumerate(outputs) for b in outputs[i + 1 :]]
        divergences[split] = {"unlearned": float(np.mean(to_references)), "among retrained": float(np.mean(among))}
    return divergences


def _gradients(evaluation: Evaluation, model: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Last-layer gradient norms on forget and test samples; None if the classification head cannot be identified."""
    try:
        both = [evaluation.both(model, split) for split in ("forget", "test")]
    except UsageError:
        return None
    forget_norms, test_norms = (
        gradient(logits, labels, features)
        for labels, (logits, features) in zip(
            (evaluation.labels("forget"), unseen_labels(evaluation)), both, strict=True
        )
    )
    return forget_norms, test_norms
