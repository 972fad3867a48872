"""Label repair on real digits with planted swaps: the confusion falls towards a model trained on corrected data."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

import expunge
from expunge.core.errors import DataError, UsageError
from expunge.data.sources import load_pair
from expunge.models.build import build_model
from expunge.models.checkpoint import weights_hash
from expunge.repair import mending
from expunge.repair.correction import Correction, make_correction
from expunge.repair.files import FILES
from expunge.repair.measure import measure_repair
from expunge.repair.mending import learning, mend, train_again
from expunge.repair.suspects import read_suspects
from expunge.repair.words import sentences
from expunge.training.recipe import Recipe

RECIPE = Recipe(epochs=30, lr=0.05, batch_size=32)


@pytest.fixture(scope="module")
def planted():
    """400 digits, 15 threes that say nine and 15 nines that say three, a model that learned them by heart."""
    train, test = load_pair("digits")
    split = expunge.scenario("confusion", train.take(torch.arange(400)), amount=30, classes=(3, 9))
    start = build_model("mlp", num_classes=10, input_shape=train.input_shape, seed=0, options={})
    model = expunge.train(start, split.train, recipe=RECIPE, device="cpu").model
    issues = pd.DataFrame(
        {
            "id": split.forget.ids,
            "given_label": split.forget.y,
            "predicted_label": split.true_labels[split.forget.index],
            "label_quality": np.linspace(0.01, 0.3, 30),
        }
    )
    return model, split, test, issues, start


@pytest.fixture(scope="module")
def repaired(planted):
    model, split, test, issues, start = planted
    return expunge.repair_labels(
        model,
        split.train,
        issues,
        action="relabel",
        test=test,
        recipe=RECIPE,
        initial=start,
        retrain=True,
        device="cpu",
    )


def shares(effects, key):
    return {model: found[key]["share"] for model, found in effects.pairs[0]["models"].items()}


def test_relabelling_takes_the_confusion_most_of_the_way_to_retraining(planted, repaired):
    for key in ("ic_error", "fgt_error"):
        found = shares(repaired.effects, key)
        assert found["original"] > 0.15
        assert found["retrained"] < found["original"] / 3
        gap = found["original"] - found["retrained"]
        assert found["original"] - found["repaired"] > 0.6 * gap, found
    assert repaired.effects.pairs[0]["turned"]["p"] < 0.01
    suspects = repaired.effects.suspects
    assert suspects["original"]["given"] >= 20
    assert suspects["repaired"]["suggested"] >= 26
    assert repaired.effects.overall[0]["models"]["repaired"]["share"] > 0.85


def test_the_given_model_stays_as_it_is(planted):
    model, split, _, issues, _ = planted
    before = weights_hash(model)
    expunge.repair_labels(model, split.train, issues, action="relabel", method="none", recipe=RECIPE, device="cpu")
    assert weights_hash(model) == before


def test_forgetting_by_retraining_is_the_model_trained_on_the_corrected_data(planted):
    """An exact method must give the reference itself: no suspect in it, and no other sample left out."""
    model, split, test, issues, start = planted
    suspects = read_suspects(issues, split.train)
    correction = Correction(split.train, suspects, "forget")
    result = mend(model, correction, method="retrain", recipe=RECIPE, initial=start, device="cpu")
    again = expunge.train(start, split.retain, recipe=RECIPE, device="cpu")
    assert weights_hash(result.model) == weights_hash(again.model)
    reference = train_again(model, correction, recipe=RECIPE, initial=start.state_dict(), device="cpu")
    assert weights_hash(reference.model) == weights_hash(again.model)
    found = measure_repair({"original": model, "repaired": result}, correction, test=test, device="cpu")
    assert shares(found, "ic_error")["repaired"] < shares(found, "ic_error")["original"] / 2


def test_the_corrected_list_says_what_became_of_everyone(planted, repaired):
    split = planted[1]
    table = repaired.labels()
    assert len(table) == 400
    assert table["action"].value_counts().to_dict() == {"kept": 370, "relabelled": 30}
    now = table["now"].to_numpy(dtype=int)
    assert (now == split.true_labels[split.train.index].numpy()).all()
    assert repaired.correction.corrected.y.tolist() == now.tolist()


def test_without_a_suggestion_a_suspect_is_only_forgotten(planted):
    model, split, _, issues, _ = planted
    issues = issues.assign(predicted_label=issues["predicted_label"].where(issues.index < 20))
    found = expunge.repair_labels(
        model, split.train, issues, action="relabel", epochs=1, learn={"epochs": 3}, device="cpu"
    )
    table = found.labels()
    gone = table[table["action"] == "forgotten"]
    assert set(gone["id"]) == set(issues["id"][20:])
    assert gone["now"].isna().all()
    assert len(found.correction.corrected) == 390
    assert found.result.facts["sizes"] == {"suspects": 30, "relabelled": 20, "train": 400, "corrected": 390}
    assert "10 suspects were forgotten only" in sentences(found)[0]
    assert any("no test data" in note for note in found.effects.notes)


def test_ids_alone_can_be_forgotten_and_no_pair_is_made_up(planted):
    model, split, test, issues, _ = planted
    found = expunge.repair_labels(model, split.train, list(issues["id"]), test=test, epochs=1, device="cpu")
    assert found.effects.pairs == []
    assert any("suggests no labels" in note for note in found.effects.notes)


def test_everything_is_written_and_the_still_suspect_can_be_read_again(planted, tmp_path):
    model, split, test, issues, _ = planted
    done = expunge.repair_labels(model, split.train, issues, method="finetune", epochs=1, test=test, device="cpu")
    done.save(tmp_path / "out", title='<b>"swaps"</b>')
    for name in (*FILES, "model.safetensors", "result.json", "history.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 0, name
    assert len(done.effects.still) >= 20  # one pass of fine-tuning does not reach them
    again = read_suspects(tmp_path / "out" / "still_suspect.csv", split.train)
    assert set(again.ids) == set(done.effects.still["id"])
    still = issues.set_index("id").loc[list(again.ids)]
    assert again.suggested.tolist() == still["predicted_label"].tolist()
    np.testing.assert_allclose(again.score, still["label_quality"])
    page = (tmp_path / "out" / "repair.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert 'src="' not in page
    assert 'href="http' not in page.replace('xlink:href="http', "")
    record = json.loads((tmp_path / "out" / "repair.json").read_text())
    assert record["still_suspect"] == len(again)
    assert record["sentences"] == sentences(done)
    near = pd.read_csv(tmp_path / "out" / "neighbours.csv")
    assert set(near["group"]) == {"neighbour", "random", "same classes"}
    assert not set(near["id"]) & set(issues["id"])


def test_a_stopped_repair_goes_on_with_the_same_result(planted, tmp_path, monkeypatch):
    model, split, _, issues, _ = planted
    correction = Correction(split.train, read_suspects(issues, split.train), "relabel")
    how = {"recipe": RECIPE, "device": "cpu", "epochs": 1}
    whole = mend(model, correction, **how)
    train, unlearn, calls = mending.api.train, mending.Experiment.unlearn, []
    with monkeypatch.context() as patch:
        patch.setattr(mending.api, "train", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            mend(model, correction, state=tmp_path, **how)
    monkeypatch.setattr(mending.Experiment, "unlearn", lambda *a, **k: calls.append(1) or unlearn(*a, **k))
    result = mend(model, correction, state=tmp_path, **how)
    assert calls == []
    assert weights_hash(result.model) == weights_hash(whole.model)
    assert result.needs == whole.needs
    other = Correction(split.train, read_suspects(issues, split.train, top=20), "relabel")
    mend(model, other, state=tmp_path, **how)
    assert calls == [1]  # stages of other suspects are not taken
    (tmp_path / "unlearned.json").write_text("{")
    mend(model, other, state=tmp_path, **how)
    assert calls == [1, 1]
    assert train is mending.api.train


def test_a_model_without_a_head_is_repaired_all_the_same(planted):
    class Late(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.beside = inner, torch.nn.Linear(64, 10)

        def forward(self, x):
            return self.beside(x.flatten(1)) + self.inner(x)

    model, split, _, issues, _ = planted
    found = expunge.repair_labels(
        Late(model), split.train, issues, action="relabel", method="none", learn=RECIPE, device="cpu"
    )
    assert found.effects.compared == []
    assert any("neighbours were not looked for" in note for note in found.effects.notes)
    assert sentences(found)


def test_what_cannot_be_repaired_is_said(planted):
    model, split, _, issues, _ = planted
    suspects = read_suspects(issues, split.train)
    bare = read_suspects(list(issues["id"]), split.train)
    for call, phrase in (
        (lambda: make_correction(split.train, suspects, "mend", "scrub"), "unknown action"),
        (lambda: make_correction(split.train, bare, "relabel", "scrub"), "no suspect has a suggested label"),
        (lambda: make_correction(split.train, suspects, "forget", "none"), "would change nothing"),
        (
            lambda: expunge.repair_labels(
                model, split.train, suspects, action="relabel", method="none", recipe=RECIPE, alpha=1
            ),
            "alpha",
        ),
        (
            lambda: expunge.repair_labels(model, split.train, suspects, action="relabel", method="none"),
            "recipe of the short training is not known; pass learn",
        ),
        (lambda: expunge.repair_labels(model, split.train, suspects, retrain=True, device="cpu"), "recipe"),
        (lambda: expunge.repair_labels(model, split.train, suspects, k=0, device="cpu"), "neighbours"),
        (lambda: expunge.repair_labels(model, split.train, suspects, below=0.1), "chosen already"),
        (lambda: expunge.repair_labels(object(), split.train, suspects), "torch.nn.Module"),
    ):
        with pytest.raises((UsageError, DataError), match=phrase):
            call()


def test_the_short_training_follows_the_recipe():
    found = learning(RECIPE)
    assert (found.epochs, found.lr, found.batch_size, found.schedule) == (3, pytest.approx(0.01), 32, "constant")
