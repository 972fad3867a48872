"""Trained models kept by content, so that nothing is trained twice and nothing stale is ever reused."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.core.errors import CheckpointError
from expunge.core.options import to_dict
from expunge.core.run import Run
from expunge.data.split import Split
from expunge.models.checkpoint import load_weights, save_weights, weights_hash
from expunge.training.loop import train_model
from expunge.training.recipe import Recipe

FORMAT = 1  # raise when the training loop changes results


def cache_root() -> Path:
    """`$EXPUNGE_CACHE`, else the user's cache folder."""
    given = os.environ.get("EXPUNGE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else (Path(base) if base else Path.home() / ".cache") / "expunge"


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
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def train_cached(model: nn.Module, data: Split, recipe: Recipe, run: Run, *, purpose: str = "train") -> nn.Module:
    """`train_model`, or its stored result if exactly this training was done before (needs `run.cache`).

    Seconds of the original training are kept beside the weights, so a cached reference still reports its true cost.
    """
    if run.cache is None:
        return train_model(model, data, recipe, run, purpose=purpose)
    key = training_key(model, data, recipe, run.seed, purpose, run.precision)
    weights = run.cache / "models" / f"{key}.safetensors"
    facts = weights.with_suffix(".json")
    if weights.exists() and facts.exists():
        try:
            load_weights(model, weights)
            stored = json.loads(facts.read_text(encoding="utf-8"))
        except (CheckpointError, json.JSONDecodeError):
            run.notes.append(f"the cached model {key[:12]} was damaged and is trained again.")
        else:
            run.history.extend(stored["history"])
            run.details["cached_seconds"] = stored["seconds"]
            run.snapshot(0, model)
            return model.to(run.device)
    before = run.elapsed()
    train_model(model, data, recipe, run, purpose=purpose)
    if run.status == "finished":
        weights.parent.mkdir(parents=True, exist_ok=True)
        save_weights(model, weights)
        part = facts.with_suffix(".part")
        part.write_text(json.dumps({"seconds": run.elapsed() - before, "history": run.history}), encoding="utf-8")
        part.replace(facts)
    return model
