"""The precision of a run: taken as given, else measured once and kept."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from expunge.core.errors import UsageError
from expunge.core.run import Run
from expunge.data.convert import as_split
from expunge.training import precision as module
from expunge.training.precision import measure, resolve_precision

CPU = torch.device("cpu")


@pytest.fixture
def data():
    return as_split((torch.rand(40, 6), torch.arange(40) % 3))


@pytest.fixture
def timed(monkeypatch):
    """Steps with made-up seconds per precision, counted."""
    calls = []

    def use(float32: float, bfloat16: float) -> list[str]:
        def step(model, x, labels, device, precision):
            calls.append(precision)
            return {"float32": float32, "bfloat16": bfloat16}[precision]

        monkeypatch.setattr(module, "_step", step)
        monkeypatch.setattr(module, "native_bfloat16", lambda device: True)
        return calls

    return use


@pytest.mark.parametrize(
    ("seconds", "expected"), [((1.0, 0.5), "bfloat16"), ((1.0, 0.9), "float32"), ((0.001, 0.0001), "float32")]
)
def test_bfloat16_is_taken_only_where_it_is_clearly_faster(timed, data, seconds, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    timed(*seconds)
    assert resolve_precision("auto", nn.Linear(6, 3), data, 16, CPU) == expected


def test_a_decision_is_measured_once_per_shape(timed, data, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    calls = timed(1.0, 0.5)
    model = nn.Linear(6, 3)
    first = resolve_precision("auto", model, data, 16, CPU)
    count = len(calls)
    assert resolve_precision("auto", nn.Linear(6, 3), data, 16, CPU) == first
    assert len(calls) == count  # the same architecture with other weights: not measured again
    resolve_precision("auto", model, data, 20, CPU)
    assert len(calls) == 2 * count
    (kept, _) = sorted((tmp_path / "precision").iterdir())
    assert json.loads(kept.read_text())["precision"] == first


def test_a_kept_decision_outlives_a_change_of_speed_and_damage_is_measured_again(timed, data, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    timed(1.0, 0.5)
    model = nn.Linear(6, 3)
    assert resolve_precision("auto", model, data, 16, CPU) == "bfloat16"
    timed(0.5, 1.0)
    assert resolve_precision("auto", model, data, 16, CPU) == "bfloat16"
    (kept,) = (tmp_path / "precision").iterdir()
    sound = kept.read_text()
    for damage in ("{", sound.replace("bfloat16", "float32", 1), sound.replace('"key": "', '"key": "0'), "[]"):
        kept.write_text(damage)
        timed(1.0, 0.5)
        assert resolve_precision("auto", model, data, 16, CPU) == "bfloat16"
        assert kept.read_text() == sound  # measured again, and kept
    kept.write_text("{")
    timed(0.5, 1.0)
    assert resolve_precision("auto", model, data, 16, CPU) == "float32"


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_a_named_precision_is_not_measured(timed, data, wanted):
    calls = timed(1.0, 0.5)
    assert resolve_precision(wanted, nn.Linear(6, 3), data, 16, CPU) == wanted
    assert not calls


def test_without_the_instructions_nothing_is_timed(timed, data, monkeypatch):
    calls = timed(1.0, 0.5)
    monkeypatch.setattr(module, "native_bfloat16", lambda device: False)
    assert resolve_precision("auto", nn.Linear(6, 3), data, 16, CPU) == "float32"
    assert not calls


def test_a_network_that_is_not_finite_in_bfloat16_is_trained_in_float32(monkeypatch):
    class Overflows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            logits = self.layer(x)
            return logits * float("nan") if logits.dtype == torch.bfloat16 else logits

    monkeypatch.setattr(module, "SMALL_SECONDS", 0.0)
    decision, seconds = measure(Overflows(), torch.rand(8, 6), 3, CPU)
    assert decision == "float32"
    assert set(seconds) == {"float32"}


def test_measuring_leaves_model_and_generator_alone():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    measure(model, torch.rand(8, 6, generator=torch.Generator().manual_seed(0)), 3, CPU)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_run_has_a_decided_precision():
    with pytest.raises(UsageError, match="resolve_precision"):
        Run(precision="auto")
