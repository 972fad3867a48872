"""Shadow models: the same training, and the same unlearning, on other draws of who is in.

One run of the plan, for shadow s and request j:

    original_s      trained on pool[train[s]] by the recipe of the audited model, from weights of its own
    unlearned_sj    original_s after it forgot pool[forget[s][j]] by the audited method, with the rest of its training
                    samples as the retained ones

`matched`  every shadow trains on all retained samples and on a random half of the targets: the samples to forget and
           as many unseen ones of the same classes. So a shadow sees as many samples as the audited model, forgets as
           many, and differs from it in nothing but the targets: the strongest attacker, one who knows all the rest.
           Every target is in for exactly half of the shadows
`halves`   Carlini et al., as SCRUB's paper used it: every shadow trains on a random half of everything, every sample in
           exactly half of the shadows, and then forgets `requests` disjoint sets of the classes that are attacked. For
           an original that was itself trained on half of the samples

Models are not kept, only the scores of the samples that matter, one small file per model, under the hash of all that
decides them: a stopped run goes on, and nothing stale is ever reused.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from expunge.api.prepare import pick_device
from expunge.api.train import train
from expunge.api.unlearn import unlearn
from expunge.core.errors import UsageError
from expunge.core.identity import code_hash
from expunge.core.options import to_dict
from expunge.core.pool import in_processes
from expunge.core.run import Run
from expunge.core.seeds import derive, numpy_generator
from expunge.data.join import joined
from expunge.data.origin import Facts, origin_of
from expunge.data.split import Split
from expunge.evidence.signals import confidence
from expunge.methods.base import Method
from expunge.metrics.membership import matched
from expunge.models.anatomy import reset_parameters
from expunge.models.identity import model_code
from expunge.training.inference import predict
from expunge.training.precision import resolve_precision
from expunge.training.recipe import Recipe
from expunge.training.rows import ArrayCache
from expunge.training.stacked import train_stacked

POPULATION = 2000  # unseen samples that RMIA compares with, at most
PRELOAD = ("expunge.evidence.shadows", "torch._dynamo", "sklearn.linear_model")
Design = Literal["matched", "halves"]


@dataclass(frozen=True, eq=False)
class Plan:
    """Who is in, and who is forgotten.

    pool: every sample. train: bool (S, n). forget: positions in the pool, per shadow and request. targets (T,): samples
    under attack; member (T,): whether the audited model was trained on them. population (P,): unseen samples.
    """

    pool: Split
    train: np.ndarray
    forget: list[list[np.ndarray]]
    targets: np.ndarray
    member: np.ndarray
    population: np.ndarray

    @property
    def shadows(self) -> int:
        return len(self.train)


@dataclass(frozen=True, eq=False)
class ShadowScores:
    """Scores log(p_y / (1 - p_y)) of the targets under many models; float64.

    plain (S, T): under the shadow originals; trained (S, T): whether they saw the target. unlearned (M, T): after the
    method, one row per (shadow, request); forgot (M, T): target in that forget set; unseen (M, T): never seen by that
    shadow; first (M,): the shadow's first request. population (S, P): plain scores of unseen samples.
    """

    plan: Plan
    plain: np.ndarray
    trained: np.ndarray
    unlearned: np.ndarray
    forgot: np.ndarray
    unseen: np.ndarray
    first: np.ndarray
    population: np.ndarray


def make_plan(
    forget: Split,
    retain: Split,
    test: Split,
    shadows: int,
    *,
    seed: int = 0,
    design: Design = "matched",
    requests: int = 1,
) -> Plan:
    """The plan of so many shadow originals (even, at least 4).

    Unseen targets are test samples of the classes to forget, class by class as many as there are; where there are
    fewer, samples to forget are left out of the attack (and of the halves, but not of the audited request). Raises
    `UsageError` where no class of the forget set occurs among the test samples.
    """
    if shadows < 4 or shadows % 2:
        raise UsageError(f"shadows must be even and at least 4, got {shadows}: half of them are in, half out.")
    rng = numpy_generator(seed, "shadows", design)
    mine, theirs = matched(forget.y.numpy(), test.y.numpy(), rng)
    if len(mine) == 0:
        raise UsageError("no test sample has a class of the forget set, so nothing unseen can be attacked beside it.")
    rest = np.setdiff1d(np.arange(len(test)), theirs)
    others = rng.permutation(rest)[:POPULATION]
    if len(others) == 0:
        raise UsageError("all test samples are targets; pass more test samples, RMIA compares with them.")
    chosen = test.take(test.index[torch.from_numpy(np.concatenate([theirs, others]))])
    pool = joined([forget, retain, chosen], "pool")
    f, r = len(forget), len(retain)
    targets = np.concatenate([np.sort(mine), f + r + np.arange(len(theirs))])
    member = np.arange(len(targets)) < len(mine)
    population = f + r + len(theirs) + np.arange(len(others))
    if design == "matched":
        inside = half_in(len(targets), shadows, rng)
        trained = np.zeros((shadows, len(pool)), bool)
        trained[:, f : f + r] = True
        trained[:, targets] = inside
        gone = [[targets[row]] for row in inside]
    else:
        trained = np.zeros((shadows, len(pool)), bool)
        seen = np.setdiff1d(np.arange(len(pool)), population)
        trained[:, seen] = half_in(len(seen), shadows, rng)
        gone = [_disjoint(np.flatnonzero(row), pool, forget, requests, rng) for row in trained]
    return Plan(pool, trained, gone, targets, member, population)


def half_in(samples: int, shadows: int, rng: np.random.Generator) -> np.ndarray:
    """Bool (shadows, samples): every sample in for exactly half of the shadows, every shadow with half of the samples.

    Shadows come in pairs, each with a random half and with the other half. (Carlini et al.'s code ranks uniform draws
    per sample, so that its shadows differ in size.)
    """
    inside = np.zeros((shadows, samples), bool)
    for pair in range(0, shadows, 2):
        order = rng.permutation(samples)
        inside[pair, order[: samples // 2]] = True
        inside[pair + 1, order[samples // 2 :]] = True
    return inside


def shadow_scores(
    model: nn.Module,
    plan: Plan,
    *,
    recipe: Recipe,
    method: Method | None = None,
    seed: int = 0,
    device: str = "auto",
    jobs: int = 1,
    stack: int | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ShadowScores:
    """Train (or look up) every model of the plan and score it.

    model: the architecture; its weights are not used. method: what forgets; None: originals only, for attacks on plain
    models. jobs: processes that train at the same time, one thread each. stack: originals of one size that a process
    trains as one (`training.stacked`); None: 1 on a CPU, where more are slower, and 8 on a GPU. cache: folder of the
    scores; None: not kept. progress: called with (done, all shadows). Raises `UsageError` for a model that cannot
    be drawn anew.
    """
    work = _Work(
        model, plan, recipe, method, seed, device, cache, _identity(model, plan, recipe, seed), origin_of(plan.pool)
    )
    rows: dict[int, list[np.ndarray]] = {}
    missing = []
    for shadow in range(plan.shadows):
        stored = work.stored(shadow)
        if stored is None:
            missing.append(shadow)
        else:
            rows[shadow] = stored
    if progress is not None:
        progress(len(rows), plan.shadows)
    size = stack if stack is not None else 8 if pick_device(device).type == "cuda" else 1
    for found in in_processes(_several, _stacks(plan, missing, size), shared=work, jobs=jobs, preload=PRELOAD):
        rows |= found
        if progress is not None:
            progress(len(rows), plan.shadows)
    return _gathered(plan, [rows[shadow] for shadow in range(plan.shadows)], method is not None)


def trained_anew(
    model: nn.Module, data: Sequence[Split], *, recipe: Recipe, seeds: Sequence[int], device: str
) -> tuple[list[nn.Module], list[nn.Module]]:
    """One model per split, of the architecture of `model`, and the fresh weights that each started from.

    seeds: of start and training, one per split. Returns (starts, trained); several are trained as one, so their splits
    are of one size. Raises `UsageError` for a model that cannot be drawn anew.
    """
    starts = [copy.deepcopy(model).cpu() for _ in seeds]
    for start, seed in zip(starts, seeds, strict=True):
        reset_parameters(start, seed=seed)
    if len(starts) == 1:
        return starts, [train(starts[0], data[0], recipe=recipe, seed=seeds[0], device=device).model]
    trained = copy.deepcopy(starts)
    target = pick_device(device)
    precision = resolve_precision(recipe.precision, starts[0], data[0], recipe.batch_size, target)
    runs = [Run(seed=seed, device=target, precision=precision) for seed in seeds]
    train_stacked(trained, list(data), recipe, runs)
    return starts, trained


def score(model: nn.Module, plan: Plan, device: torch.device | str) -> np.ndarray:
    """Scores of the targets, then of the population, under one model (T + P,)."""
    places = torch.from_numpy(np.concatenate([plan.targets, plan.population]))
    split = plan.pool.take(plan.pool.index[places])
    return confidence(predict(model, split, device).cpu(), split.y).numpy()


@dataclass(frozen=True, eq=False)
class _Work:
    """Everything a worker needs; pickled once per worker."""

    model: nn.Module
    plan: Plan
    recipe: Recipe
    method: Method | None
    seed: int
    device: str
    cache: Path | None
    identity: str
    origin: Facts

    def requests(self, shadow: int) -> list[np.ndarray]:
        return self.plan.forget[shadow] if self.method is not None else []

    def key(self, shadow: int, request: int | None) -> str:
        """Under which the scores of one model are kept; request None: the shadow original."""
        facts: list[Any] = [self.identity, shadow, _digest(self.plan.train[shadow])]
        if request is not None and self.method is not None:
            facts += [
                code_hash(type(self.method)),
                self.method.card.name,
                to_dict(self.method),
                request,
                _digest(self.plan.forget[shadow][request]),
            ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def keep(self, shadow: int, request: int | None, scores: np.ndarray) -> np.ndarray:
        ArrayCache(self.cache, self.origin).put(self.key(shadow, request), scores=scores)
        return scores

    def stored(self, shadow: int) -> list[np.ndarray] | None:
        """Scores of the original and of every unlearned model; None if one is missing."""
        found = []
        for request in (None, *range(len(self.requests(shadow)))):
            kept = ArrayCache(self.cache).get(self.key(shadow, request))
            if kept is None:
                return None
            found.append(kept["scores"])
        return found


def _stacks(plan: Plan, missing: Sequence[int], size: int) -> list[list[int]]:
    """Shadows that train together: at most `size`, all with equally many samples."""
    if size < 1:
        raise UsageError(f"stack must be at least 1, got {size}.")
    groups: dict[int, list[int]] = {}
    for shadow in missing:
        groups.setdefault(int(plan.train[shadow].sum()), []).append(shadow)
    return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]


def _several(work: _Work, shadows: Sequence[int]) -> dict[int, list[np.ndarray]]:
    """Train these shadow originals, let each forget, and score all models on the way."""
    everything = work.plan.pool
    seeds = [derive(work.seed, "shadow", shadow) for shadow in shadows]
    data = [
        everything.take(everything.index[torch.from_numpy(np.flatnonzero(work.plan.train[shadow]))], "train")
        for shadow in shadows
    ]
    starts, trained = trained_anew(work.model, data, recipe=work.recipe, seeds=seeds, device=work.device)
    return {
        shadow: _scored(work, shadow, seed, start, model)
        for shadow, seed, start, model in zip(shadows, seeds, starts, trained, strict=True)
    }


def _scored(work: _Work, shadow: int, seed: int, start: nn.Module, trained: nn.Module) -> list[np.ndarray]:
    """Scores of one shadow original and of what its requests leave."""
    plan, everything = work.plan, work.plan.pool
    device = next((p.device for p in trained.parameters()), torch.device("cpu"))
    rows = [work.keep(shadow, None, score(trained, plan, device))]
    for request, gone in enumerate(work.requests(shadow)):
        staying = np.setdiff1d(np.flatnonzero(plan.train[shadow]), gone)
        made = unlearn(
            trained,
            forget=everything.take(everything.index[torch.from_numpy(gone)], "forget"),
            retain=everything.take(everything.index[torch.from_numpy(staying)], "retain"),
            method=work.method if work.method is not None else "original",
            recipe=work.recipe,
            # The start of a model trained again is a fresh draw: who retrains does not know the old one.
            initial=None if work.method is not None and not work.method.needs.weights else start.state_dict(),
            seed=derive(seed, "request", request),
            device=work.device,
        )
        rows.append(work.keep(shadow, request, score(made.model, plan, device)))
    return rows


def _gathered(plan: Plan, rows: Sequence[Sequence[np.ndarray]], unlearned: bool) -> ShadowScores:
    count = len(plan.targets)
    forgot, unseen, first, after = [], [], [], []
    for shadow, found in enumerate(rows):
        for request, row in enumerate(found[1:]):
            after.append(row[:count])
            forgot.append(np.isin(plan.targets, plan.forget[shadow][request]))
            unseen.append(~plan.train[shadow][plan.targets])
            first.append(request == 0)
    empty = np.zeros((0, count))
    return ShadowScores(
        plan=plan,
        plain=np.stack([found[0][:count] for found in rows]),
        trained=plan.train[:, plan.targets],
        unlearned=np.stack(after) if unlearned else empty,
        forgot=np.stack(forgot) if unlearned else empty.astype(bool),
        unseen=np.stack(unseen) if unlearned else empty.astype(bool),
        first=np.array(first, bool),
        population=np.stack([found[0][count:] for found in rows]),
    )


def _disjoint(
    inside: np.ndarray, pool: Split, forget: Split, requests: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """`requests` disjoint sets of the forget set's size, of its classes, from what this shadow trained on."""
    able = rng.permutation(inside[np.isin(pool.y.numpy()[inside], forget.y.unique().numpy())])
    size = len(forget)
    if size * requests > len(able):
        raise UsageError(
            f"a shadow has {len(able)} samples of the classes to forget, too few for {requests} disjoint requests of "
            f"{size}; ask for fewer, or use design=matched."
        )
    return [np.sort(part) for part in able[: size * requests].reshape(requests, size)]


def _identity(model: nn.Module, plan: Plan, recipe: Recipe, seed: int) -> str:
    facts: Mapping[str, Any] = {
        "code": [code_hash(__name__), model_code(model)],
        "torch": torch.__version__,
        "architecture": repr(model),
        "shapes": [tuple(value.shape) for value in model.state_dict().values()],
        "pool": plan.pool.content_hash(),
        "targets": _digest(plan.targets),
        "population": _digest(plan.population),
        "recipe": to_dict(recipe),
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


__all__ = ["Plan", "ShadowScores", "half_in", "make_plan", "score", "shadow_scores", "trained_anew"]
