"""`expunge.inspect` of models: what was understood of the network, its checkpoint and its data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.api.inspection import ModelInspection, is_model
from expunge.cli.main import main
from expunge.core.errors import CheckpointError, UsageError
from expunge.testing.toys import ToyNet, toy_images, toy_problem

SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, aux, classes):
        super().__init__()
        self.aux = aux
        norm, pool = nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), pool, nn.Flatten())
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(16, classes)
        self.fc.bias.requires_grad_(False)

    def forward(self, x):
        h = self.drop(self.body(x))
        return (self.fc(h), h) if self.aux and self.training else self.fc(h)


def build(aux: bool = False, classes: int = 4):
    torch.manual_seed(0)
    return Net(aux, classes)
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(SOURCE)
    return f"{tmp_path / 'net.py'}:build"


def weights(source: str) -> dict[str, Tensor]:
    from expunge.models.build import factory

    return dict(factory(source)().state_dict())


def inspected(*arguments: object, **more: object) -> ModelInspection:
    answer = expunge.inspect(*arguments, **more)
    assert isinstance(answer, ModelInspection)
    return answer


def test_a_lightning_checkpoint_of_ddp(source: str, tmp_path: Path) -> None:
    state = {f"model.module.{name}": value for name, value in weights(source).items()}
    torch.save({"epoch": 3, "state_dict": {**state, "loss.weight": torch.ones(3)}}, tmp_path / "net.ckpt")
    found = inspected(source, checkpoint=tmp_path / "net.ckpt", model_options={"aux": True}, data=toy_images(40, 0))
    assert (found.trainable, found.frozen, found.buffers) == (4 * 9 + 4 + 8 + 64, 4, 9)
    assert [(part.name, part.kind) for part in found.blocks] == [("body.0", "Conv2d"), ("body.1", "BatchNorm2d")]
    assert found.head is not None
    assert (found.head.name, found.head.parameters, found.representation) == ("fc", 68, (16,))
    assert found.norms == {"BatchNorm2d": 1}
    assert (found.input_shape, found.input_dtype, found.classes) == ((1, 8, 8), "float32", 4)
    assert found.eval_output == "logits (B, 4)"
    assert found.train_output == "a tuple of 2, logits (B, 4) taken from it"
    assert (found.deterministic, found.draws) == (True, True)
    assert found.accuracy["train"].samples == 40
    assert found.checkpoint is not None
    assert (found.checkpoint.tensors, found.checkpoint.container) == (10, "state_dict")
    assert (found.checkpoint.stripped, found.checkpoint.left_out) == ("model.module.", ("loss.weight",))
    assert found.checkpoint.fits is True
    assert not found.problems
    assert len(repr(found).splitlines()) <= 10
    assert "model.module." in found._repr_html_()
    json.dumps(found.record())


def test_what_does_not_fit_is_listed(source: str, tmp_path: Path) -> None:
    state = weights(source)
    state["fc.extra"] = state.pop("fc.bias")
    state["fc.weight"] = torch.zeros(7, 16)
    torch.save(state, tmp_path / "bad.pth")
    found = inspected(source, checkpoint=tmp_path / "bad.pth", data=toy_images(8, 0))
    assert found.checkpoint is not None
    assert found.checkpoint.fits is False
    assert (found.checkpoint.missing, found.checkpoint.unexpected) == (("fc.bias",), ("fc.extra",))
    assert found.checkpoint.other_shapes == ("fc.weight is (7, 16), the model has (4, 16)",)
    assert "does not fit the model" in found.problems[0]
    assert found.input_shape == (1, 8, 8)  # the rest is told all the same


def test_without_data_sizes_follow_the_weights(tmp_path: Path) -> None:
    from expunge.models.build import build_model

    made = build_model("cnn", num_classes=7, input_shape=(1, 28, 28))
    torch.save(made.state_dict(), tmp_path / "cnn.pth")
    found = inspected("cnn", checkpoint=tmp_path / "cnn.pth")
    assert found.checkpoint is not None
    assert (found.checkpoint.fits, found.classes, found.input_shape) == (True, 7, (1, 28, 28))
    assert "there are no data to tell" in found.notes[0]
    alone = inspected(tmp_path / "cnn.pth")
    assert (alone.architecture, alone.checkpoint.fits if alone.checkpoint else 0) == ("", None)
    assert "name the model as well" in alone.notes[0]


def test_samples_that_are_refused_are_a_problem(source: str) -> None:
    found = inspected(source, data=(torch.rand(8, 3, 8, 8), torch.arange(8) % 4))
    assert "the model refuses train samples of shape (3, 8, 8)" in found.problems[0]
    assert found.eval_output == ""
    few = inspected(source, data=(torch.rand(8, 1, 8, 8), torch.arange(8)))
    assert "has label 7, but the model has 4 classes" in few.problems[0]
    assert not few.accuracy
    assert found.trainable


def test_a_module_and_a_result(tmp_path: Path) -> None:
    problem = toy_problem()
    plain = inspected(problem.model)
    assert (plain.architecture, plain.classes, plain.draws) == ("ToyNet", 4, False)
    trained = expunge.TrainedModel.of(problem.model, data=problem.retain, test=problem.test)
    found = inspected(trained)
    assert list(found.accuracy) == ["train", "test"]
    assert found.accuracy["train"].value > 0.9
    assert is_model(trained)
    assert not is_model((torch.rand(2, 2), torch.zeros(2)))
    assert not is_model(tmp_path)
    fresh = inspected(ToyNet(), data=problem.retain)
    assert any("near chance" in note for note in fresh.notes)


def test_what_cannot_be_inspected_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no model to load"):
        expunge.inspect("faces", checkpoint=tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        expunge.inspect(tmp_path / "x.pth")
    with pytest.raises(UsageError, match="has a lazy layer"):
        expunge.inspect(nn.LazyLinear(2))


def test_command(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    monkeypatch.setenv("COLUMNS", "80")
    x, y = toy_images(40, 0)
    np.savez(tmp_path / "toy.npz", x_train=x.numpy(), y_train=y.numpy(), x_test=x[:8].numpy() / 2, y_test=y[:8].numpy())
    run = ["--data", str(tmp_path / "toy.npz"), "--epochs", "1", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(["train", "--model", source, *run]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    for text in ("112 trainable", "accuracy, train", "accuracy, test", "fc (head)", "fits the model   yes"):
        assert text in shown
    assert main(["inspect", source, "--checkpoint", str(tmp_path / "none.pth"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "does not exist" in told["problems"][0]
    assert told["classes"] == 4
    assert main(["unlearn", "--model", "mlp", "--checkpoint", str(tmp_path / "run" / "model.safetensors"), "--data",
                 str(tmp_path / "toy.npz"), "--forget", "class:1", "--out", str(tmp_path / "o")]) == 2  # fmt: skip
    assert "expunge inspect MODEL --checkpoint" in capsys.readouterr().err
