"""Shared by all tests: one thread (two workers must not fight), a private cache, and no network."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests never read or fill the user's cache; subprocesses inherit the folder."""
    before = os.environ.get("EXPUNGE_CACHE")
    os.environ["EXPUNGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("EXPUNGE_CACHE") if before is None else os.environ.update(EXPUNGE_CACHE=before)


@pytest.fixture
def tmp_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EXPUNGE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _loopback_only() -> Iterator[None]:
    """For the session, so that fixtures which live longer than one test are held to it too."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        # An address that is no tuple is the path of a Unix socket, thus on this machine.
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests must not reach the network, {address[0]} was tried")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real MNIST and CIFAR-10: $EXPUNGE_TEST_DATA, or `../shared/data` beside the checkout."""
    folder = Path(os.environ.get("EXPUNGE_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (folder / "mnist").is_dir():
        pytest.skip(f"real data are not at {folder}; set EXPUNGE_TEST_DATA")
    return folder
