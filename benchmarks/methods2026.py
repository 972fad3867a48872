"""What each method does on a small real task, beside retraining: one class, and a random tenth, over three seeds.

`python -m benchmarks.methods2026 OUT --data MNIST` writes rows.csv (one row per request, method and seed) and table.md
(mean and standard deviation over the seeds). Every method runs with its defaults, or with a preset given as
`name/preset`; nothing is tuned on these images, on test data, or on a retrained model. Finished rows are kept: a second
call computes what is missing.

    gap       mean absolute difference to the retrained model of the same seed over forget, retain and test accuracy
    attack    AUC of an attack that takes a low loss for membership: F against test samples of the same classes; 0.5 is
              what a model that never saw F gives
    time      seconds, as a share of the retraining's
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import torch.nn.functional as F
import typer
from sklearn.metrics import roc_auc_score
from torch import nn

import expunge.api as api
from expunge.core.errors import EffectWarning, ExpungeError
from expunge.core.seeds import derive
from expunge.data.sources import load_pair
from expunge.data.split import Split
from expunge.models.build import build_model
from expunge.scenarios.base import parse_scenario
from expunge.training.inference import predict

REQUESTS = {"class": "class:3", "random": "random:0.1"}
RECIPE = {"epochs": 10, "batch_size": 64, "optimizer": "adam", "lr": 2e-3, "weight_decay": 0.0, "schedule": "cosine"}
METHODS_2026 = (
    "finetune", "neggrad+", "random-label", "scrub", "ssd", "ssd/det", "lfssd", "lfssd/det", "assd", "potion", "salun",
    "salun/cifar10", "l1-sparse", "perturb/not", "perturb/ct", "perturb/msg", "perturb/reinit", "perturb/shrink",
    "delete", "pour-p", "pour-d", "esc", "lotus", "lotus/class", "jit", "mu-mis", "scar", "scar/held-out", "amun",
    "amun/apart", "regun", "regun/uniform", "pcgrad", "munba", "cup", "hamu", "agrmo", "orthograd", "unsir", "sfr-on",
    "influence", "negmerge", "gs-lora", "rum", "noisy-finetune", "head-distillation", "confidence-masking",
)  # fmt: skip


def some(split: Split, count: int, seed: int, *purpose: object) -> Split:
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(derive(seed, *purpose)))
    return split.take(split.index[order[:count]])


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean()) if len(labels) else float("nan")


def measure(model: nn.Module, forget: Split, retain: Split, test: Split, classes: torch.Tensor) -> dict[str, float]:
    """Accuracies, and the attack by the loss. classes: those of the forget set."""
    on_forget, on_retain, on_test = (predict(model, split) for split in (forget, retain, test))
    same = torch.isin(test.y, classes)
    kept = ~same if len(classes) < test.num_classes else same
    member = F.cross_entropy(on_forget, forget.y, reduction="none")
    outside = F.cross_entropy(on_test[same], test.y[same], reduction="none")
    truth = [1] * len(member) + [0] * len(outside)
    return {
        "forget": accuracy(on_forget, forget.y),
        "retain": accuracy(on_retain, retain.y),
        "test": accuracy(on_test[kept], test.y[kept]),
        "attack": float(roc_auc_score(truth, -torch.cat([member, outside]).numpy())),
    }


def rows(
    request: str, seed: int, data: str, names: list[str], train_size: int, model: str, done: set[str]
) -> Iterator[dict[str, Any]]:
    whole, unseen = load_pair(data)
    if unseen is None:
        raise typer.BadParameter(f"`{data}` has no test samples.")
    chosen = some(whole, train_size + 500, seed, "train")
    train, validation = chosen.take(chosen.index[:train_size]), chosen.take(chosen.index[train_size:])
    test = some(unseen, 1000, 0, "test")
    split = parse_scenario(REQUESTS[request]).split(train, seed)
    start = build_model(model, num_classes=train.num_classes, input_shape=train.input_shape, seed=seed)
    initial = {name: value.clone() for name, value in start.state_dict().items()}
    classes = split.forget.y.unique()
    original = api.train(start, train, recipe=RECIPE, seed=seed, device="cpu").model

    def facts(method: str, result: nn.Module, seconds: float, effect: str = "", note: str = "") -> dict[str, Any]:
        numbers = measure(result, split.forget, split.retain, test, classes)
        told = {"seconds": seconds, "effect": effect, "note": note}
        return {"request": request, "seed": seed, "method": method, **numbers, **told}

    if "original" not in done:
        yield facts("original", original, 0.0)
    for name in names:
        if name in done:
            continue
        began = time.perf_counter()
        try:
            result = api.unlearn(
                original, forget=split.forget, retain=split.retain, validation=validation, recipe=RECIPE,
                initial=initial, method=name, seed=seed + 100, device="cpu",
            )  # fmt: skip
        except ExpungeError as error:
            yield {"request": request, "seed": seed, "method": name, "seconds": time.perf_counter() - began,
                   "effect": "refused", "note": str(error)}  # fmt: skip
            continue
        label = result.effect.label if result.effect is not None else ""
        yield facts(name, result.model, result.seconds, label, " ".join(result.notes))


def summary(table: pd.DataFrame) -> str:
    """Markdown: mean and standard deviation over the seeds, methods in the order of their gap."""
    parts = []
    for request, group in table.groupby("request", sort=False):
        reference = group[group.method == "retrain"].set_index("seed")
        lines = []
        for name, own in group.groupby("method", sort=False):
            own = own.set_index("seed")
            failed = own["forget"].isna()
            if bool(failed.all()):
                lines.append((9.0, f"| {name} | refused | | | | | | |"))
                continue
            gaps = sum((own[c] - reference[c]).abs() for c in ("forget", "retain", "test")) / 3
            share = own["seconds"] / reference["seconds"]
            cells = [f"{own[c].mean():.3f} ± {own[c].std():.3f}" for c in ("forget", "retain", "test", "attack")]
            lines.append(
                (gaps.mean(), f"| {name} | {' | '.join(cells)} | {gaps.mean():.3f} ± {gaps.std():.3f} "
                 f"| {share.mean():.0%} | {', '.join(own['effect'].unique())} |")
            )  # fmt: skip
        body = "\n".join(line for _, line in sorted(lines, key=lambda pair: pair[0]))
        head = "| method | forget | retain | test | attack | gap | time | effect |\n|---|---|---|---|---|---|---|---|"
        parts.append(f"## {REQUESTS[str(request)]}\n\n{head}\n{body}\n")
    return "\n".join(parts)


def main(
    out: Path,
    data: Annotated[str, typer.Option(help="data set with training and test images")] = "mnist",
    methods: Annotated[str, typer.Option(help="names, comma-separated; default: those of `METHODS_2026`")] = "",
    requests: str = "class,random",
    seeds: str = "0,1,2",
    train_size: int = 1000,
    model: str = "cnn",
) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", EffectWarning)  # the table says what each method did
    names = methods.split(",") if methods else list(METHODS_2026)
    names = ["retrain", *(name for name in names if name != "retrain")]
    out.mkdir(parents=True, exist_ok=True)
    log = out / "rows.jsonl"
    kept = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for request in requests.split(","):
        for seed in map(int, seeds.split(",")):
            done = {row["method"] for row in kept if (row["request"], row["seed"]) == (request, seed)}
            if done >= {"original", *names}:
                continue
            for row in rows(request, seed, data, names, train_size, model, done):
                kept.append(row)
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                shown = {key: round(value, 3) for key, value in row.items() if isinstance(value, float)}
                typer.echo(f"{request} {seed} {row['method']}: {shown} {row['note'][:120]}")
    table = pd.DataFrame(kept)
    table.to_csv(out / "rows.csv", index=False)
    (out / "table.md").write_text(summary(table))


if __name__ == "__main__":
    typer.run(main)
