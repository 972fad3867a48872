"""SCRUB from its equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.errors import UsageError
from expunge.core.seeds import torch_generator
from expunge.data.split import PerSample
from expunge.methods.last_blocks import EUk
from expunge.methods.random_label import wrong_labels
from expunge.methods.rewind import closest, matched_error
from expunge.methods.scrub import SCRUB, WeightMean
from expunge.methods.steps import distillation
from expunge.testing.conformance import run
from expunge.testing.toys import ToyNet, toy_problem
from expunge.training.inference import predict
from expunge.training.recipe import learning_rate


@given(st.floats(0.5, 8.0), st.integers(0, 10_000))
def test_distance_is_t_squared_kl_in_float64(temperature: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(0, 3, (5, 4)), rng.normal(0, 3, (5, 4))

    def softmax(z: np.ndarray) -> np.ndarray:
        e = np.exp(z / temperature - (z / temperature).max(1, keepdims=True))
        return np.asarray(e / e.sum(1, keepdims=True))

    p, q = softmax(teacher), softmax(student)
    slow = temperature**2 * (p * (np.log(p) - np.log(q))).sum(1).mean()
    fast = distillation(torch.tensor(student), torch.tensor(teacher), temperature)
    assert float(fast) == pytest.approx(slow, rel=1e-9)


def test_gradient_is_zero_where_student_equals_teacher_in_eval_mode() -> None:
    problem = toy_problem()
    model = problem.model.eval()
    model.zero_grad()
    x = problem.forget.inputs()
    distillation(model(x), model(x).detach(), 4.0).backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) < 1e-6


@pytest.mark.parametrize("preset", ["large-rb", "up"])
def test_a_net_without_batchnorm_is_perturbed_before_its_first_step(preset: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        problem = toy_problem(ToyNet(batchnorm=False), epochs=12)
    options = {**SCRUB.presets[preset], "msteps": 1, "epochs": 1}  # under SGD, with a single max epoch
    perturbed, stuck = (run(SCRUB(**options, **more), problem) for more in ({}, {"start_perturbation": 0.0}))
    assert perturbed.details["first_gradient_norm"] == stuck.details["first_gradient_norm"] < 1e-4
    assert any("perturbed" in note for note in perturbed.notes)
    assert not stuck.notes
    went, stood = (result.history[0]["forget_distance"] for result in (perturbed, stuck))
    assert went > 1e-3
    assert abs(stood) < 1e-5


def test_the_kick_moves_every_tensor_by_its_share_and_reads_no_label() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        problem = toy_problem(ToyNet(batchnorm=False), epochs=12)
    # The rate is so small that what is left is the kick alone.
    options = {
        "lr": 1e-12,
        "optimizer": "sgd",
        "weight_decay": 0.0,
        "epochs": 1,
        "msteps": 1,
        "start_perturbation": 0.02,
    }
    result = run(SCRUB(**options), problem)
    assert result.needs.forget == "inputs"
    for (name, after), before in zip(result.model.named_parameters(), problem.model.parameters(), strict=True):
        moved = float((after - before).detach().norm() / before.detach().norm())
        assert moved == pytest.approx(0.02, rel=1e-3), name


def test_a_net_with_batchnorm_needs_no_kick() -> None:
    result = run(SCRUB(epochs=1, msteps=1), toy_problem())
    assert result.details["first_gradient_norm"] > 1e-2
    assert not any("perturbed" in note for note in result.notes)


def test_it_settles_once_the_retained_error_is_back() -> None:
    options = {"lr": 5e-3, "epochs": 6, "msteps": 2, "forget_batch_size": 8, "batchnorm": "frozen"}
    problem = toy_problem()
    rows = run(SCRUB(**options, retain_tolerance=0.02), problem).history
    wrong = (predict(problem.model, problem.retain).argmax(1) != problem.retain.y).double().mean()
    back = [row["epoch"] for row in run(SCRUB(**options), problem).history if row["retain_error"] <= wrong + 0.02]
    assert [row["epoch"] for row in rows][-1] == next(epoch for epoch in back if epoch >= 2)
    assert len(rows) < 6


def test_learning_rates_drop_one_epoch_after_the_milestone() -> None:
    preset = SCRUB.presets["small-rb"]
    rates = [
        learning_rate(e, base=5e-4, schedule="milestones", milestones=preset["milestones"])
        for e in range(1, preset["epochs"] + 1)
    ]
    assert rates == pytest.approx([5e-4] * 5 + [5e-5] * 3 + [5e-6, 5e-7])


def test_rewind_takes_the_closest_and_the_earliest_epoch() -> None:
    assert closest([0.0, 0.25, 0.75], 0.5) == 1
    assert closest([0.5, 0.5], 0.5) == 0


def test_reference_error_is_weighted_by_the_forget_histogram() -> None:
    logits = torch.eye(3)[torch.tensor([0, 1, 1, 1])]  # predictions
    labels = torch.tensor([0, 0, 1, 2])  # class 0: half wrong, class 1: right, class 2: wrong
    assert matched_error(logits, labels, torch.tensor([0, 0, 1])) == pytest.approx(2 / 3 * 0.5)
    with pytest.raises(UsageError, match="no validation sample"):
        matched_error(logits, labels, torch.tensor([7]))


def test_rewind_returns_a_snapshot_bit_for_bit() -> None:
    problem = toy_problem()
    options = {"lr": 5e-3, "epochs": 3, "msteps": 3, "forget_batch_size": 8, "batchnorm": "frozen"}
    rewound = run(SCRUB(**options, rewind=True), problem)
    chosen = rewound.details["rewind"]["chosen"]
    plain = run(SCRUB(**{**options, "epochs": chosen}, max_drop=None), problem)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, rewound.model.state_dict()[name])


def test_epoch_0_of_a_rewind_is_the_original_also_where_a_method_resets_weights_first() -> None:
    problem = toy_problem()
    result = run(EUk(epochs=1, rewind=True), problem)
    wrong = (predict(problem.model, problem.forget).argmax(1) != problem.forget.y).double().mean()
    assert result.details["rewind"]["errors"][0] == pytest.approx(float(wrong))


def test_running_mean_of_weights() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    start = model.weight.detach().clone()
    mean = WeightMean(model)
    with torch.no_grad():
        model.weight.add_(1.0)
    assert float(mean.distance(model).detach()) == pytest.approx(2**0.5, rel=1e-5)
    mean.follow(model)
    assert float(mean.distance(model).detach()) == pytest.approx(0.9 * 2**0.5, rel=1e-5)
    assert not torch.equal(start, model.weight)


@given(st.integers(2, 12), st.integers(0, 1000))
def test_wrong_labels_are_never_right(classes: int, seed: int) -> None:
    labels = torch.arange(60) % classes
    wrong = wrong_labels(labels, classes, torch_generator(seed, "x"))
    assert not bool((wrong == labels).any())
    assert int(wrong.min()) >= 0
    assert int(wrong.max()) < classes


def test_lookup_by_row_of_the_split() -> None:
    problem = toy_problem()
    part = problem.retain.take(problem.retain.index[[5, 2, 9]])
    table = PerSample(part, torch.tensor([[50.0], [20.0], [90.0]]))
    assert table[torch.tensor([2, 0])].flatten().tolist() == [90.0, 50.0]
