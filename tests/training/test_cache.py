"""Trained models kept by content: one training per question, none per repetition, and damage is repaired."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn

from expunge.core.run import Run
from expunge.data.split import Split
from expunge.models.build import build_model
from expunge.models.checkpoint import read_weights, save_state
from expunge.testing.conformance import same, weights
from expunge.testing.toys import ToyNet, toy_problem
from expunge.training import cache
from expunge.training.cache import train_cached, training_key
from expunge.training.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.1)


@pytest.fixture(scope="module")
def data() -> Split:
    return toy_problem(epochs=0).retain


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The purpose of every training that really takes place."""
    seen: list[str] = []
    train = cache.train_model

    def counted(*args: Any, purpose: str, **more: Any) -> nn.Module:
        seen.append(purpose)
        return train(*args, purpose=purpose, **more)

    monkeypatch.setattr(cache, "train_model", counted)
    return seen


def trained(data: Split, start: nn.Module, folder: Path | None, **more: Any) -> tuple[dict[str, Tensor], Run]:
    run = Run(seed=1, cache=folder, **more)
    return weights(train_cached(copy.deepcopy(start), data, RECIPE, run)), run


def test_the_second_time_it_is_read(data: Split, tmp_path: Path, trainings: list[str]) -> None:
    start = ToyNet()
    first, run = trained(data, start, tmp_path)
    second, again = trained(data, start, tmp_path)
    assert trainings == ["train"]
    assert same(first, second)
    assert again.history == run.history
    assert run.cached_seconds == pytest.approx(0, abs=0.05)  # nobody had to be waited for
    # Its cost is that of the training, not that of reading a file.
    trained_for = sum(row["seconds"] for row in run.history)
    assert again.cached_seconds == pytest.approx(trained_for, rel=0.5, abs=0.1)
    assert same(first, trained(data, start, None)[0])


def test_without_a_folder_or_with_snapshots_it_trains(data: Split, tmp_path: Path, trainings: list[str]) -> None:
    start = ToyNet()
    trained(data, start, tmp_path)
    trained(data, start, None)
    _, run = trained(data, start, tmp_path, keep_snapshots=True)
    assert len(trainings) == 3
    assert sorted(run.snapshots) == [0, 1, 2]


def test_what_was_stopped_is_not_kept(data: Split, tmp_path: Path, trainings: list[str]) -> None:
    start = ToyNet()
    _, stopped = trained(data, start, tmp_path, budget_seconds=0)
    assert stopped.status == "budget"
    _, whole = trained(data, start, tmp_path)
    assert whole.status == "finished"
    assert [row["epoch"] for row in whole.history] == [1, 2]
    assert len(trainings) == 2


def fixed(net: ToyNet) -> ToyNet:
    net.conv.requires_grad_(False)
    return net


def shifted(net: ToyNet) -> ToyNet:
    with torch.no_grad():
        net.head.bias[0] += 1
    return net


def relabelled(data: Split) -> Split:
    labels = data.store.labels.clone()
    labels[data.index[0]] = (labels[data.index[0]] + 1) % 4
    return data.with_labels(labels)


def test_whatever_decides_the_weights_is_in_the_key(data: Split) -> None:
    """Each change gives a key of its own; none may ever be answered with the model of another."""
    torch.manual_seed(0)
    net = ToyNet()
    base: dict[str, Any] = {
        "model": net, "data": data, "recipe": RECIPE, "seed": 0, "purpose": "train", "precision": "float32"
    }  # fmt: skip
    other_options = [
        Recipe(epochs=3, batch_size=16, lr=0.1), Recipe(epochs=2, batch_size=16, lr=0.2),
        Recipe(epochs=2, batch_size=16, lr=0.1, l2_reference=0.1),
    ]  # fmt: skip
    changes: list[dict[str, Any]] = [
        {},
        *({"recipe": recipe} for recipe in other_options),
        {"seed": 1},
        {"purpose": "pretrain"},
        {"precision": "bfloat16"},
        {"data": data.take(data.index[1:])},
        {"data": data.take(data.index.flip(0))},
        {"data": relabelled(data)},
        {"model": shifted(copy.deepcopy(net))},
        {"model": fixed(copy.deepcopy(net))},
        {"model": ToyNet(batchnorm=False)},
    ]
    keys = [training_key(**{**base, **change}) for change in changes]
    assert len(set(keys)) == len(keys)
    assert training_key(**{**base, "model": copy.deepcopy(net)}) == keys[0]


def test_parameters_that_are_fixed_are_not_replaced_by_trained_ones(data: Split, tmp_path: Path) -> None:
    start = ToyNet()
    trained(data, start, tmp_path)
    found, _ = trained(data, fixed(copy.deepcopy(start)), tmp_path)
    assert torch.equal(found["conv.weight"], start.conv.weight)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def hold(content: bytes) -> Callable[[Path], Any]:
    return lambda file: file.write_bytes(content)


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        ("safetensors", cut),
        ("safetensors", hold(b"")),
        ("json", cut),
        ("json", hold(b"{}")),
        ("json", hold(b"[]")),
        ("json", hold(b"null")),
        ("json", hold(b"\xff\xfe")),
        ("json", hold(b'{"history": 3, "seconds": 1}')),
        ("json", hold(b'{"history": [], "seconds": "long"}')),
    ],
)
def test_damage_is_noted_and_repaired(
    data: Split, tmp_path: Path, trainings: list[str], suffix: str, damage: Callable[[Path], Any]
) -> None:
    start = ToyNet()
    expected, _ = trained(data, start, tmp_path)
    (file,) = (tmp_path / "models").glob(f"*.{suffix}")
    damage(file)
    found, run = trained(data, start, tmp_path)
    assert same(expected, found)  # above all: not trained further from half-read weights
    assert [note for note in run.notes if "was damaged or replaced and is trained again" in note]
    assert [row["epoch"] for row in run.history] == [1, 2]
    again, clean = trained(data, start, tmp_path)
    assert same(expected, again)
    assert clean.notes == []
    assert len(trainings) == 2


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_half_of_an_entry_is_none(data: Split, tmp_path: Path, trainings: list[str], suffix: str) -> None:
    """A process that was killed between the two files leaves one of them."""
    start = ToyNet()
    expected, _ = trained(data, start, tmp_path)
    next((tmp_path / "models").glob(f"*.{suffix}")).unlink()
    found, _ = trained(data, start, tmp_path)
    assert same(expected, found)
    assert len(trainings) == 2


def test_no_half_written_file_stays(data: Split, tmp_path: Path) -> None:
    trained(data, ToyNet(), tmp_path)
    assert {file.suffix for file in (tmp_path / "models").iterdir()} <= {".safetensors", ".json", ".lock", ".origin"}


def test_waiting_for_another_worker_is_no_cost(data: Split, tmp_path: Path) -> None:
    start = ToyNet()
    trained(data, start, tmp_path)
    (lock,) = tmp_path.glob("models/*.lock")
    holding = threading.Event()

    def hold() -> None:
        with FileLock(lock):
            holding.set()
            time.sleep(1.0)

    other = threading.Thread(target=hold)
    other.start()
    holding.wait()
    _, run = trained(data, start, tmp_path)
    other.join()
    assert run.elapsed() > 0.9
    assert run.elapsed() + run.cached_seconds < 0.9


def test_an_edited_line_of_the_users_model_is_a_miss(data: Split, tmp_path: Path, trainings: list[str]) -> None:
    """The same names and shapes, another `forward`: not the trained model of before."""
    source = tmp_path / "net.py"
    line = "x = F.relu(self.conv(x))"
    text = (
        "import torch.nn.functional as F\nfrom torch import nn\n\nclass Net(nn.Module):\n"
        "    def __init__(self, num_classes):\n        super().__init__()\n        self.conv = nn.Conv2d(1, 4, 3)\n"
        f"        self.head = nn.Linear(144, num_classes)\n    def forward(self, x):\n        {line}\n"
        "        return self.head(x.flatten(1))\n"
    )
    results = []
    for change in (line, line, line.replace("relu", "gelu")):
        source.write_text(text.replace(line, change))
        model = build_model(f"{source}:Net", num_classes=data.num_classes, input_shape=data.input_shape)
        results.append(trained(data, model, tmp_path / "cache")[0])
    assert len(trainings) == 2
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_a_planted_model_is_not_believed(data: Split, tmp_path: Path, trainings: list[str]) -> None:
    """Neither another training's file under this name, nor other weights with a valid hash of their own."""
    first, _ = trained(data, ToyNet(), tmp_path)
    other, _ = trained(data.take(data.index[:40]), ToyNet(), tmp_path)
    (one, two) = sorted((tmp_path / "models").glob("*.safetensors"))
    mine = one if same(first, dict(read_weights(one))) else two
    theirs = two if mine is one else one
    content = mine.read_bytes()
    planted = [theirs.read_bytes()]
    save_state({name: value + 1 for name, value in first.items()}, mine, {"key": mine.stem})
    planted.append(mine.read_bytes())
    for bad in planted:
        mine.write_bytes(bad)
        again, run = trained(data, ToyNet(), tmp_path)
        assert same(again, first)
        assert [note for note in run.notes if "damaged or replaced" in note]
    assert len(trainings) == 4
    assert mine.read_bytes() == content
    assert other


def test_a_cache_that_cannot_be_written_or_believed_costs_a_note(
    data: Split, tmp_path: Path, trainings: list[str]
) -> None:
    first, _ = trained(data, ToyNet(), None)
    (tmp_path / "file").write_text("")
    model, run = trained(data, ToyNet(), tmp_path / "file")
    assert same(model, first)
    assert [note for note in run.notes if "nothing is kept in the cache" in note]
    (tmp_path / "open" / "models").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    model, run = trained(data, ToyNet(), tmp_path / "open")
    assert same(model, first)
    assert [note for note in run.notes if "can be written by other users" in note]
    assert not list((tmp_path / "open" / "models").iterdir())
