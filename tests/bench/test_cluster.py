"""Engines on other machines: a real Ray cluster of two nodes, one of which is killed; SLURM jobs as local processes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from expunge.bench.cluster import Answer, Ray, Slurm, answer, keep
from expunge.bench.reading import parse_study
from expunge.bench.run import cells, export, run_study, status
from expunge.bench.store import CellStore
from expunge.core.errors import UsageError
from expunge.core.run import Progress


def table(folder: Path) -> bytes:
    target = folder / "table.csv"
    export(folder, csv=target, time=False)
    return target.read_bytes()


@pytest.fixture
def plain(tiny, tmp_path):
    """The same study in this process."""
    run_study(parse_study(tiny), tmp_path / "plain")
    return tmp_path / "plain"


class RayNodes:
    """Nodes of a Ray cluster on loopback, each a process of its own as on machines of their own."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.started: list[subprocess.Popen[bytes]] = []
        self.start("--head", f"--port={self.address.rpartition(':')[2]}", "--include-dashboard=false")

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        command = [Path(sys.executable).with_name("ray"), "start", "--block", "--node-ip-address=127.0.0.1"]
        made = subprocess.Popen(
            [*command, "--num-cpus=1", "--disable-usage-stats", *more],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.started.append(made)
        return made

    def add(self) -> subprocess.Popen[bytes]:
        host, _, port = self.address.rpartition(":")
        for _ in range(120):
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
                return self.start(f"--address={self.address}")
            time.sleep(0.5)
        raise TimeoutError("the head node did not start")

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """With everything it started, as when a machine loses its power."""
        import psutil  # comes with ray

        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        node.wait(30)


@pytest.fixture
def ray_nodes(monkeypatch):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # loopback; a token would be written to the user's home
    nodes = RayNodes()
    yield nodes
    for node in reversed(nodes.started):
        nodes.kill(node)


@pytest.mark.timeout(240)
def test_ray_gives_the_same_bits_although_a_node_dies(tiny, plain, tmp_path, ray_nodes):
    second = ray_nodes.add()
    killed = []

    def kill_one(progress: Progress) -> None:
        if progress.done >= 3 and not killed:
            killed.append(second)
            ray_nodes.kill(second)

    run_study(parse_study(tiny), tmp_path / "ray", engine=Ray(ray_nodes.address), progress=kill_one)
    assert killed
    assert status(tmp_path / "ray") == {"done": 16}
    assert table(tmp_path / "ray") == table(plain)


def test_a_cluster_that_is_not_there_is_named(tiny, tmp_path):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with pytest.raises(UsageError, match=r"no Ray cluster at `127\.0\.0\.1:1`"):
        run_study(parse_study(tiny), tmp_path, engine=Ray("127.0.0.1:1"))
    assert status(tmp_path) == {"pending": 16}


@pytest.mark.timeout(300)
def test_submitit_jobs_give_the_same_bits(tiny, plain, tmp_path):
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    run_study(parse_study(tiny), tmp_path / "jobs", engine=Slurm(cluster="local"))
    assert status(tmp_path / "jobs") == {"done": 16}
    assert table(tmp_path / "jobs") == table(plain)


def test_a_failure_and_foreign_data_come_back_as_sentences(tiny, tmp_path):
    study = parse_study({**tiny, "methods": [{"name": "finetune", "lr": 1e30}], "seeds": [0]})
    run_study(study, tmp_path)
    text = study.model_dump_json()
    failed = next(record for record in cells(tmp_path) if record.state == "failed")
    assert "diverged" in answer(text, failed.id).error
    assert "differ from those" in answer(text, "0" * 32).error
    store = CellStore(tmp_path)
    keep(store, failed.id, Answer("", "no", {"original x": {"seconds": 1.0}}))
    assert store.states()[failed.id] == "failed"
    store.close()
