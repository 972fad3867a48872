"""A case about a model that really was unlearned and audited: what the rooms below hand over fits into it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import expunge
from expunge.models.checkpoint import save_weights, weights_hash
from expunge.requests.case.canonical import canonical, plain
from expunge.requests.case.content import Remaining
from expunge.requests.case.document import build_case, case_bytes, sign_case, verify_case
from expunge.requests.case.keys import create_keys
from expunge.requests.case.page import case_html
from expunge.requests.case.pdf import case_pdf
from expunge.requests.case.side_effects import side_effects
from expunge.requests.records import Fulfilment
from expunge.testing.toys import toy_problem
from tests.requests.cases import AT, hashed, request, version


@pytest.mark.parametrize("forget_class", [None, 1])
def test_from_the_model_to_the_page(tmp_path: Path, forget_class: int | None) -> None:
    toy = toy_problem(forget_class=forget_class)
    result = expunge.unlearn(
        toy.model, forget=toy.forget, retain=toy.retain, method="finetune", epochs=1, seed=3, device="cpu"
    )
    verdict = expunge.audit(
        toy.model, result, forget=toy.forget, retain=toy.retain, test=toy.test, device="cpu", resamples=50
    )
    audit = plain(verdict.record())
    assert audit["samples"]["forget accuracy"] == len(toy.forget)
    assert {row["signal"] for row in audit["attacks"]} >= {"loss", "entropy"}
    canonical(audit)  # the ledger stores it, too: no NaN is left
    old = version("old", id=weights_hash(toy.model))
    new = replace(version("new", id=weights_hash(result.model), method="finetune"), parent=old.id)
    fulfilment = Fulfilment(
        id=1, state="running", step="audited", requests=(1,), samples=(hashed("sample"),), seed=3, parent=old.id,
        began_at=AT,
    )  # fmt: skip
    rows = side_effects(toy.model, result, retain=toy.retain, test=toy.test, device="cpu")
    assert {row["class"] for row in rows if row["gone"]} == ({"1"} if forget_class == 1 else set())
    content = build_case(
        fulfilment, [request(1)], (old, new), plan={"exact": False, "why": []}, unlearning=result.record(), audit=audit,
        side_effects=rows, remains=[Remaining(old)], previous_case_hash=None, ledger_head=hashed("e"), made_at=AT,
    )  # fmt: skip
    signer = create_keys(tmp_path / "keys")
    document = sign_case(content, signer)
    weights = save_weights(result.model, tmp_path / "m.safetensors")
    findings = verify_case(case_bytes(document), signer.public, weights=weights)
    assert [one.name for one in findings if not one.ok] == []
    assert verdict.label in case_html(document, findings)
    assert case_pdf(document).startswith(b"%PDF-")
