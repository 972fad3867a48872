"""`expunge train`: results on disk, resuming, and refusing to mix."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from expunge.models.checkpoint import read_weights
from tests.cli.conftest import blobs

FACTORY = """
import torch

def build(num_classes, input_shape, width=4):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(input_shape[0], width), torch.nn.ReLU(),
                               torch.nn.Linear(width, num_classes))
"""


def test_writes_weights_facts_and_history(expunge, rows, tmp_path):
    out = tmp_path / "run"
    result = expunge("train", "--model", "mlp", "--data", rows, "--epochs", "2", "--lr", "0.05", "--out", out)
    assert result.code == 0, result.err
    names = {path.name for path in out.iterdir()}
    assert names == {"model.safetensors", "result.json", "history.csv", "initial.safetensors", "settings.json"}
    record = json.loads((out / "result.json").read_text())
    assert record["training"]["recipe"]["lr"] == 0.05
    assert len((out / "history.csv").read_text().splitlines()) == 3
    assert "90 samples" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert "train 2/2" in result.err


def test_quiet_has_no_progress_wherever_it_stands(expunge, rows, tmp_path):
    for number, place in enumerate((0, 3)):
        words = ["train", "--model", "mlp", "--data", rows, "--epochs", 1, "--out", tmp_path / str(number)]
        words.insert(place, "--quiet")
        assert expunge(*words).err == ""


def test_same_settings_again_do_nothing(expunge, rows, trained):
    before = {path: path.stat().st_mtime_ns for path in trained.iterdir() if path.name != "settings.json"}
    # The same values in another spelling are the same settings.
    result = expunge("train", "--model=mlp", "--data", rows, "--set", "epochs=3", "-s", "lr=5e-2", "--holdout", "0.20",
                     "--out", trained)  # fmt: skip
    assert result.code == 0, result.err
    assert "nothing to do" in result.err
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_other_settings_are_refused_until_overwrite(expunge, rows, tmp_path):
    base = ["train", "--model", "mlp", "--data", rows, "--out", tmp_path / "run", "--epochs", "1"]
    assert expunge(*base).code == 0
    refused = expunge(*base, "--seed", "1")
    assert refused.code == 2
    assert "`seed` was 0, now 1" in refused.err
    assert "--overwrite" in refused.err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["seed"] == 0
    assert expunge(*base, "--seed", "1", "--overwrite").code == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["seed"] == 1


def test_a_folder_of_unknown_origin_is_not_touched(expunge, rows, tmp_path):
    (tmp_path / "model.safetensors").write_text("precious")
    result = expunge("train", "--model", "mlp", "--data", rows, "--out", tmp_path, "--epochs", "1")
    assert result.code == 2
    assert (tmp_path / "model.safetensors").read_text() == "precious"


def test_changed_data_are_noticed(expunge, rows, tmp_path):
    copy = tmp_path / "copy.npz"
    copy.write_bytes(rows.read_bytes())
    base = ["train", "--model", "mlp", "--data", copy, "--out", tmp_path / "run", "--epochs", "1"]
    assert expunge(*base).code == 0
    x, y = blobs(5, 90)
    np.savez(copy, x_train=x, y_train=y)
    result = expunge(*base)
    assert result.code == 2
    assert "data changed" in result.err


def test_file_and_options_meet_and_the_command_line_wins(expunge, rows, tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text(f"model: mlp\ndata: {rows}\nseed: 3\noptions:\n  epochs: 1\n  lr: 1e-2\n  milestones: [1, 2]\n")
    result = expunge("train", "--config", job, "--seed", "4", "--lr", "0.5", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["seed"] == 4
    assert (settings["options"]["lr"], settings["options"]["epochs"]) == (0.5, 1)
    assert settings["options"]["milestones"] == [1, 2]


def test_recipe_options_may_stand_beside_the_others_in_a_file(expunge, rows, tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text(f"model: mlp\ndata: {rows}\nepochs: 2\nbatch-size: 30\noptions: {{lr: 0.03}}\n")
    result = expunge("train", "--config", job, "--epochs", 1, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    options = json.loads((tmp_path / "run" / "settings.json").read_text())["options"]
    assert (options["epochs"], options["batch_size"], options["lr"]) == (1, 30, 0.03)


def test_settings_file_is_a_job_file(expunge, trained, tmp_path):
    result = expunge("train", "--config", trained / "settings.json", "--out", tmp_path / "again")
    assert result.code == 0, result.err
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_own_model_from_a_file_with_options(expunge, rows, tmp_path):
    (tmp_path / "net.py").write_text(FACTORY)
    result = expunge("train", "--model", f"{tmp_path / 'net.py'}:build", "--model-set", "width=5", "--data", rows,
                     "--epochs", 1, "--out", tmp_path / "run")  # fmt: skip
    assert result.code == 0, result.err
    assert read_weights(tmp_path / "run" / "model.safetensors")["1.weight"].shape == (5, 6)


def test_reference_is_trained_without_the_forget_set(expunge, rows, tmp_path):
    result = expunge("train", "--model", "mlp", "--data", rows, "--forget", "class:1", "--on", "retain", "--epochs", 1,
                     "--out", tmp_path / "run")  # fmt: skip
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["sizes"]["train"] == 60


def test_start_from_a_checkpoint(expunge, rows, trained, tmp_path):
    result = expunge("train", "--model", "mlp", "--data", rows, "--checkpoint", trained / "model.safetensors",
                     "--epochs", 0, "--out", tmp_path / "run")  # fmt: skip
    assert result.code == 0, result.err
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_interrupted_training_resumes_to_the_same_weights(expunge, rows, tmp_path, stop, code):
    words = ["train", "--model", "mlp", "--data", rows, "--epochs", 80, "--batch_size", 4, "--lr", 0.01]
    words = [str(word) for word in words]
    out = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-m", "expunge.cli", *words, "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (out / "train.state").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(stop)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    if stop == signal.SIGINT:
        assert "interrupted; finished work is kept in" in err
    assert (out / "train.state").exists()
    assert not (out / "result.json").exists()

    resumed = expunge(*words, "--out", out)
    assert resumed.code == 0, resumed.err
    assert "going on with the interrupted training" in resumed.err
    assert expunge(*words, "--out", tmp_path / "whole").code == 0
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert not (out / "train.state").exists()
    histories = [(tmp_path / name / "history.csv").read_text().splitlines() for name in ("stopped", "whole")]
    assert len(histories[0]) == len(histories[1]) == 81


def test_an_edited_model_is_no_finished_training_and_force_does_it_again(expunge, rows, tmp_path):
    source = tmp_path / "net.py"
    source.write_text(FACTORY)
    command = ["train", "--model", f"{source}:build", "--data", rows, "--epochs", 1, "--out", tmp_path / "run"]
    assert expunge(*command).code == 0
    assert "nothing to do" in expunge(*command).err
    first = read_weights(tmp_path / "run" / "model.safetensors")
    source.write_text(FACTORY.replace("ReLU", "Tanh"))
    refused = expunge(*command)
    assert refused.code != 0
    assert "the code of the model or method changed since" in refused.err
    assert "--force" in refused.err
    assert expunge(*command, "--force").code == 0
    second = read_weights(tmp_path / "run" / "model.safetensors")
    assert any(bool((first[name] != second[name]).any()) for name in first)
    assert "nothing to do" in expunge(*command).err
