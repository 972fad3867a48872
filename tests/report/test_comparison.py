"""Ranks, paired differences and the Pareto front, against hand-made numbers and published tables."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from expunge import report
from expunge.api.record import CellRecord
from expunge.core.errors import UsageError
from expunge.numerics.statistics import holm
from expunge.report.comparison import direction, pairs, ranks, table, unbeaten
from expunge.report.summarise import blocks


def cell(method: str, scenario: str, seed: int, gap: float, test: float = 0.9, seconds: float = 1.0) -> CellRecord:
    scores = [
        {"metric": name, "group": "", "value": value, "low": None, "high": None, "unit": "fraction", "direction": way}
        for name, value, way in (
            ("average_gap", gap, "lower"), ("test_accuracy", test, "higher"), ("seconds", seconds, "lower"),
            ("forget_accuracy", 0.5, "reference"),
        )
    ]  # fmt: skip
    return CellRecord(
        id=f"{method}{scenario}{seed}", scenario={"label": scenario}, method={"label": method, "name": method},
        seeds={"data": seed, "train": seed}, scores=scores,
    )  # fmt: skip


def grid(gaps: dict[str, list[float]]) -> list[CellRecord]:
    return [cell(m, f"s{i % 2}", i // 2, gap) for m, values in gaps.items() for i, gap in enumerate(values)]


GAPS = {"a": [0.1, 0.2, 0.1, 0.2], "b": [0.2, 0.3, 0.3, 0.3], "c": [0.3, 0.1, 0.4, 0.4], "retrain": [0.0] * 4}


def test_ranks_by_hand() -> None:
    found = ranks(table(grid(GAPS), "average_gap"), "lower")
    assert found is not None
    assert found.mean == pytest.approx({"a": 1.25, "b": 2.25, "c": 2.5})
    assert found.blocks == 4
    # Demsar (2006), table 5: q_0.05 for 3 methods is 2.343.
    assert found.critical == pytest.approx(2.343 * math.sqrt(3 * 4 / (6 * 4)), abs=2e-3)
    upside_down = ranks(table(grid(GAPS), "average_gap"), "higher")
    assert upside_down is not None
    assert next(iter(upside_down.mean)) == "c"


def test_a_method_with_a_missing_cell_is_named_and_not_ranked() -> None:
    cells = [c for c in grid({**GAPS, "d": [0.1] * 4}) if c.id != "ds00"]
    found = ranks(table(cells, "average_gap"), "lower")
    assert found is not None
    assert found.left_out == ("d",)
    assert ranks(table(grid({name: values[:2] for name, values in GAPS.items()}), "average_gap"), "lower") is None


def test_pairs_are_those_of_scipy_with_holm() -> None:
    rng = np.random.default_rng(0)
    values = pd.DataFrame({"a": rng.normal(size=9), "b": rng.normal(1, 1, 9), "c": rng.normal(size=9)})
    found = pairs(values).set_index(["first", "second"])
    raw = [wilcoxon(values[x] - values[y]).pvalue for x, y in (("a", "b"), ("a", "c"), ("b", "c"))]
    assert found["p"].tolist() == pytest.approx(holm(np.array(raw)).tolist())
    row = found.loc[("a", "b")]
    assert row["difference"] == pytest.approx((values["a"] - values["b"]).mean())
    assert row["low"] < row["difference"] < row["high"]
    few = pairs(values.iloc[:3])
    assert few["p"].isna().all()


def test_equal_methods_differ_in_nothing() -> None:
    values = pd.DataFrame({"a": [0.1] * 5, "b": [0.1] * 5, "c": [0.1] * 5})
    assert pairs(values)["p"].tolist() == [1.0, 1.0, 1.0]
    found = ranks(values, "lower")
    assert found is not None
    assert found.p == 1.0
    assert set(found.mean.values()) == {2.0}


def test_the_unbeaten_by_hand() -> None:
    cells = [
        cell("best gap", "s", 0, 0.1, 0.8, 9.0),
        cell("fast", "s", 0, 0.3, 0.8, 1.0),
        cell("beaten", "s", 0, 0.3, 0.8, 2.0),
        cell("useful", "s", 0, 0.4, 0.95, 9.0),
        cell("retrain", "s", 0, 0.0, 0.99, 1.0),
    ]
    assert unbeaten(blocks(cells)[0]) == ["best gap", "fast", "useful"]


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(UsageError, match="did you mean `average_gap`"):
        table(grid(GAPS), "averge_gap")
    with pytest.raises(UsageError, match="neither better when higher nor when lower"):
        direction(grid(GAPS), "forget_accuracy")


def test_the_page_ranks_only_where_there_is_enough(tmp_path: Path) -> None:
    page = report.build(grid(GAPS), tmp_path / "many.html").read_text(encoding="utf-8")
    assert "All scenarios together" in page
    few = report.build(grid({n: v[:2] for n, v in GAPS.items()}), tmp_path / "few.html").read_text(encoding="utf-8")
    assert "All scenarios together" not in few


def test_a_study_of_which_only_the_reference_was_finished_has_a_page(tmp_path: Path) -> None:
    cells = grid(GAPS)
    first = next(iter(GAPS))
    only = [
        cell.model_copy(update={"method": {**cell.method, "name": "retrain"}})
        if cell.method["label"] == first
        else cell.model_copy(update={"state": "failed", "scores": []})
        for cell in cells
    ]
    page = report.build(only, tmp_path / "only.html").read_text(encoding="utf-8")
    assert "All scenarios together" not in page
    with pytest.raises(UsageError, match="no method was finished"):
        table(only, "average_gap")
