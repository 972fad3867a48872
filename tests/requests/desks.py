"""A small workspace that many tests copy: 120 points of 40 people in three classes, and a net that knows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import expunge
from expunge.core.options import build, to_dict
from expunge.models.checkpoint import save_weights
from expunge.requests.desk import Desk
from expunge.requests.settings import WorkspaceSettings
from expunge.requests.workspace import Workspace, load
from expunge.training.recipe import Recipe

PEOPLE, EACH = 40, 3
RECIPE = {"epochs": 30, "batch_size": 16, "lr": 0.05, "schedule": "constant"}


def write_rows(folder: Path) -> tuple[Path, Path]:
    """train.csv and test.csv with the columns id, user_id, label and six numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    centres = np.random.default_rng(7).normal(size=(3, 6)) * 2
    for name, people in (("train", PEOPLE), ("test", 30)):
        lines = ["id,user_id,label," + ",".join(f"f{i}" for i in range(6))]
        for number in range(people * EACH):
            label = number % 3
            point = centres[label] + random.normal(size=6)
            who = f"{name[0]}{number // EACH}"
            lines.append(f"{name}-{number},{who},{label}," + ",".join(f"{value:.5f}" for value in point))
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder / "train.csv", folder / "test.csv"


def make_desk(folder: Path, **changed: Any) -> Desk:
    """A workspace in `folder`/desk, its data and its checkpoint beside it. changed: settings."""
    train, test = write_rows(folder)
    values: dict[str, Any] = {
        "model": "mlp", "data": str(train), "test": str(test), "id_column": "user_id", "device": "cpu",
        "recipe": to_dict(build(Recipe, RECIPE)),
    }  # fmt: skip
    settings = build(WorkspaceSettings, {**values, **changed})
    known, unseen = load(settings)
    model = Workspace(folder, settings).fresh(known)
    trained = expunge.train(model, known, recipe=RECIPE, seed=1, device="cpu")
    save_weights(trained.model, folder / "prod.safetensors")
    return Desk.create(folder / "desk", settings, folder / "prod.safetensors", known, unseen, by="tests")
