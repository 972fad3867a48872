"""The audit: shadow models together against one after the other, and what an audit without them takes."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator

import torch

import expunge
from benchmarks.loops import data_path
from benchmarks.measure import Row, compare, peak_mib
from expunge.data.sources import load_pair
from expunge.data.split import ResidentStore, Split
from expunge.evidence.shadows import make_plan, shadow_scores
from expunge.models.anatomy import reset_parameters
from expunge.models.build import build_model
from expunge.training.recipe import Recipe

SHADOWS, IMAGES, EPOCHS = 16, 3000, 5


def run() -> Iterator[Row]:
    train, test = load_pair(data_path("mnist"))
    assert test is not None
    forget = train.take(train.index[:100], "forget")
    retain = train.take(train.index[100:IMAGES], "retain")
    test = test.take(test.index[:2000], "test")
    model = build_model("cnn", num_classes=10, input_shape=train.input_shape, seed=0, options={})
    recipe = Recipe(epochs=EPOCHS, batch_size=32, lr=1e-3, optimizer="adam")
    plan = make_plan(forget, retain, test, SHADOWS)
    cores = max(2, torch.get_num_threads())

    def together() -> None:
        shadow_scores(model, plan, recipe=recipe, jobs=cores, device="cpu")

    def one_after_the_other() -> None:
        for shadow in range(SHADOWS):
            start = copy.deepcopy(model)
            reset_parameters(start, seed=shadow)
            seen = torch.from_numpy(plan.train[shadow].nonzero()[0])
            expunge.train(start, plan.pool.take(seen), recipe=recipe, seed=shadow, device="cpu")

    what = (
        f"cnn on mnist, {SHADOWS} models x {IMAGES:,} images x {EPOCHS} epochs, {cores} workers, their start included"
    )
    ratio, a, b = compare(one_after_the_other, together, repeats=1, warm=False)
    yield Row("shadows: one after the other / together", what, ratio, f"{a:.1f} s / {b:.1f} s", least=1.7)

    full = Recipe(epochs=20, batch_size=32, lr=1e-3, optimizer="adam")
    whole = train.take(train.index[:6000])
    retain = train.take(train.index[100:6000], "retain")
    original = expunge.train(model, whole, recipe=full, device="cpu")

    def retrain() -> None:
        expunge.unlearn(original.model, forget=forget, retain=retain, method="retrain", recipe=full, device="cpu")

    def audit() -> None:
        expunge.audit(original, original, forget=forget, retain=retain, test=test, device="cpu")

    ratio, a, b = compare(audit, retrain, repeats=1, warm=False)
    what = "cnn on mnist, 6,000 training, 2,000 unseen images, 20 epochs"
    yield Row("audit without shadows / retraining", what, ratio, f"{a:.2f} s / {b:.1f} s", most=0.10)

    answer = subprocess.run([sys.executable, "-m", "benchmarks.audit"], check=True, capture_output=True, text=True)
    mib = float(answer.stdout)
    yield Row(
        "audit without shadows: memory", "the same, MiB above the start / 1024", mib / 1024, f"{mib:.0f} MiB", most=1
    )


def main() -> None:
    """An audit of made-up images in a fresh process; prints how much memory it took beyond that of data and model."""
    images = Split.whole(ResidentStore(torch.rand(8000, 1, 28, 28), torch.arange(8000) % 10))
    parts = {"forget": range(100), "retain": range(100, 6000), "test": range(6000, 8000)}
    splits = {name: images.take(list(places), name) for name, places in parts.items()}
    model = build_model("cnn", num_classes=10, input_shape=images.input_shape, seed=0, options={})
    before = peak_mib()
    expunge.audit(model, copy.deepcopy(model), **splits, device="cpu")
    print(peak_mib() - before)


if __name__ == "__main__":
    main()
