"""Coherent subpopulations: nearest neighbours by brute force, exact and nested sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

import expunge
from expunge.core.errors import DataError, UsageError
from expunge.data.split import Normalisation, ResidentStore, Split

POINTS = np.random.default_rng(0).normal(size=(60, 2, 3)).astype("float32")


@pytest.fixture
def data() -> Split:
    """50 of 60 samples of four classes, the last class empty; normalised on the way to the model."""
    store = ResidentStore(
        torch.from_numpy(POINTS),
        torch.arange(60) % 3,
        classes=list("abcd"),
        ids=[f"s{i}" for i in range(60)],
        normalisation=Normalisation((0.5, 0.5), (0.25, 4.0)),
    )
    return Split.whole(store).take(torch.arange(59, 9, -1))


def forgotten(data: Split, seed: int = 0, **options: object) -> list[int]:
    return expunge.scenario("subpopulation", data, seed=seed, **options).forget.index.tolist()


@pytest.mark.parametrize("across", [False, True])
def test_they_are_the_nearest_neighbours(data: Split, across: bool) -> None:
    chosen = forgotten(data, amount=8, sample=20, across=across)
    pool = [i for i in data.index.tolist() if across or i % 3 == 20 % 3]
    seen = POINTS.reshape(60, -1) / np.repeat([0.25, 4.0], 3)
    near = NearestNeighbors(n_neighbors=8).fit(seen[pool]).kneighbors(seen[[20]], return_distance=False)[0]
    assert chosen == sorted(np.array(pool)[near].tolist())
    assert 20 in chosen


def test_sizes_are_exact_and_nested(data: Split) -> None:
    sets = [set(forgotten(data, seed=5, amount=amount)) for amount in (1, 4, 9)]
    assert [len(one) for one in sets] == [1, 4, 9]
    assert sets[0] < sets[1] < sets[2]
    assert len({data.labels[i].item() for i in sets[2]}) == 1
    assert len(forgotten(data, amount=0.5, across=True)) == 25


def test_the_seed_draws_the_centre(data: Split) -> None:
    centres = [forgotten(data, seed=seed, amount=1)[0] for seed in range(10)]
    assert centres == [forgotten(data, seed=seed, amount=1)[0] for seed in range(10)]
    assert len(set(centres)) > 4
    assert {i % 3 for seed in range(10) for i in forgotten(data, seed=seed, amount=1, target="b")} == {1}


def test_a_copy_of_the_seed_sample_does_not_replace_it() -> None:
    store = ResidentStore(torch.zeros(6, 2), torch.zeros(6, dtype=torch.long), classes=["a", "b"])
    assert forgotten(Split.whole(store), amount=1, sample=4) == [4]


def test_features_of_a_file_decide(data: Split, tmp_path: Path) -> None:
    """One feature: the position, so neighbours are those next to it."""
    np.save(tmp_path / "f.npy", np.arange(60.0)[:, None])
    pd.DataFrame({"id": [f"s{i}" for i in range(60)], "f": range(60)}).to_csv(tmp_path / "f.csv", index=False)
    for name in ("f.npy", "f.csv"):
        assert forgotten(data, amount=3, sample="s30", across=True, features=tmp_path / name) == [29, 30, 31]
        assert forgotten(data, amount=3, sample="s30", features=tmp_path / name) == [27, 30, 33]


def test_what_cannot_be_done_is_said(data: Split, tmp_path: Path) -> None:
    for options, kind, phrase in (
        ({"sample": "s1"}, DataError, "s1"),  # of the data set, not of the training part
        ({"sample": 3}, DataError, "not in"),
        ({"target": "d"}, DataError, "class d has no sample"),
        ({"target": "z"}, UsageError, "does not exist"),
        ({"target": 1, "sample": 20}, UsageError, "omit `target`"),
        ({"amount": 40}, UsageError, "there are only 1"),
        ({"features": tmp_path / "absent.npy"}, DataError, "absent.npy"),
    ):
        with pytest.raises(kind, match=phrase):
            forgotten(data, **{"amount": 2, **options})
