"""DELETE, POUR and ESC: targets and projections by hand, and against a plain loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.core.errors import UsageError
from expunge.core.run import Run
from expunge.methods.delete import DELETE
from expunge.methods.esc import ESC, leading_directions
from expunge.methods.pour import POURD, POURP, projector
from expunge.methods.steps import masked_softmax
from expunge.testing.conformance import run, same, weights
from expunge.testing.toys import ToyNet, ToyProblem, toy_problem
from expunge.training.inference import error_rate, predict


def plain(**options: Any) -> ToyProblem:
    torch.manual_seed(0)
    problem = toy_problem(ToyNet(batchnorm=False), **options)
    problem.model.zero_grad(set_to_none=True)
    return problem


def head_inputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    caught: list[torch.Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))  # type: ignore[union-attr]
    model(x)
    handle.remove()
    return caught[0].detach()


def test_delete_against_a_plain_loop() -> None:
    problem = plain()
    made = run(DELETE(epochs=2, lr=0.02, batch_size=12, max_drop=None), problem, seed=4).model
    model, teacher = plain().model, problem.model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for epoch in (1, 2):
        seed = Run(seed=4).seed_for("forget", "shuffle", epoch)
        for batch in problem.forget.batches(12, shuffle=True, seed=seed):
            z = teacher(batch.x).detach()
            z[torch.arange(len(z)), batch.y] = -1e10
            q = z.softmax(1)
            loss = (torch.xlogy(q, q) - q * model(batch.x).log_softmax(1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, value in weights(model).items():
        torch.testing.assert_close(weights(made)[name], value, rtol=1e-3, atol=1e-5)


def test_delete_by_prediction_reads_no_label_and_masks_the_answer() -> None:
    assert DELETE(mask="prediction").needs.label_free
    assert DELETE().needs.forget == "labels"
    problem = toy_problem()
    by_answer = run(DELETE(mask="prediction", epochs=3, lr=0.02, max_drop=None), problem).model
    assert same(
        weights(by_answer), weights(run(DELETE(epochs=3, lr=0.02, max_drop=None), problem).model)
    )  # it answers the labels
    other = replace(problem, forget=problem.forget.with_labels((problem.store.labels + 1) % 4))
    assert same(
        weights(by_answer), weights(run(DELETE(mask="prediction", epochs=3, lr=0.02, max_drop=None), other).model)
    )


def test_projector_by_hand() -> None:
    p = projector(torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]]))  # the same direction twice
    torch.testing.assert_close(p, torch.tensor([[0.5, -0.5, 0.0], [-0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]).double())


def test_pour_p_takes_the_forgotten_direction_out_of_every_logit() -> None:
    problem = toy_problem()
    made = run(POURP(), problem).model
    w, b = (weights(problem.model)[name] for name in ("head.weight", "head.bias"))
    h = head_inputs(problem.model, problem.test.inputs())
    u = w[1] / w[1].norm()
    expected = (h - (h @ u)[:, None] * u) @ w.T + b
    torch.testing.assert_close(predict(made, problem.test), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(predict(made, problem.test)[:, 1], b[1].expand(80), rtol=1e-3, atol=1e-4)
    assert error_rate(predict(made, problem.forget), problem.forget.y) == 1.0
    assert error_rate(predict(made, problem.retain), problem.retain.y) < 0.1


def test_pour_d_moves_the_representations_to_their_projection() -> None:
    problem = plain()
    made = run(POURD(epochs=30, lr=0.01, batch_size=30, max_drop=None), problem).model
    w = weights(problem.model)["head.weight"]
    h = head_inputs(problem.model, problem.forget.inputs())
    target = (h.double() @ projector(w[1:2])).float()
    before = float((h - target).square().sum(1).mean())
    after = float((head_inputs(made, problem.forget.inputs()) - target).square().sum(1).mean())
    assert after < 0.5 * before
    assert torch.equal(weights(made)["head.weight"], w)


@pytest.mark.parametrize("method", [POURP(), POURD()])
def test_pour_refuses_a_forget_set_of_all_classes(method: Any) -> None:
    with pytest.raises(UsageError, match="forgets whole classes"):
        run(method, toy_problem(forget_class=None))


def test_esc_drops_the_first_singular_directions() -> None:
    problem = toy_problem()
    made = run(ESC(p=15.0), problem).model  # 15 % of 16: two directions
    h = head_inputs(problem.model, problem.forget.inputs())
    values, vectors = torch.linalg.eigh(h.T.double() @ h.double())
    u = vectors[:, -2:].float()
    w = weights(problem.model)["head.weight"]
    torch.testing.assert_close(weights(made)["head.weight"], w - w @ u @ u.T, rtol=1e-3, atol=1e-4)
    assert values[-1] > values[-2] > values[-3]
    assert leading_directions(h, 1.0).shape == (16, 1)  # at least one


def test_a_head_that_is_not_linear_is_refused() -> None:
    class Normed(ToyNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.normalize(super().forward(x), dim=1)

    torch.manual_seed(0)
    with pytest.raises(UsageError, match="esc projects the input of the last linear layer"):
        run(ESC(), toy_problem(Normed()))


def test_a_linear_layer_inside_a_head_is_found() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
            self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(16, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

    torch.manual_seed(0)
    problem = toy_problem(Wrapped())
    made = run(POURP(), problem).model
    assert float((weights(made)["head.1.weight"] @ weights(problem.model)["head.1.weight"][1]).abs().max()) < 1e-5


def test_masked_softmax_gives_the_own_class_nothing() -> None:
    made = masked_softmax(torch.zeros(2, 3), torch.tensor([0, 2]))
    assert made.tolist() == [[0.0, 0.5, 0.5], [0.5, 0.5, 0.0]]
