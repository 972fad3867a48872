"""A study of seconds: three classes of points, an MLP, three methods, two scenarios."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny .npz with a training and a test part: points around one centre per class."""
    path = tmp_path_factory.mktemp("data") / "rows.npz"
    random = np.random.default_rng(0)
    centres = random.normal(size=(3, 6)) * 2

    def points(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 3
        return (centres[labels] + random.normal(size=(count, 6))).astype("float32"), labels

    (x, y), (x_test, y_test) = points(120), points(60)
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture
def tiny(rows: Path) -> dict[str, Any]:
    """16 cells: two scenarios, two seeds, three methods and the reference."""
    return {
        "name": "tiny",
        "data": {"source": str(rows), "validation": 0.2},
        "model": {"name": "mlp", "options": {"hidden": 8}},
        "train": {"epochs": 3, "batch_size": 32},
        "scenarios": ["class:1", {"name": "random", "amount": 0.1, "label": "a tenth"}],
        "methods": ["original", "finetune", {"name": "scrub", "label": "SCRUB+R", "rewind": True, "epochs": 2}],
        "options": {"finetune": {"epochs": 1}},
        "seeds": [0, 1],
    }
