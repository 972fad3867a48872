"""The walls that `conftest.py` puts around every test."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch

from expunge.data.cache import cache_root


@pytest.mark.parametrize("host", ["192.0.2.1", "example.invalid", "local"])
def test_the_network_is_out_of_reach(host: str) -> None:
    with socket.socket() as sock, pytest.raises(OSError, match=f"must not reach the network, {host}"):
        sock.connect((host, 80))


def test_loopback_stays_reachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()


def test_the_cache_is_not_the_users(tmp_cache: Path) -> None:
    assert cache_root() == tmp_cache
    assert Path.home() not in tmp_cache.parents


def test_one_thread_per_worker() -> None:
    assert torch.get_num_threads() == 1
    assert os.environ["OMP_NUM_THREADS"] == "1"
