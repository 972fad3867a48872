"""Sharded training: exactness to the bit, what is retrained and what it costs, aggregation, checkpoints on disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.core.errors import Cancelled, CheckpointError, UsageError
from expunge.core.run import Run
from expunge.core.seeds import derive
from expunge.data.split import ResidentStore, Split
from expunge.testing.conformance import same, weights
from expunge.testing.toys import ToyNet, toy_images
from expunge.training.ensemble import Ensemble
from expunge.training.loop import train_model
from expunge.training.recipe import Recipe
from expunge.training.shards import Sharding, cut, stage_recipe
from expunge.training.sisa import ShardedTraining

RECIPE = Recipe(epochs=2, batch_size=8, lr=0.05, schedule="cosine")
SHARDING = Sharding(shards=3, slices=2)
DATA = Split.whole(ResidentStore(*toy_images(60, seed=0), classes=list("abcd")), "train")


def sharded(**options: Any) -> ShardedTraining:
    return ShardedTraining(ToyNet(), DATA, **{"recipe": RECIPE, "sharding": SHARDING, **options})


def test_the_cut_is_a_partition_into_equal_parts_by_the_seed() -> None:
    part = DATA.take(range(3, 50))
    shards = cut(part, Sharding(shards=3, slices=4), seed=0)
    assert torch.equal(torch.cat([p for s in shards for p in s]).sort().values, part.index)
    assert sorted(sum(len(p) for p in s) for s in shards) == [15, 16, 16]
    assert {len(p) for s in shards for p in s} == {3, 4}
    assert not torch.equal(shards[0][0], cut(part, Sharding(shards=3, slices=4), seed=1)[0][0])


@pytest.mark.parametrize(("epochs", "slices", "expected"), [(20, 1, 20), (20, 4, 8), (10, 9, 2), (1, 9, 1)])
def test_stages_share_the_epochs(epochs: int, slices: int, expected: int) -> None:
    recipe = stage_recipe(Recipe(epochs=epochs, milestones=(epochs // 2,)), Sharding(slices=slices))
    assert recipe.epochs == expected
    assert recipe.milestones == (round(expected / epochs * (epochs // 2)),)


def test_one_shard_of_one_slice_is_an_ordinary_training() -> None:
    found = sharded(sharding=Sharding(shards=1, slices=1, start="given"), seed=4)
    plain = copy.deepcopy(found._model)
    ensemble = found.train()
    train_model(plain, DATA, RECIPE, Run(seed=derive(4, "shard", 0)), purpose="stage 1")
    assert same(weights(plain), weights(ensemble.models[0]))
    assert torch.allclose(ensemble(DATA.inputs()).softmax(1), plain.eval()(DATA.inputs()).softmax(1), atol=1e-6)


@pytest.mark.parametrize("aggregate", ["mean", "vote"])
@pytest.mark.parametrize("place", [(1, 0), (1, 1), (0, 0)])
def test_forgetting_is_exact_to_the_bit(place: tuple[int, int], aggregate: str) -> None:
    """The claim: the result is that of the same shards without the samples, trained from the start."""
    sharding = Sharding(shards=3, slices=2, aggregate=aggregate)
    first, never = sharded(sharding=sharding), sharded(sharding=sharding)
    before = first.train()
    gone = DATA.take(first.shards[place[0]][place[1]][2:5])
    after, without = first.forget(gone), never.forget(gone)
    assert same(weights(after), weights(without))
    assert first.cost.samples < never.cost.samples == never.cost.total
    for shard in range(3):
        kept = same(weights(before.models[shard]), weights(after.models[shard]))
        assert kept is (shard != place[0])


def test_only_the_touched_stages_are_trained_and_counted() -> None:
    training = sharded(sharding=Sharding(shards=3, slices=4, stage_epochs=2))  # 5 samples in each of 12 slices
    training.train()
    total = 2 * 3 * (5 + 10 + 15 + 20)
    assert (training.cost.samples, training.cost.total, training.cost.stages) == (total, total, 12)
    gone = torch.cat([training.shards[0][2][:1], training.shards[2][3][:2]])
    run = Run()
    training.forget(DATA.take(gone), run)
    assert training.cost.samples == 2 * (14 + 19) + 2 * 18
    assert training.cost.stages == 3
    assert training.cost.total == total - 2 * (1 + 1) - 2 * 2
    assert {(row["shard"], row["stage"]) for row in run.history} == {(0, 3), (0, 4), (2, 4)}
    assert run.details["sisa"]["share"] == pytest.approx(102 / 292)


def test_what_was_forgotten_is_read_never_again() -> None:
    training = sharded()
    training.train()
    gone = training.shards[0][0][:4]
    training.forget(DATA.ids[gone.numpy()].tolist())
    left = torch.cat([part for shard in training.shards for part in shard])
    assert len(left) == 56
    assert not torch.isin(gone, left).any()
    with pytest.raises(UsageError, match="not in the training"):
        training.forget(DATA.take(gone))
    with pytest.raises(UsageError, match="1 ids to forget are unknown"):
        training.forget(["nobody"])


def test_emptied_slices_and_shards() -> None:
    training = sharded(sharding=Sharding(shards=2, slices=2))
    training.train()
    training.forget(DATA.take(training.shards[0][0]))
    assert [len(part) for part in training.shards[0]] == [0, 15]
    ensemble = training.forget(DATA.take(training.shards[0][1]))
    assert len(ensemble.models) == 1
    with pytest.raises(UsageError, match="no shard has samples left"):
        training.forget(DATA.take(torch.cat(training.shards[1])))


class Fixed(nn.Module):
    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.probabilities = torch.tensor(probabilities)

    def forward(self, x: Tensor) -> Tensor:
        return self.probabilities.log().expand(len(x), -1)


def test_aggregation_by_hand() -> None:
    members = [Fixed([0.9, 0.1, 0.0]), Fixed([0.4, 0.6, 0.0]), Fixed([0.4, 0.6, 0.0])]
    x = torch.zeros(2, 1)
    mean = Ensemble(members)(x).softmax(1)
    assert torch.allclose(mean[0], torch.tensor([1.7, 1.3, 0.0]) / 3, atol=1e-6)
    vote = Ensemble(members, "vote")(x)
    assert vote.argmax(1).tolist() == [1, 1]
    assert torch.allclose(vote.softmax(1)[1], torch.tensor([1 / 3, 2 / 3, 0.0]), atol=1e-3)
    assert torch.isfinite(vote).all()
    tie = Ensemble(members[:2], "vote")(x)
    assert tie.argmax(1).tolist() == [0, 0]  # one vote each; on average the first class is likelier


def test_an_ensemble_is_evaluated_like_any_model() -> None:
    training = sharded(recipe=Recipe(epochs=8, batch_size=8, lr=0.1), sharding=Sharding(shards=2, slices=2))
    given = weights(training._model)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    ensemble = training.train()
    assert torch.equal(state, torch.get_rng_state())
    assert same(given, weights(training._model))
    scores = expunge.evaluate({"sisa": ensemble}, retain=DATA, metrics=["accuracy"], device="cpu")
    assert scores.value("sisa", "retain_accuracy") > 0.8


def test_a_killed_training_goes_on_and_forgets_in_another_process(tmp_path: Path) -> None:
    folder, polls = tmp_path / "sisa", iter([False] * 3 + [True])
    start = ToyNet()
    training = ShardedTraining(start, DATA, recipe=RECIPE, sharding=SHARDING, folder=folder)
    with pytest.raises(Cancelled):
        training.train(Run(cancelled=lambda: next(polls)))
    resumed = ShardedTraining.load(folder, ToyNet(), DATA)
    ensemble = resumed.train()
    assert 0 < resumed.cost.samples < resumed.cost.total
    assert same(weights(ensemble), weights(ShardedTraining(start, DATA, recipe=RECIPE, sharding=SHARDING).train()))
    gone = DATA.take(resumed.shards[1][1][:2])
    later = ShardedTraining.load(folder, ToyNet(), DATA)
    forgot = later.forget(gone)
    assert later.cost.stages == 1
    assert same(weights(forgot), weights(ShardedTraining.load(folder, ToyNet(), DATA).train()))
    keep = DATA.index[~torch.isin(DATA.index, gone.index)]
    assert same(weights(forgot), weights(ShardedTraining.load(folder, ToyNet(), DATA.take(keep)).train()))


def test_checkpoints_that_saw_a_forgotten_sample_are_deleted_before_anything_is_trained(tmp_path: Path) -> None:
    training = sharded(folder=tmp_path)
    training.train()
    assert len(list(tmp_path.glob("*.safetensors"))) == 9
    with pytest.raises(Cancelled):
        training.forget(DATA.take(training.shards[2][0][:1]), Run(cancelled=lambda: True))
    left = {path.stem for path in tmp_path.glob("shard-2-*.safetensors")}
    assert left == {"shard-2-stage-0"}


def test_folders_are_not_mixed_up(tmp_path: Path) -> None:
    training = sharded(folder=tmp_path / "a")
    with pytest.raises(UsageError, match="holds a sharded training"):
        sharded(folder=tmp_path / "a")
    with pytest.raises(CheckpointError, match="is not a sharded training"):
        ShardedTraining.load(tmp_path / "b", ToyNet(), DATA)
    with pytest.raises(UsageError, match="are not in the data"):
        ShardedTraining.load(tmp_path / "a", ToyNet(), DATA.take(training.shards[0][0]))
    (tmp_path / "a" / "sharding.json").write_text('{"format": 0}')
    with pytest.raises(CheckpointError, match="another version"):
        ShardedTraining.load(tmp_path / "a", ToyNet(), DATA)


def test_bad_requests_are_refused() -> None:
    with pytest.raises(UsageError, match="cannot be cut into 10 shards of 10 slices"):
        sharded(sharding=Sharding(shards=10, slices=10))
    with pytest.raises(UsageError, match="needs labels"):
        ShardedTraining(ToyNet(), DATA.without_labels(), recipe=RECIPE)
    other = Split.whole(ResidentStore(*toy_images(8, seed=1)))
    with pytest.raises(UsageError, match="another data set"):
        sharded().forget(other)


def test_the_cost_of_forgetting_is_known_without_training(tmp_path: Path) -> None:
    """What `forget_cost` says before is what `forget` counts: for any samples, one request after the other."""
    training = sharded(sharding=Sharding(shards=3, slices=3), folder=tmp_path)
    training.train()
    parts = training.shards
    requests = [
        parts[0][2][:1],
        torch.cat([parts[0][1][:2], parts[2][0][:1]]),
        torch.cat(parts[1]),  # a shard that is left without samples
        torch.cat([part[3:4] for part in (parts[0][0], parts[2][2])]),
    ]
    for positions in requests:
        files, shards = sorted(tmp_path.iterdir()), training.shards
        said = training.forget_cost(DATA.take(positions))
        assert training.shards is shards
        assert files == sorted(tmp_path.iterdir())
        training.forget(DATA.take(positions))
        assert training.cost == said
        assert 0 <= said.share <= 1
    polls = iter([False] * 2 + [True])
    unfinished = sharded(sharding=Sharding(shards=2, slices=3))
    with pytest.raises(Cancelled):
        unfinished.train(Run(cancelled=lambda: next(polls)))
    gone = DATA.take(unfinished.shards[0][2][:1])
    said = unfinished.forget_cost(gone)
    unfinished.forget(gone)
    assert unfinished.cost == said
    with pytest.raises(UsageError, match="are not in the training"):
        unfinished.forget_cost(gone)
    with pytest.raises(UsageError, match="no shard has samples left"):
        unfinished.forget_cost(DATA.take(torch.cat([p for shard in unfinished.shards for p in shard])))
