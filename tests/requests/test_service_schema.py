"""The service keeps to its own schema, whatever is sent: Schemathesis makes right and wrong calls from it."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `service`")
pytest.importorskip("schemathesis", reason="needs schemathesis")
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from expunge.requests.desk import Desk
from expunge.requests.service.app import create_app
from expunge.requests.service.limits import ServiceLimits
from tests.requests.desks import make_desk

TOKEN = "s" * 40
EXAMPLES = 20  # drawn for each call, right ones and as many wrong ones


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
    schema.config.generation.update(with_security_parameters=False)  # wrong tokens would hide what else is wrong
    return schema


PLAIN = ["GET /health", "GET /versions", "GET /status"]  # nothing can be wrong about them
CALLS = [
    "POST /requests", "POST /requests/import", "GET /requests", "GET /requests/{number}", "GET /requests/{number}/case",
    "GET /requests/{number}/verify", "POST /requests/{number}/retry", "POST /requests/{number}/rollback", "GET /plan",
    "POST /fulfilments", "GET /jobs/{job}", "POST /jobs/{job}/cancel",
]  # fmt: skip
WORKS = dict.fromkeys([*PLAIN, "GET /requests", "GET /plan"], 200) | {
    "POST /requests": 201, "POST /requests/import": 400, "POST /fulfilments": 202,
}  # fmt: skip
BOTH = [(call, GenerationMode.POSITIVE) for call in PLAIN + CALLS] + [(call, GenerationMode.NEGATIVE) for call in CALLS]


@pytest.mark.parametrize(("label", "mode"), BOTH, ids=lambda value: getattr(value, "value", value))
def test_every_call_keeps_to_the_schema(api: Any, label: str, mode: GenerationMode) -> None:
    """All checks: no 5xx; status, content type and body as stated; right calls are taken and wrong ones refused."""
    method, _, path = label.partition(" ")
    seen: set[int] = set()

    @given(case=api[f"/api/v1{path}"][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck]
    )
    def check(case: Any) -> None:
        seen.add(case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}).status_code)

    check()
    assert 401 not in seen
    if mode is GenerationMode.POSITIVE:
        assert WORKS.get(label, 404) in seen


def test_the_schema_names_every_call_and_asks_for_the_token(api: Any) -> None:
    raw = api.raw_schema
    stated = {f"{method.upper()} {path.removeprefix('/api/v1')}" for path, at in raw["paths"].items() for method in at}
    assert stated == {*PLAIN, *CALLS}
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
