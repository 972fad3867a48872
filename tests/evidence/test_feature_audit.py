"""What is left below the answers: each number against an oracle, the flags on models whose state is known."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import expunge
from expunge.core.errors import UsageError
from expunge.data.cache import cache_root
from expunge.data.convert import as_split
from expunge.data.sources import load_pair
from expunge.evidence.feature_audit import FEATURE_STATISTICS, FeatureAudit, audit_features, judge
from expunge.evidence.feature_measures import (
    AuditSamples,
    FeatureSettings,
    grams,
    layer_rows,
    relearn_rows,
    sample_evenly,
    split_in_halves,
)
from expunge.evidence.probe import cross_predict, fit_probe
from expunge.models.anatomy import anatomy
from expunge.models.build import build_model
from expunge.testing.toys import toy_images, toy_problem

CPU = torch.device("cpu")
FAST = {"probe_samples": 100, "samples": 32, "relearn_steps": 3, "layer_samples": 32}


def clouds(count: int, seed: int, classes: int = 3, dims: int = 5) -> tuple[Tensor, Tensor]:
    """Overlapping clouds; class 0 is twice as large as the others."""
    g = torch.Generator().manual_seed(seed)
    y = (torch.arange(count) % (classes + 1) - 1).clamp_min(0)
    centres = torch.randn(classes, dims, generator=torch.Generator().manual_seed(9))
    return 3 * (torch.randn(count, dims, generator=g) + 1.5 * centres[y]) + 7, y


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_probe_is_scikit_learns_weighted_logistic_regression(penalty: float) -> None:
    x, y = clouds(200, 0)
    x[:, 4] = 5.0  # a dead unit
    unseen = clouds(300, 1)[0]
    mine = fit_probe(x, y, penalty=penalty)
    scaler = StandardScaler().fit(x.double().numpy())
    theirs = LogisticRegression(C=1 / penalty, class_weight="balanced", tol=1e-10, max_iter=2000)
    theirs.fit(scaler.transform(x.double().numpy()), y.numpy())
    unseen[:, 4] = 5.0
    wanted = theirs.decision_function(scaler.transform(unseen.double().numpy()))
    found = mine.logits(unseen).numpy()
    assert found - found.mean(1, keepdims=True) == pytest.approx(wanted - wanted.mean(1, keepdims=True), abs=5e-3)
    expected = theirs.predict_proba(scaler.transform(unseen.double().numpy()))
    assert mine.probabilities(unseen, 4).numpy() == pytest.approx(np.column_stack([expected, np.zeros(300)]), abs=2e-3)


def test_probe_keeps_the_names_of_classes_and_reads_no_others() -> None:
    x, y = clouds(80, 0)
    found = fit_probe(x, y * 4 + 1).probabilities(x, 11)
    assert found.sum(0).nonzero().flatten().tolist() == [1, 5, 9]
    assert found.sum(1).tolist() == pytest.approx([1.0] * 80)
    assert fit_probe(x, torch.full_like(y, 2)).probabilities(x, 3).argmax(1).unique().tolist() == [2]


def test_a_gone_class_is_read_by_a_probe_that_saw_the_other_half() -> None:
    x, y = clouds(160, 0)
    kept, gone = (x[y < 2], y[y < 2]), torch.tensor([2])
    mine = (x[y == 2], y[y == 2])
    half = torch.arange(len(mine[1])) % 2
    found, _ = cross_predict(kept, mine, half, gone, 3)
    for one in (0, 1):
        probe = fit_probe(torch.cat([kept[0], mine[0][half != one]]), torch.cat([kept[1], mine[1][half != one]]))
        assert torch.equal(found[half == one], probe.probabilities(mine[0][half == one], 3))
    assert float((found.argmax(1) == 2).double().mean()) > 0.7
    # Of classes that stay no forgotten sample is shown: labels that make no sense do not matter.
    turned, _ = cross_predict((x[:100], y[:100]), (x[100:], 2 - y[100:]), torch.arange(60) % 2, gone[:0], 3)
    assert torch.equal(turned, fit_probe(x[:100], y[:100]).probabilities(x[100:], 3))


def test_own_noise_is_not_read() -> None:
    """In more dimensions than samples a probe knows by heart what it saw; what it did not see stays at chance."""
    x = torch.randn(120, 300, generator=torch.Generator().manual_seed(0))
    y = torch.arange(120) % 2
    mine = (x[60:], y[60:] + 2)
    found, probe = cross_predict((x[:60], y[:60]), mine, torch.arange(60) // 2 % 2, torch.tensor([2, 3]), 4)
    assert float((found.argmax(1) == mine[1]).double().mean()) < 0.5
    assert float((probe.probabilities(x[:60], 4).argmax(1) == y[:60]).double().mean()) == 1.0


def test_halves_and_draws_are_even() -> None:
    y = torch.tensor([0] * 7 + [1] * 2 + [2] * 11)
    half = split_in_halves(y, torch.Generator().manual_seed(0))
    assert int((half == 0).sum()) == 10
    for c in range(3):
        sizes = [int(((y == c) & (half == one)).sum()) for one in (0, 1)]
        assert abs(sizes[0] - sizes[1]) <= 1
    split = as_split((torch.zeros(20, 1), y), name="retain")
    drawn = sample_evenly(split, 8, seed=3)
    assert torch.bincount(drawn.y).tolist() == [3, 2, 3]
    assert drawn.index.tolist() == sorted(set(drawn.index.tolist()))
    assert sample_evenly(split, 8, seed=3).index.tolist() == drawn.index.tolist()
    assert any(sample_evenly(split, 8, seed=s).index.tolist() != drawn.index.tolist() for s in range(4, 8))


def test_what_is_taught_is_not_what_is_looked_at() -> None:
    """Every input is its own direction: teaching one sample of a linear model cannot touch another."""
    x, y = torch.eye(40), torch.arange(40) % 2
    forget, retain = (as_split((x[part], y[part]), name="part") for part in (slice(0, 12), slice(12, 40)))
    model = nn.Linear(40, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.stack([y.float(), 1 - y.float()]))  # wrong everywhere
    draw = AuditSamples.draw(forget, retain, retain, 0, FeatureSettings(relearn_steps=60, relearn_lr=0.1))
    rows = list(relearn_rows("m", model, draw, CPU))
    curve = {part: [r.value for r in rows if r.statistic == "relearn accuracy" and r.part == part] for part in
             ("taught", "held out")}  # fmt: skip
    assert len(curve["taught"]) == 61
    assert curve["taught"][0] == 0.0
    assert curve["taught"][-1] == 1.0
    assert curve["held out"] == [0.0] * 61
    assert rows[-1].statistic == "relearn accuracy"
    assert rows[-1].value == 0.0
    assert model.weight.requires_grad
    assert model.weight.grad is None


def brute_cka(x: Tensor, y: Tensor) -> float:
    """Unbiased HSIC of Song et al. with traces of explicit products."""
    n = len(x)
    k, other = (m.double() @ m.double().T for m in (x, y))
    k, other = k.fill_diagonal_(0), other.fill_diagonal_(0)
    one = torch.ones(n, dtype=torch.float64)

    def hsic(a: Tensor, b: Tensor) -> float:
        return float((a @ b).trace() + one @ a @ one * (one @ b @ one) / ((n - 1) * (n - 2))
                     - 2 / (n - 2) * (one @ a @ b @ one))  # fmt: skip

    return hsic(k, other) / (hsic(k, k) * hsic(other, other)) ** 0.5


def outputs_of(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    found: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda *given: found.append(given[2].flatten(1)))
    model.eval()(x)
    handle.remove()
    return found[0]


def test_layer_cka_by_brute_force() -> None:
    problem = toy_problem()
    other = toy_problem(epochs=1).model
    draw = AuditSamples.draw(problem.forget, problem.retain, problem.test, 0, FeatureSettings())
    rows = list(layer_rows("m", grams(other, draw, CPU), grams(problem.model, draw, CPU)))
    assert draw.cka_pair is not None
    assert [len(split) for split in draw.cka_pair] == [30, 30]
    gaps = []
    with torch.no_grad():
        for layer in ("conv", "norm", "hidden"):
            values = []
            for part, split in zip(("forgotten", "others"), draw.cka_pair, strict=True):
                outputs = [outputs_of(model, layer, split.inputs()) for model in (other, problem.model)]
                values.append(brute_cka(*outputs))
                found = [r.value for r in rows if r.part == layer and r.statistic == f"layer CKA, {part}"]
                assert found == [pytest.approx(values[-1], abs=1e-4)]
            gaps.append(values[0] - values[1])
    assert rows[-1].value == pytest.approx(np.mean(gaps), abs=1e-4)
    assert "head" not in {row.part for row in rows}


ORIGINAL = {"probe confidence": 1.0, "misalignment": 0.0, "relearn accuracy": 0.9, "layer CKA gap": 0.0}
RETRAINED = {"probe confidence": 0.8, "misalignment": 0.1, "relearn accuracy": 0.2, "layer CKA gap": -0.1}


def numbers(unlearned: dict[str, float], original: dict[str, float] | None = None) -> dict[str, dict[str, float]]:
    found = {"original": {**ORIGINAL, **(original or {})}, "unlearned": {**RETRAINED, **unlearned}}
    steps = {f"retrained {i}": 0.002 * i - 0.005 for i in range(6)}
    return found | {name: {key: value + step for key, value in RETRAINED.items()} for name, step in steps.items()}


@pytest.mark.parametrize(
    ("unlearned", "original", "flagged", "silent"),
    [
        ({}, {}, [], []),
        (ORIGINAL, {}, ["probe confidence", "relearn accuracy", "layer CKA gap"], []),
        ({"probe confidence": 0.9}, {}, ["probe confidence"], []),
        ({"probe confidence": 0.7, "relearn accuracy": 0.0, "layer CKA gap": -0.3}, {}, [], []),  # the other side
        ({"misalignment": 0.9}, {}, ["misalignment"], []),
        ({"misalignment": 0.0}, {}, [], []),
        ({"probe confidence": 0.82}, {}, [], []),  # clear, but within the margin
        (
            {"probe confidence": 0.9},
            {"probe confidence": 0.802},
            [],
            ["probe confidence"],
        ),  # nothing to be on the side of
    ],
)
def test_flags_from_numbers(
    unlearned: dict[str, float], original: dict[str, float], flagged: list[str], silent: list[str]
) -> None:
    found, flags, notes = judge(numbers(unlearned, original), [f"retrained {i}" for i in range(6)], FeatureSettings())
    words = {"probe confidence": "linear classifier", "misalignment": "give the right answer", "relearn accuracy":
             "remembers them", "layer CKA gap": "inner layers"}  # fmt: skip
    assert [one.name for one in found] == list(FEATURE_STATISTICS)
    assert [name for name in FEATURE_STATISTICS if any(words[name] in flag for flag in flags)] == flagged
    assert len(flags) == len(flagged)
    assert [note.split(" does not tell")[0] for note in notes] == silent


def test_noisy_references_accuse_nobody() -> None:
    table = numbers(ORIGINAL)
    for i in range(6):
        table[f"retrained {i}"] = {key: value + 0.5 * (-1) ** i for key, value in RETRAINED.items()}
    found, flags, notes = judge(table, [f"retrained {i}" for i in range(6)], FeatureSettings())
    assert (flags, len(notes)) == ([], 3)
    assert not any(one.equivalent for one in found)


@pytest.fixture(scope="module")
def world() -> dict[str, Any]:
    """600 of scikit-learn's digits; the threes are to be forgotten."""
    train, test = load_pair("digits", cache=cache_root())
    train = train.take(train.index[:600])
    gone = train.y == 3
    forget, retain = train.take(train.index[gone], "forget"), train.take(train.index[~gone], "retain")

    def trained(split: Any, seed: int) -> nn.Module:
        model = build_model("mlp", num_classes=10, input_shape=(1, 8, 8), seed=seed, options={"hidden": 64})
        recipe = {"epochs": 12, "lr": 0.05, "batch_size": 64}
        return expunge.train(model, split, recipe=recipe, seed=seed, device="cpu").model

    original = trained(train, 0)
    return {
        "original": original,
        "silenced": silenced(original),
        "retrained": [trained(retain, seed) for seed in range(1, 6)],
        "fresh": trained(retain, 99),
        "splits": {"forget": forget, "retain": retain, "test": test},
    }


def silenced(model: nn.Module) -> nn.Module:
    """The same features, and a last layer that never names class 3."""
    quiet = copy.deepcopy(model)
    head = anatomy(quiet, torch.zeros(2, 1, 8, 8)).head_module
    with torch.no_grad():
        head.get_parameter("weight")[3] = 0
        head.get_parameter("bias")[3] = -20
    return quiet


def scrambled(model: nn.Module) -> nn.Module:
    """The same features, and a last layer that answers at random."""
    broken = copy.deepcopy(model)
    with torch.no_grad():
        for p in anatomy(broken, torch.zeros(2, 1, 8, 8)).head_module.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))
    return broken


def look(world: dict[str, Any], unlearned: nn.Module, **more: Any) -> FeatureAudit:
    given = {"retrained": world["retrained"], "device": "cpu", **world["splits"], **more}
    return audit_features(world["original"], unlearned, **given)


def test_a_silenced_head_is_seen_through_and_a_retrained_model_is_not_accused(world: dict[str, Any]) -> None:
    found = look(world, world["silenced"])
    assert any("classifier on the model's inner features" in flag for flag in found.flags), found.numbers()
    values = found.numbers()
    assert values["unlearned"]["probe confidence"] == values["original"]["probe confidence"]
    assert values["original"]["misalignment"] < 0.05 < 0.7 < values["unlearned"]["misalignment"]
    assert abs(values["unlearned"]["layer CKA gap"]) < 1e-6 < -values["retrained 1"]["layer CKA gap"]
    clean = look(world, world["fresh"])
    assert clean.flags == []
    assert [one.name for one in clean.comparisons] == list(FEATURE_STATISTICS)
    again = look(world, scrambled(world["original"]), retrained=world["retrained"][:3])
    assert any("remembers them" in flag for flag in again.flags), again.numbers()


def test_memorised_single_samples_are_seen_too(world: dict[str, Any]) -> None:
    """Wrong labels can only be known by heart; a destroyed head does not wipe them from the features."""
    images, labels = toy_images(160, seed=0)
    labels[:40] = (labels[:40] + torch.randint(1, 4, (40,), generator=torch.Generator().manual_seed(0))) % 4
    data = as_split((images, labels), name="train")
    splits = {"forget": data.take(range(40)), "retain": data.take(range(40, 160))}
    splits["test"] = as_split(toy_images(80, seed=1), name="test")

    def trained(split: Any, seed: int) -> nn.Module:
        model = build_model("mlp", num_classes=4, input_shape=(1, 8, 8), seed=seed)
        recipe = {"epochs": 40, "lr": 0.05, "batch_size": 32, "weight_decay": 0.0}
        return expunge.train(model, split, recipe=recipe, seed=seed, device="cpu").model

    original = trained(data, 0)
    again = [trained(splits["retain"], seed) for seed in range(1, 6)]
    found = audit_features(original, scrambled(original), again, **splits, device="cpu")
    assert any("classifier on the model's inner features" in flag for flag in found.flags), found.numbers()
    assert audit_features(original, trained(splits["retain"], 99), again, **splits, device="cpu").flags == []


def test_models_and_the_global_generator_are_left_alone(world: dict[str, Any]) -> None:
    models = [world["original"], world["silenced"], *world["retrained"][:2]]
    models[1].train()
    models[2][1].eval()
    next(models[3].parameters()).requires_grad_(False)

    def state(model: nn.Module) -> tuple[Any, ...]:
        return (
            [module.training for module in model.modules()],
            [(p.requires_grad, p.device, p.grad is None, p.data_ptr()) for p in model.parameters()],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
            {name: value.clone() for name, value in model.state_dict().items()},
        )

    before, rng = [state(model) for model in models], torch.get_rng_state()
    given: dict[str, Any] = {"retrained": models[2:], "settings": FAST}
    first = look(world, models[1], **given)
    for (*then, weights), (*now, after) in zip(before, [state(model) for model in models], strict=True):
        assert then == now
        assert all(torch.equal(weights[name], after[name]) for name in weights)
    assert torch.equal(rng, torch.get_rng_state())
    models[1].eval()
    next(models[3].parameters()).requires_grad_(True)
    assert look(world, models[1], **given).numbers() == first.numbers()  # bits, whatever the modes
    assert look(world, models[1], **given, seed=1).numbers() != first.numbers()


def test_without_retrained_models_there_are_numbers_only(world: dict[str, Any]) -> None:
    found = look(world, world["silenced"], retrained=[])
    assert (found.comparisons, found.flags) == ([], [])
    assert "no retrained models" in found.notes[-1]
    frame = found.frame()
    assert set(frame["model"]) == {"original", "unlearned"}
    assert set(frame["statistic"]) >= {*FEATURE_STATISTICS, "relearn loss", "layer CKA, forgotten"}
    assert frame["step"].max() == 20
    with pytest.raises(UsageError, match="one retrained model has no spread"):
        look(world, world["silenced"], retrained=world["retrained"][:1])
    with pytest.raises(UsageError, match="`relearn_steps` should be greater"):
        look(world, world["silenced"], settings={"relearn_steps": 0})
    with pytest.raises(UsageError, match="the retain set has none"):
        look(world, world["silenced"], retain=world["splits"]["retain"].without_labels())


def test_without_retained_samples_unseen_ones_take_their_place(world: dict[str, Any]) -> None:
    found = look(world, world["silenced"], retain=None)
    assert any("classifier on the model's inner features" in flag for flag in found.flags)
    assert not any(row.part == "test" for row in found.rows)  # the probe saw them


def test_what_cannot_be_measured_is_left_out_and_said(world: dict[str, Any]) -> None:
    forget = world["splits"]["forget"]
    one = look(world, world["fresh"], forget=forget.take([int(forget.index[0])]), settings=FAST)
    assert [note.split(":")[0] for note in one.notes if "left out" in note] == [
        "relearning left out",
        "layers left out",
    ]
    other = build_model("small-cnn", num_classes=10, input_shape=(1, 8, 8), seed=0)
    mixed = look(world, other, settings=FAST, retrained=world["retrained"][:2])
    assert any("layers of unlearned are not those" in note for note in mixed.notes)
    assert "layer CKA gap" not in {one.name for one in mixed.comparisons}


def test_an_audit_looks_below_and_says_what_is_hidden(world: dict[str, Any]) -> None:
    def audit(model: nn.Module, residue: bool) -> expunge.Verdict:
        return expunge.audit(
            world["original"], model, retrained=world["retrained"][:3], resamples=5, device="cpu", features=residue,
            **world["splits"],
        )  # fmt: skip

    plain, deep = audit(world["silenced"], False), audit(world["silenced"], True)
    assert plain.features is None
    assert ("representation", "it was switched off (features=False)") in plain.unmeasured
    assert deep.features is not None
    assert "forgotten" not in (plain.label, deep.label)
    assert set(FEATURE_STATISTICS) <= {one.name for one in deep.comparisons}
    assert any("features of the samples to forget are unchanged" in reason for reason in deep.reasons), deep
    known = audit(world["original"], True)
    assert known.label == "not forgotten"


def test_relearning_that_fails_is_said_and_stops_nothing(world: dict[str, Any]) -> None:
    class Constant(nn.Module):
        """Outputs that depend on no weight: nothing can be taught."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x).detach()

    found = look(world, Constant(world["silenced"]), settings=FAST)
    assert any(what == "relearning" for what, _ in found.left_out)
    verdict = expunge.audit(
        world["original"], Constant(world["fresh"]), retrained=world["retrained"][:3], device="cpu", **world["splits"]
    )
    assert verdict.label != "forgotten"
    assert any("relearning" in what for what, _ in verdict.unmeasured)
