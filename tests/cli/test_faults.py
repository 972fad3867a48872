"""Every fault: one sentence on stderr, the documented exit code, no traceback, nothing half-written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import blobs

NETS = """
import torch

def two_classes():
    return torch.nn.Linear(6, 2)

def wide_input():
    return torch.nn.Linear(7, 3)

def images():
    return torch.nn.Conv2d(1, 3, 3)

def broken():
    raise ValueError("no")

def frozen():
    return torch.nn.Linear(6, 3).requires_grad_(False)

def empty():
    return torch.nn.Flatten()
"""


def check(result, code, *phrases):
    assert result.code == code, (result.code, result.err)
    lines = [line for line in result.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.err
    assert "Traceback" not in result.err
    assert "--debug" not in lines[0]
    for phrase in phrases:
        assert phrase in lines[0]


@pytest.fixture
def train(expunge, rows, tmp_path):
    def call(*more):
        words = ["train", "--model", "mlp", "--data", rows, "--epochs", 1, "--out", tmp_path / "run"]
        return expunge(*words, *more)

    return call


@pytest.fixture
def evaluate(expunge, rows, trained):
    def call(*more):
        words = ["evaluate", "--model", "mlp", "--original", trained / "model.safetensors", "--data", rows]
        return expunge(*words, "--forget", "class:1", *more)

    return call


@pytest.mark.parametrize(
    ("more", "phrases"),
    [
        (["--model", "mpl"], ["unknown model `mpl`", "did you mean `mlp`"]),
        (["--data", "mnits"], ["mnits", "mnist"]),
        (["--lrr", "0.1"], ["`lrr`", "did you mean `lr`"]),
        (["--seeed", "1"], ["`seeed`", "did you mean `seed`"]),
        (["--forgett", "class:1"], ["train has no option `forgett`", "did you mean `forget`"]),
        (["--set", "lr"], ["name=value", "`lr`"]),
        (["--lr", "-1"], ["`lr`", "greater than 0", "'-1'"]),
        (["--optimizer", "adan"], ["`optimizer`", "adam"]),
        (["--seed", "one"], ["`seed`", "'one'"]),
        (["--augment", "flipp"], ["flipp"]),
        (["--device", "gpu"], ["device `gpu`", "auto, cpu, cuda"]),
        (["--on", "retain"], ["--forget"]),
        (["--forget", "clas:1"], ["did you mean `class`"]),
        (["--forget", "class:9"], ["class `9`", "allowed: 0"]),
        (["--forget", "random:90", "--on", "retain"], ["forgets all 90 samples"]),
        (["--forget", "random:0.0001"], ["nothing to forget"]),
        (["--forget", "class:target=1,cuont=3"], ["cuont", "count"]),
        (["--forget", "ids:/nowhere.csv"], ["/nowhere.csv"]),
        (["--holdout", "0.001"], ["holdout"]),
        (["--holdout", "1.5"], ["holdout", "less than 1"]),
        (["--config", "/nowhere.yaml"], ["/nowhere.yaml"]),
        (["stray"], ["unexpected argument `stray`"]),
    ],
)
def test_requests_that_cannot_be_right(train, more, phrases, tmp_path):
    check(train(*more), 2, *phrases)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("name", "text", "phrase"),
    [
        ("a.txt", "3\n3\n", "3"),
        ("b.txt", "3\n4000\n", "4000"),
        ("c.txt", "", "empty"),
        ("d.json", '["1", ', "d.json"),
    ],
)
def test_files_of_ids(train, tmp_path, name, text, phrase):
    (tmp_path / name).write_text(text)
    check(train("--forget", f"ids:{tmp_path / name}", "--on", "retain"), 2, phrase)


@pytest.mark.parametrize(
    ("factory", "phrases"),
    [
        ("two_classes", ["label 2", "2 classes"]),
        ("wide_input", ["refuses train samples of shape (6,)"]),
        ("images", ["refuses train samples"]),
        ("broken", ["broken"]),
        ("frozen", ["no parameter to train", "2 parameters, all frozen"]),
        ("empty", ["no parameters"]),
        ("missing", ["has no function or class `missing`"]),
    ],
)
def test_models_that_do_not_fit(train, tmp_path, factory, phrases):
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    check(train("--model", f"{path}:{factory}"), 2, *phrases)


def test_divergence_is_a_failure_and_frees_the_folder(train, tmp_path):
    check(train("--lr", "1e30", "--epochs", 3), 1, "diverged in epoch", "learning rate")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert train("--lr", "0.01").code == 0


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("modle: mlp\n", ["job.yaml", "`modle`", "did you mean `model`"]),
        ("epocs: 3\n", ["job.yaml", "`epocs`", "did you mean `epochs`"]),
        ("lr: -1\n", ["job.yaml", "`lr`", "greater than 0"]),
        ("seed: 1\nseed: 2\n", ["job.yaml", "`seed`", "given twice"]),
        ("seed: [1\n", ["job.yaml", "line 2"]),
        ("- seed\n", ["job.yaml", "name: value"]),
        ("seed: none\n", ["job.yaml", "`seed`", "'none'"]),
        ("options: 3\n", ["job.yaml", "`options`"]),
        ("options:\n  batchsize: 3\n", ["job.yaml", "options", "`batchsize`", "did you mean `batch_size`"]),
    ],
)
def test_yaml_typos_name_the_file_and_the_key(train, tmp_path, text, phrases):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    check(train("--config", path), 2, *phrases)


def test_files_of_an_unknown_type_are_no_ids(train, tmp_path):
    (tmp_path / "ids.xls").write_text("1")
    check(train("--forget", f"ids:{tmp_path / 'ids.xls'}", "--on", "retain"), 2, "ids.xls", ".csv, .json, .txt")


def test_a_training_is_nothing_to_report(expunge, trained):
    check(expunge("report", trained), 2, str(trained), "finished `unlearn`")


def test_what_is_required_is_named(expunge):
    check(expunge("train", "--model", "mlp"), 2, "`data` is required", "--config")


@pytest.mark.parametrize("kind", ["truncated", "foreign", "garbage", "pickle", "nan", "missing", "text"])
def test_checkpoints_that_cannot_be_used(evaluate, trained, tmp_path, kind):
    good = trained / "model.safetensors"
    path = tmp_path / ("bad.pt" if kind in ("pickle", "garbage") else "bad.safetensors")
    if kind == "truncated":
        path.write_bytes(good.read_bytes()[:-40])
    elif kind == "foreign":
        save_file({"other.weight": torch.zeros(3)}, path)
    elif kind == "garbage":
        path.write_bytes(b"\x00garbage" * 9)
    elif kind == "pickle":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "nan":
        state = load_file(good)
        next(iter(state.values())).fill_(float("nan"))
        save_file(state, path)
    elif kind == "text":
        path = tmp_path / "weights.txt"
        path.write_text("weights")
    check(evaluate("--unlearned", path), 2, str(path))


def test_truncated_data(train, rows, tmp_path):
    path = tmp_path / "cut.npz"
    path.write_bytes(rows.read_bytes()[:100])
    check(train("--data", path), 2, "cut.npz")


def test_nan_inputs(train, tmp_path):
    x, y = blobs(0, 30)
    x[3, 2] = np.nan
    np.savez(tmp_path / "nan.npz", x_train=x, y_train=y)
    result = train("--data", tmp_path / "nan.npz")
    assert result.code in (1, 2)
    assert "--debug" not in result.err


def test_the_training_data_are_no_test_data(evaluate, rows, tmp_path):
    x, y = blobs(0, 30)
    np.savez(tmp_path / "only.npz", x=x, y=y)
    check(evaluate("--data", tmp_path / "only.npz", "--test", tmp_path / "only.npz"), 2, "trained on")


@pytest.mark.parametrize(
    ("more", "phrases"),
    [
        (["--metrics", "acuracy"], ["did you mean `accuracy`"]),
        (["--metrics", "gap"], ["gap needs", "retrained"]),
        (["--forget", "class:7"], ["class `7`"]),
    ],
)
def test_measurements_that_cannot_be_made(evaluate, more, phrases):
    check(evaluate(*more), 2, *phrases)


def test_folder_below_a_file(train, tmp_path):
    (tmp_path / "file").write_text("")
    check(train("--out", tmp_path / "file" / "run"), 1, "cannot write", str(tmp_path / "file"))
    check(train("--out", tmp_path / "file"), 1, str(tmp_path / "file"))


@pytest.mark.parametrize("victim", ["os.fsync", "torch.save"])
def test_full_disk_leaves_no_half_file(train, tmp_path, monkeypatch, victim):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    real = os.fsync
    if victim == "os.fsync":
        calls = []

        def later(descriptor):
            calls.append(descriptor)
            return real(descriptor) if len(calls) == 1 else full()

        monkeypatch.setattr("os.fsync", later)
    else:
        monkeypatch.setattr("torch.save", full)
    check(train(), 1, "No space left", "free some space")
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"settings.json", "train.state"}
    monkeypatch.undo()
    assert train().code == 0


def test_damaged_training_state(train, tmp_path, monkeypatch):
    monkeypatch.setattr("expunge.api.result.Result.save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert train().code == 130
    monkeypatch.undo()
    (tmp_path / "run" / "train.state").write_bytes(b"nothing")
    check(train(), 2, "train.state", "delete it")


def test_defects_show_no_traceback_unless_asked(train, monkeypatch):
    def defect(*_, **__):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("expunge.cli.execute.inputs.build", defect)
    quiet = train()
    assert quiet.code == 1
    assert quiet.err.splitlines()[-1].startswith("error: unexpected ZeroDivisionError: a defect.")
    assert "--debug" in quiet.err
    assert "Traceback" not in quiet.err
    assert "Traceback" in train("--debug").err


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m expunge.cli list methods | head -1 >/dev/null"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_exit_codes_reach_the_shell():
    run = [sys.executable, "-m", "expunge.cli"]
    assert subprocess.run([*run, "list", "methods"], capture_output=True, check=False).returncode == 0
    assert subprocess.run([*run, "list", "things"], capture_output=True, check=False).returncode == 2
