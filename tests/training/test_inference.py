"""Predictions: in order, in eval mode, without gradients, and nothing of the model or the random state is moved."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from expunge.core.errors import AccessError
from expunge.data.convert import as_split
from expunge.models.modes import evaluation_mode, training_mode
from expunge.testing.conformance import same, weights
from expunge.testing.toys import ToyNet, toy_problem
from expunge.training.inference import error_rate, predict


@pytest.mark.parametrize("size", [1, 7, 1024])
def test_predictions_are_in_the_order_of_the_split_whatever_the_batches(size: int) -> None:
    problem = toy_problem()
    split = problem.retain.take(torch.tensor([5, 0, 33, 2, 71, 40, 6, 8, 9]))
    with torch.no_grad():
        expected = problem.model(problem.store.samples[split.index])
    assert torch.allclose(predict(problem.model, split, batch_size=size), expected, atol=1e-5)


def test_eval_mode_for_the_pass_only() -> None:
    problem = toy_problem()
    net = problem.model.train()
    net.norm.eval()
    modes, before = [m.training for m in net.modules()], weights(net)
    logits = predict(net, problem.retain)
    assert [m.training for m in net.modules()] == modes
    assert same(before, weights(net))  # statistics of BatchNorm included
    with torch.no_grad():
        assert torch.allclose(logits, net.eval()(problem.retain.inputs()), atol=1e-5)


def test_modes_come_back_after_a_failure() -> None:
    net = ToyNet().train()

    def fail(*_: object) -> None:
        raise RuntimeError("boom")

    net.head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="boom"):
        predict(net, toy_problem().retain)
    assert all(module.training for module in net.modules())


def test_modes_inside_and_after_a_block() -> None:
    net = ToyNet().train()
    with evaluation_mode(net):
        assert not any(module.training for module in net.modules())
    assert all(module.training for module in net.modules())


def test_frozen_means_batchnorm_alone_in_eval_mode() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(), nn.LayerNorm(2)).eval()
    training_mode(net, "frozen")
    assert [module.training for module in net] == [True, False, True, True]
    training_mode(net)
    assert all(module.training for module in net.modules())


def test_cached_logits_can_take_part_in_a_loss() -> None:
    problem = toy_problem()
    logits = predict(problem.model, problem.forget)
    assert not logits.requires_grad
    student = problem.model(problem.forget.inputs())
    (student * logits).sum().backward()  # a tensor of inference mode would be refused here
    assert problem.model.head.weight.grad is not None


def test_half_precision_is_predicted_in_full() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :4].half()

    assert predict(Half(), toy_problem(epochs=0).forget).dtype == torch.float32


def test_withheld_labels_are_not_needed() -> None:
    problem = toy_problem()
    hidden = problem.forget.without_labels()
    assert torch.equal(predict(problem.model, hidden), predict(problem.model, problem.forget))
    with pytest.raises(AccessError):
        _ = hidden.y


def test_nothing_to_predict_is_an_empty_table() -> None:
    problem = toy_problem(epochs=0)
    assert predict(problem.model, problem.retain.take([])).shape == (0, 4)


def test_error_rate() -> None:
    assert error_rate(torch.eye(3), torch.tensor([0, 1, 0])) == pytest.approx(1 / 3)
    assert error_rate(torch.eye(3), torch.tensor([0, 1, 2])) == 0
    assert math.isnan(error_rate(torch.empty(0, 3), torch.empty(0, dtype=torch.long)))


def test_hooks_see_the_samples_and_nothing_else():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    split = as_split((torch.rand(7, 3, 8, 8), torch.arange(7) % 3))
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    predict(model, split, batch_size=4)
    assert seen == [4, 3]


def test_the_layout_of_the_weights_comes_back_and_changes_no_answer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    split = as_split((torch.rand(7, 3, 8, 8), torch.arange(7) % 3))
    strides = model[0].weight.stride()
    with torch.no_grad():
        expected = model.eval()(split.inputs())
    assert torch.allclose(predict(model, split), expected, atol=1e-5)
    assert model[0].weight.stride() == strides
