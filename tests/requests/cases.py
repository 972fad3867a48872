"""Small cases for the tests: every part plausible, nothing trained."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from expunge.requests.case.content import Remaining
from expunge.requests.case.document import build_case, sign_case
from expunge.requests.case.keys import Signer
from expunge.requests.records import Fulfilment, Request, Version

AT = datetime(2026, 3, 1, 12, 30, 5, tzinfo=UTC)


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def version(name: str, parent: str | None = None, **changed: Any) -> Version:
    given = {
        "id": hashed(name), "parent": None if parent is None else hashed(parent), "made_at": AT, "method": "import",
        "data": hashed("data"), "knows": 60000, "file": f"{hashed(name)}.safetensors",
    }  # fmt: skip
    return Version(**{**given, **changed})


def request(number: int, **changed: Any) -> Request:
    given = {
        "id": number, "subject": hashed(f"subject {number}"), "reason": "GDPR Art. 17", "state": "running",
        "received_at": AT - timedelta(days=3), "changed_at": AT, "fulfilment": 1, "samples": 1, "ticket": f"T-{number}",
        "batch": "weekly",
    }  # fmt: skip
    return Request(**{**given, **changed})


UNLEARNING: dict[str, Any] = {
    "format": 1, "method": "scrub", "options": {"epochs": 3, "alpha": 0.001, "rewind": False}, "seed": 7,
    "status": "finished", "seconds": 12.5, "needs": {
        "forget": "labels", "retain": "labels", "validation": "none", "weights": True, "recipe": False,
        "initial": False, "labelled": 0.0,
    }, "data": {"forget": hashed("f"), "retain": hashed("r")}, "sizes": {"forget": 2, "retain": 59998},
    "weights": hashed("new"), "original": hashed("old"), "notes": [], "details": {"per sample": [1, 2]},
    "history": [{"epoch": 1.0}], "versions": {"torch": "2.11", "expunge": "0.1.0"}, "device": "cpu",
}  # fmt: skip
AUDIT: dict[str, Any] = {
    "word": "not enough evidence", "basis": "held-out", "tests": [],
    "reasons": ["the loss does not tell the samples to forget from unseen ones: AUC 0.498 (0.470 .. 0.526)."],
    "statistics": {
        "original": {"forget accuracy": 1.0, "loss attack AUC": 0.61, "retain accuracy": 0.999, "test accuracy": 0.99},
        "unlearned": {"forget accuracy": 0.98, "loss attack AUC": 0.498, "retain accuracy": 0.997,
                      "test accuracy": 0.988},
    },
    "samples": {"forget accuracy": 200, "test accuracy": 10000, "retain accuracy": 59998},
    "attacks": [
        {"model": model, "signal": signal, "label_free": signal == "entropy", "auc": auc, "auc_low": auc - 0.03,
         "auc_high": auc + 0.03, "tpr_at_0.01": 0.01, "tpr_at_0.01_low": 0.0, "tpr_at_0.01_high": 0.03}
        for model, auc in (("original", 0.61), ("unlearned", 0.498)) for signal in ("loss", "entropy")
    ],
    "margins": {"accuracy": 0.05, "auc": 0.05},
}  # fmt: skip
SIDE_EFFECTS: list[dict[str, Any]] = [
    {"class": name, "data": data, "samples": 1000, "before": 0.99, "after": 0.99 - loss, "change": -loss,
     "low": -loss - 0.01, "high": -loss + 0.01, "gone": False}
    for data in ("retain", "test") for name, loss in (("0", 0.0), ("1", 0.03), ("2", -0.002))
]  # fmt: skip
PLAN: dict[str, Any] = {
    "method": "scrub", "exact": False, "why": ["labels and retained data are at hand."], "estimate_seconds": 14.0,
    "alternatives": [["retrain", "about 40 minutes instead of 14 seconds"]],
}  # fmt: skip


def content(
    number: int = 1, previous: str | None = None, requests: list[Request] | None = None, **changed: Any
) -> dict[str, Any]:
    """The content of a case about versions "old" and "new"."""
    asked = requests if requests is not None else [request(1), request(2)]
    unlearning = changed.get("unlearning", UNLEARNING)
    old, new = version("old"), version("new", "old", method=unlearning.get("method", "scrub"), knows=59998, seed=7)
    fulfilment = Fulfilment(
        id=number, state="running", step="audited", requests=tuple(one.id for one in asked),
        samples=tuple(hashed(f"sample {i}") for i in range(2)), seed=7, parent=old.id, version=new.id, began_at=AT,
    )  # fmt: skip
    given: dict[str, Any] = {
        "plan": PLAN, "unlearning": UNLEARNING, "audit": AUDIT, "side_effects": SIDE_EFFECTS,
        "remains": [Remaining(old, AT + timedelta(days=30))], "previous_case_hash": previous,
        "ledger_head": hashed("event"), "made_at": AT + timedelta(minutes=2),
    }  # fmt: skip
    return build_case(fulfilment, asked, (old, new), **{**given, **changed})


def document(signer: Signer, number: int = 1, previous: str | None = None, **changed: Any) -> dict[str, Any]:
    return sign_case(content(number, previous, **changed), signer)
