"""What `memorise` does: data and a model in, a file of scores out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from expunge import api
from expunge.api.result import write_text
from expunge.cli import console, inputs
from expunge.cli.faults import Interrupted
from expunge.cli.fields import typed_options
from expunge.cli.jobs import Memorise
from expunge.core.errors import UsageError
from expunge.core.options import option_names, to_dict
from expunge.data.cache import cache_root
from expunge.data.scores import SampleScores, check_suffix
from expunge.training.recipe import Recipe


def memorise(job: Memorise) -> None:
    """Score every training sample; models that an earlier, interrupted call finished are not trained again."""
    recipe = Recipe(**typed_options(Recipe, job.options, commands=option_names(Memorise)))
    given = bool(job.options)
    job = dataclasses.replace(job, options=to_dict(recipe))
    check_suffix(job.out)
    if job.out.exists() and not job.overwrite:
        raise UsageError(f"{job.out} is there already; pass --overwrite to replace it, or choose another file.")
    train = inputs.load_data(job).train
    if job.forget is not None:
        train = inputs.split_data(job, train).train
    model = inputs.build(job, train, seed=job.seed, weights=job.checkpoint)
    try:
        with console.progress() as progress:
            scores = api.memorise(
                model, train, by=job.by, models=job.models, share=job.share, amount=job.amount,
                recipe=recipe if given else None,
                start="drawn" if job.checkpoint is None else "given", seed=job.seed, device=job.device,
                progress=progress, cache=cache_root(),
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; finished work is kept in {cache_root()}; run the same command again to go on."
        ) from None
    scores.save(job.out)
    facts = facts_of(job.out)
    write_text(facts, json.dumps({"settings": to_dict(job), **scores.facts}, indent=1, default=str) + "\n")
    _print(scores)
    for note in scores.notes:
        console.say(f"note: {note}")
    console.say(f"written: {job.out}, {facts}")


def facts_of(out: Path) -> Path:
    """`scores.csv.json`: seeds, recipe, versions of the scores beside it."""
    return out.with_name(f"{out.name}.json")


def _print(scores: SampleScores) -> None:
    finite = scores.score[np.isfinite(scores.score)]
    names = ("lowest", "median", "mean", "highest")
    grid = console.table("samples", "score by", *names, right=("samples", *names))
    values = (finite.min(), np.median(finite), finite.mean(), finite.max()) if len(finite) else ()
    cells = [f"{value:.3f}" for value in values] or ["-"] * len(names)
    grid.add_row(f"{len(scores):,}", scores.by, *cells)
    console.out().print(grid)
