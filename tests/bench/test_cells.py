"""Cells: content addresses change with what decides a result and with nothing else; sizes of subsets are exact."""

from __future__ import annotations

import copy
import importlib
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.bench.cells import counted, expand
from expunge.bench.reading import parse_study
from expunge.bench.recipe import DataPart
from expunge.bench.run import work_items
from expunge.bench.samples import load_source, parts, shares, sized
from expunge.core.errors import UsageError
from expunge.data.sources import load_pair
from expunge.methods import METHODS


def ids(content, fingerprint="data"):
    return [cell.id for cell in expand(parse_study(content), fingerprint)]


def changed(content, path, value):
    made = copy.deepcopy(content)
    *parents, last = path
    place = made
    for part in parents:
        place = place[part]
    place[last] = value
    return made


def test_the_grid_is_complete_and_in_the_recipes_order(tiny):
    grid = expand(parse_study(tiny), "data")
    assert len(grid) == len({cell.id for cell in grid}) == 16
    assert [cell.method_label for cell in grid[:4]] == ["retrain", "original", "finetune", "SCRUB+R"]
    assert [cell.seeds["train"] for cell in grid[:8]] == [0] * 4 + [1] * 4
    assert [cell.scenario_label for cell in grid] == ["class:1"] * 8 + ["a tenth"] * 8


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["name"], "other"),
        (["title"], "A heading"),
        (["about"], "words"),
        (["scenarios", 1, "label"], "10 %"),
        (["methods", 2, "label"], "rewound"),
        (["device"], "cpu"),
        (["data", "source"], "digits"),  # the same content by another name
    ],
)
def test_names_are_part_of_no_id(tiny, path, value):
    assert ids(changed(tiny, path, value)) == ids(tiny)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["data", "validation"], 0.3),
        (["data", "train_size"], 60),
        (["data", "draw"], "prefix"),
        (["model", "options", "hidden"], 9),
        (["train", "epochs"], 4),
        (["precision"], "bfloat16"),
        (["metrics"], ["accuracy"]),
        (["metrics"], [{"name": "mia-repeated", "repeats": 60}]),
        (["curves"], False),
        (["options", "retrain"], {"epochs": 1}),  # the reference decides every gap
        (["pretrain"], {"source": "digits"}),
    ],
)
def test_what_all_cells_share_changes_every_id(tiny, path, value):
    before = ids(tiny)
    if path == ["options", "retrain"]:
        before = ids(changed(tiny, path, {}))
    assert not set(ids(changed(tiny, path, value))) & set(before)


def test_the_content_of_the_data_changes_every_id(tiny):
    assert not set(ids(tiny, "other data")) & set(ids(tiny))


def test_a_methods_option_changes_its_own_cells_only(tiny):
    after = ids(changed(tiny, ["methods", 2, "alpha"], 0.7))
    assert [a == b for a, b in zip(after, ids(tiny), strict=True)] == [True, True, True, False] * 4


def test_each_seed_counts(tiny):
    seen = [ids({**tiny, "seeds": {name: [5]}})[0] for name in ("data", "train", "unlearn", "evaluate")]
    assert len({*seen, ids({**tiny, "seeds": [0]})[0]}) == 5


def test_files_named_in_a_recipe_count_by_content(tiny, tmp_path):
    source, wanted = tmp_path / "net.py", tmp_path / "ids.csv"
    source.write_text("def make(): ...\n")
    wanted.write_text("id\n1\n")
    content = {**tiny, "model": {"name": f"{source}:make"}, "scenarios": [f"ids:{wanted}"]}
    seen = [ids(content)[0]]
    source.write_text("def make(): pass\n")
    seen.append(ids(content)[0])
    wanted.write_text("id\n2\n")
    seen.append(ids(content)[0])
    assert all(a != b for a, b in pairwise(seen))


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
def test_a_score_file_counts_by_content(tiny, tmp_path, name):
    scores, seen = tmp_path / name, []
    for text in (f"memorised:level=low,scores={scores}", f"worst-case:{scores}", f"subpopulation:5,features={scores}"):
        for content in ("id,score\na,1\n", "id,score\na,2\n"):
            scores.write_text(content)
            seen.append(ids({**tiny, "scenarios": [text]})[0])
    assert len(set(seen)) == 6


def test_default_metrics_are_those_written_out(tiny):
    study = parse_study(tiny)
    written = [metric.card.name for metric in study.named_metrics()]
    assert ids({**tiny, "metrics": written}) == ids(tiny)


def test_an_option_that_came_later_counts_once_it_is_set(tiny):
    def facts(**options):
        study = parse_study({**tiny, "metrics": ["default", {"name": "accuracy", **options}]})
        return [counted(metric) for metric in study.named_metrics() if metric.card.name == "accuracy"]

    assert facts() == facts(augment="none") == [{}]  # as before the option came; and accuracy is there once
    assert facts(augment="crop-flip") == [{"augment": "crop-flip"}]


def test_one_group_is_cut_so_that_all_workers_have_work(tiny, tmp_path):
    study = parse_study({**tiny, "scenarios": ["class:1"], "seeds": [0]})
    grid = expand(study, "data")
    assert [len(w.cells) for w in work_items(grid, study, tmp_path, jobs=1)] == [4]
    assert [w.cells for w in work_items(grid, study, tmp_path, jobs=2)] == [(cell.id,) for cell in grid]


def test_pieces_cover_every_cell_once_and_references_come_first(tiny, tmp_path):
    study = parse_study(tiny)
    grid = expand(study, "data")
    items = work_items(grid, study, tmp_path, jobs=2)
    assert sorted(cell for item in items for cell in item.cells) == sorted(cell.id for cell in grid)
    references = {cell.id for cell in grid if cell.method_label == "retrain"}
    assert {item.cells[0] for item in items[:4]} == references


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.data())
def test_shares_are_exact_and_even(available, data):
    size = data.draw(st.integers(0, sum(available)))
    counts = shares(available, size)
    assert sum(counts) == size
    assert all(0 <= count <= room for count, room in zip(counts, available, strict=True))
    open_groups = [count for count, room in zip(counts, available, strict=True) if count < room]
    assert not open_groups or max(counts) - min(open_groups) <= 1


def test_subsets_are_balanced_disjoint_and_by_seed(tiny):
    study = parse_study({**tiny, "data": {**tiny["data"], "train_size": 60, "test_size": 30, "resample": True}})
    source = load_source(study.data)
    train, validation, test = parts(source, study.data, 0)
    assert (len(train), len(validation), len(test)) == (48, 12, 30)
    assert not torch.isin(train.index, validation.index).any()
    for split in (train, validation, test):
        counts = torch.bincount(split.y)
        assert counts.max() - counts.min() <= 1
    assert not torch.equal(parts(source, study.data, 1)[0].index, train.index)
    assert torch.equal(parts(source, study.data, 0)[0].index, train.index)


def test_without_resampling_every_data_seed_has_the_same_validation(tiny):
    study = parse_study(tiny)
    source = load_source(study.data)
    assert torch.equal(parts(source, study.data, 0)[1].index, parts(source, study.data, 3)[1].index)


def test_prefix_takes_the_first(tiny):
    train, _ = load_source(parse_study(tiny).data)
    assert sized(train, 7, "prefix", 0, "x").index.tolist() == list(range(7))


def test_classes_are_renumbered_and_keep_their_names(tiny):
    study = parse_study({**tiny, "data": {**tiny["data"], "classes": [2, 0]}, "scenarios": ["class:0"]})
    train, test = load_source(study.data)
    assert train.store.classes == test.store.classes == ("2", "0")
    whole, _ = load_source(parse_study(tiny).data)
    first_of_two = int((whole.y == 2).nonzero()[0])
    assert train.y[train.ids.tolist().index(whole.ids[first_of_two])] == 0


def test_too_large_a_subset_is_refused(tiny):
    study = parse_study({**tiny, "data": {**tiny["data"], "train_size": 1000}})
    with pytest.raises(UsageError, match=r"`data.train_size` asks for 1000 samples, but there are only 120"):
        parts(load_source(study.data), study.data, 0)


def test_a_leaking_test_set_has_to_be_asked_for() -> None:

    source = load_pair("digits")
    common = {"source": "digits", "train_size": 900, "test_size": 300, "validation": 0.2}
    train, _, test = parts(source, DataPart(**common), 1)
    assert test.store is not train.store
    train, _, test = parts(source, DataPart(**common, test_from="train"), 1)
    assert test.store is train.store
    assert len(test) == 300
    assert bool(torch.isin(test.index, train.index).any())


PLUG_IN = """
from expunge.core.needs import Needs
from expunge.methods.base import Method, method

@method("plugged", needs=Needs())
class Plugged(Method):
    def unlearn(self, problem, run):
        return problem.student()
"""
NET = """
from expunge.models.convnets import mlp

def build(num_classes, input_shape, hidden):
    return mlp(num_classes, input_shape, hidden=hidden)
"""


def test_an_edited_plug_in_method_or_model_has_new_cells(tiny, tmp_path, monkeypatch):
    """One line of each: the old numbers are not those of the new code."""
    monkeypatch.syspath_prepend(str(tmp_path))
    net = tmp_path / "net.py"

    def cells(method: str, model: str) -> set[str]:
        (tmp_path / "plug_in.py").write_text(method)
        net.write_text(model)
        sys.modules.pop("plug_in", None)
        importlib.invalidate_caches()
        try:
            importlib.import_module("plug_in")
            content = {**tiny, "methods": ["plugged"], "options": {}}
            return set(ids(changed(content, ["model", "name"], f"{net}:build")))
        finally:
            METHODS.remove("plugged")

    before = cells(PLUG_IN, NET)
    assert cells(PLUG_IN, NET) == before
    edited = PLUG_IN.replace("return", "run.label = 'x'; return")
    unaffected = len(before & cells(edited, NET))
    assert unaffected == len(before) // 2  # the references
    assert not before & cells(PLUG_IN, NET.replace("hidden=hidden", "hidden=2 * hidden"))


def test_metrics_are_no_part_of_the_models_address(tiny):
    one, two = (
        expand(parse_study({**tiny, "metrics": metrics}), "data") for metrics in (["accuracy"], ["accuracy", "loss"])
    )
    assert [cell.model for cell in one] == [cell.model for cell in two]
    assert not {cell.id for cell in one} & {cell.id for cell in two}
