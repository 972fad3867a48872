"""SCAR: transform, shrinkage and distance by hand, statistics against numpy, what each source reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expunge.core.needs import Needs
from expunge.core.run import Run
from expunge.methods.scar import SCAR, distances, other_classes, powered, shrunk_correlation
from expunge.models.anatomy import anatomy
from expunge.testing.conformance import run
from expunge.testing.toys import toy_problem
from expunge.training.inference import error_rate, predict


def test_the_transform_is_odd_and_has_a_finite_slope() -> None:
    h = torch.tensor([4.0, -9.0, 0.0], requires_grad=True)
    t = powered(h, 0.5)
    assert t.tolist() == [2.0, -3.0, 0.0]
    t.sum().backward()
    assert h.grad is not None
    assert bool(torch.isfinite(h.grad).all())


def test_shrinkage_by_hand() -> None:
    """Mean diagonal 3, mean off-diagonal 1: [[2, 1], [1, 4]] + 3 [[3, 0], [0, 3]] + 3 [[0, 1], [1, 0]]."""
    made = shrunk_correlation(torch.tensor([[2.0, 1.0], [1.0, 4.0]]), 3.0, 3.0)
    r = 4 / (11 * 13) ** 0.5
    torch.testing.assert_close(made, torch.tensor([[1.0, r], [r, 1.0]]))


def test_statistics_and_distances_against_numpy() -> None:
    problem = toy_problem()
    parts = anatomy(problem.model, problem.forget.inputs()[:2])
    chosen = SCAR()
    classes, means, inverses = chosen.statistics(parts, problem.retain, Run())
    assert classes.tolist() == [0, 2, 3]
    rows = chosen.targets(parts, problem.forget, Run(), classes, means, inverses)
    h = predict(problem.model, problem.retain, forward=parts.features).double().numpy()
    f = predict(problem.model, problem.forget, forward=parts.features).double().numpy()
    y, found = problem.retain.y.numpy(), []
    for c in (0, 2, 3):
        t = np.sqrt(h[y == c])  # the toy's representation comes out of a ReLU
        m, cov = t.mean(0), np.cov(t.T)
        eye = np.eye(len(cov))
        off = cov[~eye.astype(bool)].mean()
        cov = cov + 3 * np.diag(cov).mean() * eye + 3 * off * (1 - eye)
        s = cov / np.sqrt(np.outer(np.diag(cov), np.diag(cov)))
        v = np.sqrt(f)
        gap = v / np.linalg.norm(v, axis=1, keepdims=True) - m / np.linalg.norm(m)
        found.append(np.einsum("bi,ij,bj->b", gap, np.linalg.pinv(s, hermitian=True), gap))
    expected = np.stack(found, 1)
    made = distances(powered(torch.from_numpy(f).float(), 0.5), means, inverses).numpy()
    np.testing.assert_allclose(made, expected, rtol=2e-2, atol=1e-3)
    assert (rows.numpy() == expected.argmin(1)).mean() > 0.9


def test_forgets_a_class_and_keeps_the_rest() -> None:
    problem = toy_problem()
    result = run(SCAR(epochs=20, lr=0.01, batch_size=32, max_drop=None), problem)
    assert result.status == "reached"
    assert error_rate(predict(result.model, problem.forget), problem.forget.y) > 0.9
    assert error_rate(predict(result.model, problem.retain), problem.retain.y) < 0.1


def test_held_out_samples_stand_in_for_retained_ones() -> None:
    assert SCAR(source="validation").needs == Needs(forget="labels", validation="labels")
    problem = toy_problem()
    kept = other_classes(problem.validation, problem.forget)
    assert set(kept.y.tolist()) == {0, 2, 3}
    mixed = toy_problem(forget_class=None)
    assert len(other_classes(mixed.validation, mixed.forget)) == len(mixed.validation)
    result = run(SCAR(source="validation", epochs=20, lr=0.01, batch_size=32), problem)
    assert error_rate(predict(result.model, problem.forget), problem.forget.y) == pytest.approx(1.0, abs=0.2)
