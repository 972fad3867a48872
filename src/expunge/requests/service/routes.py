"""The calls of the API. Each one asks the desk; none knows more than it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi import Path as InPath
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as Call

from expunge.core.errors import ExpungeError, UsageError
from expunge.methods import METHODS
from expunge.methods.base import preset_values
from expunge.requests.desk import Desk
from expunge.requests.records import Request, State
from expunge.requests.service import schemas
from expunge.requests.service.answers import API, HTTPRefusal, errors
from expunge.requests.service.jobs import Job, Jobs, Outcome

LARGEST_ID = 2**31 - 1
_MEDIA = {"json": "application/json", "html": "text/html; charset=utf-8", "pdf": "application/pdf"}


@dataclass
class Service:
    """What the calls share. desk: for short calls; jobs open their own."""

    desk: Desk
    jobs: Jobs
    planning: threading.Lock = field(default_factory=threading.Lock)


def _service(call: Call) -> Service:
    return call.app.state.service


At = Annotated[Service, Depends(_service)]
Number = Annotated[int, InPath(ge=1, le=LARGEST_ID, description="Id of a request.")]
JobId = Annotated[str, InPath(pattern=r"^[0-9a-f]{16}$", description="Id of a job.")]
Batch = Annotated[str | None, Query(description="Only requests of this batch.")]

# The gate checks the token, before it lets anything read the body; here the schema says so.
_bearer = HTTPBearer(auto_error=False, description="The token of the service.")
router = APIRouter(prefix=API, dependencies=[Depends(_bearer)])
public = APIRouter(prefix=API)


@public.get("/health", responses={one: errors()[one] for one in (400, 429)})
def health() -> schemas.Health:
    """Whether the service answers; the only call that needs no token."""
    return schemas.Health()


# taking in


@router.post(
    "/requests", status_code=201, responses=errors() | {200: {"model": schemas.Taken, "description": "Known."}}
)
def add_request(at: At, new: schemas.NewRequest, response: Response) -> schemas.Taken:
    """Take in one request. One that is known already is given back, with 200 instead of 201."""
    request, fresh = at.desk.add(new.subject, reason=new.reason, ticket=new.ticket, batch=new.batch)
    if not fresh:
        response.status_code = 200
    return schemas.Taken(request=schemas.RequestView.of(request), new=fresh)


@router.post(
    "/requests/import",
    responses=errors(415),
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "UTF-8 with the column subject, and reason, ticket, batch if there are.",
            "content": {"text/csv": {"schema": {"type": "string", "minLength": 1}}},
        }
    },
)
async def import_requests(at: At, call: Call) -> schemas.Imported:
    """Take in a file of requests, all of them or none."""
    kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "text/csv":
        raise HTTPRefusal(415, "a file of requests is sent with the header `Content-Type: text/csv`.")
    taken = await run_in_threadpool(at.desk.import_tickets, await call.body())
    new = sum(1 for _, fresh in taken if fresh)
    return schemas.Imported(new=new, known=len(taken) - new, requests=[request.id for request, _ in taken])


# looking


@router.get("/requests", responses=errors())
def list_requests(
    at: At,
    state: Annotated[list[State], Query(description="Only in these states; may be repeated.")] = [],  # noqa: B006
    batch: Batch = None,
    after: Annotated[int, Query(ge=0, le=LARGEST_ID, description="Only ids above this one.")] = 0,
    limit: Annotated[int, Query(ge=1, le=500, description="So many at most.")] = 50,
) -> schemas.RequestPage:
    """Requests, oldest first, a page at a time."""
    found = at.desk.ledger.requests(*state, batch=batch, after=after, limit=limit + 1)
    more = found[limit - 1].id if len(found) > limit else None
    return schemas.RequestPage(requests=[schemas.RequestView.of(one) for one in found[:limit]], next=more)


@router.get("/requests/{number}", responses=errors(404))
def show_request(at: At, number: Number) -> schemas.RequestDetail:
    """Everything about one request."""
    request = _found(at.desk, number)
    ledger = at.desk.ledger
    work = ledger.fulfilment(request.fulfilment) if request.fulfilment is not None else None
    events = [
        schemas.EventView.of(event)
        for event in ledger.events()
        if event.request == number
        or (event.request is None and work is not None and event.fulfilment == work.id)  # not of others in the batch
    ]
    view = schemas.FulfilmentView.of(work) if work is not None else None
    return schemas.RequestDetail(request=schemas.RequestView.of(request), fulfilment=view, events=events)


@router.get(
    "/requests/{number}/case",
    response_class=Response,
    responses=errors(404)
    | {
        200: {
            "description": "The case file in the format that was asked for.",
            "content": {
                "application/json": {"schema": {"type": "object"}},
                "text/html": {"schema": {"type": "string"}},
                "application/pdf": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
)
def read_case(at: At, number: Number, format: Annotated[Literal["json", "html", "pdf"], Query()] = "json") -> Response:
    """The signed case file of a fulfilled request: the document itself, its page, or its PDF."""
    path = _case(at.desk, number).with_suffix(f".{format}")
    try:
        content = path.read_bytes()
    except OSError:
        raise HTTPRefusal(404, f"the file {path.name} is gone; `expunge requests check` says what else is.") from None
    headers = {"Content-Disposition": f'inline; filename="case-{path.name}"'}
    if format == "html":  # no script, nothing from elsewhere
        headers["Content-Security-Policy"] = (
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
        )
    return Response(content, media_type=_MEDIA[format], headers=headers)


@router.get("/requests/{number}/verify", responses=errors(404))
def verify_request(at: At, number: Number) -> schemas.Verification:
    """Check its case file again: signature, chain, weights, ledger."""
    _case(at.desk, number)
    found = [schemas.FindingView.model_validate(one) for one in at.desk.verify(number)]
    return schemas.Verification(ok=all(one.ok for one in found), findings=found)


@router.get("/versions", responses=errors())
def list_versions(at: At) -> schemas.Versions:
    """The lineage of the model."""
    return schemas.Versions(versions=[schemas.VersionView.of(one) for one in at.desk.ledger.versions()])


@router.get("/status", responses=errors())
def read_status(at: At) -> schemas.Status:
    """Counts, the version in force, the advice, what was interrupted, and the newest job."""
    ledger, advice, job = at.desk.ledger, at.desk.advise(), at.jobs.last()
    going = at.jobs.running() is not None
    return schemas.Status(
        counts=ledger.counts(),
        active=schemas.VersionView.of(ledger.active()),
        advice=schemas.AdviceView(
            word=advice.word if advice else "go on",
            reasons=list(advice.reasons) if advice else ["nothing was unlearned yet."],
        ),
        unfinished=[] if going else [schemas.FulfilmentView.of(one) for one in ledger.unfinished()],
        job=_job_view(job) if job is not None else None,
    )


# working


@router.get("/plan", responses=errors(409))
def make_plan(
    at: At, batch: Batch = None, method: Annotated[str, Query(min_length=1, max_length=100)] = "auto"
) -> schemas.PlanAnswer:
    """What a fulfilment would do with the requests that wait, and why. Changes nothing, but takes a moment."""
    _check_method(method)
    _no_job(at, "it would be measured too slow")
    if not at.planning.acquire(blocking=False):
        raise HTTPRefusal(429, "another plan is being made; try again in 2 s.", {"Retry-After": "2"})
    try:
        plan = at.desk.plan(batch=batch, method=method)
    finally:
        at.planning.release()
    return schemas.PlanAnswer(plan=schemas.PlanView.of(plan) if plan is not None else None)


@router.post("/fulfilments", status_code=202, responses=errors(409))
def start_fulfilment(at: At, wanted: schemas.NewFulfilment) -> schemas.JobAccepted:
    """Start one long job: what was interrupted first, then all requests that wait, as one batch."""
    _check_method(wanted.method)
    if wanted.options and wanted.method == "auto":
        raise HTTPRefusal(400, "options belong to a method; name it instead of `auto`.")
    job = at.jobs.start("resume" if wanted.resume else "fulfil", functools.partial(_fulfil, wanted))
    if job is None:
        _no_job(at, "one at a time changes the model")
        raise HTTPRefusal(409, "another job has just ended; try again.")
    return schemas.JobAccepted(job=job.id)


def _fulfil(wanted: schemas.NewFulfilment, desk: Desk, job: Job) -> list[Outcome]:
    ended = desk.fulfil(
        batch=wanted.batch, method=wanted.method, options=wanted.options, resume=wanted.resume,
        progress=job.report, cancelled=job.cancelled, say=job.say,
    )  # fmt: skip
    return [{"fulfilment": one.id, "state": one.state, "sentence": desk.sentence(one)} for one in ended]


@router.get("/jobs/{job}", responses=errors(404))
def read_job(at: At, job: JobId) -> schemas.JobView:
    """How far a job is, what it said, what came of it."""
    return _job_view(_job(at, job))


@router.post("/jobs/{job}/cancel", status_code=202, responses=errors(404, 409))
def cancel_job(at: At, job: JobId) -> schemas.JobView:
    """Ask a job to stop after its current epoch. What is finished is kept; the next job goes on."""
    one = _job(at, job)
    if not one.cancel():
        raise HTTPRefusal(409, f"job {job} is {one.state} already.")
    return _job_view(one)


# undoing


@router.post("/requests/{number}/retry", responses=errors(404, 409))
def retry_request(at: At, number: Number) -> schemas.RequestView:
    """Take a failed or rolled-back request in again."""
    _found(at.desk, number)
    return schemas.RequestView.of(_or_conflict(lambda: at.desk.retry(number)))


@router.post("/requests/{number}/rollback", responses=errors(404, 409))
def roll_back_request(at: At, number: Number) -> schemas.VersionView:
    """Put the model back in force that its fulfilment started from; the whole batch counts as rolled back."""
    _found(at.desk, number)
    _no_job(at, "one at a time changes the model")
    return schemas.VersionView.of(_or_conflict(lambda: at.desk.rollback(number)))


def _or_conflict(action: Callable[[], Any]) -> Any:
    """The request exists, so an error says that it is in another state, or that another process is at work."""
    try:
        return action()
    except ExpungeError as error:
        raise HTTPRefusal(409, str(error)) from None


def _found(desk: Desk, number: int) -> Request:
    try:
        return desk.ledger.request(number)
    except UsageError as error:
        raise HTTPRefusal(404, str(error)) from None


def _case(desk: Desk, number: int) -> Path:
    try:
        return desk.case_path(number)
    except UsageError as error:
        raise HTTPRefusal(404, str(error)) from None


def _job(at: Service, name: str) -> Job:
    job = at.jobs.get(name)
    if job is None:
        raise HTTPRefusal(404, f"there is no job {name} in this service; it may be one of before it was started.")
    return job


def _job_view(job: Job) -> schemas.JobView:
    return schemas.JobView.model_validate(job.view())


def _no_job(at: Service, why: str) -> None:
    job = at.jobs.running()
    if job is not None:
        raise HTTPRefusal(409, f"job {job.id} is running, and {why}; wait for it or cancel it.")


def _check_method(name: str) -> None:
    """Names are refused here; options, by the job."""
    if name != "auto":
        base, _, preset = name.partition("/")
        found = METHODS.load(base)
        if preset:
            preset_values(found, preset)
