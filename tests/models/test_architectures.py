"""Every catalogued architecture: published parameter counts, shapes, gradients, and refusals in one sentence."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.api.result import Result
from expunge.core.errors import CheckpointError, UsageError
from expunge.core.needs import Needs
from expunge.models import MODELS
from expunge.models.blocks import count_parameters
from expunge.models.build import build_model
from expunge.models.checkpoint import load_weights, weights_hash
from expunge.models.initial import reset_parameters

EXTERNAL = {"vit-hf", "imagenet-resnet50"}  # need another library or a download; tested below

# name, options, classes, input shape, parameters and where the number comes from
COUNTS = [
    ("mlp", {}, 10, (64,), (64 + 1) * 128 + 129 * 128 + 129 * 10),
    ("cnn", {}, 10, (1, 28, 28), 449_098),  # LAF
    ("allcnn", {}, 10, (3, 32, 32), 1_620_010),  # SCRUB: 1.62 M
    ("resnet18-preact", {}, 10, (3, 32, 32), 11_175_178),  # SCRUB: 11.18 M
    ("resnet18-preact", {"width": 0.4}, 10, (3, 32, 32), 1_788_766),  # SCRUB: 1.79 M
    ("resnet18-cifar", {}, 10, (3, 32, 32), 11_173_962),  # L2UL
    ("resnet50-cifar", {}, 100, (3, 32, 32), 23_705_252),  # L2UL
    ("resnet18-laf", {}, 10, (3, 64, 64), 11_310_410),  # LAF
    ("vgg16-bn", {}, 10, (3, 32, 32), 14_714_688 + 8_448 + 5_130),  # 13 convolutions with bias, BatchNorm, head
    ("mobilenetv2-cifar", {}, 1000, (3, 32, 32), 3_504_872),  # torchvision's mobilenet_v2
    ("mobilenetv2-cifar", {}, 10, (3, 32, 32), 2_236_682),
    ("squeezenet-cifar", {"batchnorm": False}, 1000, (3, 32, 32), 1_235_496),  # torchvision's squeezenet1_1
    ("densenet-cifar", {}, 10, (3, 32, 32), 769_162),  # DenseNet-BC-100-12: 0.8 M in the paper
]

# The smallest sensible case of each, for passes that must be quick.
SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "mlp": ({"hidden": 16}, (3, 5)),
    "small-cnn": ({}, (1, 8, 8)),
    "cnn": ({}, (1, 28, 28)),
    "allcnn": ({"width": 0.25}, (3, 32, 32)),
    "resnet18-preact": ({"width": 0.1}, (3, 32, 32)),
    "resnet18-cifar": ({"width": 0.1}, (3, 32, 32)),
    "resnet50-cifar": ({}, (3, 16, 16)),
    "resnet18-laf": ({}, (3, 32, 32)),
    "vgg16-bn": ({}, (3, 32, 32)),
    "mobilenetv2-cifar": ({"width": 0.25}, (3, 32, 32)),
    "squeezenet-cifar": ({}, (3, 32, 32)),
    "densenet-cifar": ({"depth": 22}, (3, 32, 32)),
}


def small(name: str, classes: int = 7) -> tuple[nn.Module, Tensor]:
    options, shape = SMALL[name]
    model = build_model(name, num_classes=classes, input_shape=shape, options=options)
    return model, torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))


def test_every_model_of_the_catalogue_is_tested() -> None:
    assert set(SMALL) | EXTERNAL == set(MODELS.names())


@pytest.mark.parametrize(("name", "options", "classes", "shape", "expected"), COUNTS)
def test_parameter_counts(name: str, options: dict, classes: int, shape: tuple[int, ...], expected: int) -> None:
    model = build_model(name, num_classes=classes, input_shape=shape, options=options)
    assert count_parameters(model) == expected


@pytest.mark.parametrize("name", SMALL)
def test_logits_and_a_gradient_for_every_weight(name: str) -> None:
    model, x = small(name)
    logits = model(x)
    assert logits.shape == (3, 7)
    F.cross_entropy(logits, torch.tensor([0, 3, 6])).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize("name", [name for name in SMALL if name != "mlp"])
def test_data_that_are_no_images_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"model `{name}` takes images .* got shape \(12,\); use `mlp`"):
        build_model(name, num_classes=3, input_shape=(12,))


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("mlp", "small-cnn", "cnn")])
def test_too_small_images_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"model `{name}` takes images .* got shape \(3, 7, 32\)"):
        build_model(name, num_classes=3, input_shape=(3, 7, 32))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 9, 31)])
@pytest.mark.parametrize("name", ["small-cnn", "cnn", "mlp"])
def test_small_nets_take_any_image(name: str, shape: tuple[int, ...]) -> None:
    assert build_model(name, num_classes=4, input_shape=shape)(torch.rand(2, *shape)).shape == (2, 4)


def test_all_cnn_pools_the_whole_map_as_published() -> None:
    model = build_model("allcnn", num_classes=10, input_shape=(3, 32, 32), options={"width": 0.1}).eval()
    x = torch.rand(2, 3, 32, 32)
    pooled = F.avg_pool2d(model.get_submodule("features")(x), 8).flatten(1)
    assert torch.allclose(model(x), model.get_submodule("classifier")(pooled), atol=1e-6)


def test_preactivation_resnet_follows_the_published_code() -> None:
    model = build_model("resnet18-preact", num_classes=10, input_shape=(3, 32, 32), options={"width": 0.4})
    convs = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert all((m.bias is not None) == (m.kernel_size == (3, 3)) for m in convs.values())
    stages = [convs[f"layer{i}.1.conv2"].out_channels for i in (1, 2, 3, 4)]
    assert stages == [25, 51, 102, 204]
    assert isinstance(list(model.get_submodule("layer4.1").modules())[-1], nn.Conv2d)  # no final BatchNorm


def test_resolution_at_the_first_stage() -> None:
    """L2UL: CIFAR-10 with max-pool (16 x 16 at stage 1), UTKFace without."""
    for pool, side in ((True, 16), (False, 32)):
        model = build_model(
            "resnet18-cifar", num_classes=2, input_shape=(3, 32, 32), options={"width": 0.05, "pool": pool}
        )
        assert model.get_submodule("stem")(torch.rand(1, 3, 32, 32)).shape[-2:] == (side, side)


def test_laf_resnet_has_no_activation_behind_the_representation_and_he_initialisation() -> None:
    model = build_model("resnet18-laf", num_classes=10, input_shape=(3, 32, 32))
    weight = model.get_parameter("layer4.1.conv1.weight")
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    e = model.get_submodule("fc1")(torch.rand(4, 512))
    assert e.shape == (4, 256)
    assert bool((e < 0).any())


BAD = [
    ("mlp", {"hidden": 0}, "`hidden` must be >= 1, got 0"),
    ("small-cnn", {"width": 0}, "`width` must be >= 1, got 0"),
    ("cnn", {"features": -1}, "`features` must be >= 1, got -1"),
    ("allcnn", {"width": 0.001}, "`width` 0.001 leaves a layer without filters"),
    ("resnet18-preact", {"width": -1}, "`width` -1 leaves a layer without filters"),
    ("resnet18-cifar", {"width": "wide"}, "`width` should be a valid number, .* got 'wide'"),
    ("resnet18-cifar", {"widht": 1}, "has no option `widht`; did you mean `width`"),
    ("mobilenetv2-cifar", {"width": 0}, "`width` must be > 0, got 0"),
    ("densenet-cifar", {"depth": 101}, "`depth` must be 6 n \\+ 4"),
    ("vit-hf", {}, "needs the option `source`"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        build_model(name, num_classes=3, input_shape=(3, 32, 32), options=options)
    assert "\n" not in str(error.value)


def test_the_catalogue_imports_no_torch() -> None:
    code = "import sys; from expunge.models import MODELS; MODELS.cards(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers", reason="needs the extra `hub`")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
        num_labels=5,
    )
    folder = tmp_path_factory.mktemp("vit")
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.hub
def test_vit_from_a_folder_returns_logits(vit_folder: Path) -> None:
    model = build_model("vit-hf", num_classes=5, input_shape=(3, 32, 32), options={"source": str(vit_folder)}).eval()
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    logits = model(x)
    small = F.interpolate(x, (16, 16), mode="bilinear", antialias=True)
    assert torch.equal(logits, model.get_submodule("net")(pixel_values=small).logits)
    logits.sum().backward()
    assert x.grad is not None


@pytest.mark.hub
def test_folders_of_save_pretrained_and_of_results_are_read_by_both_sides(vit_folder: Path, tmp_path: Path) -> None:
    import transformers

    build = {"num_classes": 5, "input_shape": (3, 32, 32), "options": {"source": str(vit_folder)}}
    model, drawn = build_model("vit-hf", **build), build_model("vit-hf", **build)
    reset_parameters(drawn, seed=1)
    for place in (vit_folder, vit_folder / "model.safetensors"):  # the library's names in files are not its modules'
        assert weights_hash(load_weights(copy.deepcopy(drawn), place)) == weights_hash(model)
    result = Result(model=drawn, history=[], seconds=0.0, status="finished", needs=Needs(), facts={})
    read = transformers.AutoModelForImageClassification.from_pretrained(result.save(tmp_path / "out"))
    assert weights_hash(read) == weights_hash(drawn)
    wrong = {name: value for name, value in model.state_dict().items() if not name.endswith("cls_token")}
    torch.save(wrong, tmp_path / "wrong.pt")
    with pytest.raises(CheckpointError, match=r"missing vit\.embeddings\.cls_token"):
        load_weights(drawn, tmp_path / "wrong.pt")


@pytest.mark.hub
def test_vit_with_another_number_of_classes(vit_folder: Path) -> None:
    options = {"source": str(vit_folder)}
    with pytest.raises(UsageError, match="has 5 classes, the data have 3; pass fresh_head=true"):
        build_model("vit-hf", num_classes=3, input_shape=(3, 16, 16), options=options)
    options["fresh_head"] = "true"
    one, two, other = (
        build_model("vit-hf", num_classes=3, input_shape=(3, 16, 16), options=options, seed=seed) for seed in (0, 0, 1)
    )
    assert one(torch.rand(2, 3, 16, 16)).shape == (2, 3)
    head, body = "net.classifier.weight", "net.vit.embeddings.cls_token"
    assert torch.equal(one.get_parameter(head), two.get_parameter(head))
    assert not torch.equal(one.get_parameter(head), other.get_parameter(head))
    assert torch.equal(one.get_parameter(body), other.get_parameter(body))


@pytest.mark.hub
def test_vit_faults_are_one_sentence(vit_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes 3 channels, the data have 1"):
        build_model("vit-hf", num_classes=5, input_shape=(1, 16, 16), options={"source": str(vit_folder)})
    with pytest.raises(UsageError, match="cannot be loaded") as error:
        build_model("vit-hf", num_classes=5, input_shape=(3, 16, 16), options={"source": str(tmp_path)})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "library", "options"),
    [("vit-hf", "transformers", {"source": "x"}), ("imagenet-resnet50", "torchvision", {})],
)
def test_a_missing_library_is_named(
    name: str, library: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=r"pip install 'expunge\[(hub|vision)\]'"):
        build_model(name, num_classes=10, input_shape=(3, 32, 32), options=options)


def test_imagenet_resnet50_refuses_another_head_before_any_download() -> None:
    pytest.importorskip("torchvision", reason="torchvision is optional")
    with pytest.raises(UsageError, match="has 1000 classes, the data have 10"):
        build_model("imagenet-resnet50", num_classes=10, input_shape=(3, 64, 64))
    free = build_model("imagenet-resnet50", num_classes=10, input_shape=(3, 64, 64), options={"weights": "none"})
    assert free(torch.rand(2, 3, 64, 64)).shape == (2, 10)
