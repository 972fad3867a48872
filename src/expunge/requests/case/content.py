"""What a case says: the request, the work and the measurements of one fulfilment; no personal data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from expunge.core.errors import UsageError
from expunge.core.version import __version__
from expunge.methods import METHODS
from expunge.requests.case.canonical import plain
from expunge.requests.records import Fulfilment, Request, Version

FORMAT = 1
KIND = "expunge deletion case"
EVIDENCE = (
    "The model was changed by an approximate method. The measurements in this file are evidence of what it still shows "
    "of the samples; they are not a proof that nothing of them is left in its weights. A stronger attack than those "
    "used here may find a trace where they found none."
)
EXACT = (
    "The method is exact: by construction, no weight of the new model was computed from the samples, given that the "
    "training data and the code were those that this file states. That rests on the construction; the measurements "
    "are a check on it. It says nothing about copies of the samples under other ids."
)
EXACT_HEAD = (
    "The method is exact for the head of the model: it equals one that was fitted without the samples, up to rounding, "
    "given that the training data and the code were those that this file states. The backbone below the head was not "
    "changed; that it never was trained on the samples is taken for granted. It says nothing about copies of the "
    "samples under other ids."
)
CERTIFIED = (
    "The method is certified: the new model is (epsilon, delta)-indistinguishable from one that the same procedure "
    "would have made of a model that never saw the samples; the numbers are under `certificate`. The guarantee is over "
    "noise that nobody knows: it does not hold against whoever has the seed that this file states. The measurements "
    "are a check on it. It says nothing about copies of the samples under other ids."
)
# What a case keeps of `Result.record()`: how it was done, but neither the curves nor what a method notes per sample.
_KEPT = (
    "method", "options", "seed", "device", "processes", "precision", "recipe", "status", "seconds", "stages", "needs",
    "data", "sizes", "original", "weights", "notes", "effect", "versions",
)  # fmt: skip
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Remaining:
    """An older version that still knows samples of a case. until: when its file is to be deleted, None: not decided."""

    version: Version
    until: datetime | None = None


def is_exact(method: str, plan: Mapping[str, Any]) -> bool:
    """Whether the new weights never saw the samples: the method's card says so, and the plan does not deny it."""
    return "exact" in METHODS.card(method).tags and bool(plan.get("exact", True))


def build_case(
    fulfilment: Fulfilment,
    requests: Sequence[Request],
    versions: tuple[Version, Version],
    *,
    plan: Mapping[str, Any],
    unlearning: Mapping[str, Any],
    audit: Mapping[str, Any],
    side_effects: Sequence[Mapping[str, Any]],
    remains: Sequence[Remaining] = (),
    copies: Sequence[Mapping[str, Any]] = (),
    previous_case_hash: str | None,
    ledger_head: str,
    made_at: datetime,
) -> dict[str, Any]:
    """The content of a case, JSON-ready. Subjects and samples are in it as hashes only; no name of who worked on it.

    versions: the one before and the new one. plan: `planning.Plan` as JSON. unlearning: `Result.record()`. audit:
    `Verdict.record()`. side_effects: rows of `side_effects`. remains: versions that still know the samples.
    copies: rows of `requests.copies`: what else holds the samples or was computed from them.
    previous_case_hash: None for the first case of a workspace. ledger_head: hash of the newest event.

    Raises `UsageError` where the parts contradict each other: that must never be signed.
    """
    parent, new = versions
    _check_parts(fulfilment, requests, parent, new, unlearning)
    method = str(unlearning.get("method", new.method))
    exact = is_exact(method, plan)
    certificate = dict(unlearning.get("details", {})).get("certificate")
    content = {
        "format": FORMAT,
        "kind": KIND,
        "made_at": made_at,
        "software": {"expunge": __version__},
        "fulfilment": {"id": fulfilment.id, "began_at": fulfilment.began_at, "seed": fulfilment.seed},
        "requests": [_pick(one, "id subject reason ticket batch received_at samples") for one in requests],
        "samples": fulfilment.samples,
        "versions": {"before": _version(parent), "after": _version(new)},
        "plan": plan,
        "unlearning": {key: unlearning[key] for key in _KEPT if key in unlearning},
        "audit": audit,
        "side_effects": side_effects,
        "remains": [{**_version(one.version), "until": one.until} for one in remains],
        "copies": copies,
        "exact": exact,
        **({"certificate": certificate} if certificate else {}),
        "statement": _statement(exact, certificate),
        "previous": previous_case_hash,
        "ledger": ledger_head,
    }
    made: dict[str, Any] = plain(content)
    return made


def _statement(exact: bool, certificate: Mapping[str, Any] | None) -> str:
    """What the file proves and what not; certificate: `details["certificate"]` of the unlearning, where it has one."""
    if certificate and certificate.get("kind") == "certified":
        return CERTIFIED
    if exact:
        return EXACT_HEAD if certificate and certificate.get("of") == "head" else EXACT
    return EVIDENCE


def _check_parts(
    fulfilment: Fulfilment, requests: Sequence[Request], parent: Version, new: Version, unlearning: Mapping[str, Any]
) -> None:
    pairs = [
        ("requests", sorted(fulfilment.requests), sorted(one.id for one in requests)),
        ("version before", fulfilment.parent, parent.id),
        ("parent of the new version", new.parent, parent.id),
        ("new version", fulfilment.version or new.id, new.id),
        ("weights of the unlearning record", unlearning.get("weights", new.id), new.id),
        ("original of the unlearning record", unlearning.get("original", parent.id), parent.id),
    ]
    for name, stated, given in pairs:
        if stated != given:
            raise UsageError(f"the case contradicts itself: {name} is {stated}, but {given} was given.")
    hashes = [*fulfilment.samples, *(one.subject for one in requests)]
    if not all(_HEX64.fullmatch(one) for one in hashes):
        raise UsageError("subjects and samples must be hashes of 64 hex digits (`keys.subject_hash`), never ids.")


def _version(one: Version) -> dict[str, Any]:
    return _pick(one, "id parent made_at method options seed data knows file deleted_at")


def _pick(one: Any, names: str) -> dict[str, Any]:
    values = asdict(one)
    return {name: values[name] for name in names.split()}
