"""Scores that say which samples a model memorises, or which are hardest to forget; scenarios choose by them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from expunge.api.prepare import as_module, as_splits, check_fit, check_trainable, pick_device, warm_up
from expunge.api.result import versions
from expunge.api.train import make_recipe
from expunge.core.errors import UsageError, unknown
from expunge.core.options import build, to_dict
from expunge.core.run import Progress, Run
from expunge.data.scores import SampleScores
from expunge.data.split import Split
from expunge.memorisation.dynamics import dynamics_scores
from expunge.memorisation.subsampling import Start, memorisation
from expunge.memorisation.worst_case import WorstCase, worst_case
from expunge.models.checkpoint import weights_hash
from expunge.scenarios.base import count_of
from expunge.training.cache import train_cached
from expunge.training.precision import resolve_precision
from expunge.training.recipe import Recipe

By = Literal["subsampling", "confidence", "events", "worst-case"]


def memorise(
    model: Any,
    data: Any,
    *,
    by: By = "subsampling",
    models: int = 40,
    share: float = 0.7,
    start: Start = "drawn",
    amount: float = 0.1,
    search: WorstCase | Mapping[str, Any] | None = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
    cache: Path | None = None,
) -> SampleScores:
    """One score per sample of `data`, larger meaning more memorised; the given model stays as it is.

    by: `subsampling`, memorisation itself, from `models` trainings on random parts of `share` of the data each, with
    a standard error; `confidence` and `events`, cheap proxies from one training; `worst-case`, the search of Fan et
    al. for the `amount` (fraction below 1, or number) of samples that are hardest to erase, with the options
    `search`. start: for `subsampling`, weights `drawn` per model or those `given`. recipe: how models are trained.
    cache: folder in which finished work is kept by content, so that a stopped call goes on.

    `.frame()` is a table, `.save("scores.csv")` the file that the scenarios `memorised` and `worst-case` take.
    """
    if by not in get_args(By):
        raise unknown("score", by, get_args(By))
    chosen, target = make_recipe(recipe), pick_device(device)
    source = as_module(model)
    check_trainable(source)
    split = as_splits({"train": data})["train"]
    if not split.has_labels:
        raise UsageError("memorisation is told from right and wrong answers; pass data with labels.")
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
        options = search if isinstance(search, WorstCase) else build(WorstCase, dict(search or {}), "worst-case")
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
    return SampleScores(scores.by, scores.ids, scores.positions, scores.columns, facts, scores.notes)


def _worst_case(
    source: nn.Module, split: Split, recipe: Recipe, run: Run, count: int, search: WorstCase
) -> SampleScores:
    """The original is trained first, or taken from the cache; it is the one that `expunge train` makes."""
    devices = [torch.cuda.current_device()] if torch.device(run.device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        original = train_cached(copy.deepcopy(source), split, recipe, run)
    return worst_case(original, split, recipe, run, count=count, search=search)
