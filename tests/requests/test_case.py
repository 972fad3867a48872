"""A case file: every changed byte, foreign key, wrong order and wrong model is found, with no tool of ours needed."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.exceptions import InvalidSignature
from torch import nn

from expunge.core.errors import DataError, UsageError
from expunge.models.checkpoint import save_weights, weights_hash
from expunge.requests.case.canonical import canonical, digest, plain, timestamp
from expunge.requests.case.content import CERTIFIED, EVIDENCE, EXACT, EXACT_HEAD
from expunge.requests.case.document import case_bytes, read_case, save_case, sign_case, verify_case, verify_chain
from expunge.requests.case.keys import Signer, create_keys
from expunge.requests.records import Event, Fulfilment
from tests.requests.cases import AT, PLAN, UNLEARNING, content, document, hashed, request, version


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return create_keys(tmp_path_factory.mktemp("workspace") / "keys")


def wrong(findings: list[Any]) -> list[str]:
    return [one.name for one in findings if not one.ok]


def test_a_case_as_it_was_made(signer: Signer, tmp_path: Path) -> None:
    made = document(signer)
    path = save_case(made, tmp_path / "000001.json")
    findings = verify_case(path, signer.public)
    assert [one.name for one in findings] == ["form", "hash", "signature", "key"]
    assert wrong(findings) == []
    assert read_case(path) == made
    assert wrong(verify_case(path.read_bytes())) == []  # with nothing but the file


def test_equal_parts_give_an_equal_file(signer: Signer) -> None:
    assert case_bytes(document(signer)) == case_bytes(document(signer))


def test_every_changed_byte_is_found(signer: Signer) -> None:
    small = content(audit={}, side_effects=[], plan={}, remains=[], requests=[request(1, reason="é")])
    whole = case_bytes(sign_case(small, signer))
    assert wrong(verify_case(whole, signer.public)) == []
    for at in range(len(whole)):
        for flip in (0x01, 0x20, 0x80):  # another digit; upper case, which hex readers let pass; no ASCII
            changed = bytearray(whole)
            changed[at] ^= flip
            assert wrong(verify_case(bytes(changed), signer.public)), f"byte {at} xor {flip}"
    for at in range(0, len(whole), 7):
        assert wrong(verify_case(whole[:at], signer.public))
        assert wrong(verify_case(whole[:at] + whole[at + 1 :], signer.public))
        assert wrong(verify_case(whole[:at] + b" " + whole[at:], signer.public))
    assert wrong(verify_case(whole + b"\n", signer.public)) == ["form"]


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a":1e999}', b"\x00" * 9])
def test_what_is_no_case_is_a_finding(text: bytes) -> None:
    assert wrong(verify_case(text)) == ["form"]


def test_a_key_twice_in_the_file_is_found(signer: Signer) -> None:
    whole = case_bytes(document(signer))
    assert wrong(verify_case(whole.replace(b'{"content":', b'{"content":{},"content":', 1))) == ["form"]


def test_other_kinds_and_formats_are_refused(signer: Signer) -> None:
    later = sign_case({**content(), "format": 2}, signer)
    with pytest.raises(DataError, match="format 2; this release reads"):
        read_case(case_bytes(later))
    assert wrong(verify_case(case_bytes(later))) == ["form"]


def test_a_missing_file_is_a_finding(tmp_path: Path) -> None:
    assert wrong(verify_case(tmp_path / "none.json")) == ["form"]


def test_a_foreign_key_is_found(signer: Signer, tmp_path: Path) -> None:
    foreign = create_keys(tmp_path / "keys")
    forged = case_bytes(document(foreign))
    assert wrong(verify_case(forged)) == []  # it is in order, only not by whom it should be
    assert wrong(verify_case(forged, signer.public)) == ["key"]
    assert wrong(verify_case(forged, tmp_path / "keys" / "public.pem")) == []
    mixed = {**document(signer), "key": foreign.public.raw.hex(), "fingerprint": foreign.fingerprint}
    assert wrong(verify_case(case_bytes(mixed), signer.public)) == ["signature", "key"]
    lied = {**document(foreign), "fingerprint": signer.fingerprint}
    assert wrong(verify_case(case_bytes(lied), signer.public)) == ["signature", "key"]


def test_a_chain_and_its_breaks(signer: Signer) -> None:
    chain: list[bytes] = []
    previous = None
    for number in (1, 2, 3):
        made = document(signer, number, previous)
        previous = made["hash"]
        chain.append(case_bytes(made))
    first, second, third = chain
    assert all(wrong(one) == [] for one in verify_chain(chain, signer.public))
    assert wrong(verify_case(second, signer.public, previous=first)) == []
    assert [wrong(one) for one in verify_chain([first, third, second])] == [[], ["previous"], ["previous"]]
    assert [wrong(one) for one in verify_chain([first, third])] == [[], ["previous"]]
    assert [wrong(one) for one in verify_chain([second, third])] == [["previous"], []]
    assert wrong(verify_case(second, previous=b"{")) == ["previous"]
    # The hash that a changed file states does not help it: the link is to what the content really is.
    other = {**document(signer, 9), "hash": document(signer, 1)["hash"]}
    assert wrong(verify_case(second, previous=case_bytes(other))) == ["previous"]


def test_a_changed_model_is_found(signer: Signer, tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    path = save_weights(model, tmp_path / "m.safetensors")
    made = content()
    made["versions"]["after"]["id"] = weights_hash(model)
    whole = case_bytes(sign_case(made, signer))
    assert wrong(verify_case(whole, weights=path)) == []
    with torch.no_grad():
        model.weight[0, 0] += 1e-6
    assert wrong(verify_case(whole, weights=save_weights(model, path))) == ["weights"]
    path.write_bytes(path.read_bytes()[:-1])
    assert wrong(verify_case(whole, weights=path)) == ["weights"]
    assert wrong(verify_case(whole, weights=tmp_path / "gone.safetensors")) == ["weights"]


class SmallLedger:
    """What verification reads of a ledger."""

    def __init__(self, case: str | None, head: str) -> None:
        self.case, self.head = case, head

    def events(self) -> list[Event]:
        return [Event(id=1, at=AT, by="a", kind="audited", previous="", hash=self.head)]

    def fulfilment(self, id: int) -> Fulfilment:
        if id != 1:
            raise UsageError(f"there is no fulfilment {id}.")
        return Fulfilment(
            id=1, state="fulfilled", step="done", requests=(1, 2), samples=(), seed=7, parent="p", case=self.case,
            began_at=AT,
        )  # fmt: skip


def test_the_ledger_must_know_the_case(signer: Signer) -> None:
    made = document(signer)
    whole = case_bytes(made)
    assert wrong(verify_case(whole, ledger=SmallLedger(made["hash"], hashed("event")))) == []
    for ledger in (SmallLedger(None, hashed("event")), SmallLedger(made["hash"], hashed("other"))):
        assert wrong(verify_case(whole, ledger=ledger)) == ["ledger"]
    foreign = case_bytes(document(signer, number=5))
    assert wrong(verify_case(foreign, ledger=SmallLedger(made["hash"], hashed("event")))) == ["ledger"]


def test_openssl_agrees(signer: Signer, tmp_path: Path) -> None:
    """The signed bytes are cut out of the file, never parsed, as docs/case-file.md says."""
    whole = case_bytes(document(signer))
    text = whole[len(b'{"content":') : whole.rindex(b',"fingerprint":"')]
    stated = json.loads(whole)
    assert hashlib.sha256(text).hexdigest() == stated["hash"]
    (tmp_path / "content").write_bytes(text)
    (tmp_path / "signature").write_bytes(bytes.fromhex(stated["signature"]))
    (tmp_path / "public.pem").write_bytes(signer.public.pem)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "public.pem", "-rawin", "-in", "content"]
    try:
        done = subprocess.run([*command, "-sigfile", "signature"], cwd=tmp_path, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert done.returncode == 0, done.stderr


def test_what_a_case_holds_and_what_not() -> None:
    made = content()
    assert made["statement"] == EVIDENCE
    assert made["exact"] is False
    assert [one["subject"] for one in made["requests"]] == [hashed("subject 1"), hashed("subject 2")]
    assert "by" not in made["requests"][0]
    assert made["unlearning"]["method"] == "scrub"
    assert not {"history", "details"} & set(made["unlearning"])
    assert made["remains"][0]["until"] == timestamp(AT + timedelta(days=30))


def test_exact_methods_say_so() -> None:
    retrain = {**UNLEARNING, "method": "retrain"}
    assert content(unlearning=retrain, plan={**PLAN, "exact": True})["statement"] == EXACT
    assert content(unlearning=retrain, plan={**PLAN, "exact": False})["statement"] == EVIDENCE
    assert content(plan={**PLAN, "exact": True})["statement"] == EVIDENCE  # a plan cannot make SCRUB exact


def test_a_certificate_is_part_of_the_case_and_decides_what_it_claims() -> None:
    told = {"kind": "certified", "epsilon": 1.0, "delta": 1e-5, "sigma": 0.3}
    made = content(unlearning={**UNLEARNING, "method": "noisy-finetune", "details": {"certificate": told}})
    assert made["certificate"] == told
    assert (made["exact"], made["statement"]) == (False, CERTIFIED)
    head = {"kind": "exact", "of": "head"}
    made = content(
        unlearning={**UNLEARNING, "method": "exact-head", "details": {"certificate": head}},
        plan={**PLAN, "exact": True},
    )
    assert (made["exact"], made["statement"]) == (True, EXACT_HEAD)
    assert "certificate" not in content()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"unlearning": {**UNLEARNING, "weights": "w"}}, "weights of the unlearning record"),
        ({"unlearning": {**UNLEARNING, "original": "o"}}, "original of the unlearning record"),
        ({"requests": [request(1, subject="4711")]}, "never ids"),
        ({"audit": {"word": object()}}, "cannot hold a value of type object"),
        ({"audit": {"word": "\ud800"}}, "not valid Unicode"),
    ],
)
def test_contradictions_are_never_signed(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        content(**changed)


def test_plain_values() -> None:
    there = timezone(timedelta(hours=2))
    given = {
        1: np.float32(0.5), "n": np.int64(3), "nan": float("nan"), "inf": [float("inf"), -float("inf")],
        "set": {2, 1}, "tuple": (True, None), "at": datetime(2026, 1, 1, 2, tzinfo=there),
    }  # fmt: skip
    found = plain(given)
    assert found == {
        "1": 0.5, "n": 3, "nan": None, "inf": ["inf", "-inf"], "set": [1, 2], "tuple": [True, None],
        "at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    assert json.loads(canonical(found)) == found
    assert digest({"b": 1, "a": 2}) == hashlib.sha256(b'{"a":2,"b":1}').hexdigest()
    assert timestamp(datetime(2026, 1, 1, tzinfo=UTC)) == timestamp(datetime(2026, 1, 1))
    with pytest.raises(ValueError):
        canonical({"a": float("nan")})


def test_versions_must_follow_each_other(signer: Signer) -> None:
    from expunge.requests.case.document import build_case

    old, new = version("old"), version("new", "another")
    fulfilment = Fulfilment(
        id=1, state="running", step="audited", requests=(1,), samples=(), seed=7, parent=old.id, began_at=AT
    )
    with pytest.raises(UsageError, match="parent of the new version"):
        build_case(
            fulfilment, [request(1)], (old, new), plan={}, unlearning={}, audit={}, side_effects=[],
            previous_case_hash=None, ledger_head="", made_at=AT,
        )  # fmt: skip


def test_the_ten_lines_of_the_documentation(
    signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "case-file.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```py\n(.*?)```", page, re.S)
    assert len(block.strip().splitlines()) <= 11  # one of them is empty
    made = document(signer)
    save_case(made, tmp_path / "000012.json")
    (tmp_path / "public.pem").write_bytes(signer.public.pem)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "documentation", "exec"), {})
    assert capsys.readouterr().out.strip() == f"{made['hash']} {EVIDENCE}"
    (tmp_path / "000012.json").write_bytes(case_bytes(made).replace(b"scrub", b"scrap"))
    with pytest.raises(InvalidSignature):
        exec(compile(block, "documentation", "exec"), {})
