"""Anatomy of the catalogue and of foreign models; hooks and modes are always given back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.models.anatomy import Anatomy, anatomy, frozen_batchnorm, set_trainable
from expunge.models.blocks import count_parameters
from expunge.models.build import build_model
from tests.models.test_architectures import SMALL, small

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")

# name: head, width of the representation, the last block, the number of blocks
EXPECTED = {
    "mlp": ("5", 16, "3", 2),
    "small-cnn": ("head", 64, "hidden", 3),
    "cnn": ("fc2", 256, "fc1", 3),
    "allcnn": ("classifier", 48, "features.9", 8),
    "resnet18-preact": ("head", 51, "layer4", 5),
    "resnet18-cifar": ("head", 51, "layer4", 5),
    "resnet50-cifar": ("head", 2048, "layer4", 5),
    "resnet18-laf": ("head", 256, "fc1", 6),
    "vgg16-bn": ("classifier", 512, "features.16", 13),
    "mobilenetv2-cifar": ("classifier", 1280, "features.18", 19),
    "squeezenet-cifar": ("classifier", 512, "features.11", 9),
    "densenet-cifar": ("classifier", 69, "features.dense3", 6),
}


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", SMALL)
def test_catalogue(name: str) -> None:
    model, x = small(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    head, width, last, count = EXPECTED[name]
    body = anatomy(model, x)
    assert (body.head, body.extractor) == (head, None)
    assert body.last_blocks(1)[0] == last
    assert body.last_blocks(count)[0] == body.blocks[0]
    with pytest.raises(UsageError, match=f"has {count} blocks, got k = {count + 1}; allowed: 1 to {count}"):
        body.last_blocks(count + 1)
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert list(body.batchnorms) == norms
    assert model.training
    assert hooks(model) == 0
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    model.eval()
    assert body.features(x).shape == (3, width)
    assert torch.equal(body.classify(body.features(x)), model(x))


@pytest.mark.parametrize("name", SMALL)
def test_blocks_and_head_hold_every_weight_once(name: str) -> None:
    model, x = small(name)
    body = anatomy(model, x)
    parts = [*body.blocks, body.head]
    assert sum(count_parameters(model.get_submodule(part)) for part in parts) == count_parameters(model)


def test_last_blocks_of_the_scrub_paper() -> None:
    x = torch.rand(2, 3, 32, 32)
    cnn = build_model("allcnn", num_classes=10, input_shape=(3, 32, 32))
    assert sum(count_parameters(cnn.get_submodule(n)) for n in anatomy(cnn, x).last_blocks(1)) == 37_248
    net = build_model("resnet18-preact", num_classes=10, input_shape=(3, 32, 32), options={"width": 0.4})
    body = anatomy(net, x)
    assert body.blocks == STAGES
    assert body.last_blocks(1) == ("layer4",)
    assert body.last_blocks(2) == ("layer3", "layer4")


class Functional(nn.Module):
    """Everything between the layers is a function; layers are declared in another order than they run."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3)
        self.unused = nn.Linear(9, 9)
        self.second = nn.Conv2d(4, 6, 3)
        self.first = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        return self.out(F.relu(self.second(x)).mean((2, 3)))


class Nested(nn.Module):
    """A wrapped backbone, a list of blocks that does not run itself, a head inside a head."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict(
            {
                "layers": nn.ModuleList([nn.Linear(64, 64) for _ in range(4)]),
                "top": nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3))),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.net["layers"]:
            x = torch.relu(layer(x))
        return self.net["top"](x)


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


FOREIGN = [
    (Functional, "out", ("first", "second"), 6),
    (Nested, "net.top.2.1", ("net.layers.0", "net.layers.1", "net.layers.2", "net.layers.3", "net.top.0"), 8),
    (sequential, "5", ("0", "1"), 4),
]


@pytest.mark.parametrize(("make", "head", "blocks", "width"), FOREIGN)
def test_foreign_models(make: Any, head: str, blocks: tuple[str, ...], width: int) -> None:
    model, x = make().eval(), torch.rand(5, 1, 8, 8)
    body = anatomy(model, x)
    assert (body.head, body.blocks) == (head, blocks)
    assert body.features(x).shape == (5, width)
    assert torch.allclose(body.classify(body.features(x)), model(x))


def test_a_normalisation_counts_with_its_block() -> None:
    body = anatomy(sequential(), torch.rand(2, 1, 8, 8))
    assert body.last_blocks(1) == ("0", "1")


def test_the_last_run_of_a_shared_head_counts() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.middle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(torch.relu(self.middle(self.shared(x))))

    model, x = Twice(), torch.rand(3, 4)
    body = anatomy(model, x)
    assert body.head == "shared"
    assert torch.equal(body.features(x), torch.relu(model.middle(model.shared(x))))


def test_features_have_gradients_when_enabled_only() -> None:
    model, x = small("cnn")
    body = anatomy(model, x)
    body.features(x).sum().backward()
    assert model.get_parameter("conv1.0.weight").grad is not None
    assert model.get_parameter("fc2.0.weight").grad is None
    with torch.no_grad():
        assert not body.features(x).requires_grad


def test_features_skip_the_rest_of_the_pass() -> None:
    model, x = small("cnn")
    body = anatomy(model, x)
    ran: list[str] = []
    model.get_submodule("fc2").register_forward_hook(lambda *_: ran.append("fc2"))
    body.features(x)
    assert ran == []


def test_hooks_go_after_an_exception() -> None:
    model, x = small("cnn")
    body = anatomy(model, x)
    with pytest.raises(RuntimeError):
        body.features(torch.rand(2, 9, 28, 28))
    with pytest.raises(UsageError, match=r"does not take a batch of shape \(2, 9, 28, 28\)"):
        anatomy(model, torch.rand(2, 9, 28, 28))
    assert hooks(model) == 0
    assert model.training


def test_named_parts() -> None:
    model, x = Nested().eval(), torch.rand(2, 1, 8, 8)
    body = anatomy(model, x, head="net.top")
    assert body.features(x).shape == (2, 64)
    assert body.blocks == tuple(f"net.layers.{i}" for i in range(4))
    assert torch.allclose(body.classify(body.features(x)), model(x))
    middle = anatomy(model, x, extractor="net.layers.1")
    assert middle.features(x).shape == (2, 64)
    with pytest.raises(UsageError, match=r"head `net.top.2.1` alone does not turn the output of `net.layers.1`"):
        middle.classify(middle.features(x))
    with pytest.raises(UsageError, match=r"unknown module `net.tpo`; did you mean `net.top`"):
        anatomy(model, x, head="net.tpo")
    with pytest.raises(UsageError, match="unknown module `fc9`"):
        anatomy(model, x, extractor="fc9")


def test_a_map_before_the_head_is_flattened_and_put_back() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 3)))
    x = torch.rand(2, 1, 8, 8)
    body = anatomy(model, x, head="1")
    assert body.features(x).shape == (2, 144)
    assert torch.allclose(body.classify(body.features(x)), model(x))


def test_a_head_that_is_not_the_whole_rest_is_admitted() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.rand(2, 1, 8, 8)
    body = anatomy(model, x)
    assert body.head == "0"
    with pytest.raises(UsageError, match="name the module that does with head="):
        body.classify(body.features(x))


class Bypass(nn.Module):
    """The last module is not the head: a bare weight acts on the logits, and is even frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.weight = nn.Parameter(torch.rand(3, 4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.body(x)), self.weight)


def test_weights_outside_of_modules_are_not_overlooked() -> None:
    model, x = Bypass(), torch.rand(2, 4)
    with pytest.raises(UsageError, match="no head was found: the logits depend on `weight` besides the last module"):
        anatomy(model, x)
    assert not model.weight.requires_grad
    assert hooks(model) == 0
    assert anatomy(model, x, head="body").head == "body"


@pytest.mark.parametrize("model", [nn.Flatten(), nn.ReLU()])
def test_no_weights_no_head(model: nn.Module) -> None:
    with pytest.raises(UsageError, match="no module with weights runs"):
        anatomy(model, torch.rand(2, 4))


@pytest.mark.parametrize("output", [lambda y: (y,), lambda y: y[:, 0], lambda y: {"logits": y}, lambda y: y[:1]])
def test_models_must_return_logits(output: Any) -> None:
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return output(super().forward(x))

    with pytest.raises(UsageError, match=r"must return logits \(batch, classes\) as one tensor, it returned"):
        anatomy(Odd(4, 3), torch.rand(2, 4))


def test_wrong_statements_of_a_class_are_named() -> None:
    class Stated(nn.Sequential):
        expunge_anatomy = {"head": "1", "blocks": ["0", "7"]}

    with pytest.raises(UsageError, match="unknown module `7`"):
        anatomy(Stated(nn.Linear(4, 4), nn.Linear(4, 2)), torch.rand(2, 4))


def test_a_stated_extractor() -> None:
    class Stated(nn.Sequential):
        expunge_anatomy = {"head": "1", "extractor": "0"}

    model, x = Stated(nn.Linear(4, 5), nn.Linear(5, 2)), torch.rand(2, 4)
    body = anatomy(model, x)
    assert isinstance(body, Anatomy)
    assert body.extractor == "0"
    assert torch.equal(body.classify(body.features(x)), model(x))


@pytest.mark.hub
def test_a_transformer_of_hugging_face() -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `hub`")
    from expunge.models.external import LogitsOnly

    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=12, num_attention_heads=2, image_size=8, patch_size=4, num_channels=1
    )
    model = LogitsOnly(transformers.ViTForImageClassification(config), 8).eval()
    x = torch.rand(2, 1, 8, 8)
    body = anatomy(model, x)
    assert body.head == "net.classifier"
    assert body.features(x).shape == (2, 32)
    assert len(body.last_blocks(12)[0]) > 0
    assert torch.allclose(body.classify(body.features(x)), model(x), atol=1e-6)


def test_set_trainable() -> None:
    model, _ = small("small-cnn")
    set_trainable(model, ["block2", "head"])
    free = {n for n, p in model.named_parameters() if p.requires_grad}
    assert free == {"block2.0.weight", "block2.0.bias", "block2.1.weight", "block2.1.bias", "head.weight", "head.bias"}
    with pytest.raises(UsageError, match="unknown module `block3`"):
        set_trainable(model, ["head", "block3"])
    assert {n for n, p in model.named_parameters() if p.requires_grad} == free


def test_frozen_batchnorm_leaves_statistics_and_comes_back() -> None:
    model, x = small("small-cnn")
    statistics = model.get_buffer("block1.1.running_mean").clone()

    def fail() -> None:
        with frozen_batchnorm(model):
            assert model.training
            assert model.get_submodule("block1").training
            assert not model.get_submodule("block1.1").training
            model(x)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(module.training for module in model.modules())
    assert torch.equal(model.get_buffer("block1.1.running_mean"), statistics)
    model(x)
    assert not torch.equal(model.get_buffer("block1.1.running_mean"), statistics)
