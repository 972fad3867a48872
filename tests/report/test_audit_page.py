"""The page of an audit: every section that has something to say, none that has not, and sentences for every number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from expunge.evidence import explain
from expunge.evidence.family import KINDS, Family, Quantity, judge_family
from expunge.evidence.feature_audit import FEATURE_STATISTICS
from expunge.evidence.persample import SampleAttack
from expunge.evidence.rates import Separation
from expunge.evidence.signals import SIGNALS
from expunge.evidence.verdict import LABELS, Verdict
from expunge.numerics.statistics import Interval
from expunge.report.audit_page import build_audit_page, relearning_curves

FOUND = Separation(Interval(0.6, 0.55, 0.65), {0.001: None, 0.01: Interval(0.1, 0.0, 0.2)})


TESTED = judge_family(
    Family(
        [
            Quantity("forget accuracy", 0.9, 0.95, (0.5, 0.52, 0.51)),
            Quantity("test accuracy", 0.7, 0.71, (0.69, 0.7, 0.71)),
            Quantity("layer CKA gap", 0.0, 0.0, (-0.1, -0.11, -0.12)),
        ],
        [],
    ),
    lambda _: 0.05,
)  # fmt: skip


def verdict(**changed: Any) -> Verdict:
    attacks = {name: {"loss": FOUND, "entropy": FOUND} for name in ("original", "unlearned", "retrained 1")}
    given = {
        "label": "not forgotten",
        "basis": "retrained",
        "reasons": ["not forgotten: <b>because</b>."],
        "comparisons": TESTED,
        "attacks": attacks,
        "details": {"tow": 0.6, "jsd": {"forget": {"unlearned": 0.2, "among retrained": 0.01}}},
    }
    return Verdict(**{**given, **changed})


def text_of(page: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<svg.*?</svg>|<style.*?</style>", "", page.read_text(), flags=re.S))


def test_numbers_and_sentences_are_there(tmp_path: Path) -> None:
    page = build_audit_page(verdict(), tmp_path / "a.html", title="T", facts=[("Data", "digits")])
    text = text_of(page)
    for part in ("not forgotten", "&lt;b&gt;because", "0.900", "0.510 ± 0.010", "different", "0.2000", "digits"):
        assert part in text
    for absent in ("Attacks on single samples", "What lies below", "nan"):
        assert absent not in text
    assert page.read_text().count("<svg") == 2
    assert text.count("no difference; says little") == 1
    assert ">different<" in text
    assert "http" not in re.sub(r"http://www.w3.org\S*|http://purl\S*|http://creativecommons\S*", "", page.read_text())


def test_attacks_on_single_samples_are_drawn(tmp_path: Path) -> None:
    statistic = np.arange(8.0)
    attack = SampleAttack("U-LiRA", statistic, statistic > 3, FOUND, 0.8, 0.7, 1.0, 0.4, 1.9)
    page = build_audit_page(verdict(per_sample={"unlearned: U-LiRA": attack}), tmp_path / "a.html", title="T")
    text = text_of(page)
    assert "0.40 of at most 1.90" in text
    assert "too few / 10.0" in text
    assert page.read_text().count("<svg") == 3


def test_equal_verdicts_give_equal_pages(tmp_path: Path) -> None:
    first, second = (build_audit_page(verdict(), tmp_path / f"{i}.html", title="T") for i in (1, 2))
    assert first.read_bytes() == second.read_bytes()


def test_the_curve_is_that_of_the_samples_not_taught() -> None:
    rows = [
        {"model": model, "statistic": "relearn accuracy", "part": part, "step": step, "value": 0.1 * step}
        for model in ("original", "unlearned", "retrained 1")
        for part in ("taught", "held out")
        for step in range(3)
    ]
    assert "<svg" in str(relearning_curves(pd.DataFrame(rows)))
    taught = pd.DataFrame([row for row in rows if row["part"] == "taught"])
    assert relearning_curves(taught) is None


@pytest.mark.parametrize(
    ("names", "sentences"),
    [
        (list(LABELS), explain.VERDICT_MEANINGS),
        (
            [name for name, kind in KINDS.items() if kind != "representation"] + ["U-LiRA AUC"],
            explain.STATISTIC_MEANINGS,
        ),
        (
            [
                *SIGNALS,
                "gradient norm",
                "LiRA",
                "RMIA",
                "U-LiRA",
                "U-LiRA, vulnerable half",
                "U-LiRA, protected half",
                "RMIA, retrained models",
                "quantile regression",
            ],
            explain.ATTACK_MEANINGS,
        ),
        (FEATURE_STATISTICS, explain.FEATURE_MEANINGS),
    ],
)
def test_every_number_has_its_sentence(names: list[str], sentences: dict[str, str]) -> None:
    assert set(names) == set(sentences)
