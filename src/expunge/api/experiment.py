"""An experiment put together in one place: a trained model, what it forgets, the method; and what an audit needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.api.evaluate import Scores, evaluate
from expunge.api.planning.automatic import situation
from expunge.api.planning.situation import Situation
from expunge.api.prepare import as_splits, check_disjoint
from expunge.api.record import CellRecord, cell_from_result, data_facts, method_facts
from expunge.api.result import Result
from expunge.api.saved import as_trained
from expunge.api.selection import known_splits, select
from expunge.api.stream import unlearn_stream
from expunge.api.trained import TrainedModel
from expunge.api.unlearn import unlearn
from expunge.core.errors import UsageError
from expunge.core.registry import Card
from expunge.core.run import Precision, Progress
from expunge.data.cache import cache_root
from expunge.data.split import Split
from expunge.methods.base import Method, make_method
from expunge.metrics.base import Metric
from expunge.scenarios.base import ForgetSplit
from expunge.training.recipe import Recipe, make_recipe

Prepare = Callable[[Any, Mapping[str, Split], Any, Mapping[str, Any]], tuple[Any, dict[str, Split], Split | None]]


@dataclass(frozen=True)
class Experiment:
    """A trained model, what it is to forget, and how.

    The command line, studies, deletion requests, label repair and audits make their models here, so that recipe,
    initial weights, held-out and test data, which `trained` knows, reach every one of them.

    Attributes:
        trained: The model before unlearning.
        forget: A scenario's partition (in several requests where it says so), or the samples to forget; None where
            only references on `retain` are wanted.
        method: A name, a preset or an instance.
        seed: Of the unlearning, >= 0.
        retain: The samples to keep; default: what the model was trained on and does not forget.
        device: `auto` (the first GPU, else the CPU), `cpu`, `cuda` or `cuda:N`.
        precision: "auto", "float32" or "bfloat16".
        cache: Folder where retrained models are kept by content.
        progress: Called with the state of a run after each epoch.
        cancelled: Asked between steps; a run ends with `Cancelled` once it returns true.
    """

    trained: TrainedModel
    forget: ForgetSplit | Split | None
    method: str | Method = "auto"
    seed: int = 0
    retain: Split | None = None
    device: str = "auto"
    precision: Precision = "auto"
    cache: Path | None = None
    progress: Callable[[Progress], None] | None = None
    cancelled: Callable[[], bool] | None = None

    @property
    def splits(self) -> dict[str, Split]:
        """The data by name, those that are known: `forget`, `retain`, `validation` (held out) and `test`."""
        forget, retain = self.forget, self.retain
        if isinstance(forget, ForgetSplit):
            retain = forget.retain if retain is None else retain
            forget = forget.forget
        known = {"forget": forget, "retain": retain, "validation": self.trained.held_out, "test": self.trained.test}
        return {name: split for name, split in known.items() if split is not None}

    def situation(self, budget_seconds: float | None = None) -> Situation:
        """What the planner goes by: what there is to forget with, and the seconds that may be spent."""
        at_hand = {name: split for name, split in self.splits.items() if name != "test"}
        known = self.trained
        return situation(
            known.model, at_hand, recipe=known.recipe, initial=known.initial is not None, budget_seconds=budget_seconds
        )

    def unlearn(self, **more: Any) -> Result:
        """The model after unlearning.

        Args:
            more: Further keywords of `unlearn`, such as `budget_seconds`, `compile` and options of the method.

        Raises:
            UsageError: As `unlearn`.
            DataError: As `unlearn`.
        """
        return self._run(self.method, self.forget, self.seed, **more)

    def reference(self, seed: int | None = None) -> Result:
        """The exact reference: trained again without the forget set, as the original was.

        Args:
            seed: Of the training; default: that of the experiment.

        Raises:
            UsageError: If the recipe is not known.
        """
        forget = self.forget.forget if isinstance(self.forget, ForgetSplit) else self.forget
        return self._run("retrain", forget, self.seed if seed is None else seed)

    def references(self, count: int) -> list[Result]:
        """Exact references with the seeds after that of the experiment.

        They start from the original's initial weights where these are known, else from fresh ones; so do those of a
        model of the command line, whose initial weights were drawn.

        Args:
            count: How many, >= 0.

        Raises:
            UsageError: If the recipe or the retained samples are not known.
        """
        if count and self.trained.recipe is None:
            raise UsageError("references are trained as the original was, and its recipe is not known; pass recipe=...")
        if count and "retain" not in self.splits:
            raise UsageError("references are trained on the retained samples, which are not known; pass retain=...")
        return [self.reference(self.seed + number) for number in range(1, count + 1)]

    def evaluate(
        self,
        models: Mapping[str, Any],
        metrics: Iterable[str | Metric] | None = None,
        *,
        seconds: Mapping[str, float] | None = None,
    ) -> Scores:
        """Score models on the data of the experiment; arguments, returns and errors are those of `evaluate`."""
        splits = self.splits
        return evaluate(
            models, forget=splits.get("forget"), retain=splits.get("retain"), test=splits.get("test"), metrics=metrics,
            sample=self.forget.sample if isinstance(self.forget, ForgetSplit) else None, seconds=seconds,
            seed=self.seed, device=self.device,
        )  # fmt: skip

    def cell(
        self,
        record: Mapping[str, Any],
        *,
        data: str,
        scenario: str,
        method: tuple[str, Card, Mapping[str, Any]],
        **parts: Any,
    ) -> CellRecord:
        """The record of one measured model, as studies and reports read it.

        Args:
            record: `Result.record()` of the model.
            data: Name of the data.
            scenario: Name of the request in tables.
            method: Its name in tables, its card and its options.
            parts: The other fields of `CellRecord`.

        Raises:
            UsageError: If the experiment has no partition of a scenario.
        """
        if not isinstance(self.forget, ForgetSplit):
            raise UsageError("a record tells of a scenario; give the experiment what `expunge.scenario` returns.")
        return cell_from_result(
            record,
            data=data_facts(data, self.forget, self.trained.test, self.trained.held_out),
            scenario={"label": scenario, **self.forget.describe()},
            method=method_facts(*method),
            **parts,
        )

    def _run(self, method: str | Method, forget: Any, seed: int, **more: Any) -> Result:
        chosen = make_method(method) if method != "auto" else method
        trained = self.trained
        drawn = bool(trained.facts.get("drawn"))  # by the seed of the training: another seed draws its own
        if drawn and isinstance(chosen, Method) and not chosen.needs.initial:
            trained = replace(trained, initial=None)
        common: dict[str, Any] = {
            "retain": self.retain, "method": chosen, "seed": seed, "device": self.device, "precision": self.precision,
            "cache": self.cache, "progress": self.progress, "cancelled": self.cancelled, **more,
        }  # fmt: skip
        if isinstance(forget, ForgetSplit) and forget.scenario.requests > 1:
            return unlearn_stream(trained, requests=forget, **common)
        return unlearn(trained, forget=forget, **common)


@dataclass(frozen=True)
class Audited:
    """original, unlearned: the models. references: retrained ones. splits: `forget`, `test` and, if known, `retain`.

    goal: what is asked; corrected: right labels of the samples to forget, where they are known (see `evidence.goals`).
    """

    original: TrainedModel
    unlearned: TrainedModel
    splits: dict[str, Split]
    references: list[nn.Module]
    method: Method | None
    recipe: Recipe | None
    goal: Any
    corrected: Any = None

    def known_recipe(self, what: str) -> Recipe:
        """The recipe of the original; `UsageError` that names the keyword where `what` needs it and it is unknown."""
        if self.recipe is None:
            raise UsageError(f"{what} are trained as the original was, and its recipe is not known; pass recipe=...")
        return self.recipe


def resolve_audit(
    model: Any,
    unlearned: Any = None,
    *,
    original: Any = None,
    forget: Any = None,
    retain: Any = None,
    test: Any = None,
    references: int | Sequence[Any] = (),
    retrained: Sequence[Any] = (),
    method: str | Method | None = None,
    recipe: Any = None,
    needs_method: bool = False,
    seed: int = 0,
    device: str = "auto",
    cache: Path | None = None,
    goal: Any = None,
    corrected: Any = None,
    prepare: Prepare,
) -> Audited:
    """The models and data of an audit, from what is given and from what results remember; see `evidence.audit`.

    prepare: (goal or None, splits, corrected labels, facts of the unlearned model) -> (goal, splits that it measures
    on, what references of this goal are trained on).
    """
    before, after = _two_models(model, unlearned, original)
    known_recipe = make_recipe(recipe) if recipe is not None else before.recipe or after.recipe
    chosen = _method(after, method, known_recipe) if needs_method else None
    known: dict[str, Any] = {"forget": forget, "retain": retain, "test": test}
    if forget is None and isinstance(after, Result) and after.facts.get("kind") == "repair":
        repaired, labels = _of_repair(after)
        known |= repaired
        corrected = labels if corrected is None else corrected
    elif forget is not None:
        selected = select(before, forget, retain)
        known |= {"forget": selected.forget, "retain": selected.retain}
    splits = as_splits({k: v for k, v in known_splits([after, before], known).items() if k != "validation"})
    check_disjoint(splits)
    for name in ("forget", "test"):
        if name not in splits or not splits[name].has_labels:
            raise UsageError(f"an audit needs {name} data with labels; pass {name}=...")
    goal, splits, taught = prepare(goal, splits, corrected, after.facts)
    again: list[nn.Module] = []
    if isinstance(references, int):
        if retrained:
            raise UsageError("`retrained` is an older name of `references`; pass one of them.")
        if references == 1 or references < 0:
            raise UsageError(f"references must be 0 or at least 2 (one has no spread), got {references}.")
        if references:
            again = train_references(
                before, references, forget=splits["forget"], retain=taught, recipe=known_recipe, seed=seed,
                device=device, cache=cache,
            )  # fmt: skip
    else:
        given = [*references, *retrained]
        if len(given) == 1:
            raise UsageError("one retrained model has no spread; pass at least two, or none for the weaker verdict.")
        again = [as_trained(reference, f"references[{i}]").model for i, reference in enumerate(given)]
    return Audited(before, after, splits, again, chosen, known_recipe, goal, corrected)


def _of_repair(after: Result) -> tuple[dict[str, Split], Tensor]:
    """The forget and the retain set of a label repair, and the labels that its corrected data give (-1: left out)."""
    forget, trained_on = after.forget, after.train
    if forget is None or trained_on is None:
        raise UsageError(
            "the suspects of this label repair are not known; pass forget=..., retain=... and corrected=..."
        )
    known = trained_on.labels if trained_on.labels is not None else trained_on.store.labels
    stays = torch.isin(forget.index, trained_on.index)
    labels = torch.where(stays, known[forget.index], torch.full_like(forget.index, -1))
    retain = trained_on.take(trained_on.index[~torch.isin(trained_on.index, forget.index)], "retain")
    return {"forget": forget, "retain": retain}, labels


def train_references(
    original: TrainedModel,
    count: int,
    *,
    forget: Split,
    retain: Split | None,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: str = "auto",
    cache: Path | None = None,
) -> list[nn.Module]:
    """Models trained as the original was, without the forget set, with the seeds after `seed`; kept in the cache.

    They start from the original's initial weights where these are known, else from fresh ones. Where `retain` holds
    samples of the forget set (with other labels, after a label repair), these are trained on as well.

    Raises:
        UsageError: If the recipe or the retained samples are not known.
    """
    if recipe is None and original.recipe is None:
        raise UsageError("references are trained as the original was, and its recipe is not known; pass recipe=...")
    if retain is None:
        raise UsageError("references are trained on the retained samples, which are not known; pass retain=...")
    known = original if recipe is None else replace(original, recipe=recipe)
    kept = cache_root() if cache is None else cache
    if retain.store is forget.store and bool(torch.isin(forget.index, retain.index).any()):
        return [
            unlearn(known, retain=retain, method="retrain", seed=seed + number, device=device, cache=kept).model
            for number in range(1, count + 1)
        ]
    experiment = Experiment(known, forget, retain=retain, device=device, cache=kept)
    return [experiment.reference(seed + number).model for number in range(1, count + 1)]


def _two_models(model: Any, unlearned: Any, original: Any) -> tuple[TrainedModel, TrainedModel]:
    """(original, unlearned)."""
    if unlearned is not None:
        if original is not None:
            raise UsageError("the original was given twice; pass audit(original, unlearned) or original=...")
        return as_trained(model, "original"), as_trained(unlearned, "unlearned")
    after = as_trained(model, "unlearned")
    before = after.parent if original is None else as_trained(original, "original")
    if before is None:
        raise UsageError(
            "the model before unlearning is not known; pass what expunge.unlearn returned, or original=..."
        )
    return before, after


def _method(unlearned: TrainedModel, given: str | Method | None, recipe: Recipe | None) -> Method:
    """What unlearned, as given or as the result remembers; shadow models need it, and the recipe."""
    if given is None and "method" in unlearned.facts:
        given = make_method(str(unlearned.facts["method"]), **unlearned.facts["options"])
    if given is None or recipe is None:
        missing = " and ".join(
            f"{name}=..." for name, value in (("method", given), ("recipe", recipe)) if value is None
        )
        raise UsageError(f"shadow models must be trained and unlearned as the audited ones were; pass {missing}")
    return make_method(given)
