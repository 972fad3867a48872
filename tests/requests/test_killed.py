"""Real processes: several at once, and killed at every statement. What must hold is in `story`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from expunge.core.errors import ExpungeError
from expunge.requests.ledger.ledger import Ledger
from tests.requests.conftest import Server

ROOT = Path(__file__).parents[2]


def story(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.requests.story", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_on_the_way_nothing_is_half_done(url: str) -> None:
    sqlite = url.startswith("sqlite")
    stride = 1 if sqlite else 5  # each place costs a server's login, and the transactions are the same
    assert int(story("kill", url, str(stride))) > (150 if sqlite else 40)


def test_several_at_once_and_one_of_them_killed(url: str) -> None:
    story("together", url, "4")


def test_a_claim_ends_with_its_process(url: str) -> None:
    Ledger.open(url).close()
    command = [sys.executable, "-m", "tests.requests.story", "hold", url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder, Ledger.open(url) as ledger:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ExpungeError, match="another process is working on the ledger"), ledger.claim(timeout=0.3):
            pytest.fail("two claims at once")
        assert not ledger.claimed
        holder.kill()
        with ledger.claim(timeout=20):
            assert ledger.claimed
    assert not ledger.claimed


def test_a_claim_is_given_back(url: str) -> None:
    with Ledger.open(url) as ledger, Ledger.open(url) as other:
        for owner in (ledger, other, ledger):
            with owner.claim():
                pass


def test_a_claim_that_the_server_forgot_stops_the_work(server: Server) -> None:
    url = server.create()
    with Ledger.open(url) as ledger, ledger.claim():
        ledger.add("a" * 64, by="ada")
        name = url.rpartition("/")[2]
        server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        with pytest.raises(ExpungeError, match="was lost, and the claim with it; start again"):
            ledger.add("b" * 64, by="ada")
        assert len(ledger.requests()) == 1
