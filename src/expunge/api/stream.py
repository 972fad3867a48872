"""Continual unlearning: one request after the other through one model, measured after each.

Paper      Cha et al., AAAI 2024, arXiv:2301.11578 (continual unlearning); here for every method

At request s the method starts from the model that request s-1 left. It is handed the samples of this request to forget,
and, if it needs them, those to retain: all that no request so far has named. Earlier requests are not revisited.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.api.effect import measure_effect
from expunge.api.planning.automatic import choose, situation
from expunge.api.prepare import as_classifier, as_splits, check_disjoint, pick_device
from expunge.api.result import Result
from expunge.api.saved import as_trained
from expunge.api.selection import select
from expunge.api.trained import TrainedModel, same_data
from expunge.api.unlearn import unlearn
from expunge.core import distributed
from expunge.core.errors import UsageError
from expunge.core.options import option_names
from expunge.core.seeds import derive
from expunge.core.user_code import split_preset
from expunge.data.join import joined
from expunge.data.split import Split
from expunge.methods import METHODS
from expunge.methods.base import Method, make_method
from expunge.metrics.base import Evaluation
from expunge.metrics.distance import relative_distance
from expunge.scenarios.base import ForgetSplit
from expunge.training.recipe import make_recipe

_WORST_FIRST = ("stopped: utility", "budget", "limit", "stopped", "finished", "reached", "already")


def unlearn_stream(
    model: Any,
    *,
    requests: Any,
    retain: Any = None,
    test: Any = None,
    method: str | Method = "auto",
    seed: int = 0,
    device: str = "auto",
    resume: Path | None = None,
    **more: Any,
) -> Result:
    """Forget `requests` one after the other; like `unlearn` once per request, each from the model before it.

    Args:
        model: As for `unlearn`.
        requests: A list of what `unlearn` takes as `forget` (rows, masks, ids, data; disjoint), or a scenario in
            several requests: "random:amount=40,requests=4", or what `expunge.scenario(..., requests=8)` returns.
        retain: What stays in the end; default: what the model was trained on and no request names.
        test: Unseen samples, measured and never handed on; default: the model's `test`.
        method: As for `unlearn`.
        seed: Of all draws, >= 0.
        resume: As for `unlearn`; every request has a file beside it.
        device: As for `unlearn`.
        more: The other keywords of `unlearn`, options of the method included.

    Returns:
        The last model, the seconds of all requests, the history with a column `request`, the worst status of all
        requests, and under `details["requests"]` one row per request: accuracy on its samples (`current_accuracy`), on
        those of all requests so far (`past_accuracy`: above that of the last request, something was learned again), on
        `retain` and `test`, and `drift`, the distance of all weights from the first model relative to their length.

    Raises:
        UsageError: If there is no request, or as `unlearn`.
        DataError: If requests share samples, or as `unlearn`.
    """
    trained, target = as_trained(model), pick_device(device)
    parts, kept = _requested(trained, requests, retain)
    names = [f"request {i + 1}" for i in range(len(parts))]
    unseen = trained.test if test is None else test
    named: dict[str, Any] = {**dict(zip(names, parts, strict=True)), "retain": kept, "test": unseen}
    splits = as_splits(named)
    for name in names:
        check_disjoint({"forget": splits[name], **{k: v for k, v in splits.items() if k != name}})
    held_out = as_splits({"validation": trained.held_out if more.get("validation") is None else more["validation"]})
    first, _ = as_classifier(trained.model, splits, target, trains=True)
    chosen = _chosen(method, more, replace(trained, model=first), splits[names[0]], {**splits, **held_out}, target)
    results: list[Result] = []
    rows: list[dict[str, float]] = []
    current: TrainedModel = trained
    for number, name in enumerate(names):
        kept = [splits["retain"]] if "retain" in splits else []
        # A method that trains anew depends on no earlier request, so neither do its draws.
        own = derive(seed, "request", number) if chosen.needs.weights else seed
        result = unlearn(
            current if chosen.needs.weights else trained,
            forget=splits[name].named("forget"),
            retain=joined([*kept, *(splits[later] for later in names[number + 1 :])], "retain") if kept else None,
            method=chosen,
            seed=own,
            device=device,
            resume=None if resume is None else resume.with_name(f"{resume.name}.request-{number + 1}"),
            **more,
        )
        current = result
        results.append(result)
        past = joined([splits[n] for n in names[: number + 1]], "past")
        moved = relative_distance(result.model, trained.model)
        measured: dict[str, Split] = {"current": splits[name], "past": past}
        measured |= {k: splits[k] for k in ("retain", "test") if k in splits}
        rows.append(
            {
                "request": float(number + 1),
                "samples": float(len(splits[name])),
                "seconds": result.seconds,
                **accuracies(result.model, measured, target),
                "drift": math.nan if moved is None else moved,
            }
        )
    together = _together(results, rows, seed)
    effect = measure_effect(
        first,
        as_classifier(together.model, splits, target)[0],
        forget=past,
        retain=splits.get("retain"),
        held_out=held_out.get("validation"),
        device=target,
        seed=seed,
    )
    return replace(together, parent=results[0].parent, forget=past.named("forget"), effect=effect)


def _requested(trained: TrainedModel, requests: Any, retain: Any) -> tuple[list[Any], Any]:
    """The samples of every request, and what is retained in the end."""
    if isinstance(requests, (str, ForgetSplit)):
        selected = select(trained, requests, retain)
        forgetting = selected.forgetting
        assert forgetting is not None  # noqa: S101  # both come from a scenario
        return list(forgetting.requests()), selected.retain
    if not len(requests):
        raise UsageError("nothing to forget: `requests` is empty; pass at least one.")
    parts = [select(trained, request, retain).forget for request in requests]
    known = trained.train
    if retain is not None or known is None or not all(part is not None and same_data(known, part) for part in parts):
        return parts, retain
    named = torch.cat([part.index for part in parts if part is not None])
    left = known.index[~torch.isin(known.index, named)]
    return parts, known.take(left, "retain") if len(left) else None


def accuracies(model: nn.Module, splits: Mapping[str, Split], device: torch.device) -> dict[str, float]:
    """<split>_accuracy of every split that has labels."""
    seen = Evaluation(
        {"now": as_classifier(model, splits, device)[0]}, splits, device=device, world=distributed.current()
    )
    labelled = [name for name, split in splits.items() if split.has_labels]
    return {f"{name}_accuracy": float(seen.correct("now", name).double().mean()) for name in labelled}


def _chosen(
    method: str | Method,
    more: dict[str, Any],
    trained: TrainedModel,
    forget: Split,
    splits: Mapping[str, Split],
    device: torch.device,
) -> Method:
    """The method with its options, which are taken out of `more`; "auto" is decided once, by the first request."""
    if method != "auto":
        method = METHODS.named(method) if isinstance(method, str) else method
        return make_method(method, **{name: more.pop(name) for name in list(more) if name in _options(method)})
    parts = {"forget": forget, **{name: splits[name] for name in ("retain", "validation") if name in splits}}
    recipe, initial = more.get("recipe"), more.get("initial")
    at = situation(
        trained.model,
        parts,
        recipe=trained.recipe if recipe is None else make_recipe(recipe),
        initial=initial is not None or trained.initial is not None,
        budget_seconds=more.get("budget_seconds"),
    )
    return choose(trained.model, parts, at, device).made()


def _options(method: str | Method) -> Sequence[str]:
    return option_names(type(method) if isinstance(method, Method) else METHODS.load(split_preset(method)[0]))


def _together(results: Sequence[Result], rows: list[dict[str, float]], seed: int) -> Result:
    history = [{"request": float(number), **row} for number, result in enumerate(results, 1) for row in result.history]
    for number, row in enumerate(history, 1):
        row["epoch"] = float(number)
    stages: dict[str, float] = {}
    for result in results:
        for name, seconds in result.stages.items():
            stages[name] = stages.get(name, 0.0) + seconds
    last = results[-1]
    hashes = [str(result.facts["data"]["forget"]) for result in results]
    data = {**last.facts["data"], "forget": hashlib.sha256(" ".join(hashes).encode()).hexdigest()}
    sizes = {**last.facts["sizes"], "forget": sum(int(result.facts["sizes"]["forget"]) for result in results)}
    return replace(
        last,
        history=history,
        seconds=sum(result.seconds for result in results),
        status=min((result.status for result in results), key=_WORST_FIRST.index),
        facts={**last.facts, "original": results[0].facts["original"], "seed": seed, "data": data, "sizes": sizes},
        stages=stages,
        notes=list(dict.fromkeys(note for result in results for note in result.notes)),
        details={"requests": rows, "per_request": [dict(result.details) for result in results]},
    )
