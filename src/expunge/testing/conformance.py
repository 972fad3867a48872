"""Executable checks of the contract of methods, run for every registered method.

For a method of your own:

    from expunge.testing.conformance import CHECKS, Settings
    for check in CHECKS:
        check(MyMethod, Settings())

Each raises `ConformanceError` with what was observed. They fail for faults of published code: a teacher that shares its
student's weights, an optimiser of the wrong model, raw logits passed to a KL divergence, an option that is never read.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import tempfile
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.api.result import Result
from expunge.api.unlearn import unlearn
from expunge.core.errors import ExpungeError, UsageError
from expunge.core.needs import Needs
from expunge.core.options import build, option_names, to_dict
from expunge.core.run import Progress, Run
from expunge.methods.base import Method
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.testing.reachable import leaks
from expunge.testing.toys import CLASSES, TiedNet, ToyNet, ToyProblem, toy_problem
from expunge.training.inference import predict
from expunge.training.recipe import Recipe

RECIPE = {"epochs": 3, "batch_size": 30, "optimizer": "adam", "lr": 0.02, "weight_decay": 0.0, "schedule": "constant"}


class ConformanceError(AssertionError):
    """A method violates the contract."""


@dataclass(frozen=True)
class Settings:
    """How to run a method on the toy problem.

    Attributes:
        options: options that make the method fast and effective.
        contexts: option -> other options under which changing it has an effect.
        values: option -> the value to change it to, if the automatic one is not suitable.
        inert: option -> why changing it changes neither weights nor what is read on the toy problem (e.g. it only
            trades memory for speed).
        identity_at_zero_epochs: whether zero epochs return the original weights.
        forgets: whether the loss on the forget set rises.
        forget_class: the class to forget; None: mixed samples.
        refuses_odd_models: part of the message that refuses tied or frozen weights; None: the method supports them.
        prepare: changes each toy problem before it is used, for a method that supports one kind of model only.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    contexts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    inert: Mapping[str, str] = field(default_factory=dict)
    identity_at_zero_epochs: bool = True
    forgets: bool = True
    forget_class: int | None = 1
    refuses_odd_models: str | None = None
    prepare: Callable[[ToyProblem], None] | None = None

    def problem(self, model: nn.Module | None = None) -> ToyProblem:
        """A toy problem with these settings."""
        made = toy_problem(model, forget_class=self.forget_class)
        if self.prepare is not None:
            self.prepare(made)
        return made


def run(method: Method, problem: ToyProblem, *, seed: int = 0, **more: Any) -> Result:
    """`unlearn` with all data that a method could need, of which it receives what it declares."""
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
        measure=False,  # only reads of the method itself are counted
        **{"precision": "float32", **more},  # "auto" decides by timing
    )


def make(cls: type[Method], settings: Settings, **changes: Any) -> Method:
    """The method with its options, without its guard, which could undo the changes that a check measures."""
    unguarded = {"max_drop": None} if "max_drop" in option_names(cls) else {}
    built: Method = build(cls, {**unguarded, **settings.options, **changes}, cls.card.name)
    return dataclasses.replace(built)  # type: ignore[type-var]  # all options given: none is scaled to the toy


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts are bit-equal."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def require(condition: bool, cls: type[Method], text: str) -> None:
    """Raise `ConformanceError` unless the condition holds."""
    if not condition:
        raise ConformanceError(f"{cls.card.name}: {text}")


def is_reference(cls: type[Method]) -> bool:
    """Whether the method is the untouched original."""
    return cls.card.name == "original"


def check_original_untouched(cls: type[Method], settings: Settings) -> None:
    """(a) The given model is bit-identical afterwards, and the result does not share its memory."""
    problem = settings.problem()
    before = weights(problem.model)
    result = run(make(cls, settings), problem)
    require(same(before, weights(problem.model)), cls, "the given model was changed.")
    pointers = {p.data_ptr() for p in problem.model.parameters()}
    shared = [name for name, p in result.model.named_parameters() if p.data_ptr() in pointers]
    require(not shared, cls, f"the result shares memory with the given model: {shared}.")


def check_weights_move(cls: type[Method], settings: Settings) -> None:
    """Trainable weights change: fails for an optimiser of the wrong model, or a loss that is zero."""
    if is_reference(cls) or not cls.same_tensors:  # other tensors: nothing to compare with
        return
    problem = settings.problem()
    result = run(make(cls, settings), problem)
    given = dict(problem.model.named_parameters())
    moved = max(float((p - given[name]).detach().abs().max()) for name, p in result.model.named_parameters())
    require(moved > 1e-6, cls, f"no trainable weight moved (largest change {moved:.1e}); only buffers may have.")


def check_deterministic(cls: type[Method], settings: Settings) -> None:
    """(b) Two runs with the same seed in one process give bit-equal weights."""
    problem = settings.problem()
    first = run(make(cls, settings), problem, seed=3)
    second = run(make(cls, settings), problem, seed=3)
    require(same(weights(first.model), weights(second.model)), cls, "the same seed gave other weights.")


def check_reads_only_declared(cls: type[Method], settings: Settings) -> None:
    """(c) Undeclared splits are never fetched, declared ones are."""
    problem = settings.problem()
    chosen = make(cls, settings)
    with _looking(cls, lambda *_: problem.clear()):  # reads of the entry point before are not counted
        run(chosen, problem)
    require(not problem.read("test"), cls, "the test split was read.")
    for name in ("forget", "retain", "validation"):
        declared, count = getattr(chosen.needs, name), problem.read(name)
        if declared == "none":
            require(count == 0, cls, f"{count} samples of the {name} split were read, but none are declared.")
        else:
            require(count > 0, cls, f"declares {name}={declared} but never reads it.")


def check_sealed(cls: type[Method], settings: Settings) -> None:
    """(c) With all splits in one store, nothing given to the method leads to an undeclared sample or label.

    Everything reachable from its problem and its run is searched for undeclared samples, labels and ids. With other
    values in their place, the result must be bit-equal.
    """
    chosen = make(cls, settings)
    clean, poisoned = (settings.problem() for _ in range(2))
    secrets = _poison(poisoned, chosen.needs)
    met: list[str] = []
    with _looking(cls, lambda *handed: met.extend(leaks(list(handed), secrets))):
        second = run(chosen, poisoned, progress=lambda _: poisoned.store)
    require(not met, cls, f"its problem or run leads to undeclared data: {', '.join(met)}.")
    first = run(chosen, clean)
    require(
        same(weights(first.model), weights(second.model)), cls, "undeclared samples or labels leaked into the result."
    )


def _poison(problem: ToyProblem, needs: Needs) -> dict[str, Tensor | np.ndarray]:
    """Replace all samples, labels and ids that `needs` does not declare; returns the new values by name."""
    generator = torch.Generator().manual_seed(4)
    store = problem.store
    secrets: dict[str, Tensor | np.ndarray] = {}
    for name in ("forget", "retain", "validation", "test"):
        access, rows = getattr(needs, name, "none"), problem.split(name).index
        if access == "none":
            store.samples[rows] = torch.rand(store.samples[rows].shape, generator=generator)
            secrets[f"samples of the {name} split"] = store.samples[rows]
        if access != "labels" and not (name == "retain" and needs.labelled):
            store.labels[rows] = torch.randint(CLASSES, rows.shape, generator=generator)
            secrets[f"ids of the {name} split"] = store.ids[rows.numpy()]
        if access != "labels":
            secrets[f"labels of the {name} split"] = store.labels[rows]
    return secrets


@contextlib.contextmanager
def _looking(cls: type[Method], look: Callable[[Problem, Run], None]) -> Iterator[None]:
    """Within the context `look` is called with problem and run before the algorithm of `cls` starts."""
    own, algorithm = "unlearn" in vars(cls), cls.unlearn

    def observed(self: Method, problem: Problem, run: Run) -> nn.Module:
        look(problem, run)
        return algorithm(self, problem, run)

    cls.unlearn = observed  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own:
            cls.unlearn = algorithm  # type: ignore[method-assign]
        else:
            del cls.unlearn


def check_forget_set_matters(cls: type[Method], settings: Settings) -> None:
    """Another forget set gives another result, beyond BatchNorm statistics: the forget term has an effect."""
    chosen = make(cls, settings)
    if chosen.needs.forget == "none" or "exact" in cls.card.tags:  # exact results do not depend on the forget set
        return
    results = []
    for other in (False, True):
        torch.manual_seed(0)
        problem = toy_problem(ToyNet(batchnorm=False), forget_class=settings.forget_class)
        if other:
            problem.store.samples[problem.forget.index] = problem.forget.inputs().flip(-1, -2)
        results.append(weights(run(chosen, problem).model))
    gap = max(float((results[0][k] - results[1][k]).abs().max()) for k in results[0])
    require(gap > 1e-6, cls, f"another forget set gave the same weights (largest difference {gap:.1e}).")


def check_forgets(cls: type[Method], settings: Settings) -> None:
    """(j) On a task with a known answer the loss on the forget set rises."""
    if is_reference(cls) or not settings.forgets:
        return
    problem = settings.problem()
    result = run(make(cls, settings), problem)
    before, after = (_loss(model, problem) for model in (problem.model, result.model))
    require(after > before + 0.01, cls, f"the loss on the forget set went from {before:.4f} to {after:.4f}.")


def check_options_have_effect(cls: type[Method], settings: Settings) -> None:
    """(d) Changing any option changes the weights, or how many samples are read."""
    for info in dataclasses.fields(cls):  # type: ignore[arg-type]
        if info.name in settings.inert:
            continue
        check_option(cls, settings, info.name)


def check_option(cls: type[Method], settings: Settings, name: str) -> None:
    """Check that changing one option has an effect."""
    context = dict(settings.contexts.get(name, {}))
    base = make(cls, settings, **context)
    value = settings.values[name] if name in settings.values else another(cls, name, getattr(base, name))
    seen = []
    for chosen in (base, dataclasses.replace(base, **{name: value})):  # type: ignore[type-var]
        problem = settings.problem()
        with _looking(cls, lambda *_, problem=problem: problem.clear()):
            result = run(chosen, problem)
        # Effects on the history or the details alone do not count: an option may merely be copied there.
        seen.append((weights(result.model), [problem.read(split) for split in ("forget", "retain", "validation")]))
    changed = not same(seen[0][0], seen[1][0]) or seen[0][1] != seen[1][1]
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
    """(e) Zero epochs of an iterative method return the original weights."""
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if "epochs" not in names or not settings.identity_at_zero_epochs:
        return
    problem = settings.problem()
    result = run(make(cls, settings, epochs=0), problem)
    require(same(weights(problem.model), weights(result.model)), cls, "zero epochs changed the weights.")


def check_state_restored(cls: type[Method], settings: Settings) -> None:
    """(f) Global random state, train/eval modes, requires_grad and hooks are restored, also after an exception."""

    def explode(_: Progress) -> None:
        raise KeyboardInterrupt

    for progress in (None, explode):
        problem = settings.problem()
        problem.model.train()
        next(m for m in problem.model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
        list(problem.model.parameters())[-1].requires_grad_(False)
        modes = {name: m.training for name, m in problem.model.named_modules()}
        torch.manual_seed(123)
        state = torch.get_rng_state()
        result = None
        with contextlib.suppress(KeyboardInterrupt):
            result = run(make(cls, settings), problem, progress=progress)
        require(torch.equal(state, torch.get_rng_state()), cls, "the global random state was moved.")
        for model in [problem.model] + ([result.model] if result and cls.same_tensors else []):
            current = {name: m.training for name, m in model.named_modules()}
            require(modes == current, cls, "train/eval modes were not restored.")
            require(not list(model.parameters())[-1].requires_grad, cls, "requires_grad was not restored.")
            hooked = [n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
            require(not hooked, cls, f"hooks were left on {hooked}.")


def check_bad_values(cls: type[Method], settings: Settings) -> None:
    """(g) Unknown options and values of the wrong type are refused with the usual message."""
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
    """(h) Options survive a round trip through JSON."""
    chosen = make(cls, settings)
    restored = build(cls, json.loads(json.dumps(to_dict(chosen))), cls.card.name)
    require(restored == chosen, cls, f"options changed on the way through JSON: {chosen} -> {restored}.")


def check_odd_models(cls: type[Method], settings: Settings) -> None:
    """(i) Tied and frozen weights: the method works and keeps ties, or it refuses with the message in `Settings`."""
    torch.manual_seed(0)
    problem = settings.problem(TiedNet())
    words = settings.refuses_odd_models
    try:
        result = run(make(cls, settings), problem)
    except ExpungeError as error:
        require(words is not None and words in str(error), cls, f"refuses tied and frozen weights: {error}")
        try:
            run(make(cls, settings), settings.problem())
        except ExpungeError as again:
            require(False, cls, f"refuses an ordinary model too: {again}")
        return
    require(words is None, cls, f"supports tied and frozen weights, but its settings say that it refuses: {words}")
    for model in [m for m in result.model.modules() if isinstance(m, TiedNet)]:
        require(model.first.weight is model.second.weight, cls, "tied weights came apart.")


def check_ignores_trained_weights(cls: type[Method], settings: Settings) -> None:
    """(k) The result of a method that declares `weights=False` does not depend on the trained weights."""
    if cls.card.needs.weights:
        return
    problem = settings.problem()
    first = run(make(cls, settings), problem)
    scrambled = copy.deepcopy(problem)
    with torch.no_grad():
        for p in scrambled.model.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(9)))
    second = run(make(cls, settings), scrambled)
    require(same(weights(first.model), weights(second.model)), cls, "the trained weights leaked into the result.")


def check_cost(cls: type[Method], settings: Settings) -> None:
    """(l) The passes that `cost` states are those that a run makes; a method that states none has nothing to show."""
    compare_cost(make(cls, settings), settings.problem())


LOOKS = 64
"""Samples that a run may pass beyond what `cost` states: checks of the answers, the search for the model's parts."""


def compare_cost(chosen: Method, problem: ToyProblem) -> None:
    """Run a method, count the samples that pass through the network, and compare them with what it states.

    Raises:
        ConformanceError: If more passes are made than are stated, or fewer where `bound` is "about".
    """
    sizes = Sizes(len(problem.forget), len(problem.retain), build(Recipe, RECIPE), CLASSES)
    stated = chosen.cost(sizes)
    if stated is None:
        return
    counted = {True: 0, False: 0}  # whether a backward pass can follow -> samples

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counted[torch.is_grad_enabled()] += len(output)

    next(problem.model.children()).register_forward_hook(hook)  # copies of the model share the function
    run(chosen, problem)
    # A step costs three passes without gradients, and a look with gradients may stand for one without.
    real, expected = 3 * counted[True] + counted[False], 3 * stated.step_samples + stated.forward_samples
    least = 0 if stated.bound == "at most" else expected - 3 * LOOKS
    require(
        least <= real <= expected + 3 * LOOKS,
        type(chosen),
        f"cost() states {stated.step_samples} samples through training steps and {stated.forward_samples} through "
        f"forward passes ({stated.bound}), and a run made {counted[True]} and {counted[False]}.",
    )


def _loss(model: nn.Module, problem: ToyProblem) -> float:
    return float(F.cross_entropy(predict(model, problem.forget), problem.forget.y))


def check_resumes(cls: type[Method], settings: Settings) -> None:
    """(m) A run that is stopped after its first epoch goes on to the same bits, dropout, guard included.

    A method that carries more from epoch to epoch than it states (`run.epochs(..., state=[...])`) fails here. One that
    states nothing begins again.
    """
    changes: dict[str, Any] = {name: 3 for name in ("epochs", "limit") if name in option_names(cls)}
    if "max_drop" in option_names(cls):
        changes["max_drop"] = 0.9  # a guard that looks, and takes nothing back
    chosen = make(cls, settings, **changes)
    problem = settings.problem(_dropping())
    whole = run(chosen, problem)
    events: list[Progress] = []
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"

        def stop(_: Progress) -> None:
            if state.exists():
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            run(chosen, problem, progress=stop, resume=state)
        was_stored = state.exists()
        second = run(chosen, problem, progress=events.append, resume=state)
    require(same(weights(whole.model), weights(second.model)), cls, "a stopped run went on to other weights.")
    rows = [[{**row, "seconds": 0.0} for row in each.history] for each in (whole, second)]
    require(rows[0] == rows[1], cls, "a stopped run went on to another history.")
    went_on = any(event.what.endswith("goes on after") for event in events)
    require(went_on == was_stored, cls, f"what was kept of a stopped run was not used: {', '.join(second.notes)}.")


def _dropping() -> nn.Module:
    """A toy whose passes draw from PyTorch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ToyNet()
    model.hidden = nn.Sequential(model.hidden, nn.Dropout(0.3))  # type: ignore[assignment]
    return model


CHECKS: list[Callable[[type[Method], Settings], None]] = [
    check_original_untouched,
    check_weights_move,
    check_deterministic,
    check_reads_only_declared,
    check_sealed,
    check_forget_set_matters,
    check_forgets,
    check_options_have_effect,
    check_zero_epochs,
    check_state_restored,
    check_bad_values,
    check_json_round_trip,
    check_odd_models,
    check_ignores_trained_weights,
    check_cost,
    check_resumes,
]
