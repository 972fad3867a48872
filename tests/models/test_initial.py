"""Weights drawn anew owe nothing to the weights before, nor to the global random state."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.models.build import build_model
from expunge.models.initial import drawing, reset_parameters
from tests.models.test_architectures import SMALL, small


def scrambled(model: nn.Module) -> nn.Module:
    """Other weights and other BatchNorm statistics everywhere."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for value in (*other.parameters(), *other.buffers()):
            value.copy_(torch.randint(1, 9, value.shape, generator=generator))
    return other


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_left_of_the_trained_weights(name: str) -> None:
    model, _ = small(name)
    other = scrambled(model)
    before = torch.get_rng_state()
    reset_parameters(model, seed=5)
    torch.rand(3)  # the global state must not matter
    torch.set_rng_state(before)
    reset_parameters(other, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(bits(model), bits(other))
    reset_parameters(other, seed=6)
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_statistics_are_those_of_a_new_model() -> None:
    model, x = small("small-cnn")
    new = {k: v.clone() for k, v in model.named_buffers()}
    model(x)
    reset_parameters(model)
    assert_same(dict(model.named_buffers()), new)


def test_named_modules_only_and_the_same_objects() -> None:
    model, _ = small("small-cnn")
    before, parameters = bits(model), list(model.parameters())
    reset_parameters(model, ["head", "block2"])
    after = bits(model)
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head", "block2"}
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    with pytest.raises(UsageError, match="unknown module `haed`; did you mean `head`"):
        reset_parameters(model, ["haed"])


def test_flags_modes_and_constants_stay() -> None:
    model, _ = small("small-cnn")
    model.register_buffer("mean", torch.tensor([0.5]))
    model.get_parameter("head.bias").requires_grad_(False)
    model.eval()
    reset_parameters(model)
    assert model.get_buffer("mean").item() == 0.5
    assert not model.get_parameter("head.bias").requires_grad
    assert not any(module.training for module in model.modules())


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    reset_parameters(model, ["1"])
    assert model[1].weight is model[0].weight
    assert torch.isfinite(model[0].weight).all()


def test_a_rule_of_the_whole_model_has_the_last_word() -> None:
    class Zeroed(nn.Sequential):
        def reset_parameters(self) -> None:
            nn.init.zeros_(self[1].weight)

    model = Zeroed(nn.Linear(4, 4), nn.Linear(4, 4))
    reset_parameters(model)
    assert not model[1].weight.any()
    assert model[0].weight.any()


def test_attention_of_pytorch() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    other = scrambled(model)
    reset_parameters(model)
    reset_parameters(other)
    assert_same(bits(model), bits(other))


class Token(nn.Module):
    """A weight of its own and no rule for it."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(3))


class HalfReset(Token):
    """A rule that forgets one of the weights: the fault that calls of reset_parameters alone cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Parameter(torch.ones(3))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.other)


@pytest.mark.parametrize("kind", [Token, HalfReset])
def test_weights_that_nothing_draws_are_named_and_nothing_changes(kind: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), kind())
    before, state = bits(model), torch.get_rng_state()
    message = rf"the weight `token` of module `1` \({kind.__name__}\) cannot be re-initialised.*initial="
    with pytest.raises(UsageError, match=message):
        reset_parameters(model)
    assert_same(bits(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(UsageError, match="of module `Token`"):
        reset_parameters(Token())


def test_a_parametrised_weight_is_not_missed() -> None:
    """Its `weight` is computed, so drawing it changes nothing: without a check the old weights would survive."""
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(UsageError, match="cannot be re-initialised"):
        reset_parameters(model)


@pytest.mark.hub
def test_a_pretrained_transformer_loses_its_weights(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `hub`")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    options = {"source": str(tmp_path)}
    model = build_model("vit-hf", num_classes=2, input_shape=(3, 8, 8), options=options)
    other = scrambled(model)
    before = torch.get_rng_state()
    reset_parameters(model)
    assert torch.equal(torch.get_rng_state(), before)
    reset_parameters(other)
    assert_same(bits(model), bits(other))
    pretrained = build_model("vit-hf", num_classes=2, input_shape=(3, 8, 8), options=options)
    name = "net.vit.embeddings.position_embeddings"
    assert not torch.equal(model.get_parameter(name), pretrained.get_parameter(name))


def test_drawing_restores_after_an_exception() -> None:
    before = torch.get_rng_state()

    def fail() -> None:
        with drawing(1):
            torch.rand(2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_weights_on_a_gpu_and_its_state_stays() -> None:
    model, _ = small("small-cnn")
    there = copy.deepcopy(model).cuda()
    before = torch.cuda.get_rng_state()
    reset_parameters(model, seed=3)
    reset_parameters(there, seed=3)
    assert next(there.parameters()).is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert_same(bits(model), bits(there.cpu()))
