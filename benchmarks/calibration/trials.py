"""Everything that is measured for one task and request, and the verdicts on every model with known truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.calibration.controls import controls
from benchmarks.calibration.tasks import Request, Task, make_request
from expunge.core.errors import UsageError
from expunge.core.options import build
from expunge.data.split import Split
from expunge.evidence.audit import population_attacks
from expunge.evidence.family import NEAR, judge_family, measure_family
from expunge.evidence.feature_measures import AuditSamples, FeatureSettings, grams, layer_rows, probe_rows, relearn_rows
from expunge.evidence.held_out import against_held_out, matching
from expunge.evidence.inputs import near_split
from expunge.evidence.permutation import permuted_groups
from expunge.evidence.representation import original_body
from expunge.evidence.signals import confidence
from expunge.evidence.verdict import Findings, Margins, decide
from expunge.metrics.base import Evaluation
from expunge.metrics.membership import histogram_weights

REFERENCES = (3, 5, 8)
RETRAINED, ORIGINALS, TEACHER = 9, 3, 900
MARGINS, SETTINGS = build(Margins, {}, "margins"), build(FeatureSettings, {}, "settings")


def kept(task: Task, split: Split, seed: int, cache: Path) -> nn.Module:
    """A model trained on a split, from the cache where it was trained before."""
    path = cache / f"{task.name}-{split.content_hash()[:16]}-{seed}.pt"
    net = task.fresh(seed)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(task.train(split, seed).state_dict(), path)
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


def trained_models(task: Task, asked: Request, cache: Path) -> dict[str, nn.Module]:
    """Retrained models r0.. and originals o0.. of a request."""
    models = {f"r{i}": kept(task, asked.retain, 100 + i, cache) for i in range(RETRAINED)}
    return models | {f"o{i}": kept(task, asked.train, i, cache) for i in range(ORIGINALS)}


def differs(task: Task, request: str, cache: Path) -> dict[str, Any]:
    """Do originals differ from retrained models at all? An exact permutation test over all 12 models of known truth.

    Which 3 of the 12 are the originals is exchanged (220 ways). Two statistics of each model, Bonferroni: forget
    accuracy, and the mean of phi = log(p_y / (1 - p_y)) over the samples to forget less its mean over unseen samples
    of the same classes.
    """
    asked = make_request(task, request)
    evaluation = Evaluation(
        trained_models(task, asked, cache), {"forget": asked.forget, "retain": asked.retain, "test": asked.test}
    )
    unseen, labels = evaluation.labels("test"), evaluation.labels("forget")
    weights = torch.from_numpy(histogram_weights(unseen.numpy(), labels.numpy()))
    values: dict[str, list[float]] = {"confidence": [], "accuracy": []}
    for name in evaluation.models:
        of_forget, of_test = (
            confidence(evaluation.logits(name, split), y) for split, y in (("forget", labels), ("test", unseen))
        )
        values["confidence"].append(float(of_forget.mean() - weights @ of_test / weights.sum()))
        values["accuracy"].append(float(evaluation.correct(name, "forget").double().mean()))
    known = np.zeros(ORIGINALS), np.zeros(RETRAINED)
    p = min(
        permuted_groups(np.array(of_all[RETRAINED:]), np.array(of_all[:RETRAINED]), known) for of_all in values.values()
    )
    return {"task": task.name, "request": request, "samples": len(asked.forget), "p": min(1.0, 2 * p)}


@dataclass(eq=False)
class Bench:
    """All models of one task and request. truth: name -> (kind, what it is)."""

    task: Task
    asked: Request
    models: dict[str, nn.Module]
    truth: dict[str, tuple[str, str]]
    evaluation: Evaluation = field(init=False)
    below: dict[str, dict[str, dict[str, float]]] = field(init=False)

    def __post_init__(self) -> None:
        splits = {"forget": self.asked.forget, "retain": self.asked.retain, "test": self.asked.test}
        near = near_split(self.asked.forget, 0)
        self.evaluation = Evaluation(self.models, splits if near is None else {**splits, NEAR: near})
        self.below = self._below()

    @classmethod
    def of(cls, task: Task, request: str, cache: Path) -> Bench:
        """Train what is needed, or look it up, and make the candidates."""
        asked = make_request(task, request)
        models = trained_models(task, asked, cache)
        truth = {name: ("retrained" if name[0] == "r" else "original", name) for name in models}
        teacher = kept(task, asked.retain, TEACHER, cache)
        for kind, name, model in controls(task, asked, models["o0"], teacher):
            models[name], truth[name] = model.eval(), (kind, name)
        return cls(task, asked, models, truth)

    def _below(self) -> dict[str, dict[str, dict[str, float]]]:
        """original -> model -> statistic -> value: three do not depend on the original, the fourth does."""
        splits, device = self.evaluation.splits, torch.device("cpu")
        draw = AuditSamples.draw(splits["forget"], splits["retain"], splits["test"], 0, SETTINGS)
        own: dict[str, dict[str, float]] = {name: {} for name in self.models}
        layers: dict[str, Any] = {}
        for name, model in self.models.items():
            for rows in (probe_rows(name, self.evaluation, draw), relearn_rows(name, model, draw, device)):
                try:
                    own[name] |= {row.statistic: row.value for row in rows if not row.part and row.step is None}
                except (UsageError, RuntimeError):
                    continue
            try:
                layers[name] = grams(model, draw, device)
            except (UsageError, RuntimeError):
                continue
        found: dict[str, dict[str, dict[str, float]]] = {}
        for anchor in (name for name in self.models if self.truth[name][0] == "original"):
            found[anchor] = {name: dict(values) for name, values in own.items()}
            for name, mine in layers.items():
                try:
                    rows_of = list(layer_rows(name, mine, layers[anchor]))
                except UsageError:
                    continue
                found[anchor][name] |= {row.statistic: row.value for row in rows_of if not row.part}
        return found

    def view(self, names: Mapping[str, str]) -> Evaluation:
        """The evaluation under other names: role -> model; nothing is computed twice."""
        shared = Evaluation({role: self.models[name] for role, name in names.items()}, self.evaluation.splits)
        for split in self.evaluation.splits:
            for role, name in names.items():
                try:
                    logits, features = self.evaluation.both(name, split)
                    shared._features[role, split] = features
                except UsageError:
                    logits = self.evaluation.logits(name, split)
                shared._logits[role, split] = logits
        return shared

    def verdict(self, candidate: str, original: str, references: Sequence[str]) -> tuple[str, str]:
        """(word, first reason) beside retrained models."""
        again = {f"retrained {i + 1}": name for i, name in enumerate(references)}
        roles = {"unlearned": candidate, "original": original, **again}
        known = {role: self.below[original][name] for role, name in roles.items()}
        names = set(known["original"])
        left_out = [(f"representation ({name})", "failed") for name in sorted(names - set(known["unlearned"]))]
        evaluation = self.view(roles)
        family = measure_family(evaluation, list(again), representation=known, left_out=left_out)
        comparisons = judge_family(family, MARGINS.of)
        flags = original_body(evaluation, list(again))
        found = Findings(comparisons, flags, family.unmeasured, len(self.asked.forget), len(again))
        word, reasons = decide(found, MARGINS)
        return word, reasons[0]

    def trials(self) -> Iterator[dict[str, Any]]:
        """One row per verdict."""
        facts = {"task": self.task.name, "request": self.asked.name, "samples": len(self.asked.forget)}
        again = [name for name in self.models if self.truth[name][0] == "retrained"]
        others = [name for name in self.models if self.truth[name][0] != "retrained"]

        def row(candidate: str, count: int, word: str, reason: str) -> dict[str, Any]:
            kind, name = self.truth[candidate]
            return {**facts, "kind": kind, "model": name, "references": count, "word": word, "reason": reason}

        for count in REFERENCES:
            for at, candidate in enumerate(again):
                rest = again[at + 1 :] + again[:at]
                yield row(candidate, count, *self.verdict(candidate, "o0", rest[:count]))
            for candidate in others:
                original = candidate if self.truth[candidate][0] == "original" else "o0"
                yield row(candidate, count, *self.verdict(candidate, original, again[:count]))
        match = matching({name: self.evaluation.splits[name] for name in ("forget", "retain", "test")}, 0)
        for candidate in (*again, *others):
            original = candidate if self.truth[candidate][0] == "original" else "o0"
            evaluation = self.view({"unlearned": candidate, "original": original})
            attacks = {name: population_attacks(evaluation, name, 50) for name in ("original", "unlearned")}
            random = self.asked.name in ("random", "few")
            word, reasons = against_held_out(evaluation, attacks, match, MARGINS, random=random)
            yield row(candidate, 0, word, reasons[0])


def run(task: Task, request: str, cache: Path) -> list[dict[str, Any]]:
    return list(Bench.of(task, request, cache).trials())


__all__ = ["Bench", "make_request", "run"]
