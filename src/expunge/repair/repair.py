"""Label repair as one call: forget or relabel, then look at everybody else (`mending`, `measure`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from expunge.api.prepare import as_splits
from expunge.api.saved import as_trained
from expunge.core.errors import UsageError
from expunge.core.run import Progress
from expunge.methods.base import Method
from expunge.metrics.base import ORIGINAL, REFERENCE
from expunge.repair import effects
from expunge.repair.correction import Action, make_correction
from expunge.repair.files import write_repair
from expunge.repair.measure import check_k, measure_repair
from expunge.repair.mending import mend, train_again
from expunge.repair.outcome import Outcome
from expunge.repair.suspects import read_suspects
from expunge.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Repaired(Outcome):
    """A repair that can be saved."""

    def save(self, folder: str | Path, *, title: str = "Label repair") -> Path:
        """Write the model, the corrected list, the tables and the page; each file appears whole or not at all."""
        self.result.save(folder)
        write_repair(Path(folder), self, title=title)
        return Path(folder)


def repair_labels(
    model: Any,
    train: Any = None,
    suspects: Any = None,
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
    """Repair a model that learned wrong labels, and measure what else that changed; the given model stays as it is.

    Args:
        model: A trained model, result, folder, or module.
        train: What it was trained on, with the labels it was given; default: what the model knows.
        suspects: A file, a DataFrame, or ids of samples whose labels are suspected, see `repair.suspects`.
        action: "forget" the suspects by `method`, or "relabel" them: then a short training follows on the corrected
            data.
        method: As for `unlearn`; "none" skips the unlearning before a relabelling.
        test: Unseen samples; default: what the model knows. Without any, effects are measured on retained samples.
        validation: Held-out samples for `rewind`; default: what the model knows.
        below: Only suspects whose label quality is below it.
        top: Only so many suspects, those of the lowest label quality.
        learn: Recipe of the short training; default: `learning(recipe)`, which needs the recipe of the original.
        recipe: How the model was trained; default: what the model knows.
        initial: The weights its training started from; default: what the model knows.
        retrain: Also compare with a model trained on the corrected data from the start.
        k: Neighbours per suspect that are looked at, >= 1.
        seed: Of the repair and of the controls, >= 0.
        device: `auto` (the first GPU, else the CPU), `cpu`, `cuda` or `cuda:N`.
        progress: Called with the state of the run.
        cache: Folder where retrained models are kept by content.
        options: Options of the method.

    Raises:
        UsageError: If data, suspects or a recipe are missing, or an option is unknown.
        DataError: If suspects are not in the data, or data and model do not fit together.
    """
    trained = as_trained(model)
    if suspects is None or (train is None and trained.train is None):
        what = "suspects" if suspects is None else "train"
        raise UsageError(f"a label repair needs {what}; pass {what}=... to repair_labels.")
    recipe = trained.recipe if recipe is None else recipe
    sources = {"train": trained.train if train is None else train, "test": trained.test if test is None else test}
    splits = as_splits(sources)
    flagged = read_suspects(suspects, splits["train"], below=below, top=top)
    correction = make_correction(splits["train"], flagged, action, method)
    if retrain and recipe is None:
        raise UsageError("a model cannot be trained again without the recipe of the original; pass recipe=...")
    check_k(k)
    result = mend(
        trained, correction, method=method, learn=learn, recipe=recipe, initial=initial, validation=validation,
        seed=seed, device=device, progress=progress, **options,
    )  # fmt: skip
    models: dict[str, Any] = {ORIGINAL: trained, effects.REPAIRED: result}
    if retrain and recipe is not None:
        models[REFERENCE] = train_again(
            trained, correction, recipe=recipe, initial=initial, seed=seed, device=device, progress=progress,
            cache=cache,
        )  # fmt: skip
    measured = measure_repair(models, correction, test=splits.get("test"), k=k, seed=seed, device=device)
    return Repaired(result, correction, measured)
