"""A program of its own, for tests that kill it: one story over a ledger, told by one or more processes.

python -m tests.requests.story kill URL N      every operation of the ledger, killed before every Nth of its statements
python -m tests.requests.story together URL N  N processes at once, from an empty database
python -m tests.requests.story hold URL        claim, say so, and wait
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import count, takewhile

import sqlalchemy as sa

from expunge.requests.ledger.ledger import Ledger
from expunge.requests.records import STEPS, Fulfilment
from tests.requests.conftest import name, version

ROWS = [{"subject": name(number), "ticket": f"T-{number}", "batch": "weekly"} for number in range(6)]
PATIENCE = 200.0


def tell(url: str) -> None:
    """From any point that a killed teller left: receive 6 requests, fulfil 1-2, 3-4 and 5, reject 6, roll back 5."""
    with Ledger.open(url) as ledger:
        if not ledger.versions():
            ledger.import_version(version("first"), by="ada")
        ledger.add_many(ROWS, by="ada")
        with ledger.claim(timeout=PATIENCE):
            if ledger.request(6).state == "received":
                ledger.reject(6, "no such person", by="ada")
            while work := next(iter(ledger.unfinished()), None) or begin(ledger):
                finish(ledger, work)
            if ledger.request(5).state == "fulfilled":
                ledger.rollback(ledger.fulfilments()[-1].id, by="ada")


def begin(ledger: Ledger) -> Fulfilment | None:
    wanted = [request.id for request in ledger.requests("received", limit=2)]
    if not wanted:
        return None
    samples = [name(f"sample of {request}") for request in wanted]
    parent = ledger.active().id
    return ledger.begin(dict.fromkeys(wanted, 1), samples=samples, seed=1, parent=parent, plan={"a": 1}, by="ada")


def finish(ledger: Ledger, work: Fulfilment) -> None:
    for step in STEPS[STEPS.index(work.step) + 1 :]:
        made = version(("made by", work.id), work.parent) if step == "unlearned" else None
        facts, audit = ({"loss": 0.5} if made else None), ({"verdict": "pass"} if step == "audited" else None)
        case = name(("case", work.id)) if step == "recorded" else None
        ledger.advance(work.id, step, by="ada", version=made, facts=facts, audit=audit, case=case)


def check(url: str) -> None:
    """No half state, everything done, nothing twice."""
    with Ledger.open(url) as ledger:
        require(ledger.verify(), [])
        for work in ledger.fulfilments():
            states = {ledger.request(request).state for request in work.requests}
            require(states, {work.state})
        require(sum(one.active for one in ledger.versions()), 1)
        taken = [request for work in ledger.fulfilments() for request in work.requests]
        require(len(taken), len(set(taken)))
        require([work.requests for work in ledger.fulfilments()], [(1, 2), (3, 4), (5,)])
        states = [request.state for request in ledger.requests()]
        require(states, ["fulfilled"] * 4 + ["rolled back", "rejected"])
        require(ledger.active().id, name(("made by", 2)))
        kinds = [event.kind for event in ledger.events()]
        once = {"imported": 1, "received": 6, "unlearned": 3, "audited": 3, "recorded": 3, "rejected": 1}
        pairs = {"planned": 8, "started": 8, "fulfilled": 8, "rolled back": 2}
        require({kind: kinds.count(kind) for kind in kinds}, {**once, **pairs})


def require(found: object, expected: object) -> None:
    if found != expected:
        raise SystemExit(f"expected {expected}, found {found}")


OPERATIONS: list[Callable[[Ledger], object]] = [
    lambda ledger: ledger.import_version(version("first"), by="ada"),
    lambda ledger: ledger.add_many(ROWS, by="ada"),
    lambda ledger: ledger.reject(6, "no such person", by="ada"),
    begin,
    lambda ledger: ledger.advance(1, "planned", by="ada"),
    lambda ledger: ledger.advance(1, "unlearned", version=version("a", name("first")), facts={"loss": 1}, by="ada"),
    lambda ledger: ledger.advance(1, "audited", audit={"verdict": "pass"}, by="ada"),
    lambda ledger: ledger.advance(1, "recorded", case=name("case"), by="ada"),
    lambda ledger: ledger.advance(1, "done", by="ada"),
    lambda ledger: ledger.rollback(1, by="ada"),
    lambda ledger: ledger.retry(1, by="ada"),
    begin,
    lambda ledger: ledger.fail(2, "stopped", by="ada"),
    lambda ledger: ledger.import_version(version("anew"), by="ada"),
    lambda ledger: ledger.mark_deleted(name("first"), by="ada"),
]


def killed(url: str, operation: Callable[[Ledger], object] | None, place: int) -> bool:
    """Whether a process that dies before its `place`th statement or commit died; False: it came to the end before."""
    child = os.fork()
    if child == 0:
        left = count(place - 1, -1)

        def die(*_: object) -> None:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def listen() -> None:
            sa.event.listen(sa.Engine, "before_cursor_execute", die)
            sa.event.listen(sa.Engine, "commit", die)

        code = 1
        try:
            if operation is None:  # opening itself
                listen()
            with Ledger.open(url) as ledger:
                if operation is not None:
                    listen()
                    operation(ledger)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    require(os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, True)
    return os.WIFSIGNALED(status)


def kill(url: str, stride: int) -> None:
    """Every operation of the ledger, killed on its way: nothing of it is left, then all of it is."""
    places = len(list(takewhile(lambda place: killed(url, None, place), count(1, stride))))
    with Ledger.open(url) as ledger:
        for operation in OPERATIONS:
            before = ledger.head()
            for place in count(1, stride):
                if not killed(url, operation, place):
                    break
                places += 1
                require((ledger.head(), ledger.verify()), (before, []))  # every row is as the log says, and no more
            require((ledger.head() != before, ledger.verify()), (True, []))
    print(places)


def together(url: str, tellers: int) -> None:
    """At once, also in making the tables; one of them is killed in the middle."""
    start = time.time() + 0.2
    children = []
    for _ in range(tellers):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                time.sleep(max(0.0, start - time.time()))
                tell(url)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    time.sleep(0.6)
    os.kill(children[0], signal.SIGKILL)
    for child in children:
        status = os.waitpid(child, 0)[1]
        require(child == children[0] or status == 0, True)
    check(url)
    print(tellers)


def hold(url: str) -> None:
    with Ledger.open(url) as ledger, ledger.claim():
        print("held", flush=True)
        time.sleep(PATIENCE)


if __name__ == "__main__":
    job, place, *more = sys.argv[1:]
    if job == "hold":
        hold(place)
    else:
        {"kill": kill, "together": together}[job](place, int(more[0]))
