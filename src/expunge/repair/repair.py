"""Label repair as one call: forget or relabel, then look at everybody else (`mending`, `measure`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from expunge.api.prepare import as_splits
from expunge.api.result import Result
from expunge.core.errors import UsageError
from expunge.core.run import Progress
from expunge.methods.base import Method
from expunge.metrics.base import ORIGINAL, REFERENCE
from expunge.repair import effects
from expunge.repair.correction import Action, Correction, make_correction
from expunge.repair.measure import Effects, check_k, measure_repair
from expunge.repair.mending import mend, train_again
from expunge.repair.suspects import read_suspects
from expunge.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Repaired:
    """result: the repaired model and how it was made. correction: the data. effects: before and after."""

    result: Result
    correction: Correction
    effects: Effects

    @property
    def model(self) -> nn.Module:
        return self.result.model

    def labels(self) -> pd.DataFrame:
        """The corrected list: one row per training sample."""
        return self.correction.frame()

    def save(self, folder: str | Path, *, title: str = "Label repair") -> Path:
        """Write the model, the corrected list, the tables and the page; each file appears whole or not at all."""
        from expunge.repair.files import write_repair

        self.result.save(folder)
        write_repair(Path(folder), self, title=title)
        return Path(folder)


def repair_labels(
    model: Any,
    train: Any,
    suspects: Any,
    *,
    action: Action = "forget",
    method: str | Method = "scrub",
    test: Any = None,
    validation: Any = None,
    below: float | None = None,
    top: int | None = None,
    learn: Recipe | Mapping[str, Any] | None = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    initial: Mapping[str, Tensor] | nn.Module | None = None,
    retrain: bool = False,
    k: int = 10,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
    cache: Path | None = None,
    **options: Any,
) -> Repaired:
    """Repair a model that learned wrong labels, and measure whom else that changed; the given model stays as it is.

    train: what the model was trained on, with the labels it was given. suspects: a file, a DataFrame, or ids, see
    `requests.suspects`; below, top: only the worst by score. action: "forget" the suspects by `method` and its
    `options`, or "relabel" them: then a short training follows on the corrected data, by the recipe `learn`
    (default: `learning(recipe)`); method "none" skips the unlearning before it. recipe, initial: how the model was
    trained and from which weights. retrain: also compare with a model trained on the corrected data from the start;
    kept in `cache`. k: neighbours per suspect that are looked at. test: without it, effects are told on retained
    samples alone.
    """
    splits = as_splits({"train": train, "test": test})
    found = read_suspects(suspects, splits["train"], below=below, top=top)
    correction = make_correction(splits["train"], found, action, method)
    if retrain and recipe is None:
        raise UsageError("a model cannot be trained again without the recipe of the original; pass recipe=...")
    check_k(k)
    result = mend(
        model, correction, method=method, learn=learn, recipe=recipe, initial=initial, validation=validation,
        seed=seed, device=device, progress=progress, **options,
    )  # fmt: skip
    models: dict[str, Any] = {ORIGINAL: model, effects.REPAIRED: result}
    if retrain and recipe is not None:
        models[REFERENCE] = train_again(
            model, correction, recipe=recipe, initial=initial, seed=seed, device=device, progress=progress, cache=cache
        )
    measured = measure_repair(models, correction, test=splits.get("test"), k=k, seed=seed, device=device)
    return Repaired(result, correction, measured)
