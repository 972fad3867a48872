"""Moments of gradients: against one backward pass per sample or batch, and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.run import Run
from expunge.data.mixing import mixed_batches
from expunge.data.split import ResidentStore, Split
from expunge.numerics.gradient_moments import gradient_moments
from expunge.testing.toys import TiedNet, ToyNet, toy_images


def split(count: int, seed: int = 0) -> Split:
    images, labels = toy_images(count, seed)
    return Split.whole(ResidentStore(images, labels, classes=list("abcd")))


def loss_of(logits: Tensor, y: Tensor, loss: str) -> Tensor:
    if loss == "cross-entropy":
        return F.cross_entropy(logits, y)
    return logits.norm(dim=1).mean() if loss == "norm" else logits.square().sum(1).mean()


def one_by_one(model: nn.Module, data: Split, loss: str, moment: str) -> dict[str, Tensor]:
    """The definition: a backward pass per sample."""
    model.eval()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for batch in data.batches(1):
        gradients = torch.autograd.grad(loss_of(model(batch.x), batch.y, loss), list(model.parameters()))
        for name, gradient in zip(total, gradients, strict=True):
            total[name] += gradient.square() if moment == "square" else gradient.abs()
    return {name: value / len(data) for name, value in total.items()}


@pytest.mark.parametrize("model", [ToyNet, TiedNet])
@pytest.mark.parametrize(
    ("loss", "moment"), [("cross-entropy", "square"), ("squared norm", "absolute"), ("norm", "absolute")]
)
def test_samples_against_a_backward_pass_each(model: type[nn.Module], loss: Any, moment: Any) -> None:
    torch.manual_seed(0)
    net = model().requires_grad_(True)
    data = split(6)
    expected = one_by_one(net, data, loss, moment)
    given = {name: p.requires_grad for name, p in net.named_parameters()}
    made = gradient_moments(net, [data], Run(), loss=loss, unit="sample", moment=moment)
    assert made.keys() == expected.keys()
    for name in made:
        torch.testing.assert_close(made[name].float(), expected[name], rtol=1e-4, atol=1e-8)
    assert given == {name: p.requires_grad for name, p in net.named_parameters()}


def test_batches_by_hand() -> None:
    """f(x) = w x for two logits; ||f||^2 = (w0^2 + w1^2) x^2, so each batch's gradient is 2 w mean(x^2)."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [-2.0]]))
    data = Split.whole(ResidentStore(torch.tensor([[1.0], [1.0], [3.0], [3.0]]), torch.zeros(4, dtype=torch.long),
                                     classes=["a", "b"]))  # fmt: skip
    whole = gradient_moments(model, [data], Run(), loss="squared norm", moment="absolute", batch_size=4)
    assert whole["weight"].flatten().tolist() == [2 * 5, 4 * 5]  # mean of x^2 is 5
    single = gradient_moments(model, [data], Run(), loss="squared norm", moment="square", unit="sample")
    assert single["weight"].flatten().tolist() == [4 * (1 + 1 + 81 + 81) / 4, 16 * (1 + 1 + 81 + 81) / 4]


def test_samples_do_not_depend_on_how_the_data_are_cut() -> None:
    torch.manual_seed(0)
    net, first, second = ToyNet(), split(5), split(7, seed=1)
    union = gradient_moments(net, [first, second], Run(), unit="sample")
    parts = [gradient_moments(net, [part], Run(), unit="sample") for part in (first, second)]
    for name in union:
        torch.testing.assert_close(union[name], (5 * parts[0][name] + 7 * parts[1][name]) / 12)


def test_mixed_batches_hold_every_sample_once_and_each_split_in_its_share() -> None:
    first, second = split(30), split(10, seed=1)
    seen: list[list[int]] = [[], []]
    for parts in mixed_batches([first, second], 8, seed=3):
        sizes = [0 if part is None else len(part) for part in parts]
        assert sizes[0] == 6
        assert sizes[1] == 2
        for rows, part in zip(seen, parts, strict=True):
            rows.extend([] if part is None else part.index.tolist())
    assert sorted(seen[0]) == list(range(30))
    assert sorted(seen[1]) == list(range(10))
    assert seen[0] != list(range(30))
