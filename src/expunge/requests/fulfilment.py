"""From a planned fulfilment to a signed case, step by step; a process that was killed is followed by one that goes on.

planned     unlearn: save the new weights under their hash        -> unlearned
unlearned   audit them, and measure side effects and drift        -> audited, or failed
audited     write and sign the case file                          -> recorded
recorded    put the version in force                              -> done

Each step ends with one transaction of the ledger, and can be done again if that was not reached: seeds are fixed by the
fulfilment, files appear whole or not at all, and nothing that came before is changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.api.experiment import Experiment
from expunge.api.prepare import pick_device
from expunge.api.result import Result
from expunge.api.trained import TrainedModel
from expunge.core.errors import Cancelled, ExpungeError
from expunge.core.options import to_dict
from expunge.core.run import Progress
from expunge.core.seeds import derive
from expunge.data.cache import cache_root
from expunge.data.ids import columns_of
from expunge.data.origin import origin_of
from expunge.data.split import Split
from expunge.evidence.audit import audit, by_construction
from expunge.evidence.explain import FAILED, verdict_label
from expunge.methods.base import make_method
from expunge.models.checkpoint import save_weights
from expunge.requests import copies, members
from expunge.requests.case.canonical import plain
from expunge.requests.case.content import Remaining
from expunge.requests.case.document import build_case, save_case, sign_case
from expunge.requests.case.keys import load_signer
from expunge.requests.case.page import build_case_page
from expunge.requests.case.pdf import build_case_pdf
from expunge.requests.case.side_effects import side_effects
from expunge.requests.drift import measure_drift
from expunge.requests.fitness import utility_losses
from expunge.requests.ledger.ledger import Ledger
from expunge.requests.records import Fulfilment, Version
from expunge.requests.settings import MEMBERS
from expunge.requests.sharded import forget_exactly
from expunge.requests.workspace import Workspace
from expunge.training.advice import Drift


@dataclass
class RequestData:
    """Training and test data, with the keyed hash of each training sample, and of the subject of each sample.

    members: hashes of all samples that the first model was trained on. test_subjects: empty where the test data do not
    say whose they are. spellings: `members.spellings` of the training data.
    """

    train: Split
    test: Split
    samples: np.ndarray
    subjects: np.ndarray
    members: set[str]
    test_subjects: np.ndarray
    spellings: dict[str, str]


class Refused(ExpungeError):
    """An audit whose result is not accepted; `record` is its evidence, which is kept with the failed fulfilment."""

    def __init__(self, message: str, record: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.record = record


@dataclass
class Worker:
    """Carries fulfilments on. by: who, for the log. progress, cancelled: as in `unlearn`."""

    workspace: Workspace
    ledger: Ledger
    pepper: bytes
    by: str
    progress: Callable[[Progress], None] | None = None
    cancelled: Callable[[], bool] | None = None

    @cached_property
    def data(self) -> RequestData:
        train, test = self.workspace.load()
        column = self.workspace.settings.id_column
        return RequestData(
            train,
            test,
            members.of_samples(self.pepper, train),
            members.owners(self.pepper, train, column),
            members.read_members(self.workspace.folder / MEMBERS),
            members.owners(self.pepper, test, column) if column in columns_of(test) else np.empty(0, dtype="U64"),
            members.spellings(self.pepper, train, column),
        )

    def carry_on(self, one: Fulfilment) -> Fulfilment:
        """All steps that are left. A step that fails ends the fulfilment, with the reason in the ledger."""
        steps = {"planned": self._unlearn, "unlearned": self._audit, "audited": self._record, "recorded": self._finish}
        try:
            while one.step != "done" and one.state in ("planned", "running"):
                one = steps[one.step](one)
        except Cancelled:
            raise
        except Refused as refusal:
            one = self.fail(one, str(refusal), audit=refusal.record)
        except ExpungeError as error:
            one = self.fail(one, str(error))
        return one

    def fail(self, one: Fulfilment, message: str, audit: Mapping[str, Any] | None = None) -> Fulfilment:
        """The version that it made, if any, is deleted: it was never in force. audit: the evidence, if any."""
        made = one.version
        one = self.ledger.fail(one.id, message, by=self.by, audit=audit)
        if made is not None:
            (self.workspace.models / f"{made}.safetensors").unlink(missing_ok=True)
            self.ledger.mark_deleted(made, by=self.by)
        return one

    def forgotten(self, *, before: Fulfilment | None = None) -> set[str]:
        """Hashes of all samples that the version in force (or the parent of `before`) must not know."""
        done = (one for one in self.ledger.fulfilments() if one.state == "fulfilled")
        return {name for one in done if before is None or one.id < before.id for name in one.samples}

    def splits(self, one: Fulfilment) -> tuple[Split, Split]:
        """(forget, retain) of a fulfilment. Samples that the first model was not trained on belong to neither."""
        data = self.data
        gone = self.forgotten(before=one)
        forget = members.select(data.train, data.samples, set(one.samples), "forget")
        if len(forget) < len(one.samples):
            raise ExpungeError(
                f"{len(one.samples) - len(forget)} of {len(one.samples)} samples to forget are no longer in "
                f"{self.workspace.settings.data}; delete them there after they were forgotten, not before."
            )
        retain = members.select(data.train, data.samples, data.members, "retain", but=gone | set(one.samples))
        return forget, retain

    def _unlearn(self, one: Fulfilment) -> Fulfilment:
        forget, retain = self.splits(one)
        parent = self.workspace.build(self.data.train, one.parent)
        result = self._run(one, parent, forget, retain)
        facts = result.record()
        if result.status == "budget":
            raise ExpungeError(
                f"the budget ran out after {result.seconds:.0f} s, before {facts['method']} was done; raise "
                "`budget_seconds`, or choose a faster method."
            )
        if facts["weights"] == one.parent:
            raise ExpungeError(f"{facts['method']} changed no weight, so nothing was forgotten; choose another method.")
        path = save_weights(result.model, self.workspace.models / f"{facts['weights']}.safetensors")
        knows = members.of_samples(self.pepper, retain)
        version = Version(
            id=facts["weights"],
            parent=one.parent,
            made_at=_now(),
            method=facts["method"],
            options=facts["options"],
            seed=one.seed,
            data=data_hash(knows),
            knows=len(knows),
            file=path.name,
            fulfilment=one.id,
        )
        return self.ledger.advance(one.id, "unlearned", by=self.by, version=version, facts=plain(facts))

    def _run(self, one: Fulfilment, parent: nn.Module, forget: Split, retain: Split) -> Result:
        settings = self.workspace.settings
        if settings.shards is not None and one.plan["method"] == "sisa":
            known = self.data.train.take(torch.cat([retain.index, forget.index]).sort().values, "known")
            return forget_exactly(
                settings.shards, self.workspace.fresh(known), known, forget, original=one.parent,
                device=settings.device, progress=self.progress, cancelled=self.cancelled,
            )  # fmt: skip
        method = make_method(one.plan["method"], **one.plan["options"])
        experiment = self._experiment(parent, forget, retain, method=method, seed=one.seed)
        return experiment.unlearn(budget_seconds=one.plan["budget_seconds"])

    def _audit(self, one: Fulfilment) -> Fulfilment:
        settings, workspace = self.workspace.settings, self.workspace
        forget, retain = self.splits(one)
        parent, new = (workspace.build(self.data.train, name) for name in (one.parent, str(one.version)))
        experiment = self._experiment(parent, forget, retain, cache=cache_root())
        again = [experiment.reference(one.seed + 1 + i) for i in range(settings.references)]
        counted = self.progress
        verdict = audit(
            parent,
            new,
            forget=forget,
            retain=retain,
            test=self.data.test,
            references=again,
            margins=workspace.margins,
            features=settings.residue,
            shadows=settings.shadows,
            method=make_method(one.plan["method"], **one.plan["options"]) if settings.shadows else None,
            recipe=workspace.recipe,
            cache=cache_root(),
            seed=one.seed,
            device=settings.device,
            progress=(lambda done, of: counted(Progress("shadows", done, of, {}))) if counted is not None else None,
        )
        verdict = by_construction(verdict, one.facts, forget)
        record = {
            **verdict.record(),
            "side_effects": side_effects(parent, new, retain=retain, test=self.data.test, device=settings.device),
            "drift": to_dict(self.drift(one, new, verdict.label, retain)),
        }
        statistics, counts = verdict.details["statistics"], verdict.details["samples"]
        losses = utility_losses(statistics["original"], statistics["unlearned"], counts, settings.max_drop)
        if losses:
            raise Refused(f"the model was damaged: {' '.join(losses)}", plain(record))
        if not workspace.accepts(verdict.label):
            reasons = " ".join(verdict.reasons[:2])
            message = f"the audit says `{verdict.label}`, which `accept` does not allow: {reasons}"
            raise Refused(message, plain(record))
        return self.ledger.advance(one.id, "audited", by=self.by, audit=plain(record))

    def _experiment(self, parent: nn.Module, forget: Split, retain: Split, **more: Any) -> Experiment:
        """Forgetting from the version `parent`, or training without the samples, as the workspace says."""
        trained = TrainedModel(model=parent, test=self.data.test, recipe=self.workspace.recipe)
        return Experiment(
            trained, forget, retain=retain, device=self.workspace.settings.device, progress=self.progress,
            cancelled=self.cancelled, **more,
        )  # fmt: skip

    def drift(self, one: Fulfilment, new: nn.Module, word: str, retain: Split) -> Drift:
        """What this step and those before it moved, since the last version that was trained from the start."""
        line = [] if one.plan["exact"] else self._since_base(one)
        base = self.ledger.version(line[0].parent if line else str(one.version))
        there = bool(line) and (self.workspace.models / base.file).is_file()  # it may be deleted for what it knew
        first = self.workspace.build(self.data.train, base.id) if there else new
        return measure_drift(
            first,
            new,
            self.data.test if there else None,
            steps=len(line),
            forgotten=sum(len(step.samples) for step in line),
            knew=base.knows,
            failed=sum(verdict_label(step.audit) in FAILED for step in line[:-1])
            + (word in FAILED)
            + self._refused(base, one),
            removed=_classes_without(retain),
            device=pick_device(self.workspace.settings.device),
        )

    def _refused(self, base: Version, one: Fulfilment) -> int:
        """Fulfilments after the one that made `base`, and before `one`, that failed in their audit."""
        first = base.fulfilment or 0
        return sum(first < f.id < one.id and f.state == "failed" and bool(f.audit) for f in self.ledger.fulfilments())

    def _since_base(self, one: Fulfilment) -> list[Fulfilment]:
        """Approximate fulfilments from the base to this one, this one included, oldest first."""
        by_version = {f.version: f for f in self.ledger.fulfilments() if f.version is not None}
        line, at = [one], one.parent
        while at in by_version and not _exact(by_version[at]):
            line.append(by_version[at])
            at = by_version[at].parent
        return line[::-1]

    def _record(self, one: Fulfilment) -> Fulfilment:
        parent, new = self.ledger.version(one.parent), self.ledger.version(str(one.version))
        measured = dict(one.audit)
        forget, _ = self.splits(one)
        copies.remember(self.workspace.copies, self.pepper, one.id, origin_of(forget), self.workspace.settings.data)
        found = copies.find(self.workspace.copies, self.pepper, [one.id], cache_root())
        rows = measured.pop("side_effects")
        done = [f for f in self.ledger.fulfilments() if f.case is not None and f.id != one.id]
        content = build_case(
            one,
            [self.ledger.request(number) for number in one.requests],
            (parent, new),
            plan=one.plan,
            unlearning=one.facts,
            audit=measured,
            side_effects=rows,
            remains=self._remaining(one),
            copies=[*(copy.row() for copy in found), *copies.outside(self.workspace.settings.outside)],
            previous_case_hash=max(done, key=lambda f: (f.ended_at or _now(), f.id)).case if done else None,
            ledger_head=self.ledger.head(),
            made_at=_now(),
        )
        document = sign_case(content, load_signer(self.workspace.keys))
        place = self.workspace.cases / f"{one.id:06d}.json"
        save_case(document, place)
        build_case_page(document, place.with_suffix(".html"))
        build_case_pdf(document, place.with_suffix(".pdf"))
        return self.ledger.advance(one.id, "recorded", by=self.by, case=document["hash"])

    def _remaining(self, one: Fulfilment) -> list[Remaining]:
        """Versions whose files still know the samples: all that were made before this one and are there."""
        days = timedelta(days=self.workspace.retention.keep_days)
        older = [v for v in self.ledger.versions() if v.id != one.version and v.deleted_at is None]
        return [Remaining(version, until=_now() + days) for version in older]

    def _finish(self, one: Fulfilment) -> Fulfilment:
        return self.ledger.advance(one.id, "done", by=self.by)


def data_hash(hashes: np.ndarray) -> str:
    """Hex sha256 over the sorted hashes of the samples that a version may know."""
    return hashlib.sha256("\n".join(sorted(hashes.tolist())).encode()).hexdigest()


def fulfilment_seed(pepper: bytes, number: int) -> int:
    """Fixed by the requests, so that work that was cut off is done again with the same result."""
    return derive(int.from_bytes(pepper[:4], "big"), "fulfilment", number)


def _classes_without(retain: Split) -> set[int]:
    """Classes of which no sample is left: there the model is meant to change."""
    return set(range(retain.num_classes)) - set(retain.y.tolist()) if retain.has_labels else set()


def _exact(one: Fulfilment) -> bool:
    return bool(one.plan.get("exact"))


def _now() -> datetime:
    return datetime.now(UTC)
