"""The desk of deletion requests: everything that a person, the command line or the service asks of a workspace.

with Desk.open(Path("workspace")) as desk:
    request, new = desk.add("4711", reason="GDPR Art. 17")
    for fulfilment in desk.fulfil():
        print(desk.sentence(fulfilment))
    assert all(finding.ok for finding in desk.verify(request.id))
"""

from __future__ import annotations

import getpass
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from expunge.api.planning.pace import measure_pace
from expunge.api.planning.planner import Plan, make_plan
from expunge.api.planning.situation import situation_of
from expunge.api.prepare import check_fit, pick_device
from expunge.core.errors import ExpungeError, UsageError
from expunge.core.options import build, to_dict
from expunge.core.run import Progress
from expunge.data.split import Split
from expunge.models.checkpoint import save_weights, weights_hash
from expunge.requests import members
from expunge.requests.case.document import Finding, read_case, verify_case
from expunge.requests.case.keys import PUBLIC, create_keys, load_pepper
from expunge.requests.drift import Advice, Drift, advise
from expunge.requests.fitness import check_fitness
from expunge.requests.fulfilment import Worker, data_hash, fulfilment_seed
from expunge.requests.ledger import lineage
from expunge.requests.ledger.ledger import Ledger
from expunge.requests.records import Fulfilment, Request, Version
from expunge.requests.sharded import cost_of
from expunge.requests.tickets import make_wish, parse_tickets, read_tickets
from expunge.requests.workspace import MEMBERS, SETTINGS, Settings, Workspace
from expunge.training.sisa import Cost

Say = Callable[[str], None]


@dataclass(frozen=True)
class Resolved:
    """What requests mean. Keys are request numbers.

    Attributes:
        samples: keyed hashes of the samples to forget.
        rejected: why a request can never be fulfilled.
        waiting: why a request cannot be fulfilled now, and what to do; it stays received.
    """

    samples: dict[int, np.ndarray]
    rejected: dict[int, str]
    waiting: dict[int, str]


class Desk:
    """One open workspace. by: who works, for the log; default: user@host."""

    def __init__(self, workspace: Workspace, ledger: Ledger, by: str | None = None) -> None:
        self.workspace, self.ledger = workspace, ledger
        self.by = by or f"{getpass.getuser()}@{socket.gethostname()}"
        self._pepper = load_pepper(workspace.keys)

    @classmethod
    def open(cls, folder: Path, *, by: str | None = None) -> Desk:
        """Raises `UsageError` where there is no workspace, or where its ledger or keys cannot be read."""
        workspace = Workspace.open(folder)
        return cls(workspace, Ledger.open(workspace.ledger_url), by)

    @classmethod
    def create(
        cls,
        folder: Path,
        settings: Settings,
        checkpoint: Path,
        train: Split,
        test: Split | None,
        *,
        by: str = "",
        say: Say = lambda text: None,
    ) -> Desk:
        """Make a workspace around a trained model. train: exactly what it was trained on.

        A call that was cut off can be made again; a finished workspace is never overwritten (`UsageError`). The model
        is tried on the data: one that refuses them, or answers them no better than chance, is refused (`DataError`).
        say: is told the accuracies.
        """
        if test is None:
            raise UsageError(f"{settings.data} has no test part, and an audit needs unseen samples; give --test.")
        workspace = Workspace(folder, settings).checked()
        if (folder / SETTINGS).exists():
            raise UsageError(f"{folder} is a workspace already; choose another folder with --workspace.")
        model = workspace.with_weights(train, checkpoint)
        check_fit(model, {"train": train, "test": test}, pick_device(settings.device))
        if not workspace.keys.exists():
            create_keys(workspace.keys)
        pepper = load_pepper(workspace.keys)
        members.owners(pepper, train, settings.id_column)  # refused now rather than at the first request
        known = members.of_samples(pepper, train)
        members.write_members(folder / MEMBERS, known.tolist())
        check_fitness(model, train, test, settings, say)
        name = weights_hash(model)
        save_weights(model, workspace.models / f"{name}.safetensors")
        ledger = Ledger.open(workspace.ledger_url)
        try:
            desk = cls(workspace, ledger, by or None)
            if not ledger.versions():
                version = Version(
                    id=name, parent=None, made_at=datetime.now(UTC), method="import", data=data_hash(known),
                    knows=len(known), file=f"{name}.safetensors", active=True,
                )  # fmt: skip
                ledger.import_version(version, by=desk.by)
            elif ledger.active().id != name:
                raise UsageError("the ledger is that of another workspace; give an empty database with --ledger.")
            workspace.write()  # the last step: only now is it a workspace
        except BaseException:
            ledger.close()
            raise
        return desk

    def close(self) -> None:
        self.ledger.close()

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # taking in

    def add(
        self, subject: str, *, reason: str = "", ticket: str | None = None, batch: str = ""
    ) -> tuple[Request, bool]:
        """(the request, whether it is new). The subject is kept as a keyed hash only."""
        wish = make_wish(subject=subject, reason=reason, ticket=ticket, batch=batch)
        return self.ledger.add(
            members.of_subject(self._pepper, wish.subject),
            reason=wish.reason, ticket=wish.ticket, batch=wish.batch, by=self.by,
        )  # fmt: skip

    def import_tickets(self, source: Path | bytes) -> list[tuple[Request, bool]]:
        """A CSV file of requests, or its content: all of them or none."""
        wishes = parse_tickets(source, "the file") if isinstance(source, bytes) else read_tickets(source)
        rows = [
            {"subject": members.of_subject(self._pepper, wish.subject), "reason": wish.reason, "ticket": wish.ticket,
             "batch": wish.batch}
            for wish in wishes
        ]  # fmt: skip
        return self.ledger.add_many(rows, by=self.by)

    # working

    def plan(
        self, *, batch: str | None = None, method: str = "auto", options: Mapping[str, Any] | None = None
    ) -> Plan | None:
        """What `fulfil` would do with the requests that wait now, None if none does. Changes nothing."""
        worker = self._worker()
        found = self._resolve(worker, self.ledger.requests("received", batch=batch)).samples
        return self._plan(worker, found, method, options) if found else None

    def fulfil(
        self,
        *,
        batch: str | None = None,
        method: str = "auto",
        options: Mapping[str, Any] | None = None,
        resume: bool = False,
        wait: float = 0.0,
        progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        say: Say = lambda text: None,
    ) -> list[Fulfilment]:
        """First what an interrupted call left, then all requests that wait, as one batch; what was ended, in order.

        resume: only what was left, nothing new is begun.
        wait: seconds to wait for another process at work; then `ExpungeError`. Requests that mean nobody, or samples
        that were forgotten before, are rejected with the reason. Old versions that are due are deleted at the end.
        """
        with self.ledger.claim(timeout=wait):
            worker = self._worker(progress, cancelled)
            ended = []
            for one in self.ledger.unfinished():
                say(f"going on with fulfilment {one.id} after `{one.step}`.")
                ended += self._carry_on(worker, one, say)
            started = None if resume else self._begin(worker, batch, method, options, say)
            ended += self._carry_on(worker, started, say) if started is not None else []
            for version in self._purge(days=None):
                say(f"version {version.id[:12]} deleted: it still knew what was to be forgotten.")
            return ended

    def _begin(
        self, worker: Worker, batch: str | None, method: str, options: Mapping[str, Any] | None, say: Say
    ) -> Fulfilment | None:
        waiting = self.ledger.requests("received", batch=batch)
        resolved = self._resolve(worker, waiting)
        for number, message in resolved.rejected.items():
            self.ledger.reject(number, message, by=self.by)
            say(f"request {number} rejected: {message}")
        for number, message in resolved.waiting.items():
            say(f"request {number} waits: {message}")
        found = resolved.samples
        if not found:
            return None
        self._check_fit(worker, say)
        plan = self._plan(worker, found, method, options)
        for line in plan.lines():
            say(line)
        return self._start(found, plan)

    def _check_fit(self, worker: Worker, say: Say) -> None:
        """Say how well the model in force answers the data; `DataError` near chance, unless the settings allow it."""
        model = self.workspace.build(worker.data.train, self.ledger.active().id)
        known = members.select(
            worker.data.train, worker.data.samples, worker.data.members, "train", but=worker.forgotten()
        )
        check_fitness(model, known, worker.data.test, self.workspace.settings, say)

    def _start(self, found: Mapping[int, np.ndarray], plan: Plan) -> Fulfilment:
        return self.ledger.begin(
            {number: len(samples) for number, samples in found.items()},
            samples=sorted({name for samples in found.values() for name in samples.tolist()}),
            seed=fulfilment_seed(self._pepper, min(found)),
            parent=self.ledger.active().id,
            plan=to_dict(plan),
            by=self.by,
        )

    def _carry_on(self, worker: Worker, one: Fulfilment, say: Say) -> list[Fulfilment]:
        """To its end; and after a verdict that is not accepted, retrained, where the settings say so."""
        ended = worker.carry_on(one)
        if ended.state != "failed" or self.workspace.settings.fallback != "retrain" or ended.plan["exact"]:
            return [ended]
        say(f"fulfilment {ended.id} failed ({ended.message}); retraining instead.")
        for number in ended.requests:
            self.ledger.retry(number, by=self.by)
        found = self._resolve(worker, [self.ledger.request(number) for number in ended.requests]).samples
        return [ended, worker.carry_on(self._start(found, self._plan(worker, found, "retrain", None)))]

    def _resolve(self, worker: Worker, requests: Sequence[Request]) -> Resolved:
        """Which samples the requests mean, and what is said of those that mean none."""
        resolved = Resolved({}, {}, {})
        if not requests:
            return resolved
        data, forgotten = worker.data, worker.forgotten()
        trained_on = np.isin(data.samples, list(data.members))
        already = np.isin(data.samples, list(forgotten))
        missing = len(data.members - set(data.samples.tolist()) - forgotten)
        before = {request.subject for request in self.ledger.requests("fulfilled")}
        for request in requests:
            of_subject = data.subjects == request.subject
            wanted = of_subject & trained_on & ~already
            if bool(wanted.any()):
                resolved.samples[request.id] = data.samples[wanted]
            elif bool((of_subject & trained_on).any()) or request.subject in before:
                resolved.rejected[request.id] = "all samples of this subject were forgotten before."
            elif missing:
                resolved.waiting[request.id] = (
                    f"no sample of this subject is in {self.workspace.settings.data} now, but {missing:,} of "
                    f"{len(data.members):,} samples that the model was trained on are missing from it. Restore them "
                    "and run the same command again: what is deleted from the data first cannot be unlearned."
                )
            elif bool((data.test_subjects == request.subject).any()):
                resolved.rejected[request.id] = (
                    "this subject has samples in the test data only; the model was not trained on them. Delete them "
                    "there."
                )
            else:
                resolved.rejected[request.id] = "no sample that the model was trained on belongs to this subject."
        return resolved

    def _plan(
        self, worker: Worker, found: Mapping[int, np.ndarray], method: str, options: Mapping[str, Any] | None
    ) -> Plan:
        data, settings = worker.data, self.workspace.settings
        wanted = {name for samples in found.values() for name in samples.tolist()}
        gone = worker.forgotten()
        forget = members.select(data.train, data.samples, wanted, "forget")
        retain = members.select(data.train, data.samples, data.members, "retain", but=gone | wanted)
        active = self.ledger.active()
        model = self.workspace.build(data.train, active.id)
        situation = situation_of(
            model,
            forget,
            retain if len(retain) else None,
            recipe=self.workspace.recipe,
            budget_seconds=settings.budget_seconds,
            sharded=self._cost_in_shards(data.train, forget, retain),
        )
        pace = measure_pace(model, retain if len(retain) else forget, pick_device(settings.device))
        return make_plan(situation, method, given=options, pace=pace, advice=self.advise())

    def _cost_in_shards(self, train: Split, forget: Split, retain: Split) -> Cost | None:
        shards = self.workspace.settings.shards
        if shards is None:
            return None
        known = train.take(torch.cat([retain.index, forget.index]).sort().values, "known")
        return cost_of(shards, self.workspace.fresh(known), known, forget)

    def _worker(
        self,
        progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Worker:
        return Worker(self.workspace, self.ledger, self._pepper, self.by, progress, cancelled)

    # undoing and cleaning up

    def retry(self, number: int) -> Request:
        """Take a failed or rolled-back request in again."""
        return self.ledger.retry(number, by=self.by)

    def rollback(self, number: int) -> Version:
        """Undo the fulfilment of a request, the last one only; all requests of its batch are rolled back."""
        request = self.ledger.request(number)
        if request.fulfilment is None or request.state != "fulfilled":
            raise UsageError(f"request {number} is {request.state}; only what is fulfilled can be rolled back.")
        if self.ledger.fulfilment(request.fulfilment).plan.get("method") == "sisa":
            raise UsageError(f"request {number} was fulfilled in shards, which forget for good; it cannot be undone.")
        with self.ledger.claim():
            return self.ledger.rollback(request.fulfilment, by=self.by)

    def purge(self, *, now: bool = False) -> list[Version]:
        """Delete the files of versions that still know what was to be forgotten, once they are due, or all `now`."""
        with self.ledger.claim():
            return self._purge(days=0.0 if now else None)

    def _purge(self, days: float | None) -> list[Version]:
        kept = self.workspace.retention
        if days is not None:
            kept = build(type(kept), {**to_dict(kept), "keep_days": days, "keep_versions": 0})
        due = lineage.due(self.ledger, kept, datetime.now(UTC))
        lineage.purge(self.ledger, self.workspace.models, due, by=self.by)
        return due

    # looking

    def advise(self) -> Advice | None:
        """Whether to train again, from the drift that the last fulfilment measured; None before the first one."""
        active = self.ledger.active()
        if active.fulfilment is None:
            return None
        drift = self.ledger.fulfilment(active.fulfilment).audit.get("drift")
        return advise(build(Drift, drift), self.workspace.limits) if drift else None

    def status(self, last: int = 20) -> dict[str, Any]:
        """Counts, the newest requests, the version in force and the advice, JSON-ready."""
        advice = self.advise()
        return {
            "counts": {state: count for state, count in self.ledger.counts().items() if count},
            "requests": [_plain(one) for one in self.ledger.requests()[-last:]],
            "active": _plain(self.ledger.active()),
            "advice": {
                "word": advice.word if advice else "go on",
                "reasons": list(advice.reasons) if advice else ["nothing was unlearned yet."],
                "accuracy_left": advice.left if advice else 1.0,
            },
        }

    def show(self, number: int) -> dict[str, Any]:
        """One request with its fulfilment and its events, JSON-ready."""
        request = self.ledger.request(number)
        work = self.ledger.fulfilment(request.fulfilment) if request.fulfilment is not None else None
        events = [
            _plain(event)
            for event in self.ledger.events()
            if event.request == number or (work is not None and event.fulfilment == work.id)
        ]
        summary: dict[str, Any] = {
            "request": number, "state": request.state, "subject (hash)": request.subject, "reason": request.reason,
            "ticket": request.ticket, "batch": request.batch, "received": request.received_at.isoformat(),
            "samples": request.samples, "message": request.message,
        }  # fmt: skip
        if work is not None:
            summary |= {
                "fulfilment": work.id, "method": work.plan.get("method"), "exact": work.plan.get("exact"),
                "verdict": work.audit.get("word"), "model before": work.parent, "model after": work.version,
                "case file": str(self.case_path(number)) if work.case else None,
            }  # fmt: skip
        shown = {key: value for key, value in summary.items() if value not in (None, "")}
        return {"summary": shown, "request": _plain(request), "fulfilment": _plain(work) if work else None,
                "events": events}  # fmt: skip

    def samples_of(self, number: int) -> list[str]:
        """Ids, in the data, of the samples that a request means: for who has to delete them there."""
        request, worker = self.ledger.request(number), self._worker()
        mine = worker.data.train.ids[worker.data.subjects == request.subject]
        return [str(one) for one in mine.tolist()]

    def versions(self) -> list[dict[str, Any]]:
        """The lineage, oldest first, JSON-ready, each with its `state`: in force, kept or deleted."""
        return [
            {**_plain(one), "state": "in force" if one.active else "deleted" if one.deleted_at else "kept"}
            for one in self.ledger.versions()
        ]

    def sentence(self, one: Fulfilment) -> str:
        """What came of a fulfilment, in one line."""
        what = f"fulfilment {one.id} ({len(one.requests)} requests, {len(one.samples)} samples)"
        if one.state != "fulfilled":
            return f"{what} {one.state}: {one.message}"
        return f"{what}: {one.audit.get('word')}, by {one.plan['method']}; model in force: {str(one.version)[:12]}"

    # proving

    def case_path(self, number: int) -> Path:
        """The case file of a fulfilled request. Raises `UsageError` if there is none."""
        request = self.ledger.request(number)
        if request.fulfilment is None or self.ledger.fulfilment(request.fulfilment).case is None:
            raise UsageError(f"request {number} is {request.state}; there is a case file once it is fulfilled.")
        return self.workspace.cases / f"{request.fulfilment:06d}.json"

    def verify(self, number: int) -> list[Finding]:
        """Check a case file against the public key, the case before it, the weights that are there, and the ledger."""
        path = self.case_path(number)
        one = self.ledger.fulfilment(int(path.stem))
        before = [f.id for f in self.ledger.fulfilments() if f.case is not None and f.id < one.id]
        version = self.ledger.version(str(one.version))
        found = verify_case(
            path,
            self.workspace.keys / PUBLIC,
            previous=self.workspace.cases / f"{before[-1]:06d}.json" if before else None,
            weights=self.workspace.models / version.file if version.deleted_at is None else None,
            ledger=self.ledger,
        )
        return [*found, *(Finding("ledger", False, text) for text in self.ledger.verify())]

    def check(self) -> list[str]:
        """Sentences about everything in the workspace that is not as it was written; empty if all is well."""
        breaks = list(self.ledger.verify())
        for one in self.ledger.fulfilments():
            if one.case is not None:
                found = self.verify(one.requests[0])
                breaks += [f"fulfilment {one.id}: {f.sentence}" for f in found if not f.ok and f.name != "ledger"]
        for version in self.ledger.versions():
            if version.deleted_at is None and not (self.workspace.models / version.file).is_file():
                breaks.append(f"the weights of version {version.id[:12]} are gone from {self.workspace.models}.")
        breaks += [f"{path} belongs to no version." for path in lineage.orphans(self.ledger, self.workspace.models)]
        return breaks

    def export(
        self,
        number: int,
        *,
        pdf: Path | None = None,
        html: Path | None = None,
        json: Path | None = None,
        model: Path | None = None,
    ) -> None:
        """Copies of the case file (page, PDF, signed document) and of the weights that came of it.

        Everything is verified before, as `verify` does, and nothing is written where a check does not hold. Page and
        PDF are made anew from the signed document, because they carry no signature of their own.

        Raises:
            ExpungeError: A check does not hold, or a file is missing or cannot be written.
        """
        from expunge.requests.case.page import build_case_page
        from expunge.requests.case.pdf import build_case_pdf

        path = self.case_path(number)
        one = self.ledger.fulfilment(int(path.stem))
        broken = [finding.sentence for finding in self.verify(number) if not finding.ok]
        if broken:
            raise ExpungeError(
                f"the case file of request {number} is not handed out, because {len(broken)} of its checks do not hold "
                f"(first: {broken[0].rstrip('.')}); restore it from a backup, see `expunge requests verify {number}`."
            )
        document = read_case(path)
        if html is not None:
            build_case_page(document, html)
        if pdf is not None:
            build_case_pdf(document, pdf)
        for target, source in ((json, path), (model, self.workspace.models / f"{one.version}.safetensors")):
            if target is not None:
                _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise ExpungeError(f"{source} is gone; `expunge requests check` says what else is.")
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, part)
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ExpungeError(f"cannot write {target} ({error.strerror}); choose another place.") from None


def _plain(record: Any) -> dict[str, Any]:
    """A record as JSON-ready values; times in ISO 8601."""
    values = asdict(record)
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in values.items()}
