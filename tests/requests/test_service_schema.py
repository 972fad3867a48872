"""The service keeps to its own schema, whatever is sent: Schemathesis makes right and wrong calls from it."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `service`")
pytest.importorskip("schemathesis", reason="needs schemathesis")
import schemathesis
from hypothesis import HealthCheck, settings

from expunge.requests.desk import Desk
from expunge.requests.service.app import create_app
from expunge.requests.service.limits import ServiceLimits
from tests.requests.desks import make_desk

TOKEN = "s" * 40
EXAMPLES = 12  # drawn for each call, after those that cover each constraint of the schema


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The schema of a service with one fulfilled request, one that waits, and one that was rolled back."""
    folder = tmp_path_factory.mktemp("schema")
    with make_desk(folder) as desk:
        desk.add("t1")
        desk.fulfil()
        desk.add("t2")
        desk.fulfil()
        desk.rollback(2)
        desk.add("t3")
    app = create_app(
        lambda: Desk.open(folder / "desk", by="schema"), TOKEN, ServiceLimits(per_second=1e6, burst=10**6),
        hosts=["testserver"],
    )  # fmt: skip
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)
    # 400: what no schema can say, such as text that is no CSV, or a method that does not exist.
    schema.config.checks.positive_data_acceptance.expected_statuses += ["400", "413", "415"]
    return schema


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_every_call_keeps_to_the_schema(case: Any) -> None:
    case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"})


def test_the_schema_names_every_call_and_asks_for_the_token(api: Any) -> None:
    raw = api.raw_schema
    assert set(raw["paths"]) == {
        f"/api/v1{path}"
        for path in (
            "/health", "/requests", "/requests/import", "/requests/{number}", "/requests/{number}/case",
            "/requests/{number}/verify", "/requests/{number}/retry", "/requests/{number}/rollback", "/versions",
            "/status", "/plan", "/fulfilments", "/jobs/{job}", "/jobs/{job}/cancel",
        )
    }  # fmt: skip
    for path, calls in raw["paths"].items():
        for call in calls.values():
            assert call["description"]
            assert bool(call.get("security")) == (path != "/api/v1/health")
            assert call["responses"]["429"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
    assert "HTTPValidationError" not in raw["components"]["schemas"]


def test_jobs_that_were_started_do_end(api: Any) -> None:
    """Runs last: nothing that was sent leaves the worker hanging."""
    end = time.monotonic() + 120
    jobs = api.app.state.service.jobs
    while jobs.running() is not None and time.monotonic() < end:
        time.sleep(0.1)
    assert jobs.running() is None
