"""After a fulfilment: which copies of the samples are left, what a purge removes, and what is signed about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from expunge.core.entries import entries, record
from expunge.core.errors import ExpungeError, UsageError
from expunge.data.origin import origin_of
from expunge.data.split import Split
from expunge.evidence.verdict import LABELS
from expunge.requests import copies, purge
from expunge.requests.case.document import PURGE_KIND, read_case
from expunge.requests.desk import Desk
from expunge.requests.purge import Wanted
from expunge.requests.register import Register
from tests.requests.desks import make_desk


@pytest.fixture(scope="module")
def fulfilled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace in which t3 was forgotten, with a cache of four entries beside it; tests copy both."""
    folder = tmp_path_factory.mktemp("fulfilled")
    patch = pytest.MonkeyPatch()
    patch.setenv("EXPUNGE_CACHE", str(folder / "cache"))
    accept = [word for word in LABELS if word != "damaged"]
    with make_desk(folder, accept=accept, residue=False, outside=[str(folder / "prod.safetensors")]) as desk:
        train, unseen = desk.workspace.load()
        forget = train.take(train.index[9:12])
        put(folder / "cache", "models", "a", train)
        put(folder / "cache", "rows", "b", forget)
        put(folder / "cache", "models", "c", train.take(train.index[12:]))  # made without them
        put(folder / "cache", "models", "d", unseen)
        put(folder / "cache", "attacks", "e", None)
        desk.add("t3", reason="GDPR Art. 17")
        said: list[str] = []
        (done,) = desk.fulfil(method="finetune", options={"epochs": 1}, say=said.append)
        (folder / "said").write_text("\n".join(said))
        assert done.state == "fulfilled"
    yield folder
    patch.undo()


def put(cache: Path, kind: str, letter: str, made_of: Split | None) -> None:
    path = cache / kind / f"{letter * 64}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 1000)
    if made_of is not None:
        record(path, cache, **origin_of(made_of))


@pytest.fixture
def register(fulfilled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Register]:
    for name in ("desk", "cache"):
        shutil.copytree(fulfilled / name, tmp_path / name)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    with Register.open(tmp_path / "desk", by="tests") as opened:
        yield opened


def there(cache: Path) -> set[str]:
    return {entry.key[0] for entry in entries(cache) if entry.kind != "precision"}


def test_fulfil_lists_the_copies_and_the_case_holds_them(fulfilled: Path, register: Register) -> None:
    said = (fulfilled / "said").read_text()
    assert "3 copies of the samples in the cache" in said
    assert "models/aaaaaaaaaaaa  1," in said
    assert "was made with 3 of the samples" in said
    case = read_case(register.case_path(1))["content"]
    assert [(row["place"], row["why"]) for row in case["copies"]] == [
        ("cache/models/aaaaaaaaaaaa", "was made with 3 of the samples"),
        ("cache/rows/bbbbbbbbbbbb", "was made with 3 of the samples"),
        ("cache/attacks/eeeeeeeeeeee", "where it came from is not known"),
        ("outside/prod.safetensors", "outside of workspace and cache: to be deleted by hand"),
    ]


def test_a_purge_removes_copies_and_nothing_else(register: Register, tmp_path: Path) -> None:
    plan = register.plan_purge()
    assert [one.entry.key[0] for one in plan.copies] == ["a", "b", "e"]
    assert there(tmp_path / "cache") == set("abcde")  # so far it is only a plan
    done = register.purge()
    assert there(tmp_path / "cache") == set("cd")
    assert (len(done.removed), done.versions, done.left) == (3, (), ())
    assert done.record is not None
    record = read_case(done.record, PURGE_KIND)["content"]
    assert record["requests"] == [1]
    assert [row["place"] for row in record["removed"]] == [row["place"] for row in done.removed]
    kept = {row["what"]: row["why"] for row in record["kept"]}
    assert kept["model version"].startswith("kept for a rollback until ")
    assert kept["file"] == "outside of workspace and cache: to be deleted by hand"
    assert kept["ledger and case files"].startswith("evidence that requests were fulfilled")
    assert register.purge().record is None  # nothing is left to do, and nothing is said twice
    assert register.ledger.verify() == []


def test_copies_are_found_after_the_samples_left_the_data(register: Register, fulfilled: Path) -> None:
    hidden = fulfilled / "train.csv"
    hidden.rename(fulfilled / "hidden.csv")
    try:
        assert len(register.plan_purge().copies) == 3
    finally:
        (fulfilled / "hidden.csv").rename(hidden)


def test_by_request_the_way_back_goes_too(register: Register, tmp_path: Path) -> None:
    first = register.ledger.versions()[0]
    done = register.purge(Wanted(request=1))
    assert [one.id for one in done.versions] == [first.id]
    assert not (tmp_path / "desk" / "models" / first.file).exists()
    assert len(done.removed) == 4
    register.add("t4")
    with pytest.raises(UsageError, match="request 2 is received; only what was forgotten for a fulfilled one"):
        register.purge(Wanted(request=2))


def test_by_date_only_what_is_older(register: Register, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    before = register.plan_purge(Wanted(before=now - timedelta(days=1)))
    assert (before.copies, before.versions) == ((), ())
    assert {row["why"] for row in before.kept if row["place"].startswith("cache/")} == {
        "newer than the date of the purge"
    }
    after = register.plan_purge(Wanted(before=now + timedelta(days=1)))
    assert (len(after.copies), len(after.versions)) == (3, 1)


def test_what_is_kept_has_a_reason(register: Register, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a reason"):
        register.plan_purge(Wanted(keep=["rows"]))
    with pytest.raises(UsageError, match="did you mean `rows`"):
        register.plan_purge(Wanted(keep=["row"], reason="x"))
    done = register.purge(Wanted(request=1, keep=["rows", "versions"], reason="Art. 17(3)(e): legal claims"))
    assert there(tmp_path / "cache") == set("bcd")
    kept = {row["place"]: row["why"] for row in done.kept}
    assert kept["cache/rows/bbbbbbbbbbbb"] == "Art. 17(3)(e): legal claims"
    assert [why for place, why in kept.items() if place.startswith("models/")] == ["Art. 17(3)(e): legal claims"]


def test_a_copy_that_is_in_use_is_left_named_and_removed_later(register: Register, tmp_path: Path) -> None:
    with FileLock(tmp_path / "cache" / "models" / f"{'a' * 64}.lock"):
        done = register.purge()
    assert len(done.left) == 1
    assert "in use by another process" in done.left[0]
    assert {"could not be removed"} == {row["why"] for row in done.kept if row["place"] == "cache/models/aaaaaaaaaaaa"}
    again = register.purge()
    assert [row["place"] for row in again.removed] == ["cache/models/aaaaaaaaaaaa"]
    assert len(purge.records_of(register.ledger, register.workspace)) == 2


def test_a_purge_that_was_killed_is_told_whole(
    register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = purge.remove, []

    def killed(entry: object, root: Path) -> None:
        calls.append(entry)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(entry, root)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(purge, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            register.purge()
    assert len(there(tmp_path / "cache")) == 4
    done = register.purge()
    assert len(done.removed) == 3
    assert there(tmp_path / "cache") == set("cd")


def test_nothing_is_signed_twice_when_only_the_record_was_missing(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(purge, "save_case", killed)
        with pytest.raises(KeyboardInterrupt):
            register.purge()
    done = register.purge()
    assert len(done.removed) == 3
    assert [path.name for path, _ in purge.records_of(register.ledger, register.workspace)] == ["purge-000001.json"]


def test_two_purges_at_once(register: Register, tmp_path: Path) -> None:
    with (
        register.ledger.claim(),
        Register.open(tmp_path / "desk") as other,
        pytest.raises(ExpungeError, match="another process is working"),
    ):
        other.purge()


def test_a_tampered_record_is_found_and_not_handed_out(register: Register, tmp_path: Path) -> None:
    done = register.purge()
    assert done.record is not None
    with Desk.open(tmp_path / "desk") as desk:
        desk.export(1, pdf=tmp_path / "c.pdf", html=tmp_path / "c.html", json=tmp_path / "c.json")
        page = (tmp_path / "c.html").read_text()
        assert "removed: was made with 3 of the samples" in page
        assert (tmp_path / "c.purge-000001.json").read_bytes() == done.record.read_bytes()
        assert desk.check() == []
        done.record.write_text(done.record.read_text().replace('"rows', '"sows').replace("attacks", "attacts"))
        assert any("purge-000001.json" in sentence for sentence in desk.check())
        with pytest.raises(ExpungeError, match="is not handed out"):
            desk.export(1, html=tmp_path / "d.html")
        done.record.unlink()
        assert any("purge-000001.json" in sentence for sentence in desk.check())


def test_what_samples_look_like_is_kept_as_keyed_hashes(register: Register, tmp_path: Path, fulfilled: Path) -> None:
    memory = copies.recall(tmp_path / "desk" / "copies", 1)
    assert memory.samples is not None
    assert {len(one) for one in memory.samples} == {32}
    assert copies.find(tmp_path / "desk" / "copies", b"another pepper", [1], tmp_path / "cache")[0].entry.key[0] == "e"
    (tmp_path / "desk" / "copies" / "000001.json").write_text("{")
    with pytest.raises(ExpungeError, match="is damaged; restore it"):
        register.plan_purge()
    (tmp_path / "desk" / "copies" / "000001.json").unlink()  # as a fulfilment of an earlier release
    assert {one.entry.key[0] for one in register.plan_purge().copies} == set("abcde")


def test_other_forms_and_names_of_files_count(register: Register, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    memory = json.loads((tmp_path / "desk" / "copies" / "000001.json").read_text())
    other = np.arange(3, dtype=np.uint64)
    for letter, data, form in (("1", memory["data"], "uint8 3x8x8"), ("2", "another", "uint8 3x8x8")):
        path = cache / "models" / f"{letter * 64}.bin"
        path.write_bytes(b"x")
        record(path, cache, data=data, form=form, samples=other)
    for letter, root in (("3", str(Path(memory["path"]).parent)), ("4", str(tmp_path / "elsewhere"))):
        path = cache / "data" / "hashes" / f"{letter * 32}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        record(path, cache, data=root, form="names")
    found = {one.entry.key[0]: one.why for one in register.plan_purge().copies}
    assert "in another form" in found["1"]
    assert found["3"] == "names the files of the data"
    assert "2" not in found
    assert "4" not in found
