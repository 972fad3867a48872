"""`expunge tune`: equal budgets, the rule by hand, regret, resuming, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from scipy.spatial.distance import jensenshannon
from torch import nn

from expunge.bench import tuning
from expunge.bench.cells import expand
from expunge.bench.reading import load_study, parse_study
from expunge.bench.recipe import Space
from expunge.bench.tuning import Judge, Trial, Tuned, score_of, space_of, tune
from expunge.bench.workbench import Workbench
from expunge.core.errors import ExpungeError, UsageError
from expunge.data.cache import cache_root

STUDY: dict[str, Any] = {
    "name": "t",
    "data": {"source": "digits", "train_size": 300, "test_size": 100},
    "model": {"name": "mlp"},
    "train": {"epochs": 3, "lr": 0.05, "batch_size": 32},
    "scenarios": ["class:3"],
    "methods": ["original", {"name": "finetune", "epochs": 1}, {"name": "neggrad", "label": "NG", "epochs": 1}],
    "tune": {"trials": 3, "spaces": {"NG": {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "clip": [1.0]}}},
}


def recipe(tmp_path: Path, **changed: Any) -> Path:
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changed}))
    return path


def test_the_score_by_hand() -> None:
    def score(**numbers: float) -> float:
        return score_of({"forgetting": 0.0, "retain lost": 0.0, "validation lost": 0.0, **numbers})

    assert score() == 0
    assert score(forgetting=0.3) == pytest.approx(0.3)
    assert score(**{"retain lost": 0.1, "validation lost": 0.05}) == pytest.approx(0.15)
    assert score(**{"retain lost": -0.1}) == 0  # gains make up for nothing


class Constant(nn.Module):
    def __init__(self, label: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(10)[label])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.expand(len(x), 10)


def judge(scenario: str, rule: str = "match") -> Judge:
    data = {**STUDY["data"], "validation": 0.2}
    study = parse_study({**STUDY, "scenarios": [scenario], "tune": {"rule": rule}, "data": data})
    bench = Workbench(study, cache_root())
    return Judge(bench, expand(study, bench.fingerprint())[1])


def test_what_a_model_that_never_saw_the_samples_would_reach() -> None:
    always_three = Constant(3)
    gone = judge("class:3").numbers(always_three)
    assert gone["forget"] == gone["forgetting"] == 1.0  # the class is gone: 0 would be right
    assert gone["validation"] == 0.0  # of the classes that stay
    some = judge("class:target=3,count=10").numbers(always_three)
    assert some["forget"] == 1.0
    assert some["forgetting"] == 0.0  # validation samples of class 3 are all right, too
    wrong = judge("noisy:0.2").numbers(always_three)
    assert wrong["forgetting"] == pytest.approx(abs(wrong["forget"] - (1 - wrong["validation"]) / 9))


def test_rf_jsd_compares_with_the_original_on_unseen_samples() -> None:
    one = judge("random:0.2", "rf-jsd")
    original = one.bench.original(one.cell).model
    near, far = one.numbers(original)["forgetting"], one.numbers(Constant(3))["forgetting"]
    assert 0 <= near < far <= 1
    labels, outputs = one.forget.y, torch.softmax(original(one.forget.inputs()), 1)
    by_hand = 0.0
    for label in labels.unique().tolist():
        p = outputs[labels == label].mean(0).detach().numpy()
        q = torch.softmax(original(one.retained.inputs()), 1)[one.retained.y == label].mean(0).detach().numpy()
        by_hand += float((labels == label).sum()) * jensenshannon(p, q, base=2) ** 2
    assert near == pytest.approx(by_hand / len(labels), abs=1e-5)
    for scenario in ("class:3", "noisy:0.2"):
        with pytest.raises(UsageError, match="rf-jsd cannot judge"):
            judge(scenario, "rf-jsd")


def test_every_method_gets_the_same_budget_and_begins_with_its_own_options(tmp_path: Path) -> None:
    found = tune(recipe(tmp_path), tmp_path / "out")
    assert [one.label for one in found] == ["finetune (epochs=1)", "NG"]
    assert [len(one.trials) for one in found] == [3, 3]
    assert found[0].trials[0].options == {"lr": 0.01, "epochs": 1}
    assert found[1].trials[0].options == {"lr": 0.001, "clip": None}
    assert all(one.regret is None for one in found)
    written = load_study(tmp_path / "out" / "tuned.yaml")
    chosen = {label: given for _, label, _, given in written.method_items()}
    best = found[1].best
    assert best is not None
    assert chosen["NG"] == {"epochs": 1, **best.options}
    assert min(t.score for t in found[1].trials if t.score is not None) == best.score


def test_a_stopped_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe(tmp_path)
    calls: list[str] = []
    real = Workbench.apply

    def counted(self: Workbench, cell: Any, method: Any, seed: int) -> Any:
        calls.append(method.card.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, cell, method, seed)

    monkeypatch.setattr(Workbench, "apply", counted)
    with pytest.raises(KeyboardInterrupt):
        tune(path, tmp_path / "out")
    found = tune(path, tmp_path / "out")
    assert len(calls) == 7  # six trials, and the one that was interrupted
    assert [len(one.trials) for one in found] == [3, 3]
    assert tune(path, tmp_path / "out") == found
    assert len(calls) == 7


def test_regret_is_shown_and_never_chooses(tmp_path: Path) -> None:
    trials = [Trial({"lr": 1}, 0.1, 0.30), Trial({"lr": 2}, 0.2, 0.05), Trial({"lr": 3}, None, None, "diverged")]
    one = Tuned("m", trials)
    assert one.best == trials[0]
    assert one.regret == pytest.approx(0.25)
    found = tune(recipe(tmp_path), tmp_path / "out", oracle=True)
    assert all(one.regret is not None and one.regret >= 0 for one in found)
    kept = json.loads((tmp_path / "out" / "trials.json").read_text())
    assert all(trial["gap"] is not None for one in kept for trial in one["trials"])


def test_a_setting_that_diverges_uses_its_share_of_the_budget(tmp_path: Path) -> None:
    spaces = {"NG": {"lr": [1e30]}}
    found = tune(recipe(tmp_path, tune={"trials": 4, "spaces": spaces}), tmp_path / "out")
    failed = [trial for trial in found[1].trials if trial.failed]
    assert failed
    assert len(found[1].trials) == 4
    assert found[1].best is not None
    assert found[1].best.options["lr"] != 1e30


def test_spaces(tmp_path: Path) -> None:
    study = load_study(recipe(tmp_path))
    assert space_of(study, "finetune (epochs=1)") == {
        "lr": Space(low=0.001, high=0.1, log=True),
        "epochs": Space(values=(1, 2)),
    }
    narrow = load_study(recipe(tmp_path, tune={"spaces": {"NG": {"lr": {"low": 0.5, "high": 0.9}, "batch_size": [8]}}}))
    assert space_of(narrow, "NG") == {"lr": Space(low=0.001, high=0.9), "batch_size": Space(values=(128, 8))}


@pytest.mark.parametrize(
    ("part", "phrase"),
    [
        ({"spaces": {"MG": {}}}, "NG"),
        ({"spaces": {"NG": {"lrr": [1]}}}, "lrr"),
        ({"spaces": {"NG": {"lr": {"low": 2.0, "high": 1.0}}}}, "below"),
        ({"spaces": {"NG": {"lr": {"low": 0.0, "high": 1.0, "log": True}}}}, "positive"),
        ({"spaces": {"NG": {"lr": {"high": 1.0}}}}, "low"),
        ({"trials": 0}, "trials"),
        ({"trial": 3}, "trial"),
    ],
)
def test_spaces_that_do_not_fit_are_refused(tmp_path: Path, part: dict[str, Any], phrase: str) -> None:
    with pytest.raises(UsageError, match=phrase):
        tune(recipe(tmp_path, tune=part), tmp_path / "out")


def test_trials_of_other_settings_never_count(tmp_path: Path) -> None:
    tune(recipe(tmp_path), tmp_path / "out")
    with pytest.raises(UsageError, match="other settings"):
        tune(recipe(tmp_path, train={"epochs": 4}), tmp_path / "out")


def test_words_of_the_recipe_do_not_matter_and_two_searches_do(tmp_path: Path) -> None:
    tune(recipe(tmp_path), tmp_path / "out")
    tune(recipe(tmp_path, title="Another title"), tmp_path / "out")
    with FileLock(tmp_path / "out" / "tuning.lock"), pytest.raises(ExpungeError, match="another process"):
        tune(recipe(tmp_path), tmp_path / "out")


def test_the_search_is_no_part_of_a_cell(tmp_path: Path) -> None:
    with_tune, without = parse_study(STUDY), parse_study({k: v for k, v in STUDY.items() if k != "tune"})
    assert [cell.id for cell in expand(with_tune, "x")] == [cell.id for cell in expand(without, "x")]


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UsageError, match=r"expunge\[tune\]"):
        tuning.tune(recipe(tmp_path), tmp_path / "out")
