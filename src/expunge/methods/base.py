"""The base class of all methods: `apply` checks, copies, seeds and restores; a method adds options and `unlearn`.

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
from expunge.core.user_code import split_preset
from expunge.methods import METHODS
from expunge.methods.cost import Work
from expunge.methods.problem import Problem
from expunge.methods.rewind import rewind
from expunge.methods.scaling import Sizes
from expunge.models.checkpoint import weights_hash
from expunge.models.contract import copied
from expunge.models.layout import channels_last, contiguous
from expunge.models.modes import lone_samples, without_lone_samples
from expunge.training.recipe import make_optimizer

C = TypeVar("C", bound="Method")

# Keywords of `expunge.unlearn`, which takes a method's options as further keywords, and the keys of a method in a
# study: an option of that name could not be passed.
RESERVED = frozenset(
    {"budget_seconds", "cache", "cancelled", "compile", "device", "forget", "initial", "label", "measure", "method"}
    | {"model", "name", "precision", "progress", "recipe", "resume", "retain", "seed", "validation", "wrong_labels"}
    | {"certified"}
)


class Method(ABC):
    """An unlearning method: frozen options (fields) and an algorithm.

    Attributes:
        card: name, summary, data access and paper, from the registry.
        same_tensors: whether the result has the tensor names and shapes of the given model; false for methods that
            return another architecture.
        parallel: whether several processes can share a run (`torchrun`). Such a method draws batches with
            `world=run.world`, passes them through `training.ddp.Passes`, and decides nothing by process-local values.
        presets: named sets of option values, e.g. the settings of one table of the paper; users write `scrub/large-rb`.
        renamed: former names of options, old -> new, which recipes and results of earlier versions contain.
        preset_source: where the values of the presets come from, in one sentence.
    """

    card: ClassVar[Card]
    same_tensors: ClassVar[bool] = True
    parallel: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}
    preset_source: ClassVar[str] = ""

    @property
    def needs(self) -> Needs:
        """Data access that this method needs with these options."""
        needs: Needs = self.card.needs
        return needs

    @property
    def rewinds(self) -> bool:
        """Whether `apply` returns one of the epoch snapshots (see `methods.rewind`)."""
        return False

    def scaled(self, sizes: Sizes) -> Mapping[str, Any]:
        """Values for options that were not given, computed from the problem's sizes; see `methods.scaling`."""
        return {}

    @final
    def fitted(self, sizes: Sizes) -> Method:
        """The method with `scaled` values for the options that were not given; presets are not scaled."""
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
        """Run the algorithm.

        Args:
            problem: the trained model and the declared data; `problem.model` is frozen, in eval mode, and must not be
                changed: work on `problem.student()`.
            run: device, seeds, progress and history.

        Returns:
            The unlearned model, on `run.device`.
        """

    @final
    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Run the algorithm on private copies, verify the result, restore modes and flags.

        Returns:
            The unlearned model, with the train/eval modes, `requires_grad` flags and device of `problem.model`.

        Raises:
            DivergedError: if the result has weights that are not finite.
            ExpungeError: if the method breaks its contract: it changed the given model, returned a model that shares
                weights with it, or returned other tensors.
            UsageError: if several processes share the run of a method that is not `parallel`.
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
        run.world.broadcast_parameters(result)
        self._verify(teacher, before, result)
        return _restored(result, original)

    def _verify(self, teacher: nn.Module, before: str, result: nn.Module) -> None:
        name = self.card.name
        if weights_hash(teacher) != before:
            raise ExpungeError(f"{name} changed the model it was given; methods must work on `problem.student()`.")
        owned = {p.data_ptr() for p in teacher.parameters() if p.numel()}
        if any(p.data_ptr() in owned for p in result.parameters() if p.numel()):
            raise ExpungeError(f"{name} returned a model that shares weights with the given one.")
        expected, actual = teacher.state_dict(), result.state_dict()
        shapes = [{k: (v.shape, v.dtype) for k, v in tensors.items()} for tensors in (expected, actual)]
        if self.same_tensors and shapes[0] != shapes[1]:
            raise ExpungeError(f"{name} returned a model whose tensors differ in name, shape or type.")
        for key, value in actual.items():
            # A buffer may hold infinite constants, such as an attention mask.
            was_finite = (
                torch.isfinite(expected[key]) if key in expected and value.shape == expected[key].shape else True
            )
            if value.is_floating_point() and bool((~torch.isfinite(value) & was_finite).any()):
                raise DivergedError(f"{name} diverged: `{key}` is not finite. Lower the learning rate or set a clip.")


@options
class IterativeMethod(Method):
    """A method that works in epochs and can be rewound (SCRUB+R's rule, see `methods.rewind`) or guarded.

    The guard (`training.guard`) reads held-out samples that the method itself cannot access. It is off if the method is
    rewound, which chooses among all epochs, and in presets, because the published methods have no guard.
    """

    rewind: bool = Field(
        False, description="return the epoch whose forget error is closest to the final model's held-out error"
    )
    max_drop: float | None = Field(
        0.03, gt=0, lt=1, description="largest loss of held-out accuracy on retained classes; none: no guard"
    )

    @property
    def rewinds(self) -> bool:
        return self.rewind

    @property
    def needs(self) -> Needs:
        needs: Needs = self.card.needs
        return needs | Needs(forget="labels", validation="labels") if self.rewind else needs


@options
class SharpMethod(IterativeMethod):
    """An iterative method whose steps can be sharpness-aware (SAM, arXiv:2010.01412); others have no such option."""

    sam_rho: float = Field(
        0.0, ge=0, description="SAM: radius of the ball whose worst point gives the gradient; 0: off"
    )

    def sharp(self, work: Work) -> Work:
        """The work of training steps, twice that where each takes two passes."""
        return work + work if self.sam_rho else work


@options
class DualMethod(SharpMethod):
    """A method with a forget and a retain loss, whose steps can be taken by two optimisers.

    DualOptim (Zhong et al., arXiv:2504.15827): Adam with moments of its own takes the forget step, then the method's
    optimiser the retain step, on the same weights. Methods with one loss have no such option.
    """

    dual_lr: float | None = Field(
        None, gt=0, description="DualOptim: learning rate of Adam, which takes the forget steps; none: one optimiser"
    )

    def dual(self, model: nn.Module) -> torch.optim.Optimizer | None:
        """Adam for the forget steps; None where one optimiser takes both."""
        return None if self.dual_lr is None else make_optimizer("adam", model.parameters(), lr=self.dual_lr)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def method(
    name: str, *, summary: str = "", needs: Needs | None = None, paper: Paper | None = None, tags: tuple[str, ...] = ()
) -> Callable[[type[C]], type[C]]:
    """Class decorator: make the class a validated frozen dataclass and register it under `name`.

    Args:
        name: what users write, e.g. "scrub".
        summary: one line for listings.
        needs: data access of the method; built-in methods have their card in `expunge.methods` and give only `name`.
        paper: citation and address.
        tags: for filters, e.g. "control".

    Raises:
        ExpungeError: if an option has the name of a keyword of `expunge.unlearn` (`RESERVED`).
    """

    def decorate(cls: type[C]) -> type[C]:
        built = options(cls)
        reserved = sorted(RESERVED.intersection(option_names(built)))
        if reserved:
            raise ExpungeError(
                f"{name}: the option `{reserved[0]}` has the name of a keyword of expunge.unlearn and could not be "
                "passed; give it another name."
            )
        if needs is None:
            built.card = METHODS.card(name)
        else:
            built.card = Card(name=name, summary=summary, needs=needs, paper=paper, tags=tags)
        METHODS.add(built.card, built)
        return built

    return decorate


def make_method(name: str | Method, **options_given: Any) -> Method:
    """Build a method from its name and options.

    Args:
        name: a registered "name" or "name/preset", or a method, which is returned with the given options replaced. With
            a preset no option is scaled to the problem: `name/paper` has the defaults of the class.
        options_given: values of options.

    Raises:
        UsageError: for an unknown name, preset or option, or a value out of range.
    """
    if isinstance(name, Method):
        if not options_given:
            return name
        given_options = {option: value for option, value in vars(name).items() if option in given(name)}
        return build(type(name), {**given_options, **options_given}, name.card.name)
    base, preset = split_preset(name)
    cls = METHODS.load(base)
    values = dict(preset_values(cls, preset)) if preset else {}
    built: Method = build(cls, {**values, **options_given}, base)
    return replace(built) if preset else built  # type: ignore[type-var]


def check_parallel(chosen: Method, world: World) -> None:
    """Raise `UsageError` if several processes share a run of a method that is not `parallel`."""
    if world.size > 1 and not chosen.parallel:
        able = sorted(name for name in METHODS.usable() if METHODS.load(name).parallel)
        raise UsageError(
            f"{chosen.card.name} cannot run on {world.size} processes; run it without torchrun, or choose one of the "
            f"methods that can: {', '.join(able)}."
        )


def preset_values(cls: type[Method], preset: str) -> Mapping[str, Any]:
    """Options of a preset; raises `UsageError` if the class has no preset of that name."""
    if preset not in cls.presets:
        if not cls.presets:
            raise UsageError(f"{cls.card.name} has no presets, got `{preset}`; write `{cls.card.name}`.")
        raise unknown(f"preset of {cls.card.name}", preset, cls.presets)
    guarded = issubclass(cls, IterativeMethod)
    return {**({"max_drop": None} if guarded else {}), **cls.presets[preset]}


def _restored(result: nn.Module, original: nn.Module) -> nn.Module:
    """`result` with the train/eval modes, `requires_grad` flags, memory layout and device of the given model."""
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
