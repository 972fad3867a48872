"""One command per settings class (`train`, `unlearn`, `audit`, ..); what they do is done elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer

from expunge.cli.fields import Inner, job_command
from expunge.cli.jobs import Audit, Evaluate, Memorise, Pooled, Repair, Train, Unlearn
from expunge.core.errors import UsageError
from expunge.core.user_code import split_preset


def recipe_class(values: Mapping[str, Any]) -> type:
    """The class of a recipe, whatever its values."""
    from expunge.training.recipe import Recipe

    return Recipe


def method_class(values: Mapping[str, Any]) -> type:
    """The options class of the method that the settings name."""
    from expunge.methods import METHODS

    name = split_preset(METHODS.named(str(values.get("method", "auto"))))[0]
    if name == "auto":
        raise UsageError("options belong to a method, and none is named; give --method (`expunge list methods`).")
    loaded: type = METHODS.load(name)
    return loaded


TRAIN = """Recipe options are written the same way or with --set: epochs, batch_size, optimizer, lr, momentum,
weight_decay, schedule, milestones, decay, batchnorm, l2_reference, augment, clip, precision (`expunge show recipe`).

Examples:\n
  expunge train --model cnn --data mnist --epochs 5 --lr 0.01 --out run/\n
  expunge train --model app/net.py:build --data faces/ --holdout 0.1 --out run/ --set schedule=constant\n
  expunge train --model cnn --data mnist --forget class:3 --on retain --out reference/\n
  expunge train --config job.yaml --seed 1 --out run-1/\n
Ctrl-C is safe: the same command goes on after the last finished epoch, with the same result."""

UNLEARN = """Options of the method are written the same way or with --set (`expunge show method NAME`).

Examples:\n
  expunge unlearn --model cnn --checkpoint run/model.safetensors --data mnist --forget class:3 --out forgot/\n
  expunge unlearn ... --forget ids:requests.csv --out forgot/\n
  expunge unlearn ... --method scrub --alpha 0.1 --rewind --retrain\n
  expunge unlearn ... --method neggrad/small -s epochs=2 --forget ids:requests.csv\n
  expunge unlearn --config job.yaml --seed 1 --out forgot-1/\n
Writes model.safetensors, result.json, history.csv, cells.json and report.html."""

EVALUATE = """Examples:\n
  expunge evaluate --model cnn --original run/model.safetensors --unlearned forgot/model.safetensors
  --data mnist --forget class:3\n
  expunge evaluate ... --retrained reference/model.safetensors --metrics accuracy --metrics mia-auc --csv scores.csv"""


AUDIT = """Examples:\n
  expunge audit --model cnn --original run/model.safetensors --unlearned forgot/model.safetensors
  --data mnist --forget class:3 --references 5 --out audit/\n
  expunge audit ... --forget ids:requests.csv --references references/ --out audit/\n
  expunge audit ... --shadows 64 --jobs 2 --out audit/   (attacks on single samples)\n
  expunge audit --pool desk/ --retrain 5 --out audit/   (all requests that a workspace fulfilled, together)\n
Without --references the verdict is the weaker one, against unseen samples.
Writes audit.html, verdict.json, attacks.csv and tests.csv. Shadow models are kept by their scores: Ctrl-C is safe."""

MEMORISE = """Recipe options are written as for `expunge train`.

Examples:\n
  expunge memorise --model cnn --data mnist --by subsampling --models 40 --epochs 5 --out scores.csv\n
  expunge unlearn ... --forget memorised:level=high,amount=100,scores=scores.csv\n
  expunge memorise --model cnn --data mnist --by worst-case --amount 100 --epochs 5 --out worst.csv\n
  expunge unlearn ... --forget worst-case:worst.csv,amount=100\n
Ctrl-C is safe: the same command goes on after the last finished model (subsampling) or epoch (confidence, events)."""


REPAIR = """Options of the method are written the same way or with --set (`expunge show method NAME`).

Examples:\n
  expunge repair --model cnn --checkpoint run/model.safetensors --data mnist --suspects issues.csv --out repaired/\n
  expunge repair ... --suspects issues.csv --below 0.2 --action relabel --method scrub --retrain --out repaired/\n
  expunge repair ... --suspects mine.csv --action relabel --method none --learn-epochs 5 --out repaired/\n
SUSPECTS has a column id or position (or one row per sample) and, each optional: is_label_issue, given_label,
predicted_label or label (the right one), label_quality or score.
Writes model.safetensors, result.json, labels.csv, still_suspect.csv, neighbours.csv, repair.html and repair.json.
Ctrl-C is safe: the same command goes on after the last finished stage or epoch."""

INIT = """Examples:\n
  expunge init --model app/net.py:build --checkpoint prod.safetensors --data data/ --id-column user_id\n
  expunge init --model cnn --checkpoint run/model.safetensors --data mnist --workspace desk/\n
Then: expunge requests add --subject 4711; expunge requests fulfil."""


def init_class() -> type:
    """Its settings are those of the workspace, which needs an extra."""
    from expunge.requests.extras import extra

    with extra("requests"):
        from expunge.cli.init import Init

    return Init


def register(app: typer.Typer, name: str) -> None:
    """Add one of these commands, with its options, to an application."""
    if name == "init":
        cls, inner, epilog, home = init_class(), None, INIT, "init"
    else:
        cls, inner, epilog, home = _settings(name)

    other = ("pool", Pooled) if cls is Audit else None

    @job_command(app, cls, inner=inner, other=other, epilog=epilog)
    def run(job: Any) -> None:
        getattr(import_module(f"expunge.cli.{home}"), name)(job)


def _settings(name: str) -> tuple[type, Inner | None, str, str]:
    """Class, inner class, epilog and module of a command."""
    table: dict[str, tuple[type, Inner | None, str, str]] = {
        "train": (Train, recipe_class, TRAIN, "execute"),
        "unlearn": (Unlearn, method_class, UNLEARN, "execute"),
        "evaluate": (Evaluate, None, EVALUATE, "execute"),
        "audit": (Audit, None, AUDIT, "execute"),
        "memorise": (Memorise, recipe_class, MEMORISE, "memorise"),
        "repair": (Repair, method_class, REPAIR, "repair"),
    }
    return table[name]
