"""LAF from its equations, and the promises its papers' readers rely on: no label, no touched head, no touched norm."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import expunge
from expunge.api import evaluate, scenario
from expunge.api.unlearn import unlearn
from expunge.core.errors import AccessError, UsageError
from expunge.core.run import Run
from expunge.core.seeds import derive
from expunge.data.sources import load_pair
from expunge.data.split import Batch, Split
from expunge.methods.base import make_method
from expunge.methods.laf import LAF, LAFBase, LAFRepair, alignment, phi
from expunge.methods.problem import label_budget, restrict
from expunge.models.build import build_model
from expunge.numerics.vae import VAE, train_vae, vae_loss
from expunge.testing.conformance import run, same, weights
from expunge.testing.toys import ToyNet, ToyProblem, toy_problem
from expunge.training.recipe import Recipe

SMALL: dict[str, Any] = {"max_drop": None, "epochs": 2, "lr_ue": 1e-2, "lr_ra": 1e-3, "batch_size": 8, "vae_epochs": 2}


# -- equations ---------------------------------------------------------------------------------------------------------


def test_phi_golden_values_and_slope() -> None:
    assert phi(torch.tensor([0.0, 1.0, 3.0])).tolist() == pytest.approx([1, 1.6487213, 2.1170000], abs=5e-7)
    for d, slope in ((0.0, 1.0), (1.0, 0.41), (10.0, 0.021), (119.0, 1.9e-4), (160.0, 1.0e-4)):
        x = torch.tensor(d, dtype=torch.float64, requires_grad=True)
        phi(x).backward()
        assert float(x.grad) == pytest.approx(slope, rel=0.06)  # the specification gives two digits
    assert float(phi(torch.tensor(1e6))) < math.e + 1e-5


@pytest.mark.parametrize(("retained", "forgotten", "value"), [(32, 32, -110.9035), (32, 8, -66.5421)])
def test_alignment_of_equal_networks(retained: int, forgotten: int, value: float) -> None:
    assert float(alignment(torch.zeros(retained), torch.zeros(forgotten), tau=5.0)) == pytest.approx(value, abs=1e-4)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.1, 30), st.integers(0, 10_000), st.booleans())
def test_both_forms_of_the_alignment_agree(retained: int, forgotten: int, tau: float, seed: int, both: bool) -> None:
    """sum_r log( exp(c_r) / sum_u exp(c_u / tau) ), term by term in NumPy."""
    rng = np.random.default_rng(seed)
    kept, gone = rng.uniform(0, 2, retained), rng.uniform(0, 2, forgotten)
    terms = [np.log(np.exp(c / (tau if both else 1)) / np.exp(gone / tau).sum()) for c in kept]
    ours = alignment(torch.tensor(kept), torch.tensor(gone), tau, both)
    assert float(ours) == pytest.approx(sum(terms), rel=1e-9, abs=1e-9)


def test_alignment_falls_when_the_forgotten_move_and_rises_when_the_kept_drift() -> None:
    still = torch.zeros(32)
    rest = alignment(still, still, 20.0)
    assert alignment(still, torch.full((32,), 0.5), 20.0) < rest < alignment(torch.full((32,), 0.5), still, 20.0)


@pytest.mark.parametrize(("latent", "size"), [(8, 75_088), (16, 75_872)])
def test_vae_sizes(latent: int, size: int) -> None:
    assert sum(p.numel() for p in VAE(256, latent).parameters()) == size


def test_vae_loss_by_hand() -> None:
    torch.manual_seed(0)
    vae, e = VAE(5, 3), torch.randn(7, 5)
    loss = vae_loss(vae, e, torch.Generator().manual_seed(4), 0.025)
    eps = torch.randn(7, 3, generator=torch.Generator().manual_seed(4))
    total = 0.0
    for i in range(7):
        hidden = vae.encoder(e[i])
        mu, s = vae.mu(hidden), vae.log_variance(hidden)
        v = torch.sigmoid(vae.out(vae.decoder(mu + torch.exp(s / 2) * eps[i])))
        kl = -0.5 * sum(torch.log(torch.exp(s[j]) + 1e-8) + 1 - mu[j] ** 2 - torch.exp(s[j]) for j in range(3))
        total += float(((v - e[i]).pow(2).sum() + 0.025 * kl).detach()) / 7
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)


def test_vae_draws_its_latent_anew_unless_the_mean_is_asked_for() -> None:
    vae, e, noise = VAE(5, 3).requires_grad_(False), torch.randn(4, 5), torch.Generator().manual_seed(0)
    assert not torch.equal(vae.distance(e, noise), vae.distance(e, noise))
    assert torch.equal(vae.distance(e, None), vae.distance(e, None))


def test_the_range_of_the_decoder() -> None:
    """Sigmoid and clip cannot reach features outside (0, 1); a linear decoder can."""
    e = 3 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    losses = {}
    for decoder in ("sigmoid", "linear"):
        its_run = Run()
        train_vae(
            lambda epoch: e, its_run, name="h", latent=6, decoder=decoder, epochs=40, batch_size=20, lr=3e-3,
            kl_weight=0.0,
        )  # fmt: skip
        losses[decoder] = its_run.details["vae"]["h"][-1]
    outside = float(VAE(6, 2, "clip").distance(e, None).mean())
    assert losses["sigmoid"] > outside > losses["linear"]


# -- the algorithm against a straightforward one -----------------------------------------------------------------------


def straightforward(problem: ToyProblem, options: LAF, seed: int) -> nn.Module:
    """LAF as one would write it down: four passes, the teacher in every step, everything recomputed."""

    def represent(model: ToyNet, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(torch.relu(model.norm(model.conv(x))), 2)
        return torch.relu(model.hidden(x.flatten(1)))

    teacher, student = copy.deepcopy(problem.model), copy.deepcopy(problem.model)
    vaes = []
    for name, splits in (("h", (problem.retain, problem.forget)), ("h_f", (problem.forget,))):
        matrix = torch.cat([represent(teacher, s.inputs()) for s in splits]).detach()
        torch.manual_seed(derive(seed, "vae", name, "init"))
        vae = VAE(16, options.latent)
        adam = torch.optim.Adam(vae.parameters(), lr=options.vae_lr)
        noise = torch.Generator().manual_seed(derive(seed, "vae", name, "noise"))
        for epoch in range(1, options.vae_epochs + 1):
            order = torch.Generator().manual_seed(derive(seed, "vae", name, "shuffle", epoch))
            for rows in torch.randperm(len(matrix), generator=order).split(options.vae_batch_size):
                adam.zero_grad()
                vae_loss(vae, matrix[rows], noise, options.kl_weight).backward()
                adam.step()
        vaes.append(vae)
    ue = torch.optim.Adam(student.parameters(), lr=options.lr_ue)
    ra = torch.optim.Adam(student.parameters(), lr=options.lr_ra)
    noise = torch.Generator().manual_seed(derive(seed, "latent"))
    for epoch in range(1, options.epochs + 1):

        def loader(split: Split, epoch: int = epoch) -> Iterator[Batch]:
            order = derive(seed, split.name, "shuffle", epoch, 0)
            return split.batches(options.batch_size, shuffle=True, seed=order)

        for gone, kept in zip(loader(problem.forget), loader(problem.retain), strict=False):
            d = [vae.distance(represent(student, b.x), noise) for vae, b in zip(vaes, (kept, gone), strict=True)]
            loss = torch.exp(d[0] / (d[0] + 1)).sum() - torch.exp(d[1] / (d[1] + 1)).sum()
            ue.zero_grad()
            loss.backward()
            ue.step()
            c = []
            for batch in (kept, gone):
                here, there = represent(student, batch.x), represent(teacher, batch.x)
                c.append(torch.stack([F.cosine_embedding_loss(h[None], t[None], torch.ones(1))
                                      for h, t in zip(here, there, strict=True)]))  # fmt: skip
            loss = torch.log(torch.exp(c[0]) / torch.exp(c[1] / options.tau).sum()).sum()
            ra.zero_grad()
            loss.backward()
            ra.step()
    return student


def test_the_cached_and_fused_algorithm_is_the_straightforward_one() -> None:
    problem = toy_problem()
    options = LAF(**SMALL, skip_noise=False)
    ours, slow = run(options, problem, seed=5).model, straightforward(problem, options, seed=5)
    moved = 0.0
    for name, value in slow.state_dict().items():
        assert torch.allclose(ours.state_dict()[name].double(), value.double(), atol=2e-4), name
        moved = max(moved, float((value.double() - problem.model.state_dict()[name].double()).abs().max()))
    assert moved > 0.01  # the tolerance is far below what the method does


# -- promises ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["alternate", "two_stage", "joint"])
def test_head_and_batchnorm_buffers_stay_bit_identical(schedule: str) -> None:
    problem = toy_problem()
    before = weights(problem.model)
    result = run(LAF(**SMALL, schedule=schedule), problem)
    after = weights(result.model)
    for name in before:
        if name.startswith("head.") or "running" in name or "num_batches" in name:
            assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["hidden.weight"], after["hidden.weight"])
    assert not torch.equal(before["norm.weight"], after["norm.weight"])  # affine weights do learn
    assert same(before, weights(problem.model))


def test_batchnorm_statistics_move_if_asked() -> None:
    problem = toy_problem()
    result = run(LAF(**SMALL, batchnorm="train"), problem)
    assert not torch.equal(problem.model.norm.running_mean, result.model.norm.running_mean)  # type: ignore[union-attr]


def test_no_label_is_needed_read_or_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = toy_problem()
    bare = unlearn(
        problem.model,
        forget=problem.forget.without_labels(),
        retain=problem.retain.without_labels(),
        method=LAF(**SMALL),
        device="cpu",
        precision="float32",
    )
    with_labels = run(LAF(**SMALL), problem)
    assert same(weights(bare.model), weights(with_labels.model))
    assert bare.needs.label_free
    handed = []
    extractor = LAFBase.on_extractor
    monkeypatch.setattr(
        LAFBase, "on_extractor", lambda self, s, p, *rest: (handed.append(p), extractor(self, s, p, *rest))[1]
    )
    run(LAF(**SMALL), problem)
    for split in (handed[0].forget, handed[0].retain):
        for read in (lambda s: s.y, lambda s: s.store.labels, lambda s: next(s.batches(2)).y):
            with pytest.raises(AccessError, match="labels"):
                read(split)


def test_teacher_and_vaes_carry_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    caught: dict[str, Any] = {}
    extractor = LAFBase.on_extractor

    def spy(self: LAF, student: nn.Module, problem: Any, its_run: Run, vaes: Any, teacher: Any, sample: Tensor) -> None:
        caught.update(vaes=vaes, teacher=problem.model, matrix=teacher._known[0].values)
        extractor(self, student, problem, its_run, vaes, teacher, sample)

    monkeypatch.setattr(LAFBase, "on_extractor", spy)
    run(LAF(**SMALL), toy_problem())
    for module in (*caught["vaes"], caught["teacher"]):
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())
    assert not caught["matrix"].requires_grad


@pytest.mark.parametrize(
    ("options", "forgotten", "kept"),
    [
        ({}, 30, 32),  # ceil(30 / 8) = 4 pairs, the last one 6 against 8
        ({"drop_short": True}, 24, 24),
        ({"pairing": "cycle"}, 0, 90),
    ],
)
def test_pairs_end_with_the_forget_set_unless_it_is_cycled(options: dict[str, Any], forgotten: int, kept: int) -> None:
    problem = toy_problem()
    pairs = list(LAF(**{**SMALL, **options})._pairs(_as_problem(problem), Run(), 1))
    assert sum(len(k) for _, k in pairs) == kept
    if "pairing" not in options:
        assert sum(len(g) for g, _ in pairs) == forgotten
        assert len(pairs) == math.ceil(forgotten / 8)
    else:
        assert len(pairs) == math.ceil(90 / 8)
        seen = torch.cat([g.index for g, _ in pairs]).bincount(minlength=30)
        assert int(seen.min()) >= 2
        assert int(seen.max()) <= 3


def _as_problem(problem: ToyProblem) -> Any:
    splits = {"forget": problem.forget, "retain": problem.retain}
    return restrict(problem.model, splits, LAF().needs, 4, Recipe(), None, 0)


@pytest.mark.slow
def test_the_forgotten_class_goes_and_the_rest_stays() -> None:
    """The expectation of the specification (class task: TrainF near 0, TestR near the original's) on real digits."""
    train, test = load_pair("digits")
    task = scenario("class", train, target=3)
    model = build_model("cnn", num_classes=10, input_shape=train.input_shape)
    recipe = {"epochs": 10, "batch_size": 32, "optimizer": "adam", "lr": 2e-3, "schedule": "constant"}
    original = expunge.train(model, task.train, recipe=recipe, device="cpu")
    options = {"epochs": 15, "lr_ue": 1e-3, "lr_ra": 1e-3, "tau": 5.0}
    result = unlearn(original, forget=task.forget, retain=task.retain, method="laf", device="cpu", **options)
    scores = evaluate({"original": original, "laf": result}, forget=task.forget, retain=task.retain, test=test,
                      metrics=["accuracy"], device="cpu")  # fmt: skip
    assert scores.value("original", "forget_accuracy") > 0.98
    assert scores.value("laf", "forget_accuracy") < 0.1
    before, after = (scores.value(name, "test_retained_accuracy") for name in ("original", "laf"))
    assert after > before - 0.05


def test_stages_are_timed_apart() -> None:
    result = run(LAF(**SMALL), toy_problem())
    assert set(result.stages) == {"features", "vae", "extractor", "repair"}
    assert sum(result.stages.values()) <= result.seconds
    assert len(result.details["vae"]["h"]) == 2


def test_no_movement_no_step() -> None:
    """Without L_UE the networks are equal, so L_RA's gradient is rounding, which Adam would turn into full steps."""
    problem = toy_problem()
    skipped, taken = (run(LAF(**SMALL, use_ue=False, skip_noise=skip), problem) for skip in (True, False))
    assert same(weights(skipped.model), weights(problem.model))
    assert not same(weights(taken.model), weights(problem.model))


# -- any model ---------------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Seven features from a two-headed body of a user's own; nothing about it is declared."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, width), nn.ReLU())
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))


@pytest.mark.parametrize("width", [1, 7, 300])
def test_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    make = VAE.__init__
    monkeypatch.setattr(VAE, "__init__", lambda self, w, *rest: (built.append(w), make(self, w, *rest))[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        problem = toy_problem(Odd(width))
    result = run(LAF(**SMALL), problem)
    assert built == [width, width]
    assert torch.equal(result.model.out.weight, problem.model.out.weight)  # type: ignore[union-attr]


def test_a_named_extractor_takes_its_output() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        problem = toy_problem(Odd(7))
    result = run(LAF(**SMALL, extractor="body.1"), problem)
    # What lies behind the named module gets no gradient.
    assert torch.equal(result.model.body[3].weight, problem.model.body[3].weight)  # type: ignore[union-attr, index]
    assert not torch.equal(result.model.body[1].weight, problem.model.body[1].weight)  # type: ignore[union-attr, index]
    with pytest.raises(UsageError, match="body\\.9"):
        run(LAF(**SMALL, extractor="body.9"), problem)


def test_half_precision_keeps_losses_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    ue, ra = LAFBase._ue, LAFBase._ra
    monkeypatch.setattr(LAFBase, "_ue", lambda self, *a: (seen.update({a[0].dtype, a[1].dtype}), ue(self, *a))[1])
    monkeypatch.setattr(LAFBase, "_ra", lambda self, *a: (seen.update({a[0].dtype, a[2][0].dtype}), ra(self, *a))[1])
    run(LAF(**SMALL), toy_problem(), precision="bfloat16")
    assert seen == {torch.float32}


@pytest.mark.parametrize("base", ["laf", "laf+r"])
@pytest.mark.parametrize(
    ("task", "latent", "epochs", "lr_ue", "lr_ra", "tau"),
    [
        ("random-cnn", 8, 20, 5e-5, 1e-4, 5),
        ("random-resnet", 16, 40, 1e-5, 4e-5, 20),
        ("class-cnn", 8, 20, 5e-5, 1e-4, 20),
        ("class-resnet", 16, 40, 1e-5, 5e-5, 20),
        ("noise-cnn", 8, 20, 5e-5, 1e-4, 20),
        ("noise-resnet", 16, 40, 1e-5, 4e-5, 5),
    ],
)
def test_presets_are_the_authors_table(
    base: str, task: str, latent: int, epochs: int, lr_ue: float, lr_ra: float, tau: float
) -> None:
    for preset in (task, f"authors-{task}"):
        made: Any = make_method(f"{base}/{preset}")
        assert (made.latent, made.epochs, made.lr_ue, made.lr_ra, made.tau) == (latent, epochs, lr_ue, lr_ra, tau)
        assert (made.vae_epochs, made.vae_lr, made.kl_weight, made.batch_size) == (10, 1e-3, 0.025, 32)
        authors = preset != task
        assert made.skip_noise is not authors
        assert made.augment == ("rrc-flip-224" if authors and "resnet" in task else "none")


def test_every_preset_can_be_made() -> None:
    for preset in LAF.presets:
        make_method(f"laf/{preset}")
        make_method(f"laf+r/{preset}")


# -- repair ------------------------------------------------------------------------------------------------------------


def test_repair_moves_the_head_alone() -> None:
    problem = toy_problem()
    plain, repaired = run(LAF(**SMALL), problem), run(LAFRepair(**SMALL, labels=20, repair_lr=1e-2), problem)
    a, b = weights(plain.model), weights(repaired.model)
    for name in a:
        assert torch.equal(a[name], b[name]) != name.startswith("head."), name
    assert repaired.details["repair"]["labels"] == 20


def test_repair_uses_exactly_its_budget_of_labels() -> None:
    options = LAFRepair(**SMALL, labels=20, repair_lr=1e-2)
    base = run(options, toy_problem())
    budget = label_budget(toy_problem().retain, 20, 0)
    chosen = torch.tensor([int(name.split()[1]) for name in budget.ids])
    kept = toy_problem().retain.index
    outside = kept[~torch.isin(kept, chosen)]
    assert len(chosen) == 20
    for touched, equal in ((outside, True), (chosen[:1], False)):
        problem = toy_problem()
        labels = problem.store.labels
        labels[touched] = torch.where(labels[touched] == 0, 2, 0)
        assert same(weights(run(options, problem).model), weights(base.model)) is equal


def test_a_share_is_a_budget_too() -> None:
    assert run(LAFRepair(**SMALL, labels=0.1), toy_problem()).details["repair"]["labels"] == 9
    with pytest.raises(UsageError, match="only 90"):
        run(LAFRepair(**SMALL, labels=91), toy_problem())
