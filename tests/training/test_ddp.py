"""Two processes give what one gives: every method that says so, with batches that do not divide evenly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import expunge
from expunge.core.distributed import ALONE, World, data_parallel
from expunge.core.errors import UsageError
from expunge.core.run import Run
from expunge.data.split import Split
from expunge.methods import METHODS
from expunge.testing.toys import CLASSES, ToyNet, toy_problem
from expunge.training.ddp import Passes
from expunge.training.recipe import Recipe


class Unbiased(ToyNet):
    """A bias before BatchNorm has no gradient but rounding, which Adam would make steps of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv.bias = None


class WideNet(nn.Module):
    """BatchNorm over vectors, with a cumulative mean, without weights; one layer that no pass uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 12)
        self.norm = nn.BatchNorm1d(12, momentum=None, affine=False)
        self.spare = nn.Linear(3, 3)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.first(x.flatten(1)))))


def fresh(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build()


@dataclass(frozen=True)
class Case:
    """One call of the API. net: the architecture. options: of the recipe (train) or of the method."""

    what: str
    options: dict[str, Any]
    net: Callable[[], nn.Module] = ToyNet
    amplifies: bool = False  # an ascent that starts where gradients are rounding errors: these grow with every step


# The toy has 30 samples to forget and 90 to retain: these batches end unevenly, some of them with one sample.
CASES = {
    "train": Case("train", {"epochs": 3, "batch_size": 17, "lr": 0.05, "clip": 1.0}),
    "train-tail-of-one": Case("train", {"epochs": 2, "batch_size": 89, "lr": 0.05, "l2_reference": 0.1}),
    "train-augmented": Case("train", {"epochs": 2, "batch_size": 25, "lr": 0.05, "augment": "crop-flip"}),
    "train-other-net": Case("train", {"epochs": 2, "batch_size": 19, "lr": 0.05}, WideNet),
    "train-frozen": Case("train", {"epochs": 2, "batch_size": 19, "lr": 0.05, "batchnorm": "frozen"}),
    "finetune": Case("finetune", {"epochs": 2, "batch_size": 17, "l2_reference": 0.1}),
    "neggrad": Case("neggrad", {"epochs": 2, "batch_size": 7}),
    "neggrad+": Case("neggrad+", {"epochs": 2, "retain_batch_size": 17, "forget_batch_size": 7, "clip": 1.0}),
    "scrub": Case("scrub", {"epochs": 3, "msteps": 2, "retain_batch_size": 17, "forget_batch_size": 29}, Unbiased),
    "scrub-smoothed": Case(
        "scrub",
        {
            "epochs": 3,
            "optimizer": "sgd",
            "retain_batch_size": 17,
            "forget_batch_size": 11,
            "smoothing": 0.5,
            "smoothing_start": 1,
            "rewind": True,
        },
        amplifies=True,
    ),
    "scrub-kick": Case(
        "scrub",
        {"epochs": 2, "batchnorm": "frozen", "start_perturbation": 0.1, "retain_batch_size": 17, "optimizer": "sgd"},
        amplifies=True,
    ),
    "laf": Case("laf", {"epochs": 2, "vae_epochs": 2, "batch_size": 29, "tau": 5.0, "lr_ue": 1e-3}),
    "laf-batchnorm": Case("laf", {"epochs": 2, "vae_epochs": 2, "batch_size": 7, "batchnorm": "train"}, Unbiased),
    "laf-augmented": Case(
        "laf", {"epochs": 1, "vae_epochs": 1, "batch_size": 7, "augment": "crop-flip", "schedule": "joint"}
    ),
    "laf-patient": Case(
        "laf",
        {"epochs": 3, "vae_epochs": 4, "vae_patience": 0.05, "batch_size": 29, "ue_patience": 1},
        amplifies=True,
    ),
    "laf+r": Case("laf+r", {"epochs": 1, "vae_epochs": 1, "batch_size": 7, "labels": 21, "repair_epochs": 2}),
    "random-label": Case("random-label", {"epochs": 1, "retain_batch_size": 17, "forget_batch_size": 7}),
    "bad-t": Case("bad-t", {"epochs": 1, "retain_batch_size": 17, "forget_batch_size": 7, "optimizer": "sgd"}),
    "cf-k": Case("cf-k", {"epochs": 2, "batch_size": 17}),
    "eu-k": Case("eu-k", {"epochs": 2, "batch_size": 17}),
    "retrain": Case("retrain", {"epochs": 2}),
    "original": Case("original", {}),
}


def work(case: Case, cache: Path) -> dict[str, Any]:
    """Weights, history and predictions of one case, and how it ended."""
    if case.what == "train":
        data = toy_problem(epochs=0).retain
        result = expunge.train(fresh(case.net), data, recipe=case.options, seed=1, device="cpu")
        models = {"original": result}
    else:
        problem = toy_problem(fresh(case.net))
        data = problem.retain
        result = expunge.unlearn(
            problem.model, forget=problem.forget, retain=data, validation=problem.validation, method=case.what,
            recipe=Recipe(epochs=2, batch_size=17, lr=0.02), initial=problem.initial, seed=1, device="cpu",
            cache=cache, **case.options,
        )  # fmt: skip
        models = {"original": problem.model, "unlearned": result}
    scores = expunge.evaluate(models, test=toy_problem(epochs=0).test, retain=data, device="cpu", metrics=["loss"])
    return {
        "weights": {name: value.detach().clone() for name, value in result.model.state_dict().items()},
        "history": [{k: v for k, v in row.items() if k != "seconds"} for row in result.history],
        "logits": scores.evaluation.logits(list(models)[-1], "test"),
        "values": [value.value for value in scores.values[list(models)[-1]]],
        "processes": result.facts.get("processes", 1),
    }


def refusals(world: World) -> dict[str, str]:
    problem = toy_problem(epochs=0)
    calls: dict[str, Callable[[], Any]] = {
        "method": lambda: expunge.unlearn(
            problem.model, forget=problem.forget, retain=problem.retain, method="fisher", device="cpu"
        ),
        "compile": lambda: expunge.train(problem.model, problem.retain, compile=True, device="cpu"),
        "device": lambda: expunge.train(problem.model, problem.retain, device="cuda:0"),
    }
    said = {}
    for name, call in calls.items():
        with pytest.raises(UsageError) as caught:
            call()
        said[name] = str(caught.value)
    return said


def stream(world: World) -> dict[str, Any]:
    """Two requests, one after the other."""
    problem = toy_problem()
    parts = [problem.forget.take(problem.forget.index[part]) for part in (slice(0, 11), slice(11, 30))]
    result = expunge.unlearn_stream(
        problem.model, requests=parts, retain=problem.retain, test=problem.test, method="neggrad+", epochs=1,
        device="cpu",
    )  # fmt: skip
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in result.details["requests"]]
    return {"weights": result.model.state_dict(), "rows": rows}


def clocks(world: World) -> dict[str, Any]:
    """Decisions that one process alone would take otherwise than its neighbour."""
    problem = toy_problem(epochs=0)
    mine = Run(world=world, budget_seconds=1e9 if world.is_main else 1e-9)
    model = problem.model
    epochs = 0
    for _ in mine.epochs(model, 5):
        epochs += 1
    with world.main_first():
        pass
    return {
        "epochs": epochs,
        "status": mine.status,
        "told": world.from_main(lambda: world.rank),
        "any": world.any(world.rank == 1),
        "none": world.any(False),
    }


def gradients(world: World) -> dict[str, Tensor]:
    """Of a loss that couples all samples of a batch, in double precision, BatchNorm in train mode."""
    problem = toy_problem(epochs=0)
    model = fresh(ToyNet).double().train()
    double = nn.Sequential(_Double(), model)
    passes = Passes(double, Run(world=world))
    sums: dict[str, Tensor] = {}
    for batch in problem.retain.batches(61, shuffle=True, seed=2, world=world):
        logits = passes(batch)
        loss = torch.logsumexp(logits[:, 0] * 3, 0) + logits.std() + sum(p.square().sum() for p in model.parameters())
        model.zero_grad(set_to_none=True)
        loss.backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            sums[name] = sums.get(name, torch.zeros(())) + p.grad
    return {**sums, **dict(model.named_buffers())}


class _Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def process(rank: int, folder: Path) -> None:
    """One of the two processes: all cases in turn, results to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    with data_parallel() as world:
        found: dict[str, Any] = {name: work(case, folder / "cache") for name, case in CASES.items()}
        found["retrain-again"] = work(CASES["retrain"], folder / "cache")
        found |= {what.__name__: what(world) for what in (refusals, clocks, gradients, stream)}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        mp.spawn(process, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_as_one(name: str, both: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = work(CASES[name], tmp_path)
    atol, on_logits = (1e-4, 1e-3) if CASES[name].amplifies else (1e-5, 1e-5)
    for found in (one[name] for one in both):
        torch.testing.assert_close(found["weights"], alone["weights"], rtol=atol, atol=atol)
        torch.testing.assert_close(found["logits"], alone["logits"], rtol=1e-4, atol=on_logits)
        assert found["values"] == pytest.approx(alone["values"], rel=1e-5, abs=atol)
        assert found["history"] == [
            pytest.approx(row, rel=10 * atol, abs=atol, nan_ok=True) for row in alone["history"]
        ]
        assert (found["processes"], alone["processes"]) == (2, 1)
    for key, value in both[0][name]["weights"].items():
        assert torch.equal(value, both[1][name]["weights"][key]), key


def test_every_method_that_says_so_is_tested() -> None:
    declared = {name for name in METHODS.names() if METHODS.load(name).parallel}
    assert declared == {case.what for case in CASES.values()} - {"train"}


def test_gradients_of_any_loss_in_double_precision(both: list[dict[str, Any]]) -> None:
    alone = gradients(ALONE)
    for found in both:
        torch.testing.assert_close(found["gradients"], alone, rtol=1e-10, atol=1e-12)


def test_a_stream_of_requests(both: list[dict[str, Any]]) -> None:
    alone = stream(ALONE)
    for found in both:
        torch.testing.assert_close(found["stream"]["weights"], alone["weights"], rtol=1e-5, atol=1e-5)
        assert found["stream"]["rows"] == [pytest.approx(row, abs=1e-5) for row in alone["rows"]]


def test_a_cached_reference_is_read_by_one_and_known_to_all(both: list[dict[str, Any]]) -> None:
    for found in both:
        for key, value in found["retrain"]["weights"].items():
            assert torch.equal(value, found["retrain-again"]["weights"][key])
        assert found["retrain-again"]["history"] == found["retrain"]["history"]


def test_what_cannot_be_shared_is_refused(both: list[dict[str, Any]]) -> None:
    for found in both:
        said = found["refusals"]
        assert "fisher cannot run on 2 processes" in said["method"]
        assert "finetune, laf, laf+r, neggrad, neggrad+" in said["method"]
        assert "`compile` is not offered where 2 processes" in said["compile"]
        assert "device `cuda:0` cannot be shared by 2 processes; allowed: auto, cpu, cuda." in said["device"]


def test_decisions_are_taken_together(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert found["clocks"] == {"epochs": 1, "status": "budget", "told": 0, "any": True, "none": False}


def test_nothing_to_join() -> None:
    with pytest.raises(UsageError, match="start this with `torchrun --nproc-per-node N`"), data_parallel():
        pass


@pytest.mark.parametrize("size", [2, 3, 5])
def test_rows_partition_a_batch(size: int) -> None:
    for count in range(1, 23):
        parts = [World(rank, size).shard(count) for rank in range(size)]
        seen = [i for part in parts for i in range(count)[part]]
        if count < size:  # done by each process whole
            assert seen == list(range(count)) * size
        else:
            assert seen == list(range(count))
            lengths = [part.stop - part.start for part in parts]
            assert max(lengths) - min(lengths) <= 1


def test_each_process_reads_its_rows_only() -> None:
    problem = toy_problem(epochs=0)
    whole = list(problem.retain.batches(31, shuffle=True, seed=5))
    for rank in (0, 1):
        world = World(rank, 2)
        problem.clear()
        for batch, all_rows in zip(problem.retain.batches(31, shuffle=True, seed=5, world=world), whole, strict=True):
            assert torch.equal(batch.x, all_rows.x[world.shard(len(batch))])
            assert torch.equal(batch.y, all_rows.y)
            assert torch.equal(batch.index, all_rows.index)
        assert problem.read("retain") == sum(len(range(len(b))[world.shard(len(b))]) for b in whole)


def test_alone_nothing_changes() -> None:
    problem = toy_problem(epochs=0)
    batch = next(iter(problem.retain.batches(8)))
    x = torch.randn(8, 2, requires_grad=True)
    assert batch.gather(x) is x
    passes = Passes(problem.model, Run())
    assert torch.equal(passes(batch), problem.model(batch.x))
    assert isinstance(problem.retain, Split)
