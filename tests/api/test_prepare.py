"""What the entry points check before anything is computed: one clear sentence for each thing that cannot be right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import expunge
from expunge.core.errors import DataError, ExpungeError, UsageError
from expunge.testing.conformance import same, weights
from expunge.testing.toys import ToyNet, toy_problem

X = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 4


def unlearn(model: Any = None, **changes: Any) -> expunge.Result:
    given: dict[str, Any] = {"forget": (X[:8], Y[:8]), "retain": (X[8:], Y[8:]), "method": "finetune", "epochs": 1}
    return expunge.unlearn(ToyNet() if model is None else model, **{"device": "cpu", **given, **changes})


def test_subsets_of_one_data_set_that_overlap_are_refused() -> None:
    data = TensorDataset(X, Y)
    with pytest.raises(DataError, match="8 samples are in both the forget and the retain set"):
        unlearn(forget=Subset(data, range(8)), retain=data)


def test_subsets_of_one_data_set_that_do_not_overlap_are_fine() -> None:
    data = TensorDataset(X, Y)
    assert unlearn(forget=Subset(data, range(8)), retain=Subset(data, range(8, 40))).status == "finished"


def test_a_few_equal_samples_in_separate_data_are_noted() -> None:
    result = unlearn(retain=(torch.cat([X[8:], X[:2]]), torch.cat([Y[8:], Y[:2]])))
    assert any("2 of 8 samples to forget also occur in the retain set" in note for note in result.notes)


class Shy(nn.Module):
    """Returns what is no batch of logits."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 4)
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        out = self.linear(x.flatten(1))
        return {"first": out, "second": out} if self.answer == "mapping" else out[0]


def poisoned() -> nn.Module:
    net = ToyNet()
    with torch.no_grad():
        net.head.weight[0, 0] = torch.nan
    return net


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"forget": None}, "needs|nothing"),
        ({"forget": (X[:0], Y[:0])}, "forget set is empty"),
        ({"retain": None}, "finetune needs retain data"),
        ({"retain": (X[8:], Y[8:] + 7)}, "label 10, but the model has 4 classes"),
        ({"retain": (X[8:, :, :3, :3].flatten(1), Y[8:])}, "refuses retain samples of shape"),
        ({"model": poisoned()}, "not finite"),
        ({"model": Shy("mapping")}, "logits of shape"),
        ({"model": Shy("vector")}, "logits of shape"),
        ({"model": "m.pt"}, "there is no folder m.pt"),
        ({"model": 3}, "torch.nn.Module, got int"),
        ({"method": "scrubb"}, "did you mean `scrub`"),
        ({"method": "scrub/small"}, "did you mean|allowed"),
        ({"epoch": 3}, "did you mean `epochs`"),
        ({"epochs": -1}, "greater than or equal to 0"),
        ({"lr": 1e30}, "diverged"),
        ({"device": "cuda:99"}, "allowed: auto, cpu"),
        ({"rewind": True}, "rewinding needs validation data"),
    ],
)
def test_what_cannot_be_right_is_said_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    if changes == {"forget": None}:
        changes = {"forget": None, "retain": None}
    with pytest.raises(ExpungeError, match=sentence) as caught:
        unlearn(**changes)
    assert "\n" not in str(caught.value)


def test_the_given_model_is_untouched_down_to_modes_and_flags() -> None:
    problem = toy_problem(forget_class=1)
    model = problem.model
    model.norm.train()
    model.conv.weight.requires_grad_(False)
    before, modes = weights(model), [m.training for m in model.modules()]
    result = unlearn(model, forget=problem.forget, retain=problem.retain)
    assert same(before, weights(model))
    assert [m.training for m in model.modules()] == modes == [m.training for m in result.model.modules()]
    assert [p.requires_grad for p in result.model.parameters()] == [p.requires_grad for p in model.parameters()]


def test_evaluate_is_tidy_and_knows_what_it_lacks() -> None:
    problem = toy_problem(forget_class=1)
    models = {"original": problem.model, "again": problem.model}
    scores = expunge.evaluate(models, forget=problem.forget, retain=problem.retain, device="cpu")
    frame = scores.frame()
    assert list(frame.columns) == ["model", "metric", "group", "value", "low", "high", "unit", "direction", "note"]
    assert not frame.duplicated(["model", "metric", "group"]).any()
    assert not frame["metric"].str.endswith("_gap").any()
    named = expunge.evaluate({**models, "retrained": problem.model}, forget=problem.forget, device="cpu")
    assert named.value("original", "forget_gap") == 0
    with pytest.raises(UsageError, match="did you mean `accuracy`"):
        expunge.evaluate(models, forget=problem.forget, metrics=["acuracy"], device="cpu")
    with pytest.raises(UsageError, match="gap needs"):
        expunge.evaluate(models, forget=problem.forget, metrics=["gap"], device="cpu")


def test_a_saved_result_reads_back_and_a_second_one_does_not_half_overwrite(tmp_path: Any) -> None:
    result = unlearn()
    result.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert any(name.endswith(".safetensors") for name in names)
    unlearn(seed=1).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == names


def test_compiling_is_for_the_epochs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []

    def compile_(self: nn.Module) -> None:
        compiled.append(self)
        self._compiled_call_impl = self._call_impl

    monkeypatch.setattr(nn.Module, "compile", compile_)
    result = unlearn(compile=True)
    assert [type(module) for module in compiled] == [ToyNet]
    assert compiled[0]._compiled_call_impl is None
    assert result.model._compiled_call_impl is None
    unlearn()
    assert len(compiled) == 1


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def fail(self: nn.Module) -> None:
        raise TorchDynamoException("no C++ compiler\nmany more lines")

    monkeypatch.setattr(nn.Module, "compile", fail)
    with pytest.raises(ExpungeError, match=r"cannot be compiled \(no C\+\+ compiler\); leave out `compile`"):
        unlearn(compile=True)


def test_integers_are_not_cast_for_a_model_that_takes_numbers() -> None:
    x, y = torch.arange(40).reshape(10, 4), torch.arange(10) % 2
    with pytest.raises(DataError, match="Samples of int64 reach the model as such; pass floats"):
        expunge.unlearn(torch.nn.Linear(4, 2), forget=(x, y), method="neggrad", device="cpu")


def test_tokens_reach_the_model_as_integers() -> None:
    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(50, 8)
            self.head = torch.nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.embedding(x).mean(1))

    x, y = torch.randint(50, (24, 6), generator=torch.Generator().manual_seed(0)), torch.arange(24) % 2
    torch.manual_seed(0)
    given = {"forget": (x[:4], y[:4]), "retain": (x[4:], y[4:]), "device": "cpu", "measure": False}
    assert expunge.unlearn(Tokens(), method="scrub", epochs=1, **given).status == "finished"
    with pytest.raises(UsageError, match="samples of int64 cannot be changed along a gradient"):
        expunge.unlearn(Tokens(), method="boundary-shrink", **given)
