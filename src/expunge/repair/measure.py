"""What a repair changed: the suspects, their neighbours, every class, everybody else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from expunge.api.prepare import as_classifier, as_module, pick_device
from expunge.core.errors import UsageError
from expunge.data.split import Split
from expunge.metrics.base import ORIGINAL, Evaluation
from expunge.repair import effects, neighbours
from expunge.repair.correction import Correction
from expunge.repair.suspects import Suspects


@dataclass(frozen=True, eq=False)
class Effects:
    """What is measured after a repair.

    `pairs`, `classes`, `overall` and `suspects` are described in `repair.effects`, `compared` in
    `repair.neighbours.compare`; `neighbours` and `still` are the rows of neighbours.csv and still_suspect.csv.
    """

    pairs: list[dict[str, Any]]
    classes: list[dict[str, Any]]
    overall: list[dict[str, Any]]
    suspects: dict[str, dict[str, Any]]
    compared: list[dict[str, Any]]
    neighbours: pd.DataFrame
    still: pd.DataFrame
    notes: tuple[str, ...] = ()

    def details(self) -> dict[str, Any]:
        """JSON-ready, without the two tables of samples."""
        names = ("pairs", "classes", "overall", "suspects", "compared")
        return {name: getattr(self, name) for name in names} | {"still_suspect": len(self.still)}


def measure_repair(
    models: Mapping[str, Any],
    correction: Correction,
    *,
    test: Split | None = None,
    k: int = 10,
    seed: int = 0,
    device: str = "auto",
) -> Effects:
    """Effects of a repair. models: "original", "repaired" and, if there is one, "retrained"."""
    check_k(k)
    suspects, notes = correction.suspects, list(correction.suspects.notes)
    splits = {"forget": correction.doubtful, "retain": correction.trusted, **({} if test is None else {"test": test})}
    target = pick_device(device)
    modules = {name: as_classifier(as_module(model), splits, target)[0] for name, model in models.items()}
    evaluation = Evaluation(modules, splits, device=target, seed=seed)
    pairs = effects.pair_effects(evaluation, suspects)
    if not pairs:
        notes.append("the list suggests no labels, so that no pair of classes has an IC-ERR or FGT-ERR.")
    if test is None:
        notes.append("no test data were given: effects are told on retained samples, which the model was trained on.")
    compared, table = [], pd.DataFrame({"group": []})
    try:
        near = neighbours.find_neighbours(
            modules[ORIGINAL], splits["forget"], splits["retain"], k=k, seed=seed, device=target
        )
    except UsageError as error:
        notes.append(f"neighbours were not looked for: {error}")
    else:
        compared = neighbours.compare(evaluation, near)
        table = neighbours.table(evaluation, near, suspects.ids)
    return Effects(
        pairs=pairs,
        classes=effects.class_effects(evaluation, suspects),
        overall=effects.overall(evaluation),
        suspects=effects.suspect_effects(evaluation, suspects),
        compared=compared,
        neighbours=table,
        still=still_suspect(evaluation, suspects),
        notes=tuple(notes),
    )


def still_suspect(evaluation: Evaluation, suspects: Suspects) -> pd.DataFrame:
    """Suspects that the repaired model still calls by the given label, the surest first; readable as suspects again."""
    logits = evaluation.logits(effects.REPAIRED, "forget")
    still = (logits.argmax(1) == suspects.given).numpy()
    suggested = pd.array(suspects.suggested.numpy(), dtype="Int64")
    suggested[suspects.suggested.numpy() < 0] = pd.NA
    table = pd.DataFrame(
        {
            "id": suspects.ids,
            "position": suspects.positions.numpy(),
            "given_label": suspects.given.numpy(),
            "suggested_label": suggested,
            "label_quality": suspects.score,
            "confidence_in_given": effects.confidence(logits, suspects.given).numpy(),
        }
    )
    return table[still].sort_values(["confidence_in_given", "position"], ascending=[False, True], ignore_index=True)


def check_k(k: int) -> None:
    """`UsageError` for an impossible number of neighbours."""
    if k < 1:
        raise UsageError(f"`k`, the neighbours per suspect, must be at least 1, got {k}.")
