"""What the ledger promises about requests, fulfilments and versions, in both databases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import ExpungeError, UsageError
from expunge.requests.ledger import rules
from expunge.requests.ledger.ledger import Ledger
from expunge.requests.records import STATES, STEPS, State
from tests.requests.conftest import begun, done, name, version


def test_a_request_is_stored_as_it_was_given(url: str) -> None:
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    with Ledger.open(url, clock=lambda: moment) as ledger:
        request, new = ledger.add(name("4711"), reason="GDPR Art. 17", ticket="T-1", batch="weekly", by="ada")
    assert new
    with Ledger.open(url) as ledger:
        assert ledger.request(request.id) == request
    assert (request.subject, request.reason, request.ticket) == (name("4711"), "GDPR Art. 17", "T-1")
    assert (request.batch, request.by, request.state) == ("weekly", "ada", "received")
    assert request.received_at == request.changed_at == moment


def test_the_same_ticket_is_the_same_request_for_good(ledger: Ledger) -> None:
    first, _ = ledger.add(name(1), ticket="T-1", by="ada")
    ledger.reject(first.id, "unknown person", by="ada")
    again, new = ledger.add(name(1), ticket="T-1", reason="other words", by="bob")
    assert not new
    assert again == ledger.request(first.id)
    assert ledger.add(name(1), ticket="T-2", by="ada")[1]


def test_a_ticket_cannot_change_its_subject(ledger: Ledger) -> None:
    ledger.add(name(1), ticket="T-1", by="ada")
    with pytest.raises(UsageError, match="ticket 'T-1' is request 1 of another subject"):
        ledger.add(name(2), ticket="T-1", by="ada")


def test_without_a_ticket_an_open_request_of_the_subject_is_the_same(ledger: Ledger) -> None:
    first, _ = ledger.add(name(1), by="ada")
    assert ledger.add(name(1), by="bob") == (first, False)
    ledger.reject(first.id, "no such person", by="ada")
    second, new = ledger.add(name(1), by="ada")
    assert new
    assert second.id != first.id


def test_many_rows_are_added_together_or_not_at_all(ledger: Ledger) -> None:
    rows = [{"subject": name(k % 3), "ticket": f"T-{k % 4}" if k % 2 else None} for k in (0, 1, 2, 3, 4, 0, 3)]
    rows[1] = {"subject": name("x"), "ticket": "T-1", "batch": "weekly", "reason": "r"}
    added = ledger.add_many(rows, by="ada")
    assert [new for _, new in added] == [True, True, True, True, True, False, False]
    with pytest.raises(UsageError, match="subject of row 2 must be a hash"):
        ledger.add_many([{"subject": name("new")}, {"subject": "4711"}], by="ada")
    assert len(ledger.requests()) == 5
    assert [request.ticket for request in ledger.requests(batch="weekly")] == ["T-1"]
    assert len([event for event in ledger.events() if event.kind == "received"]) == 5
    assert ledger.add_many([], by="ada") == []


def test_more_rows_than_a_query_takes(ledger: Ledger) -> None:
    rows = [{"subject": name(number), "ticket": f"T-{number}"} for number in range(1200)]
    assert all(new for _, new in ledger.add_many(rows, by="ada"))
    assert not any(new for _, new in ledger.add_many(rows[::-1], by="ada"))
    assert ledger.verify() == []


def test_lists_are_cut_and_filtered(ledger: Ledger) -> None:
    for number in range(5):
        ledger.add(name(number), by="ada")
    ledger.reject(2, "no such person", by="ada")
    assert [request.id for request in ledger.requests("received", limit=2, after=1)] == [3, 4]
    assert [request.id for request in ledger.requests("received", "rejected", limit=2)] == [1, 2]
    assert ledger.counts() == {**dict.fromkeys(STATES, 0), "received": 4, "rejected": 1}
    with pytest.raises(UsageError, match="unknown state `recieved`; did you mean `received`"):
        ledger.requests("recieved")  # type: ignore[arg-type]


def test_a_fulfilment_goes_through_its_steps(ledger: Ledger) -> None:
    work = begun(ledger, "a", "b")
    assert (work.state, work.step, work.requests, work.seed) == ("planned", "planned", (1, 2), 7)
    assert ledger.unfinished() == [work]
    assert {request.state for request in ledger.requests()} == {"planned"}
    assert ledger.request(1).samples == 1

    assert ledger.advance(work.id, "planned", by="ada").state == "running"
    made = version("next", work.parent, method="scrub", options={"lr": 0.1}, seed=7)
    work = ledger.advance(work.id, "unlearned", version=made, facts={"seconds": 2.5}, by="ada")
    assert (work.version, work.facts, work.step) == (made.id, {"seconds": 2.5}, "unlearned")
    assert not ledger.version(made.id).active
    assert ledger.version(made.id).fulfilment == work.id
    ledger.advance(work.id, "audited", audit={"verdict": "pass"}, by="ada")
    ledger.advance(work.id, "recorded", case=name("case"), by="ada")
    work = ledger.advance(work.id, "done", by="ada")

    assert (work.state, work.step, work.case) == ("fulfilled", "done", name("case"))
    assert work.ended_at is not None
    assert work == ledger.fulfilment(work.id)
    assert ledger.unfinished() == []
    assert {request.state for request in ledger.requests()} == {"fulfilled"}
    assert ledger.active().id == made.id
    assert ledger.active().options == {"lr": 0.1}
    assert ledger.version(name("first")).retired_at == work.ended_at
    assert ledger.verify() == []


def test_a_stored_step_is_left_as_it_is(ledger: Ledger) -> None:
    work = done(ledger, "a")
    count = len(ledger.events())
    for step in STEPS:
        assert ledger.advance(work.id, step, audit={"verdict": "other"}, by="eve") == work
    assert len(ledger.events()) == count


def test_steps_are_neither_skipped_nor_empty(ledger: Ledger) -> None:
    work = begun(ledger, "a")
    with pytest.raises(UsageError, match="fulfilment 1 stands at `planned`; the next step is `unlearned`, got `done`"):
        ledger.advance(work.id, "done", by="ada")
    with pytest.raises(UsageError, match="step `unlearned` needs `version`"):
        ledger.advance(work.id, "unlearned", facts={}, by="ada")
    with pytest.raises(UsageError, match="step `unlearned` does not store `case`; allowed: facts, version"):
        ledger.advance(work.id, "unlearned", version=version(1, work.parent), case=name(1), by="ada")
    with pytest.raises(UsageError, match="must have its parent"):
        ledger.advance(work.id, "unlearned", version=version(1, name("else")), by="ada")
    with pytest.raises(UsageError, match="unknown step `finished`"):
        ledger.advance(work.id, "finished", by="ada")  # type: ignore[arg-type]
    assert ledger.fulfilment(work.id) == work  # a refused step leaves nothing, not even `running`
    assert ledger.verify() == []


def test_begin_takes_received_requests_only_and_one_fulfilment_at_a_time(ledger: Ledger) -> None:
    done(ledger, "a")
    second, _ = ledger.add(name("b"), by="ada")
    parent = ledger.active().id

    def begin(requests: dict[int, int], **changed: Any) -> Any:
        given = {"samples": [name("s")], "seed": 1, "parent": parent, "plan": {}, "by": "ada", **changed}
        return ledger.begin(requests, **given)

    with pytest.raises(UsageError, match="request 1 is fulfilled; only one that is received can become planned"):
        begin({second.id: 1, 1: 1})
    assert ledger.request(second.id).state == "received"  # all or nothing
    with pytest.raises(ExpungeError, match=r"is active; a fulfilment starts from it"):
        begin({second.id: 1}, parent=name("first"))
    with pytest.raises(UsageError, match="at least one request"):
        begin({})
    with pytest.raises(UsageError, match="there is no request 99"):
        begin({99: 1})
    with pytest.raises(UsageError, match="number of samples of request 2 must be a whole number from 1 to 1, got 2"):
        begin({second.id: 2})
    with pytest.raises(UsageError, match="each named once"):
        begin({second.id: 1}, samples=[name("s"), name("s")])
    begin({second.id: 1})
    third, _ = ledger.add(name("c"), by="ada")
    with pytest.raises(ExpungeError, match="fulfilment 2 is not finished"):
        begin({third.id: 1})


def test_a_failure_is_said_and_can_be_tried_again(ledger: Ledger) -> None:
    work = begun(ledger, "a")
    ledger.advance(work.id, "unlearned", version=version("bad", work.parent), by="ada")
    failed = ledger.fail(work.id, "the loss became NaN\0\ud800" + "x" * 20_000, by="ada")
    assert failed.state == ledger.request(1).state == "failed"
    assert failed.message.startswith("the loss became NaN��xxx")
    assert failed.message.endswith("…")
    assert ledger.active().id == work.parent
    assert ledger.version(name("bad")).retired_at == failed.ended_at
    with pytest.raises(UsageError, match="fulfilment 1 is failed and goes no further"):
        ledger.advance(work.id, "audited", audit={}, by="ada")

    again = ledger.retry(1, by="ada")
    assert (again.state, again.fulfilment, again.samples, again.message) == ("received", None, None, "")
    assert ledger.fulfilment(work.id).requests == (1,)  # it still says whom it was about
    second = begun(ledger, "a")
    assert second.requests == (1,)
    # The same seed makes the same weights once more.
    ledger.advance(second.id, "unlearned", version=version("bad", work.parent), by="ada")
    ledger.advance(second.id, "audited", audit={}, by="ada")
    ledger.advance(second.id, "recorded", case=name("case"), by="ada")
    ledger.advance(second.id, "done", by="ada")
    assert ledger.active().id == name("bad")
    assert (ledger.active().fulfilment, ledger.active().retired_at) == (second.id, None)
    assert ledger.verify() == []


def test_unlearning_that_changed_nothing_is_no_new_version(ledger: Ledger) -> None:
    work = begun(ledger, "a")
    twin = replace(version("other", work.parent), file=f"{work.parent}.safetensors")
    with pytest.raises(UsageError, match="belongs to another version"):
        ledger.advance(work.id, "unlearned", version=twin, by="ada")
    with pytest.raises(ExpungeError, match=r"made the weights of version .* again: nothing changed"):
        ledger.advance(work.id, "unlearned", version=version("first", work.parent), by="ada")


def test_rollback_goes_back_one_fulfilment_at_a_time(ledger: Ledger) -> None:
    first, second = done(ledger, "a"), done(ledger, "b")
    with pytest.raises(UsageError, match="fulfilment 1 did not make the active version; roll back the later"):
        ledger.rollback(first.id, by="ada")
    assert ledger.rollback(second.id, by="ada").id == first.version
    assert ledger.active().id == first.version
    assert ledger.request(2).state == ledger.fulfilment(2).state == "rolled back"
    with pytest.raises(UsageError, match="fulfilment 2 is rolled back; only one that is fulfilled can become rolled"):
        ledger.rollback(second.id, by="ada")
    assert ledger.rollback(first.id, by="ada").id == name("first")
    ledger.retry(2, by="ada")
    again = begun(ledger, "b")
    with pytest.raises(UsageError, match="fulfilment 1 is rolled back; only"):
        ledger.rollback(first.id, by="ada")
    ledger.fail(again.id, "stopped", by="ada")
    assert ledger.verify() == []


def test_no_way_back_to_a_deleted_file(ledger: Ledger) -> None:
    work = done(ledger, "a")
    with pytest.raises(UsageError, match="is in use and must keep its file"):
        ledger.mark_deleted(ledger.active().id, by="ada")
    gone = ledger.mark_deleted(work.parent, by="ada")
    assert gone.deleted_at is not None
    count = len(ledger.events())
    assert ledger.mark_deleted(work.parent, by="ada") == gone
    assert len(ledger.events()) == count
    with pytest.raises(UsageError, match="cannot be rolled back: the file of version"):
        ledger.rollback(work.id, by="ada")


def test_import_makes_a_version_active_once(ledger: Ledger) -> None:
    with pytest.raises(UsageError, match="no version yet"):
        ledger.active()
    first = ledger.import_version(version("first"), by="ada")
    assert ledger.import_version(version("first"), by="ada") == first == ledger.active()
    ledger.import_version(version("anew", first.id), by="ada")
    assert [found.active for found in (ledger.version(first.id), ledger.active())] == [False, True]
    with pytest.raises(UsageError, match="was part of this lineage before"):
        ledger.import_version(version("first"), by="ada")
    with pytest.raises(UsageError, match="there is no version"):
        ledger.import_version(version("third", name("nobody")), by="ada")
    assert len(ledger.versions()) == 2
    work = begun(ledger, "a")
    with pytest.raises(ExpungeError, match=r"fulfilment 1 is not finished; .* nothing can be imported"):
        ledger.import_version(version("third"), by="ada")
    assert ledger.unfinished() == [work]


def test_versions_are_found_by_prefix(ledger: Ledger) -> None:
    twins = [replace(version(k), id="abcdef" + f"{k}" * 58) for k in (1, 2)]
    for one in twins:
        ledger.import_version(one, by="ada")
    assert ledger.version("abcdef1").id == twins[0].id
    with pytest.raises(UsageError, match="more than one version begins with abcdef"):
        ledger.version("abcdef")
    for wrong in ("abc", "%", "' OR 1=1 --", "ABCDEF1", "abcdef_"):
        with pytest.raises(UsageError, match="at least 6 of the hex digits"):
            ledger.version(wrong)


def _arrive(ledger: Ledger, state: State) -> int:
    """A request in `state`."""
    if state in ("received", "rejected"):
        request, _ = ledger.add(name("a"), by="ada")
        return ledger.reject(request.id, "no", by="ada").id if state == "rejected" else request.id
    if state in ("fulfilled", "rolled back"):
        work = done(ledger, "a")
        if state == "rolled back":
            ledger.rollback(work.id, by="ada")
        return work.requests[0]
    work = begun(ledger, "a")
    if state == "running":
        ledger.advance(work.id, "planned", by="ada")
    elif state == "failed":
        ledger.fail(work.id, "stopped", by="ada")
    return work.requests[0]


@pytest.mark.parametrize("state", STATES)
def test_every_move_that_the_rules_do_not_allow_is_refused(state: State, tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}") as ledger:
        request = _arrive(ledger, state)
        before = (ledger.requests(), ledger.fulfilments(), ledger.head())
        work = ledger.request(request).fulfilment
        tries: dict[State, Callable[[], object]] = {
            "rejected": lambda: ledger.reject(request, "no", by="ada"),
            "received": lambda: ledger.retry(request, by="ada"),
        }
        if work is not None:
            tries["failed"] = lambda: ledger.fail(work, "no", by="ada")
            tries["rolled back"] = lambda: ledger.rollback(work, by="ada")
        for target, attempt in tries.items():
            if target not in rules.MOVES[state]:
                with pytest.raises(UsageError, match=f"is {state}; only one that is .* can become {target}"):
                    attempt()
        assert (ledger.requests(), ledger.fulfilments(), ledger.head()) == before


def test_the_rules_name_every_state() -> None:
    assert set(rules.MOVES) == set(STATES)
    assert set(rules.BRINGS) == set(STEPS)


def test_retry_does_not_double_an_open_request(ledger: Ledger) -> None:
    work = begun(ledger, "a")
    ledger.fail(work.id, "stopped", by="ada")
    ledger.add(name("a"), by="ada")
    with pytest.raises(UsageError, match="request 1 is not needed again: request 2 is the same and open"):
        ledger.retry(1, by="ada")


def test_every_change_is_in_the_log_with_who_and_when(url: str) -> None:
    start = datetime(2026, 3, 1, tzinfo=UTC)
    ticks = iter(range(100))
    with Ledger.open(url, clock=lambda: start + timedelta(minutes=next(ticks))) as ledger:
        done(ledger, "a", by="ada")
        ledger.rollback(1, by="bob")
        ledger.retry(1, by="cyd")
        ledger.reject(1, "withdrawn", by="dan")
        log = [(event.kind, event.by, event.request) for event in ledger.events()]
        assert log == [
            ("imported", "ada", None),
            ("received", "ada", 1),
            ("planned", "ada", None),
            ("planned", "ada", 1),
            ("started", "ada", None),
            ("started", "ada", 1),
            ("unlearned", "ada", None),
            ("audited", "ada", None),
            ("recorded", "ada", None),
            ("fulfilled", "ada", None),
            ("fulfilled", "ada", 1),
            ("rolled back", "bob", None),
            ("rolled back", "bob", 1),
            ("retried", "cyd", 1),
            ("rejected", "dan", 1),
        ]
        assert [event.id for event in ledger.events(after=3, limit=2)] == [4, 5]
        moments = [event.at for event in ledger.events()]
        assert moments == sorted(moments)
        assert moments[0] == start
        assert ledger.head() == ledger.events()[-1].hash
        assert ledger.request(1).message == "withdrawn"
        assert ledger.verify() == []
