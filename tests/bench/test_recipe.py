"""Recipes: what is refused and in which words, what `extends` and overrides do, and the published schema."""

from __future__ import annotations

import json

import pytest
import yaml
from jsonschema import Draft202012Validator

from expunge.bench.library import recipes
from expunge.bench.reading import load_study, override, parse_study
from expunge.bench.schema import json_schema
from expunge.core.errors import UsageError
from expunge.core.yaml_text import parse_yaml
from expunge.methods import METHODS

WRONG = [
    ({"mehods": []}, "unknown key `mehods`; did you mean `methods`?"),
    ({"methods": ["original", {"name": "scrub", "alhpa": 1}]}, "unknown key `methods[1].alhpa`; did you mean `alpha`?"),
    ({"methods": [{"nme": "scrub"}]}, "`methods[0].name` is required."),
    ({"methods": ["scrb"]}, "methods[0]: unknown method `scrb`; did you mean `scrub`?"),
    ({"methods": [3]}, "`methods[0]` should be"),
    ({"methods": "al"}, "unknown method `al`"),
    ({"methods": ["scrub/large-bb"]}, "did you mean `large-rb`?"),
    ({"methods": ["scrub", {"name": "scrub", "label": "again"}]}, "`scrub` and `again` have equal settings"),
    ({"methods": ["scrub", {"name": "scrub", "label": "scrub", "lr": 0.1}]}, "labelled `scrub`"),
    ({"options": {"scrub": {"alhpa": 1}}, "methods": ["scrub"]}, "unknown key `options.scrub.alhpa`"),
    ({"options": {"scrbu": {}}}, "unknown key `options.scrbu`; did you mean `scrub`?"),
    ({"options": {"finetune": {"lr": -1}}}, "options.finetune: finetune: `lr` should be greater than 0, got -1."),
    ({"skip": ["scrbu"]}, "unknown key `skip.scrbu`; did you mean `scrub`?"),
    ({"data": {"source": "digits", "validaton": 0.1}}, "unknown key `data.validaton`; did you mean `validation`?"),
    ({"data": {"source": "digits", "validation": 2}}, "`data.validation` should be less than 1, got 2."),
    ({"model": {}}, "`model.name` is required."),
    ({"train": {"epoch": 3}}, "unknown key `train.epoch`; did you mean `epochs`?"),
    ({"train": {"lr": "fast"}}, "train: recipe: `lr` should be a valid number"),
    ({"pretrain": {"source": "digits", "recipe": {"epoch": 1}}}, "unknown key `pretrain.recipe.epoch`"),
    ({"scenarios": ["clas:1"]}, "scenarios[0]: unknown scenario `clas`; did you mean `class`?"),
    ({"scenarios": [{"name": "class", "targt": 1}]}, "unknown key `scenarios[0].targt`; did you mean `target`?"),
    ({"scenarios": []}, "`scenarios`"),
    ({"metrics": ["accuracy", "mia-acu"]}, "metrics[1]: unknown metric `mia-acu`; did you mean `mia-auc`?"),
    ({"metrics": [{"name": "mia", "splits": 0}]}, "metrics[0]: mia: `splits` should be"),
    ({"seeds": []}, "`seeds` is empty"),
    ({"seeds": [0, 0]}, "names the same seeds twice"),
    ({"seeds": {"dta": [0]}}, "unknown key `seeds.dta`; did you mean `data`?"),
    ({"seeds": {"data": [0, 1], "train": [0, 1, 2]}}, "`data` has 2 values, the longest list 3"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words[:40] for _, words in WRONG])
def test_a_wrong_recipe_is_one_sentence_with_the_key(tiny, change, words):
    with pytest.raises(UsageError) as caught:
        parse_study({**tiny, **change}, "study.yaml")
    assert str(caught.value).startswith("study.yaml: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reference_is_always_there_and_first(tiny):
    assert [label for label, _ in parse_study(tiny).named_methods()] == ["retrain", "original", "finetune", "SCRUB+R"]


def test_all_covers_every_registered_method_with_its_options(tiny):
    study = parse_study({**tiny, "methods": "all", "skip": ["laf"]})
    methods = dict(study.named_methods())
    assert set(methods) == set(METHODS.names()) - {"laf"}
    assert methods["finetune"].epochs == 1


def test_seeds_are_paired_or_repeated(tiny):
    rows = parse_study({**tiny, "seeds": {"unlearn": [4, 5], "train": [7]}}).seed_rows()
    assert rows == [
        {"data": 0, "train": 7, "unlearn": 4, "evaluate": 0},
        {"data": 0, "train": 7, "unlearn": 5, "evaluate": 0},
    ]


def test_metrics_take_options(tiny):
    found = parse_study({**tiny, "metrics": ["accuracy", {"name": "mia-repeated", "repeats": 60}]}).named_metrics()
    assert [metric.card.name for metric in found] == ["accuracy", "mia-repeated"]
    assert found[1].repeats == 60


BASE = """
name: base
data: {source: digits, validation: 0.1}
model: {name: mlp}
train: {epochs: 9, lr: 1e-3}
scenarios: ["class:1"]
methods: [finetune]
options: {finetune: {epochs: 1}}
"""


def test_extends_merges_mappings_and_replaces_lists(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "top.yaml").write_text("extends: base.yaml\nname: top\ntrain: {epochs: 2}\nmethods: [scrub]\n")
    study = load_study(tmp_path / "top.yaml", ["data.train_size=50", "seeds=[3, 4]", "train.batch_size=16"])
    assert (study.name, study.recipe().epochs, study.recipe().lr, study.recipe().batch_size) == ("top", 2, 1e-3, 16)
    assert (study.data.train_size, study.data.validation) == (50, 0.1)
    assert [label for label, _ in study.named_methods()] == ["retrain", "scrub"]
    assert [row["unlearn"] for row in study.seed_rows()] == [3, 4]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("extends: self.yaml\n", "extends itself"),
        ("extends: gone.yaml\n", "does not exist"),
        ("- a\n", "must be a mapping"),
        ("name: [\n", "is not valid YAML in line 2"),
        (f"{BASE}train: {{epochs: 1}}\n", "the key `train` is given twice"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, content, words):
    (tmp_path / "self.yaml").write_text(content)
    with pytest.raises(UsageError, match=words) as caught:
        load_study(tmp_path / "self.yaml")
    assert ".yaml" in str(caught.value)


@pytest.mark.parametrize("text", ["train.epochs", "=3", "name.first=3", "seeds=["])
def test_a_wrong_override_is_refused(text):
    with pytest.raises(UsageError):
        override({"name": "x"}, text)


def test_schema_knows_the_options_of_every_method():
    schema = json.loads(json_schema())
    assert set(schema["properties"]["options"]["properties"]) == set(METHODS.names())
    scrub = schema["properties"]["options"]["properties"]["scrub"]
    assert scrub["properties"]["alpha"]["minimum"] == 0
    assert scrub["additionalProperties"] is False
    text = json.dumps(schema)
    missing = [ref for ref in _references(schema) if ref.removeprefix("#/$defs/") not in schema["$defs"]]
    assert not missing
    assert "scrub/large-rb" in text


def _validator() -> Draft202012Validator:
    schema = json.loads(json_schema())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_schema_takes_our_recipes_and_the_short_forms():
    validator = _validator()
    for path in recipes().values():
        # As JSON has it: text keys, no dates.
        assert not list(validator.iter_errors(json.loads(json.dumps(parse_yaml(path.read_text(encoding="utf-8"))))))
    short = {
        "name": "a", "data": "digits", "model": "mlp", "seeds": 3, "scenarios": "class:3", "methods": "scrub",
        "metrics": "accuracy", "published": "scrub/x", "tune": {"spaces": {"scrub": {"lr": [1, 2]}}},
    }  # fmt: skip
    validator.validate(short)
    validator.validate(short | {"methods": ["my.py:Mine", {"name": "my.py:Mine", "label": "fast", "lr": 1}]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"nmae": "a"},
        {"data": {"sorce": "digits"}},
        {"seeds": "three"},
        {"methods": ["scrubb"]},
        {"methods": [{"name": "scrub", "alhpa": 1}]},
        {"methods": [{"name": "scrub", "alpha": -1}]},
        {"metrics": ["acuracy"]},
        {"train": {"epoch": 3}},
        {"options": {"scrub": {"alhpa": 1}}},
    ],
)
def test_schema_refuses_what_the_reader_refuses(wrong):
    assert list(_validator().iter_errors(wrong))


def _references(node):
    if isinstance(node, dict):
        yield from ([node["$ref"]] if "$ref" in node else [])
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_of_the_library_is_valid(name):
    assert load_study(recipes()[name]).name


def test_the_library_has_what_the_documentation_names():
    assert {"demo", "smoke"} <= set(recipes())


def test_a_reference_that_is_listed_cannot_be_left_out(tiny):
    with pytest.raises(UsageError, match="lists retrain"):
        parse_study({**tiny, "retrain": False, "methods": ["retrain", "finetune"]})
    assert parse_study(tiny).reference().card.name == "retrain"
    assert parse_study({**tiny, "retrain": False}).reference() is None


def test_default_metrics_may_be_joined_by_costly_ones(tiny):
    study = parse_study({**tiny, "metrics": ["default", "relearn"]})
    names = [metric.card.name for metric in study.named_metrics()]
    assert [metric.card.name for metric in study.asked_metrics()] == ["relearn"]
    assert {"accuracy", "gap", "relearn"} <= set(names)
    assert len(parse_study(tiny).named_metrics()) == len(names) - 1


SHORT = {"name": "x", "data": "digits", "model": "mlp", "scenarios": "class:3", "methods": "finetune", "seeds": 3}


def test_short_forms():
    study = parse_study(SHORT)
    assert (study.data.source, study.model.name) == ("digits", "mlp")
    assert [row["data"] for row in study.seed_rows()] == [0, 1, 2]
    assert [label for label, _ in study.named_methods()] == ["retrain", "finetune"]
    assert [label for label, _ in study.named_scenarios()] == ["class:3"]
    assert [metric.card.name for metric in parse_study({**SHORT, "metrics": "accuracy"}).asked_metrics()] == [
        "accuracy"
    ]


def test_short_forms_can_be_overridden():
    content = dict(SHORT)
    override(content, "model=cnn")
    override(content, "seeds=2")
    assert parse_study(content).model.name == "cnn"
    assert len(parse_study(content).seed_rows()) == 2


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ("finetune", "not among `methods`"),
        (["finetune", {"name": "scrub", "rewind": True}], "listed as {'name': 'scrub', 'rewind': True}"),
        (["scrub/small-rb"], "listed as 'scrub/small-rb'"),
    ],
)
def test_options_that_no_method_takes_up_are_refused(methods, words, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**SHORT, "methods": methods, "options": {"scrub": {"alpha": 0.1}}}))
    with pytest.raises(UsageError, match=r"`options\.scrub` is taken up by no method") as caught:
        load_study(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("more", [{"methods": ["scrub"]}, {"methods": "all"}])
def test_options_of_listed_methods_and_of_all_are_taken_up(more, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**SHORT, **more, "options": {"scrub": {"alpha": 0.1}}}))
    assert any(method.card.name == "scrub" and method.alpha == 0.1 for _, method in load_study(path).named_methods())


def test_an_override_that_no_method_takes_up_is_refused(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "top.yaml").write_text("extends: base.yaml\nname: top\nmethods: [scrub]\n")
    load_study(tmp_path / "top.yaml", ["options.scrub.alpha=0.1"])  # what it inherits for others is no fault of its own
    with pytest.raises(UsageError, match=r"`options\.neggrad` is taken up by no method"):
        load_study(tmp_path / "top.yaml", ["options.neggrad.lr=0.1"])
