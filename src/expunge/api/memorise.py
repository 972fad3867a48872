"""Scores that say which samples a model memorises, or which are hardest to forget; scenarios choose by them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from expunge.api.prepare import as_classifier, as_splits, check_fit, check_trainable, pick_device, warm_up
from expunge.api.saved import as_trained
from expunge.core.errors import UsageError, unknown
from expunge.core.options import build, to_dict
from expunge.core.run import Progress, Run
from expunge.core.seeds import global_generators
from expunge.core.version import versions
from expunge.data.scores import SampleScores
from expunge.data.split import Split
from expunge.memorisation.dynamics import dynamics_scores
from expunge.memorisation.subsampling import Start, memorisation
from expunge.memorisation.worst_case import WorstCaseSearch, worst_case
from expunge.models.checkpoint import weights_hash
from expunge.scenarios.base import count_of
from expunge.training.cache import train_cached
from expunge.training.precision import resolve_precision
from expunge.training.recipe import Recipe, make_recipe

By = Literal["subsampling", "confidence", "events", "worst-case"]


def memorise(
    model: Any,
    data: Any = None,
    *,
    by: By = "subsampling",
    models: int = 40,
    share: float = 0.7,
    start: Start = "drawn",
    amount: float = 0.1,
    search: WorstCaseSearch | Mapping[str, Any] | None = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
    cache: Path | None = None,
) -> SampleScores:
    """One score per sample of `data`, larger meaning more memorised; the given model stays as it is.

    Args:
        model: The module that trainings start from; of a trained model, result or folder, its initial weights where
            they are known, else its weights.
        data: A split, a map-style data set or (X, y), with labels; default: what the model was trained on.
        by: `subsampling`, memorisation itself, from many trainings, with a standard error; `confidence` and `events`,
            cheap proxies from one training; `worst-case`, the search of Fan et al. for the samples that are hardest
            to erase.
        models: Number of trainings of `subsampling`, >= 2.
        share: Fraction of the data that each of them sees, between 0 and 1.
        start: For `subsampling`: initial weights `drawn` per training, or those `given`.
        amount: Size of the set that `worst-case` looks for: a fraction below 1, or a number of samples.
        search: Options of `worst-case`.
        recipe: How models are trained; default: what the model knows, else `Recipe()`, which a note then says.
        seed: Of subsets, initial weights and order, >= 0.
        device: `auto` (the first GPU, else the CPU), `cpu`, `cuda` or `cuda:N`.
        progress: Called with the state of the run.
        cache: Folder in which finished work is kept by content, so that a stopped call goes on.

    Returns:
        The scores: `.frame()` is a table, `.save("scores.csv")` the file that the scenarios `memorised` and
        `worst-case` take.

    Raises:
        UsageError: If `by` or an option is unknown, or there are no data or no labels.
        DataError: If data and model do not fit together.
    """
    if by not in get_args(By):
        raise unknown("score", by, get_args(By))
    trained, target = as_trained(model), pick_device(device)
    chosen = make_recipe(trained.recipe if recipe is None else recipe)
    assumed = recipe is None and trained.recipe is None
    source = trained.model
    if trained.initial is not None:
        source = copy.deepcopy(source)
        source.load_state_dict(trained.initial)
    check_trainable(source)
    known = trained.train if data is None else data
    if known is None:
        raise UsageError("nothing to score: pass data=..., or a model that knows its training data.")
    split = as_splits({"train": known})["train"]
    if not split.has_labels:
        raise UsageError("memorisation is told from right and wrong answers; pass data with labels.")
    source, _ = as_classifier(source, {"train": split}, target, trains=True)
    check_fit(source, {"train": split}, target)
    run = Run(
        seed=seed,
        device=target,
        precision=resolve_precision(chosen.precision, source, split, chosen.batch_size, target),
        label="memorise",
        progress=progress,
        cache=cache,
    )
    warm_up()
    if by == "subsampling":
        scores = memorisation(source, split, chosen, run, models=models, share=share, start=start)
    elif by == "worst-case":
        options = (
            search if isinstance(search, WorstCaseSearch) else build(WorstCaseSearch, dict(search or {}), "worst-case")
        )
        scores = _worst_case(source, split, chosen, run, count_of(amount, len(split), "`amount`"), options)
    else:
        scores = dynamics_scores(source, split, chosen, run, by=by)
    facts = {
        **scores.facts,
        "recipe": to_dict(chosen),
        "seed": seed,
        "device": str(target),
        "data": split.content_hash(),
        "samples": len(split),
        "start": weights_hash(source),
        "versions": versions(),
    }
    notes = scores.notes
    if assumed:
        notes += (
            f"no recipe was given and the model knows none, so the default one was used ({chosen.epochs} epochs of "
            f"{chosen.optimizer}, rate {chosen.lr:g}, batches of {chosen.batch_size}): memorisation is that of such "
            "trainings; pass recipe=... of yours.",
        )
    return SampleScores(scores.by, scores.ids, scores.positions, scores.columns, facts, notes)


def _worst_case(
    source: nn.Module, split: Split, recipe: Recipe, run: Run, count: int, search: WorstCaseSearch
) -> SampleScores:
    """The original is trained first, or taken from the cache; it is the one that `expunge train` makes."""
    with global_generators(run.device):
        original = train_cached(copy.deepcopy(source), split, recipe, run)
    return worst_case(original, split, recipe, run, count=count, search=search)
