"""Trained models kept by content, so that nothing is trained twice and nothing stale is ever reused."""

from __future__ import annotations

import hashlib
import json
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


def training_key(model: nn.Module, data: Split, recipe: Recipe, seed: int, purpose: str, precision: str) -> str:
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
    key = training_key(model, data, recipe, run.seed, purpose, run.precision)
    weights = run.cache / "models" / f"{key}.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    # Two workers that need the same model: one trains, the other waits and loads; waiting is nobody's cost.
    before = run.elapsed()
    with FileLock(weights.with_suffix(".lock")):
        run.borrow(before - run.elapsed())
        if not _load(model, weights, run):
            _train_and_keep(model, data, recipe, run, purpose, weights)
    return model.to(run.device)


def _load(model: nn.Module, weights: Path, run: Run) -> bool:
    facts = weights.with_suffix(".json")
    if not (weights.exists() and facts.exists()):
        return False
    try:
        stored = json.loads(facts.read_text(encoding="utf-8"))
        history, seconds = list(stored["history"]), float(stored["seconds"])
        load_weights(model, weights)  # last: a model that is trained again must not start from half of this
    except (CheckpointError, LookupError, TypeError, ValueError):
        run.notes.append(f"the cached model {weights.stem[:12]} was damaged and is trained again.")
        return False
    run.history.extend(history)
    run.borrow(seconds)
    return True


def _train_and_keep(model: nn.Module, data: Split, recipe: Recipe, run: Run, purpose: str, weights: Path) -> None:
    before = run.elapsed()
    train_model(model, data, recipe, run, purpose=purpose)
    if run.status == "finished":
        save_weights(model, weights)
        facts = weights.with_suffix(".json")
        part = facts.with_suffix(".part")
        part.write_text(json.dumps({"seconds": run.elapsed() - before, "history": run.history}), encoding="utf-8")
        part.replace(facts)
