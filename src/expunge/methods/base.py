"""What every method shares. `apply` owns the ceremony; a method is its options and its algorithm, `unlearn`.

@method("my-method", summary="one line", needs=Needs(retain="labels"))
class MyMethod(Method):
    lr: float = Field(0.01, gt=0, description="learning rate")

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeVar, dataclass_transform, final

import torch
from torch import nn

from expunge.core.distributed import World
from expunge.core.errors import DivergedError, ExpungeError, UsageError, unknown
from expunge.core.needs import Needs
from expunge.core.options import Field, build, given, option_names, options
from expunge.core.registry import Card, Paper
from expunge.core.run import Run
from expunge.core.seeds import global_generators
from expunge.methods import METHODS
from expunge.methods.cost import Work
from expunge.methods.problem import Problem
from expunge.methods.rewind import rewind
from expunge.methods.scaling import Sizes
from expunge.models.checkpoint import weights_hash
from expunge.models.contract import copied
from expunge.models.layout import channels_last, contiguous
from expunge.models.modes import lone_samples, without_lone_samples

C = TypeVar("C", bound="Method")

# Keywords of `expunge.unlearn`, which takes a method's options as further keywords, and the keys of a method in a
# study: an option of that name could not be passed.
RESERVED = frozenset(
    {"budget_seconds", "cache", "cancelled", "compile", "device", "forget", "initial", "label", "measure", "method"}
    | {"model", "name", "precision", "progress", "recipe", "retain", "seed", "validation", "wrong_labels"}
)


class Method(ABC):
    """A way to forget: frozen options (fields) and an algorithm.

    presets: named sets of option values, e.g. the settings of one table of the paper; users write `scrub/large-rb`.
    renamed: former names of options, old -> new; recipes and results of earlier versions have them.
    preset_source: where these values come from, in a sentence.
    same_tensors: the result has the tensors of the given model; only a method that trains in another way has others.
    parallel: several processes can share a run (`torchrun`): it draws batches with `world=run.world`, passes them
    through `training.ddp.Passes`, and decides nothing by what only one process knows.
    """

    card: ClassVar[Card]
    same_tensors: ClassVar[bool] = True
    parallel: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}
    preset_source: ClassVar[str] = ""

    @property
    def needs(self) -> Needs:
        """What this method, with these options, must be handed."""
        needs: Needs = self.card.needs
        return needs

    @property
    def rewinds(self) -> bool:
        return False

    def scaled(self, sizes: Sizes) -> Mapping[str, Any]:
        """Values that fit a problem, for options that nobody gave; see `methods.scaling`."""
        return {}

    @final
    def fitted(self, sizes: Sizes) -> Method:
        """The method with `scaled` values for what nobody gave. Presets, and methods made whole, stay as they are."""
        values = {name: value for name, value in self.scaled(sizes).items() if name not in given(self)}
        return replace(self, **values) if values else self  # type: ignore[type-var]

    def cost(self, sizes: Sizes) -> Work | None:
        """Forward and backward passes that a run makes on a problem of these sizes, counted and not measured.

        Announcements, budgets and the automatic choice go by it. A method of your own states it with the helpers of
        `methods.cost`; the conformance suite compares it with the passes of a run.

        Args:
            sizes: Samples, classes and recipe of the problem.

        Returns:
            The count, or None where the method does not state it: such a method has no estimate.
        """
        return None

    @abstractmethod
    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        """The algorithm. Returns a new model; `problem.model` is frozen, in eval mode, and must stay as it is."""

    @final
    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Run the algorithm on private copies, verify what it did, restore every mode and flag.

        Raises `ExpungeError` when a method breaks the contract: it changed its teacher, returned it, returned other
        tensors than it was given, or returned weights that are not finite.
        """
        check_parallel(self, run.world)
        original = problem.model
        teacher = copied(original).to(run.device).eval().requires_grad_(False)
        channels_last(teacher, problem.input_shape)  # its students are copies
        run.label = self.card.name
        before = weights_hash(teacher)
        with global_generators(run.device) as waited:
            run.waited(waited)
            torch.manual_seed(run.module_seed("modules"))
            run.keep_snapshots = run.keep_snapshots or self.rewinds
            if run.guard is not None:
                run.guard.begin(teacher)
            with lone_samples(teacher):  # its students are copies
                result = self.unlearn(replace(problem, model=teacher), run)
            if self.rewinds:
                # A method may have changed the weights before its first epoch; epoch 0 is the original all the same.
                result = rewind(problem, run, result, {**run.snapshots, 0: teacher.state_dict()})
            run.synchronize()
        run.world.align(result)
        self._verify(teacher, before, result)
        return _restored(result, original)

    def _verify(self, teacher: nn.Module, before: str, result: nn.Module) -> None:
        name = self.card.name
        if weights_hash(teacher) != before:
            raise ExpungeError(f"{name} changed the model it was given; methods must work on `problem.student()`.")
        owned = {p.data_ptr() for p in teacher.parameters() if p.numel()}
        if any(p.data_ptr() in owned for p in result.parameters() if p.numel()):
            raise ExpungeError(f"{name} returned a model that shares weights with the given one.")
        given, got = teacher.state_dict(), result.state_dict()
        shapes = [{k: (v.shape, v.dtype) for k, v in tensors.items()} for tensors in (given, got)]
        if self.same_tensors and shapes[0] != shapes[1]:
            raise ExpungeError(f"{name} returned a model whose tensors differ in name, shape or type.")
        for key, value in got.items():
            # A buffer may hold infinite constants, such as an attention mask.
            was_finite = torch.isfinite(given[key]) if key in given and value.shape == given[key].shape else True
            if value.is_floating_point() and bool((~torch.isfinite(value) & was_finite).any()):
                raise DivergedError(f"{name} diverged: `{key}` is not finite. Lower the learning rate or set a clip.")


@options
class IterativeMethod(Method):
    """A method that works in epochs; any of them can be rewound (SCRUB+R's rule, see `methods.rewind`), or guarded.

    The guard (`training.guard`) reads held-out samples that the method is not handed. It is off where the method is
    rewound, which chooses among all epochs, and in presets, whose authors had none.
    """

    rewind: bool = Field(
        False, description="return the epoch whose forget error is closest to the final model's held-out error"
    )
    max_drop: float | None = Field(
        0.03, gt=0, lt=1, description="held-out accuracy on classes that stay that may be lost; none: no guard"
    )

    @property
    def rewinds(self) -> bool:
        return self.rewind

    @property
    def needs(self) -> Needs:
        needs: Needs = self.card.needs
        return needs | Needs(forget="labels", validation="labels") if self.rewind else needs


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def method(
    name: str, *, summary: str = "", needs: Needs | None = None, paper: Paper | None = None, tags: tuple[str, ...] = ()
) -> Callable[[type[C]], type[C]]:
    """Class decorator: make the class a validated frozen dataclass and register it under `name`.

    Built-in methods have their card in the catalogue (`expunge.methods`) and give only the name.

    Raises `ExpungeError` if an option has the name of a keyword of `expunge.unlearn` (`RESERVED`).
    """

    def decorate(cls: type[C]) -> type[C]:
        made = options(cls)
        taken = sorted(RESERVED.intersection(option_names(made)))
        if taken:
            raise ExpungeError(
                f"{name}: the option `{taken[0]}` has the name of a keyword of expunge.unlearn and could not be "
                "passed; give it another name."
            )
        if needs is None:
            made.card = METHODS.card(name)
        else:
            made.card = Card(name=name, summary=summary, needs=needs, paper=paper, tags=tags)
        METHODS.add(made.card, made)
        return made

    return decorate


def make_method(name: str | Method, **options_given: Any) -> Method:
    """A method from `name` or `name/preset` and options; an instance passes through with options replaced.

    With a preset no option is scaled to the problem: `name/paper` has the values that stand in the class.
    """
    if isinstance(name, Method):
        if not options_given:
            return name
        kept = {option: value for option, value in vars(name).items() if option in given(name)}
        return build(type(name), {**kept, **options_given}, name.card.name)
    base, _, preset = name.partition("/")
    cls = METHODS.load(base)
    values = dict(preset_values(cls, preset)) if preset else {}
    made: Method = build(cls, {**values, **options_given}, base)
    return replace(made) if preset else made  # type: ignore[type-var]


def check_parallel(chosen: Method, world: World) -> None:
    """`UsageError` if several processes are to share a run of a method that only one can do."""
    if world.several and not chosen.parallel:
        able = sorted(name for name in METHODS.names() if METHODS.load(name).parallel)
        raise UsageError(
            f"{chosen.card.name} cannot be shared by {world.size} processes; run it without torchrun, or choose one "
            f"of those that can: {', '.join(able)}."
        )


def preset_values(cls: type[Method], preset: str) -> Mapping[str, Any]:
    """Options of a preset. Raises `UsageError` where there is none of that name."""
    if preset not in cls.presets:
        if not cls.presets:
            raise UsageError(f"{cls.card.name} has no presets, got `{preset}`; write `{cls.card.name}`.")
        raise unknown(f"preset of {cls.card.name}", preset, cls.presets)
    guarded = issubclass(cls, IterativeMethod)
    return {**({"max_drop": None} if guarded else {}), **cls.presets[preset]}


def _restored(result: nn.Module, original: nn.Module) -> nn.Module:
    """Train/eval modes, `requires_grad`, memory layout and device as the given model had them."""
    contiguous(result)
    without_lone_samples(result)
    reference = next(iter(original.parameters()), None)
    if reference is not None:
        result.to(reference.device)
    modes = {name: module.training for name, module in original.named_modules()}
    for name, module in result.named_modules():
        module.training = modes.get(name, original.training)
    flags = {name: parameter.requires_grad for name, parameter in original.named_parameters()}
    for name, parameter in result.named_parameters():
        parameter.requires_grad_(flags.get(name, True))
        parameter.grad = None
    return result
