"""Thirty requests on real MNIST: arriving over time, some wrong, some twice; of two processes at work one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.cli.main import main
from expunge.evidence.verdict import LABELS
from expunge.requests.case.document import verify_chain
from expunge.requests.desk import Desk

IMAGES, EACH = 300, 3
FULFIL = ("requests", "fulfil", "--method", "finetune", "-s", "epochs=1", "-s", "lr=0.01")


def people(source: Path, folder: Path) -> Path:
    """The first images of real MNIST, each three of them of one person."""
    for part, count, who in (("train", IMAGES, "u"), ("test", 200, "t")):
        table = pq.read_table(sorted(source.rglob(f"{part}-*.parquet"))[0]).slice(0, count).replace_schema_metadata({})
        table = table.append_column("id", pa.array([f"{part}-{i}" for i in range(count)]))
        table = table.append_column("user_id", pa.array([f"{who}{i // EACH}" for i in range(count)]))
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / f"{part}-00000-of-00001.parquet")
    return folder


def start(desk: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "expunge", *FULFIL, "-w", str(desk), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_until_running(desk: Desk, seconds: float = 120) -> None:
    """Until a fulfilment is begun and not ended."""
    end = time.monotonic() + seconds
    while not desk.ledger.unfinished():
        assert time.monotonic() < end, "no fulfilment was begun"
        time.sleep(0.01)


@pytest.mark.timeout(600)
def test_thirty_requests(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run, place = people(real_data / "mnist", tmp_path / "data"), tmp_path / "run", tmp_path / "desk"
    common = ["--model", "cnn", "--data", str(data)]
    assert main(["train", *common, "--epochs", "3", "--batch-size", "16", "--lr", "0.02", "--out", str(run), "-q"]) == 0
    init = ["init", *common, "--checkpoint", str(run / "model.safetensors"), "--id-column", "user_id"]
    assert main([*init, "--workspace", str(place)]) == 0
    settings = place / "expunge.yaml"  # so small a model may come to any verdict; what counts here is the machinery
    settings.write_text(f"{settings.read_text()}accept: [{', '.join(LABELS)}]\n")

    def say(*arguments: str) -> int:
        return main(["requests", *arguments, "-w", str(place)])

    # the first morning: 6 by hand, one of them twice; a file of 12 with two who are not there and one known ticket
    for number in range(6):
        assert say("add", "--subject", f"u{number}", "--ticket", f"T{number}", "--reason", "GDPR Art. 17") == 0
    assert say("add", "--subject", "u0", "--ticket", "T0") == 0
    rows = [*(f"u{number},T{number}" for number in range(6, 15)), "nobody,T90", "../../etc/passwd,T91", "u1,T1"]
    tickets = tmp_path / "tickets.csv"
    tickets.write_text("subject,ticket\n" + "\n".join(rows) + "\n")
    assert say("import", str(tickets)) == 0
    capsys.readouterr()
    # files with a fault are refused as a whole, in one sentence
    for name, content in (
        ("bad.csv", b"subject\nu50\nu51,x\n"),
        ("latin.csv", b"subject\nJos\xe9\n"),
        ("empty.csv", b""),
    ):
        (tmp_path / name).write_bytes(content)
        assert say("import", str(tmp_path / name)) == 2
        assert capsys.readouterr().err.startswith(f"error: {tmp_path / name}")

    # one process is killed in the middle of its work, another one waits for it, and requests go on arriving
    with Desk.open(place, by="watcher") as watch:
        assert len(watch.ledger.requests()) == 17
        first = start(place)
        wait_until_running(watch)
        second = start(place, "--wait", "300")
        for number in range(15, 25):
            assert say("add", "--subject", f"u{number}", "--ticket", f"T{number}") == 0
        assert say("add", "--subject", "'; DROP TABLE requests; --", "--ticket", "T92") == 0
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=60)
        assert watch.ledger.unfinished(), "it was killed too late to show anything"
        _, err = second.communicate(timeout=400)
        assert second.returncode == 0, err
        assert "going on with fulfilment 1" in err
        for number, ticket in ((25, "T25"), (2, "T99")):  # the second was forgotten meanwhile
            assert say("add", "--subject", f"u{number}", "--ticket", ticket) == 0
        assert main([*FULFIL, "-w", str(place)]) == 0

        counts = {state: count for state, count in watch.ledger.counts().items() if count}
        assert counts == {"fulfilled": 26, "rejected": 4}
        assert len(watch.ledger.requests()) == 30
        works = watch.ledger.fulfilments()
        forgotten = [name for one in works for name in one.samples]
        assert len(forgotten) == len(set(forgotten)) == 26 * EACH
        assert all((one.state, one.step) == ("fulfilled", "done") for one in works)
        versions = watch.ledger.versions()
        assert [one.parent for one in versions] == [None, *(one.id for one in versions[:-1])]
        assert [one.active for one in versions] == [*[False] * len(works), True]
        knows = IMAGES
        for one, version in zip(works, versions[1:], strict=True):
            knows -= len(one.samples)
            assert (one.version, version.knows) == (version.id, knows)
        cases = sorted((place / "cases").glob("*.json"))
        assert [int(path.stem) for path in cases] == [one.id for one in works]
        found = verify_chain(cases, place / "keys" / "public.pem")
        assert all(finding.ok for findings in found for finding in findings)
        for request in watch.ledger.requests("fulfilled"):
            assert all(finding.ok for finding in watch.verify(request.id)), request.id
        started = [event for event in watch.ledger.events() if event.kind == "started" and event.request is None]
        assert [event.fulfilment for event in started] == [one.id for one in works]
        assert not any(name in path.read_text() for path in cases for name in ("u3", "nobody", "passwd"))
    assert say("check") == 0
    assert (place / "ledger.sqlite").exists()
    capsys.readouterr()
    assert say("status") == 0
    assert "fulfilled 26  rejected 4" in capsys.readouterr().out
