"""Tables for papers: numbers and bold by hand, every character escaped, LaTeX that compiles."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from expunge.api.record import CellRecord
from expunge.bench.paper_tables import paper_tables, to_latex, to_markdown, to_typst
from expunge.core.errors import UsageError

AWFUL = r"50 % of C&A_{x}^~#$\\ <b>|`*"


def cell(method: str, seed: int, scores: list[dict], scenario: str = "random") -> CellRecord:
    return CellRecord(
        id=f"{method}{seed}",
        scenario={"label": scenario},
        method={"label": method, "name": method},
        seeds=dict.fromkeys(("data", "train", "unlearn", "evaluate"), seed),
        scores=scores,
    )


def records(values: dict[str, list[float]], *, metric: str = "test_accuracy", direction: str = "higher", **more: str):
    """One cell per (method, seed) with a single score."""
    made = []
    for method, column in values.items():
        for seed, value in enumerate(column):
            row = {"metric": metric, "group": "", "value": value, "low": None, "high": None, "unit": "fraction",
                   "direction": direction}  # fmt: skip
            made.append(cell(method, seed, [row], **more))
    return made


def bold(tables) -> set[str]:
    return {label for label, cells in tables[0].rows if cells[0].bold}


def test_mean_and_spread_by_hand():
    made = records({"a": [0.1, 0.2, 0.3]})
    (sd,), (interval,) = (paper_tables(made, spread=spread)[0].rows for spread in ("sd", "interval"))
    assert sd[1][0].text == "20.0 ± 10.0"
    assert interval[1][0].text == "20.0 ± 24.8"  # 4.303 * 0.1 / sqrt(3)


def test_the_best_and_what_is_not_significantly_worse_is_bold():
    steady = {"best": [0.90, 0.91, 0.92], "near": [0.88, 0.93, 0.90], "worse": [0.80, 0.81, 0.82]}
    assert bold(paper_tables(records(steady))) == {"best", "near"}
    assert bold(paper_tables(records(steady, direction="lower"))) == {"worse"}


def test_closeness_to_the_reference_and_to_one_half():
    values = {"retrain": [0.5, 0.5, 0.5], "close": [0.51, 0.52, 0.51], "far": [0.70, 0.71, 0.72]}
    assert bold(paper_tables(records(values, direction="reference"))) == {"close"}
    assert bold(paper_tables(records(values, direction="half"))) == {"close"}  # the reference itself never is


def test_one_seed_has_no_spread_and_one_best():
    table = paper_tables(records({"a": [0.9], "b": [0.8]}))[0]
    assert [cells[0].text for _, cells in table.rows] == ["90.0", "80.0"]
    assert bold([table]) == {"a"}


def test_columns_can_be_chosen_and_unknown_ones_are_named():
    made = records({"a": [0.9, 0.8]}, metric="mia_auc", direction="half")
    assert paper_tables(made)[0].header == ()
    assert paper_tables(made, metrics=["mia_auc"])[0].header == ("mia auc",)
    with pytest.raises(UsageError, match="did you mean `mia_auc`"):
        paper_tables(made, metrics=["mia_acu"])


def test_every_character_is_escaped():
    made = records({AWFUL: [0.9, 0.8]}, scenario=AWFUL)
    latex = to_latex(paper_tables(made))
    assert r"50 \% of C\&A\_\{x\}\textasciicircum{}\textasciitilde{}\#\$" in latex
    assert r"\textless{}b\textgreater{}\textbar{}" in latex
    assert r"\*" in to_typst(paper_tables(made))
    assert r"\|" in to_markdown(paper_tables(made))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX is installed")
def test_the_latex_compiles(tmp_path: Path):
    body = to_latex(paper_tables(records({AWFUL: [0.9, 0.8], "b": [0.7, 0.6]}, scenario=AWFUL)))
    text = (
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}\\begin{document}\n"
        + body
        + "\\end{document}\n"
    )
    (tmp_path / "t.tex").write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def test_records_without_a_result_are_counted_in_the_label():
    made = records({"a": [0.9, 0.8]})
    failed: CellRecord = made[1].model_copy(update={"state": "failed", "scores": [], "error": "diverged"})
    assert paper_tables([made[0], failed])[0].rows[0][0] == "a (1 lost)"
