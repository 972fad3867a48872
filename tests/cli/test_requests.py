"""`expunge init` and `expunge requests` as a stranger uses them."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from expunge.evidence.verdict import LABELS
from tests.cli.conftest import Call
from tests.cli.test_listing import HEAVY
from tests.requests.desks import make_desk

FULFIL = ("requests", "fulfil", "--method", "finetune", "-s", "epochs=1")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.csv, test.csv and prod.safetensors."""
    folder = tmp_path_factory.mktemp("source")
    make_desk(folder).close()
    return folder


@pytest.fixture
def init(source: Path, tmp_path: Path) -> list[object]:
    """The words of an `expunge init` that works, into tmp_path/desk."""
    return ["init", "--model", "mlp", "--checkpoint", source / "prod.safetensors", "--data", source / "train.csv",
            "--test", source / "test.csv", "--id-column", "user_id", "--workspace", tmp_path / "desk"]  # fmt: skip


def test_from_a_checkpoint_to_a_case_file(init: list[object], tmp_path: Path, expunge: Call) -> None:
    made = expunge(*init)
    assert made.code == 0, made.err
    assert "trained on 120 samples" in made.out
    assert "keep a backup" in made.err
    assert "cannot be retrained" in made.err
    place = ("--workspace", tmp_path / "desk")
    assert expunge("requests", "add", "--subject", "t3", *place).out == "request 1: received\n"
    assert expunge("requests", "add", "--subject", "t3", *place).out == "request 1: received (was known already)\n"
    planned = expunge("requests", "fulfil", "--plan", *place)
    assert "forget 3 of 120 training samples" in planned.out
    done = expunge(*FULFIL, "-s", "lr=1e-4", *place)
    assert "fulfilment 1 (1 request, 3 samples)" in done.out, done.err
    shown = expunge("requests", "show", 1, "--json", *place)
    assert json.loads(shown.out)["request"]["id"] == 1
    assert expunge("requests", "show", 1, "--samples", *place).out.split() == ["train-9", "train-10", "train-11"]
    status = json.loads(expunge("requests", "status", "--json", *place).out)
    assert sum(status["counts"].values()) == 1
    assert expunge("requests", "versions", *place).code == 0


def test_looking_and_taking_in_import_nothing_heavy(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source / "desk", tmp_path / "desk")
    (tmp_path / "tickets.csv").write_text("subject,ticket\nt1,T-1\nt2,T-2\n")
    commands = [
        ["add", "--subject", "t3"], ["import", str(tmp_path / "tickets.csv")], ["list", "--state", "received"],
        ["status"], ["show", "1"], ["versions"], ["purge"],
    ]  # fmt: skip
    code = (
        "import json, sys; from expunge.cli.main import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    if main(['requests', *words]): sys.exit(f'{words} failed')\n"
        f"    heavy = [m for m in {HEAVY} if m in sys.modules]\n"
        "    if heavy: sys.exit(f'{words} imports {heavy}')"
    )
    words = [sys.executable, "-c", code, json.dumps(commands)]
    done = subprocess.run(words, cwd=tmp_path / "desk", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "request 1: received" in done.stdout
    assert "2 new requests" in done.stdout
    assert "received 3" in done.stdout


def test_the_list_holds_what_is_asked_for(source: Path, tmp_path: Path, expunge: Call) -> None:
    shutil.copytree(source / "desk", tmp_path / "desk")
    place = ("--workspace", tmp_path / "desk")
    assert expunge("requests", "list", *place).out == "no requests\n"
    expunge("requests", "add", "--subject", "t3", "--batch", "weekly", *place)
    expunge("requests", "add", "--subject", "t4", *place)
    rows = json.loads(expunge("requests", "list", "--batch", "weekly", "--state", "received", "--json", *place).out)
    assert [(row["id"], row["state"], row["batch"]) for row in rows] == [(1, "received", "weekly")]
    wrong = expunge("requests", "list", "--state", "recieved", *place)
    assert (wrong.code, "did you mean `received`?" in wrong.err) == (2, True)


def test_verify_rollback_export_and_check(init: list[object], tmp_path: Path, expunge: Call) -> None:
    expunge(*init)
    place = ("--workspace", tmp_path / "desk")
    settings = tmp_path / "desk" / "expunge.yaml"
    words = f"[{', '.join(LABELS)}]"
    settings.write_text(f"{settings.read_text()}accept: {words}\n")
    expunge("requests", "add", "--subject", "t3", *place)
    assert expunge(*FULFIL, *place).code == 0
    assert expunge("requests", "verify", 1, *place).code == 0
    assert expunge("requests", "check", *place).code == 0
    out = tmp_path / "out"
    names = {"pdf": "c.pdf", "html": "c.html", "json": "c.json", "model": "m.safetensors"}
    files = [word for kind, name in names.items() for word in (f"--{kind}", out / name)]
    assert expunge("requests", "export", 1, *files, *place).code == 0
    assert sorted(path.name for path in out.iterdir()) == ["c.html", "c.json", "c.pdf", "m.safetensors"]
    public = tmp_path / "desk" / "keys" / "public.pem"
    assert expunge("requests", "verify", out / "c.json", "--key", public).code == 0
    (out / "c.json").write_text((out / "c.json").read_text().replace('"finetune"', '"retrain"'))
    bad = expunge("requests", "verify", out / "c.json", "--key", public)
    assert bad.code == 1
    assert "do not rely on this case file" in bad.err
    dry = expunge("requests", "purge", "--request", 1, *place)
    assert dry.out.startswith("nothing removed: ")
    assert "--yes removes them" in dry.out
    assert "model version: knows the samples" in dry.err
    assert expunge("requests", "purge", "--keep", "versions", *place).code == 2
    both = expunge("requests", "purge", "--before", "2026-01-01", "--older-than", "3d", *place)
    assert "give --before or --older-than, not both" in both.err
    assert expunge("requests", "rollback", 1, *place).code == 0
    again = expunge("requests", "rollback", 1, *place)
    assert (again.code, again.err) == (
        2, "error: request 1 is rolled back; only what is fulfilled can be rolled back.\n"
    )  # fmt: skip
    assert expunge("requests", "retry", 1, *place).out == "request 1: received\n"
    assert expunge("requests", "purge", *place).out == "nothing to remove\n"
    expunge(*FULFIL, *place)
    gone = expunge("requests", "purge", "--now", "--yes", *place)
    assert gone.code == 0, gone.err
    assert "removed (" in gone.out
    assert "signed record: " in gone.out
    assert "ok   purge-000001.json: " in expunge("requests", "verify", 1, *place).out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["status"], "is no workspace (there is no expunge.yaml)"),
        (["add"], "Missing option '--subject'"),
        (["add", "--subject", " "], "is no workspace"),
        (["verify", "nowhere.json"], "give --key"),
        (["show", "zero"], "should be a valid integer"),
        (["export", "1"], "nothing to write"),
    ],
)
def test_wrong_words(words: list[str], sentence: str, tmp_path: Path, expunge: Call) -> None:
    found = expunge("requests", *words, *([] if words[0] == "verify" else ["--workspace", tmp_path]))
    assert found.code == 2
    assert found.err.startswith("error: ")
    assert sentence in found.err
    assert found.err.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--id-column", "owner", "has no column `owner`; it has: "),
        ("--checkpoint", "missing.safetensors", "does not exist"),
        ("--model", "mpl", "did you mean `mlp`?"),
        ("--accept", "maybe", "knows no verdict `maybe`"),
        ("--ledger", "mysql://root@host/x", "mysql"),
    ],
)
def test_settings_that_cannot_be_right(
    option: str, value: str, sentence: str, init: list[object], tmp_path: Path, expunge: Call
) -> None:
    found = expunge(*init, option, value)
    assert found.code == 2, found.err
    assert sentence in found.err
    assert not (tmp_path / "desk" / "expunge.yaml").exists()
    assert expunge(*init).code == 0  # what the first call left does not stand in the way


def test_a_workspace_is_never_overwritten(init: list[object], tmp_path: Path, expunge: Call) -> None:
    assert expunge(*init).code == 0
    before = (tmp_path / "desk" / "keys" / "pepper").read_bytes()
    again = expunge(*init)
    assert (again.code, "is a workspace already" in again.err) == (2, True)
    assert (tmp_path / "desk" / "keys" / "pepper").read_bytes() == before


def test_checkpoints_that_are_attacks(init: list[object], tmp_path: Path, expunge: Call) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "ran"),))  # type: ignore[return-value]

    (tmp_path / "code.pt").write_bytes(pickle.dumps(Harm()))
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    for name in ("code.pt", "bomb.pt"):
        found = expunge(*init, "--checkpoint", tmp_path / name)
        assert found.code == 2
        assert "not opened" in found.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "needs one column `subject`"),
        (b"person\n1\n", "has a column `person`"),
        (b"subject\nJos\xe9\n", "is not UTF-8 text"),
        (b"subject\nt1\nt\x002\n", "line 3"),
        (b'subject\n"t1\n', "not valid CSV"),
        (b"subject,reason\nt1\n", "line 2: 1 values for 2 columns"),
        (b"subject\n" + b"x" * 600 + b"\n", "512 are allowed"),
    ],
)
def test_files_of_tickets_that_cannot_be_right(
    content: bytes, sentence: str, init: list[object], tmp_path: Path, expunge: Call
) -> None:
    expunge(*init)
    (tmp_path / "tickets.csv").write_bytes(content)
    place = ("--workspace", tmp_path / "desk")
    found = expunge("requests", "import", tmp_path / "tickets.csv", *place)
    assert found.code == 2
    assert sentence in found.err
    assert found.err.count("\n") == 1
    assert "no requests" in expunge("requests", "status", *place).out


def test_a_file_of_tickets_that_is_too_large(init: list[object], tmp_path: Path, expunge: Call) -> None:
    expunge(*init)
    with (tmp_path / "huge.csv").open("wb") as stream:
        stream.truncate(2**33)
    found = expunge("requests", "import", tmp_path / "huge.csv", "--workspace", tmp_path / "desk")
    assert (found.code, "split the file" in found.err) == (2, True)


@pytest.mark.parametrize(
    "subject", ["'; DROP TABLE requests; --", "../../etc/passwd", "<script>alert(1)</script>", "٣"]
)
def test_ids_that_are_attacks_are_only_ids(subject: str, init: list[object], tmp_path: Path, expunge: Call) -> None:
    expunge(*init)
    place = ("--workspace", tmp_path / "desk")
    assert expunge("requests", "add", "--subject", subject, "--reason", subject, "--ticket", subject, *place).code == 0
    assert expunge(*FULFIL, *place).out == "nothing to do: no request waits\n"
    shown = expunge("requests", "show", 1, *place)
    assert "no sample that the model was trained on belongs to this subject" in shown.out
    assert expunge("requests", "check", *place).code == 0


def test_an_audit_pools_what_a_workspace_fulfilled(init: list[object], tmp_path: Path, expunge: Call) -> None:
    assert expunge(*init).code == 0
    desk, out = tmp_path / "desk", tmp_path / "audit"
    with (desk / "expunge.yaml").open("a") as settings:
        settings.write("retention:\n  keep_versions: 5\n")
    for subject in ("t3", "t5"):
        expunge("requests", "add", "--subject", subject, "--workspace", desk)
        assert expunge(*FULFIL, "-s", "lr=1e-4", "--workspace", desk).code == 0
    done = expunge("audit", "--pool", desk, "--out", out, "--no-residue")
    assert done.code == 0, done.err
    assert "against held-out samples" in done.out
    record = json.loads((out / "verdict.json").read_text())
    assert record["pool"]["samples"] == 6
    assert "Pooled audit of" in (out / "audit.html").read_text()
    refused = expunge("audit", "--pool", desk, "--out", out, "--model", "mlp")
    assert refused.code == 2
    assert "--model does not go with --pool" in refused.err
    assert expunge("audit", "--out", out).code == 2
