"""What the API takes and gives, as types: the OpenAPI schema is made from these."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from expunge.api.planning.plan import Plan
from expunge.evidence.explain import verdict_label
from expunge.requests.records import Event, Fulfilment, Request, State, Step, Version
from expunge.requests.service.jobs import JobState


class _Taken(BaseModel):
    """Bodies of calls: an unknown name, or a number for a text, is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class NewRequest(_Taken):
    """Somebody wants to be forgotten."""

    subject: str = Field(min_length=1, description="Id of the person or record, as the data write it; kept as a hash.")
    reason: str = Field("", description="Why; it is kept as written, so name nobody in it.")
    ticket: str | None = Field(None, description="Your number of it: the same ticket is never taken twice.")
    batch: str = Field("", description="A name to fulfil it by, such as weekly.")


class NewFulfilment(_Taken):
    """What to fulfil, and how."""

    batch: str | None = Field(None, description="Only requests of this batch.")
    method: str = Field("auto", min_length=1, max_length=100, description="auto, or a name or name/preset.")
    options: dict[str, bool | int | float | str | None] = Field(
        default_factory=dict, description="Options of a method that is named."
    )
    resume: bool = Field(False, description="Only go on with what was interrupted; begin nothing new.")


class RequestView(BaseModel):
    """A request as the ledger holds it; `subject` is a keyed hash."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    subject: str
    reason: str
    ticket: str | None
    batch: str
    state: State
    received_at: datetime
    by: str
    changed_at: datetime
    fulfilment: int | None
    samples: int | None = Field(description="How many training samples it means, once planned.")
    message: str = Field(description="Why it failed or was rejected.")

    @classmethod
    def of(cls, request: Request) -> RequestView:
        return cls.model_validate(request)


class Taken(BaseModel):
    """A request that was taken in, or that was known already."""

    request: RequestView
    new: bool


class Imported(BaseModel):
    """What came of a file of requests."""

    new: int
    known: int
    requests: list[int] = Field(description="Their ids, in the order of the file.")


class RequestPage(BaseModel):
    """Some requests, oldest first."""

    requests: list[RequestView]
    next: int | None = Field(description="Pass it as `after` to read on; null at the end.")


class FulfilmentView(BaseModel):
    """Work on a batch of requests: one new version of the model."""

    id: int
    state: State
    step: Step
    requests: list[int]
    samples: int
    method: str | None
    exact: bool | None
    verdict: str | None
    parent: str
    version: str | None
    case: str | None = Field(description="Hash of the signed case file.")
    began_at: datetime
    ended_at: datetime | None
    message: str

    @classmethod
    def of(cls, one: Fulfilment) -> FulfilmentView:
        return cls(
            id=one.id, state=one.state, step=one.step, requests=list(one.requests), samples=len(one.samples),
            method=one.plan.get("method"), exact=one.plan.get("exact"), verdict=verdict_label(one.audit) or None,
            parent=one.parent, version=one.version, case=one.case, began_at=one.began_at, ended_at=one.ended_at,
            message=one.message,
        )  # fmt: skip


class EventView(BaseModel):
    """One line of the log."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    at: datetime
    by: str
    kind: str

    @classmethod
    def of(cls, event: Event) -> EventView:
        return cls.model_validate(event)


class RequestDetail(BaseModel):
    """Everything about one request."""

    request: RequestView
    fulfilment: FulfilmentView | None
    events: list[EventView]


class VersionView(BaseModel):
    """A version of the model. id: hash of its weights."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    parent: str | None
    made_at: datetime
    method: str
    options: dict[str, Any]
    knows: int = Field(description="How many training samples it may know.")
    fulfilment: int | None
    active: bool
    retired_at: datetime | None
    deleted_at: datetime | None

    @classmethod
    def of(cls, version: Version) -> VersionView:
        return cls.model_validate(version)


class Versions(BaseModel):
    """The lineage of the model, oldest first."""

    versions: list[VersionView]


class AlternativeView(BaseModel):
    """A method that was not taken."""

    method: str
    why_not: str
    seconds: float | None


class PlanView(BaseModel):
    """What would be done with the requests that wait."""

    method: str
    options: dict[str, Any]
    exact: bool
    why: list[str]
    estimate_seconds: float | None
    estimate: str
    forget: int = Field(description="Samples to forget.")
    retain: int = Field(description="Samples that stay.")
    alternatives: list[AlternativeView]
    lines: list[str] = Field(description="All of it in words.")

    @classmethod
    def of(cls, plan: Plan) -> PlanView:
        return cls(
            method=plan.method, options=plan.options, exact=plan.exact, why=list(plan.why),
            estimate_seconds=plan.estimate_seconds, estimate=plan.estimate(), forget=plan.situation.forget,
            retain=plan.situation.retain, lines=plan.lines(),
            alternatives=[
                AlternativeView(method=one.method, why_not=one.why_not, seconds=one.seconds)
                for one in plan.alternatives
            ],
        )  # fmt: skip


class PlanAnswer(BaseModel):
    """The plan; null where no request waits."""

    plan: PlanView | None


class FindingView(BaseModel):
    """One check of a case file."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    ok: bool
    sentence: str


class Verification(BaseModel):
    """All checks of a case file. Rely on it only if `ok`."""

    ok: bool
    findings: list[FindingView]


class ProgressView(BaseModel):
    """`done` of `total` of `what`."""

    what: str
    done: int
    total: int


class OutcomeView(BaseModel):
    """What a job came to, for one fulfilment."""

    fulfilment: int
    state: State
    sentence: str


class JobView(BaseModel):
    """Long work. state: `done` also where a fulfilment failed, which `outcome` says; `failed`: it could not be done."""

    id: str
    kind: Literal["fulfil", "resume"]
    state: JobState
    began_at: datetime
    ended_at: datetime | None
    progress: ProgressView | None
    lines: list[str] = Field(description="What it said, newest last.")
    outcome: list[OutcomeView]
    message: str


class JobAccepted(BaseModel):
    """A job that has begun."""

    job: str = Field(description="Ask for it at /jobs/{job}.")


class AdviceView(BaseModel):
    """Whether the model should be trained again."""

    word: str
    reasons: list[str]


class Status(BaseModel):
    """How the workspace stands."""

    counts: dict[State, int]
    active: VersionView
    advice: AdviceView
    unfinished: list[FulfilmentView] = Field(
        description="What was interrupted; the next job goes on with it, one with `resume` does nothing else."
    )
    job: JobView | None = Field(description="The newest job of this service.")


class Health(BaseModel):
    """The service answers."""

    status: Literal["ok"] = "ok"
