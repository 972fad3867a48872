"""`unlearn`: the given model stays as it is, data come in any form, a method is handed what it declared and no more."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

import expunge
from expunge.core.errors import AccessError, Cancelled, DataError, ExpungeError, UsageError
from expunge.core.needs import Needs
from expunge.core.run import Progress, Run
from expunge.data.split import Split
from expunge.methods import METHODS
from expunge.methods.base import Method, method
from expunge.methods.problem import Problem
from expunge.testing.conformance import RECIPE, same, weights
from expunge.testing.toys import ToyNet, ToyProblem, toy_problem

X = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 4


class Items(Dataset[Any]):
    """A data set as users write them: (sample, label) items and a length."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, position: int) -> tuple[np.ndarray, int]:
        return self.x[position].numpy(), int(self.y[position])


@pytest.fixture(scope="module")
def toy() -> ToyProblem:
    return toy_problem()


def unlearn(toy: ToyProblem, **changes: Any) -> expunge.Result:
    given: dict[str, Any] = {"forget": toy.forget, "retain": toy.retain, "method": "finetune", "epochs": 2}
    return expunge.unlearn(toy.model, **{"device": "cpu", **given, **changes})


def history(result: expunge.Result) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in result.history]


@pytest.mark.parametrize("name", ["original", "retrain", "finetune", "neggrad+", "scrub"])
@pytest.mark.parametrize("training", [True, False])
def test_the_given_model_is_the_same_afterwards_bit_for_bit(toy: ToyProblem, name: str, training: bool) -> None:
    model = copy.deepcopy(toy.model).train(training)
    model.norm.train(not training)
    model.conv.weight.requires_grad_(False)
    model.head.weight.grad = torch.full_like(model.head.weight, 3.0)
    before, modes = weights(model), [m.training for m in model.modules()]
    options = {} if name == "original" else {"epochs": 1}
    result = expunge.unlearn(
        model, forget=toy.forget, retain=toy.retain, method=name, recipe=RECIPE, device="cpu", **options
    )
    assert same(before, weights(model))
    assert [p.requires_grad for p in model.parameters()] == [n != "conv.weight" for n, _ in model.named_parameters()]
    assert bool((model.head.weight.grad == 3).all())
    assert model.conv.weight.grad is None
    assert type(result.model) is ToyNet
    for found in (model, result.model):
        assert [m.training for m in found.modules()] == modes
    assert [p.requires_grad for p in result.model.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in result.model.parameters())
    assert not {p.data_ptr() for p in result.model.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_gradients_that_lie_about_have_no_part_in_it(toy: ToyProblem) -> None:
    littered = copy.deepcopy(toy.model)
    for p in littered.parameters():
        p.grad = torch.ones_like(p)
    for name in ("finetune", "neggrad", "scrub"):
        clean, other = (
            expunge.unlearn(m, forget=toy.forget, retain=toy.retain, method=name, epochs=1, device="cpu")
            for m in (toy.model, littered)
        )
        assert same(weights(clean.model), weights(other.model))


def test_a_failure_leaves_the_given_model_as_it_was(toy: ToyProblem) -> None:
    model = copy.deepcopy(toy.model).train()
    before = weights(model)
    with pytest.raises(ExpungeError, match="diverged"):
        expunge.unlearn(model, forget=toy.forget, retain=toy.retain, method="finetune", lr=1e30, device="cpu")
    assert same(before, weights(model))
    assert all(module.training for module in model.modules())


FORMS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "tensors": lambda x, y: (x, y),
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "a list": lambda x, y: [x, y],
    "small integers": lambda x, y: (x, y.to(torch.uint8)),
    "double": lambda x, y: (x.double().numpy(), y.numpy().astype(np.int32)),
    "a tensor data set": TensorDataset,
    "a data set": Items,
    "a subset": lambda x, y: Subset(Items(torch.cat([x, x]), torch.cat([y, y])), list(range(len(x)))),
    "a list of items": lambda x, y: [(row, int(label)) for row, label in zip(x, y, strict=True)],
}


@pytest.mark.parametrize("form", FORMS)
def test_in_whatever_form_the_data_come_the_result_is_the_same(form: str) -> None:
    torch.manual_seed(0)
    net = ToyNet()
    first = expunge.unlearn(net, forget=(X[:8], Y[:8]), retain=(X[8:], Y[8:]), method="scrub", epochs=1, device="cpu")
    make = FORMS[form]
    second = expunge.unlearn(
        net, forget=make(X[:8], Y[:8]), retain=make(X[8:], Y[8:]), method="scrub", epochs=1, device="cpu"
    )
    assert first.facts["method"] == "scrub"
    assert same(weights(first.model), weights(second.model))


def test_a_scenario_and_an_earlier_result_can_be_passed_on() -> None:
    found = expunge.scenario("class", (X, Y), target=3)
    trained = expunge.train(ToyNet(), found.train, recipe={"epochs": 1}, device="cpu")
    result = expunge.unlearn(trained, forget=found.forget, retain=found.retain, method="scrub", epochs=1, device="cpu")
    assert result.facts["sizes"] == {"forget": 10, "retain": 30}
    assert result.facts["original"] == trained.record()["weights"]


def test_seeds(toy: ToyProblem) -> None:
    first, again, other = (unlearn(toy, seed=seed, batch_size=16) for seed in (0, 0, 1))
    assert same(weights(first.model), weights(again.model))
    assert history(first) == history(again)
    assert not same(weights(first.model), weights(other.model))


def test_a_method_by_name_by_preset_and_by_instance(toy: ToyProblem) -> None:
    by_name = unlearn(toy, epochs=1, lr=0.02)
    made = expunge.method("finetune")(epochs=1, lr=0.02)
    assert same(weights(by_name.model), weights(unlearn(toy, method=made, epochs=1).model))
    assert unlearn(toy, method=made, epochs=2, lr=0.5).facts["options"]["lr"] == 0.5
    assert made.lr == 0.02
    preset = expunge.unlearn(toy.model, retain=toy.retain, method="finetune/small-rb", epochs=0, device="cpu")
    assert preset.facts["options"]["batchnorm"] == "frozen"


def test_what_a_result_tells(toy: ToyProblem) -> None:
    steps: list[Progress] = []
    result = unlearn(toy, progress=steps.append)
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert [(step.done, step.total) for step in steps] == [(1, 2), (2, 2)]
    assert result.status == "finished"
    assert 0 < result.seconds < 60
    assert result.needs == Needs(retain="labels")
    assert result.facts["sizes"] == {"forget": 30, "retain": 90}
    assert (result.facts["kind"], result.facts["method"], result.facts["seed"]) == ("unlearn", "finetune", 0)


def test_validation_is_for_those_who_need_it(toy: ToyProblem) -> None:
    toy.clear()
    quiet = {"validation": toy.validation, "measure": False}
    unlearn(toy, **quiet, max_drop=None)
    assert toy.read("validation") == 2  # the look at two samples, to see that they fit the model
    result = unlearn(toy, **quiet, rewind=True)
    assert toy.handed("validation") >= 40
    assert result.needs.validation == "labels"
    assert set(result.details["rewind"]["errors"]) == {0, 1, 2}
    for name in ("validation", "forget"):
        with pytest.raises(UsageError, match=f"rewinding needs {name}|finetune needs {name}"):
            unlearn(toy, **{"validation": toy.validation, "rewind": True, name: None})


def test_time_that_runs_out_and_work_that_is_cancelled(toy: ToyProblem) -> None:
    stopped = unlearn(toy, epochs=5, budget_seconds=0)
    assert (stopped.status, len(stopped.history)) == ("budget", 1)
    assert "stopped after epoch 1 of 5" in stopped.notes[-1]
    with pytest.raises(Cancelled, match="cancelled after 1 of 5"):
        unlearn(toy, epochs=5, cancelled=lambda: True)


def test_retraining_needs_a_recipe_and_is_cached(toy: ToyProblem, tmp_path: Path) -> None:
    options = {"method": "retrain", "epochs": None, "initial": toy.initial, "cache": tmp_path}
    first = unlearn(toy, recipe=RECIPE, **options)
    again = unlearn(toy, recipe=RECIPE, **options)
    assert same(weights(first.model), weights(again.model))
    assert history(again) == history(first)
    assert len(first.history) == RECIPE["epochs"]
    assert again.seconds >= sum(row["seconds"] for row in first.history)  # what training took, not what reading took
    assert first.facts["recipe"]["lr"] == RECIPE["lr"]
    assert first.notes == []
    with pytest.raises(UsageError, match=r"retrain needs the recipe .* pass recipe=\.\.\."):
        unlearn(toy, **{**options, "epochs": 1})


def test_retraining_starts_at_the_given_weights_or_at_fresh_ones(toy: ToyProblem) -> None:
    given, fresh, other = (
        unlearn(toy, method="retrain", epochs=0, recipe=RECIPE, initial=initial, seed=seed)
        for initial, seed in [(toy.initial, 0), (None, 0), (None, 1)]
    )
    assert same(weights(given.model), toy.initial)
    assert not same(weights(fresh.model), weights(toy.model))
    assert not same(weights(fresh.model), weights(other.model))


# --- a method is handed what it declared --------------------------------------------------------------------------


@pytest.fixture
def reading() -> Iterator[Callable[..., type[Method]]]:
    """Makes a method that declares these needs and reads something on the way."""

    def make(read: Callable[[Problem], Any], **needs: Any) -> type[Method]:
        @method("reader", summary="a toy that reads", needs=Needs(**needs))
        class Reader(Method):
            def unlearn(self, problem: Problem, run: Run) -> nn.Module:
                read(problem)
                return problem.student()

        return Reader

    yield make
    METHODS.remove("reader")


def everything(toy: ToyProblem, chosen: Method) -> None:
    """All there is to give is given; what arrives is up to the needs."""
    splits = {"forget": toy.forget, "retain": toy.retain, "validation": toy.validation}
    expunge.unlearn(toy.model, **splits, recipe=RECIPE, initial=toy.initial, method=chosen, device="cpu")


def first_batch(split: Split) -> Any:
    return next(iter(split.batches(4)))


READS: dict[str, tuple[dict[str, Any], Callable[[Problem], Any], str]] = {
    "labels of a split": ({"forget": "inputs"}, lambda p: p.forget.y, "carries no labels"),
    "labels of a batch": ({"forget": "inputs"}, lambda p: first_batch(p.forget).y, "carries no labels"),
    "a batch unpacked": ({"forget": "inputs"}, lambda p: list(first_batch(p.forget)), "carries no labels"),
    "labels of the store": ({"forget": "inputs"}, lambda p: p.forget.store.labels, "carries no labels"),
    "ids, which may tell": ({"forget": "inputs"}, lambda p: p.forget.ids, "ids are withheld"),
    "labels of a part": ({"retain": "inputs"}, lambda p: p.retain.take([0, 1]).y, "carries no labels"),
    "another split": ({"forget": "labels"}, lambda p: p.retain, "declares retain=none"),
    "the forget set": ({"retain": "labels"}, lambda p: p.forget, "declares forget=none"),
    "validation": ({"forget": "labels"}, lambda p: p.validation, "declares validation=none"),
    "a label budget": ({"retain": "inputs"}, lambda p: p.labelled, "labelled"),
    "the recipe": ({"forget": "labels"}, lambda p: p.recipe, "recipe=True"),
    "the start weights": ({"forget": "labels"}, lambda p: p.initial, "initial=True"),
}


@pytest.mark.parametrize("what", READS)
def test_what_was_not_declared_cannot_be_read(toy: ToyProblem, reading: Callable[..., type[Method]], what: str) -> None:
    needs, read, sentence = READS[what]
    reader = reading(read, **needs)
    with pytest.raises(AccessError, match=sentence) as caught:
        everything(toy, reader())
    assert "\n" not in str(caught.value)


def test_what_was_declared_can_be_read(toy: ToyProblem, reading: Callable[..., type[Method]]) -> None:
    seen: dict[str, Any] = {}

    def read(problem: Problem) -> None:
        seen.update(
            forget=problem.forget.y,
            retain=first_batch(problem.retain).x,
            validation=problem.validation.y,
            recipe=problem.recipe.lr,
            initial=problem.initial,
        )

    reader = reading(read, forget="labels", retain="inputs", validation="labels", recipe=True, initial=True)
    everything(toy, reader())
    assert torch.equal(seen["forget"], toy.forget.y)
    assert torch.equal(seen["retain"], first_batch(toy.retain).x)
    assert torch.equal(seen["validation"], toy.validation.y)
    assert seen["recipe"] == RECIPE["lr"]
    assert same(seen["initial"], toy.initial)


def test_a_label_budget_shows_so_many_labels_and_no_other(
    toy: ToyProblem, reading: Callable[..., type[Method]]
) -> None:
    seen: list[Split] = []
    reader = reading(lambda p: seen.append(p.labelled), retain="inputs", labelled=0.1)
    for seed in (0, 0, 1):
        expunge.unlearn(toy.model, retain=toy.retain, method=reader(), seed=seed, device="cpu")
    few = seen[0]
    assert len(few) == 9
    rows = torch.tensor([int(name.split()[1]) for name in few.ids])  # of the toy's one store
    assert torch.isin(rows, toy.retain.index).all()
    assert torch.equal(few.y, toy.store.labels[rows])
    assert few.labels is not None
    assert len(few.labels) == 9  # there are no others in its store
    assert seen[1].ids.tolist() == few.ids.tolist() != seen[2].ids.tolist()


def test_without_labels_a_method_that_needs_none_works_and_another_says_so(toy: ToyProblem) -> None:
    hidden = {"forget": toy.forget.without_labels(), "retain": toy.retain.without_labels()}
    how = {"method": "bad-t", "epochs": 1, "max_drop": None, "device": "cpu"}  # the guard would read labels
    free = expunge.unlearn(toy.model, **hidden, **how)
    seeing = expunge.unlearn(toy.model, forget=toy.forget, retain=toy.retain, **how)
    assert same(weights(free.model), weights(seeing.model))
    with pytest.raises(UsageError, match="finetune needs labels of the retain data; choose a label-free method"):
        unlearn(toy, **hidden)


# --- data that cannot be right ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"retain": (X[:0], Y[:0])}, "the retain set is empty"),
        ({"retain": (X, Y)}, "8 samples are in both the forget and the retain set"),
        ({"validation": (X[:8], Y[:8])}, "in both the forget and the validation set"),
        ({"forget": (X[:8], Y[:8] + 9)}, "the forget set has label 12, but the model has 4 classes"),
        ({"forget": (X[:8], Y[:8] - 1)}, "labels must be >= 0, got -1"),
        ({"forget": (X[:8], Y[:8] + 0.5)}, "whole class numbers, got 0.5"),
        ({"forget": (X[:8], Y[:7])}, "8 samples and y 7 labels"),
        ({"forget": (X[:8] * torch.nan, Y[:8])}, "row 0: the sample holds NaN"),
        ({"forget": (X[:8].flatten(1), Y[:8])}, r"refuses forget samples of shape \(64,\)"),
        ({"forget": (X[:8].expand(-1, 3, -1, -1), Y[:8])}, r"refuses forget samples of shape \(3, 8, 8\)"),
        ({"forget": "digits.npz"}, "unknown scenario `digits.npz`"),
        ({"method": "retrain", "recipe": {"epoch": 3}}, "recipe has no option `epoch`; did you mean `epochs`"),
    ],
)
def test_data_that_cannot_be_right_are_named_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    given: dict[str, Any] = {"forget": (X[:8], Y[:8]), "retain": (X[8:], Y[8:]), "method": "finetune", "epochs": 1}
    net = ToyNet()
    before = weights(net)
    with pytest.raises(ExpungeError, match=sentence) as caught:
        expunge.unlearn(net, **{"device": "cpu", **given, **changes})
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert same(before, weights(net))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("tensor", ["conv.weight", "norm.running_var", "head.bias"])
def test_weights_that_are_no_numbers_are_found_before_anything_starts(tensor: str, value: float) -> None:
    net = ToyNet()
    state = weights(net)
    state[tensor].view(-1)[0] = -value if tensor == "norm.running_var" else value
    net.load_state_dict(state)
    with pytest.raises(UsageError, match="not finite; its weights may hold NaN"):
        expunge.unlearn(net, forget=(X[:8], Y[:8]), retain=(X[8:], Y[8:]), device="cpu")


def test_one_store_shared_by_both_sets_is_compared_by_position() -> None:
    whole = expunge.scenario("class", (X, Y), target=1).train
    with pytest.raises(DataError, match=r"1 samples are in both .* \(first: position 7\)"):
        expunge.unlearn(ToyNet(), forget=whole.take([5, 7]), retain=whole.take([7, 8, 9]), device="cpu")
    twins = (X[:1].expand(8, -1, -1, -1), Y[:1].expand(8))  # equal content at different positions of one store
    same_store = expunge.scenario("random", twins, amount=4)
    result = expunge.unlearn(
        ToyNet(), forget=same_store.forget, retain=same_store.retain, method="scrub", epochs=1, device="cpu"
    )
    assert result.status == "finished"
