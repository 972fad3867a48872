"""The study commands hand over what was asked; a recorder stands in for `expunge.bench`, which has tests of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from expunge.api.record import CellRecord
from expunge.cli.tables import cells_tables
from expunge.report import published


def cell(method: str, seed: int, accuracy: float, state: str = "done") -> CellRecord:
    scores = [{"metric": "forget_accuracy", "group": "", "value": accuracy, "low": None, "high": None,
               "unit": "fraction", "direction": "reference"}]  # fmt: skip
    return CellRecord(
        id=f"{method}-{seed}", data={"name": "digits"}, model={"name": "mlp"}, scenario={"label": "class:3"},
        method={"label": method}, seeds={"unlearn": seed}, state=state, scores=scores if state == "done" else [],
    )  # fmt: skip


CELLS = [cell("scrub", 0, 0.10), cell("scrub", 1, 0.14), cell("retrain", 0, 0.0), cell("laf", 0, 0.0, "failed")]


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """What the commands called: (name, arguments)."""
    calls = []
    run, library = ModuleType("expunge.bench.run"), ModuleType("expunge.bench.library")
    run.run_study = lambda recipe, **more: calls.append(
        ("run_study", recipe, more["out"], more["jobs"], list(more["overrides"]))
    )
    run.status = lambda folder: {"done": 3, "failed": 1}
    run.export = lambda folder, **more: calls.append(("export", folder, more))
    run.cells = lambda folder: CELLS
    run.study = lambda folder: None
    run.load_study = lambda path, overrides=(): SimpleNamespace(references=list, name="toy")
    library.recipes = lambda: {"demo": tmp_path / "demo.yaml", "scrub-small-rb": tmp_path / "s.yaml"}
    library.titles = lambda: {"demo": "A demo", "scrub-small-rb": "SCRUB"}
    for module in (run, library):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    page = ModuleType("expunge.report")
    page.published = published
    page.build = lambda cells, out, **_: calls.append(("build", [c.id for c in cells], out))
    monkeypatch.setitem(sys.modules, "expunge.report", page)
    monkeypatch.setattr("expunge.report", page, raising=False)
    return calls


def test_run_prints_tables_and_builds_the_report(expunge, bench, tmp_path):
    out = tmp_path / "study"
    out.mkdir()
    result = expunge("run", "recipes/smoke.yaml", "--out", out, "--jobs", 2, "-s", "seeds=[0]", "-s", "train.epochs=1")
    assert result.code == 0, result.err
    assert bench[0] == ("run_study", Path("recipes/smoke.yaml"), out, 2, ["seeds=[0]", "train.epochs=1"])
    assert bench[1] == ("build", [c.id for c in CELLS], out / "report.html")
    assert "12.0±2.8" in result.out  # sample deviation of 10 and 14 percent
    assert "laf (failed 1/1)" in result.out
    assert "digits / mlp: forget class:3" in result.out


def test_a_published_table_that_does_not_exist_stops_before_the_run(expunge, bench, monkeypatch, tmp_path):
    study = SimpleNamespace(references=lambda: [("scrub/rb-smal", "")])
    monkeypatch.setattr(sys.modules["expunge.bench.run"], "load_study", lambda path, overrides=(): study)
    result = expunge("run", "recipe.yaml", "--out", tmp_path)
    assert (result.code, bench) == (2, [])
    assert "did you mean `scrub/rb-small`" in result.err


def test_demo_takes_its_recipe_from_the_library(expunge, bench, tmp_path):
    out = tmp_path / "demo"
    out.mkdir()
    assert expunge("demo", "--out", out).code == 0
    assert bench[0] == ("run_study", tmp_path / "demo.yaml", out, 2, [])


def test_reproduce_lists_and_names_neighbours(expunge, bench):
    listed = expunge("reproduce", "--list").out.splitlines()
    assert [line.split()[0] for line in listed] == ["demo", "scrub-small-rb"]
    assert expunge("reproduce").code == 2
    wrong = expunge("reproduce", "scrub-smal-rb")
    assert wrong.code == 2
    assert "did you mean `scrub-small-rb`" in wrong.err


def test_status_and_export(expunge, bench, tmp_path):
    assert expunge("status", tmp_path).out.split() == ["done", "3", "failed", "1"]
    assert expunge("export", tmp_path, "--csv", "t.csv", "--no-time").code == 0
    files = {"csv": Path("t.csv"), "parquet": None, "latex": None, "typst": None, "markdown": None}
    assert bench == [("export", tmp_path, {**files, "metrics": [], "spread": "sd", "time": False})]


def test_tables_for_papers_take_columns_and_a_spread(expunge, bench, tmp_path):
    words = ("export", tmp_path, "--latex", "t.tex", "--metrics", "a,b", "--metrics", "c")
    assert expunge(*words, "--spread", "interval").code == 0
    assert bench[0][2]["metrics"] == ["a", "b", "c"]
    wrong = expunge(*words, "--spread", "sem")
    assert wrong.code == 2
    assert "sd" in wrong.err
    assert "interval" in wrong.err


def test_report_reads_folders_of_unlearn(expunge, bench, tmp_path):
    (tmp_path / "cells.json").write_text(json.dumps([c.model_dump(mode="json") for c in CELLS]))
    assert expunge("report", tmp_path, "--out", tmp_path / "r.html").code == 0
    assert bench == [("build", [c.id for c in CELLS], tmp_path / "r.html")]


@pytest.mark.parametrize("content", ["[", '[{"id": "a", "extra": 1}]', "3", '{"a": 1}'])
def test_damaged_records_are_named(expunge, bench, tmp_path, content):
    (tmp_path / "cells.json").write_text(content)
    result = expunge("report", tmp_path / "cells.json")
    assert result.code == 2
    assert "cells.json holds no records" in result.err


def test_interrupted_study_says_where_the_work_is(expunge, bench, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["expunge.bench.run"], "run_study", interrupt)
    result = expunge("run", "recipe.yaml", "--out", tmp_path)
    assert result.code == 130
    assert result.err == f"interrupted; finished work is kept in {tmp_path}; run the same command again to go on.\n"


def wide(method: str, seed: int) -> CellRecord:
    """Scores in every column of the widest table."""
    names = ("forget_accuracy", "retain_accuracy", "test_accuracy", "test_retained_accuracy", "mia_auc", "average_gap",
             "seconds", "scale_up")  # fmt: skip
    row = {"group": "", "low": None, "high": None, "unit": "fraction", "direction": "reference"}
    scores = [{"metric": name, "value": 0.5 + 0.25 * seed, **row} for name in names]
    return cell(method, seed, 0.0).model_copy(update={"scores": scores, "method": {"label": method, "name": method}})


@pytest.mark.parametrize(("columns", "shown"), [("80", "62.5 "), ("140", "62.5±17.7")])
def test_no_number_is_cut_in_a_narrow_window(monkeypatch, columns, shown):
    monkeypatch.setenv("COLUMNS", columns)
    from expunge.cli.console import out

    console = out()
    (grid,) = cells_tables([wide(name, seed) for name in ("random-label", "original") for seed in (0, 1)])
    with console.capture() as captured:
        console.print(grid)
    lines = {line.split()[0]: line for line in captured.get().splitlines() if line.strip()}
    assert lines["random-label"].count(shown) == 6  # forget, retain, test, kept, AUC, gap
    assert lines["original"].split()[-2:] == ["-", "-"]  # what does nothing has no speed
    assert ("spread is in the report" in captured.get().replace("\n", " ")) == (columns == "80")


def test_a_failed_cell_stands_in_the_table_of_its_scenario():
    done = [one.model_copy(update={"study": "demo"}) for one in CELLS[:3]]
    assert len(cells_tables([*done, CELLS[3]])) == 1


def test_every_table_fits_eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    from expunge.cli.console import out

    console = out()
    for grid in cells_tables(CELLS):
        with console.capture() as captured:
            console.print(grid)
        assert max(map(len, captured.get().splitlines())) <= 80


def test_compare_ranks_and_writes_the_pairs(expunge, tmp_path, monkeypatch):
    ran = [cell(method, seed, value + seed / 100) for method, value in (("scrub", 0.1), ("laf", 0.2), ("fisher", 0.3))
           for seed in range(4)]  # fmt: skip
    score = {"metric": "average_gap", "group": "", "low": None, "high": None, "unit": "fraction", "direction": "lower"}
    gaps = [0.1 + i / 100 for i in range(12)]
    ran = [c.model_copy(update={"scores": [{**score, "value": v}]}) for c, v in zip(ran, gaps, strict=True)]
    (tmp_path / "cells.json").write_text(json.dumps([one.model_dump(mode="json") for one in ran]))
    result = expunge("compare", tmp_path, "--csv", tmp_path / "pairs.csv")
    assert result.code == 0, result.err
    assert "4 blocks" in result.out
    assert "scrub against" in result.out
    assert len((tmp_path / "pairs.csv").read_text().splitlines()) == 4
    few = expunge("compare", tmp_path, "--metric", "avarage_gap")
    assert few.code == 2
    assert "did you mean `average_gap`" in few.err


def test_a_site_in_place_of_the_page(expunge, tmp_path):
    runs = [tmp_path / name for name in ("forgot", "forgot-1")]
    named = [one.model_copy(update={"method": {**one.method, "name": one.method["label"]}}) for one in CELLS]
    for run in runs:
        run.mkdir()
        (run / "cells.json").write_text(json.dumps([one.model_dump(mode="json") for one in named]))
    result = expunge("report", *runs, "--site", tmp_path / "site")
    assert result.code == 0, result.err
    assert {path.name for path in (tmp_path / "site" / "studies").iterdir()} == {"forgot.html", "forgot-1.html"}
    assert not (tmp_path / "report.html").exists()


def test_schema_is_printed_or_written(expunge, tmp_path):
    assert json.loads(expunge("schema").out)["properties"]["methods"]
    path = tmp_path / "workspace.json"
    result = expunge("schema", "workspace", "--out", path)
    assert (result.code, result.out) == (0, "")
    assert "max_drop" in json.loads(path.read_text())["properties"]
    assert "did you mean `study`" in expunge("schema", "stduy").err
