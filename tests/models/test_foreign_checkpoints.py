"""Checkpoints as people have them: prefixes of wrappers, containers, endings, older formats, shards, half precision."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from expunge.core.errors import CheckpointError
from expunge.models.checkpoint import load_matched, load_weights, read_weights, save_weights, weights_hash


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        return nn.Sequential(body, nn.Flatten(), nn.Linear(4, 3))


TRAINED = weights_hash(net(7))


def named(change: Callable[[str], str]) -> dict[str, Tensor]:
    return {change(name): value for name, value in net(7).state_dict().items()}


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def loads(content: Any, path: Path) -> bool:
    return weights_hash(load_weights(net(1), saved(content, path))) == TRAINED


PREFIXES = """
module. _orig_mod. module._orig_mod. _orig_mod.module. module.module. _module. model. net. backbone. a.module.
"""


@pytest.mark.parametrize("prefix", PREFIXES.split())
def test_prefixes_of_wrappers(prefix: str, tmp_path: Path) -> None:
    assert loads(named(lambda name: prefix + name), tmp_path / "w.pt")


def test_wrappers_of_a_part_of_the_network(tmp_path: Path) -> None:
    assert loads(named(lambda name: name.replace("0.", "0.module.", 1) if name[0] == "0" else name), tmp_path / "a.pt")
    inner = named(lambda name: "module." + name.replace("0.0.", "0._orig_mod.0."))
    assert loads(inner, tmp_path / "b.pt")


def test_averages_of_weights_bring_counters(tmp_path: Path) -> None:
    assert loads(AveragedModel(net(7)).state_dict(), tmp_path / "swa.pt")
    assert loads({**named(lambda name: name), "num_updates": torch.tensor(3)}, tmp_path / "ema.pt")


def test_a_model_in_a_wrapper_takes_plain_weights(tmp_path: Path) -> None:
    path = saved(net(7).state_dict(), tmp_path / "w.pt")
    wrapped = nn.DataParallel(net(1))
    found = load_matched(wrapped, path)
    assert (found.added, weights_hash(wrapped.module)) == ("module.", TRAINED)


def test_the_network_of_a_lightning_module_with_a_loss(tmp_path: Path) -> None:
    state = {**named(lambda name: "model." + name), "criterion.weight": torch.ones(3)}
    path = saved({"state_dict": state, "pytorch-lightning_version": "2.4"}, tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match=r"1 tensors belong to no part of the model.*\(criterion.weight\)"):
        assert weights_hash(load_weights(net(1), path)) == TRAINED


def test_two_networks_that_fit_are_not_chosen_between(tmp_path: Path) -> None:
    state = {**named(lambda name: "online." + name), **named(lambda name: "ema." + name)}
    with pytest.raises(CheckpointError, match=r"2 parts of the checkpoint fit the model \(`online.`, `ema.`\)"):
        load_weights(net(1), saved(state, tmp_path / "w.pt"))


@pytest.mark.parametrize("ending", ["pth.tar", "ckpt", "th", "pt", "pkl", "BIN"])
@pytest.mark.parametrize("key", ["state_dict", "net", "weights", "model_ema", "params", "my_own_name"])
def test_containers_and_endings(key: str, ending: str, tmp_path: Path) -> None:
    content = {"epoch": 3, "best_acc": np.float64(93.2), "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    assert loads({**content, key: net(7).state_dict()}, tmp_path / f"best.{ending}")


def test_a_container_in_a_container(tmp_path: Path) -> None:
    assert loads({"model": {"state_dict": net(7).state_dict(), "epoch": 1}}, tmp_path / "w.pt")


def test_the_model_comes_before_its_average(tmp_path: Path) -> None:
    content = {"model_ema": net(1).state_dict(), "state_dict": net(7).state_dict()}
    assert loads(content, tmp_path / "w.pt")


def test_keys_are_named_where_none_is_usual(tmp_path: Path) -> None:
    path = saved({"G": net().state_dict(), "D": net().state_dict()}, tmp_path / "gan.pt")
    with pytest.raises(CheckpointError, match=r"holds 2 state dicts \(`G`, `D`\).*torch.save\(checkpoint\[key\]"):
        read_weights(path)
    with pytest.raises(CheckpointError, match=r"holds no state dict \(it holds `epoch`, `lr`\)"):
        read_weights(saved({"epoch": 1, "lr": 0.1}, tmp_path / "no.pt"))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_strict_loading_takes_is_taken(tmp_path: Path) -> None:
    old = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)))
    new = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    load_weights(new, saved(old.state_dict(), tmp_path / "old.pt"))
    x = torch.rand(2, 4)
    assert torch.allclose(new(x), old(x))

    untracked = {name: value for name, value in net(7).state_dict().items() if "num_batches" not in name}
    assert loads(untracked, tmp_path / "a.pt")
    assert loads({"module." + name: value for name, value in untracked.items()}, tmp_path / "b.pt")

    lazy = nn.Sequential(nn.LazyLinear(3))
    plain = nn.Sequential(nn.Linear(4, 3))
    load_weights(lazy, saved(plain.state_dict(), tmp_path / "lazy.pt"))
    assert torch.equal(lazy(x), plain(x))


class Tied(nn.Module):
    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 4, bias=False)
        if tie:
            self.head.weight = self.embed.weight


def test_tied_weights_that_are_stored_once(tmp_path: Path) -> None:
    model = Tied()
    load_weights(model, saved({"embed.weight": torch.full((4, 4), 2.0)}, tmp_path / "w.pt"))
    assert model.head.weight is model.embed.weight
    assert bool((model.head.weight == 2).all())


def test_weights_that_only_the_model_ties_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"`embed\.weight` and `head\.weight` are one tensor of the model"):
        load_weights(Tied(), saved(Tied(tie=False).state_dict(), tmp_path / "w.pt"))


class Masked(nn.Module):
    def __init__(self, mask: float = -torch.inf) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("mask", torch.tensor([[0.0, mask], [0.0, 0.0]]))


def test_infinite_constants_of_the_model_are_no_damage(tmp_path: Path) -> None:
    path = save_weights(Masked(), tmp_path / "m.safetensors")
    assert weights_hash(load_weights(Masked(), path)) == weights_hash(load_weights(Masked(), path))
    with pytest.raises(CheckpointError, match="`mask` holds NaN or infinite"):
        load_weights(Masked(0.0), path)


def test_half_precision_weights_fill_a_full_precision_model(tmp_path: Path) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in net(7).state_dict().items()}
    model = net(1)
    load_weights(model, saved(half, tmp_path / "w.pt"))
    assert all(
        v.dtype == t.dtype for v, t in zip(model.state_dict().values(), net().state_dict().values(), strict=True)
    )
    assert torch.allclose(model[2].weight, net(7)[2].weight, atol=1e-3)


def test_values_that_would_lose_their_meaning_are_refused(tmp_path: Path) -> None:
    state = {name: value for name, value in net(7).state_dict().items()}
    whole = {**state, "2.weight": (state["2.weight"] * 127).to(torch.int8)}
    with pytest.raises(CheckpointError, match=r"`2\.weight` holds int8 values, which the model's float32 cannot take"):
        load_weights(net(1), saved(whole, tmp_path / "int8.pt"))
    fractional = {**state, "0.1.num_batches_tracked": torch.tensor(2.5)}
    load_weights(net(1), saved(fractional, tmp_path / "federated.pt"))


def test_a_folder_of_save_pretrained_in_shards(tmp_path: Path) -> None:
    state = net(7).state_dict()
    names = list(state)
    places = {name: f"model-0000{1 + (i > 3)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: state[name] for name in names if places[name] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for path in (tmp_path, index):
        assert weights_hash(load_weights(net(1), path)) == TRAINED
    index.write_text(json.dumps({"weight_map": {**places, "2.bias": "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"names the shard `\.\./elsewhere.safetensors`, which is not"):
        read_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {**places, "2.bias": "model-00003.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"lacks its shard model-00003\.safetensors"):
        read_weights(tmp_path)


def test_a_file_of_ours_carries_the_hash_of_its_weights(tmp_path: Path) -> None:
    path = save_weights(net(7), tmp_path / "m.safetensors")
    raw = bytearray(path.read_bytes())
    for position in (-1, -20, -100):  # inside the tensors, where nothing else is checked
        damaged = bytearray(raw)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="was changed or damaged after it was written"):
            load_weights(net(1), path)
    path.write_bytes(raw)
    assert set(load_file(path)) == set(net().state_dict())
    assert weights_hash(load_weights(net(1), path)) == TRAINED


def test_names_are_not_bent_to_fit(tmp_path: Path) -> None:
    """A prefix is only taken off where all that remains is the model."""
    state = {"model." + name: value for name, value in net(7).state_dict().items() if name != "2.bias"}
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match=r"does not fit the model: missing 2.bias\."):
        load_weights(net(1), saved(state, tmp_path / "w.pt"))
