"""Whatever the scenario: forget and retain partition the training set, and the seed alone decides how."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.core.errors import DataError, UsageError
from expunge.data.split import ResidentStore, Split
from expunge.scenarios.base import parse_scenario

TEXTS = ["random:0.3", "random:amount=0.3,stratified=true", "random:7", "class:1", "class:1,count=3", "instances:5",
         "per-class:fractions=0=0.5+2=0.2", "noisy:0.4", "confusion:4", "ids:3"]  # fmt: skip


def training(count: int, of: int = 1) -> Split:
    """`count` samples of four classes; a training set may be a part of its store, in any order."""
    store = ResidentStore(torch.arange(float(count)).reshape(-1, 1), torch.arange(count) % 4, classes=list("abcd"))
    order = torch.arange(count).flip(0)
    return Split.whole(store).take(order[: count // of])


@settings(max_examples=15, deadline=None)
@given(count=st.integers(40, 90), seed=st.integers(0, 2**31), of=st.integers(1, 2))
@pytest.mark.parametrize("text", TEXTS)
def test_forget_and_retain_partition_the_training_set(text: str, count: int, seed: int, of: int) -> None:
    train = training(count, of)
    if text == "ids:3":
        text = f"ids:{int(train.index[0])}"
    found = parse_scenario(text).split(train, seed)
    forget, retain = set(found.forget.index.tolist()), set(found.retain.index.tolist())
    assert not forget & retain
    assert forget | retain == set(train.index.tolist())
    assert len(forget) == len(found.forget) > 0
    again = parse_scenario(text).split(train, seed)
    assert torch.equal(again.forget.index, found.forget.index)
    assert again.train.content_hash() == found.train.content_hash()


@pytest.mark.parametrize("text", ["random:0.3", "class:1,count=3", "instances:5", "noisy:0.4", "confusion:4"])
def test_another_seed_draws_others(text: str) -> None:
    train = training(80)
    first, second = (parse_scenario(text).split(train, seed).forget.index for seed in (0, 1))
    assert not torch.equal(first.sort().values, second.sort().values)


def test_instances_are_nested() -> None:
    train = training(80)
    few, many = (parse_scenario(f"instances:{k}").split(train, 4).forget.index.tolist() for k in (5, 20))
    assert many[:5] == few


def test_counts_truncate() -> None:
    assert len(parse_scenario("random:0.19").split(training(50), 0).forget) == 9
    shares = parse_scenario("random:amount=0.3,stratified=true").split(training(48), 0).forget
    assert torch.bincount(shares.y).tolist() == [3, 3, 3, 3]  # 0.3 x 12 = 3.6


def test_noise_changes_every_label_of_the_forget_set_to_a_wrong_one() -> None:
    train = training(80)
    found = parse_scenario("noisy:0.4").split(train, 0)
    true = found.true_labels
    assert bool((found.forget.y != true[found.forget.index]).all())
    assert torch.equal(found.retain.y, true[found.retain.index])
    assert len(found.forget.y.unique()) > 1


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("class:9", UsageError, "class `9` does not exist"),
        ("class:z", UsageError, "allowed: "),
        ("random:1.5", UsageError, "fraction below 1 or a whole number"),
        ("random:500", UsageError, "only 40"),
        ("random:40", DataError, "all 40 samples"),
        ("random:0.001", DataError, "nothing to forget"),
        ("ids:999", DataError, "999"),
        ("clas:1", UsageError, "did you mean `class`"),
        ("class:1,cout=3", UsageError, "did you mean `count`|option=value"),
    ],
)
def test_what_cannot_be_selected(text: str, error: type[Exception], sentence: str) -> None:
    with pytest.raises((UsageError, DataError), match=sentence) as caught:
        parse_scenario(text).split(training(40), 0)
    assert isinstance(caught.value, error)
