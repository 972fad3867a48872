"""docs/data.md is true: every row of its tables is carried out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expunge.core.errors import ExpungeError
from expunge.data.parts import part_of
from expunge.data.sources import DataOptions, load_data, open_source
from expunge.data.values import as_text, from_cells, kind_of
from expunge.scenarios.base import parse_scenario

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def tables() -> dict[str, list[list[str]]]:
    """The rows of each table, by the first cell of its header."""
    found: dict[str, list[list[str]]] = {}
    for block in re.findall(r"((?:^\|.*\n)+)", PAGE, re.M):
        header, _, *rows = [
            [cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()
        ]
        found[header[0]] = rows
    return found


TABLES = tables()


def rows_of(name: str) -> list[object]:
    return [pytest.param(*row, id=row[0]) for row in TABLES[name]]


def codes(cell: str) -> list[str]:
    """`a`, `b`, (empty) -> a, b and an empty text."""
    return ["" if part in ("(empty)", "(missing)") else part.strip("`") for part in re.split(r", ", cell)]


def check(cell: str, answer: Callable[[], str]) -> None:
    """The answer is what the cell says, or the error that it speaks of."""
    if cell.startswith("error: "):
        with pytest.raises(ExpungeError, match=re.escape(cell.removeprefix("error: "))):
            answer()
    else:
        assert answer() == cell


def test_the_page_has_its_tables() -> None:
    assert {name: len(rows) for name, rows in TABLES.items()} == {
        "Source": 7, "Option": 6, "Cells of a CSV column": 14, "id": 4, "`--forget`": 18,
        "Name of a file or folder": 14, "Files": 8, "Labels": 10, "CSV file": 9,
    }  # fmt: skip


def test_all_options_are_described() -> None:
    listed = {name.strip("`") for row in TABLES["Option"] for name in row[0].split(", ")}
    assert listed == set(DataOptions.__dataclass_fields__)


@pytest.mark.parametrize(("cells", "kind", "texts"), rows_of("Cells of a CSV column"))
def test_types(cells: str, kind: str, texts: str) -> None:
    column = from_cells(codes(cells))
    assert kind_of(column) == kind
    assert as_text(column).tolist() == codes(texts)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    path = tmp_path / "people.csv"
    path.write_text("id,user,age,city,label\n" + "\n".join(",".join(row) for row in TABLES["id"]) + "\n")
    return path


@pytest.mark.parametrize(("forget", "ids"), rows_of("`--forget`"))
def test_selections(people: Path, forget: str, ids: str) -> None:
    train = load_data(people, metadata="user")
    check(ids, lambda: " ".join(parse_scenario(forget.strip("`")).split(train, 0).forget.ids.tolist()))


@pytest.mark.parametrize(("name", "part"), rows_of("Name of a file or folder"))
def test_names_of_parts(name: str, part: str) -> None:
    assert (part_of(name.strip("`")) or "(none)") == part


@pytest.mark.parametrize(("files", "meaning"), rows_of("Files"))
def test_folders(tmp_path: Path, files: str, meaning: str) -> None:
    for name in codes(files):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path) if path.suffix == ".png" else path.write_text("x")

    def answer() -> str:
        source = open_source(tmp_path / "data", DataOptions())
        parts = source.decoded(list(source.parts))
        return "; ".join(f"{part}: {' '.join(source.classes[y] for y in split.y)}" for part, split in parts.items())

    check(meaning, answer)


@pytest.mark.parametrize(("labels", "classes", "places"), rows_of("Labels"))
def test_labels(tmp_path: Path, labels: str, classes: str, places: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,label\n" + "".join(f"{number},{label}\n" for number, label in enumerate(codes(labels))))
    check(classes, lambda: " ".join(load_data(path).store.classes))
    if places:
        assert " ".join(str(y) for y in load_data(path).y.tolist()) == places


@pytest.mark.parametrize(("content", "meaning"), rows_of("CSV file"))
def test_csv_files(tmp_path: Path, content: str, meaning: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\n".join(line.strip("`") for line in content.split(" / ")) + "\n")
    check(meaning, lambda: f"features {' '.join(open_source(path, DataOptions()).parts['train'].features)}")
