"""Tables for people: what a spreadsheet would run is text in them, and what is joined or counted stays exact."""

from __future__ import annotations

import io

import pandas as pd
import pytest

from expunge.core.files import csv_for_people


def test_text_that_a_spreadsheet_takes_for_a_formula_gets_an_apostrophe() -> None:
    table = pd.DataFrame(
        {
            "id": ["=1", "-7", "0005"],
            "name": ["=HYPERLINK(1)", "@sum", "cat"],
            "number": ["-1.5", "+3", "+x"],
            "change": [-0.5, float("nan"), 2.0],
            "=head": ["\tx", "-", "a=b"],
        }
    )
    read = pd.read_csv(io.StringIO(csv_for_people(table)), dtype=str, keep_default_na=False)
    assert read["id"].tolist() == ["=1", "-7", "0005"]
    assert read["name"].tolist() == ["'=HYPERLINK(1)", "'@sum", "cat"]
    assert read["number"].tolist() == ["-1.5", "+3", "'+x"]
    assert read["change"].tolist() == ["-0.5", "", "2.0"]
    assert read["'=head"].tolist() == ["'\tx", "'-", "a=b"]
    assert csv_for_people(table, raw=True) == table.to_csv(index=False)


@pytest.mark.parametrize("kind", ["category", "string", "object"])
def test_text_of_any_column_type(kind: str) -> None:
    assert csv_for_people(pd.DataFrame({"a": pd.Series(["-x"], dtype=kind)})) == "a\n'-x\n"
