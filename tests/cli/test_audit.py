"""`expunge audit`: a verdict with and without references, and what it refuses."""

from __future__ import annotations

import json

import pandas as pd
import pytest


@pytest.fixture
def audit(expunge, rows, trained, tmp_path):
    """Arguments -> result; the original judged as if it were the unlearned model."""
    weights = trained / "model.safetensors"

    def run(*more: object):
        base = ["audit", "--model", "mlp", "--original", weights, "--unlearned", weights, "--data", rows]
        return expunge(*base, "--forget", "random:0.3", "--out", tmp_path / "audit", *more)

    return run


def test_references_made_now_give_the_strong_verdict(audit, tmp_path):
    result = audit("--references", 3)
    assert result.code == 0, result.err
    assert "against retrained models" in result.out
    record = json.loads((tmp_path / "audit" / "verdict.json").read_text())
    assert record["retrained"] == 3
    assert record["basis"] == "retrained"
    assert set(record["statistics"]) == {"original", "unlearned", "retrained 1", "retrained 2", "retrained 3"}
    assert {"utility", "answers", "single samples", "representation"} <= set(
        pd.read_csv(tmp_path / "audit" / "tests.csv")["kind"]
    )
    assert set(pd.read_csv(tmp_path / "audit" / "attacks.csv")["signal"]) >= {"loss", "margin", "entropy"}
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert record["label"] in page
    assert "What was tested" in page
    assert "Attacks on single samples" in page  # retrained models are shadows, too


def test_without_references_the_verdict_is_the_weaker_one(audit, tmp_path):
    result = audit()
    assert result.code == 0, result.err
    assert "against held-out samples" in result.out
    assert not (tmp_path / "audit" / "tests.csv").exists()


def test_what_cannot_be_audited_is_said(audit, tmp_path):
    (tmp_path / "empty").mkdir()
    for more, phrase in (
        (["--retrained", tmp_path / "empty"], "holds no .safetensors"),
        (["--retrain", 1], "one retrained model has no spread"),
        (["--references", 1], "--references must be 0 or at least 2"),
        (["--references", 3, "--retrain", 2], "older name of `--references`"),
        (["--references", tmp_path / "empty"], "holds no .safetensors"),
        (["--refrences", 3], "audit has no option `refrences`; did you mean `references`?"),
        (["--margin-auc", 0.7], "margin_auc"),
    ):
        result = audit(*more)
        assert result.code == 2
        assert phrase in result.err
    assert not (tmp_path / "audit" / "verdict.json").exists()
    assert not (tmp_path / "audit" / "audit.html").exists()


def test_shadow_models_are_trained_as_the_unlearned_model_was(audit, expunge, rows, trained, tmp_path):
    common = ["--model", "mlp", "--data", rows, "--forget", "random:0.3"]
    weights = trained / "model.safetensors"
    made = expunge(
        "unlearn", *common, "--checkpoint", weights, "--method", "neggrad", "--epochs", 1, "--out", tmp_path / "u"
    )
    assert made.code == 0, made.err
    forgot = tmp_path / "u" / "model.safetensors"
    out = tmp_path / "shadows"
    result = expunge(
        "audit",
        *common,
        "--original",
        weights,
        "--unlearned",
        forgot,
        "--shadows",
        4,
        "--jobs",
        2,
        "--out",
        out,
        "--quiet",
    )
    assert result.code == 0, result.err
    assert "U-LiRA" in result.out
    record = json.loads((out / "verdict.json").read_text())
    assert record["shadows"]["method"] == "neggrad"
    rows_of = pd.read_csv(out / "attacks.csv").set_index("signal")
    assert rows_of.loc["U-LiRA", "model"] == "unlearned"
    assert rows_of.loc["U-LiRA", "epsilon_at_least"] <= rows_of.loc["U-LiRA", "epsilon_resolved"]
    page = (out / "audit.html").read_text()
    assert "Attacks on single samples" in page
    assert "4, matched" in page


def test_shadow_models_that_cannot_be_made_are_refused(audit):
    for more, phrase in (
        (["--shadows", 5, "--method", "finetune"], "even"),
        (["--shadows", 4], "give --method"),
        (["--shadows", 4, "--method", "finetun"], "finetune"),
        (["--shadows", 4, "--method", "finetune", "--lrr", 1], "lrr"),
        (["--bogus", 1], "bogus"),
        (["--shadows", 4, "--design", "third"], "third"),
    ):
        result = audit(*more)
        assert result.code == 2, result.err
        assert phrase in result.err


def test_what_lies_below_the_answers_is_looked_at_unless_it_is_left_out(audit, tmp_path):
    result = audit("--retrain", 2)
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "audit" / "verdict.json").read_text())
    assert {"probe confidence", "relearn accuracy"} <= {one["name"] for one in record["tests"]}
    table = pd.read_csv(tmp_path / "audit" / "residue.csv")
    assert set(table["model"]) == {"original", "unlearned", "retrained 1", "retrained 2"}
    assert set(table["statistic"]) >= {"probe confidence", "relearn accuracy", "layer CKA, forgotten"}
    result = audit("--retrain", 2, "--no-residue")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "audit" / "verdict.json").read_text())
    assert any("it was switched off" in one for one in record["unmeasured"])


def test_a_verdict_can_end_with_an_exit_code(audit, tmp_path):
    assert audit("--fail-on", "forgotte").code == 2
    assert not (tmp_path / "audit").exists()
    word = json.loads((tmp_path / "audit" / "verdict.json").read_text())["label"] if audit().code == 0 else ""
    result = audit("--fail-on", f"damaged,{word.replace(' ', '-')}")
    assert result.code == 3
    assert f"the verdict is `{word}`" in result.err
    other = "damaged" if word != "damaged" else "forgotten"
    assert audit("--fail-on", other).code == 0
