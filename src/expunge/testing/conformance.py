"""Executable checks that a method does what a method must. Discovered for every registered one; run them on yours:

    from expunge.testing.conformance import CHECKS, Settings
    for check in CHECKS:
        check(MyMethod, Settings())

Each raises `ConformanceError` with what was seen. They fail on the faults found in published ports: a teacher that
shares its student's weights, an optimiser built on the wrong model, raw logits handed to a KL, an option never read.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.api.result import Result
from expunge.api.unlearn import unlearn
from expunge.core.errors import ExpungeError, UsageError
from expunge.core.options import build, option_names, to_dict
from expunge.core.run import Progress
from expunge.methods.base import Method
from expunge.testing.toys import TiedNet, ToyNet, ToyProblem, toy_problem
from expunge.training.inference import predict

RECIPE = {"epochs": 3, "batch_size": 30, "optimizer": "adam", "lr": 0.02, "weight_decay": 0.0, "schedule": "constant"}


class ConformanceError(AssertionError):
    """A method broke the contract."""


@dataclass(frozen=True)
class Settings:
    """How to exercise a method on the toy problem.

    options: make it small and make it work. contexts: option -> the other options under which changing it shows.
    values: option -> the value to change it to, where the automatic one does not fit. inert: option -> why changing
    it changes neither weights nor history on the toy problem (e.g. it only trades memory for speed).
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    contexts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    inert: Mapping[str, str] = field(default_factory=dict)
    identity_at_zero_epochs: bool = True
    forgets: bool = True
    forget_class: int | None = 1


def run(method: Method, problem: ToyProblem, *, seed: int = 0, **more: Any) -> Result:
    """`unlearn` with everything a method could need; it receives only what it declares."""
    return unlearn(
        problem.model,
        forget=problem.forget,
        retain=problem.retain,
        validation=problem.validation,
        recipe=RECIPE,
        initial=problem.initial,
        method=method,
        seed=seed,
        device="cpu",
        measure=False,  # what is read is to be the method's own
        **more,
    )


def make(cls: type[Method], settings: Settings, **changes: Any) -> Method:
    """Without its guard, which would take back what a check is about to look at."""
    unguarded = {"max_drop": None} if "max_drop" in option_names(cls) else {}
    return build(cls, {**unguarded, **settings.options, **changes}, cls.card.name)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def require(condition: bool, cls: type[Method], text: str) -> None:
    if not condition:
        raise ConformanceError(f"{cls.card.name}: {text}")


def is_reference(cls: type[Method]) -> bool:
    return cls.card.name == "original"


def check_original_untouched(cls: type[Method], settings: Settings) -> None:
    """(a) The given model is bit-identical afterwards, and the result lives in other memory."""
    problem = toy_problem(forget_class=settings.forget_class)
    before = weights(problem.model)
    result = run(make(cls, settings), problem)
    require(same(before, weights(problem.model)), cls, "the given model was changed.")
    pointers = {p.data_ptr() for p in problem.model.parameters()}
    shared = [name for name, p in result.model.named_parameters() if p.data_ptr() in pointers]
    require(not shared, cls, f"the result shares memory with the given model: {shared}.")


def check_weights_move(cls: type[Method], settings: Settings) -> None:
    """Trainable weights change: an optimiser on the wrong model, or a loss that is zero, shows here."""
    if is_reference(cls) or not cls.same_tensors:  # other tensors: nothing to compare with
        return
    problem = toy_problem(forget_class=settings.forget_class)
    result = run(make(cls, settings), problem)
    given = dict(problem.model.named_parameters())
    moved = max(float((p - given[name]).detach().abs().max()) for name, p in result.model.named_parameters())
    require(moved > 1e-6, cls, f"no trainable weight moved (largest change {moved:.1e}); only buffers may have.")


def check_deterministic(cls: type[Method], settings: Settings) -> None:
    """(b) Same seed, same bits, twice in one process."""
    problem = toy_problem(forget_class=settings.forget_class)
    first = run(make(cls, settings), problem, seed=3)
    second = run(make(cls, settings), problem, seed=3)
    require(same(weights(first.model), weights(second.model)), cls, "the same seed gave other weights.")


def check_reads_only_declared(cls: type[Method], settings: Settings) -> None:
    """(c) Undeclared splits are never fetched, declared ones are."""
    problem = toy_problem(forget_class=settings.forget_class)
    chosen = make(cls, settings)
    for spy in problem.spies.values():
        spy.fetched.clear()
    run(chosen, problem)
    # The entry point itself shows the model two samples of each split, to check that they fit together.
    looked = {name: len(spy.fetched) - 2 for name, spy in problem.spies.items() if name != "test"}
    require(not problem.spies["test"].fetched, cls, "the test split was read.")
    for name, count in looked.items():
        declared = getattr(chosen.needs, name)
        if declared == "none":
            require(count <= 0, cls, f"{count} samples of the {name} split were read, but none are declared.")
        else:
            require(count > 0, cls, f"declares {name}={declared} but never reads it.")


def check_forget_set_matters(cls: type[Method], settings: Settings) -> None:
    """Another forget set gives another result, by more than BatchNorm statistics: the forget term is alive."""
    chosen = make(cls, settings)
    if chosen.needs.forget == "none" or "exact" in cls.card.tags:  # what never saw the forget set cannot depend on it
        return
    results = []
    for other in (False, True):
        torch.manual_seed(0)
        problem = toy_problem(ToyNet(batchnorm=False), forget_class=settings.forget_class)
        if other:
            problem.spies["forget"].samples = problem.spies["forget"].samples.flip(-1, -2)
        results.append(weights(run(chosen, problem).model))
    gap = max(float((results[0][k] - results[1][k]).abs().max()) for k in results[0])
    require(gap > 1e-6, cls, f"another forget set gave the same weights (largest difference {gap:.1e}).")


def check_forgets(cls: type[Method], settings: Settings) -> None:
    """(j) On a task with a known answer the loss on the forget set rises, and the rest stays usable."""
    if is_reference(cls) or not settings.forgets:
        return
    problem = toy_problem(forget_class=settings.forget_class)
    result = run(make(cls, settings), problem)
    before, after = (_loss(model, problem) for model in (problem.model, result.model))
    require(after > before + 0.01, cls, f"the loss on the forget set went from {before:.4f} to {after:.4f}.")


def check_options_have_effect(cls: type[Method], settings: Settings) -> None:
    """(d) Changing any option changes the weights, the history or the cost."""
    for info in dataclasses.fields(cls):  # type: ignore[arg-type]
        if info.name in settings.inert:
            continue
        check_option(cls, settings, info.name)


def check_option(cls: type[Method], settings: Settings, name: str) -> None:
    context = dict(settings.contexts.get(name, {}))
    base = make(cls, settings, **context)
    value = settings.values[name] if name in settings.values else another(cls, name, getattr(base, name))
    seen = []
    for chosen in (base, dataclasses.replace(base, **{name: value})):  # type: ignore[type-var]
        problem = toy_problem(forget_class=settings.forget_class)
        for spy in problem.spies.values():
            spy.fetched.clear()
        result = run(chosen, problem)
        fetched = {split: len(spy.fetched) for split, spy in problem.spies.items()}
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]
        seen.append((weights(result.model), fetched, rows, json.dumps(dict(result.details), default=str)))
    changed = not same(seen[0][0], seen[1][0]) or seen[0][1:3] != seen[1][1:3]
    require(changed, cls, f"option `{name}` ({getattr(base, name)!r} -> {value!r}) changed nothing: is it ever read?")


def another(cls: type[Method], name: str, value: Any) -> Any:
    """A different valid value of an option, guessed from its type and bounds."""
    kind = typing.get_type_hints(cls, include_extras=False)[name]
    for candidate in _candidates(kind, value):
        if candidate == value:
            continue
        try:
            build(cls, {name: candidate}, cls.card.name)
        except UsageError:
            continue
        return candidate
    raise ConformanceError(f"{cls.card.name}: no other value for option `{name}` found; name one in Settings.values.")


def _candidates(kind: Any, value: Any) -> list[Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return list(arguments)
    if origin in (typing.Union, types.UnionType):
        return [c for part in arguments if part is not type(None) for c in _candidates(part, None)]
    if kind is bool:
        return [not value]
    if kind is int:
        return [2, 3] if value is None else [value + 1, max(value - 1, 0), 2 * value]
    if kind is float:
        return [0.01] if value is None else [2 * value, value / 2, value + 0.5, value - 0.5]
    if origin is tuple:
        return [(1,), ()]
    return []


def check_zero_epochs(cls: type[Method], settings: Settings) -> None:
    """(e) Zero epochs of an iterative method return the model as it was."""
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if "epochs" not in names or not settings.identity_at_zero_epochs:
        return
    problem = toy_problem(forget_class=settings.forget_class)
    result = run(make(cls, settings, epochs=0), problem)
    require(same(weights(problem.model), weights(result.model)), cls, "zero epochs changed the weights.")


def check_state_restored(cls: type[Method], settings: Settings) -> None:
    """(f) Global random state, train/eval modes, requires_grad and hooks come back, also after an exception."""

    def explode(_: Progress) -> None:
        raise KeyboardInterrupt

    for progress in (None, explode):
        problem = toy_problem(forget_class=settings.forget_class)
        problem.model.train()
        problem.model.norm.eval()  # type: ignore[union-attr]
        problem.model.head.bias.requires_grad_(False)  # type: ignore[union-attr]
        modes = {name: m.training for name, m in problem.model.named_modules()}
        torch.manual_seed(123)
        state = torch.get_rng_state()
        result = None
        with contextlib.suppress(KeyboardInterrupt):
            result = run(make(cls, settings), problem, progress=progress)
        require(torch.equal(state, torch.get_rng_state()), cls, "the global random state was moved.")
        for model in [problem.model] + ([result.model] if result and cls.same_tensors else []):
            now = {name: m.training for name, m in model.named_modules()}
            require(modes == now, cls, "train/eval modes were not restored.")
            require(not model.head.bias.requires_grad, cls, "requires_grad was not restored.")  # type: ignore
            hooked = [n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
            require(not hooked, cls, f"hooks were left on {hooked}.")


def check_bad_values(cls: type[Method], settings: Settings) -> None:
    """(g) Unknown options and values of the wrong type are refused, in one wording."""
    untyped = {name for name, kind in typing.get_type_hints(cls).items() if kind is Any}
    names = [f.name for f in dataclasses.fields(cls) if f.name not in untyped]  # type: ignore[arg-type]
    bad: list[dict[str, Any]] = [{"no_such_option": 1}, *({name: object()} for name in names)]
    for changes in bad:
        try:
            build(cls, {**settings.options, **changes}, cls.card.name)
        except UsageError as error:
            require(cls.card.name in str(error), cls, f"the error does not name the method: {error}")
        else:
            raise ConformanceError(f"{cls.card.name}: accepted {changes}.")


def check_json_round_trip(cls: type[Method], settings: Settings) -> None:
    """(h) Options to JSON and back give the same options."""
    chosen = make(cls, settings)
    back = build(cls, json.loads(json.dumps(to_dict(chosen))), cls.card.name)
    require(back == chosen, cls, f"options changed on the way through JSON: {chosen} -> {back}.")


def check_odd_models(cls: type[Method], settings: Settings) -> None:
    """(i) Tied and frozen weights: the method works or says in one sentence why it cannot; ties stay tied."""
    torch.manual_seed(0)
    problem = toy_problem(TiedNet(), forget_class=settings.forget_class)
    try:
        result = run(make(cls, settings), problem)
    except ExpungeError:
        return
    for model in [m for m in result.model.modules() if isinstance(m, TiedNet)]:
        require(model.first.weight is model.second.weight, cls, "tied weights came apart.")


def check_ignores_trained_weights(cls: type[Method], settings: Settings) -> None:
    """(k) A method that declares `weights=False` gives the same bits whatever the trained weights are."""
    if cls.card.needs.weights:
        return
    problem = toy_problem(forget_class=settings.forget_class)
    first = run(make(cls, settings), problem)
    scrambled = copy.deepcopy(problem)
    with torch.no_grad():
        for p in scrambled.model.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(9)))
    second = run(make(cls, settings), scrambled)
    require(same(weights(first.model), weights(second.model)), cls, "the trained weights leaked into the result.")


def _loss(model: nn.Module, problem: ToyProblem) -> float:
    return float(F.cross_entropy(predict(model, problem.forget), problem.forget.y))


CHECKS: list[Callable[[type[Method], Settings], None]] = [
    check_original_untouched,
    check_weights_move,
    check_deterministic,
    check_reads_only_declared,
    check_forget_set_matters,
    check_forgets,
    check_options_have_effect,
    check_zero_epochs,
    check_state_restored,
    check_bad_values,
    check_json_round_trip,
    check_odd_models,
    check_ignores_trained_weights,
]
