"""Damaged records: a sentence that names the file, and the rest of the study stays readable."""

from __future__ import annotations

import json
import logging
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from expunge.api.record import CellRecord
from expunge.bench.store import CellStore
from expunge.cli.main import main

ODD: tuple[Any, ...] = (
    None, True, -1, 1e308, float("nan"), "", "x", [], {}, [[]], {"a": {}}, 10**30, "2026-99-99", "a\x00b", [1, "a"],
)  # fmt: skip
MUTANTS = 400


def record() -> dict[str, Any]:
    """A measured cell with all that reports read."""
    return {
        "id": "a1",
        "study": "small",
        "data": {"name": "digits", "classes": 2, "class_names": ["a", "b"], "train": 9, "test": 4, "validation": 0},
        "model": {"name": "mlp", "parameters": 10},
        "scenario": {"label": "class:a", "scenario": "class", "options": {"target": "a"}, "seed": 0, "forget": 3},
        "method": {"label": "finetune", "name": "finetune", "options": {"lr": 0.1}, "tags": ["iterative"], "cite": ""},
        "seeds": {"data": 0, "train": 0, "unlearn": 0, "evaluate": 0},
        "seconds": 1.5,
        "needs": {"forget": "none", "retain": "labels", "weights": True, "optional": []},
        "notes": ["a note"],
        "history": [{"epoch": 1.0, "loss": 0.5, "seconds": 0.1}],
        "effect": {"label": "partial", "sentence": "partial: so so", "numbers": {"forget_loss_after": 0.4}},
        "scores": [
            {"metric": f"{split}_accuracy", "value": 0.5, "unit": "fraction", "direction": "higher", "low": 0.4,
             "high": 0.6, "group": "", "note": ""}
            for split in ("forget", "retain", "test")
        ],
        "curves": {"losses": {"forget": [0.1, 0.2]}, "confusion": {"forget": [[2, 1], [0, 0]]}},
        "provenance": {"versions": {"torch": "2"}, "hardware": "cpu"},
    }  # fmt: skip


def mutated(value: Any, rng: random.Random) -> Any:
    """The record with one value removed, or replaced by another."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict | list):
            for key in node if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                walk(node[key])

    walk(value)
    node, key = rng.choice(places)
    if rng.random() < 0.3:
        del node[key]
    else:
        node[key] = rng.choice(ODD)
    return value


def test_a_mutant_is_readable_or_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no record is refused when it is read; what is let through makes a page."""
    rng = random.Random(0)
    refused = 0
    for number in range(MUTANTS):
        cells = [mutated(record(), rng), record() | {"id": "b2"}]
        try:
            for cell in cells:
                CellRecord.model_validate(cell)
        except ValueError:
            refused += 1
            if refused > 8:
                continue  # the command says it alike; a few will do
        else:
            if number % 40:
                continue  # pages take their time
        path = tmp_path / "cells.json"
        path.write_text(json.dumps(cells))
        code = main(["report", str(path), "--out", str(tmp_path / "page.html")])
        error = capsys.readouterr().err
        assert "unexpected" not in error, (number, error)
        assert code == 0 or str(path) in error
    assert MUTANTS / 4 < refused < MUTANTS


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of two measured cells, of which the first is damaged."""
    CellStore(tmp_path, create=True).close()
    with sqlite3.connect(tmp_path / "study.sqlite") as database:
        for position, text in enumerate(('{"id": "a1", "scores": 3}', json.dumps(record() | {"id": "b2"}))):
            database.execute(
                "INSERT INTO cells (id, position, scenario, method, seeds, state, record) "
                "VALUES (?, ?, 'class:a', 'finetune', '{\"data\": 0}', 'done', ?)",
                (f"cell{position}", position, text),
            )
    database.close()
    return tmp_path


def test_the_rest_of_a_study_stays_readable(study: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CellStore(study)
    with caplog.at_level(logging.WARNING):
        first, second = store.records()
    assert (first.state, first.status) == ("failed", "damaged")
    assert f"its record in {study / 'study.sqlite'} is damaged; run the study again" in first.error
    assert (second.id, second.state) == ("b2", "done")
    assert "1 of 2 records" in caplog.text
    store.plan([], "{}")
    assert dict(store._rows("SELECT id, state FROM cells")) == {"cell0": "pending", "cell1": "done"}
    store.close()


def test_a_file_that_is_no_database_is_named(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study / "study.sqlite"
    content = path.read_bytes()
    for damaged in (content[:100], b"\xeb" * 4096, content[:40] + b"\xff" * 60 + content[100:], b""):
        path.write_bytes(damaged)
        code = main(["status", str(study)])
        error = capsys.readouterr().err
        assert "unexpected" not in error, error
        assert code == 0 or str(path) in error
