"""`expunge doctor`: true facts about the machine, and advice that follows from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from expunge.cli.doctor import advice


def test_facts_as_json(expunge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    (tmp_path / "file").write_bytes(b"0" * 2**20)
    result = expunge("doctor", "--json")
    assert result.code == 0
    facts = json.loads(result.out)
    assert facts["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert facts["threads"] == torch.get_num_threads()
    assert facts["cache"]["folder"] == str(tmp_path)
    assert facts["cache"]["size (MiB)"] == 1.0
    assert facts["cache"]["writable"] is True


def test_lines_for_people(expunge) -> None:
    result = expunge("doctor")
    assert result.code == 0
    assert "processor" in result.out
    assert "bfloat16" in result.out


FACTS = {
    "threads": 2, "cores": 2, "bfloat16": {"native": True, "speed-up": 2.0}, "extras": {"hub": "5.0"},
    "cache": {"folder": "c", "writable": True},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, None),
        ({"threads": 1}, "1 of 2 cores"),
        ({"bfloat16": {"native": False}}, "means float32"),
        ({"bfloat16": {"native": True, "speed-up": 1.1}}, "only 1.1 times"),
        ({"cache": {"folder": "c", "writable": False}}, "EXPUNGE_CACHE"),
        ({"extras": {"hub": None}}, "not installed: hub"),
    ],
)
def test_advice_follows_from_the_facts(changed: dict, words: str | None) -> None:
    sentences = advice({**FACTS, **changed})
    if words is None:
        assert sentences == []
    else:
        assert len(sentences) == 1
        assert words in sentences[0]
