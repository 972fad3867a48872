"""One audit over several requests: what is pooled, what is refused, and the exact test over their own audits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.core.errors import UsageError
from expunge.evidence.permutation import permuted_choices
from expunge.requests.pooled import exact_over
from tests.requests.desks import make_desk

WORDS = ["forgotten", "indistinguishable from the start", "not enough evidence", "not forgotten"]


def record(unlearned: float, *retrained: float, name: str = "loss attack AUC") -> dict[str, Any]:
    models = {"unlearned": {name: unlearned}, "original": {name: 0.9}}
    return {"statistics": models | {f"retrained {i + 1}": {name: value} for i, value in enumerate(retrained)}}


def test_the_exact_test_over_requests() -> None:
    audits = [record(0.9, 0.5, 0.52, 0.48), record(0.8, 0.51, 0.5, 0.49), record(0.85, 0.47, 0.5, 0.53)]
    p, possible = exact_over(audits)
    assert possible == pytest.approx(1 / 64)
    assert p == pytest.approx(permuted_choices([np.array(row) for row in (
        (0.9, 0.5, 0.52, 0.48), (0.8, 0.51, 0.5, 0.49), (0.85, 0.47, 0.5, 0.53))]))  # fmt: skip
    assert p == pytest.approx(1 / 64)
    assert exact_over([record(0.9), record(0.9)]) == (None, None)
    mixed = [record(0.9, 0.5, 0.6), record(0.9, 0.5, 0.6, name="forget accuracy")]
    assert exact_over(mixed) == (None, None)


def test_all_requests_of_a_workspace_are_audited_together(tmp_path: Path) -> None:
    with make_desk(tmp_path, references=3, accept=WORDS, residue=False) as desk:
        for subject in ("t3", "t5"):
            with pytest.raises(UsageError, match="needs two fulfilments or more"):
                desk.pool()
            desk.add(subject)
            done = desk.fulfil(method="retrain")
            assert done[0].state == "fulfilled", done[0].message
        found = desk.pool(features=False, resamples=20)
        assert found.fulfilments == (1, 2)
        assert found.samples == 6
        assert found.original == "trained again"  # one retired version is kept
        assert found.verdict.details["statistics"]["original"]["forget accuracy"] == 1.0
        assert found.verdict.details["samples"]["forget accuracy"] == 6
        assert len([name for name in found.verdict.details["statistics"] if name.startswith("retrained")]) == 3
        assert found.verdict.label != "forgotten"  # six samples, and nothing below the answers was looked at
        assert found.p is not None
        assert found.possible == pytest.approx(1 / 16)
        assert "over 2 requests the exact permutation test" in found.verdict.reasons[-1]
        assert "stands for it" in found.verdict.reasons[-2]
        weaker = desk.pool(references=0, features=False, resamples=20)
        assert weaker.verdict.basis == "held-out"


def test_the_original_is_the_version_before_the_first_request(tmp_path: Path) -> None:
    with make_desk(tmp_path, accept=WORDS, residue=False, retention={"keep_versions": 5}, recipe=None) as desk:
        first = desk.ledger.active().id
        for subject in ("t3", "t5"):
            desk.add(subject)
            assert desk.fulfil(method="finetune", options={"epochs": 1, "lr": 1e-4})[0].state == "fulfilled"
        found = desk.pool(features=False, resamples=20)
        assert found.original == first
        assert (found.p, found.verdict.basis) == (None, "held-out")
        (desk.workspace.models / f"{first}.safetensors").unlink()
        with pytest.raises(UsageError, match="no `recipe` in"):
            desk.pool()
