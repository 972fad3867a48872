"""The desk of deletion requests: everything that a person, the command line or the service asks of a workspace.

with Desk.open(Path("workspace")) as desk:
    request, new = desk.add("4711", reason="GDPR Art. 17")
    for fulfilment in desk.fulfil():
        print(desk.sentence(fulfilment))
    assert all(finding.ok for finding in desk.verify(request.id))
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from expunge.api.planning.pace import measure_pace
from expunge.api.planning.plan import Plan
from expunge.api.planning.planner import make_plan
from expunge.api.planning.situation import situation_of
from expunge.api.prepare import check_fit, pick_device
from expunge.core.entries import KINDS
from expunge.core.errors import ExpungeError, UsageError
from expunge.core.options import to_dict
from expunge.core.run import Progress
from expunge.data.cache import cache_root
from expunge.data.split import Split
from expunge.models.checkpoint import save_weights, weights_hash
from expunge.requests import copies, members
from expunge.requests.case.document import PURGE_KIND, Finding, read_case, verify_case
from expunge.requests.case.keys import PUBLIC, create_keys, load_pepper
from expunge.requests.fitness import check_fitness
from expunge.requests.fulfilment import Worker, data_hash, fulfilment_seed
from expunge.requests.ledger import lineage
from expunge.requests.ledger.ledger import Ledger
from expunge.requests.pooled import Pool, pooled_audit
from expunge.requests.purge import records_of
from expunge.requests.records import Fulfilment, Request, Version
from expunge.requests.register import Register, Say
from expunge.requests.settings import MEMBERS, SETTINGS, WorkspaceSettings
from expunge.requests.sharded import cost_of
from expunge.requests.workspace import Workspace
from expunge.training.sisa import Cost

_SHOWN = 10  # copies that `fulfil` lists


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


class Desk(Register):
    """One open workspace with its models and data. by: who works, for the log; default: user@host."""

    workspace: Workspace

    @classmethod
    def open(cls, folder: Path, *, by: str | None = None) -> Self:
        """As `Register.open`; also settings about models and audits are checked."""
        workspace = Workspace.open(folder)
        return cls(workspace, Ledger.open(workspace.ledger_url), by)

    @classmethod
    def create(
        cls,
        folder: Path,
        settings: WorkspaceSettings,
        checkpoint: Path,
        train: Split,
        test: Split | None,
        *,
        by: str = "",
        say: Say = lambda text: None,
    ) -> Self:
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
            due = lineage.due(self.ledger, self.workspace.retention, datetime.now(UTC))
            for version in lineage.purge(self.ledger, self.workspace.models, due, by=self.by):
                say(f"version {version.id[:12]} deleted: it still knew what was to be forgotten.")
            self._say_copies(ended, say)
            return ended

    def _say_copies(self, ended: Sequence[Fulfilment], say: Say) -> None:
        """List what in the cache was made of the samples that were just forgotten."""
        done = [one.id for one in ended if one.state == "fulfilled"]
        found = copies.find(self.workspace.copies, self._pepper, done, cache_root())
        if not found:
            return
        noun = "copy" if len(found) == 1 else "copies"
        say(f"{len(found):,} {noun} of the samples in the cache {cache_root()}:")
        for one in found[:_SHOWN]:
            say(f"  {one.entry.name}  {one.entry.bytes:,} bytes  {KINDS[one.entry.kind]}: {one.why}")
        if len(found) > _SHOWN:
            say(f"  and {len(found) - _SHOWN:,} more")
        say("`expunge requests purge` removes them, and versions of the model that still know the samples.")

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
        before = {data.spellings.get(request.subject, request.subject) for request in self.ledger.requests("fulfilled")}
        for request in requests:
            subject = data.spellings.get(request.subject, request.subject)
            of_subject = data.subjects == subject
            wanted = of_subject & trained_on & ~already
            if bool(wanted.any()):
                resolved.samples[request.id] = data.samples[wanted]
            elif bool((of_subject & trained_on).any()) or subject in before:
                resolved.rejected[request.id] = "all samples of this subject were forgotten before."
            elif missing:
                resolved.waiting[request.id] = (
                    f"no sample of this subject is in {self.workspace.settings.data} now, but {missing:,} of "
                    f"{len(data.members):,} samples that the model was trained on are missing from it. Restore them "
                    "and run the same command again: what is deleted from the data first cannot be unlearned."
                )
            elif bool((data.test_subjects == subject).any()):
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

    # looking

    def samples_of(self, number: int) -> list[str]:
        """Ids, in the data, of the samples that a request means: for who has to delete them there."""
        request, worker = self.ledger.request(number), self._worker()
        subject = worker.data.spellings.get(request.subject, request.subject)
        mine = worker.data.train.ids[worker.data.subjects == subject]
        return [str(one) for one in mine.tolist()]

    def pool(self, *, references: int | None = None, **given: Any) -> Pool:
        """One audit of the model in force over all requests that it must have forgotten; see `requests.pooled`."""
        return pooled_audit(self._worker(), references=references, **given)

    # proving

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
        for place, digest in records_of(self.ledger, self.workspace, one.id):
            found += self._verify_record(place, digest)
        return [*found, *(Finding("ledger", False, text) for text in self.ledger.verify())]

    def _verify_record(self, path: Path, digest: str) -> list[Finding]:
        """Findings about the record of a purge, named by its file. digest: its hash, as the ledger holds it."""
        found = verify_case(path, self.workspace.keys / PUBLIC, kind=PURGE_KIND)
        if found[0].ok:
            same = read_case(path, PURGE_KIND)["hash"] == digest
            text = "holds" if same else "does not hold"
            found.append(Finding("ledger", same, f"the ledger {text} this record."))
        return [Finding("purge", one.ok, f"{path.name}: {one.sentence}") for one in found]

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

        Page and PDF also say what was purged since; beside `json`, the signed records of that are written.

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
        records = [place for place, _ in records_of(self.ledger, self.workspace, one.id)]
        purges = [read_case(place, PURGE_KIND) for place in records]
        if html is not None:
            build_case_page(document, html, purges=purges)
        if pdf is not None:
            build_case_pdf(document, pdf, purges=purges)
        if json is not None:
            for place in records:
                _copy(place, json.with_name(f"{json.stem}.{place.name}"))
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
