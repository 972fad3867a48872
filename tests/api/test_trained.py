"""A trained model knows its training: what to forget, what to retain and how to retrain follow from it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import expunge
from expunge.api.experiment import Experiment
from expunge.api.result import Result
from expunge.api.trained import TrainedModel
from expunge.core.errors import CheckpointError, DataError, ExpungeError, UsageError
from expunge.data.sources import load_pair
from expunge.data.split import ResidentStore, Split
from expunge.models.build import build_model
from expunge.models.checkpoint import weights_hash
from expunge.training.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.1)
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 6, generator=GENERATOR)
Y = torch.arange(60) % 3
TEST = (torch.randn(30, 6, generator=GENERATOR), torch.arange(30) % 3)


def net() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


@pytest.fixture(scope="module")
def trained() -> Result:
    return expunge.train(net(), (X, Y), recipe=RECIPE, test=TEST, seed=3, device="cpu")


def forget(model: Any, selection: Any, **more: Any) -> Result:
    more = {"method": "finetune", "epochs": 1, **more}
    return expunge.unlearn(model, forget=selection, device="cpu", **more)


def rows(result: Result) -> tuple[list[int], list[int]]:
    assert result.forget is not None
    assert result.train is not None
    return result.forget.index.tolist(), result.train.index.tolist()


def test_training_keeps_what_it_was_done_with(trained: Result) -> None:
    assert trained.train is not None
    assert trained.test is not None
    assert torch.equal(trained.train.y, Y)
    assert (trained.recipe, trained.seed, trained.parent, len(trained.test)) == (RECIPE, 3, None, 30)
    assert trained.initial is not None
    assert all(torch.equal(trained.initial[name], value) for name, value in net().state_dict().items())


MASK = np.isin(np.arange(60), [3, 17, 55])


@pytest.mark.parametrize(
    "selection",
    [
        [3, 17, 55],
        (3, 17, 55),
        {3, 17, 55},
        np.array([3, 17, 55], dtype=np.uint8),
        torch.tensor([3, 17, 55]),
        MASK,
        MASK.tolist(),
        torch.from_numpy(MASK),
    ],
)
def test_rows_and_masks_name_training_samples_and_the_rest_is_retained(trained: Result, selection: Any) -> None:
    gone, kept = rows(forget(trained, selection))
    assert gone == [3, 17, 55]
    assert kept == [row for row in range(60) if row not in gone]


def test_two_rows_are_not_taken_for_a_pair_of_arrays(trained: Result) -> None:
    assert rows(forget(trained, (3, 17)))[0] == [3, 17]
    data = forget(trained, (X[:5], Y[:5]), retain=(X[5:], Y[5:]))
    assert data.forget is not None
    assert len(data.forget) == 5


def test_rows_count_in_the_data_that_were_given_not_in_their_store() -> None:
    store = ResidentStore(X, Y, name="all")
    part = Split.whole(store).take(torch.arange(20, 60))
    model = expunge.train(net(), part, recipe=RECIPE, device="cpu")
    assert rows(forget(model, [0, 5]))[0] == [20, 25]


def test_ids_scenarios_and_splits(trained: Result) -> None:
    assert trained.train is not None
    named = trained.train.ids[[4, 8]].tolist()
    assert rows(forget(trained, expunge.ids(named)))[0] == [4, 8]
    by_class = forget(trained, "class:1")
    assert rows(by_class)[0] == list(range(1, 60, 3))
    split = expunge.scenario("random", trained.train, amount=6, seed=4)
    result = forget(trained, split)
    assert rows(result) == (split.forget.index.tolist(), split.retain.index.tolist())
    assert result.forgetting is split
    assert rows(forget(trained, split.forget)) == rows(result)


def test_a_chain_keeps_its_parents_and_its_row_numbers(trained: Result) -> None:
    first = forget(trained, [3, 17])
    second = forget(first, [18])
    gone, kept = rows(second)
    assert gone == [18]
    assert kept == [row for row in range(60) if row not in (3, 17, 18)]
    assert second.parent is first
    assert second.root is trained
    assert second.recipe == RECIPE
    with pytest.raises(DataError, match="1 of the 2 samples to forget were held out or forgotten before"):
        forget(first, [3, 4])


@pytest.mark.parametrize(
    ("selection", "error", "sentence"),
    [
        ([60], DataError, "row 60 is not in the training data; rows are 0 to 59"),
        ([-1], DataError, "row -1 is not in the training data"),
        ([3, 3], DataError, "row 3 is named 2 times; name each once"),
        ([int(flag) for flag in MASK], DataError, "for a mask pass truth values"),
        (MASK[:50], DataError, "the mask has 50 values, but the model was trained on 60 samples"),
        (np.zeros(60, dtype=bool), DataError, "the mask selects no sample"),
        (np.ones(60, dtype=bool), DataError, "forgets all 60 samples"),
        ([0.5, 1.0], UsageError, "cannot select by values such as 0.5; rows are whole numbers"),
        (np.array([3.0]), UsageError, "rows are whole numbers"),
        (["a", "b"], UsageError, r"expunge.ids\(\[...\]\) selects by id"),
        ([True, 3], UsageError, "mixes truth values and numbers"),
        ([], DataError, "nothing to forget: forget is empty"),
        (3, UsageError, "could be a row or a class"),
        (np.zeros((3, 2), dtype=int), UsageError, r"array of shape \(3, 2\)"),
        (expunge.ids(["nobody"]), DataError, "1 of 1 ids are not in the training data: nobody"),
        ("clas:1", UsageError, "did you mean `class`"),
        ("noisy:0.2", UsageError, "changes labels before training"),
        (None, UsageError, "nothing to forget: pass forget="),
    ],
)
def test_a_selection_that_cannot_be_right_is_refused(
    trained: Result, selection: Any, error: type[ExpungeError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence) as caught:
        forget(trained, selection)
    assert "\n" not in str(caught.value)


def test_a_bare_module_cannot_be_asked_for_rows() -> None:
    with pytest.raises(UsageError, match=r"TrainedModel\.of\(module, data=\.\.\.\)"):
        forget(net(), [3])


def test_retraining_uses_the_recipe_and_the_start_that_the_model_knows(trained: Result) -> None:
    reference = expunge.unlearn(trained, forget=[3, 17], method="retrain", seed=7, device="cpu")
    assert len(reference.history) == RECIPE.epochs
    assert trained.train is not None
    again = expunge.train(net(), trained.train.take(reference.train.index), recipe=RECIPE, seed=7, device="cpu")
    assert weights_hash(reference.model) == weights_hash(again.model)
    assert expunge.unlearn(trained, forget=[3], method="unrolling", device="cpu").status == "finished"


@pytest.mark.parametrize("method", ["retrain", "eu-k", "unrolling", "ntk", "sisa"])
def test_what_needs_an_unknown_recipe_names_the_keyword(method: str) -> None:
    with pytest.raises(UsageError, match=r"pass recipe=\.\.\."):
        expunge.unlearn(net(), forget=(X[:5], Y[:5]), retain=(X[5:], Y[5:]), method=method, device="cpu")


def test_held_out_data_serve_as_validation() -> None:
    model = expunge.train(net(), (X, Y), recipe=RECIPE, held_out=TEST, device="cpu")
    result = forget(model, [3, 17], rewind=True)
    assert "validation" in result.facts["data"]


def test_rows_count_in_the_given_data_where_a_part_is_held_out(tmp_path: Path) -> None:
    model = expunge.train(net(), (X, Y), recipe=RECIPE, held_out=0.25, device="cpu")
    assert model.train is not None
    assert model.held_out is not None
    kept, held = model.train.index.tolist(), model.held_out.index.tolist()
    assert sorted(kept + held) == list(range(60))
    result = forget(model, [kept[9]])
    assert rows(result)[0] == [kept[9]]
    assert result.effect is not None
    assert result.effect.label != "not measured"
    with pytest.raises(DataError, match=f"held out or forgotten before .first: row {held[2]}"):
        forget(model, [kept[9], held[2]])
    for name, before in (("model", model), ("result", result)):
        before.save(tmp_path / name)
    loaded = expunge.load(tmp_path / "model", model=net(), data=(X, Y))
    assert loaded.held_out is not None
    assert loaded.held_out.index.tolist() == held
    assert rows(forget(loaded, [kept[9]])) == rows(result)
    with pytest.raises(DataError, match="leaves one side empty"):
        expunge.train(net(), (X, Y), recipe=RECIPE, held_out=0.001, device="cpu")


def test_a_model_that_was_trained_elsewhere() -> None:
    module = net()
    known = TrainedModel.of(module, data=(X, Y), recipe={"epochs": 2}, initial=net(), test=TEST)
    assert rows(forget(known, [5]))[0] == [5]
    assert expunge.unlearn(known, forget=[5], method="retrain", device="cpu").recipe == Recipe(epochs=2)
    for changes, sentence in (
        ({"initial": torch.nn.Linear(6, 3)}, "initial weights do not fit the model"),
        ({"recipe": {"epoch": 2}}, "did you mean `epochs`"),
        ({"data": (X[:, :5], Y)}, "refuses train samples"),
    ):
        with pytest.raises(ExpungeError, match=sentence):
            TrainedModel.of(module, **{"data": (X, Y), **changes})
    whole = Split.whole(ResidentStore(X, Y))
    with pytest.raises(DataError, match="3 samples of `test` are among the training data"):
        TrainedModel.of(module, data=whole, test=whole.take(torch.arange(3)))


def test_saved_and_loaded_again(trained: Result, tmp_path: Path) -> None:
    trained.save(tmp_path / "original")
    result = forget(forget(trained, [3]), [17])
    result.save(tmp_path / "forgot")
    original = expunge.load(tmp_path / "original", model=net(), data=(X, Y), test=TEST)
    assert weights_hash(original.model) == weights_hash(trained.model)
    assert (original.recipe, original.seed) == (RECIPE, 3)
    assert original.initial is not None
    loaded = Result.load(tmp_path / "forgot", model=net(), data=(X, Y), parent=original)
    assert rows(loaded) == rows(result)
    assert loaded.history == result.history
    assert loaded.record()["weights"] == result.record()["weights"]
    assert rows(forget(loaded, [18]))[1] == [row for row in range(60) if row not in (3, 17, 18)]


def test_a_folder_that_is_not_what_it_says_is_refused(trained: Result, tmp_path: Path) -> None:
    folder = trained.save(tmp_path / "original")
    with pytest.raises(UsageError, match=r"pass model=\.\.\."):
        expunge.load(folder)
    with pytest.raises(DataError, match="data are not those"):
        expunge.load(folder, model=net(), data=(X + 1, Y))
    expunge.train(net(), (X, Y), recipe=RECIPE, seed=9, device="cpu").save(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not hold the weights that result\.json"):
        expunge.load(folder, model=net())
    (folder / "result.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is damaged"):
        expunge.load(folder, model=net())
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        expunge.load(tmp_path, model=net())


def test_evaluate_takes_a_result_alone(trained: Result) -> None:
    result = forget(trained, [3, 17, 18])
    scores = expunge.evaluate(result, metrics=["accuracy"], device="cpu")
    assert list(scores.values) == ["original", "unlearned"]
    told = expunge.evaluate(
        {"original": trained.model, "unlearned": result.model}, forget=result.forget, retain=result.train, test=TEST,
        metrics=["accuracy"], device="cpu",
    )  # fmt: skip
    assert scores.table().equals(told.table())
    other = forget(trained, [4])
    with pytest.raises(UsageError, match=r"different forget data; pass forget=\.\.\."):
        expunge.evaluate({"a": result, "b": other}, device="cpu")


def test_audit_of_a_result_trains_the_references_it_is_asked_for(trained: Result, tmp_path: Path) -> None:
    result = forget(trained, "class:1")
    verdict = expunge.audit(result, references=2, device="cpu", resamples=20, cache=tmp_path)
    assert verdict.basis == "retrained"
    again = [expunge.unlearn(trained, forget="class:1", method="retrain", seed=seed, device="cpu") for seed in (1, 2)]
    listed = expunge.audit(result, references=again, device="cpu", resamples=20)
    named = expunge.audit(
        trained.model, result.model, forget=result.forget, retain=result.train, test=TEST, retrained=again,
        device="cpu", resamples=20,
    )  # fmt: skip
    assert verdict.details["statistics"] == listed.details["statistics"] == named.details["statistics"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda r: expunge.audit(r.model, forget=(X[:5], Y[:5]), test=TEST), "model before unlearning is not known"),
        (lambda r: expunge.audit(r, references=1), "references must be 0 or at least 2"),
        (lambda r: expunge.audit(r, references=[net()]), "one retrained model has no spread"),
        (lambda r: expunge.audit(r, references=2, retrained=[net()]), "older name of `references`"),
        (lambda r: expunge.audit(net(), r.model, forget=(X[:9], Y[:9]), test=TEST, references=2), "pass recipe="),
        (lambda r: expunge.audit(r, original=net(), unlearned=net()), "given twice"),
    ],
)
def test_an_audit_says_what_it_lacks(trained: Result, make: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        make(forget(trained, [3, 17]))


def test_a_stream_of_rows(trained: Result) -> None:
    result = expunge.unlearn_stream(trained, requests=[[3, 4], [17]], method="finetune", epochs=1, device="cpu")
    assert rows(result) == ([3, 4, 17], [row for row in range(60) if row not in (3, 4, 17)])
    assert result.parent is trained
    parts = expunge.unlearn_stream(trained, requests="random:amount=6,requests=3", method="finetune", device="cpu")
    assert [row["samples"] for row in parts.details["requests"]] == [2, 2, 2]


def test_what_objects_show_fits_ten_lines(trained: Result) -> None:
    result = forget(trained, [3, 17])
    assert trained.train is not None
    split = expunge.scenario("class", trained.train, target=1)
    verdict = expunge.audit(result, test=TEST, device="cpu", resamples=20)
    many = replace(verdict, reasons=[f"reason {number}" for number in range(20)])
    scores = expunge.evaluate(result, device="cpu")
    for shown in (trained, result, TrainedModel.of(net()), trained.train, split, scores, verdict, many):
        assert len(repr(shown).splitlines()) <= 10
    assert "13 more in .reasons" in repr(many)
    assert repr(split.forget) == "Split forget: 20 of 60 samples of shape (6,), 3 classes"
    assert verdict._repr_html_().startswith("<table>")
    assert scores._repr_html_().startswith("<table>")
    assert "unlearned by finetune" in repr(result)
    assert "58 samples" in repr(result)
    assert result._repr_html_().startswith("<table>")


def test_the_model_that_was_given_is_not_aliased_by_its_initial_weights() -> None:
    start = net()
    trained = expunge.train(start, (X, Y), recipe=RECIPE, device="cpu")
    before = copy.deepcopy(trained.initial)
    torch.nn.init.zeros_(start[0].weight)
    assert trained.initial is not None
    assert before is not None
    assert torch.equal(trained.initial["0.weight"], before["0.weight"])


def test_methods_is_a_function_before_and_after_its_package_is_imported() -> None:
    code = (
        "import expunge, json; first = expunge.methods(); import expunge.methods.problem; "
        "print(json.dumps([first, expunge.methods(), expunge.methods.METHODS.names()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, third = json.loads(done.stdout)
    assert first == second == third
    assert "scrub" in first


def test_an_experiment_makes_what_the_verbs_make(trained: Result) -> None:
    assert trained.train is not None
    split = expunge.scenario("random", trained.train, amount=6, requests=2)
    experiment = Experiment(trained, split, "finetune", seed=5, device="cpu")
    told = expunge.unlearn_stream(trained, requests=split, method="finetune", seed=5, device="cpu")
    assert weights_hash(experiment.unlearn().model) == weights_hash(told.model)
    again = expunge.unlearn(trained, forget=split.forget, method="retrain", seed=8, device="cpu")
    assert weights_hash(experiment.reference(8).model) == weights_hash(again.model)


def test_a_saved_chain_comes_back_with_what_it_knows(tmp_path: Path) -> None:
    data, test = load_pair("digits")
    shape = data.input_shape

    def fresh() -> nn.Module:
        return build_model("mlp", num_classes=10, input_shape=shape, seed=7, options={"hidden": 4})

    recipe = {"epochs": 1, "batch_size": 256}
    trained = expunge.train(fresh(), data, test=test, recipe=recipe, seed=3, device="cpu")
    how: dict[str, Any] = {"method": "finetune", "epochs": 1, "device": "cpu", "measure": False}
    first = expunge.unlearn(trained, forget=[1, 2, 3], **how)
    second = expunge.unlearn(first, forget=[10, 11], **how)
    second.save(tmp_path / "chain")
    loaded = expunge.load(tmp_path / "chain", model=fresh())
    chain, known = [loaded, loaded.parent, loaded.root], [second, first, trained]
    for mine, theirs in zip(chain, known, strict=True):
        assert mine is not None
        assert weights_hash(mine.model) == weights_hash(theirs.model)
        assert mine.recipe == theirs.recipe
        assert (mine.seed, dict(mine.facts)) == (theirs.seed, json.loads(json.dumps(dict(theirs.facts))))
        assert mine.initial is not None
        assert theirs.train is not None
        assert mine.train is not None
        assert mine.train.content_hash() == theirs.train.content_hash()
        assert mine.test is not None
    assert len(expunge.unlearn(loaded, forget=[20], **how).train or ()) == len(data) - 6
    arrays = expunge.train(fresh(), (data.inputs(), data.y), recipe=recipe, device="cpu")
    arrays.save(tmp_path / "arrays")
    bare = expunge.load(tmp_path / "arrays", model=fresh())
    assert bare.train is None
    assert "which the folder does not hold: expunge.load(..., data=...)" in repr(bare)
    again = expunge.load(tmp_path / "arrays", model=fresh(), data=(data.inputs(), data.y))
    assert len(again.train or ()) == len(data)


def test_a_file_that_changed_is_not_taken_for_the_training_data(tmp_path: Path) -> None:
    rows = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)).numpy()
    labels = np.arange(40) % 2
    np.savez(tmp_path / "rows.npz", x_train=rows, y_train=labels)
    data, _ = load_pair(tmp_path / "rows.npz")
    net = nn.Linear(3, 2)
    expunge.train(net, data, recipe={"epochs": 1}, device="cpu").save(tmp_path / "model")
    assert len(expunge.load(tmp_path / "model", model=nn.Linear(3, 2)).train or ()) == 40
    np.savez(tmp_path / "rows.npz", x_train=rows + 1, y_train=labels)
    with pytest.raises(DataError, match="changed since"):
        expunge.load(tmp_path / "model", model=nn.Linear(3, 2))
    (tmp_path / "rows.npz").unlink()
    assert expunge.load(tmp_path / "model", model=nn.Linear(3, 2)).train is None
