"""The run context: device, seeds, progress, history, snapshots, time budget, cancellation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from expunge.core.distributed import ALONE, World
from expunge.core.errors import Cancelled, CheckpointError, DivergedError, UsageError
from expunge.core.opaque import opaque
from expunge.core.resume import Resume, Stateful, log
from expunge.core.seeds import derive

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Status = Literal["finished", "budget", "reached", "limit", "already", "stopped", "stopped: utility"]
Precision = Literal["auto", "float32", "bfloat16"]
"""`auto` is resolved to one of the other two before a `Run` is created (see `training.precision`)."""


@dataclass(frozen=True)
class Progress:
    """Progress of long work: `done` of `total` units of `what`, with the latest numbers."""

    what: str
    done: int
    total: int
    numbers: dict[str, float]


def counting(what: str, report: Callable[[Progress], None] | None) -> Callable[[int, int], None] | None:
    """Progress from plain counts (done, total) of `what`; None where nobody listens."""
    if report is None:
        return None
    shown = report  # of a type that the inner function can rely on
    return lambda done, total: shown(Progress(what, done, total, {}))


FINITE_EVERY = 16  # sums of batch means read within an epoch, to see a loss that is not finite before it ends


class Watch(Stateful, Protocol):
    """Monitors a model during training; see `training.guard`."""

    def begin(self, original: nn.Module) -> None:
        """Called with the original model, before any change."""

    def trained(self, model: nn.Module, samples: int, point: str) -> None:
        """Called after every step with its number of samples; `point` describes the progress."""

    def passed(self, model: nn.Module, number: int, *, last: bool) -> bool:
        """Called after epoch `number`; returns whether to stop."""

    def settle(self, model: nn.Module) -> str:
        """Called at the end: restore the model if necessary; returns a note, or an empty string."""


class Epoch:
    """One epoch, which collects means on the device and reads them at its end, and occasionally before.

    Args:
        number: counted from 1.
        label: name of the run, for messages.
        trained: called with the number of samples after each step.

    Attributes:
        stop: set by a method whose goal is reached, to end the work after this epoch.
        values: numbers of the epoch.
    """

    def __init__(self, number: int, label: str = "run", trained: Callable[[int], None] | None = None) -> None:
        self.number = number  # 1-based
        self._label = label
        self._trained = trained
        self._added = 0
        self.stop = False  # set by a method whose goal is reached: no further epoch follows
        self.values: dict[str, float] = {}
        self._sums: dict[str, tuple[Tensor | float, float]] = {}

    def add(self, name: str, mean: Tensor | float, weight: int = 1) -> None:
        """Add a batch mean of `weight` samples, after the step that it belongs to.

        Waits for the device once in `FINITE_EVERY` calls.

        Raises:
            DivergedError: if the mean so far is not finite.
        """
        value = mean.detach() if hasattr(mean, "detach") else mean
        total, count = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (total + value * weight, count + weight)
        self._added += 1
        if self._added % FINITE_EVERY == 0:
            self._check_finite(name)
        if self._trained is not None:
            self._trained(weight)

    def _check_finite(self, name: str) -> None:
        mean = self.mean(name)
        if not math.isfinite(mean):
            raise DivergedError(
                f"{self._label} diverged in epoch {self.number}: `{name}` is {mean}. Lower the learning rate or set a "
                "gradient clip."
            )

    def log(self, **values: float) -> None:
        """Log numbers of the epoch, such as a learning rate."""
        self.values.update(values)

    def mean(self, name: str) -> float:
        """Mean of what was added so far under `name`; waits for the device."""
        total, count = self._sums[name]
        return float(total) / max(count, 1)

    def close(self) -> dict[str, float]:
        """End the epoch; returns its numbers."""
        for name, (total, count) in self._sums.items():
            self.values[name] = float(total) / max(count, 1)
        return self.values


@dataclass(eq=False)
class Run:
    """The context of one execution; each call has its own, so that methods have no mutable state.

    Attributes:
        seed: from which all random numbers derive, with one generator per purpose.
        device: where the work is done.
        precision: of forward and backward passes.
        compile: whether the model trained in `epochs` is compiled, which takes a minute and changes the last digits.
        budget_seconds: time after which no further epoch starts.
        keep_snapshots: whether the weights after each epoch are kept.
        label: name of the run, for messages.
        progress: called after each epoch.
        cancelled: polled between epochs.
        cache: the cache folder.
        world: the processes that share this run, all with the same settings.
        guard: monitors the model trained in `epochs`.
        resume: where the state after an epoch is stored, so that a stopped call can continue; only for the first
            `epochs` of a run, with `state`.
        history: one row per epoch.
        stages: seconds per stage.
        notes: remarks for the user.
        details: further results, ready for JSON.
        snapshots: weights by number of epochs.
        status: how the run ended.
        cached_seconds: seconds that results read from the cache took when they were computed; part of the cost.
    """

    seed: int = 0
    device: torch.device | str = "cpu"
    precision: Precision = "float32"
    compile: bool = False
    budget_seconds: float | None = None
    keep_snapshots: bool = False
    label: str = "run"
    progress: Callable[[Progress], None] | None = None
    cancelled: Callable[[], bool] | None = None
    cache: Path | None = None
    world: World = ALONE
    guard: Watch | None = None
    resume: Resume | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    snapshots: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    status: Status = "finished"
    cached_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.precision == "auto":
            raise UsageError("the precision of a run is float32 or bfloat16; decide `auto` by `resolve_precision`.")
        self.started = self._made = time.perf_counter()
        self._keeping = False  # whether the state of a loop is kept already
        # A method holds the run: the caller's functions, and whatever they refer to, must not be reachable from it.
        self.progress, self.cancelled = opaque(self.progress), opaque(self.cancelled)

    def seed_for(self, *purpose: object) -> int:
        """The seed of one purpose, e.g. `seed_for("shuffle", epoch)`."""
        return derive(self.seed, *purpose)

    def module_seed(self, *purpose: object) -> int:
        """Seed of random numbers that modules draw (dropout), different in each process that shares a batch."""
        return self.seed_for(*purpose, *((self.world.rank,) if self.world.rank else ()))

    def autocast(self) -> Any:
        """Autocast context for forward passes; losses that need float32 are computed outside."""
        import torch

        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def epochs(
        self,
        model: nn.Module,
        count: int,
        *,
        first: int = 1,
        what: str | None = None,
        state: Sequence[Stateful] | None = None,
    ) -> Iterator[Epoch]:
        """Iterate over the epochs `first`..`count`, counted from 1, with snapshots, history, budget and cancellation.

        Args:
            model: The model that is trained.
            count: Number of epochs.
            first: The first epoch to do.
            what: Name of the work, for progress.
            state: Everything carried from epoch to epoch besides the model's weights, PyTorch's random generators and
                this run: optimisers, endless batches, `core.resume.Values`. With it a stopped run can `resume`; objects
                made before the first epoch are made again. None: the work begins again.

        Raises:
            UsageError: If `count` is negative.
            DivergedError: If a logged mean or a weight is not finite.
            Cancelled: If the caller stops the run.
            CheckpointError: If the stored state does not fit this model.
        """
        if count < 0:
            raise UsageError(f"the number of epochs must be >= 0, got {count}.")
        if len(self.history) not in self.snapshots:
            self.snapshot(len(self.history), model)
        keeps = None
        if self.resume is not None and state is not None and not (self._keeping or self.world.size > 1):
            self._keeping, keeps = True, _Kept(self, self.resume, model, state)
            first = keeps.restore(what or self.label, count) + 1
        if self.compile:
            model.compile()
        try:
            if keeps is None or not keeps.ended:
                yield from self._epochs(model, count, first, what or self.label, keeps)
            if self.guard is not None:
                self._settle(self.guard, model)
        finally:
            model._compiled_call_impl = None  # removes the compiled forward pass alone

    def _epochs(self, model: nn.Module, count: int, first: int, what: str, keeps: _Kept | None) -> Iterator[Epoch]:
        for number in range(first, count + 1):
            start = time.perf_counter()
            epoch = Epoch(number, self.label, self._trained(model, number))
            yield epoch
            values = epoch.close()
            self.check_finite(model, values, number)
            row = {"epoch": float(len(self.history) + 1), **values, "seconds": time.perf_counter() - start}
            self.history.append(row)
            self.snapshot(len(self.history), model)
            stops = self.world.any(epoch.stop)
            ends = self.guard is not None and self.guard.passed(model, number, last=stops or number == count)
            if stops and not ends and number < count and self.status == "finished":
                self.status = "stopped"
            if keeps is not None:
                keeps.save(number, ended=stops or ends, last=number == count)
            self.report(what, number, count, values)
            if stops or ends:
                return
            if number < count and self.over_budget():
                self.status = "budget"
                self.notes.append(f"stopped after epoch {number} of {count}: {self.budget_seconds:g} s are used up.")
                return

    def _trained(self, model: nn.Module, number: int) -> Callable[[int], None] | None:
        guard = self.guard
        return None if guard is None else lambda samples: guard.trained(model, samples, f"part of pass {number}")

    def _settle(self, guard: Watch, model: nn.Module) -> None:
        note = guard.settle(model)
        if note:
            self.status = "stopped: utility"
            self.notes.append(note)

    def snapshot(self, number: int, model: nn.Module) -> None:
        """Keep the weights after `number` rows of the history in memory, for `methods.rewind`; 0: before the first."""
        if self.keep_snapshots:
            self.snapshots[number] = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def report(self, what: str, done: int, total: int, numbers: dict[str, float] | None = None) -> None:
        """Report progress; raises `Cancelled` if the caller stops the run."""
        if self.cancelled is not None and self.world.any(self.cancelled()):
            raise Cancelled(f"{what} was cancelled after {done} of {total}.")
        if self.progress is not None:
            self.progress(Progress(what, done, total, dict(numbers or {})))

    def over_budget(self) -> bool:
        """Whether the time budget is used up."""
        return self.budget_seconds is not None and self.world.any(self.elapsed() > self.budget_seconds)

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def count_seconds(self, seconds: float, stage: str | None = None) -> None:
        """Add seconds of cached work to the cost; negative: seconds that are not part of it."""
        self.cached_seconds += seconds
        if stage is not None:
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    def spent(self) -> float:
        """Seconds since this run was created, including those of cached work."""
        return time.perf_counter() - self._made + self.cached_seconds

    def spent_before(self, spent: float, elapsed: float) -> None:
        """Continue the clock of an earlier call; the time of this call so far is not counted."""
        self.started = time.perf_counter() - elapsed
        self.count_seconds(spent - self.spent())

    def waited(self, seconds: float) -> None:
        """Subtract seconds of waiting for another run of this process; adds a note from 1 s on."""
        if seconds < 1e-3:
            return
        self.started += seconds
        self.count_seconds(-seconds)
        if seconds >= 1:
            self.notes.append(
                f"waited {seconds:.0f} s for another run of this process: they share PyTorch's random generators, so "
                "that only one may draw from them at a time."
            )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to `stages[name]`, including pending work of the device."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.synchronize()
            self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - start

    def synchronize(self) -> None:
        """Wait for pending work of the device."""
        import torch

        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize()

    def check_finite(self, model: nn.Module, values: dict[str, float], number: int) -> None:
        """Raise `DivergedError` if a number of the epoch or a weight is not finite."""
        import torch

        bad = [name for name, value in values.items() if not math.isfinite(value)]
        cause = f"`{bad[0]}` is {values[bad[0]]}" if bad else ""
        if not cause:
            weights = [p.detach() for p in model.parameters() if p.is_floating_point()]
            norms = torch._foreach_norm(weights) if weights else []
            if norms and not bool(torch.isfinite(torch.stack([n.float() for n in norms])).all()):
                cause = "a weight is not finite"
        if cause:
            raise DivergedError(
                f"{self.label} diverged in epoch {number}: {cause}. Lower the learning rate or set a gradient clip."
            )


class _Kept:
    """The state of a run, a model and what a method carries, in the file of `Run.resume`."""

    def __init__(self, run: Run, resume: Resume, model: nn.Module, carried: Sequence[Stateful]) -> None:
        self.run, self.resume, self.model, self.carried = run, resume, model, carried
        self.ended = False  # the method or the guard ended the work
        self._snapshots: set[int] = set()  # those on disk

    def save(self, number: int, *, ended: bool, last: bool) -> None:
        """Called after epoch `number`; writes now and then, and always after the last. Costs the run no time."""
        if not (self.resume.due() or ended or last):
            return
        import torch

        run = self.run
        seconds = 0.0
        for epoch in sorted(run.snapshots.keys() - self._snapshots):
            seconds += self.resume.write({"weights": run.snapshots[epoch]}, str(epoch))
            self._snapshots.add(epoch)
        state = {
            "number": number,
            "ended": ended,
            "model": dict(self.model.state_dict()),
            "carried": [each.state_dict() for each in self.carried],
            "guard": None if run.guard is None else run.guard.state_dict(),
            "random": torch.get_rng_state(),
            "random_device": torch.cuda.get_rng_state(run.device) if self._on_cuda() else None,
            "history": run.history,
            "stages": run.stages,
            "notes": run.notes,
            "details": run.details,
            "status": run.status,
            "snapshots": sorted(run.snapshots),
            "spent": run.spent(),
            "elapsed": run.elapsed(),
        }
        seconds += self.resume.write(state)
        run.started += seconds
        run.count_seconds(-seconds)

    def restore(self, what: str, count: int) -> int:
        """The number of finished epochs; 0 where nothing was kept that this run can use, and a note says why."""
        run = self.run
        state, doubt = self.resume.read()
        snapshots: dict[int, Any] = {}
        for epoch in () if state is None else state["snapshots"]:
            stored, missing = self.resume.read(str(epoch))
            if stored is None:
                state, doubt = None, missing or f"{self.resume.path}.{epoch} is missing, so the work begins again."
                break
            snapshots[epoch] = stored["weights"]
        if state is None:
            if doubt:
                run.notes.append(doubt)
                log.warning("%s", doubt)
            return 0
        try:
            self._apply(state)
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{self.resume.path} cannot be resumed from ({reason}); delete it to start again."
            ) from None
        run.snapshots.update({epoch: _on(run.device, weights) for epoch, weights in snapshots.items()})
        self._snapshots, self.ended = set(snapshots), bool(state["ended"])
        done = int(state["number"])
        run.spent_before(float(state["spent"]), float(state["elapsed"]))
        run.report(f"{what}: goes on after", done, count)
        return done

    def _apply(self, state: dict[str, Any]) -> None:
        import torch

        run = self.run
        self.model.load_state_dict(state["model"])
        for part, stored in zip(self.carried, state["carried"], strict=True):
            part.load_state_dict(stored)
        if run.guard is not None:
            run.guard.load_state_dict(state["guard"])
        torch.set_rng_state(state["random"])
        if self._on_cuda():
            torch.cuda.set_rng_state(state["random_device"], run.device)
        run.history[:], run.notes[:] = state["history"], state["notes"]
        for target, stored in ((run.stages, state["stages"]), (run.details, state["details"])):
            target.clear()
            target.update(stored)
        run.status = state["status"]

    def _on_cuda(self) -> bool:
        import torch

        return torch.device(self.run.device).type == "cuda"


def _on(device: torch.device | str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in weights.items()}
