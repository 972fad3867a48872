"""`expunge memorise`: a file of scores that `--forget` takes, resumed after Ctrl-C, and what it refuses."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from expunge.memorisation import subsampling as memorisation


@pytest.fixture
def memorise(expunge, rows, tmp_path, tmp_cache):
    def call(*more):
        words = ["memorise", "--model", "mlp", "--data", rows, "--models", 4, "--epochs", 2, "--lr", 0.05]
        return expunge(*words, "--out", tmp_path / "scores.csv", *more)

    return call


@pytest.mark.parametrize("by", ["subsampling", "confidence", "events", "worst-case"])
def test_every_score_is_written_with_its_facts(memorise, tmp_path, by):
    result = memorise("--by", by)
    assert result.code == 0, result.err
    assert by in result.out
    table = pd.read_csv(tmp_path / "scores.csv")
    assert list(table.columns[:3]) == ["id", "position", "score"]
    assert len(table) == 90
    facts = json.loads((tmp_path / "scores.csv.json").read_text())
    assert facts["settings"]["by"] == facts["by"] == by
    assert facts["recipe"]["epochs"] == 2


def test_the_file_names_a_forget_set(memorise, expunge, rows, tmp_path):
    assert memorise("--by", "events").code == 0
    text = f"memorised:level=low,amount=12,scores={tmp_path / 'scores.csv'}"
    words = ["train", "--model", "mlp", "--data", rows, "--epochs", 1, "--out", tmp_path / "run"]
    result = expunge(*words, "--forget", text, "--on", "retain")
    assert result.code == 0, result.err
    assert "78 samples" in result.out


def test_after_an_interrupt_the_same_command_goes_on(memorise, tmp_path, tmp_cache, monkeypatch):
    train, seen = memorisation.train_model, []

    def interrupted(*args, **more):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return train(*args, **more)

    monkeypatch.setattr(memorisation, "train_model", interrupted)
    result = memorise()
    assert result.code == 130
    assert str(tmp_cache) in result.err.replace("\n", "")
    assert not (tmp_path / "scores.csv").exists()
    assert memorise().code == 0
    assert len(seen) == 5
    first = (tmp_path / "scores.csv").read_bytes()
    assert memorise("--overwrite").code == 0
    assert len(seen) == 5
    assert (tmp_path / "scores.csv").read_bytes() == first


def test_labels_of_a_scenario_are_learned(memorise, tmp_path):
    assert memorise("--by", "events").code == 0
    clean = json.loads((tmp_path / "scores.csv.json").read_text())["data"]
    assert memorise("--by", "events", "--forget", "noisy:0.3", "--overwrite").code == 0
    assert json.loads((tmp_path / "scores.csv.json").read_text())["data"] != clean


def test_bad_requests_give_one_sentence(memorise, tmp_path):
    for more, phrase in (
        (["--models", 1], "models"),
        (["--share", 1], "share"),
        (["--by", "magic"], "by"),
        (["--out", tmp_path / "scores.txt"], "scores.txt"),
        (["--by", "worst-case", "--amount", 90], "some, not all"),
        (["--epoch", 3], "epoch"),
        (["--by", "events", "--epochs", 0], "0 epochs"),
    ):
        result = memorise(*more)
        assert result.code == 2, (more, result.err)
        assert phrase in result.err
        assert sum(line.startswith("error:") for line in result.err.splitlines()) == 1
    assert not list(tmp_path.glob("scores*"))
    (tmp_path / "scores.csv").write_text("mine")
    assert memorise().code == 2
    assert (tmp_path / "scores.csv").read_text() == "mine"
