"""What the ledger holds, as plain frozen values: requests, fulfilments, model versions, events.

A request goes   received -> planned -> running -> fulfilled -> rolled back -> (received again, by `retry`)
or               received -> rejected;   planned | running -> failed -> (received again, by `retry`)
A fulfilment (one batch of requests, one new model version) goes through STEPS; each step is stored before the next one
begins, so that a process that was killed leaves a fulfilment that the next one takes up where it stood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

State = Literal["received", "planned", "running", "fulfilled", "failed", "rejected", "rolled back"]
STATES: tuple[State, ...] = ("received", "planned", "running", "fulfilled", "failed", "rejected", "rolled back")

Step = Literal["planned", "unlearned", "audited", "recorded", "done"]
STEPS: tuple[Step, ...] = ("planned", "unlearned", "audited", "recorded", "done")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One wish to be forgotten. subject: hex HMAC-SHA256 of the subject's id under the workspace's key, never the id.

    ticket: the caller's own number for it; a second request with the same ticket is the same request. Without one, a
    second open request (received, planned, running) of the same subject is the same request. batch: a name that groups
    requests for `fulfil --batch`. samples: how many training samples it meant, once planned. message: why it was
    rejected or failed, in one sentence. by: who entered it. Times are UTC.
    """

    id: int
    subject: str
    reason: str = ""
    ticket: str | None = None
    batch: str = ""
    state: State = "received"
    received_at: datetime
    by: str = ""
    changed_at: datetime
    fulfilment: int | None = None
    samples: int | None = None
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Version:
    """One set of weights. id: `models.checkpoint.weights_hash`. file: name under the workspace's models/.

    parent: the version it was made from, None for the first. method, options, seed: how it was made ("import" for the
    first). data: content hash of the samples it may know (the training data without all that was forgotten by then).
    knows: number of those samples. retired_at: when another version took its place, or it was given up before it was
    ever active. deleted_at: when its file was removed, for what it still knew.
    """

    id: str
    parent: str | None
    made_at: datetime
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    data: str
    knows: int
    file: str
    fulfilment: int | None = None
    active: bool = False
    retired_at: datetime | None = None
    deleted_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Fulfilment:
    """One batch of requests that is, or was, fulfilled together. state: as of its requests, never `received`.

    samples: hex HMAC-SHA256 of each sample's id. plan: `planning.Plan` as JSON. facts: record of the unlearning. audit:
    record of the audit. case: hash of the case file. Facts of steps that were not reached are empty.
    """

    id: int
    state: State
    step: Step
    requests: tuple[int, ...]
    samples: tuple[str, ...]
    seed: int
    parent: str
    version: str | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    audit: Mapping[str, Any] = field(default_factory=dict)
    case: str | None = None
    began_at: datetime
    ended_at: datetime | None = None
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of the log, which only grows. hash: sha256 over previous and the canonical JSON of all other fields."""

    id: int
    at: datetime
    by: str
    kind: str
    request: int | None = None
    fulfilment: int | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    previous: str
    hash: str
