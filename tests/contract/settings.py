"""How each registered method is exercised on the toy problem; one without an entry here breaks collection."""

from __future__ import annotations

from typing import Any

import torch

from expunge.api.exact import fit_head
from expunge.testing.conformance import Settings
from expunge.testing.toys import ToyProblem

_SGD = {"optimizer": "sgd"}
_LAF: dict[str, Any] = {
    "options": {"epochs": 4, "lr_ue": 1e-2, "lr_ra": 1e-3, "batch_size": 8, "vae_epochs": 3, "vae_batch_size": 16},
    "values": {
        "extractor": "hidden",
        "vae_patience": 0.5,
        "ue_patience": 1,
        "tau": 2.0,
        "latent": 3,
        "augment": "crop-flip",
    },
    "contexts": {
        "drop_short": {"batch_size": 7},
        "vae_views": {"augment": "crop-flip"},
        "ue_patience": {"epochs": 12, "lr_ue": 0.15},
        # Without L_UE nothing has moved when L_RA starts, which is what `skip_noise` is about.
        "skip_noise": {"use_ue": False},
        "rewind": {"epochs": 12, "lr_ue": 3e-2},
    },
}

_TARGETS: dict[str, Any] = {
    "goal": {"limit": 3},
    "targets": {"goal": "relabel"},
    "rewind": {"lr": 0.05, "limit": 8},
}


def _with_exact_head(problem: ToyProblem) -> None:
    """The toy network's head is replaced by one in closed form."""
    rows = torch.cat([problem.forget.index, problem.retain.index]).sort().values
    problem.model = fit_head(problem.model, problem.forget.take(rows), device="cpu").model
    problem.initial = {name: value.clone() for name, value in problem.model.state_dict().items()}
    problem.clear()


_TWO: dict[str, Any] = {"epochs": 3, "lr": 0.1, "retain_batch_size": 16, "forget_batch_size": 8}

_KEPT = {"importance": "who reads what, tested in methods/test_ssd.py"}

SETTINGS: dict[str, Settings] = {
    "original": Settings(),
    "retrain": Settings(
        values={"epochs": 1},
        contexts={"rewind": {"epochs": 12}},
        identity_at_zero_epochs=False,
    ),
    "finetune": Settings(
        options={"epochs": 2, "lr": 0.1, "batch_size": 16},
        contexts={"momentum": _SGD, "rewind": {"lr": 1.0, "epochs": 6}},
        forgets=False,
    ),
    "neggrad": Settings(options={"epochs": 3, "lr": 0.01, "batch_size": 8}, values={"clip": 0.01}),
    "neggrad+": Settings(
        options={"epochs": 3, "lr": 0.05, "alpha": 0.7, "retain_batch_size": 16, "forget_batch_size": 8},
        values={"clip": 0.01},
    ),
    "random-label": Settings(
        options={"epochs": 3, "lr": 0.05, "retain_batch_size": 16, "forget_batch_size": 8},
    ),
    "scrub": Settings(
        # BatchNorm in train mode on batches of one class can move the student towards *more* confidence: KL ascent
        # asks only for distance. Frozen, the toy's answer is unambiguous, and the perturbation is exercised.
        options={
            "lr": 5e-3,
            "retain_batch_size": 16,
            "forget_batch_size": 8,
            "epochs": 4,
            "msteps": 2,
            "batchnorm": "frozen",
        },
        contexts={
            "momentum": _SGD,
            "smoothing_start": {"smoothing": 0.5, "smoothing_start": 2},
            "smoothing_copies_first": {"smoothing": 0.5, "smoothing_start": 2},
            "decay": {"milestones": (1,)},
        },
        values={"clip": 0.01, "smoothing_start": 3, "smoothing": 0.5, "retain_tolerance": 1.0},
    ),
    "unsee": Settings(
        # A random request: of a class that vanishes neither the place of a sample nor wrong labels matter.
        options={"share": 1.0, "lr": 0.02},
        values={"share": 0.5, "held_out": 10, "rounds": 1, "mislabelled": "yes"},
        contexts={"shrink": {"mislabelled": "yes"}},
        forget_class=None,
        forgets=False,  # the toy's held-out samples are fitted as well as the others: see methods/test_unsee.py
    ),
    "retrain-short": Settings(
        values={"share": 0.7, "tolerance": 0.9},
        identity_at_zero_epochs=False,
        forgets=False,
    ),
    "bad-t": Settings(
        options={"epochs": 3, "lr": 5e-3, "retain_batch_size": 16, "forget_batch_size": 8},
        contexts={"momentum": _SGD, "decay": {"milestones": (1,)}},
        values={"clip": 0.01},
    ),
    "cf-k": Settings(
        options={"epochs": 2, "lr": 0.1, "batch_size": 16},
        contexts={
            "decay": {"milestones": (1,)},
            "drop_from": {"milestones": (1,)},
            "rewind": {"lr": 1.0, "epochs": 6},
        },
        values={"drop_from": 0.5},
        forgets=False,
    ),
    "eu-k": Settings(
        options={"epochs": 2, "lr": 0.1, "batch_size": 16},
        contexts={
            "decay": {"milestones": (1,)},
            "drop_from": {"milestones": (1,)},
            "rewind": {"lr": 0.3, "epochs": 12},
            "buffers": {"k": 2},
        },
        values={"drop_from": 0.5},
        identity_at_zero_epochs=False,
    ),
    "fisher": Settings(
        options={"alpha": 1e-5},
        inert={"memory": "how many samples at a time; the result is equal, see methods/test_fisher.py"},
        identity_at_zero_epochs=False,
    ),
    "ntk": Settings(
        options={"ridge": 0.1},
        inert={
            "memory": "how many layers at a time; the result is equal, see methods/test_ntk.py",
            "columns": "a limit that is an error when exceeded, see methods/test_ntk.py",
        },
        identity_at_zero_epochs=False,
    ),
    "boundary-shrink": Settings(
        options={"epochs": 3, "lr": 0.02, "batch_size": 8},
        values={"clip": 0.01, "bound": 0.5, "iterations": 5, "step": 0.05},
        contexts={"iterations": {"bound": 0.3}},
    ),
    "boundary-expand": Settings(
        options={"epochs": 3, "lr": 0.02, "batch_size": 8},
        values={"clip": 0.01},
    ),
    "unrolling": Settings(
        options={"scale": 20.0},
        inert={
            "total": "the toy's forget set is one batch of the recipe; see methods/test_unrolling.py",
            "momentum": "the toy's recipe is Adam; see methods/test_unrolling.py",
        },
    ),
    "sisa": Settings(
        options={"shards": 2, "slices": 2},
        values={"stage_epochs": 5},
        inert={"aggregate": "how the ensemble answers, not its weights; tested in training/test_sisa.py"},
    ),
    "laf": Settings(**_LAF),
    "laf+r": Settings(
        **{
            **_LAF,
            "options": {**_LAF["options"], "labels": 30},
            "values": {**_LAF["values"], "labels": 20, "repair_lr": 1e-2},
        },
        identity_at_zero_epochs=False,
    ),
    "l2ul": Settings(
        options={"limit": 3, "lr": 0.02, "examples": 3, "iterations": 5, "step": 0.5, "batch_size": 32},
        values={"clip": 0.01, "targets": (0,) * 30, "forget_batch_size": 5, "eps": 0.5},
        contexts={
            **_TARGETS,
            "limit": {"lr": 1e-4},
            "early_stop": {"iterations": 30},
            "importance_summed": {"forget_batch_size": 5},
        },
        inert={"attack_batch_size": "how many images at a time; the result is equal, see methods/test_l2ul.py"},
    ),
    "l2ul-plain": Settings(
        options={"limit": 5, "lr": 0.05},
        values={"clip": 0.01, "targets": (0,) * 30, "forget_batch_size": 5},
        contexts={**_TARGETS, "limit": {"lr": 1e-4}},
    ),
    "l2ul-oracle": Settings(
        options={"limit": 3, "lr": 0.02, "retain_batch_size": 16},
        values={"clip": 0.01, "targets": (0,) * 30, "forget_batch_size": 5},
        contexts={**_TARGETS, "limit": {"lr": 1e-4}},
    ),
    # The toy is surer of class 1 than of the rest, so its gradients are the smaller ones: a mixed handful is forgotten.
    "ssd": Settings(inert=_KEPT, options={"alpha": 1.5, "batch_size": 8}, values={"batch_size": 3}, forget_class=None),
    "lfssd": Settings(inert=_KEPT, options={"alpha": 1.5, "batch_size": 8}, values={"batch_size": 3}),
    "assd": Settings(inert=_KEPT, options={"batch_size": 30, "lam": 0.0}, values={"batch_size": 3}, forget_class=None),
    "potion": Settings(
        inert=_KEPT,
        options={"batch_size": 8, "rho": 0.5, "growth": 1.5},
        values={"rho": 0.0, "start": 1.0, "batch_size": 3},
        contexts={"rounds": {"rounds": 3}},
    ),
    "salun": Settings(
        options={"epochs": 3, "lr": 0.05, "batch_size": 8},
    ),
    "l1-sparse": Settings(
        options={"epochs": 2, "lr": 0.1, "batch_size": 16},
        contexts={"rewind": {"lr": 1.0, "epochs": 6}},
        forgets=False,
    ),
    "perturb": Settings(
        options={"epochs": 2, "batch_size": 16, "lr": 0.02},
        contexts={
            "share": {"mode": "smallest"},
            "others": {"mode": "smallest"},
            "k": {"mode": "reinit"},
            "shrink": {"mode": "shrink"},
            "fresh": {"mode": "shrink"},
            "rewind": {"epochs": 6},
        },
        identity_at_zero_epochs=False,
    ),
    "head-distillation": Settings(options={"lr": 0.05, "batch_size": 32}),
    "confidence-masking": Settings(values={"confidence": 0.8}),
    "delete": Settings(
        options={"epochs": 5, "lr": 0.02, "batch_size": 8},
        inert={"mask": "the toy answers each sample with its label; see methods/test_delete.py"},
        forget_class=None,
    ),
    "pour-p": Settings(options={"direction": "mean"}),
    "pour-d": Settings(options={"epochs": 10, "lr": 0.02, "batch_size": 8}),
    "esc": Settings(options={"p": 20.0}),
    "lotus": Settings(
        options={"epochs": 4, "lr": 0.01, "batch_size": 16, "target": "none"},
        contexts={"tolerance": {"target": "validation", "lr": 0.05, "epochs": 8}},
        values={"tolerance": 0.9, "batch_size": 7},
    ),
    "jit": Settings(options={"epochs": 20, "lr": 0.05, "batch_size": 8, "copies": 2}),
    "mu-mis": Settings(
        options={"epochs": 6, "lr": 0.02, "batch_size": 8, "until": 0.0}, values={"clip": 0.01, "until": 0.99}
    ),
    "scar": Settings(options={"epochs": 3, "lr": 0.01, "batch_size": 16}, values={"until": 1.0}),
    "amun": Settings(
        options={"data": "adversarial", "epochs": 4, "lr": 0.05, "batch_size": 16, "steps": 10},
        values={"batch_size": 7, "rounds": 6, "eps": 0.5, "steps": 3},
        contexts={"decay": {"milestones": (1,)}},
    ),
    "pcgrad": Settings(options={**_TWO, "objective": "ascend"}, values={"clip": 0.01}),
    "munba": Settings(options=_TWO, values={"clip": 0.01}),
    "cup": Settings(options=_TWO, values={"clip": 0.01}),
    "hamu": Settings(options=_TWO, values={"clip": 0.01}, contexts={"patience": {"demand": 0.99, "patience": 1}}),
    "agrmo": Settings(options={**_TWO, "decay": 0.5}, values={"clip": 0.01}),
    "orthograd": Settings(
        options={**_TWO, "until": "epochs", "epochs": 2}, values={"clip": 0.01}, contexts={"until": {"lr": 0.5}}
    ),
    "unsir": Settings(
        options={"noise_steps": 5, "noise_size": 8, "copies": 3, "lr": 0.02, "repair_lr": 0.01, "batch_size": 16},
        values={"per_class": 5, "repair": 2},
        contexts={"rewind": {"lr": 0.2, "repair": 3}},
    ),
    "sfr-on": Settings(
        options={
            "epochs": 4,
            "lr": 0.02,
            "retain_batch_size": 16,
            "forget_batch_size": 8,
            "every": 2,
            "threshold": 0.01,
        },
        values={"clip": 0.01, "threshold": 50.0},
    ),
    # The toy is fitted so well that the gradients of a whole class are next to nothing.
    "influence": Settings(options={"scale": 20.0, "batch_size": 8, "batches": 8}, forget_class=None),
    "negmerge": Settings(
        options={"epochs": 3, "lr": 0.05, "batch_size": 8, "rule": "fixed", "lambda_max": 4.0},
        contexts={"rule": {"lambda_max": 400.0}, "keep": {"rule": "held-out", "lambda_max": 4.0}},
        values={"keep": 0.1, "rule": "held-out"},
    ),
    "gs-lora": Settings(
        options={"epochs": 3, "lr": 0.02, "retain_batch_size": 16, "forget_batch_size": 8, "rank": 2, "alpha": 0.01},
        values={"bound": 0.01},
        inert={"layers": "the toy has one layer below the head; see methods/test_gs_lora.py"},
    ),
    "rum": Settings(
        options={"medium": "neggrad", "high": "original", "batch_size": 16, "proxy_lr": 0.05},
        values={"low": "neggrad", "medium": "original", "high": "neggrad", "score": "confidence", "batch_size": 3},
        forget_class=None,
        forgets=False,  # a third of a handful, with the small steps of a default; see methods/test_rum.py
    ),
    "exact-head": Settings(prepare=_with_exact_head),
    "noisy-finetune": Settings(
        options={"noisy_steps": 4, "epochs": 2, "lr": 0.1, "batch_size": 16, "epsilon": 50.0, "radius": 1.0},
        values={"epsilon": 5.0, "delta": 0.1},
        contexts={
            "clip": {"bound": "gradient"},
            "decay": {"bound": "gradient", "decay": 0.1},
        },
        identity_at_zero_epochs=False,
    ),
    "regun": Settings(
        options={"epochs": 3, "lr": 0.05, "retain_batch_size": 16, "forget_batch_size": 8, "reference": "uniform"}
    ),
}
