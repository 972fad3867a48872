"""Cache of trained models, addressed by content.

The key of a training contains its data, options, initial weights and the source of the code that runs: the model's, and
that of the training loop. A file is used only if it states this key and its weights have the recorded hash.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.core.entries import record
from expunge.core.errors import CheckpointError, ExpungeError
from expunge.core.identity import code_hash
from expunge.core.options import to_dict
from expunge.core.run import Run
from expunge.core.shelf import claimed, doubt
from expunge.data.origin import origin_of
from expunge.data.split import Split
from expunge.models.checkpoint import load_weights, read_metadata, save_weights, weights_hash
from expunge.models.identity import model_code
from expunge.training.loop import train_model
from expunge.training.recipe import Recipe


def training_key(
    model: nn.Module, data: Split, recipe: Recipe, seed: int, purpose: str, precision: str, processes: int = 1
) -> str:
    """Hex SHA-256 of everything that determines the trained weights.

    Args:
        model: with its initial weights.
        data: the training samples.
        recipe: how it is trained.
        seed: of the run.
        purpose: name of the stream of random numbers.
        precision: "float32" or "bfloat16".
        processes: number of processes that share the training.
    """
    facts: dict[str, Any] = {
        "code": [code_hash("expunge.training.loop"), model_code(model)],
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
    """`train_model`, or the stored result if exactly this training was done before (needs `run.cache`).

    The seconds of the training are stored with the weights, so a cached reference still reports its true cost.
    """
    if run.cache is None or run.keep_snapshots:  # rewinding needs every epoch, not only the last
        return train_model(model, data, recipe, run, purpose=purpose)
    key = training_key(model, data, recipe, run.seed, purpose, run.precision, run.world.size)
    weights = run.cache / "models" / f"{key}.safetensors"
    doubted = doubt(weights.parent)
    if doubted is not None:
        _note(run, doubted)
        return train_model(model, data, recipe, run, purpose=purpose)
    # Of two workers that need the same model one trains, and the other waits and loads; the time of waiting is not
    # counted. Of processes that share this run only the main process holds the lock and reads.
    before = run.elapsed()
    with claimed(weights) if run.world.is_main else nullcontext() as problem:
        run.count_seconds(before - run.elapsed())
        stored = run.world.from_main(lambda: _load(model, weights, run))
        if stored is None:
            start = run.elapsed()
            train_model(model, data, recipe, run, purpose=purpose)
            if problem is not None:
                _note(run, problem)
            elif run.status == "finished" and run.world.is_main:
                _store(model, data, weights, run, run.elapsed() - start)
        else:
            run.world.broadcast_parameters(model)
            run.history.extend(stored[0])
            run.count_seconds(stored[1])
    return model.to(run.device)


def _note(run: Run, sentence: str) -> None:
    if sentence not in run.notes:
        run.notes.append(sentence)


def _load(model: nn.Module, weights: Path, run: Run) -> tuple[list[dict[str, float]], float] | None:
    """Load `model` from the cache; returns history and seconds of its training, or None if it is not cached."""
    facts = weights.with_suffix(".json")
    if not (weights.exists() and facts.exists()):
        return None
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    try:
        stored = json.loads(facts.read_text(encoding="utf-8"))
        history, seconds, stated = list(stored["history"]), float(stored["seconds"]), str(stored["weights"])
        if read_metadata(weights).get("key") != weights.stem:
            raise CheckpointError(f"{weights} is that of another training.")
        if weights_hash(load_weights(model, weights)) != stated:
            raise CheckpointError(f"the weights in {weights} do not have the hash recorded in {facts.name}.")
    except (CheckpointError, LookupError, OSError, TypeError, ValueError):
        model.load_state_dict(before)  # retraining must not start from another model's weights
        run.notes.append(f"the cached model {weights.stem[:12]} was damaged or replaced and is trained again.")
        return None
    return history, seconds


def _store(model: nn.Module, data: Split, weights: Path, run: Run, seconds: float) -> None:
    """Write weights and facts; failure to write is a note, because the model itself is not lost."""
    facts = weights.with_suffix(".json")
    part = facts.with_suffix(".part")
    content = {"seconds": seconds, "history": run.history, "weights": weights_hash(model)}
    try:
        save_weights(model, weights, {"key": weights.stem})
        part.write_text(json.dumps(content), encoding="utf-8")
        part.replace(facts)
        record(weights, weights.parent.parent, **origin_of(data))
    except (ExpungeError, OSError) as error:
        _note(run, f"the trained model could not be cached ({str(error).rstrip('.')}).")
