"""Networks that return more or less than logits, and those that cannot be trained: read right, or refused."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import expunge
from expunge.core.errors import ExpungeError, UsageError
from expunge.models.anatomy import anatomy
from expunge.models.build import build_model
from expunge.models.checkpoint import weights_hash
from expunge.models.contract import Adapted, adapted, plain_module, two_logits
from expunge.models.modes import lone_samples
from expunge.training.recipe import Recipe

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3
Named = namedtuple("Named", ["logits", "auxiliary"])


class Returns(nn.Module):
    """A linear classifier whose output is wrapped by `how`, in train mode only if so wanted."""

    def __init__(self, how: Any, classes: int = 3, train_only: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.fc = nn.Linear(4, classes)
        self.how = how
        self.train_only = train_only

    def forward(self, x: Tensor) -> Any:
        z = self.fc(x)
        return z if self.train_only and not self.training else self.how(z)


FORMS = {
    "tuple": lambda z: (z, z.detach() + 1),
    "nested": lambda z: [(z, z), z],
    "named": lambda z: Named(z, z + 1),
    "logits": lambda z: {"loss": z.sum(), "logits": z},
    "out": lambda z: {"out": z, "aux": z + 1},
    "only": lambda z: {"scores": z, "names": ["a"]},
    "feature map": lambda z: z[:, :, None, None],
}


@pytest.mark.parametrize("train_only", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found_in_what_is_returned(form: str, train_only: bool) -> None:
    model = Returns(FORMS[form], train_only=train_only)
    read, remarks = adapted(model, X, trains=True)
    assert isinstance(read, Adapted)
    for mode in (True, False):
        assert torch.equal(read.train(mode)(X), model.fc(X))
    assert weights_hash(read) == weights_hash(model)
    assert (remarks == []) == (form == "feature map")
    assert all(("train mode" in remark) == train_only for remark in remarks)


def test_train_and_unlearn_give_back_the_users_own_module() -> None:
    model = Returns(FORMS["tuple"], train_only=True)
    trained = expunge.train(model, (X, Y), recipe={"epochs": 1}, device="cpu")
    result = expunge.unlearn(trained, forget=(X[:5], Y[:5]), retain=(X[5:], Y[5:]), method="finetune", device="cpu")
    assert type(trained.model) is type(result.model) is Returns
    assert "a tuple of 2 in train mode" in trained.notes[0]
    plain = Returns(lambda z: z)
    assert weights_hash(expunge.train(plain, (X, Y), recipe={"epochs": 1}, device="cpu").model) == weights_hash(
        trained.model
    )
    expunge.evaluate({"u": Returns(FORMS["logits"])}, test=(X, Y), metrics=["accuracy"], device="cpu")


@pytest.mark.parametrize("how", [lambda z: z, lambda z: z[:, 0]], ids=["column", "vector"])
def test_one_logit_is_a_binary_classifier(how: Any) -> None:
    model, y = Returns(how, classes=1), (X[:, 0] > 0).long()
    read, remarks = adapted(model, X, trains=True)
    z = model.fc(X)[:, 0]
    loss = F.cross_entropy(read(X), y)
    assert loss.item() == pytest.approx((F.binary_cross_entropy_with_logits(z, y.float())).item())
    assert torch.equal(read(X).argmax(1), (z > 0).long())
    assert remarks == ["the model has one output, read as the logit of the second of two classes."]
    trained = expunge.train(model, (X, y), recipe={"epochs": 20, "lr": 0.5}, device="cpu")
    scores = expunge.evaluate({"t": trained}, test=(X, y), metrics=["accuracy"], device="cpu")
    assert scores.value("t", "test_accuracy") > 0.95


def test_one_probability_is_not_taken_for_a_logit() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
    read, remarks = adapted(model, X, trains=False)
    assert torch.allclose(read(X).softmax(1)[:, 1], model(X)[:, 0], atol=1e-5)
    assert remarks == ["the model has one output, read as the probability of the second of two classes."]
    assert bool(torch.isfinite(two_logits(torch.tensor([[0.0], [1.0]]), probability=True)).all())


@pytest.mark.parametrize("last", [nn.Softmax(dim=1), nn.Sigmoid()], ids=["softmax", "sigmoid"])
def test_outputs_that_are_probabilities_get_a_remark(last: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 3), last)
    read, remarks = adapted(model, X, trains=False)
    assert read is model
    assert len(remarks) == 1
    assert "are probabilities" in remarks[0]
    assert adapted(nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(dim=1)), X, trains=False)[1] == []
    assert adapted(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), X, trains=False)[1] == []


class Changes(nn.Module):
    """Normalises its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.sub_(1).div_(2))


def test_a_network_that_changes_its_input_gets_a_copy() -> None:
    read, _ = adapted(Changes(), X, trains=True)
    before = X.clone()
    assert torch.equal(read(X), read(X))
    assert torch.equal(X, before)


def test_names_inside_the_network_stay_valid() -> None:
    read, _ = adapted(Returns(FORMS["tuple"]), X, trains=True)
    assert anatomy(read, X[:2], head="fc").head == "net.fc"
    assert anatomy(read, X[:2]).head_suffices


def wrong(model: nn.Module) -> None:
    expunge.unlearn(model, forget=(X[:5], Y[:5]), retain=(X[5:], Y[5:]), method="finetune", device="cpu")


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_trained_is_refused_in_one_sentence() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    refused = {
        "is a TorchScript module": torch.jit.script(net),
        r"is quantised, .*\(module `1.0`\)": torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.LayerNorm(4), net), {nn.Linear}, dtype=torch.qint8
        ),
        "`0.weight` has no shape yet; run a batch": nn.Sequential(nn.LazyLinear(3)),
        "on the meta device": nn.Linear(4, 3, device="meta"),
        r"weights are float16, .*pass model.float\(\)": nn.Sequential(nn.Linear(4, 3)).half(),
        r"logits of shape \(batch, classes\), got dict": Returns(lambda z: {"a": z, "b": z}),
        "refuses forget samples": nn.Linear(5, 3),
    }
    for sentence, model in refused.items():
        with pytest.raises(ExpungeError, match=sentence) as caught:
            wrong(model)
        assert "\n" not in str(caught.value)


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    model = Returns(lambda z: z)
    model.stream = (i for i in range(3))
    with pytest.raises(UsageError, match="cannot be copied"):
        wrong(model)


def test_wrappers_are_taken_off() -> None:
    net = nn.Linear(4, 3)
    assert plain_module(nn.DataParallel(net)) is net
    assert plain_module(torch.compile(nn.DataParallel(net), backend="eager")) is net


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_old_weight_norm_is_unlearned() -> None:
    wrong(nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3))))


def test_a_users_lazy_network_is_drawn_from_the_seed(tmp_path: Any) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\n"
        "def build(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.LazyBatchNorm1d(),\n"
        "                         nn.Linear(8, num_classes))\n"
        "def pair(num_classes):\n    class Pair(nn.Linear):\n        def forward(self, x):\n"
        "            z = super().forward(x.flatten(1))\n            return (z, z)\n    return Pair(16, num_classes)\n"
    )
    first, again, other = (
        build_model(f"{path}:build", num_classes=3, input_shape=(1, 4, 4), seed=seed) for seed in (0, 0, 1)
    )
    assert weights_hash(first) == weights_hash(again) != weights_hash(other)
    assert build_model(f"{path}:pair", num_classes=3, input_shape=(1, 4, 4))(torch.zeros(2, 16)).shape == (2, 3)


def test_a_batch_of_one_is_normalised_by_running_statistics() -> None:
    norm = nn.BatchNorm1d(3)
    norm.running_mean = torch.tensor([1.0, 2.0, 3.0])
    x = torch.randn(1, 3)
    expected = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    with lone_samples(norm):
        assert torch.allclose(norm(x), expected)
        assert norm.training
        norm(torch.randn(2, 3))
        assert int(norm.num_batches_tracked) == 1
    with pytest.raises(ValueError, match="more than 1 value"):
        norm(x)
    with lone_samples(nn.Sequential(norm), allowed=False), pytest.raises(UsageError, match="`0` gets one value per"):
        norm(x)


def test_training_in_batches_of_one_is_refused_for_such_a_network() -> None:
    with pytest.raises(UsageError, match="BatchNorm layer `1` gets one value per channel"):
        expunge.train(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), (X, Y), recipe=Recipe(batch_size=1, epochs=1))
