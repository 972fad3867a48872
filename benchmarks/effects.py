"""How often `result.effect` is right, on models whose truth is known: `python -m benchmarks.effects [--seeds 0]`.

Three networks that are nowhere in the package (a CNN with BatchNorm, a LayerNorm MLP on a table, a bag of tokens), four
requests (random 5 %, one class, 10 % wrong labels, 20 samples), each with retrained models. What is judged: the
original, the retrained models themselves, weak and strong methods without their guard, and noise on all weights. The
truth is the difference to retraining on test samples, which `effect` never sees:

    good        forget, retain and test accuracy within max(3 points, 2 sd) of retraining, loss attack within .05
    destroyed   test accuracy more than 10 points below both retraining and the original (which wrong labels can harm)
    nothing     forget accuracy and attack moved less than a fifth of the way from the original to retraining
    other       all else

Writes results/effects/cells.csv and the table in its README.md.
"""

from __future__ import annotations

import argparse
import copy
import csv
import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from sklearn.datasets import load_digits
from torch import Tensor, nn

import expunge
from expunge.api.effect import measure_effect
from expunge.core.errors import ExpungeError
from expunge.core.seeds import torch_generator
from expunge.data.convert import as_split
from expunge.metrics.membership import weighted_auc

RESULTS = Path("results/effects")
BEGIN, END = "<!-- table: python -m benchmarks.effects -->", "<!-- end of table -->"
REQUESTS = ("random", "class", "wrong", "few")
REFERENCES = 3
RIGHT = {"good": ("plausible", "partial"), "destroyed": ("damaged",), "nothing": ("nothing",)}


@dataclass(frozen=True)
class World:
    """data: x, y of training, held-out and test samples; lr of AdamW."""

    name: str
    net: Callable[[], nn.Module]
    data: Callable[[], tuple[tuple[Tensor, Tensor], ...]]
    epochs: int
    lr: float

    def train(self, x: Tensor, y: Tensor, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = self.net()
            optimizer = torch.optim.AdamW(net.parameters(), lr=self.lr, weight_decay=0.01)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
            for _ in range(self.epochs):
                for rows in torch.randperm(len(x)).split(64):
                    if len(rows) > 1:
                        optimizer.zero_grad()
                        F.cross_entropy(net(x[rows]), y[rows]).backward()
                        optimizer.step()
                schedule.step()
        return net.eval()


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.out = nn.Embedding(400, 32), nn.Linear(32, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.relu(self.mix(self.embed(x.long()).mean(1))))
        return out


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def mlp() -> nn.Module:
    wide = [nn.Linear(40, 96), nn.LayerNorm(96), nn.GELU(), nn.Linear(96, 96), nn.LayerNorm(96), nn.GELU()]
    return nn.Sequential(*wide, nn.Linear(96, 8))


def digits() -> tuple[tuple[Tensor, Tensor], ...]:
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    x = x + 0.35 * torch.randn(x.shape, generator=torch_generator(0, "effects", "pixels"))
    return _parts(x, torch.tensor(labels), 900)


def table() -> tuple[tuple[Tensor, Tensor], ...]:
    random = torch_generator(0, "effects", "table")
    centres = 1.15 * torch.randn(8, 3, 40, generator=random) * (torch.rand(8, 3, 40, generator=random) < 0.35)
    y, group = torch.randint(8, (2800,), generator=random), torch.randint(3, (2800,), generator=random)
    return _parts(centres[y, group] + torch.randn(2800, 40, generator=random), y, 1600)


def sentences() -> tuple[tuple[Tensor, Tensor], ...]:
    random = torch_generator(0, "effects", "tokens")
    chances = (0.9 * torch.randn(5, 400, generator=random)).softmax(1)
    y = torch.randint(5, (2800,), generator=random)
    return _parts(torch.multinomial(chances[y], 24, replacement=True, generator=random).float(), y, 1600)


def _parts(x: Tensor, y: Tensor, train: int) -> tuple[tuple[Tensor, Tensor], ...]:
    order = torch.randperm(len(y), generator=torch_generator(0, "effects", "parts"))
    half = train + (len(y) - train) // 2
    return tuple((x[rows], y[rows]) for rows in (order[:train], order[train:half], order[half:]))


WORLDS = (
    World("cnn", cnn, digits, 15, 2e-3),
    World("mlp", mlp, table, 20, 2e-3),
    World("tokens", Tokens, sentences, 25, 5e-3),
)


def asked(request: str, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Positions to forget, and the labels that the model is trained with."""
    order = torch.randperm(len(y), generator=torch_generator(seed, "effects", request))
    if request == "class":
        return (y == 1).nonzero().flatten(), y
    if request == "few":
        return order[:20].sort().values, y
    chosen = order[: len(y) // (20 if request == "random" else 10)].sort().values
    if request == "wrong":
        y, classes = y.clone(), int(y.max()) + 1
        shift = torch.randint(1, classes, chosen.shape, generator=torch_generator(seed, "effects", "shift"))
        y[chosen] = (y[chosen] + shift) % classes
    return chosen, y


@dataclass(frozen=True, eq=False)
class Judge:
    """Accuracies, and the loss attack against test samples of the same class under the same labels."""

    x: Tensor
    y: Tensor
    truth: Tensor
    forget: Tensor
    retain: Tensor
    test: tuple[Tensor, Tensor]

    def scores(self, model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            gone, kept, test = model(self.x[self.forget]), model(self.x[self.retain]), model(self.test[0])
        y, stays = self.y[self.forget], torch.isin(self.test[1], self.y[self.retain])
        wins = []
        for row, label, true in zip(gone, y, self.truth[self.forget], strict=True):
            others = F.log_softmax(test[self.test[1] == true].double(), 1)[:, label].numpy()
            own = F.log_softmax(row.double(), 0)[label].reshape(1).numpy()
            wins.append(float(weighted_auc(own, others, np.ones(1), np.ones(len(others)))))
        return {
            "forget": float((gone.argmax(1) == y).double().mean()),
            "retain": float((kept.argmax(1) == self.y[self.retain]).double().mean()),
            "test": float((test.argmax(1) == self.test[1])[stays].double().mean()),
            "attack": statistics.mean(wins),
        }


def truth(own: dict[str, float], original: dict[str, float], exact: list[dict[str, float]]) -> str:
    mean = {name: statistics.mean(one[name] for one in exact) for name in own}
    spread = {name: 2 * statistics.stdev(one[name] for one in exact) if len(exact) > 1 else 0.0 for name in own}
    off = {name: own[name] - mean[name] for name in own}
    if all(abs(off[n]) <= (0.05 if n == "attack" else max(0.03, spread[n])) for n in off):
        return "good"
    if own["test"] < min(mean["test"], original["test"]) - 0.1:
        return "destroyed"
    start = {name: original[name] - mean[name] for name in own}
    moved = [1 - off[name] / start[name] for name in ("forget", "attack") if abs(start[name]) > 0.01]
    return "nothing" if moved and max(moved) < 0.2 else "other"


def candidates(
    original: nn.Module, splits: Mapping[str, Any], recipe: Mapping[str, Any], seed: int
) -> Iterator[tuple[str, nn.Module]]:
    """Models that did too little, too much, or about right."""
    for size in (0.2, 0.5, 1.0):
        noisy, random = copy.deepcopy(original), torch_generator(seed, "effects", "noise", size)
        with torch.no_grad():
            for weight in noisy.parameters():
                weight.add_(size * weight.std(correction=0) * torch.randn(weight.shape, generator=random))
        yield f"noise {size:g}", noisy
    methods: tuple[tuple[str, dict[str, Any]], ...] = (
        ("finetune", {"epochs": 1, "lr": 1e-5}),
        ("neggrad", {"epochs": 20, "lr": 0.2, "clip": 1.0}),
        ("neggrad+", {}),
        ("scrub", {}),
        ("random-label", {}),
    )
    for name, options in methods:
        try:
            made = expunge.unlearn(
                original, **splits, recipe=recipe, method=name, max_drop=None, seed=seed, device="cpu", measure=False,
                precision="float32", **options,
            )  # fmt: skip
        except ExpungeError:
            continue
        yield name, made.model


def cells(world: World, seed: int) -> Iterator[dict[str, str]]:
    (x, truth_y), held_out, test = world.data()
    originals: dict[bool, nn.Module] = {}
    for request in REQUESTS:
        forget, y = asked(request, truth_y, seed)
        kept = torch.ones(len(y), dtype=torch.bool)
        kept[forget] = False
        judge = Judge(x, y, truth_y, forget, kept.nonzero().flatten(), test)
        spoilt = request == "wrong"
        if spoilt not in originals:
            originals[spoilt] = world.train(x, y, seed)
        original = originals[spoilt]
        exact = [world.train(x[kept], y[kept], 100 * seed + 1000 + number) for number in range(REFERENCES)]
        known, before = [judge.scores(one) for one in exact], judge.scores(original)
        data = as_split((x, y), name="train")
        splits = {"forget": data.take(forget, "forget"), "retain": data.take(judge.retain, "retain"),
                  "validation": as_split(held_out, name="validation", num_classes=data.num_classes)}  # fmt: skip
        recipe = {"epochs": world.epochs, "lr": world.lr, "optimizer": "adamw", "batch_size": 64}
        models = [("original", original), *((f"retrained {n}", one) for n, one in enumerate(exact))]
        for name, model in [*models, *candidates(original, splits, recipe, seed)]:
            others = [one for n, one in enumerate(known) if name != f"retrained {n}"]
            effect = measure_effect(
                original, model, forget=splits["forget"], retain=splits["retain"], held_out=splits["validation"]
            )
            own = judge.scores(model)
            yield {"world": world.name, "request": request, "seed": str(seed), "model": name,
                   "truth": truth(own, before, others), "effect": effect.label,
                   **{key: f"{value:.4f}" for key, value in own.items()}}  # fmt: skip


def read() -> list[dict[str, str]]:
    path = RESULTS / "cells.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def merge(rows: list[dict[str, str]]) -> None:
    """Put rows in the place of those of the same world and seed; several processes may do so at the same time."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with FileLock(Path(tempfile.gettempdir()) / "expunge-effects.lock"):
        keys = {(row["world"], row["seed"]) for row in rows}
        kept = [row for row in read() if (row["world"], row["seed"]) not in keys]
        with (RESULTS / "cells.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted([*kept, *rows], key=lambda row: (row["world"], row["seed"])))


def report(rows: list[dict[str, str]]) -> str:
    counts = Counter((row["truth"], row["effect"]) for row in rows)
    labels = sorted({row["effect"] for row in rows})
    lines = ["| truth | cells | " + " | ".join(labels) + " | rightly named |", "|---" * (len(labels) + 3) + "|"]
    for kind in ("good", "nothing", "destroyed", "other"):
        numbers: list[int] = [counts[kind, label] for label in labels]
        right = sum(counts[kind, label] for label in RIGHT.get(kind, ()))
        share = f"{right / sum(numbers):.1%}" if kind in RIGHT and sum(numbers) else "-"
        lines.append(f"| {kind} | {sum(numbers)} | {' | '.join(map(str, numbers))} | {share} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.effects", description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--worlds", nargs="+", choices=[world.name for world in WORLDS], default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for seed in given.seeds:
        for world in WORLDS:
            if given.worlds is None or world.name in given.worlds:
                found = []
                for row in cells(world, seed):
                    found.append(row)
                    print(*row.values(), flush=True)
                merge(found)
    rows = read()
    page = RESULTS / "README.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{report(rows)}\n\n{END}{after}", encoding="utf-8")
    print(report(rows))


if __name__ == "__main__":
    main()
