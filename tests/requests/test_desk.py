"""The desk: requests in, models and case files out, and nothing in between that a look could find half done."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from expunge.core.errors import DataError, ExpungeError, UsageError
from expunge.core.options import build
from expunge.evidence.verdict import LABELS
from expunge.models.checkpoint import load_weights, save_weights, weights_hash
from expunge.requests.desk import Desk
from expunge.requests.purge import Wanted
from expunge.requests.settings import WorkspaceSettings
from expunge.requests.workspace import Workspace, load
from expunge.training.recipe import Recipe
from expunge.training.shards import Sharding, read_plan
from expunge.training.sisa import ShardedTraining
from tests.requests.conftest import Server
from tests.requests.desks import PEOPLE, RECIPE, make_desk, write_rows

FAST = {"method": "finetune", "options": {"epochs": 1}}  # changes weights, and little else


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which nothing happened yet; tests copy it."""
    folder = tmp_path_factory.mktemp("made")
    make_desk(folder, accept=[word for word in LABELS if word != "damaged"]).close()
    return folder / "desk"


@pytest.fixture
def desk(made: Path, tmp_path: Path) -> Iterator[Desk]:
    shutil.copytree(made, tmp_path / "desk")
    with Desk.open(tmp_path / "desk", by="tests") as opened:
        yield opened


def test_a_request_from_its_arrival_to_its_case_file(desk: Desk, tmp_path: Path) -> None:
    first = desk.ledger.active()
    request, new = desk.add("t3", reason="GDPR Art. 17", ticket="T-1", batch="weekly")
    assert (request.state, new) == ("received", True)
    assert desk.add("t3", ticket="T-1")[0].id == request.id
    (done,) = desk.fulfil(batch="weekly", method="retrain")
    assert (done.state, done.step, len(done.samples)) == ("fulfilled", "done", 3)
    assert desk.ledger.request(request.id).state == "fulfilled"
    active = desk.ledger.active()
    assert (active.parent, active.method, active.knows) == (first.id, "retrain", 3 * PEOPLE - 3)
    train, _ = desk.workspace.load()
    fresh = Workspace(tmp_path, desk.workspace.settings).fresh(train)
    weights = load_weights(fresh, desk.workspace.models / active.file)
    assert weights_hash(weights) == active.id
    assert all(finding.ok for finding in desk.verify(request.id))
    assert desk.check() == []
    assert desk.samples_of(request.id) == ["train-9", "train-10", "train-11"]
    desk.export(request.id, pdf=tmp_path / "c.pdf", html=tmp_path / "c.html", json=tmp_path / "c.json")
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")
    case = json.loads((tmp_path / "c.json").read_text())["content"]
    assert case["exact"] is True
    assert case["requests"][0]["subject"] == request.subject
    assert "t3" not in json.dumps(case["requests"])
    assert desk.fulfil() == []


def test_people_who_are_not_there_and_people_who_are_gone(desk: Desk) -> None:
    desk.add("nobody"), desk.add("t1")
    desk.fulfil(**FAST)
    again, new = desk.add("t1")
    assert new
    desk.fulfil(**FAST)
    assert desk.ledger.request(1).message.startswith("no sample that the model was trained on")
    assert desk.ledger.request(again.id).message == "all samples of this subject were forgotten before."
    assert desk.ledger.counts()["rejected"] == 2
    assert len(desk.ledger.versions()) == 2


def test_each_version_knows_less_than_the_one_before(desk: Desk) -> None:
    for number in range(3):
        desk.add(f"t{number}")
        desk.fulfil(**FAST)
    assert [version.knows for version in desk.ledger.versions()] == [120, 117, 114, 111]
    advice = desk.advise()
    assert advice is not None
    assert (advice.drift.steps, advice.drift.forgotten, advice.drift.knew) == (3, 9, 120)
    assert desk.check() == []


def test_a_rollback_puts_the_version_before_in_force_and_the_request_can_come_again(desk: Desk) -> None:
    before = desk.ledger.active().id
    desk.add("t1"), desk.add("t2")
    (done,) = desk.fulfil(**FAST)
    assert desk.rollback(1).id == before
    assert [one.state for one in desk.ledger.requests()] == ["rolled back", "rolled back"]
    with pytest.raises(UsageError, match="request 2 is rolled back; only what is fulfilled"):
        desk.rollback(2)
    desk.retry(1)
    (again,) = desk.fulfil(**FAST)
    assert again.state == "fulfilled"
    assert set(again.samples) < set(done.samples)
    assert desk.check() == []


def test_old_versions_that_know_too_much_are_deleted(desk: Desk) -> None:
    first = desk.workspace.models / desk.ledger.active().file
    desk.add("t1")
    desk.fulfil(**FAST)
    assert desk.purge().versions == ()
    assert first.exists()
    assert [one.id for one in desk.purge(Wanted(now=True)).versions] == [first.stem]
    assert not first.exists()
    with pytest.raises(UsageError, match="was deleted"):
        desk.rollback(1)
    assert desk.versions()[0]["state"] == "deleted"
    assert desk.check() == []


def test_a_verdict_that_is_not_accepted_leaves_the_model_as_it_was(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "desk")
    settings = (tmp_path / "desk" / "expunge.yaml").read_text()
    start, _, rest = settings.partition("accept:")
    rest = rest[rest.index("\ndevice") :] if "\ndevice" in rest else rest[rest.rindex("\n- ") :].partition("\n")[2]
    (tmp_path / "desk" / "expunge.yaml").write_text(f"{start}accept: [damaged]\nfallback: retrain\n{rest}")
    with Desk.open(tmp_path / "desk", by="tests") as desk:
        before = desk.ledger.active().id
        desk.add("t1")
        one, two = desk.fulfil(**FAST)
        assert [one.state, two.state] == ["failed", "failed"]
        assert "which `accept` does not allow" in one.message
        assert [one.plan["method"], two.plan["method"]] == ["finetune", "retrain"]
        assert desk.ledger.active().id == before
        assert [path.stem for path in desk.workspace.models.iterdir()] == [before]
        assert desk.ledger.request(1).state == "failed"
        assert desk.check() == []


def test_an_export_of_what_is_not_there(desk: Desk, tmp_path: Path) -> None:
    desk.add("t1")
    with pytest.raises(UsageError, match="request 1 is received; there is a case file once it is fulfilled"):
        desk.export(1, pdf=tmp_path / "c.pdf")
    with pytest.raises(UsageError, match="no request 7"):
        desk.show(7)


def test_what_was_tampered_with_is_not_exported(desk: Desk, tmp_path: Path) -> None:
    desk.add("t1")
    (done,) = desk.fulfil(**FAST)
    case = desk.case_path(1)
    case.with_suffix(".html").write_text("<p>all is well</p>")  # the page is made anew from the signed document
    desk.export(1, html=tmp_path / "good.html", pdf=tmp_path / "good.pdf", json=tmp_path / "good.json")
    assert "all is well" not in (tmp_path / "good.html").read_text()
    assert (tmp_path / "good.json").read_bytes() == case.read_bytes()
    signed = case.read_text()
    case.write_text(signed.replace("1", "2", 1))
    for name in ("pdf", "html", "json", "model"):
        with pytest.raises(ExpungeError, match=r"request 1 is not handed out, because .* checks do not hold"):
            desk.export(1, **{name: tmp_path / f"bad.{name}"})
    case.write_text(signed)
    weights = desk.workspace.models / f"{done.version}.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(ExpungeError, match="the hash of its weights is not the one"):
        desk.export(1, model=tmp_path / "bad.model")
    assert not list(tmp_path.glob("bad.*"))


def test_the_same_desk_over_a_server(server: Server, tmp_path: Path) -> None:
    with make_desk(tmp_path, ledger=server.create(), accept=list(LABELS)) as desk:
        desk.add("t1"), desk.add("nobody")
        assert [one.state for one in desk.fulfil(**FAST)] == ["fulfilled"]
        assert all(finding.ok for finding in desk.verify(1))
        assert desk.check() == []
        assert not (desk.workspace.folder / "ledger.sqlite").exists()
    with pytest.raises(UsageError, match="is that of another workspace"):
        make_desk(tmp_path / "other", ledger=desk.workspace.settings.ledger, recipe=None)


def test_samples_that_were_deleted_too_early(desk: Desk) -> None:
    desk.add("t1")
    source = Path(desk.workspace.settings.data)
    kept = source.read_text()
    try:
        source.write_text("".join(line for line in kept.splitlines(keepends=True) if ",t1," not in line))
        told: list[str] = []
        assert desk.fulfil(**FAST, say=told.append) == []
        assert desk.ledger.request(1).state == "received"  # it can still be fulfilled, once the rows are back
        assert any("3 of 120 samples that the model was trained on are missing" in line for line in told)
    finally:
        source.write_text(kept)
    assert [one.state for one in desk.fulfil(**FAST)] == ["fulfilled"]


def test_a_person_in_the_test_data_only_is_named_as_such(desk: Desk) -> None:
    source = Path(desk.workspace.settings.test or "")
    kept = source.read_text()
    try:
        source.write_text(kept.replace(",t0,", ",visitor,"))
        desk.add("visitor")
        assert desk.fulfil(**FAST) == []
        assert "test data only" in desk.ledger.request(1).message
    finally:
        source.write_text(kept)


def test_a_subject_that_was_forgotten_and_then_deleted_is_not_missing(desk: Desk) -> None:
    desk.add("t1")
    desk.fulfil(**FAST)
    source = Path(desk.workspace.settings.data)
    kept = source.read_text()
    try:
        source.write_text("".join(line for line in kept.splitlines(keepends=True) if ",t1," not in line))
        desk.add("t1"), desk.add("nobody")
        desk.fulfil(**FAST)
        assert desk.ledger.request(2).message == "all samples of this subject were forgotten before."
        assert desk.ledger.request(3).message.startswith("no sample that the model was trained on")
    finally:
        source.write_text(kept)


def test_a_ruined_model_does_not_go_into_force_however_few_samples_are_forgotten(desk: Desk) -> None:
    before = desk.ledger.active().id
    desk.add("t1")
    (ruined,) = desk.fulfil(method="finetune", options={"epochs": 2, "lr": 1.0, "momentum": 0.9, "max_drop": None})
    assert ruined.state == "failed"
    assert "damaged: accuracy on retained samples fell from" in ruined.message
    assert ruined.audit["drift"]["steps"] == 1  # the evidence is kept
    assert desk.ledger.active().id == before
    desk.add("t2")
    (fulfilled,) = desk.fulfil(**FAST)
    assert fulfilled.audit["drift"]["failed"] >= 1  # and the failed attempt counts


def test_a_checkpoint_that_does_not_fit_the_data_is_refused(tmp_path: Path) -> None:
    desk = make_desk(tmp_path)
    settings = desk.workspace.settings
    desk.close()
    known, unseen = load(settings)
    fresh = Workspace(tmp_path, settings).fresh(known)
    for parameter in fresh.parameters():
        parameter.data.zero_()
    save_weights(fresh, tmp_path / "zero.safetensors")
    with pytest.raises(DataError, match=r"near chance for 3 classes.*normalisation"):
        Desk.create(tmp_path / "other", settings, tmp_path / "zero.safetensors", known, unseen)
    assert not (tmp_path / "other" / "expunge.yaml").exists()
    allowed = replace(settings, any_accuracy=True)
    told: list[str] = []
    Desk.create(tmp_path / "third", allowed, tmp_path / "zero.safetensors", known, unseen, say=told.append).close()
    assert "33.3% of its training data" in told[0]


def test_relative_paths_in_the_settings_are_relative_to_the_workspace(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made, tmp_path / "desk")
    for name in ("train", "test"):
        shutil.copyfile(made.parent / f"{name}.csv", tmp_path / "desk" / f"{name}.csv")
    path = tmp_path / "desk" / "expunge.yaml"
    values = yaml.safe_load(path.read_text()) | {"data": "train.csv", "test": "test.csv"}
    path.write_text(yaml.safe_dump(values))
    for folder in (tmp_path, tmp_path / "desk"):
        monkeypatch.chdir(folder)
        assert Workspace.open(tmp_path / "desk").settings.data == str(tmp_path / "desk" / "train.csv")
    with Desk.open(Path()) as desk:
        desk.add("t1")
        assert [one.state for one in desk.fulfil(**FAST)] == ["fulfilled"]


def test_a_model_file_that_was_swapped_is_found(desk: Desk) -> None:
    desk.add("t1")
    (done,) = desk.fulfil(**FAST)
    shutil.copyfile(
        desk.workspace.models / f"{done.parent}.safetensors", desk.workspace.models / f"{done.version}.safetensors"
    )
    assert any("the case is about" in one for one in desk.check())
    desk.add("t2")
    with pytest.raises(ExpungeError, match="was changed: its content is not what its name says"):
        desk.fulfil(**FAST)


def test_a_model_that_was_trained_in_shards_forgets_exactly(tmp_path: Path) -> None:
    train, test = write_rows(tmp_path)
    settings = build(WorkspaceSettings, {
        "model": "mlp", "data": str(train), "test": str(test), "id_column": "user_id", "device": "cpu",
        "shards": tmp_path / "shards", "accept": list(LABELS),
    })  # fmt: skip
    known, unseen = load(settings)
    fresh = Workspace(tmp_path, settings).fresh(known)
    recipe, sharding = build(Recipe, RECIPE), build(Sharding, {"shards": 2, "slices": 2, "stage_epochs": 3})
    training = ShardedTraining(fresh, known, recipe=recipe, sharding=sharding, folder=tmp_path / "shards")
    save_weights(training.train(), tmp_path / "prod.safetensors")
    with Desk.create(tmp_path / "desk", settings, tmp_path / "prod.safetensors", known, unseen) as desk:
        desk.add("t3")
        plan = desk.plan()
        assert plan is not None
        assert (plan.method, plan.exact) == ("sisa", True)
        cost = plan.situation.sharded
        (done,) = desk.fulfil()
        assert done.state == "fulfilled", done.message
        assert cost is not None
        assert (done.facts["details"]["sisa"]["samples"], done.facts["details"]["sisa"]["stages"]) == (
            cost.samples,
            cost.stages,
        )
        left = {name for shard in read_plan(tmp_path / "shards")["shards"] for part in shard for name in part}
        assert not left & {"train-9", "train-10", "train-11"}
        assert all(finding.ok for finding in desk.verify(1))
        with pytest.raises(UsageError, match="forget for good"):
            desk.rollback(1)
        desk.add("t4")
        assert desk.fulfil()[0].state == "fulfilled"
        assert desk.check() == []


# Killed by SIGKILL when the ledger is about to store `step` ("before") or just has ("after").
KILLER = """
import os, signal, sys
from pathlib import Path
from expunge.requests.desk import Desk
from expunge.requests.ledger.ledger import Ledger
folder, wanted, when = sys.argv[1:]
def deadly(name):
    original = getattr(Ledger, name)
    def method(self, *args, **kwargs):
        step = args[1] if name == "advance" else name
        if step == wanted and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        found = original(self, *args, **kwargs)
        if step == wanted and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    setattr(Ledger, name, method)
deadly("begin"), deadly("advance")
with Desk.open(Path(folder), by="killed") as desk:
    desk.fulfil(method="finetune", options={"epochs": 1})
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["begin", "unlearned", "audited", "recorded", "done"])
def test_killed_at_any_step_nothing_is_lost_and_nothing_runs_twice(step: str, when: str, desk: Desk) -> None:
    desk.add("t1"), desk.add("t2")
    killed = subprocess.run(
        [sys.executable, "-c", KILLER, str(desk.workspace.folder), step, when], capture_output=True, timeout=120
    )
    assert killed.returncode == -9, killed.stderr.decode()
    waiting = [one.state for one in desk.ledger.requests()]
    assert set(waiting) <= {"received", "planned", "running", "fulfilled"}
    desk.fulfil(**FAST)
    assert [one.state for one in desk.ledger.requests()] == ["fulfilled", "fulfilled"]
    assert [(one.state, one.step) for one in desk.ledger.fulfilments()] == [("fulfilled", "done")]
    assert sorted(path.name for path in desk.workspace.cases.iterdir()) == ["000001.html", "000001.json", "000001.pdf"]
    versions = desk.ledger.versions()
    assert [version.active for version in versions] == [False, True]
    assert {path.stem for path in desk.workspace.models.iterdir()} == {version.id for version in versions}
    assert desk.check() == []


def test_two_processes_at_once_do_the_work_once(desk: Desk) -> None:
    for number in range(4):
        desk.add(f"t{number}")
    program = (
        "import sys; from pathlib import Path; from expunge.requests.desk import Desk\n"
        "with Desk.open(Path(sys.argv[1])) as desk:\n"
        "    print(len(desk.fulfil(method='finetune', options={'epochs': 1}, wait=100)))\n"
    )
    command = [sys.executable, "-c", program, str(desk.workspace.folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(int(one.communicate(timeout=200)[0]) for one in running) == [0, 1]
    assert desk.ledger.counts()["fulfilled"] == 4
    assert len(desk.ledger.fulfilments()) == 1
    assert desk.check() == []


def test_in_a_column_of_numbers_a_subject_may_be_written_with_a_point(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "desk")
    for name in ("train", "test"):  # subjects t3, e3 become the numbers 3
        text = (made.parent / f"{name}.csv").read_text()
        (tmp_path / f"{name}.csv").write_text(re.sub(r",t(\d+),", r",\1,", text))
    settings = tmp_path / "desk" / "expunge.yaml"
    settings.write_text(settings.read_text().replace(str(made.parent), str(tmp_path)))
    (tmp_path / "tickets.csv").write_text("subject\n3.0\n4\n5.5\n03.0\n")
    with Desk.open(tmp_path / "desk") as desk:
        desk.import_tickets(tmp_path / "tickets.csv")
        (done,) = desk.fulfil(**FAST)
        assert (len(done.samples), done.requests) == (6, (1, 2))
        assert desk.samples_of(1) == ["train-9", "train-10", "train-11"]
        assert [one.state for one in desk.ledger.requests()][2:] == ["rejected"] * 2
        again, new = desk.add("3")
        assert new
        desk.fulfil(**FAST)
        assert desk.ledger.request(again.id).message == "all samples of this subject were forgotten before."


def test_in_a_column_of_texts_it_may_not(desk: Desk) -> None:
    desk.add("t3.0")
    assert desk.fulfil(**FAST) == []
    assert desk.ledger.request(1).state == "rejected"
