"""Trained models kept by content, so that nothing is trained twice and nothing stale is ever reused."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from expunge.core.errors import CheckpointError
from expunge.core.options import to_dict
from expunge.core.run import Run
from expunge.data.split import Split
from expunge.models.checkpoint import load_weights, save_weights, weights_hash
from expunge.training.loop import train_model
from expunge.training.recipe import Recipe

FORMAT = 1  # raise when the training loop changes results


def training_key(
    model: nn.Module, data: Split, recipe: Recipe, seed: int, purpose: str, precision: str, processes: int = 1
) -> str:
    """Hex sha256 over everything that decides the trained weights."""
    facts: dict[str, Any] = {
        "format": FORMAT,
        "torch": torch.__version__,
        "architecture": repr(model),
        "start": weights_hash(model),
        "data": data.content_hash(),
        "classes": data.num_classes,
        "recipe": to_dict(recipe),
        "seed": seed,
        "purpose": purpose,
        "precision": precision,
    }
    if processes > 1:  # the same to rounding only
        facts["processes"] = processes
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if fixed:
        facts["fixed"] = fixed
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def train_cached(model: nn.Module, data: Split, recipe: Recipe, run: Run, *, purpose: str = "train") -> nn.Module:
    """`train_model`, or its stored result if exactly this training was done before (needs `run.cache`).

    Seconds of the original training are kept beside the weights, so a cached reference still reports its true cost.
    """
    if run.cache is None or run.keep_snapshots:  # rewinding needs every epoch, not only the last
        return train_model(model, data, recipe, run, purpose=purpose)
    key = training_key(model, data, recipe, run.seed, purpose, run.precision, run.world.size)
    weights = run.cache / "models" / f"{key}.safetensors"
    # Two workers that need the same model: one trains, the other waits and loads; waiting is nobody's cost. Of
    # processes that share this run only the first holds the lock and reads.
    before = run.elapsed()
    with _lock(weights) if run.world.first else nullcontext():
        run.borrow(before - run.elapsed())
        kept = run.world.from_first(lambda: _load(model, weights, run))
        if kept is None:
            _train_and_keep(model, data, recipe, run, purpose, weights)
        else:
            run.world.align(model)
            run.history.extend(kept[0])
            run.borrow(kept[1])
    return model.to(run.device)


def _lock(weights: Path) -> FileLock:
    weights.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(weights.with_suffix(".lock"))


def _load(model: nn.Module, weights: Path, run: Run) -> tuple[list[dict[str, float]], float] | None:
    """Fill `model` from the cache; the history and the seconds of its training, or None if it is not there."""
    facts = weights.with_suffix(".json")
    if not (weights.exists() and facts.exists()):
        return None
    try:
        stored = json.loads(facts.read_text(encoding="utf-8"))
        history, seconds = list(stored["history"]), float(stored["seconds"])
        load_weights(model, weights)  # last: a model that is trained again must not start from half of this
    except (CheckpointError, LookupError, TypeError, ValueError):
        run.notes.append(f"the cached model {weights.stem[:12]} was damaged and is trained again.")
        return None
    return history, seconds


def _train_and_keep(model: nn.Module, data: Split, recipe: Recipe, run: Run, purpose: str, weights: Path) -> None:
    before = run.elapsed()
    train_model(model, data, recipe, run, purpose=purpose)
    if run.status == "finished" and run.world.first:
        save_weights(model, weights)
        facts = weights.with_suffix(".json")
        part = facts.with_suffix(".part")
        part.write_text(json.dumps({"seconds": run.elapsed() - before, "history": run.history}), encoding="utf-8")
        part.replace(facts)
