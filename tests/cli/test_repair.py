"""`expunge repair`: from a checkpoint and a list to a repaired model, a corrected list and a page; resumed; refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from expunge.repair import mending
from tests.cli.conftest import blobs

SWAPPED = 16


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """120 points of three classes; 16 of the first two say the other class. Test labels are right."""
    folder = tmp_path_factory.mktemp("noisy")
    x, y = blobs(0, 120)
    x_test, y_test = blobs(1, 90)
    rows = np.random.default_rng(0).choice(np.flatnonzero(y < 2), SWAPPED, replace=False)
    given = y.copy()
    given[rows] = 1 - y[rows]
    np.savez(folder / "noisy.npz", x_train=x, y_train=given, x_test=x_test, y_test=y_test)
    flagged = np.isin(np.arange(120), rows)
    issues = pd.DataFrame(
        {
            "is_label_issue": flagged,
            "label_quality": np.where(flagged, 0.05, 0.95),
            "given_label": given,
            "predicted_label": y,
        }
    )
    issues.to_csv(folder / "issues.csv")
    return folder


@pytest.fixture(scope="module")
def checkpoint(noisy):
    from expunge.cli.main import main

    words = f"train --model mlp --data {noisy / 'noisy.npz'} --epochs 25 --lr 0.05 --batch-size 16 --quiet"
    assert main([*words.split(), "--out", str(noisy / "run")]) == 0
    return noisy / "run" / "model.safetensors"


@pytest.fixture
def repair(expunge, noisy, checkpoint, tmp_path, tmp_cache):
    def call(*more, suspects=noisy / "issues.csv", method=("--method", "none")):
        base = ["repair", "--model", "mlp", "--checkpoint", checkpoint, "--data", noisy / "noisy.npz"]
        return expunge(*base, "--suspects", suspects, "--out", tmp_path / "out", *method, *more)

    return call


def test_a_list_of_issues_becomes_a_repaired_model(repair, tmp_path):
    result = repair("--action", "relabel", "--retrain", "--learn-epochs", 10)
    assert result.code == 0, result.err
    for phrase in ("IC-ERR", "16 suspects were learned", "Neighbours", "repair.html"):
        assert phrase in result.out
    out = tmp_path / "out"
    record = json.loads((out / "repair.json").read_text())
    pair = record["pairs"][0]
    errors = {model: found["ic_error"]["share"] for model, found in pair["models"].items()}
    assert set(errors) == {"original", "repaired", "retrained"}
    assert errors["repaired"] <= errors["original"]
    assert record["suspects"]["repaired"]["given"] < record["suspects"]["original"]["given"]
    assert record["learn"]["epochs"] == 10
    assert record["settings"]["action"] == "relabel"
    table = pd.read_csv(out / "labels.csv")
    assert table["action"].value_counts().to_dict() == {"kept": 104, "relabelled": SWAPPED}
    assert json.loads((out / "result.json").read_text())["kind"] == "repair"
    left = {path.name for path in out.iterdir()}
    assert left == {
        "settings.json", "model.safetensors", "result.json", "history.csv", "labels.csv", "still_suspect.csv",
        "neighbours.csv", "repair.html", "repair.json", "rows.json",
    }  # fmt: skip
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    again = repair("--action", "relabel", "--retrain", "--learn-epochs", 10)
    assert again.code == 0
    assert "nothing to do" in again.err
    assert "IC-ERR" in again.out
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    for name in ("repair.json", "labels.csv"):
        (out / name).unlink()
    third = repair("--action", "relabel", "--retrain", "--learn-epochs", 10)
    assert "measuring it" in third.err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_suspects_are_forgotten_by_any_method(repair, tmp_path):
    result = repair("--epochs", 2, method=("--method", "neggrad+"))
    assert result.code == 0, result.err
    assert "16 suspects were forgotten by neggrad+" in result.out
    record = json.loads((tmp_path / "out" / "repair.json").read_text())
    assert record["options"]["epochs"] == 2
    table = pd.read_csv(tmp_path / "out" / "labels.csv")
    assert table.loc[table["action"] == "forgotten", ["now", "now_class"]].isna().all().all()
    kept = table[table["action"] == "kept"]
    assert kept["given_class"].notna().all()
    assert (kept["given_class"] == kept["now_class"]).all()
    assert len(set(zip(table["given"], table["given_class"], strict=True))) == table["given"].nunique()


def test_an_interrupted_repair_goes_on(repair, tmp_path, monkeypatch):
    how = ("--action", "relabel", "--epochs", 1)
    unlearn, calls = mending.Experiment.unlearn, []
    monkeypatch.setattr(mending.Experiment, "unlearn", lambda *a, **k: calls.append(1) or unlearn(*a, **k))

    def stop(*args, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mending.api, "train", stop)
        result = repair(*how, method=("--method", "scrub"))
    assert result.code == 130
    assert "run the same command again" in result.err
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert repair(*how, method=("--method", "scrub")).code == 0
    assert calls == [1]
    assert not (tmp_path / "out" / "unlearned.safetensors").exists()


def test_a_list_that_changed_is_noticed(repair, noisy, tmp_path):
    mine = tmp_path / "mine.csv"
    table = pd.read_csv(noisy / "issues.csv", index_col=0)
    mine.write_text(table[table["is_label_issue"]].head(8).to_csv())
    how = {"suspects": mine}
    assert repair("--action", "relabel", **how).code == 0
    mine.write_text(table[table["is_label_issue"]].to_csv())
    result = repair("--action", "relabel", **how)
    assert result.code == 2
    assert "list of suspects changed" in result.err
    assert repair("--action", "relabel", "--overwrite", **how).code == 0
    assert json.loads((tmp_path / "out" / "repair.json").read_text())["sizes"]["suspects"] == SWAPPED
    result = repair("--action", "relabel", "--seed", 1, **how)
    assert result.code == 2
    assert "`seed` was 0, now 1" in result.err


def test_bad_requests_give_one_sentence_and_leave_nothing(repair, noisy, tmp_path):
    (tmp_path / "foreign.csv").write_text("id,label\nphoto-1,2\n")
    (tmp_path / "latin.csv").write_bytes(b"id,label\n\xff,1\n")
    relabel = ("--action", "relabel")
    for more, phrase, how in (
        ((), "would change nothing", {}),
        ((*relabel, "--below", 0.01), "no suspect is left", {}),
        ((*relabel, "--top", 0), "top", {}),
        ((*relabel, "--alpha", 1), "alpha", {}),
        ((*relabel, "--learn-rat", 1), "learn_rate", {}),
        (("--learn-epochs", 2), "relabel", {"method": ()}),
        (("--method", "scrbu"), "scrub", {"method": ()}),
        (("--method", "original"), "original", {"method": ()}),
        (("--action", "mend"), "action", {}),
        (relabel, "photo-1", {"suspects": tmp_path / "foreign.csv"}),
        (relabel, "not UTF-8", {"suspects": tmp_path / "latin.csv"}),
        (relabel, "absent.csv", {"suspects": tmp_path / "absent.csv"}),
        ((*relabel, "--checkpoint", noisy / "issues.csv"), "unknown type", {}),
    ):
        result = repair(*more, **how)
        assert result.code == 2, (more, result.err)
        assert phrase in result.err, (more, result.err)
        assert sum(line.startswith("error:") for line in result.err.splitlines()) == 1
        assert not (tmp_path / "out").exists(), more


def test_a_model_of_unknown_training_cannot_be_compared_with_a_retrained_one(repair, checkpoint, tmp_path):
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes(checkpoint.read_bytes())
    result = repair("--action", "relabel", "--retrain", "--checkpoint", bare)
    assert result.code == 2
    assert "--recipe" in result.err
