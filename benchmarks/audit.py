"""The audit: shadow models together against one after the other, and what an audit without them takes."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

import expunge
from benchmarks.loops import data_path
from benchmarks.measure import Row, compare
from expunge.data.sources import load_pair
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
