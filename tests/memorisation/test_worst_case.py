"""The two-level search: its step by hand, its optimum where it is known, and that its sets are harder to erase."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog

from expunge.core.errors import UsageError
from expunge.core.run import Run
from expunge.data.split import Split
from expunge.memorisation.worst_case import WorstCaseSearch, rank, upper_step, worst_case
from expunge.testing.conformance import same, weights
from expunge.testing.toys import ToyNet, toy_problem
from expunge.training.inference import predict
from expunge.training.loop import train_model
from expunge.training.recipe import Recipe

RECIPE = Recipe(epochs=15, batch_size=16, lr=0.1)


@pytest.fixture(scope="module")
def data() -> Split:
    """A fifth of the labels are wrong: these cannot be predicted once they are left out."""
    whole = toy_problem(epochs=0).retain
    labels = whole.labels.clone()
    labels[whole.index[::5]] = (labels[whole.index[::5]] + 1) % 4
    return whole.with_labels(labels)


@pytest.fixture(scope="module")
def original(data: Split) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return train_model(ToyNet(), data, RECIPE, Run(seed=0))


def test_the_corner_of_a_step_is_that_of_linear_programming() -> None:
    loss = torch.rand(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = upper_step(torch.full((12,), 4 / 12, dtype=torch.float64), loss, 4, 0)
    expected = linprog(loss.numpy(), A_eq=np.ones((1, 12)), b_eq=[4], bounds=(0, 1)).x
    assert found.tolist() == pytest.approx(expected.tolist())


def test_steps_keep_the_sum_and_the_box() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.full((20,), 0.25, dtype=torch.float64)
    for number in range(8):
        weight = upper_step(weight, torch.rand(20, generator=generator, dtype=torch.float64), 5, number)
        assert float(weight.sum()) == pytest.approx(5)
        assert 0 <= float(weight.min()) <= float(weight.max()) <= 1


def test_equal_weights_are_ranked_by_loss() -> None:
    score = rank(torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([3.0, 2.0, 0.5, 1.0]))
    assert score.tolist() == [0.25, 0.75, 0.5, 1.0]


def test_where_unlearning_moves_nothing_the_worst_set_is_that_of_lowest_loss(
    data: Split, original: torch.nn.Module
) -> None:
    before = weights(copy.deepcopy(original))
    still = WorstCaseSearch(rounds=3, lr=1e-12)
    frozen = Recipe(batch_size=16, batchnorm="frozen")
    found = worst_case(original, data, frozen, Run(), count=10, search=still)
    losses = F.cross_entropy(predict(original, data).double(), data.y, reduction="none")
    assert set(np.flatnonzero(found.columns["weight"])) == set(losses.argsort()[:10].tolist())
    assert set(np.argsort(-found.score)[:10]) == set(losses.argsort()[:10].tolist())
    assert same(before, weights(original))


def test_the_set_stays_known_to_a_model_that_never_saw_it(data: Split, original: torch.nn.Module) -> None:
    """Retrained without it, its loss is lower than that of a random set, and far lower than that of the last ones."""
    found = worst_case(original, data, RECIPE, Run(), count=16, search=WorstCaseSearch(rounds=4, lr=1e-3))
    order = np.argsort(-found.score)
    drawn = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).numpy()
    losses = []
    for rows in (order[:16], drawn[:16], order[-16:]):
        gone = data.index[torch.from_numpy(rows.copy())]
        kept = data.take(data.index[~torch.isin(data.index, gone)])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = train_model(ToyNet(), kept, RECIPE, Run(seed=0))
        losses.append(float(F.cross_entropy(predict(model, data.take(gone)), data.take(gone).y)))
    assert losses[0] < 0.7 * losses[1]
    assert losses[0] < 0.3 * losses[2]


def test_it_is_the_same_again(data: Split, original: torch.nn.Module) -> None:
    state = torch.get_rng_state()
    first, second = (worst_case(original, data, RECIPE, Run(seed=2), count=9).score for _ in range(2))
    assert np.array_equal(first, second)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("count", [0, 10**6])
def test_a_set_of_nothing_or_all_is_refused(data: Split, original: torch.nn.Module, count: int) -> None:
    with pytest.raises(UsageError, match="some, not all"):
        worst_case(original, data, RECIPE, Run(), count=count)
