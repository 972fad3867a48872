"""`expunge check method`, and what users wrote in a file of their own where a name is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from expunge.data import DATASETS
from expunge.methods import METHODS
from expunge.metrics import METRICS
from expunge.models import MODELS

SOURCE = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import expunge
from expunge.core.needs import Needs
from expunge.core.options import Field
from expunge.methods.base import Method, method
from expunge.metrics.base import Metric, Value, metric
from expunge.testing.conformance import Settings

SETTINGS = Settings(options={"lr": 0.5})


@method("of-a-file", summary="ascends once", needs=Needs(forget="labels"))
class Mine(Method):
    lr: float = Field(0.5, gt=0, description="rate")
    idle: int = Field(1, ge=0, description="is never read")

    def unlearn(self, problem, run):
        student = problem.student().eval()
        optimizer = torch.optim.SGD(student.parameters(), lr=self.lr)
        for batch in problem.forget.batches(32, device=run.device):
            optimizer.zero_grad()
            (-F.cross_entropy(student(batch.x), batch.y)).backward()
            optimizer.step()
        return student


@expunge.model("net-of-a-file", summary="linear")
def net(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), num_classes))


@expunge.data_set("data-of-a-file", summary="two blobs", classes=("low", "high"))
def data():
    noise = np.random.default_rng(0)
    y = np.arange(80) % 2
    x = (noise.normal(size=(80, 4)) + 2 * y[:, None]).astype("float32")
    return {"train": (x[:60], y[:60], np.arange(60)), "test": (x[60:], y[60:])}
"""


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    yield path
    for registry, name in ((METHODS, "of-a-file"), (MODELS, "net-of-a-file"), (DATASETS, "data-of-a-file")):
        registry.remove(name)
    assert "of-a-file" not in METRICS.names()


def test_names_every_check_and_the_option_that_is_never_read(expunge, mine: Path) -> None:
    result = expunge("check", "method", f"{mine}:Mine", "--settings", f"{mine}:SETTINGS", "--json")
    assert result.code == 1
    checks = {row["check"]: row for row in json.loads(result.out)["checks"]}
    assert "`idle` (1 -> 2) changed nothing" in checks["options have effect"]["reason"]
    assert [name for name, row in checks.items() if not row["passed"]] == ["options have effect"]


def test_a_clean_method_passes(expunge, mine: Path) -> None:
    mine.write_text(SOURCE.replace('    idle: int = Field(1, ge=0, description="is never read")\n', ""))
    result = expunge("check", "method", f"{mine}:Mine", "--set", "lr=2.0")
    assert (result.code, result.out.splitlines()[-1]) == (0, "of-a-file: all passed.")


def test_faults_are_one_sentence(expunge, mine: Path) -> None:
    for arguments, message in (
        (("model", "mlp"), "`model` cannot be checked; write `expunge check method NAME`"),
        (("method", f"{mine}:net"), "is no method: register it with"),
        (("method", "scrubb"), "did you mean `scrub`"),
        (("method", "scrub", "--settings", f"{mine}:Mine"), "give an expunge.testing.conformance.Settings"),
        (("method", "scrub", "-s", "alhpa=1"), "scrub has no option `alhpa`; did you mean `alpha`"),
    ):
        result = expunge("check", *arguments)
        assert result.code == 2
        assert message in result.err
        assert "Traceback" not in result.err


def test_model_data_and_method_of_one_file(expunge, mine: Path, tmp_path: Path) -> None:
    job = ["--model", f"{mine}:net", "--data", f"{mine}:data", "--device", "cpu"]
    assert expunge("train", *job, "--epochs", "2", "--out", tmp_path / "run").code == 0
    result = expunge(
        "unlearn", *job, "--checkpoint", tmp_path / "run/model.safetensors", "--forget", "ids:3,5,7", "--method",
        f"{mine}:Mine", "--lr", "0.1", "--out", tmp_path / "forgot",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "forgot/result.json").read_text())["options"]["lr"] == 0.1


def test_a_study_takes_them_too(expunge, mine: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        f"name: mine\ndata: {mine}:data\nmodel: {mine}:net\ndevice: cpu\ntrain: {{epochs: 2}}\nscenarios: random:0.1\n"
        f"methods: ['{mine}:Mine', {{name: '{mine}:Mine', label: slow, lr: 0.01}}]\nmetrics: accuracy\n"
    )
    result = expunge("run", study, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert "slow" in result.out
