"""`expunge unlearn`, `evaluate`: from a checkpoint to weights, scores, records and a report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from expunge.api.record import CellRecord
from expunge.cli.main import main
from expunge.methods import METHODS
from tests.cli.conftest import blobs


def words(rows, trained, out, *more):
    base = ["unlearn", "--model", "mlp", "--checkpoint", trained / "model.safetensors", "--data", rows]
    return [*base, "--forget", "class:1", "--method", "neggrad+", "--out", out, *more]


@pytest.fixture(scope="module")
def forgot(rows: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`unlearn --retrain` of one class, done once for this file."""
    out = tmp_path_factory.mktemp("forgot") / "run"
    assert main([str(w) for w in words(rows, trained, out, "--retrain", "--epochs", 2, "--quiet")]) == 0
    return out


def test_writes_everything(forgot):
    names = {path.name for path in forgot.iterdir()}
    written = {"model.safetensors", "result.json", "rows.json", "history.csv"}
    assert names == written | {"settings.json", "cells.json", "report.html"}
    assert "<html" in (forgot / "report.html").read_text(encoding="utf-8").lower()


def test_cells_are_records_with_scores_and_seeds(forgot, rows):
    cells = [CellRecord.model_validate(item) for item in json.loads((forgot / "cells.json").read_text())]
    assert [cell.method["label"] for cell in cells] == ["original", "neggrad+", "retrain"]
    assert len({cell.id for cell in cells}) == 3
    for cell in cells:
        metrics = {row["metric"] for row in cell.scores}
        assert {"forget_accuracy", "retain_accuracy", "test_accuracy", "average_gap"} <= metrics
        # 90 rows, a fifth held out, two of three classes kept.
        assert cell.scenario["forget"] + cell.scenario["retain"] == 72
        assert cell.data["validation"] == 18
        assert cell.data["test"] == 45
        assert (cell.data["classes"], cell.data["class_names"]) == (3, ["0", "1", "2"])
    assert cells[0].seconds is None
    assert cells[1].method["options"]["epochs"] == 2


def test_prints_a_table_that_fits(expunge, rows, trained, tmp_path):
    result = expunge(*words(rows, trained, tmp_path / "run", "--retrain"))
    assert result.code == 0, result.err
    for part in ("original", "neggrad+", "retrained", "forget", "retain", "test", "AUC", "gap"):
        assert part in result.out
    *rest, last = result.out.splitlines()
    assert max(map(len, rest)) <= 80
    assert last.startswith("effect: ")


def test_finished_work_is_not_done_again(expunge, rows, trained, forgot, monkeypatch):
    def refuse(*_, method, **__):
        assert method == "retrain"  # the reference comes from the cache
        return original(*_, method=method, **__)

    from expunge import api

    original = api.unlearn
    monkeypatch.setattr("expunge.cli.execute.api.unlearn", refuse)
    before = (forgot / "model.safetensors").stat().st_mtime_ns
    result = expunge(*words(rows, trained, forgot, "--retrain", "--epochs", 2))
    assert result.code == 0, result.err
    assert "already holds" in result.err
    assert (forgot / "model.safetensors").stat().st_mtime_ns == before


def test_other_settings_are_refused(expunge, rows, trained, forgot):
    result = expunge(*words(rows, trained, forgot, "--retrain", "--epochs", 3))
    assert result.code == 2
    assert "`epochs` was 2, now 3" in result.err


def test_rewinding_uses_what_training_held_out(expunge, rows, trained, tmp_path):
    result = expunge(*words(rows, trained, tmp_path / "run", "--rewind", "--epochs", 2))
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["sizes"]["validation"] == 18


def test_rewinding_without_held_out_data_is_explained(expunge, rows, tmp_path):
    assert expunge("train", "--model", "mlp", "--data", rows, "--epochs", 1, "--out", tmp_path / "plain").code == 0
    result = expunge(*words(rows, tmp_path / "plain", tmp_path / "run", "--rewind", "--test-held-out", 0))
    assert result.code == 2
    assert "needs validation data" in result.err


@pytest.mark.parametrize(
    ("more", "phrases"),
    [
        (["--method", "scrbu"], ["did you mean `scrub`"]),
        (["--method", "scrub/small"], ["preset of scrub", "small-r"]),
        (["--alhpa", "0.1"], ["neggrad+ has no option `alhpa`", "did you mean `alpha`"]),
        (["--lr", "0"], ["neggrad+: `lr`", "greater than 0"]),
        (["--recipe", "/nowhere.yaml"], ["/nowhere.yaml"]),
        (["--forget", "class:8"], ["class `8`"]),
    ],
)
def test_requests_that_cannot_be_right(expunge, rows, trained, tmp_path, more, phrases):
    result = expunge(*words(rows, trained, tmp_path / "run", *more))
    assert result.code == 2, result.err
    assert all(phrase in result.err for phrase in phrases), result.err
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_recipe_typo_names_the_file(expunge, rows, trained, tmp_path):
    (tmp_path / "recipe.yaml").write_text("epoch: 3\n")
    result = expunge(*words(rows, trained, tmp_path / "run", "--recipe", tmp_path / "recipe.yaml"))
    assert result.code == 2
    assert "recipe.yaml" in result.err
    assert "did you mean `epochs`" in result.err


def test_retraining_needs_a_recipe(expunge, rows, trained, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
    result = expunge(*words(rows, tmp_path, tmp_path / "run", "--retrain", "--epochs", 1))
    assert result.code == 2
    assert "--recipe" in result.err


@pytest.mark.parametrize(
    ("more", "phrases"),
    [
        (["--metrics", "acuracy"], ["did you mean `accuracy`"]),
        (["--metrics", "gap"], ["gap needs", "retrained"]),
        (["--method", "scrub", "--rewind", "--test-held-out", "0"], ["--validation", "--holdout"]),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_work(expunge, rows, tmp_path, more, phrases):
    """A checkpoint without a training beside it: nothing is held out, and there is no reference."""
    assert main(["train", "--model", "mlp", "--data", str(rows), "--epochs", "1", "--out", str(tmp_path), "-q"]) == 0
    result = expunge(*words(rows, tmp_path, tmp_path / "run", *more))
    assert result.code == 2
    for phrase in phrases:
        assert phrase in result.err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"settings.json"}


def test_method_options_may_stand_beside_the_others_in_a_file(expunge, rows, trained, tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text(
        f"model: mlp\ncheckpoint: {trained / 'model.safetensors'}\ndata: {rows}\nforget: class:1\n"
        "method: neggrad+\nepochs: 1\nalphaa: 0.3\n"
    )
    result = expunge("unlearn", "--config", job, "--out", tmp_path / "run")
    assert result.code == 2
    assert "`alphaa`; did you mean `alpha`" in result.err
    job.write_text(job.read_text().replace("alphaa", "alpha"))
    assert expunge("unlearn", "--config", job, "--out", tmp_path / "run").code == 0
    options = json.loads((tmp_path / "run" / "settings.json").read_text())["options"]
    assert (options["epochs"], options["alpha"]) == (1, 0.3)


def test_a_job_file_does_the_same(expunge, rows, trained, forgot, tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text(
        f"model: mlp\ncheckpoint: {trained / 'model.safetensors'}\ndata: {rows}\nforget: class:1\n"
        "method: neggrad+\nretrain: true\noptions:\n  epochs: 2\n"
    )
    result = expunge("unlearn", "--config", job, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (forgot / "model.safetensors").read_bytes()


def test_evaluate_measures_checkpoints_and_writes_csv(expunge, rows, trained, forgot, tmp_path):
    result = expunge("evaluate", "--model", "mlp", "--original", trained / "model.safetensors", "--unlearned",
                     forgot / "model.safetensors", "--data", rows, "--forget", "class:1", "--csv",
                     tmp_path / "deep" / "scores.csv")  # fmt: skip
    assert result.code == 0, result.err
    frame = pd.read_csv(tmp_path / "deep" / "scores.csv")
    assert set(frame["model"]) == {"original", "unlearned"}
    cells = json.loads((forgot / "cells.json").read_text())
    expected = next(row["value"] for row in cells[1]["scores"] if row["metric"] == "forget_accuracy")
    mine = frame[(frame["model"] == "unlearned") & (frame["metric"] == "forget_accuracy")]["value"].item()
    assert mine == pytest.approx(expected)


def test_evaluate_prints_json(expunge, rows, trained):
    result = expunge("evaluate", "--model", "mlp", "--original", trained / "model.safetensors", "--data", rows,
                     "--forget", "class:1", "--metrics", "accuracy", "--json")  # fmt: skip
    assert {row["metric"] for row in json.loads(result.out)} >= {"forget_accuracy", "retain_accuracy"}


def test_evaluate_needs_a_model(expunge, rows):
    result = expunge("evaluate", "--model", "mlp", "--data", rows, "--forget", "class:1")
    assert result.code == 2
    assert "--original" in result.err


def test_test_data_of_their_own(expunge, rows, trained, tmp_path):
    x, y = blobs(9, 30)
    np.savez(tmp_path / "other.npz", x=x, y=y)
    result = expunge("evaluate", "--model", "mlp", "--original", trained / "model.safetensors", "--data", rows,
                     "--test", tmp_path / "other.npz", "--forget", "class:1")  # fmt: skip
    assert result.code == 0, result.err


def test_a_stream_of_requests(expunge, rows, trained, tmp_path):
    more = ["--method", "finetune", "--epochs", 1, "--forget", "random:amount=12,requests=3", "--retrain"]
    result = expunge(*words(rows, trained, tmp_path / "run", *more))
    assert result.code == 0, result.err
    assert "all so far" in result.out
    cell = CellRecord.model_validate(json.loads((tmp_path / "run" / "cells.json").read_text())[1])
    past = [row["group"] for row in cell.scores if row["metric"] == "request_past_accuracy"]
    assert past == ["1", "2", "3"]
    assert "Request after request" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    again = expunge(*words(rows, trained, tmp_path / "run", *more))
    assert again.code == 0, again.err
    assert "already holds this result" in again.err


def test_without_a_method_the_planner_chooses_and_says_why(expunge, rows, trained, tmp_path):
    base = ["unlearn", "--model", "mlp", "--checkpoint", trained / "model.safetensors", "--data", rows]
    result = expunge(*base, "--forget", "random:0.2", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "method: retrain (exact); exact: the new weights never saw" in result.err
    assert "retrain: about " in result.err
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["method"] == "retrain"
    assert expunge(*base, "--forget", "random:0.2", "--lr", "0.1", "--out", tmp_path / "b").code == 2
    named = expunge(*base, "--forget", "random:0.2", "--method", "neggrad", "--out", tmp_path / "c")
    assert named.code == 0, named.err
    assert "of a retraining; `retrain` would take" in named.err


def test_test_samples_are_held_out_where_nothing_else_is_and_left_out_of_the_audit(expunge, rows, tmp_path):
    assert expunge("train", "--model", "mlp", "--data", rows, "--epochs", 1, "--out", tmp_path / "plain").code == 0
    result = expunge(*words(rows, tmp_path / "plain", tmp_path / "run"))
    assert result.code == 0, result.err
    assert "22 of 45 test samples are held out" in result.err
    assert json.loads((tmp_path / "run" / "cells.json").read_text())[0]["data"]["test"] == 23
    found = expunge(
        "evaluate", "--model", "mlp", "--original", tmp_path / "plain" / "model.safetensors", "--unlearned",
        tmp_path / "run" / "model.safetensors", "--data", rows, "--forget", "class:0", "--json",
        "--metrics", "accuracy",
    )  # fmt: skip
    assert found.code == 0, found.err
    values = {row["metric"]: row["value"] for row in json.loads(found.out) if row["model"] == "original"}
    assert round(values["test_accuracy"] * 23) == pytest.approx(values["test_accuracy"] * 23)  # of 23 samples, not 45


def test_only_held_out_samples_are_left_out_of_other_test_data(expunge, rows, tmp_path):
    assert expunge("train", "--model", "mlp", "--data", rows, "--epochs", 1, "--out", tmp_path / "plain").code == 0
    assert expunge(*words(rows, tmp_path / "plain", tmp_path / "run", "--metrics", "accuracy")).code == 0
    x, y = blobs(1, 45)
    fresh, labels = blobs(5, 15)
    np.savez(tmp_path / "fresh.npz", x=fresh, y=labels)
    np.savez(tmp_path / "both.npz", x=np.concatenate([x, fresh]), y=np.concatenate([y, labels]))
    common = ["evaluate", "--model", "mlp", "--data", rows, "--forget", "class:0", "--metrics", "accuracy",
              "--unlearned", tmp_path / "run" / "model.safetensors"]  # fmt: skip
    unseen = expunge(*common, "--test", tmp_path / "fresh.npz")
    assert unseen.code == 0, unseen.err
    assert "left out" not in unseen.err
    mixed = expunge(*common, "--test", tmp_path / "both.npz")
    assert mixed.code == 0, mixed.err
    assert "22 test samples are left out; they were held out when" in " ".join(mixed.err.split())


def test_test_data_with_forgotten_samples_are_refused_before_the_work(expunge, rows, trained, tmp_path):
    x, y = blobs(0, 90)
    np.savez(tmp_path / "again.npz", x=x, y=y)
    result = expunge(*words(rows, trained, tmp_path / "run", "--test", tmp_path / "again.npz"))
    assert result.code == 2
    assert "are in both the forget and the test set" in result.err
    assert not (tmp_path / "run" / "result.json").exists()


def test_an_interrupted_unlearning_goes_on_to_the_same_weights(expunge, rows, trained, tmp_path):
    out = tmp_path / "stopped"
    more = ("--epochs", 40, "--retain_batch_size", 4, "--lr", 0.001, "--method", "bad-t")
    command = [str(word) for word in words(rows, trained, out, *more)]
    process = subprocess.Popen(
        [sys.executable, "-m", "expunge.cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out / "unlearn.state").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert f"interrupted; finished epochs are kept in {out}; run the same command again to go on." in err
    assert (out / "unlearn.state").exists()
    assert not (out / "result.json").exists()
    again = expunge(*command)
    assert again.code == 0, again.err
    assert f"an interrupted unlearning is kept in {out}" in " ".join(again.err.split())
    assert "bad-t: goes on after" in again.err
    assert expunge(*words(rows, trained, tmp_path / "whole", *more)).code == 0
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert not (out / "unlearn.state").exists()


def test_a_method_that_works_in_one_piece_says_that_it_begins_again(expunge, rows, trained, tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(METHODS.load("fisher"), "unlearn", interrupted)
    result = expunge(*words(rows, trained, tmp_path / "run", "--method", "fisher"))
    assert result.code == 130
    assert result.err.endswith(
        "interrupted; no epoch was finished that could be kept, so the same command begins again.\n"
    )
