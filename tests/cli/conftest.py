"""A command line in this process, and a small trained model that many tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from expunge.cli.main import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Call = Callable[..., Outcome]


@pytest.fixture
def expunge(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """`expunge("list", "methods")` -> exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        text = capsys.readouterr()
        return Outcome(code, text.out, text.err)

    return call


def blobs(seed: int, count: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Points around one centre per class: (count, 6) float32 and labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(7).normal(size=(classes, 6)) * 3
    return (centres[labels] + random.normal(size=(count, 6))).astype("float32"), labels


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny .npz with a training and a test part."""
    path = tmp_path_factory.mktemp("data") / "rows.npz"
    x, y = blobs(0, 90)
    x_test, y_test = blobs(1, 45)
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="session")
def trained(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished `expunge train` with a fifth held out."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    code = main([*f"train --model mlp --data {rows} --epochs 3 --lr 0.05 --holdout 0.2 --out {folder} --quiet".split()])
    assert code == 0
    return folder
