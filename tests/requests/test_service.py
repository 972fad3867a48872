"""The service: who is let in, what is refused and in which words, and the whole life of a request through the API."""

from __future__ import annotations

import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `service`")
pytest.importorskip("httpx", reason="the test client needs httpx")
from starlette.testclient import TestClient

from expunge.core.errors import UsageError
from expunge.requests.desk import Desk
from expunge.requests.service.app import create_app
from expunge.requests.service.limits import Rate, ServiceLimits
from expunge.requests.service.server import serve as run
from expunge.requests.service.token import draw_token, read_token
from tests.requests.desks import make_desk

TOKEN = "t" * 40
PATIENT = ServiceLimits(per_second=10_000, burst=10_000)
Serve = Callable[..., TestClient]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service")
    make_desk(folder).close()
    return folder / "desk"


@pytest.fixture
def serve(original: Path, tmp_path: Path) -> Iterator[Serve]:
    """Clients of services over one copy of the workspace, with the token unless `headers` says otherwise."""
    place = tmp_path / "desk"
    shutil.copytree(original, place)
    open_clients: list[TestClient] = []

    def start(limits: ServiceLimits = PATIENT, headers: dict[str, str] | None = None) -> TestClient:
        app = create_app(lambda: Desk.open(place, by="tests"), TOKEN, limits)
        client = TestClient(
            app, base_url="http://127.0.0.1:8777", raise_server_exceptions=False,
            headers={"Authorization": f"Bearer {TOKEN}"} if headers is None else headers,
        )  # fmt: skip
        open_clients.append(client)
        client.__enter__()
        return client

    yield start
    for client in open_clients:
        client.__exit__(None, None, None)


def error(answer: Any, status: int, *words: str) -> str:
    """The one sentence of an answer that must be an error."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    said = str(answer.json()["error"])
    assert "Traceback" not in said
    assert "\n" not in said
    for word in words:
        assert word in said
    return said


def ended(client: TestClient, job: str, patience: float = 120) -> dict[str, Any]:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = client.get(f"/api/v1/jobs/{job}").json()
        if found["ended_at"] is not None:
            return dict(found)
        time.sleep(0.05)
    raise TimeoutError(f"job {job} did not end")


def fulfil(client: TestClient, **wanted: Any) -> dict[str, Any]:
    answer = client.post("/api/v1/fulfilments", json=wanted)
    assert answer.status_code == 202, answer.text
    return ended(client, answer.json()["job"])


# the gate


@pytest.mark.parametrize(
    "given",
    [{}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {TOKEN}x"},
     {"Authorization": f"Basic {TOKEN}"}, {"Authorization": TOKEN}, {"Authorization": "Bearer ttt\xe9"}],
)  # fmt: skip
def test_without_the_token_nothing_is_said_and_nothing_done(serve: Serve, given: dict[str, str]) -> None:
    client = serve(headers={name: value.encode("latin-1") for name, value in given.items()})  # type: ignore[misc]
    for method, path in (("GET", "status"), ("GET", "nowhere"), ("POST", "requests"), ("POST", "fulfilments")):
        answer = client.request(method, f"/api/v1/{path}", content=b"{no json")
        error(answer, 401, "token")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/api/v1/health").json() == {"status": "ok"}
    assert client.get("/").status_code == 200


def test_a_wrong_token_and_a_missing_one_are_told_apart(serve: Serve) -> None:
    missing = error(serve(headers={}).get("/api/v1/status"), 401)
    wrong = error(serve(headers={"Authorization": f"Bearer {TOKEN}x"}).get("/api/v1/status"), 401)
    assert "needs the token" in missing
    assert "the token is wrong" in wrong
    assert TOKEN not in wrong


@pytest.mark.parametrize("host", ["evil.test", "evil.test:8777", "127.0.0.1.evil.test", "", "[::1]evil", "[::2]:8777"])
def test_a_foreign_host_name_is_refused(serve: Serve, host: str) -> None:
    error(serve().get("/api/v1/health", headers={"Host": host}), 400, "127.0.0.1")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "[::1]:8777", "127.0.0.1"])
def test_own_host_names_are_taken(serve: Serve, host: str) -> None:
    assert serve().get("/api/v1/health", headers={"Host": host}).status_code == 200


def test_large_bodies_are_refused_before_they_are_read(serve: Serve) -> None:
    client = serve(ServiceLimits(body_bytes=1000, import_bytes=2000, per_second=1000))

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 100

    long = {"subject": "1", "reason": "x" * 1000}
    error(client.post("/api/v1/requests", json=long), 413, "1,000 bytes")
    error(client.post("/api/v1/requests", content=chunks(), headers={"Content-Type": "application/json"}), 413)
    csv = {"Content-Type": "text/csv"}
    error(client.post("/api/v1/requests/import", content=b"x" * 2001, headers=csv), 413, "2,000 bytes")
    error(client.post("/api/v1/requests/import", content=chunks(), headers=csv), 413)
    assert client.get("/api/v1/requests").json()["requests"] == []


def test_too_many_calls_are_refused_for_a_while(serve: Serve) -> None:
    client = serve(ServiceLimits(per_second=0.01, burst=3), headers={})
    codes = [client.get("/api/v1/status").status_code for _ in range(3)]  # guesses of the token count too
    answer = client.get("/api/v1/health")
    assert codes == [401] * 3
    error(answer, 429, "try again")
    assert 0 < int(answer.headers["retry-after"]) <= 100


def test_the_bucket_fills_again_and_is_each_clients_own() -> None:
    now = [0.0]
    rate = Rate(2.0, 3, clock=lambda: now[0])
    assert [rate.wait("a") for _ in range(5)] == [0, 0, 0, 1, 1]
    assert rate.wait("b") == 0
    now[0] = 1.0
    assert [rate.wait("a") for _ in range(3)] == [0, 0, 1]
    now[0] = 1000.0
    assert [rate.wait("a") for _ in range(4)] == [0, 0, 0, 1]


def test_every_answer_forbids_framing_sniffing_and_keeping(serve: Serve) -> None:
    client = serve()
    for path in ("/", "/service.js", "/service.css", "/api/v1/status", "/nowhere", "/api/v1/requests/99"):
        headers = client.get(path, headers={"Origin": "http://evil.test"}).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert "set-cookie" not in headers
        assert "access-control-allow-origin" not in headers
    assert "script-src 'self';" in client.get("/").headers["content-security-policy"]


# requests


def test_a_request_is_taken_once(serve: Serve) -> None:
    client = serve()
    wish = {"subject": "t3", "reason": "GDPR Art. 17", "ticket": "T-1", "batch": "weekly"}
    first, second = (client.post("/api/v1/requests", json=wish) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 200)
    assert (first.json()["new"], second.json()["new"]) == (True, False)
    assert first.json()["request"] == second.json()["request"]
    assert first.json()["request"]["state"] == "received"
    assert "t3" not in first.text


@pytest.mark.parametrize(
    ("wish", "status", "words"),
    [
        ({"subject": " "}, 400, "needs a subject"),
        ({"subject": ""}, 422, "`subject`"),
        ({}, 422, "`subject`"),
        ({"subject": 4711}, 422, "`subject`"),
        ({"subject": "1", "because": "x"}, 422, "`because`"),
        ({"subject": "1\0"}, 400, "U+0000"),
        ({"subject": "1", "ticket": "a\nb"}, 400, "line break"),
        ({"subject": "1", "batch": "x" * 101}, 400, "100"),
        ([1], 422, ""),
    ],
)
def test_wrong_requests_are_refused(serve: Serve, wish: Any, status: int, words: str) -> None:
    client = serve()
    error(client.post("/api/v1/requests", json=wish), status, words)
    assert client.get("/api/v1/status").json()["counts"]["received"] == 0


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe{}", b'{"subject": "\\ud800"}', b"[" * 50_000, b'{"subject": NaN}'])
def test_bodies_that_are_no_json_are_refused(serve: Serve, body: bytes) -> None:
    answer = serve().post("/api/v1/requests", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    error(answer, answer.status_code)


def test_a_file_of_requests_is_taken_as_a_whole_or_not_at_all(serve: Serve) -> None:
    client = serve()

    def send(content: bytes, kind: str = "text/csv") -> Any:
        return client.post("/api/v1/requests/import", content=content, headers={"Content-Type": kind})

    for content, words in (
        (b"subject\n1\n2,3\n", "line 3"), (b"who\n1\n", "`who`"), (b"subject\n\xff\n", "UTF-8"), (b"", "subject"),
        (b"subject\n", "no requests"), (b"PK\x03\x04\x00\x00", "column"), (b'subject\n"1', "CSV"),
    ):  # fmt: skip
        said = error(send(content), 400, words)
        assert "tmp" not in said
    error(send(b"subject\n1\n", "application/json"), 415, "text/csv")
    assert client.get("/api/v1/requests").json()["requests"] == []
    answer = send('subject,reason,ticket\r\nt1,"π\r\n2",A\r\nt2,,B\r\nt1,,A\r\n'.encode(), "text/csv; charset=utf-8")
    assert answer.json() == {"new": 2, "known": 1, "requests": [1, 2, 1]}
    assert client.get("/api/v1/requests/1").json()["request"]["reason"] == "π\n2"


def test_the_list_is_filtered_and_paged(serve: Serve) -> None:
    client = serve()
    rows = "".join(f"t{i},{'odd' if i % 2 else 'even'}\n" for i in range(7))
    csv = {"Content-Type": "text/csv"}
    client.post("/api/v1/requests/import", content=f"subject,batch\n{rows}".encode(), headers=csv)

    def ids(**asked: Any) -> tuple[list[int], int | None]:
        found = client.get("/api/v1/requests", params=asked).json()
        return [one["id"] for one in found["requests"]], found["next"]

    assert ids() == ([1, 2, 3, 4, 5, 6, 7], None)
    assert ids(limit=3) == ([1, 2, 3], 3)
    assert ids(limit=3, after=3) == ([4, 5, 6], 6)
    assert ids(limit=3, after=6) == ([7], None)
    assert ids(limit=7) == ([1, 2, 3, 4, 5, 6, 7], None)
    assert ids(batch="odd") == ([2, 4, 6], None)
    assert ids(state=["failed", "received"], batch="even", limit=2) == ([1, 3], 3)
    assert ids(state="rolled back") == ([], None)
    assert ids(batch="' OR 1=1 --") == ([], None)
    error(client.get("/api/v1/requests", params={"state": "lost"}), 422, "`state")
    error(client.get("/api/v1/requests", params={"limit": 501}), 422, "`limit`")
    error(client.get("/api/v1/requests", params={"batch": "\0"}), 400)


@pytest.mark.parametrize(
    "number", ["0", "-1", "1e3", "2147483648", "9" * 5000, "1%00", "..%2f..%2fkeys%2fpepper", "1;DROP TABLE requests"]
)
@pytest.mark.parametrize("what", ["", "/case", "/verify"])
def test_ids_that_are_none_are_refused(serve: Serve, number: str, what: str) -> None:
    answer = serve().get(f"/api/v1/requests/{number}{what}")
    assert answer.status_code in (404, 422), answer.text
    error(answer, answer.status_code)


def test_what_is_not_there_is_said_so(serve: Serve) -> None:
    client = serve()
    for path in ("/requests/7", "/requests/7/case", "/requests/7/verify", "/jobs/0123456789abcdef"):
        error(client.get(f"/api/v1{path}"), 404, "there is no")
    for path in ("/requests/7/retry", "/requests/7/rollback", "/jobs/0123456789abcdef/cancel"):
        error(client.post(f"/api/v1{path}"), 404, "there is no")
    error(client.get("/api/v1/jobs/..%2f..%2fetc"), 404)
    error(client.get("/api/v1/jobs/xyz"), 422)
    error(client.get("/../../etc/passwd"), 404)
    error(client.delete("/api/v1/requests"), 405)
    client.post("/api/v1/requests", json={"subject": "t1"})
    error(client.get("/api/v1/requests/1/case"), 404, "received")
    error(client.post("/api/v1/requests/1/retry"), 409, "received")
    error(client.post("/api/v1/requests/1/rollback"), 409, "received")


# work


def test_the_whole_life_of_a_request(serve: Serve) -> None:
    client = serve()
    assert client.get("/api/v1/plan").json() == {"plan": None}
    assert fulfil(client)["outcome"] == []
    markup = "<script>alert(1)</script>"
    client.post("/api/v1/requests", json={"subject": "t3", "reason": markup, "ticket": markup, "batch": markup})
    client.post("/api/v1/requests", json={"subject": "nobody"})
    plan = client.get("/api/v1/plan").json()["plan"]
    assert (plan["forget"], plan["retain"], plan["exact"]) == (3, 117, True)
    before = client.get("/api/v1/status").json()["active"]["id"]

    job = fulfil(client)

    assert (job["state"], job["kind"], job["message"]) == ("done", "fulfil", "")
    assert [one["state"] for one in job["outcome"]] == ["fulfilled"]
    assert any("request 2 rejected" in line for line in job["lines"])
    assert job["progress"]["done"] == job["progress"]["total"]
    one = client.get("/api/v1/requests/1").json()
    assert one["request"]["state"] == "fulfilled"
    assert one["fulfilment"]["samples"] == 3
    assert len(one["events"]) > 4
    now = client.get("/api/v1/status").json()
    assert now["active"]["id"] == one["fulfilment"]["version"] != before
    assert now["counts"]["rejected"] == 1
    assert now["job"]["id"] == job["id"]

    case = client.get("/api/v1/requests/1/case")
    assert case.json()["hash"] == one["fulfilment"]["case"]
    page = client.get("/api/v1/requests/1/case", params={"format": "html"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "sandbox" in page.headers["content-security-policy"]
    assert markup not in page.text
    assert client.get("/api/v1/requests/1/case", params={"format": "pdf"}).content.startswith(b"%PDF-")
    error(client.get("/api/v1/requests/1/case", params={"format": "exe"}), 422, "`format`")
    assert client.get("/api/v1/requests/1/verify").json()["ok"] is True

    error(client.post("/api/v1/requests/1/retry"), 409, "fulfilled")
    assert client.post("/api/v1/requests/1/rollback").json()["id"] == before
    assert client.get("/api/v1/requests/1").json()["request"]["state"] == "rolled back"
    error(client.post("/api/v1/requests/1/rollback"), 409, "rolled back")
    assert client.post("/api/v1/requests/1/retry").json()["state"] == "received"
    versions = client.get("/api/v1/versions").json()["versions"]
    assert [version["active"] for version in versions] == [True, False]


def test_a_changed_case_file_is_found(serve: Serve, tmp_path: Path) -> None:
    client = serve()
    client.post("/api/v1/requests", json={"subject": "t3"})
    fulfil(client)
    path = tmp_path / "desk" / "cases" / "000001.json"
    path.write_text(path.read_text().replace('"retrain"', '"retrace"'))
    assert client.get("/api/v1/requests/1/verify").json()["ok"] is False
    path.unlink()
    error(client.get("/api/v1/requests/1/case"), 404, "is gone")


def test_one_job_at_a_time_which_can_be_cancelled_and_gone_on_with(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expunge.requests.service import jobs

    report = jobs.Job.report

    def slow(self: jobs.Job, progress: Any) -> None:
        report(self, progress)
        for _ in range(200):
            if self.cancelled():
                return
            time.sleep(0.05)

    client = serve()
    client.post("/api/v1/requests", json={"subject": "t3"})
    with monkeypatch.context() as patch:
        patch.setattr(jobs.Job, "report", slow)
        job = client.post("/api/v1/fulfilments", json={}).json()["job"]
        end = time.monotonic() + 60
        while client.get(f"/api/v1/jobs/{job}").json()["progress"] is None and time.monotonic() < end:
            time.sleep(0.05)
        error(client.post("/api/v1/fulfilments", json={}), 409, job)
        error(client.get("/api/v1/plan"), 409, job)
        assert client.post("/api/v1/requests", json={"subject": "t4"}).status_code == 201  # taking in goes on
        assert client.get("/api/v1/status").json()["job"]["state"] == "running"
        assert client.post(f"/api/v1/jobs/{job}/cancel").json()["state"] == "cancelling"
        assert ended(client, job)["state"] == "cancelled"
    error(client.post(f"/api/v1/jobs/{job}/cancel"), 409, "cancelled")

    again = serve()  # as after a crash: another service on the same workspace
    left = again.get("/api/v1/status").json()
    assert [(one["id"], one["step"]) for one in left["unfinished"]] == [(1, "planned")]
    assert left["job"] is None
    resumed = fulfil(again, resume=True)
    assert (resumed["kind"], [one["state"] for one in resumed["outcome"]]) == ("resume", ["fulfilled"])
    counts = again.get("/api/v1/status").json()["counts"]
    assert (counts["fulfilled"], counts["received"]) == (1, 1)  # nothing new was begun
    assert fulfil(again, resume=True)["outcome"] == []


def test_a_job_that_cannot_be_done_says_why(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve()
    client.post("/api/v1/requests", json={"subject": "t3"})
    error(client.post("/api/v1/fulfilments", json={"method": "scrbu"}), 400, "did you mean `scrub`?")
    error(client.get("/api/v1/plan", params={"method": "scrub/best"}), 400, "best")
    error(client.post("/api/v1/fulfilments", json={"options": {"epochs": 1}}), 400, "auto")
    job = fulfil(client, method="finetune", options={"epochz": 1})
    assert job["state"] == "failed"
    assert "epochz" in job["message"]
    with Desk.open(tmp_path / "desk") as other, other.ledger.claim():
        job = fulfil(client)
        assert job["state"] == "failed"
        assert "another process" in job["message"]
    monkeypatch.setattr(Desk, "fulfil", lambda self, **asked: 1 / 0)
    job = fulfil(client)
    assert job["message"] == "unexpected ZeroDivisionError; the log of the service says where."


def test_a_defect_is_one_sentence_too(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve()
    monkeypatch.setattr(Desk, "advise", lambda self: 1 / 0)
    error(client.get("/api/v1/status"), 500, "unexpected ZeroDivisionError")


# the token


def test_a_drawn_token_is_new_and_the_owners_alone(tmp_path: Path) -> None:
    first, path = draw_token(tmp_path)
    second, again = draw_token(tmp_path)
    assert path == again
    assert first != second == read_token(path)
    assert len(second) >= 43
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 600, b"two tokens " * 5, "π".encode() * 40, b"\0" * 40])
def test_bad_tokens_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="must hold one token") as caught:
        read_token(path)
    assert "two tokens" not in str(caught.value)


def test_a_token_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o644)
    with pytest.raises(UsageError, match="open to other users"):
        read_token(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_token(tmp_path / "none")


# the command


def test_a_place_that_cannot_be_served_on(original: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="choose another --port"):
        run(original, port=taken.getsockname()[1])
    for host in ("192.0.2.1", "x" * 300):
        with pytest.raises(UsageError, match=r"127\.0\.0\.1|--port"):
            run(original, host=host)
    with pytest.raises(UsageError, match="is no workspace"):
        run(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        run(original, port=0, token_file=tmp_path / "none")
    assert not (original / "keys" / "service-token").exists()


def test_without_the_extra_a_sentence_says_what_to_install(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.cli.requests import serve

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "expunge.requests.service.server")
    with pytest.raises(UsageError, match=r"pip install 'expunge\[service\]'"):
        serve(original)
