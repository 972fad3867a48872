"""The goal selects what references are trained on, what stands beside the samples to forget, and what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import expunge
from expunge.core.errors import DataError, UsageError
from expunge.data.split import ResidentStore, Split
from expunge.evidence.goals import mislabelled, prepared, questions, reference_data, right_labels
from expunge.models.build import build_model
from expunge.repair.repair import repair_labels

RECIPE = {"epochs": 15, "lr": 0.05, "batch_size": 32, "weight_decay": 0.0}


def blobs(count: int, seed: int) -> Split:
    """Three clouds in six dimensions."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    centres = 2.5 * torch.eye(6)[:3]
    x = centres[y] + torch.randn(count, 6, generator=g)
    return Split.whole(ResidentStore(x, y, classes=["a", "b", "c"]))


@pytest.fixture(scope="module")
def wrong() -> dict[str, Split]:
    """60 of 240 samples have the label of the next class; the store knows the right ones."""
    data = blobs(240, 0)
    labels = data.labels.clone()
    labels[:60] = (labels[:60] + 1) % 3
    train = data.with_labels(labels)
    return {"train": train, "forget": train.take(range(60), "forget"), "retain": train.take(range(60, 240), "retain"),
            "test": blobs(300, 1).named("test")}  # fmt: skip


def trained(split: Split, seed: int) -> Any:
    model = build_model("mlp", num_classes=3, input_shape=(6,), seed=seed, options={"hidden": 32})
    return expunge.train(model, split, recipe=RECIPE, seed=seed, device="cpu")


def test_repair_has_references_that_learnt_the_right_labels(wrong: dict[str, Split], tmp_path: Path) -> None:
    original = trained(wrong["train"], 0)
    given = {name: wrong[name] for name in ("forget", "retain", "test")}
    common: dict[str, Any] = {**given, "device": "cpu", "resamples": 20, "cache": tmp_path, "features": False}
    right = reference_data("repair", given)
    assert right is not None
    assert len(right) == 240
    assert torch.equal(right.y, blobs(240, 0).y)
    retraining: dict[str, Any] = {"retain": right, "method": "retrain", "device": "cpu", "cache": tmp_path}
    mended = expunge.unlearn(original, seed=77, measure=False, **retraining).model
    references = [expunge.unlearn(original, seed=seed, measure=False, **retraining).model for seed in (1, 2, 3)]
    asked = expunge.audit(original, mended, goal="repair", references=3, **common)
    told = expunge.audit(original, mended, goal="repair", references=references, **common)
    assert asked.details["statistics"] == told.details["statistics"]  # it trains just these
    assert asked.label in ("not enough evidence", "indistinguishable from the start"), str(asked)
    assert str(asked).splitlines()[1].startswith("asked: repair: ")
    kept = expunge.audit(original, original, goal="repair", references=references, **common)
    assert kept.label == "not forgotten", str(kept)


def test_a_label_repair_is_audited_as_one(wrong: dict[str, Split], tmp_path: Path) -> None:
    original = trained(wrong["train"], 0)
    truth = [["a", "b", "c"][c] for c in wrong["train"].store.labels[:60].tolist()]
    suspects = pd.DataFrame({"position": range(60), "suggested_label": truth})
    done = repair_labels(original, suspects=suspects, action="relabel", method="none", test=wrong["test"], device="cpu")
    found = expunge.audit(
        done.result, references=2, test=wrong["test"], device="cpu", resamples=20, cache=tmp_path, features=False
    )
    assert found.goal == "repair"
    assert found.details["samples"]["forget accuracy"] == 60
    assert found.details["samples"]["retain accuracy"] == 180
    references = [name for name in found.details["statistics"] if name.startswith("retrained")]
    # Trained on the right labels, they hardly ever give the wrong one.
    assert all(found.details["statistics"][name]["forget accuracy"] < 0.2 for name in references)


def test_unlearn_removes_the_class_from_what_stays(wrong: dict[str, Split], tmp_path: Path) -> None:
    data = blobs(240, 0)
    some = data.index[data.y == 1][:40]
    forget, retain = data.take(some, "forget"), data.take(data.index[~torch.isin(data.index, some)], "retain")
    splits = {"forget": forget, "retain": retain, "test": wrong["test"]}
    ready = prepared("unlearn", splits)
    assert set(ready["retain"].y.tolist()) == {0, 2}
    assert prepared("untrain", splits)["retain"] is retain
    original = trained(data, 0)

    def retrained(stays: Split) -> Any:
        return expunge.unlearn(original, retain=stays, method="retrain", seed=50, measure=False, device="cpu").model

    common: dict[str, Any] = {**splits, "device": "cpu", "resamples": 20, "cache": tmp_path, "goal": "unlearn"}
    found = expunge.audit(original, retrained(ready["retain"]), references=3, **common)
    concept = next(comparison for comparison in found.comparisons if comparison.name == "concept accuracy")
    assert concept.value == concept.reference == 0
    assert concept.original > 0.8
    assert found.label in ("forgotten", "not enough evidence"), str(found)
    # A model that dropped these 40 samples alone still knows the class.
    part = expunge.audit(original, retrained(retain), references=3, **common)
    assert part.label == "not forgotten", str(part)
    assert "references never saw a sample of class b" in str(part)
    everything = {**splits, "forget": data.take(range(30))}
    with pytest.raises(UsageError, match="these are all 3 classes"):
        prepared("unlearn", everything)


def test_what_the_other_goal_would_ask(wrong: dict[str, Split]) -> None:
    data = blobs(240, 0)
    whole = {"forget": data.take(data.index[data.y == 1]), "retain": data.take(data.index[data.y != 1])}
    first, second = questions("untrain", whole)
    assert first.startswith("untrain: ")
    assert "`unlearn` would ask for class b" in second
    mixed = {"forget": data.take(range(30)), "retain": data.take(range(30, 240))}
    assert len(questions("untrain", mixed)) == 1
    assert "`repair` would ask" in questions("untrain", wrong)[1]
    assert "`untrain` would ask" in questions("unlearn", whole)[1]


def test_right_labels_are_given_known_or_refused(wrong: dict[str, Split]) -> None:
    forget, clean = wrong["forget"], blobs(240, 0)
    assert torch.equal(right_labels(forget), clean.labels[:60])
    partly = [-1] * 30 + clean.labels[30:60].tolist()
    data = reference_data("repair", wrong, partly)
    assert data is not None
    assert data.index.tolist() == list(range(30, 240))
    assert reference_data("repair", wrong, [-1] * 60) is wrong["retain"]
    apart = Split.whole(ResidentStore(forget.inputs(), forget.y, classes=["a", "b", "c"]))
    joined = reference_data("repair", {**wrong, "forget": apart}, clean.labels[:60])
    assert joined is not None
    assert torch.equal(joined.y, torch.cat([wrong["retain"].y, clean.labels[:60]]))
    with pytest.raises(UsageError, match="no right label"):
        prepared("repair", {**wrong, "forget": clean.take(range(60))})
    with pytest.raises(DataError, match="one label for each of the 60"):
        right_labels(forget, [1, 2])
    with pytest.raises(DataError, match="from 0 to 3"):
        right_labels(forget, [0, 3] * 30)


def test_unseen_samples_are_mislabelled_alike_and_utility_is_not(wrong: dict[str, Split], tmp_path: Path) -> None:
    test, forget = wrong["test"], wrong["forget"]
    unseen = mislabelled(test, forget, 0)
    assert torch.equal(unseen.y, (test.y + 1) % 3)
    assert mislabelled(test, blobs(240, 0).take(range(60)), 0) is test
    original, retrained = trained(wrong["train"], 0), trained(wrong["retain"], 5)
    splits = {name: wrong[name] for name in ("forget", "retain", "test")}
    found = expunge.audit(original, retrained, **splits, device="cpu", resamples=20, features=False)
    assert found.label in ("indistinguishable from the start", "not enough evidence"), str(found)
    assert found.details["statistics"]["unlearned"]["test accuracy"] > 0.9  # with the labels that are right
    assert abs(found.attacks["unlearned"]["loss"].auc.value - 0.5) < 0.1
