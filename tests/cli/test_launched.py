"""`torchrun -m expunge`: the same result as one process, one voice, and one end for all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from expunge.cli.launched import together
from expunge.cli.main import main
from expunge.testing.toys import toy_images

NET = """
import os
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))
        self.passes = 0

    def forward(self, x):
        self.passes += self.training
        if self.passes > 5 and os.environ.get("LOCAL_RANK") == os.environ.get("FAILING", "none"):
            raise ValueError("a defect of one process")
        return self.body(x)

def build(num_classes=4, **_):
    return Net(num_classes)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: data, and a model of the user's own."""
    monkeypatch.chdir(tmp_path)
    for name, count, seed in (("train", 121, 0), ("test", 40, 1)):
        images, labels = toy_images(count, seed)
        np.savez(f"{name}.npz", x=images.numpy(), y=labels.numpy())
    Path("net.py").write_text(NET, encoding="utf-8")
    return tmp_path


def words(command: str, out: str) -> list[str]:
    common = ["--model", "net.py:build", "--data", "train.npz", "--out", out]
    return [command, *common, *(["--epochs", "2", "--batch-size", "33", "--lr", "0.05"] if command == "train" else [])]


def torchrun(arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, "-m", "expunge", *arguments],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", **variables},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_training_on_two_processes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = torchrun(words("train", "two"))
    assert done.returncode == 0, done.stderr
    assert main(words("train", "one")) == 0
    assert done.stdout.replace("two", "one").split()[:7] == capsys.readouterr().out.split()[:7]
    assert done.stdout.count("121 samples") == 1
    assert done.stderr.count("train 2/2") == 1
    both = [load_file(folder / out / "model.safetensors") for out in ("two", "one")]
    torch.testing.assert_close(both[0], both[1], rtol=1e-5, atol=1e-5)
    record = json.loads((folder / "two" / "result.json").read_text(encoding="utf-8"))
    assert record["processes"] == 2
    assert sorted(path.name for path in (folder / "two").iterdir()) == sorted(
        path.name for path in (folder / "one").iterdir()
    )


def test_a_failure_of_one_ends_all(folder: Path) -> None:
    """Rank 0 waits for rank 1 when that one fails; the finished epoch is kept, and the reason is told once."""
    done = torchrun(words("train", "run"), FAILING="1")
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    assert "error: unexpected ValueError: a defect of one process." in done.stderr
    assert (folder / "run" / "train.state").exists()
    assert not (folder / "run" / "model.safetensors").exists()


def test_one_process_goes_on_as_ever() -> None:
    assert together(["list", "methods"], lambda: 7) == 7
