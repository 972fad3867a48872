"""Whatever the scenario: forget and retain partition the training set, and the seed alone decides how."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import expunge
from expunge.core.errors import DataError, UsageError
from expunge.data.split import ResidentStore, Split
from expunge.scenarios import SCENARIOS
from expunge.scenarios.base import make_scenario, parse_scenario

TEXTS = ["random:0.3", "random:amount=0.3,stratified=true", "random:7", "class:b", "class:b,count=3", "instances:5",
         "per-class:fractions=a=0.5+c=0.2", "noisy:0.4", "confusion:4", "ids:s3", "index:3",
         "where:age<30", "subpopulation:3", "subpopulation:amount=0.2,across=true"]  # fmt: skip


def training(count: int, of: int = 1) -> Split:
    """`count` samples of four classes; a training set may be a part of its store, in any order."""
    store = ResidentStore(
        torch.arange(float(count)).reshape(-1, 1),
        torch.arange(count) % 4,
        classes=list("abcd"),
        ids=[f"s{i}" for i in range(count)],
        columns={"age": 7 * np.arange(count) % 60},
    )
    order = torch.arange(count).flip(0)
    return Split.whole(store).take(order[: count // of])


def test_every_scenario_is_put_to_the_test() -> None:
    # Ten classes are needed in test_laf_tasks.py, score files in test_ranked.py.
    elsewhere = {"laf-task", "memorised", "worst-case"}
    assert {text.partition(":")[0] for text in TEXTS} | elsewhere == {card.name for card in SCENARIOS.cards()}


@settings(max_examples=15, deadline=None)
@given(count=st.integers(40, 90), seed=st.integers(0, 2**31), of=st.integers(1, 2))
@pytest.mark.parametrize("text", TEXTS)
def test_forget_and_retain_partition_the_training_set(text: str, count: int, seed: int, of: int) -> None:
    train = training(count, of)
    if text in ("ids:s3", "index:3"):
        text = text.replace("3", str(int(train.index[0])))
    found = parse_scenario(text).split(train, seed)
    forget, retain = set(found.forget.index.tolist()), set(found.retain.index.tolist())
    assert not forget & retain
    assert forget | retain == set(train.index.tolist())
    assert len(forget) == len(found.forget) > 0
    again = parse_scenario(text).split(train, seed)
    assert torch.equal(again.forget.index, found.forget.index)
    assert again.train.content_hash() == found.train.content_hash()


@pytest.mark.parametrize(
    "text", ["random:0.3", "class:b,count=3", "instances:5", "noisy:0.4", "confusion:4", "subpopulation:3"]
)
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
    assert len(parse_scenario("class:b,count=0.3").split(training(48), 0).forget) == 3  # 0.3 x 12 = 3.6
    shares = parse_scenario("random:amount=0.3,stratified=true").split(training(48), 0).forget
    assert torch.bincount(shares.y).tolist() == [3, 3, 3, 3]
    shares = parse_scenario("per-class:fractions=a=0.5+c=0.2+index:3=1").split(training(50), 0).forget
    numbered = make_scenario("per-class", {"fractions": {0: 0.5, "c": 0.2, 3: 1}}).split(training(50), 0).forget
    assert torch.equal(numbered.index, shares.index)
    assert torch.bincount(shares.y).tolist() == [6, 0, 2, 12]  # of 13, 13, 12, 12


def test_a_stratified_fraction_is_that_of_every_class_also_where_sizes_differ() -> None:
    """Half of ten is five, though half of the eleven samples together truncates to less than half of them."""
    labels = torch.tensor([0] * 10 + [1])
    found = expunge.scenario("random", (torch.rand(11, 2), labels), amount=0.5, stratified=True)
    assert torch.bincount(found.forget.y).tolist() == [5]
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 10)
    found = expunge.scenario("random", (torch.rand(40, 2), labels), amount=8, stratified=True)
    assert torch.bincount(found.forget.y).tolist() == [4, 2, 2]


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("class:index:1", {1}),
        ("class:c", {2}),
        ("per-class:fractions=a=0.5+index:2=0.2", {0, 2}),
        ("confusion:4", {0, 1}),
    ],
)
def test_only_named_classes_are_forgotten(text: str, classes: set[int]) -> None:
    found = parse_scenario(text).split(training(80), 3)
    assert set(found.true_labels[found.forget.index].tolist()) == classes


def test_a_whole_class_leaves_none_of_it() -> None:
    found = parse_scenario("class:b").split(training(80), 0)
    assert not bool((found.retain.y == 1).any())


@settings(max_examples=20, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=6, max_size=60), seed=st.integers(0, 99), amount=st.floats(0.05, 0.9)
)
def test_any_labels_partition(labels: list[int], seed: int, amount: float) -> None:
    """Uneven and absent classes too; where nothing is drawn the scenario says so."""
    data = (np.zeros((len(labels), 2), dtype=np.float32), np.array([*labels, *range(5)][: len(labels)]))
    drawn = {False: int(amount * len(labels)), True: sum(int(amount * n + 1e-9) for n in np.bincount(data[1]))}
    for stratified, count in drawn.items():
        options = {"seed": seed, "amount": amount, "stratified": stratified}
        if count == 0:
            with pytest.raises(DataError, match="nothing to forget"):
                expunge.scenario("random", data, **options)
            continue
        found = expunge.scenario("random", data, **options)
        assert len(found.forget) == count
        joined = torch.cat([found.forget.index, found.retain.index])
        assert torch.equal(joined.sort().values, torch.arange(len(labels)))


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(5)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for text in TEXTS:
        parse_scenario(text).split(training(80), 0)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


def test_the_partition_describes_itself() -> None:
    facts = json.loads(json.dumps(expunge.scenario("class", training(80), target=1, count=3, seed=7).describe()))
    assert facts["scenario"] == "class"
    assert facts["options"] == {"target": 1, "count": 3.0, "requests": 1, "with_copies": False}
    assert (facts["seed"], facts["forget"], facts["retain"]) == (7, 3, 77)


@pytest.mark.parametrize("kind", ["split", "tensors", "arrays", "dataset"])
def test_whatever_holds_the_data_the_same_samples_are_drawn(kind: str) -> None:
    whole = Split.whole(training(80).store)
    x, y = whole.inputs(), whole.y
    data: Any = {
        "split": whole,
        "tensors": (x, y),
        "arrays": (x.numpy(), y.numpy()),
        "dataset": [(row, int(label)) for row, label in zip(x, y, strict=True)],
    }[kind]
    found = expunge.scenario("random", data, amount=0.2, seed=3)
    assert torch.equal(found.forget.index, parse_scenario("random:0.2").split(whole, 3).forget.index)
    assert torch.equal(found.retain.inputs(), x[found.retain.index])


def test_ids_are_forgotten_in_the_order_of_their_positions_whatever_form_they_have() -> None:
    train = Split.whole(training(40).store)
    mask = np.zeros(40, dtype=bool)
    mask[[3, 9, 20]] = True
    for ids in ("s3,s9,s20", mask, train.ids[[3, 9, 20]].tolist(), "index:3,9,20"):
        assert expunge.scenario("ids", train, ids=ids).forget.index.tolist() == [3, 9, 20]
    for positions in ([3, 9, 20], torch.tensor([3, 9, 20]), mask, "3,9,20", range(3, 21, 6)):
        found = expunge.scenario("index", train, positions=positions).forget.index.tolist()
        assert found == ([3, 9, 15] if isinstance(positions, range) else [3, 9, 20])


def test_a_condition_on_a_column_selects_all_that_fulfil_it() -> None:
    found = parse_scenario("where:age<30").split(training(80), 0)
    assert set(found.forget.index.tolist()) == {i for i in range(80) if 7 * i % 60 < 30}


def test_noise_changes_every_label_of_the_forget_set_to_a_wrong_one() -> None:
    train = training(80)
    found = parse_scenario("noisy:0.4").split(train, 0)
    true = found.true_labels
    assert bool((found.forget.y != true[found.forget.index]).all())
    assert torch.equal(found.retain.y, true[found.retain.index])
    assert torch.equal(true, train.y[train.index.argsort()])
    assert torch.equal(found.train.y[found.train.index.argsort()][found.forget.index], found.forget.y)
    assert len(found.forget) == 32
    assert len(found.forget.y.unique()) > 1


def test_wrong_labels_are_uniform_over_the_other_classes() -> None:
    train = Split.whole(training(1600).store)
    found = parse_scenario("noisy:0.75").split(train, 0)
    shift = (found.forget.y - train.y[found.forget.index]) % 4
    counts = torch.bincount(shift, minlength=4).tolist()
    assert counts[0] == 0
    assert all(340 < count < 460 for count in counts[1:])  # 400 each, 3.7 standard deviations


def test_noise_in_some_classes_leaves_the_others_clean() -> None:
    train = Split.whole(training(80).store)
    found = expunge.scenario("noisy", train, amount=0.5, classes=(1, "d"))
    assert torch.bincount(train.y[found.forget.index], minlength=4).tolist() == [0, 10, 0, 10]
    assert bool((found.forget.y != train.y[found.forget.index]).all())


def test_another_seed_spoils_with_other_labels() -> None:
    train = Split.whole(training(80).store)
    first, second = (expunge.scenario("noisy", train, amount=0.5, seed=seed).train.y for seed in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(train.y, train.store.labels)  # the data that were given stay clean


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("class", UsageError, "`target` is required"),
        ("random:1.0", UsageError, "1 is one sample, got '1.0'"),
        ("class:b,count=1.0", UsageError, "1 is one sample"),
        ("class:9", UsageError, "class `9` does not exist"),
        ("class:1", UsageError, "no class of data is called `1`; .* class 1 is `b`"),
        ("index:40", DataError, "position is not in data: 40"),
        ("index:x", UsageError, "`x` is not a position"),
        ("class:z", UsageError, "allowed: "),
        ("random:1.5", UsageError, "fraction below 1 or a whole number"),
        ("random:500", UsageError, "only 40"),
        ("random:2.5", UsageError, "a fraction below 1 or a whole number, got 2.5"),
        ("random:inf", UsageError, "finite number"),
        ("random:nan", UsageError, "amount.*nan"),
        ("random:-1", UsageError, "greater than 0"),
        ("instances:41", UsageError, "only 40"),
        ("instances:0", UsageError, "greater than or equal to 1"),
        ("class:b,count=11", UsageError, "only 10"),
        ("class:-1", UsageError, "class `-1` does not exist"),
        ("per-class:fractions=1=1.5", UsageError, r"fraction of class 1 must be in \(0, 1\], got 1.5"),
        ("per-class:fractions=index:1=0.5+b=0.5", DataError, "repeats samples"),
        ("per-class", UsageError, "`fractions` is required"),
        ("where:hight>3", UsageError, "hight"),
        ("where:age>900", DataError, "nothing to forget"),
        ("random:40", DataError, "all 40 samples"),
        ("random:0.001", DataError, "nothing to forget"),
        ("ids:999", DataError, "999"),
        ("clas:1", UsageError, "did you mean `class`"),
        ("class:b,cout=3", UsageError, "did you mean `count`|option=value"),
    ],
)
def test_what_cannot_be_selected(text: str, error: type[Exception], sentence: str) -> None:
    with pytest.raises((UsageError, DataError), match=sentence) as caught:
        parse_scenario(text).split(training(40), 0)
    assert isinstance(caught.value, error)
