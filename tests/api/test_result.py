"""Results on disk: the weights, the record and the history, each whole or not at all, and the same when read back."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import expunge
from expunge.api.record import CellRecord, cell_from_result
from expunge.api.result import write_text
from expunge.core.errors import ExpungeError
from expunge.models.checkpoint import load_weights, weights_hash
from expunge.testing.conformance import same, weights
from expunge.testing.toys import ToyNet, toy_problem

FILES = {"model.safetensors", "result.json", "history.csv"}


def made(**changes: Any) -> expunge.Result:
    toy = toy_problem()
    given: dict[str, Any] = {"method": "scrub", "epochs": 2, "validation": toy.validation, "rewind": True}
    return expunge.unlearn(toy.model, forget=toy.forget, retain=toy.retain, device="cpu", **{**given, **changes})


@pytest.fixture(scope="module")
def result() -> expunge.Result:
    return made()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_saved_reads_back(result: expunge.Result, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "deep" / "run")
    assert folder == tmp_path / "deep" / "run"
    assert names(folder) == FILES | {"parent"}  # the model that it came from
    net = load_weights(ToyNet(), folder / "model.safetensors")
    assert same(weights(net), weights(result.model))
    history = pd.read_csv(folder / "history.csv")
    pd.testing.assert_frame_equal(history, result.frame(), check_exact=False)
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert record["weights"] == weights_hash(net)
    assert record["history"] == result.history
    assert (record["status"], record["seconds"]) == (result.status, result.seconds)


def test_the_record_says_how_to_do_it_again(result: expunge.Result) -> None:
    record = json.loads(json.dumps(result.record()))
    toy = toy_problem()
    assert (record["kind"], record["method"], record["seed"]) == ("unlearn", "scrub", 0)
    assert record["original"] == weights_hash(toy.model)
    assert record["data"]["forget"] == toy.forget.content_hash()
    assert record["sizes"] == {"forget": 30, "retain": 90, "validation": 40}
    assert record["needs"]["validation"] == "labels"
    assert {"expunge", "torch", "python"} <= set(record["versions"])
    again = made(**record["options"], seed=record["seed"])
    assert again.record()["weights"] == record["weights"]


def test_a_record_is_strict_json(result: expunge.Result) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    json.loads(json.dumps(result.record()), parse_constant=refuse)


def test_a_training_is_saved_alike(tmp_path: Path) -> None:
    toy = toy_problem(epochs=0)
    trained = expunge.train(toy.model, toy.retain, recipe={"epochs": 1}, device="cpu")
    trained.save(tmp_path)
    record = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert names(tmp_path) == FILES | {"initial.safetensors"}
    assert (record["kind"], record["recipe"]["epochs"]) == ("train", 1)
    assert record["start"] == weights_hash(toy.model)


def test_a_cell_takes_over_the_record(result: expunge.Result) -> None:
    cell = cell_from_result(result.record(), id="x")
    assert cell.history == result.history
    assert cell.needs["retain"] == "labels"
    assert CellRecord.model_validate_json(cell.model_dump_json()).model_dump_json() == cell.model_dump_json()


def test_a_second_result_replaces_the_first_wholly(result: expunge.Result, tmp_path: Path) -> None:
    made(seed=5, epochs=3).save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    result.save(tmp_path)
    assert names(tmp_path) == FILES | {"notes.txt", "parent"}
    record = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (record["seed"], len(record["history"])) == (0, 2)
    assert len(pd.read_csv(tmp_path / "history.csv")) == 2
    assert record["weights"] == weights_hash(load_weights(ToyNet(), tmp_path / "model.safetensors"))


def test_a_full_disk_leaves_the_first_result_readable(
    result: expunge.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExpungeError, match=r"cannot write .*model\.safetensors .*No space left.*free some space"):
        replace(result, model=ToyNet()).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    with pytest.raises(ExpungeError, match=r"cannot write .*history\.csv .*No space left"):
        write_text(tmp_path / "history.csv", "other")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_place_that_cannot_hold_a_folder_is_named(result: expunge.Result, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ExpungeError, match=r"cannot write to .*file.*choose another folder") as caught:
            result.save(place)
        assert caught.value.exit_code == 1


def test_a_frame_has_one_row_per_epoch(result: expunge.Result) -> None:
    frame = result.frame()
    assert list(frame["epoch"]) == [1, 2]
    assert {"seconds", "forget_error"} <= set(frame.columns)
    assert frame["forget_error"].between(0, 1).all()
