"""The audit: statistics of every model from shared predictions, attacks without shadow models, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.api.prepare import as_module, as_splits, check_disjoint, check_fit, pick_device
from expunge.core.errors import UsageError
from expunge.core.options import build, to_dict
from expunge.core.seeds import numpy_generator
from expunge.evidence.distances import jsd, tug_of_war
from expunge.evidence.rates import Separation, separation
from expunge.evidence.residue import examine, with_residue
from expunge.evidence.signals import SIGNALS, gradient
from expunge.evidence.verdict import Margins, Verdict, against_held_out, against_retrained
from expunge.metrics.agreement import representation
from expunge.metrics.base import Evaluation
from expunge.metrics.membership import histogram_weights
from expunge.models.modes import evaluation_mode

_TOO_FEW = 5  # samples to forget, or unseen ones of their classes, below which no attack is measured
_BATCH = 512


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
) -> Verdict:
    """How well `unlearned` forgot `forget`, in one word with its reasons.

    original, unlearned, retrained: modules or results. retrained: models trained again without the forget set, with
    different seeds; two or more give the strong verdict, five or more usually something to say. test: samples no model
    has seen, with those of the forgotten classes. margins: differences that count as none (accuracy and AUC, 0.05).
    resamples: of the bootstrap. residue: also look below the answers (`evidence.residue`; it costs a few training steps
    per model), for methods that hide instead of forget; the word stays what the answers say. Raises `UsageError` for a
    single retrained model.
    """
    target = pick_device(device)
    if len(retrained) == 1:
        raise UsageError("one retrained model has no spread; pass at least two, or none for the weaker verdict.")
    limits = margins if isinstance(margins, Margins) else build(Margins, dict(margins or {}), "margins")
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
    details: dict[str, Any] = {"statistics": numbers, "margins": to_dict(limits)}
    if again:
        details["jsd"] = distances(evaluation, [name for name in names if name.startswith("retrained")])
        mean = {key: float(np.mean([one[key] for one in again])) for key in again[0]}
        details["tow"] = tug_of_war(*({k.removesuffix(" accuracy"): v for k, v in d.items()} for d in
                                      (numbers["unlearned"], mean)))  # fmt: skip
        word, reasons, found = against_retrained(numbers["original"], numbers["unlearned"], again, limits)
        return with_residue(Verdict(word, "retrained", reasons, found, attacks, details), below)
    if "loss" not in attacks["unlearned"]:
        few = f"fewer than {_TOO_FEW} samples to forget, or unseen ones of their classes"
        reasons = [f"{few}: no attack can be measured."]
        return with_residue(Verdict("not enough evidence", "held-out", reasons, [], attacks, details), below)
    word, reasons = against_held_out(numbers["original"], numbers["unlearned"], attacks["unlearned"]["loss"], limits)
    return with_residue(Verdict(word, "held-out", reasons, [], attacks, details), below)


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


def population_attacks(evaluation: Evaluation, model: str, resamples: int = 500) -> dict[str, Separation]:
    """Every signal: samples to forget against unseen ones, weighted to the same class shares. Empty if too few."""
    labels, unseen = evaluation.labels("forget"), evaluation.labels("test")
    alike = torch.isin(unseen, labels.unique())
    if min(len(labels), int(alike.sum())) < _TOO_FEW:
        return {}
    weights = histogram_weights(unseen[alike].numpy(), labels.numpy())
    here, there = evaluation.logits(model, "forget"), evaluation.logits(model, "test")[alike]
    scores = {
        name: (score(here, labels).numpy(), score(there, unseen[alike]).numpy()) for name, score in SIGNALS.items()
    }
    found = _gradients(evaluation, model)
    if found is not None:
        scores["gradient norm"] = (found[0].numpy(), found[1][alike].numpy())
    return {
        name: separation(
            members, others, weights, numpy_generator(evaluation.seed, "audit", name), resamples=resamples
        )
        for name, (members, others) in scores.items()
    }  # fmt: skip


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
    module: nn.Module = evaluation.models[model]
    home = next((p.device for p in module.parameters()), evaluation.device)
    module.to(evaluation.device)
    try:
        found = []
        for split in ("forget", "test"):
            data = evaluation.splits[split]
            sample = next(iter(data.batches(2, device=evaluation.device))).x
            features = representation(module, sample)
            with evaluation_mode(module), torch.inference_mode():
                parts = [features(batch.x).float().cpu() for batch in data.batches(_BATCH, device=evaluation.device)]
            found.append(gradient(evaluation.logits(model, split), evaluation.labels(split), torch.cat(parts)))
        return found[0], found[1]
    except UsageError:
        return None
    finally:
        module.to(home)
