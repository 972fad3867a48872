"""The conformance checks must fail on the faults that were found in published ports. Each toy has exactly one."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.api.planning.automatic import announce
from expunge.api.planning.situation import situation_of
from expunge.core.errors import DivergedError, ExpungeError
from expunge.core.needs import Needs
from expunge.core.options import Field
from expunge.core.run import Run
from expunge.data.split import Split
from expunge.methods import METHODS
from expunge.methods.base import IterativeMethod, Method, make_method, method
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.testing import conformance
from expunge.testing.conformance import ConformanceError, Settings
from expunge.testing.toys import toy_problem

BOTH = Needs(forget="inputs", retain="labels")


@pytest.fixture(autouse=True)
def _forget_toys() -> Iterator[None]:
    before = set(METHODS.names())
    yield
    for name in set(METHODS.names()) - before:
        METHODS.remove(name)


def scrub_like(
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    problem: Problem,
    run: Run,
    raw: bool = False,
) -> nn.Module:
    """SCRUB in its simplest form; the toys differ in what they hand in."""
    for epoch in run.epochs(student, 2):
        student.train()
        for batch in problem.forget.batches(8):
            p, q = student(batch.x), teacher(batch.x)
            loss = F.kl_div(p, q) if raw else F.kl_div(F.log_softmax(p, 1), F.softmax(q, 1), reduction="batchmean")
            optimizer.zero_grad()
            (-loss).backward()
            optimizer.step()
            epoch.add("forget", loss)
        for batch in problem.retain.batches(16):
            loss = F.cross_entropy(student(batch.x), batch.y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


def expect(check: Callable[[type[Method], Settings], None], cls: type[Method], words: str, **settings: object) -> None:
    with pytest.raises((ConformanceError, ExpungeError), match=words):
        check(cls, Settings(**settings))  # type: ignore[arg-type]


def test_sound_toy_passes() -> None:
    @method("toy-sound", summary="s", needs=BOTH)
    class Sound(Method):
        lr: float = Field(0.01, gt=0, description="rate")

        def unlearn(self, problem: Problem, run: Run) -> nn.Module:
            student = problem.student()
            return scrub_like(student, problem.model, torch.optim.Adam(student.parameters(), lr=self.lr), problem, run)

    for check in conformance.CHECKS:
        if check is not conformance.check_forgets:  # too weak a toy to promise that
            check(Sound, Settings())


def test_optimizer_on_the_teacher_is_found() -> None:
    @method("toy-wrong-optimizer", summary="s", needs=BOTH)
    class WrongOptimizer(Method):
        def unlearn(self, problem: Problem, run: Run) -> nn.Module:
            student, teacher = problem.student(), problem.student()
            return scrub_like(student, teacher, torch.optim.SGD(teacher.parameters(), lr=0.1), problem, run)

    expect(conformance.check_weights_move, WrongOptimizer, "no trainable weight moved")


def test_teacher_that_shares_weights_is_found() -> None:
    @method("toy-shared-teacher", summary="s", needs=BOTH)
    class SharedTeacher(Method):
        def unlearn(self, problem: Problem, run: Run) -> nn.Module:
            student = problem.student()
            teacher = copy.copy(student)  # shares every parameter, so the divergence is zero
            return scrub_like(student, teacher, torch.optim.SGD(student.parameters(), lr=0.1), problem, run)

    expect(conformance.check_forget_set_matters, SharedTeacher, "another forget set gave the same weights")


def test_training_the_given_model_is_found() -> None:
    @method("toy-in-place", summary="s", needs=BOTH)
    class InPlace(Method):
        def unlearn(self, problem: Problem, run: Run) -> nn.Module:
            model = problem.model.requires_grad_(True)
            return scrub_like(model, problem.student(), torch.optim.SGD(model.parameters(), lr=0.1), problem, run)

    expect(conformance.check_original_untouched, InPlace, "changed the model it was given")


def test_raw_logits_into_kl_are_found() -> None:
    @method("toy-raw-logits", summary="s", needs=BOTH)
    class RawLogits(Method):
        def unlearn(self, problem: Problem, run: Run) -> nn.Module:
            student = problem.student()
            return scrub_like(
                student, problem.model, torch.optim.SGD(student.parameters(), lr=0.1), problem, run, raw=True
            )

    with pytest.warns(UserWarning, match="reduction"), pytest.raises(DivergedError, match="nan"):
        conformance.check_weights_move(RawLogits, Settings())


def test_option_never_read_is_found() -> None:
    @method("toy-dead-option", summary="s", needs=BOTH)
    class DeadOption(IterativeMethod):
        msteps: int = Field(3, ge=0, description="promised, never read")

        def unlearn(self, problem: Problem, run: Run) -> nn.Module:
            student = problem.student()
            return scrub_like(student, problem.model, torch.optim.SGD(student.parameters(), lr=0.1), problem, run)

    with pytest.raises(ConformanceError, match=r"`msteps`.*is it ever read"):
        conformance.check_option(DeadOption, Settings(), "msteps")


def test_undeclared_reading_is_found() -> None:
    @method("toy-greedy", summary="s", needs=Needs(forget="inputs", retain="inputs"))
    class Greedy(Method):
        def unlearn(self, problem: Problem, run: Run) -> nn.Module:
            student = problem.student()
            return scrub_like(student, problem.model, torch.optim.SGD(student.parameters(), lr=0.1), problem, run)

    expect(conformance.check_reads_only_declared, Greedy, "carries no labels|declared that it does not need")


def test_declared_but_never_read_is_found() -> None:
    @method("toy-hoarder", summary="s", needs=Needs(forget="labels", retain="labels", validation="labels"))
    class Hoarder(Method):
        def unlearn(self, problem: Problem, run: Run) -> nn.Module:
            student = problem.student()
            return scrub_like(student, problem.model, torch.optim.SGD(student.parameters(), lr=0.1), problem, run)

    expect(conformance.check_reads_only_declared, Hoarder, "declares validation=labels but never reads it")


def test_global_randomness_is_found() -> None:
    state = {"calls": 0}

    @method("toy-unseeded", summary="s", needs=BOTH)
    class Unseeded(Method):
        def unlearn(self, problem: Problem, run: Run) -> nn.Module:
            state["calls"] += 1
            student = problem.student()
            with torch.no_grad():
                next(student.parameters()).add_(state["calls"])
            return student

    expect(conformance.check_deterministic, Unseeded, "the same seed gave other weights")


def test_trained_weights_that_leak_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    home = sys.modules["expunge.api.unlearn"]
    sound = home.restrict

    def careless(model: nn.Module, *rest: Any) -> Problem:
        return replace(sound(model, *rest), model=model)

    monkeypatch.setattr(home, "restrict", careless)
    expect(conformance.check_ignores_trained_weights, METHODS.load("retrain"), "trained weights leaked")


def test_reaching_past_the_own_split_is_found() -> None:
    @method("toy-thief", summary="s", needs=Needs(retain="labels"))
    class Thief(Method):
        def unlearn(self, problem: Problem, run: Run) -> nn.Module:
            caller = sys._getframe()
            while "splits" not in caller.f_locals:  # no object leads there, but Python hides no caller
                assert caller.f_back is not None
                caller = caller.f_back
            student, forget = problem.student(), caller.f_locals["splits"]["forget"]
            optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
            for batch in (*problem.retain.batches(16), *forget.batches(8)):
                optimizer.zero_grad()
                F.cross_entropy(student(batch.x), batch.y).backward()
                optimizer.step()
            return student

    expect(conformance.check_reads_only_declared, Thief, "30 samples of the forget split were read")
    expect(conformance.check_sealed, Thief, "leaked into the result")


@pytest.mark.parametrize("kept", ["whole split", "labels", "bound method", "closure"])
def test_any_path_out_of_a_sealed_split_is_found(kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = sys.modules["expunge.api.unlearn"]
    sound = home.restrict

    def careless(model: nn.Module, splits: dict[str, Split], *rest: Any) -> Problem:
        retain = splits["retain"]
        made: Problem = sound(model, splits, *rest)
        inner = made.retain.store
        if kept == "whole split":
            return replace(made, _splits={"retain": retain})
        if kept == "labels":
            inner.truth = retain.store.labels
        elif kept == "bound method":
            inner.again = retain.store.fetch
        else:
            inner.again = lambda: retain
        return made

    monkeypatch.setattr(home, "restrict", careless)
    expect(conformance.check_sealed, METHODS.load("finetune"), "leads to undeclared data: .*labels of the validation")


def test_refusing_everything_is_found() -> None:
    @method("toy-refuser", summary="s", needs=BOTH)
    class Refuser(Method):
        def unlearn(self, problem: Problem, run: Run) -> nn.Module:
            raise ExpungeError("toy-refuser does not work on this model; choose another method.")

    with pytest.raises(ConformanceError, match="refuses tied and frozen weights"):
        conformance.check_odd_models(Refuser, Settings())
    with pytest.raises(ConformanceError, match="refuses an ordinary model too"):
        conformance.check_odd_models(Refuser, Settings(refuses_odd_models="does not work"))


def test_state_that_is_not_stated_is_found() -> None:
    @method("toy-forgetful", summary="s", needs=BOTH)
    class Forgetful(Method):
        epochs: int = Field(3, ge=0, description="passes")

        def unlearn(self, problem: Problem, run: Run) -> nn.Module:
            student = problem.student()
            optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
            for _ in run.epochs(student, self.epochs, state=[]):  # the momentum is not stated
                for batch in problem.retain.batches(16):
                    loss = F.cross_entropy(student(batch.x), batch.y)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            return student

    expect(conformance.check_resumes, Forgetful, "a stopped run went on to other weights")


def test_options_that_only_show_in_the_history_are_found() -> None:
    @method("toy-talker", summary="s", needs=BOTH)
    class Talker(Method):
        lr: float = Field(0.01, gt=0, description="logged, and not used")

        def unlearn(self, problem: Problem, run: Run) -> nn.Module:
            student = problem.student()
            run.details["lr"] = self.lr
            for epoch in run.epochs(student, 1):
                epoch.log(lr=self.lr)
            return scrub_like(student, problem.model, torch.optim.SGD(student.parameters(), lr=0.1), problem, run)

    with pytest.raises(ConformanceError, match=r"`lr`.*is it ever read"):
        conformance.check_option(Talker, Settings(), "lr")


@pytest.mark.parametrize(("epochs", "found"), [(1, True), (2, False), (3, True)])
def test_a_cost_that_is_not_what_passes_is_found(epochs: int, found: bool) -> None:
    @method("toy-counted", summary="s", needs=BOTH)
    class Counted(Method):
        def cost(self, sizes: Sizes) -> Work:
            # Teacher and student pass the forget set with gradients on, the student the retained samples.
            return steps(2 * sizes.forget + sizes.retain, 8, epochs)

        def unlearn(self, problem: Problem, run: Run) -> nn.Module:
            student = problem.student()
            return scrub_like(student, problem.model, torch.optim.SGD(student.parameters(), lr=0.1), problem, run)

    if found:
        expect(conformance.check_cost, Counted, r"cost\(\) states")
    else:
        conformance.check_cost(Counted, Settings())
    toy = toy_problem(epochs=0)
    told = announce(toy.model, make_method("toy-counted"), situation_of(toy.model, toy.forget, toy.retain), toy.forget)
    assert told.seconds is not None  # a method of a third party is announced as the built-in ones are
