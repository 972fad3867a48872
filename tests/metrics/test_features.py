"""Features and predictions come from one pass, and are what two passes gave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import expunge
from expunge.core.errors import UsageError
from expunge.core.options import build
from expunge.data.split import ResidentStore, Split
from expunge.metrics import METRICS
from expunge.metrics.agreement import CKA
from expunge.metrics.base import Evaluation, measure
from expunge.models.anatomy import anatomy
from expunge.models.build import build_model
from expunge.training.ensemble import Ensemble
from expunge.training.inference import predict


def net(seed: int = 0) -> nn.Module:
    return build_model("mlp", num_classes=3, input_shape=(6,), seed=seed, options={"hidden": 8})


def splits() -> dict[str, Split]:
    """40 to forget, 90 to retain, 70 unseen; positions in no order."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 6, generator=generator), torch.arange(200) % 3
    whole = Split.whole(ResidentStore(x, y))
    order = torch.randperm(200, generator=generator)
    parts = {"forget": order[:40], "retain": order[40:130], "test": order[130:]}
    return {name: whole.take(index) for name, index in parts.items()}


@contextmanager
def passes(*models: nn.Module) -> Iterator[list[int]]:
    """Sizes of the batches that the models were given."""
    sizes: list[int] = []

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        sizes.append(len(inputs[0]))

    handles = [model.register_forward_pre_hook(note) for model in models]
    yield sizes
    for handle in handles:
        handle.remove()


def test_one_pass_gives_what_two_gave() -> None:
    model, data = net(), splits()
    evaluation = Evaluation({"m": model}, data)
    for name, split in data.items():
        with passes(model) as sizes:
            found, logits = evaluation.features("m", name), evaluation.logits("m", name)
        assert sizes.count(len(split)) == 1
        assert torch.equal(logits, predict(model, split))
        with torch.no_grad():
            assert torch.equal(found, anatomy(model.eval(), split.inputs()).features(split.inputs()))
    with passes(model) as sizes:
        evaluation.both("m", "test")
    assert sizes == []


def test_a_part_of_a_split_is_looked_up_or_passed_alone() -> None:
    model, data = net(), splits()
    part = data["test"].take(data["test"].index[[5, 60, 3, 17]])
    fresh, known = Evaluation({"m": model}, data), Evaluation({"m": model}, data)
    with passes(model) as sizes:
        alone = fresh.both("m", "test", part)
    assert max(sizes) == 4
    known.features("m", "test")
    with passes(model) as sizes:
        looked_up = known.both("m", "test", part)
    assert sizes == []
    for mine, other in zip(alone, looked_up, strict=True):
        torch.testing.assert_close(mine, other)


class Reworked(nn.Module):
    """What leaves the extractor is worked on in place."""

    expunge_anatomy = {"extractor": "inner", "head": "head"}

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu_(self.inner(x)))
        return out


def test_features_are_those_before_later_work_in_place() -> None:
    model, data = Reworked(), splits()
    found = Evaluation({"m": model}, data).features("m", "forget")
    assert bool((found < 0).any())
    assert torch.allclose(found, model.inner(data["forget"].inputs()), atol=1e-6)


def test_features_of_an_ensemble_are_those_of_its_members_side_by_side() -> None:
    one, two, data = net(0), net(1), splits()
    models: dict[str, nn.Module] = {"one": one, "two": two, "both": Ensemble([one, two])}
    evaluation = Evaluation(models, data)
    sides = [evaluation.features(name, "forget") for name in ("one", "two")]
    assert torch.equal(evaluation.features("both", "forget"), torch.cat(sides, 1))


def test_without_a_head_there_are_predictions_only() -> None:
    class Double(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.a(x) + self.b(x)
            return out

    evaluation = Evaluation({"m": Double()}, splits())
    with pytest.raises(UsageError, match="no head was found"):
        evaluation.features("m", "test")
    assert evaluation.logits("m", "test").shape == (70, 3)


def test_an_audit_sees_every_split_once() -> None:
    models, data = [net(seed) for seed in range(4)], splits()
    with passes(*models) as sizes:
        found = expunge.audit(
            models[0], models[1], retrained=models[2:], **data, device="cpu", resamples=10, features=False
        )
    assert "gradient norm" in found.attacks["unlearned"]
    # With two passes forget and test had 8. One more is that of a freshly drawn copy, for ZRF, and four are of the
    # models on perturbed samples, for the residual knowledge.
    assert [sizes.count(len(split)) for split in data.values()] == [9, 4, 4]


def test_metrics_that_read_features_go_first_and_stay_in_their_place() -> None:
    models, data = {"m": net(0), "retrained": net(1)}, splits()
    evaluation = Evaluation(models, data)
    metrics = [build(METRICS.load("accuracy"), {}, "accuracy"), CKA()]
    with passes(*models.values()) as sizes:
        found = measure(evaluation, metrics, "m", metrics)
    assert [sizes.count(len(split)) for split in data.values()] == [2, 2, 2]
    names = [value.metric for row in found for value in row]
    assert names[-3:] == ["forget_cka", "retain_cka", "test_cka"]
