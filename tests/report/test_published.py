"""Published numbers: transcribed as printed, named as here, tagged, and empty where nothing could be traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from expunge import report
from expunge.api.evaluate import evaluate
from expunge.api.record import CellRecord
from expunge.bench.cells import expand
from expunge.bench.library import recipes
from expunge.bench.reading import load_study, parse_study
from expunge.core.errors import UsageError
from expunge.core.options import build
from expunge.methods import METHODS
from expunge.metrics import METRICS
from expunge.report import published
from expunge.report.beside import beside, ours
from expunge.report.published import PublishedValue
from expunge.report.summarise import blocks
from tests.report.test_report import cell

TABLES = {name: published.find(name)[1] for name in published.names()}
NUMBERS = [(name, number) for name, table in TABLES.items() for number in table.numbers]
# Written down by hand, once more, from where the numbers stand: (table, method, metric) -> value, spread, tag.
BY_HAND = {
    ("scrub/bad-t-class", "bad-t", "test_retained_error"): (15.90, 0.29, "N"),
    ("scrub/bad-t-class", "bad-t", "forget_error"): (79.57, 4.18, "N"),
    ("scrub/bad-t-class", "bad-t", "mia_accuracy"): (57.87, 0.97, "N"),
    ("scrub/bad-t-class", "bad-t", "validation_error"): (21.90, 0.22, "D"),
    ("scrub/bad-t-class", "retrain", "test_error"): (22.06, 0.30, "D"),
    ("scrub/bad-t-class", "original", "test_error"): (16.14, 0.27, "D"),
    ("scrub/vgg16-selective", "bad-t", "forget_error"): (92.00, 6.35, "N"),
    ("scrub/vgg16-selective", "bad-t", "mia_accuracy"): (70.00, 6.74, "N"),
    ("laf/notebook-class", "laf", "test_removed_accuracy"): (2.00, None, "N"),
    ("laf/notebook-class", "laf", "asr"): (0.4761, None, "N"),
    ("laf/notebook-class", "laf", "seconds"): (1399.8, None, "N"),
    ("laf/notebook-class", "retrain", "test_retained_accuracy"): (85.12, None, "N"),
    ("laf/notebook-class", "original", "forget_accuracy"): (78.52, None, "N"),
}


@pytest.mark.parametrize("key", BY_HAND, ids=lambda key: "-".join(key))
def test_a_sample_checked_by_hand(key: tuple[str, str, str]) -> None:
    table, method, metric = key
    number = TABLES[table].cell(method, metric)
    assert number is not None
    assert (number.value, number.spread, number.tag) == BY_HAND[key]


def test_means_are_those_of_the_runs() -> None:
    """What carries a spread over listed runs agrees with them (population deviation), so no digit was swapped."""
    for _, number in NUMBERS:
        if number.runs and number.spread is not None and number.metric != "mia_accuracy":
            runs = torch.tensor(number.runs, dtype=torch.float64)
            assert float(runs.mean()) == pytest.approx(number.value, abs=0.011)
            assert float(runs.std(correction=0)) == pytest.approx(number.spread, abs=0.011)


def emitted() -> set[str]:
    """The metrics that an evaluation of toys yields, and the one that needs thousands of samples."""
    from expunge.data.split import ResidentStore, Split

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 3
    store = ResidentStore(torch.randn(240, 4, generator=generator), labels, classes=["a", "b", "c"])
    whole = Split.whole(store, "all")
    first = whole.index < 180  # train and validation; the class 0 of the first 120 is forgotten
    forget = whole.take(whole.index[(whole.index < 120) & (labels == 0)], "forget")
    retain = whole.take(whole.index[(whole.index < 120) & (labels != 0)], "retain")
    validation = whole.take(whole.index[first & (whole.index >= 120)], "validation")
    test = whole.take(whole.index[~first], "test")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    confusion = build(METRICS.load("confusion"), {"classes": (0, 1)})
    scores = evaluate(
        {"retrained": model, "unlearned": model}, forget=forget, retain=retain, test=test,
        validation=validation, metrics=["accuracy", "error", "mia", "time", confusion],
        seconds={"retrained": 2.0, "unlearned": 1.0},
    )  # fmt: skip
    return {value.metric for value in scores.values["unlearned"]} | {"asr"}


def test_methods_and_metrics_are_ours_or_say_that_they_are_not() -> None:
    known = emitted()
    for name, table in TABLES.items():
        for method in {*table.missing.methods, *(n.method for n in table.numbers if n.ours)}:
            assert method in METHODS.names(), (name, method)
        for metric in table.metrics():
            assert metric in known, (name, metric)
        for number in table.numbers:
            assert number.ours == (number.metric in known), (name, number.metric)


@pytest.mark.parametrize(("table", "number"), NUMBERS)
def test_values_are_in_range(table: str, number: PublishedValue) -> None:
    high = {"percent": 100.0, "fraction": 1.0}.get(number.unit, float("inf"))
    low = float("-inf") if number.unit == "loss" else 0.0
    for value in (number.value, number.spread, *number.runs, *(number.range or ())):
        assert value is None or low <= value <= high
    assert "±" not in number.text() or number.spread is not None
    if number.range:
        assert number.range[0] < number.range[1]


def test_no_cell_is_printed_twice() -> None:
    keys = [(table, number.method, number.metric) for table, number in NUMBERS]
    assert len(set(keys)) == len(keys)


def test_what_could_not_be_traced_has_no_number() -> None:
    assert all(not table.numbers for name, table in TABLES.items() if name.startswith("l2ul/"))
    assert len(list(TABLES["laf/table-2"].empty())) == 9 * 3
    with pytest.raises(ValueError, match="belongs to `missing`"):
        PublishedValue(method="scrub", metric="test_error", unit="percent", tag="N")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"value": 15.9, "spread": 0.29, "unit": "percent"}, "15.90 ± 0.29"),
        ({"value": 0.4761, "unit": "fraction"}, "47.61"),
        ({"range": (232.7, 234.9), "unit": "seconds"}, "232.7 to 234.9"),
        ({"value": 0.023, "unit": "seconds"}, "0.023"),
    ],
)
def test_numbers_read_as_printed(given: dict[str, Any], text: str) -> None:
    assert PublishedValue(method="scrub", metric="x", tag="N", **given).text() == text


def study(**more: Any) -> dict[str, Any]:
    return {
        "name": "toy", "data": {"source": "digits"}, "model": {"name": "mlp"}, "methods": ["finetune"],
        "scenarios": [{"name": "class", "target": 3, "label": "a class"}], **more,
    }  # fmt: skip


def test_what_a_study_is_compared_with_is_no_part_of_its_cells() -> None:
    plain = expand(parse_study(study()), "data")
    compared = parse_study(study(published=["scrub/rb-small", {"table": "scrub/up", "scenario": "a class"}]))
    assert [one.id for one in expand(compared, "data")] == [one.id for one in plain]
    assert compared.references() == [("scrub/rb-small", ""), ("scrub/up", "a class")]


def test_wrong_names_are_refused() -> None:
    with pytest.raises(UsageError, match=r"published\[0\].scenario.*did you mean `a class`"):
        parse_study(study(published=[{"table": "scrub/up", "scenario": "a clas"}]))
    with pytest.raises(UsageError, match="did you mean `scrub/rb-small`"):
        published.find("scrub/rb-smal")


@pytest.mark.parametrize("path", recipes().values(), ids=lambda path: path.stem)
def test_recipes_name_tables_that_exist(path: Path) -> None:
    for table, _ in load_study(path).references():
        published.find(table)


@pytest.fixture
def cells() -> list[CellRecord]:
    done = [cell(name, seed, 0.1 * (seed + 1)) for name in ("original", "retrain", "bad-t") for seed in (0, 1)]
    return [one.model_copy(update={"scenario": {"label": "a class", "forget": 10}}) for one in done]


def test_an_error_that_was_not_measured_follows_from_the_accuracy(cells: list[CellRecord]) -> None:
    (block,) = blocks(cells)
    row = block.row("bad-t")
    assert row is not None
    number = ours(row, "forget_error")
    assert number is not None
    assert number.mean == pytest.approx(0.85)
    assert ours(row, "retain_error") is None


def test_the_page_shows_both_and_says_what_differs(cells: list[CellRecord], tmp_path: Path) -> None:
    (block,) = blocks(cells)
    (shown,) = beside(block, [("scrub/bad-t-class", "a class"), ("laf/table-1", "another")])
    row = next(row for row in shown["rows"] if row["label"] == "bad-t")
    at = TABLES["scrub/bad-t-class"].metrics().index("forget_error")
    assert row["cells"][at] == {"ours": "85.00 ± 7.07", "theirs": "79.57 ± 4.18", "tag": "N"}
    report.build(
        cells, tmp_path / "r.html", about="a hundredth of the data", published=[("scrub/bad-t-class", "a class")]
    )
    page = (tmp_path / "r.html").read_text()
    for text in ("Beside the published numbers", "79.57 ± 4.18", "[N]", "40,000 training images"):
        assert text in page
    assert page.count("a hundredth of the data") == 2  # at the top, and where numbers are compared
    report.build(cells, tmp_path / "plain.html")
    assert "Beside the published numbers" not in (tmp_path / "plain.html").read_text()


def test_a_table_without_a_traced_cell_stays_empty(cells: list[CellRecord]) -> None:
    (block,) = blocks(cells)
    (shown,) = beside(block, [("l2ul/misclassify", "")])
    assert not shown["rows"]
    assert shown["empty"] == 12
