"""One audit over several fulfilled requests: together they show what each of them is too small to show.

Every version of a line must have forgotten what all fulfilments before it forgot. So the model in force is held against
models that were retrained without any of these samples: all samples of the requests are tested at once. The original
is the version before the first fulfilment; where its file was deleted, which `retention` does soon, a model that is
trained again with all samples stands for it. Beside it an exact test over the requests, from what their own audits
recorded: in each, the unlearned model is one of N + 1 that are alike if it forgot (`evidence.permutation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from expunge.api.experiment import train_references
from expunge.api.trained import TrainedModel
from expunge.api.unlearn import unlearn
from expunge.core.errors import ExpungeError, UsageError
from expunge.data.cache import cache_root
from expunge.data.join import joined
from expunge.data.split import Split
from expunge.evidence.audit import audit
from expunge.evidence.permutation import permuted_choices, smallest_p
from expunge.evidence.verdict import Verdict
from expunge.requests import members
from expunge.requests.fulfilment import Worker
from expunge.requests.records import Fulfilment

TRAINED_AGAIN = "trained again"
STATISTICS = ("loss attack AUC", "forget accuracy")  # plain ones of each model, so that models can be exchanged


@dataclass(frozen=True, eq=False)
class Pool:
    """The result of a pooled audit.

    Attributes:
        verdict: Of the model in force, on all samples together.
        fulfilments: Those that were pooled, oldest first.
        samples: Number of samples that they forgot.
        original: Id of the version that is the original, or "trained again" for a model that stands for it.
        p: Of the exact test over requests; None where fewer than two recorded retrained models.
        possible: The smallest p that it could have given.
    """

    verdict: Verdict
    fulfilments: tuple[int, ...]
    samples: int
    original: str
    p: float | None = None
    possible: float | None = None


def pooled_audit(worker: Worker, *, references: int | None = None, **given: Any) -> Pool:
    """Audit the model in force on the samples of all requests that it must have forgotten.

    Args:
        worker: Of an open workspace.
        references: Models to retrain without any of the samples; default: as the workspace says.
        given: Further keywords of `evidence.audit`, such as `features`, `extended` and `seed`.

    Raises:
        UsageError: With fewer than two fulfilments, or where there is neither an original nor a recipe to train one by.
        ExpungeError: If samples are no longer in the data.
    """
    workspace, data = worker.workspace, worker.data
    line = _line(worker)
    if len(line) < 2:
        raise UsageError(
            f"pooling needs two fulfilments or more, and the model in force comes from {len(line)}; of a single one "
            "the case file has the audit."
        )
    wanted = {name for fulfilment in line for name in fulfilment.samples}
    before = worker.forgotten(before=line[0])
    forget = members.select(data.train, data.samples, wanted, "forget")
    if len(forget) < len(wanted):
        raise ExpungeError(
            f"{len(wanted) - len(forget)} of {len(wanted)} samples of the requests are no longer in "
            f"{workspace.settings.data}; a pooled audit needs them: restore them for its time."
        )
    retain = members.select(data.train, data.samples, data.members, "retain", but=before | wanted)
    device, seed = workspace.settings.device, int(given.pop("seed", 0))
    unlearned = workspace.build(data.train, worker.ledger.active().id)
    original, name = _original(worker, line[0].parent, joined([retain, forget], "train"), seed)
    count = workspace.settings.references if references is None else references
    trained = TrainedModel(model=original, test=data.test, recipe=workspace.recipe)
    again = (
        train_references(trained, count, forget=forget, retain=retain, seed=seed, device=device) if count >= 2 else []
    )
    verdict = audit(
        original, unlearned, forget=forget, retain=retain, test=data.test, references=again, recipe=workspace.recipe,
        margins=workspace.margins, seed=seed, device=device, **given,
    )  # fmt: skip
    if name == TRAINED_AGAIN:
        text = "note: the original was deleted; a model trained again with all samples stands for it."
        verdict = replace(verdict, reasons=[*verdict.reasons, text])
    p, possible = exact_over([fulfilment.audit for fulfilment in line], seed=seed)
    if p is not None and possible is not None:
        text = (
            f"note: over {len(line)} requests the exact permutation test of their own audits gives p = {p:.3g} (at "
            f"best {possible:.2g})."
        )
        verdict = replace(verdict, reasons=[*verdict.reasons, text])
    return Pool(verdict, tuple(fulfilment.id for fulfilment in line), len(forget), name, p, possible)


def _line(worker: Worker) -> list[Fulfilment]:
    """Fulfilments that the version in force comes from, oldest first."""
    made = {f.version: f for f in worker.ledger.fulfilments() if f.state == "fulfilled" and f.version is not None}
    line: list[Fulfilment] = []
    at = worker.ledger.active().id
    while at in made:
        line.append(made[at])
        at = made[at].parent
    return line[::-1]


def _original(worker: Worker, version: str, everything: Split, seed: int) -> tuple[nn.Module, str]:
    """The model before the first fulfilment and its name; a model trained with all samples where its file is gone."""
    workspace = worker.workspace
    if (workspace.models / f"{version}.safetensors").is_file():
        return workspace.build(worker.data.train, version), version
    if workspace.recipe is None:
        raise UsageError(
            f"version {version[:12]}, the original, was deleted, and no `recipe` in expunge.yaml says how to train one "
            "that knows all samples; add the recipe, or keep more versions (`retention`)."
        )
    stands = unlearn(
        workspace.fresh(everything), retain=everything, method="retrain", recipe=workspace.recipe, seed=seed,
        device=workspace.settings.device, cache=cache_root(), measure=False,
    )  # fmt: skip
    return stands.model, TRAINED_AGAIN


def exact_over(audits: Sequence[Mapping[str, Any]], *, seed: int = 0) -> tuple[float | None, float | None]:
    """(p, the smallest p that was possible) of the exact test over requests; None where fewer than two can be used.

    Args:
        audits: Records of audits, with the statistics of the unlearned and of N retrained models.
        seed: Of the draws, where choices are too many to be counted.
    """
    for name in STATISTICS:
        rows = []
        for record in audits:
            numbers = dict(record.get("statistics", {}))
            models = ["unlearned", *(model for model in numbers if model.startswith("retrained"))]
            values = [numbers[model][name] for model in models if name in numbers.get(model, {})]
            if len(values) >= 3:
                rows.append(np.array(values))
        if len(rows) >= 2:
            return permuted_choices(rows, seed=seed), smallest_p([len(row) for row in rows])
    return None, None


__all__ = ["Pool", "exact_over", "pooled_audit"]
