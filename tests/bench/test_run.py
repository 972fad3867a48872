"""Whole studies: complete, resumed after SIGKILL, killed workers, failed cells, engines that agree bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from expunge.api.record import CellRecord
from expunge.bench import tables
from expunge.bench.engines import ATTEMPTS, LocalProcesses
from expunge.bench.reading import parse_study
from expunge.bench.run import cells, export, frame, run_study, status, summary
from expunge.bench.store import CellStore
from expunge.core.errors import DataError, ExpungeError


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Folder of one uninterrupted run of the tiny study in this process, made once."""
    return tmp_path_factory.mktemp("plain")


@pytest.fixture
def finished(plain, tiny):
    if not (plain / "study.sqlite").exists():
        run_study(parse_study(tiny), plain)
    return plain


def table(folder: Path) -> bytes:
    target = folder / "table.csv"
    export(folder, csv=target, time=False)
    return target.read_bytes()


def test_every_cell_is_done_and_measured(finished):
    records = cells(finished)
    assert status(finished) == {"done": 16}
    for record in records:
        metrics = {row["metric"] for row in record.scores}
        assert {"forget_accuracy", "test_accuracy", "average_gap", "seconds"} <= metrics
        assert record.provenance["original_seconds"] > 0
        assert record.provenance["peak_memory_mb"] > 0
        assert set(record.curves["losses"]) == {"forget", "test"}
        assert record.data["validation"] == 24
    by_method = {record.method["label"]: record for record in records}
    assert by_method["retrain"].needs["weights"] is False
    assert "rewind" in by_method["SCRUB+R"].details
    gaps = [
        row["value"] for r in records if r.method["name"] == "retrain" for row in r.scores if "gap" in row["metric"]
    ]
    assert gaps
    assert not any(gaps)


def test_shared_stages_are_built_once(finished):
    store = CellStore(finished)
    stages = store.stages()
    store.close()
    assert [facts["kind"] for facts in stages.values()] == ["original"] * 2  # one per seed, for both scenarios


def test_a_finished_study_is_not_run_again(finished, tiny, monkeypatch):
    monkeypatch.setattr("expunge.bench.workbench.Workbench.record", None)
    before = table(finished)
    result = run_study(parse_study({**tiny, "title": "another heading"}), finished)
    assert not result.failed()
    assert table(finished) == before


def test_a_new_method_runs_its_own_cells_only(tiny, tmp_path):
    smaller = {**tiny, "methods": ["original"], "seeds": [0], "scenarios": ["class:1"]}
    run_study(parse_study(smaller), tmp_path)
    seen = []
    run_study(parse_study({**smaller, "methods": ["original", "finetune"]}), tmp_path, progress=seen.append)
    assert [(p.done, p.total) for p in seen if p.what == "cells"] == [(2, 3), (3, 3)]


def test_processes_give_the_same_bits_as_one_process(finished, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))  # nothing of the other run is reused
    run_study(parse_study(tiny), tmp_path / "study", jobs=2)
    assert table(tmp_path / "study") == table(finished)
    for here, there in zip(cells(tmp_path / "study"), cells(finished), strict=True):
        assert here.curves == there.curves
        assert here.provenance["original"] == there.provenance["original"]


def start_run(content, folder: Path, jobs: int) -> subprocess.Popen[bytes]:
    """`run_study` in a process of its own."""
    folder.mkdir(parents=True)
    recipe = folder.parent / f"{folder.name}.yaml"
    recipe.write_text(yaml.safe_dump(content))
    code = f"from expunge.bench.run import run_study; run_study({str(recipe)!r}, {str(folder)!r}, jobs={jobs})"
    return subprocess.Popen([sys.executable, "-c", code])


def wait_until(condition, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def counts(folder: Path) -> dict[str, int]:
    if not (folder / "study.sqlite").exists():
        return {}
    try:
        store = CellStore(folder)
    except DataError:  # the file is there, its tables are not yet
        return {}
    try:
        return store.counts()
    finally:
        store.close()


def test_killed_and_resumed_gives_the_table_of_an_uninterrupted_run(finished, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "study"
    run = start_run(tiny, folder, 1)
    wait_until(lambda: counts(folder).get("done", 0) >= 3)
    run.kill()
    run.wait()
    done = counts(folder)["done"]
    assert 3 <= done < 16, "the run was not interrupted half-way"
    run_study(tmp_path / "study.yaml", folder)
    assert status(folder) == {"done": 16}
    assert table(folder) == table(finished)


def slow(tiny):
    """One cell that takes seconds, behind quick ones."""
    long = {"name": "finetune", "label": "slow", "epochs": 2000}
    return {
        **tiny,
        "methods": ["original", long, {"name": "neggrad", "label": "neggrad", "epochs": 1}],
        "seeds": [0],
        "options": {},
    }


def test_a_killed_worker_costs_the_cell_it_was_running(tiny, tmp_path):
    study = parse_study({**slow(tiny), "scenarios": ["class:1"]})
    killed = []

    def kill_one() -> None:
        wait_until(lambda: bool(counts(tmp_path)))
        store = CellStore(tmp_path)
        wanted = next(r.id for r in store.records() if r.method["label"] == "slow")
        wait_until(lambda: wanted in store.running())
        killed.append(int(store.running()[wanted][0].rpartition(":")[2]))
        os.kill(killed[0], signal.SIGKILL)
        store.close()

    killer = threading.Thread(target=kill_one)
    killer.start()
    result = run_study(study, tmp_path, jobs=1, engine=LocalProcesses(1))
    killer.join()
    assert killed
    assert not result.failed()
    store = CellStore(tmp_path)
    attempts = {r.method["label"]: store.attempts(r.id) for r in store.records()}
    store.close()
    assert attempts == {"retrain": 1, "original": 1, "slow": 2, "neggrad": 1}


def test_a_hung_cell_fails_and_the_others_are_done(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("expunge.bench.engines.ATTEMPTS", 1)
    content = slow(tiny)
    content["methods"][1]["epochs"] = 10**7
    study = parse_study({**content, "scenarios": ["class:1"]})
    result = run_study(study, tmp_path, engine=LocalProcesses(1, timeout=4.0))
    assert [r.method["label"] for r in result.failed()] == ["slow"]
    assert "died or hung" in result.failed()[0].error
    assert ATTEMPTS > 1


def test_a_failed_cell_is_shown_and_the_rest_goes_on(tiny, tmp_path):
    broken = {"name": "neggrad", "lr": 1e30, "epochs": 2}
    content = {**tiny, "methods": ["original", {**broken, "label": "broken"}], "options": {}}
    result = run_study(parse_study(content), tmp_path)
    assert status(tmp_path) == {"done": 8, "failed": 4}
    assert all("diverged" in record.error for record in result.failed())
    tidy = frame(tmp_path)
    assert len(tidy[tidy["method"] == "broken"]) == 4
    assert tidy[tidy["method"] == "broken"]["error"].str.contains("diverged").all()
    over = summary(tmp_path)
    lost = over[over["method"] == "broken"]
    assert lost[["n", "failed", "missing"]].to_numpy().tolist() == [[0, 2, 0]] * 2
    export(tmp_path, latex=tmp_path / "t.tex", parquet=tmp_path / "t.parquet")
    assert "broken (2 lost) & --" in (tmp_path / "t.tex").read_text()
    assert len(pd.read_parquet(tmp_path / "t.parquet")) == len(tidy)


def test_a_broken_reference_is_trained_once_and_fails_its_group_only(tiny, tmp_path, monkeypatch):
    from expunge.bench.workbench import Workbench

    tried = []
    apply = Workbench.apply

    def failing(self, cell, method, seed):
        if method.card.name == "retrain" and cell.scenario_label == "a tenth":
            tried.append(cell.group)
            raise ExpungeError("no reference.")
        return apply(self, cell, method, seed)

    monkeypatch.setattr(Workbench, "apply", failing)
    result = run_study(parse_study({**tiny, "seeds": [0]}), tmp_path)
    assert len(tried) == 1
    assert {r.scenario["label"] for r in result.failed()} == {"a tenth"}
    assert len(result.failed()) == 4


def test_summary_matches_a_hand_computation(finished):
    over = summary(finished)
    tidy = frame(finished)
    row = over.query("scenario == 'class:1' and method == 'finetune' and metric == 'test_accuracy'").iloc[0]
    a, b = tidy.query("scenario == 'class:1' and method == 'finetune' and metric == 'test_accuracy'")["value"]
    std = abs(a - b) / 2**0.5
    assert row["n"] == 2
    assert row["mean"] == pytest.approx((a + b) / 2)
    assert row["std"] == pytest.approx(std)
    assert row["high"] - row["mean"] == pytest.approx(12.706 * std / 2**0.5, rel=1e-3)  # t of one degree of freedom
    assert list(dict.fromkeys(zip(over["scenario"], over["method"], strict=True))) == list(
        dict.fromkeys(zip(tidy["scenario"], tidy["method"], strict=True))
    )


def test_no_time_export_holds_no_seconds(finished):
    text = table(finished).decode()
    assert "seconds" not in text
    assert "scale_up" not in text
    assert "average_gap" in text


def test_seconds_of_stages_are_rows_of_the_export(tmp_path):
    record = CellRecord(
        id="c", scenario={"label": "s"}, method={"label": "laf"}, seconds=3.0, stages={"vae": 1.5, "extractor": 0.5},
        scores=[{"metric": "test_accuracy", "group": "", "value": 0.5, "unit": "fraction", "direction": "higher"}],
    )  # fmt: skip
    rows = tables.frame([record])
    assert list(rows.columns) == tables.COLUMNS
    found = rows[rows["metric"] == "stage_seconds"]
    assert list(zip(found["group"], found["value"], found["unit"], strict=True)) == [
        ("vae", 1.5, "seconds"),
        ("extractor", 0.5, "seconds"),
    ]
    assert list(tables.frame([record], time=False)["metric"]) == ["test_accuracy"]
    over = tables.summary([record, record.model_copy(update={"id": "d", "stages": {"vae": 2.5}})])
    assert over.query("group == 'vae'")["mean"].tolist() == [2.0]
    failed = record.model_copy(update={"state": "failed", "scores": []})
    assert list(tables.frame([failed])["state"]) == ["failed"]


def test_workers_end_with_a_killed_parent_and_the_study_goes_on(tiny, tmp_path, monkeypatch):
    content = {**slow(tiny), "scenarios": ["class:1"]}
    run_study(parse_study(content), tmp_path / "plain")
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "study"
    run = start_run(content, folder, 2)
    workers = wait_for_slow(folder)
    run.kill()
    run.wait()
    for worker in workers:
        wait_until(lambda worker=worker: not alive(worker), 1)
    assert counts(folder)["running"] >= 1, "the slow cell was finished without its parent"
    run_study(tmp_path / "study.yaml", folder)
    assert status(folder) == {"done": 4}
    assert table(folder) == table(tmp_path / "plain")


def test_ctrl_c_keeps_what_is_done_and_leaves_no_worker(tiny, tmp_path):
    content = slow(tiny)
    content["methods"][1]["epochs"] = 10**7
    workers = []

    def interrupt(_: object) -> None:
        if counts(tmp_path).get("done", 0) == 3:
            workers.extend(wait_for_slow(tmp_path))
            os.kill(workers[0], signal.SIGINT)  # the terminal sends it to the workers too; they leave it to the parent
            time.sleep(0.3)
            assert alive(workers[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(parse_study({**content, "scenarios": ["class:1"]}), tmp_path, jobs=2, progress=interrupt)
    assert status(tmp_path) == {"done": 3, "pending": 1}
    assert not any(map(alive, workers))


def wait_for_slow(folder: Path) -> list[int]:
    """Wait until only the slow cell is left; the process ids that run it."""
    wait_until(lambda: counts(folder).get("done", 0) == 3)
    store = CellStore(folder)
    wait_until(lambda: bool(store.running()))
    workers = [int(owner.rpartition(":")[2]) for owner, _ in store.running().values()]
    store.close()
    return workers


def alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_each_seed_moves_its_own_part_only(tiny, tmp_path):
    def measured(**seeds: list[int]) -> dict[str, object]:
        content = {
            **tiny,
            "methods": [{"name": "finetune", "batch_size": 16}],
            "scenarios": ["random:0.2"],
            "options": {},
            "metrics": ["asr-balanced"],
        }
        folder = tmp_path / "".join(map(str, seeds))
        records = run_study(parse_study({**content, "seeds": seeds or [0]}), folder).records
        cell = next(r for r in records if r.method["name"] == "finetune")
        row = next(row for row in cell.scores if row["metric"] == "asr_balanced")  # its attack is trained by the seed
        return {
            "data": cell.provenance["hashes"]["forget"],
            "train": cell.provenance["original"],
            "unlearn": cell.history[-1]["loss"],
            "evaluate": (row["value"], row["low"], row["high"]),
        }

    plain = measured()
    for at, name in enumerate(plain):
        other = measured(**{name: [5]})
        assert all(other[earlier] == plain[earlier] for earlier in list(plain)[:at])
        assert other[name] != plain[name], f"the {name} seed has no effect"


def test_cells_run_on_one_thread_and_the_callers_number_comes_back(tiny, tmp_path):
    import torch

    torch.set_num_threads(2)
    try:
        small = {**tiny, "methods": ["original"], "scenarios": ["class:1"], "seeds": [0]}
        records = run_study(parse_study(small), tmp_path).records
        assert {r.provenance["versions"]["threads"] for r in records} == {"1"}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_less_than_one_job_is_refused(tiny, tmp_path):
    from expunge.core.errors import UsageError

    with pytest.raises(UsageError, match="at least 1"):
        run_study(parse_study(tiny), tmp_path, jobs=0)


def test_pretraining_keeps_the_body_and_draws_a_new_head(tiny, tmp_path):
    from expunge.bench.cells import expand
    from expunge.bench.workbench import Workbench

    source = tiny["data"]["source"]
    content = {**tiny, "pretrain": {"source": source, "classes": [0, 2], "recipe": {"epochs": 1}, "seed": 3}}
    study = parse_study(content)
    bench = Workbench(study, tmp_path)
    cell = expand(study, "data")[0]
    start = bench.start(cell).state_dict()
    plain = Workbench(parse_study(tiny), tmp_path).start(cell).state_dict()
    body = [name for name in start if not name.startswith("5.")]  # the MLP's last layer is its head
    assert {tuple(start[name].shape) == tuple(plain[name].shape) for name in start} == {True}
    assert any(not start[name].equal(plain[name]) for name in body)
    other = Workbench(study.model_copy(update={"pretrain": study.pretrain.model_copy(update={"seed": 4})}), tmp_path)
    assert any(not other.start(cell).state_dict()[name].equal(start[name]) for name in body)
    assert start["5.weight"].shape == (3, 8)


def test_requests_one_after_the_other_end_at_the_reference_of_one_shot(tiny, tmp_path):
    """The retrained model after the last request is the one-shot reference, trained once; every request is measured."""
    scenarios = [
        {"name": "instances", "k": 9, "requests": 3, "label": "stream"},
        {"name": "instances", "k": 9, "label": "at once"},
    ]
    study = parse_study({**tiny, "scenarios": scenarios, "seeds": [0]})
    run_study(study, tmp_path)
    rows = frame(tmp_path)
    assert set(rows["state"]) == {"done"}
    stream = rows[(rows["scenario"] == "stream") & rows["metric"].str.startswith("request_")]
    assert set(stream["group"]) == {"1", "2", "3"}
    assert set(rows[rows["scenario"] == "at once"]["metric"]).isdisjoint(stream["metric"])
    value = rows[rows["method"] == "retrain"].set_index(["scenario", "metric"])["value"]
    assert value["stream", "test_accuracy"] == value["at once", "test_accuracy"]
    last = stream[(stream["method"] == "finetune") & (stream["metric"] == "request_past_accuracy")].iloc[-1]
    all_of_it = rows[(rows["scenario"] == "stream") & (rows["method"] == "finetune")].set_index("metric")["value"]
    assert last["value"] == pytest.approx(all_of_it["forget_accuracy"])


def test_a_study_may_go_without_a_reference(tiny, tmp_path):
    run_study(parse_study({**tiny, "retrain": False, "seeds": [0], "metrics": ["default", "cka-layers"]}), tmp_path)
    rows = frame(tmp_path)
    assert set(rows["state"]) == {"done"}
    assert set(rows["method"]) == {"original", "finetune", "SCRUB+R"}
    assert not rows["metric"].str.contains("gap|scale_up").any()
    assert {"forget_layer_cka", "weight_drift"} <= set(rows["metric"])


def test_representations_are_kept_where_they_are_asked_for(tiny, tmp_path):
    run_study(parse_study({**tiny, "projection": True, "seeds": [0], "scenarios": ["class:1"]}), tmp_path)
    for record in cells(tmp_path):
        found = record.curves["projection"]
        assert {name: len(rows) for name, rows in found.items()} == {"forget": 32, "test": 60}
        assert all(len(row) == 3 for rows in found.values() for row in rows)
        assert {row[2] for row in found["forget"]} == {1}
