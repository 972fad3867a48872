"""What a model does on the four kinds of data, and what that makes of a cell beside retrained models."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.worlds.data import Data
from benchmarks.worlds.requests import Request

ACCURACIES = ("forget", "retain", "test")
POINTS = 0.03  # tolerance of an accuracy, unless retraining itself spreads more (two standard deviations)
ATTACK = 0.05  # tolerance of the attack's AUC
DESTROYED = 0.10  # loss of test accuracy against retraining
UNMOVED = 0.2  # share of the way from the original to retraining below which nothing was done

Scores = dict[str, float]


def scores(model: nn.Module, data: Data, request: Request) -> Scores:
    """forget, retain, test: accuracies; test counts the classes that stay. auc: the loss attack; loss: on forget."""
    model.eval()
    retain, forget = request.retain, request.forget
    stays = torch.isin(data.test_y, request.y[retain].unique())
    on_forget, on_test = _logits(model, data.x[forget]), _logits(model, data.test_x)
    return {
        "forget": _accuracy(on_forget, request.y[forget]),
        "retain": _accuracy(_logits(model, data.x[retain]), request.y[retain]),
        "test": _accuracy(on_test[stays], data.test_y[stays]),
        "auc": attack_auc(on_forget, request.y[forget], request.truth[forget], on_test, data.test_y),
        "loss": float(F.cross_entropy(on_forget, request.y[forget])),
    }


def attack_auc(on_forget: Tensor, y: Tensor, truth: Tensor, on_test: Tensor, test_truth: Tensor) -> float:
    """P(loss of a forgotten sample < loss of a test sample of the same true class under the same label), ties half.

    The same label: test samples stand in for wrongly labelled ones under the same confusion. on_forget (F, C),
    y, truth (F,); on_test (T, C), test_truth (T,).
    """
    lost = F.cross_entropy(on_forget.double(), y, reduction="none")
    table = -F.log_softmax(on_test.double(), 1)
    shares = []
    for loss, label, true in zip(lost, y, truth, strict=True):
        others = table[test_truth == true, label]
        shares.append((others > loss).double().mean() + 0.5 * (others == loss).double().mean())
    return float(torch.stack(shares).mean())


def differences(cell: Scores, references: Sequence[Scores]) -> Scores:
    """Cell minus the mean of the retrained models, per score."""
    return {name: cell[name] - statistics.mean(r[name] for r in references) for name in (*ACCURACIES, "auc")}


def gap(difference: Mapping[str, float]) -> float:
    """Mean absolute difference over the three accuracies and the attack's AUC, in points."""
    return 100 * statistics.mean(abs(difference[name]) for name in (*ACCURACIES, "auc"))


def tolerance(name: str, references: Sequence[Scores]) -> float:
    if name == "auc":
        return ATTACK
    return max(POINTS, 2 * statistics.stdev(r[name] for r in references) if len(references) > 1 else 0.0)


def classify(cell: Scores, original: Scores, references: Sequence[Scores]) -> str:
    """good, destroyed, over-forgot, nothing or partial, in this order of precedence."""
    off = differences(cell, references)
    if all(abs(off[name]) <= tolerance(name, references) for name in off):
        return "good"
    if off["test"] < -DESTROYED:
        return "destroyed"
    if off["forget"] < -tolerance("forget", references) or off["auc"] < -ATTACK:
        return "over-forgot"
    start = differences(original, references)
    moved = [1 - off[name] / start[name] for name in ("forget", "auc") if abs(start[name]) > 0.01]
    return "nothing" if moved and max(moved) < UNMOVED else "partial"


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(part).float() for part in x.split(1024)])


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(1) == y).float().mean())
