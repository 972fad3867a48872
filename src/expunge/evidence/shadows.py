"""Shadow models: the same training and unlearning on random membership splits.

One run of the plan, for shadow s and request j:

    original_s      trained on pool[train[s]] with the recipe of the audited model, from its own initial weights
    unlearned_sj    original_s after unlearning pool[forget[s][j]] with the audited method; the rest of its training
                    samples is the retain set

`matched`  every shadow trains on the retain set and on a random half of the targets: the forget samples and equally
           many unseen ones of the same classes. So a shadow trains on and forgets as many samples as the audited model
           and differs from it only in the targets: the strongest attacker, who knows all other samples. Every target
           is a member for exactly half of the shadows
`halves`   Carlini et al., as used in SCRUB's paper: every shadow trains on a random half of all samples, every sample
           in exactly half of the shadows, and then forgets `requests` disjoint sets of the attacked classes. For an
           original that was itself trained on half of the samples

Kept are the shadow originals, which do not depend on the method, so that a second method (or a function of the caller)
is attacked without training any of them again; and of every model the scores of targets and population. All are files
under a hash of everything that determines them (code included), so that an interrupted run resumes and nothing outdated
is reused.
"""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from expunge.api.prepare import pick_device
from expunge.api.train import train
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
from expunge.evidence.unlearners import Unlearner, apply, identity_of, is_function, name_of
from expunge.metrics.membership import matched
from expunge.models.anatomy import reset_parameters
from expunge.models.identity import model_code
from expunge.training.inference import predict
from expunge.training.precision import resolve_precision
from expunge.training.recipe import Recipe
from expunge.training.rows import ArrayCache
from expunge.training.stacked import train_stacked

POPULATION = 2000  # most unseen samples that RMIA compares with
PRELOAD = ("expunge.evidence.shadows", "torch._dynamo", "sklearn.linear_model")
Design = Literal["matched", "halves"]


@dataclass(frozen=True, eq=False)
class ShadowPlan:
    """Training and forget sets of all shadow models.

    Attributes:
        pool: All n samples.
        train: Membership of each sample in each shadow's training set (S, n), bool.
        forget: Positions in the pool, per shadow and request.
        targets: Attacked samples (T,), positions in the pool.
        member: Whether the audited model was trained on the target (T,), bool.
        population: Unseen samples (P,), positions in the pool.
    """

    pool: Split
    train: np.ndarray
    forget: list[list[np.ndarray]]
    targets: np.ndarray
    member: np.ndarray
    population: np.ndarray

    @property
    def shadows(self) -> int:
        """Number of shadow models."""
        return len(self.train)


@dataclass(frozen=True, eq=False)
class ShadowScores:
    """Scores log(p_y / (1 - p_y)) of T targets under the shadow models, float64.

    Attributes:
        plan: The sets.
        plain: Under the S shadow originals (S, T).
        trained: Whether a shadow original saw the target (S, T), bool.
        unlearned: After unlearning, one row per (shadow, request) (M, T).
        forgot: Whether the target is in that forget set (M, T), bool.
        unseen: Whether that shadow never saw the target (M, T), bool.
        first: Whether it is the shadow's first request (M,), bool.
        population: Of the unseen samples under the shadow originals (S, P).
    """

    plan: ShadowPlan
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
) -> ShadowPlan:
    """Draw the training and forget sets of all shadow models.

    Unseen targets are test samples of the forgotten classes, as many per class as there are forget samples; if there
    are fewer, forget samples are left out of the attack (and of the halves, but not of the audited request).

    Args:
        forget: The audited forget set.
        retain: The retain set.
        test: Samples that the audited model was not trained on.
        shadows: Number of shadow originals, even and >= 4.
        seed: Of all draws, >= 0.
        design: See the module.
        requests: Forget sets per shadow, >= 1; only for `halves`.

    Raises:
        UsageError: If no class of the forget set occurs in the test set, or for a wrong number of shadows.
    """
    if shadows < 4 or shadows % 2:
        raise UsageError(
            f"shadows must be even and at least 4, got {shadows}: every target is a member for half of them."
        )
    rng = numpy_generator(seed, "shadows", design)
    forget_rows, test_rows = matched(forget.y.numpy(), test.y.numpy(), rng)
    if len(forget_rows) == 0:
        raise UsageError("no test sample has a class of the forget set, so there are no unseen targets.")
    rest = np.setdiff1d(np.arange(len(test)), test_rows)
    population_rows = rng.permutation(rest)[:POPULATION]
    if len(population_rows) == 0:
        raise UsageError("all test samples are targets; pass more test samples, RMIA compares with them.")
    chosen = test.take(test.index[torch.from_numpy(np.concatenate([test_rows, population_rows]))])
    pool = joined([forget, retain, chosen], "pool")
    f, r = len(forget), len(retain)
    targets = np.concatenate([np.sort(forget_rows), f + r + np.arange(len(test_rows))])
    member = np.arange(len(targets)) < len(forget_rows)
    population = f + r + len(test_rows) + np.arange(len(population_rows))
    if design == "matched":
        inside = half_in(len(targets), shadows, rng)
        trained = np.zeros((shadows, len(pool)), bool)
        trained[:, f : f + r] = True
        trained[:, targets] = inside
        requested = [[targets[row]] for row in inside]
    else:
        trained = np.zeros((shadows, len(pool)), bool)
        attackable = np.setdiff1d(np.arange(len(pool)), population)
        trained[:, attackable] = half_in(len(attackable), shadows, rng)
        requested = [_disjoint(np.flatnonzero(row), pool, forget, requests, rng) for row in trained]
    return ShadowPlan(pool, trained, requested, targets, member, population)


def half_in(samples: int, shadows: int, rng: np.random.Generator) -> np.ndarray:
    """Bool (shadows, samples): each sample is in exactly half of the shadows, and each shadow has half of the samples.

    Shadows come in pairs: a random half, and the other half. (The code of Carlini et al. ranks uniform draws per
    sample, so that its shadows differ in size.)
    """
    inside = np.zeros((shadows, samples), bool)
    for pair in range(0, shadows, 2):
        order = rng.permutation(samples)
        inside[pair, order[: samples // 2]] = True
        inside[pair + 1, order[samples // 2 :]] = True
    return inside


def shadow_scores(
    model: nn.Module,
    plan: ShadowPlan,
    *,
    recipe: Recipe,
    method: Unlearner | None = None,
    seed: int = 0,
    device: str = "auto",
    jobs: int = 1,
    stack: int | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ShadowScores:
    """Train every model of the plan, or load its cached scores, and score it.

    Args:
        model: The architecture; its weights are not used.
        plan: The training and forget sets.
        recipe: Of the training.
        method: The unlearning method, or a function (`unlearners`); None: originals only, for attacks on models before
            unlearning.
        seed: Of all training, >= 0.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        jobs: Processes that train in parallel, one thread each.
        stack: Originals of equal size that a process trains together (`training.stacked`); None: 1 on a CPU, where more
            are slower, and 8 on a GPU.
        cache: Folder of the shadow originals and of the scores; None: not kept.
        progress: Called with the number of finished and of all shadows.

    Raises:
        UsageError: For a model that cannot be re-initialised, or for a function in several processes that these cannot
            import.
    """
    if jobs > 1 and is_function(method):
        _check_sent(method)
    work = _ShadowJob(
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
    for finished in in_processes(
        _train_and_score, _stacks(plan, missing, size), shared=work, jobs=jobs, preload=PRELOAD
    ):
        rows |= finished
        if progress is not None:
            progress(len(rows), plan.shadows)
    return _gathered(plan, [rows[shadow] for shadow in range(plan.shadows)], method is not None)


def train_fresh(
    model: nn.Module, data: Sequence[Split], *, recipe: Recipe, seeds: Sequence[int], device: str
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Train one re-initialised copy of `model` per split; several are trained together, so splits have equal sizes.

    Args:
        model: The architecture.
        data: One training set per model.
        recipe: Of the training.
        seeds: Of the initial weights and of the training, one per split.
        device: As for `shadow_scores`.

    Returns:
        The models with their initial weights, and the trained models.

    Raises:
        UsageError: For a model that cannot be re-initialised.
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


def score(model: nn.Module, plan: ShadowPlan, device: torch.device | str) -> np.ndarray:
    """Scores of the targets, then of the population, under one model (T + P,), float64."""
    places = torch.from_numpy(np.concatenate([plan.targets, plan.population]))
    split = plan.pool.take(plan.pool.index[places])
    return confidence(predict(model, split, device).cpu(), split.y).numpy()


@dataclass(frozen=True, eq=False)
class _ShadowJob:
    """Everything a worker needs; pickled once per worker."""

    model: nn.Module
    plan: ShadowPlan
    recipe: Recipe
    method: Unlearner | None
    seed: int
    device: str
    cache: Path | None
    identity: str
    origin: Facts

    def requests(self, shadow: int) -> list[np.ndarray]:
        return self.plan.forget[shadow] if self.method is not None else []

    def key(self, shadow: int, request: int | None) -> str | None:
        """Cache key of the scores of one model; request None: the shadow original.

        None where it cannot be told what the method does (`identity_of`).
        """
        facts: list[Any] = [self.identity, shadow, _digest(self.plan.train[shadow])]
        if request is not None and self.method is not None:
            known = identity_of(self.method)
            if known is None:
                return None
            facts += [*known, request, _digest(self.plan.forget[shadow][request])]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def keep(self, shadow: int, request: int | None, scores: np.ndarray) -> np.ndarray:
        key = self.key(shadow, request)
        if key is not None:
            ArrayCache(self.cache, self.origin).put(key, scores=scores)
        return scores

    def keep_original(self, shadow: int, model: nn.Module) -> None:
        state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
        if self.cache is not None and all(value.dtype != torch.bfloat16 for value in state.values()):
            arrays = {name: value.numpy() for name, value in state.items()}
            ArrayCache(self.cache, self.origin).put(f"{self.key(shadow, None)}-weights", **arrays)

    def original(self, shadow: int) -> nn.Module | None:
        """The shadow original, if it was trained before; None if it was not, or is damaged."""
        arrays = ArrayCache(self.cache).get(f"{self.key(shadow, None)}-weights")
        if arrays is None:
            return None
        model = copy.deepcopy(self.model).cpu()
        try:
            model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        except RuntimeError:
            return None
        return model

    def stored(self, shadow: int) -> list[np.ndarray] | None:
        """Scores of the original and of every unlearned model; None if any is missing."""
        scores = []
        for request in (None, *range(len(self.requests(shadow)))):
            key = self.key(shadow, request)
            entry = None if key is None else ArrayCache(self.cache).get(key)
            if entry is None:
                return None
            scores.append(entry["scores"])
        return scores


def _stacks(plan: ShadowPlan, missing: Sequence[int], size: int) -> list[list[int]]:
    """Groups of at most `size` shadows with equally many samples, which train together."""
    if size < 1:
        raise UsageError(f"stack must be at least 1, got {size}.")
    groups: dict[int, list[int]] = {}
    for shadow in missing:
        groups.setdefault(int(plan.train[shadow].sum()), []).append(shadow)
    return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]


def _train_and_score(work: _ShadowJob, shadows: Sequence[int]) -> dict[int, list[np.ndarray]]:
    """Train these shadow originals, or load them, unlearn each request, and score all models."""
    pool = work.plan.pool
    seeds = {shadow: derive(work.seed, "shadow", shadow) for shadow in shadows}
    originals = {shadow: model for shadow in shadows if (model := work.original(shadow)) is not None}
    missing = [shadow for shadow in shadows if shadow not in originals]
    if missing:
        data = [
            pool.take(pool.index[torch.from_numpy(np.flatnonzero(work.plan.train[shadow]))], "train")
            for shadow in missing
        ]
        trained = train_fresh(
            work.model, data, recipe=work.recipe, seeds=[seeds[shadow] for shadow in missing], device=work.device
        )[1]
        for shadow, model in zip(missing, trained, strict=True):
            work.keep_original(shadow, model)
            originals[shadow] = model
    return {shadow: _scored(work, shadow, seeds[shadow], originals[shadow]) for shadow in shadows}


def _scored(work: _ShadowJob, shadow: int, seed: int, trained: nn.Module) -> list[np.ndarray]:
    """Scores of one shadow original and of its unlearned models."""
    plan, pool = work.plan, work.plan.pool
    device = next((p.device for p in trained.parameters()), torch.device("cpu"))
    rows = [work.keep(shadow, None, score(trained, plan, device))]
    if work.method is None:
        return rows
    start = copy.deepcopy(work.model).cpu()
    reset_parameters(start, seed=seed)
    for request, forget_rows in enumerate(work.requests(shadow)):
        retain_rows = np.setdiff1d(np.flatnonzero(plan.train[shadow]), forget_rows)
        unlearned = apply(
            work.method,
            trained,
            pool.take(pool.index[torch.from_numpy(forget_rows)], "forget"),
            pool.take(pool.index[torch.from_numpy(retain_rows)], "retain"),
            recipe=work.recipe,
            initial=start.state_dict(),
            seed=derive(seed, "request", request),
            device=work.device,
        )
        rows.append(work.keep(shadow, request, score(unlearned, plan, device)))
    return rows


def _check_sent(method: Any) -> None:
    """`UsageError` for a function that other processes cannot import."""
    try:
        pickle.dumps(method)
    except (pickle.PicklingError, AttributeError, TypeError):
        raise UsageError(
            f"{name_of(method)} cannot be handed to other processes, because it is no function of a module; pass "
            "jobs=1, or define it in a file of its own."
        ) from None


def _gathered(plan: ShadowPlan, rows: Sequence[Sequence[np.ndarray]], unlearned: bool) -> ShadowScores:
    count = len(plan.targets)
    forgot, unseen, first, after = [], [], [], []
    for shadow, shadow_rows in enumerate(rows):
        for request, row in enumerate(shadow_rows[1:]):
            after.append(row[:count])
            forgot.append(np.isin(plan.targets, plan.forget[shadow][request]))
            unseen.append(~plan.train[shadow][plan.targets])
            first.append(request == 0)
    empty = np.zeros((0, count))
    return ShadowScores(
        plan=plan,
        plain=np.stack([shadow_rows[0][:count] for shadow_rows in rows]),
        trained=plan.train[:, plan.targets],
        unlearned=np.stack(after) if unlearned else empty,
        forgot=np.stack(forgot) if unlearned else empty.astype(bool),
        unseen=np.stack(unseen) if unlearned else empty.astype(bool),
        first=np.array(first, bool),
        population=np.stack([shadow_rows[0][count:] for shadow_rows in rows]),
    )


def _disjoint(
    inside: np.ndarray, pool: Split, forget: Split, requests: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """`requests` disjoint sets of the size and classes of the forget set, from this shadow's training set."""
    able = rng.permutation(inside[np.isin(pool.y.numpy()[inside], forget.y.unique().numpy())])
    size = len(forget)
    if size * requests > len(able):
        raise UsageError(
            f"a shadow has {len(able)} samples of the classes to forget, too few for {requests} disjoint requests of "
            f"{size}; ask for fewer, or use design=matched."
        )
    return [np.sort(part) for part in able[: size * requests].reshape(requests, size)]


def _identity(model: nn.Module, plan: ShadowPlan, recipe: Recipe, seed: int) -> str:
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


__all__ = ["ShadowPlan", "ShadowScores", "half_in", "make_plan", "score", "shadow_scores", "train_fresh"]
